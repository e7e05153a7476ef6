"""Write a network as ONNX, for runtimes that compute it without torch, and verify that it computes the same.

benchmarks/architectures.md has the times: OpenVINO is faster than stunet_predict on CPUs without bfloat16, ONNX Runtime
is not. The file takes one window; what is around it is for whoever runs it: preprocessing, windows, mirroring.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from stunet.errors import UsageError, WeightsError
from stunet.files import atomic_write
from stunet.models.folder import described_network, state_dict
from stunet.weights.reading import Weights

OPSET = 18
MOST_BYTES = 2_000_000_000  # of an ONNX file, a protocol buffer
SAME = 1e-3  # of the largest logit: runtimes convolve in other orders
IMAGE, LOGITS = "image", "logits"  # names of input and output


def write_onnx(target: Path, weights: Weights) -> list[str]:
    """Write a network with one head and a fixed window, and what it takes and returns; return what to know of it.

    Args:
        target: The file, which appears whole or not at all. Its metadata have plans, dataset and mirror axes as JSON
            under `stunet`.
        weights: As check_fit() accepts them.

    Raises:
        UsageError: onnx or onnxruntime is not installed.
        WeightsError: The network is too large for one file, or ONNX Runtime computes something else.
    """
    onnx, runtime = _packages()
    assert weights.plan is not None  # weights that fit have one
    planned = weights.plan.configuration(str(weights.configuration))
    if (bytes_needed := sum(4 * value.numel() for value in weights.tensors.values())) > MOST_BYTES:
        raise WeightsError(
            f"{str(weights.path)!r} has {bytes_needed / 1e9:.1f} GB of weights, and an ONNX file holds 2 GB",
            "--format nnunet",
        )
    network = _network(weights)
    image = torch.randn(1, weights.network.channels, *planned.patch_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(image)
    with atomic_write(target) as part:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this exporter is deprecated; the other one needs one more package
            torch.onnx.export(
                network, (image,), str(part), dynamo=False, opset_version=OPSET,
                input_names=[IMAGE], output_names=[LOGITS],
            )  # fmt: skip
        model = onnx.load(str(part))
        meta = {"plans": weights.plan.to_json(), "dataset": weights.dataset, "mirror_axes": weights.mirror_axes}
        onnx.helper.set_model_props(model, {"stunet": json.dumps({**meta, "configuration": weights.configuration})})
        onnx.save(model, str(part))
        session = runtime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        (found,) = (torch.from_numpy(array) for array in session.run([LOGITS], {IMAGE: image.numpy()}))
        furthest = (found - expected).abs().max() / expected.abs().max()
        if found.shape != expected.shape or not furthest < SAME:
            raise WeightsError(
                f"ONNX Runtime computes something else than {str(weights.path)!r}, by {float(furthest):.2g} of the "
                "largest logit",
                "--format nnunet",
            )
    shape, last = " x ".join(map(str, image.shape)), "softmax" if weights.classes else "sigmoid of each region"
    return [
        f"input {IMAGE!r}: {shape} in float32, preprocessed as the plans under 'stunet' in its metadata say; "
        f"output {LOGITS!r}, before the {last}",
        "it computes one window: windows, mirroring, resampling and labels are for the program that runs it",
    ]


def _network(weights: Weights) -> torch.nn.Module:
    network = described_network(weights)
    tensors = {name: value.float() for name, value in state_dict(weights, network).items()}
    network.to_empty(device="cpu").load_state_dict(tensors)
    architecture = weights.network.architecture
    architecture.deeply_supervise(network, enabled=False)
    return architecture.portable(network).eval().requires_grad_(False)


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            f"--format onnx needs {error.name}, which is not installed", "pip install 'stunet[onnx]'"
        ) from None
    return onnx, onnxruntime
