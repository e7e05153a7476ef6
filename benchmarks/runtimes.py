"""Do ONNX Runtime or OpenVINO run STU-Net faster on the CPU than prediction does: CPU time, memory, labels?

    python benchmarks/runtimes.py --sizes S B --edges 64 96 128 --json benchmarks/results/runtimes.json

needs onnx, onnxruntime and openvino, which nothing else here does. Ours is the network as stunet_predict prepares it
(inference/engine/optimized.py). Theirs is the same network, exported by torch with one head and a fixed patch, with
torch's own convolutions and norms, which both runtimes know. Random weights, one thread; the forms take turns in one
process, and each peak is that of a fresh process which loads the weights and computes once, without its imports.

bf16 is measured where the processor multiplies it natively, or where --precisions asks for it: ours beside OpenVINO
with that hint; ONNX Runtime has no bfloat16 convolution on the CPU. Results stand in benchmarks/architectures.md.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forms import MIB, growth, in_turns, machine, ratio

from stunet.inference.engine.optimized import ReadyNetwork, has_bf16
from stunet.networks import STUNet, with_layers_of_torch

STRIDES = [(1, 1, 1)] + 5 * [(2, 2, 2)]
FORMS = {"fp32": ("ours", "OpenVINO", "ONNX Runtime"), "bf16": ("ours", "OpenVINO")}
Forward = Callable[[], np.ndarray]


def network_of(size: str, classes: int) -> STUNet:
    torch.manual_seed(0)
    network = STUNet(1, classes, size, STRIDES, deep_supervision=False)
    return network.apply(network.initialize).eval()


def image_of(edge: int) -> torch.Tensor:
    """Noise (1, 1, edge, edge, edge)."""
    return torch.randn(1, 1, edge, edge, edge, generator=torch.Generator().manual_seed(1))


def export(size: str, edge: int, classes: int, file: Path) -> None:
    """Write the network as ONNX, and the logits of one image that torch computes with it in float32."""
    torch.set_num_threads(1)
    network, image = with_layers_of_torch(network_of(size, classes)), image_of(edge)
    with torch.inference_mode():
        labels = network(image).argmax(1).to(torch.uint8)
    np.save(file.with_suffix(".npy"), labels.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated; the newer one needs one more package
        torch.onnx.export(network, (image,), str(file), dynamo=False, opset_version=18, input_names=["image"])


def load(form: str, precision: str, size: str, edge: int, classes: int, file: Path) -> Forward:
    """One form of the network, ready to compute the logits of the image."""
    torch.set_num_threads(1)
    image = image_of(edge)
    if form == "ours":
        ready = ReadyNetwork(network_of(size, classes), [], torch.device("cpu"), precision)

        def run() -> np.ndarray:
            with torch.inference_mode():
                return ready(image).float().numpy()

        return run
    if form == "OpenVINO":
        import openvino

        options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision]}
        compiled = openvino.Core().compile_model(str(file), "CPU", options)
        request = compiled.create_infer_request()
        return lambda: request.infer({0: image.numpy()}, share_inputs=True, share_outputs=True)[0]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": image.numpy()})[0]


def timed(forms: list[str], precision: str, rounds: int, *case: Any) -> dict[str, Any]:
    """CPU seconds of the forms by round, and how many of the labels are those of torch in float32."""
    made = {form: load(form, precision, *case) for form in forms}
    expected = np.load(case[-1].with_suffix(".npy"))
    equal = {form: float((run().argmax(1) == expected).mean()) for form, run in made.items()}
    return {"cpu_s": in_turns(made, rounds), "equal_labels": equal}


def peak(form: str, precision: str, *case: Any) -> int:
    """Bytes that loading and one forward add to the peak of this process."""
    if form != "ours":
        __import__("openvino" if form == "OpenVINO" else "onnxruntime")
    return growth(lambda: load(form, precision, *case)())


def measure(
    size: str, edge: int, classes: int, rounds: int, precisions: list[str], folder: Path
) -> list[dict[str, Any]]:
    """The rows of one size and edge."""
    case = (size, edge, classes, folder / f"{size}-{edge}.onnx")
    fresh = partial(ProcessPoolExecutor, 1, mp_context=get_context("spawn"), max_tasks_per_child=1)
    rows = []
    with fresh() as process:
        process.submit(export, *case).result()
        for precision in precisions:
            forms = list(FORMS[precision])
            load_before = os.getloadavg()[0]
            found = process.submit(timed, forms, precision, rounds, *case).result()
            peaks = {form: process.submit(peak, form, precision, *case).result() for form in forms}
            for form in forms:
                rows.append({
                    "size": size, "edge": edge, "precision": precision, "form": form,
                    "cpu_s": found["cpu_s"][form],
                    "ratio": ratio(found["cpu_s"][form], found["cpu_s"]["ours"]),
                    "peak_bytes": peaks[form], "equal_labels": found["equal_labels"][form],
                    "load": [load_before, os.getloadavg()[0]],
                })  # fmt: skip
    case[-1].unlink()
    return rows


def shown(row: dict[str, Any]) -> str:
    cpu = sorted(row["cpu_s"])[len(row["cpu_s"]) // 2]
    cells = [f"{row['size']} {row['edge']}^3", row["precision"], row["form"], f"{cpu:.2f}", f"{row['ratio']:.2f}"]
    cells += [f"{row['peak_bytes'] / MIB:.0f}", f"{row['equal_labels']:.6f}", f"{row['load'][1]:.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["S"])
    parser.add_argument("--edges", nargs="+", type=int, default=[64])
    parser.add_argument("--classes", type=int, default=105)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", default=["fp32", *(["bf16"] if has_bf16() else [])])
    parser.add_argument("--json", type=Path, help="adds the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = machine("onnx", "onnxruntime", "openvino")
    print(json.dumps(about))
    heads = ["patch", "precision", "form", "CPU s", "ratio", "peak MiB", "equal labels", "load"]
    print(f"| {' | '.join(heads)} |\n|{3 * '---|'}{5 * '---:|'}")
    for size in args.sizes:
        for edge in args.edges:
            with tempfile.TemporaryDirectory() as folder:
                rows = measure(size, edge, args.classes, args.rounds, args.precisions, Path(folder))
            print(*map(shown, rows), sep="\n", flush=True)
            if args.json:
                add(args.json, about, rows)


def add(file: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Add rows to a file: each is worth minutes, and a run may be killed."""
    known = json.loads(file.read_text()) if file.is_file() else []
    file.write_text(json.dumps([*known, {"machine": about, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    main()
