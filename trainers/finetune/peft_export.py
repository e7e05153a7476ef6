"""Export a training with adapters to a folder that peft can load, a few per cent of the checkpoint's size.

The layout is PEFT's: `down` is lora_A, a convolution to r channels; `up` is lora_B, a convolution with kernel size 1.
Heads and all other modules that were trained directly are stored in full, as are those that peft has no adapters for.
plans.json and dataset.json record what the network is for. lora.py defines the adapters.

peft puts a module of its own in the place of one that has an adapter, under one name. A network whose modules have
several is therefore stripped of all but those by which it calls them (Architecture.single).
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stunet import architectures
from stunet.architectures.base import HEADS
from stunet.architectures.stunet import STUNET
from stunet.errors import StunetError, UsageError, WeightsError
from stunet.files import atomic_folder, write_json
from stunet.trainers.finetune.strategies import PARAMETRIZED
from stunet.weights.checkpoints import load_checkpoint, load_safetensors, save_weights
from stunet.weights.reading import Weights, read_weights
from stunet.weights.transfer import transfer

FILE, PREFIX = "adapter_model.safetensors", "base_model.model."  # PEFT's names
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
# Rounding tolerances, relative to a tensor's largest value and to the output's norm: W x + U D x is not (W + U D) x.
SAME_WEIGHT, SAME_OUTPUT = 1e-5, 1e-4
_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
SAME_NORM = 1e-3  # relative tolerance for a pre-trained weight, which may have been exported with --half


def export_adapter(source: Path, target: Path) -> None:
    """Export what a training with adapters learned, and verify that peft reconstructs the same network from it.

    Args:
        source: A checkpoint, or the result folder of a training with a single fold.
        target: The folder to create; it appears complete or not at all.

    Raises:
        UsageError: peft is not installed, there are several folds, or `target` is named like a file.
        StunetError: peft cannot be imported.
        WeightsError: The training had no adapters, or peft computes something else with them.
        DataError: `target` exists.
    """
    if target.suffix in (".safetensors", ".zip"):
        raise UsageError(f"{str(target)!r} ends with {target.suffix!r}", "with --peft OUT is a folder")
    peft = _peft()
    folds = sorted(source.glob("fold_*/checkpoint_final.pth"))
    if len(folds) > 1:
        raise UsageError(f"{str(source)!r} has {len(folds)} folds, an adapter is of one", f"give {str(folds[0])!r}")
    weights = read_weights(source)
    more = load_checkpoint(weights.path).get("stunet") if weights.kind == "nnU-Net v2" else None
    if not more or not more.get("adapters") or not weights.plan or not weights.plan.weights:
        raise WeightsError(
            f"{str(weights.path)!r} holds no adapters",
            "only trainings with --pretrained NAME --finetune lora have them; export others without --peft",
        )
    if len(weights.plan.weights) > 1:
        raise WeightsError(
            f"{str(weights.path)!r} has adapters on {len(weights.plan.weights)} weights, and peft takes those on one",
            "without --peft the whole network is exported",
        )
    started = weights.plan.weights[0]
    written, base = _split(weights, more)
    norms = {name: _norm(base[name.replace(DOWN, ".weight")]) for name in written if name.endswith(DOWN)}
    with atomic_folder(target) as part:
        meta: dict[str, Any] = {"network": _arguments(weights), "norms": norms}
        if way := started.inflate:
            meta["inflate"] = way
        save_weights(part / FILE, {PREFIX + name: value for name, value in written.items()}, meta)
        _config(peft, written, started.name).save_pretrained(part)
        write_json(part / "plans.json", weights.plan.content)
        write_json(part / "dataset.json", weights.dataset)
        _verify(peft, part, weights, base)


def base_network(folder: Path, weights: Path) -> nn.Module:
    """Build the network that an exported adapter applies to, with its pre-trained weights; the adapter has the heads.

    Args:
        folder: A folder written by export_adapter().
        weights: Pre-trained weights, as accepted by read_weights().

    Raises:
        WeightsError: The folder does not exist, or the adapter was trained on other weights.
    """
    _, meta = load_safetensors(folder / FILE)
    if not meta:
        raise WeightsError(f"{str(folder)!r} was not written by stunet", "build the network with stunet.networks")
    network = _build(meta["network"])
    # All of it, and what training did not take is replaced: the adapter holds those tensors whole.
    transfer(network, read_weights(weights), head="reset", transfer="all", inflate=meta.get("inflate"))
    architectures.of_network(network).single(network)
    state = network.state_dict()
    for name, norm in meta["norms"].items():
        if not math.isclose(_norm(state[name.replace(DOWN, ".weight")]), norm, rel_tol=SAME_NORM):
            raise WeightsError(
                f"the adapter in {str(folder)!r} was trained on other weights than {str(weights)!r}",
                "adapter_config.json has the name of those: base_model_name_or_path",
            )
    return network


def _split(weights: Weights, more: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors to write, without peft's prefix, and the prior state, with zeros for those written in full."""
    architecture, network = weights.network.architecture, _build(_arguments(weights))
    called = architecture.single(network)

    def stored_in_full(name: str, value: Tensor) -> bool:
        # peft up to 0.21.2 fails to merge 3D kernels of size 1 (huggingface/peft issue 3768); they are small.
        pointwise = value.ndim == 5 and value[0, 0].numel() == 1
        module = name.rpartition(".")[0]
        transposed = isinstance(network.get_submodule(called[name].rpartition(".")[0]), _TRANSPOSED)
        counts = f"{module}.running_mean" in called  # its statistics follow the images, frozen or not
        direct = name in more["fresh"] or architecture.place(name).part == HEADS
        return direct or pointwise or transposed or counts

    tensors = {name: value for name, value in weights.tensors.items() if name in called}
    in_full = {name.rpartition(".")[0] for name, value in tensors.items() if stored_in_full(name, value)}
    written, base = {}, {called[name]: value for name, value in tensors.items()}
    for name, value in tensors.items():
        module, _, kind = name.rpartition(".")
        adapter, own = f"{module}{PARAMETRIZED}", called[name]
        if module in in_full:
            written[own], base[own] = value, torch.zeros_like(value)
        elif kind == "weight" and f"{adapter}original" in more["adapters"]:
            base[own], up, down = (more["adapters"][adapter + kind] for kind in ("original", "0.up", "0.down"))
            place = own.rpartition(".")[0]
            written[place + DOWN] = down.view(-1, *value.shape[1:])
            written[place + UP] = up.view(*up.shape, *[1] * (value.ndim - 2))
    return written, base


def _config(peft: Any, written: Mapping[str, Tensor], base: str) -> Any:
    """Return PEFT's configuration: its scale alpha / r is 1, and the rank is lower where a weight has fewer rows."""
    ranks = {name.removesuffix(DOWN): len(value) for name, value in written.items() if name.endswith(DOWN)}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: own for module, own in ranks.items() if own != rank}
    in_full = {name.rpartition(".")[0] for name in written if not name.endswith((DOWN, UP))}
    return peft.LoraConfig(
        r=rank, lora_alpha=rank, rank_pattern=others, alpha_pattern=others, target_modules=list(ranks),
        modules_to_save=sorted(in_full), base_model_name_or_path=base, inference_mode=True,
    )  # fmt: skip


@torch.inference_mode()
def _verify(peft: Any, folder: Path, weights: Weights, base: Mapping[str, Tensor]) -> None:
    """Compare what peft makes of the folder with the checkpoint: the outputs of all heads, and the merged weights."""
    architecture, strides = weights.network.architecture, weights.strides or []
    network = _build(_arguments(weights)).eval()
    architecture.deeply_supervise(network, True)
    divisor = (math.prod(axis) for axis in zip(*strides, strict=True))
    # Two voxels per axis in the bottleneck: a single one cannot be normalised.
    shape = (1, weights.network.channels, *(2 * factor for factor in divisor))
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    called = architecture.single(network)
    tensors = {called[name]: value for name, value in weights.tensors.items() if name in called}
    network.load_state_dict(tensors)
    expected = torch.cat([head.flatten() for head in network(image)])
    network.load_state_dict(base)
    model = peft.PeftModel.from_pretrained(network, folder).eval()
    error = _norm(torch.cat([head.flatten() for head in model(image)]) - expected) / _norm(expected)
    merged = model.merge_and_unload().state_dict()
    limits = {name: SAME_WEIGHT * value.abs().max() for name, value in tensors.items()}
    # `not <=` instead of `>`, here and below: NaN must fail as well.
    wrong = [name for name, value in tensors.items() if not (merged[name] - value).abs().max() <= limits[name]]
    if not error <= SAME_OUTPUT or wrong:
        raise WeightsError(
            f"peft {peft.__version__} computes something else than {str(weights.path)!r}: outputs differ by "
            f"{error:.1e} of their norm, and {len(wrong)} merged weights (e.g. {(wrong or ['none'])[0]!r})",
            "nothing was written; pip install -U peft",
        )


def _arguments(weights: Weights) -> dict[str, Any]:
    """Return what _build() needs; STU-Net, the first to be exported, goes without its class."""
    assert weights.plan is not None  # export_adapter() has checked it
    found, planned = weights.network, weights.plan.configuration(str(weights.configuration))
    own = {} if found.architecture is STUNET else {"class_name": found.architecture.class_name}
    counts = {"input_channels": found.channels, "num_classes": found.classes}
    return {**own, **planned.network_arguments, **counts}


def _build(arguments: Mapping[str, Any]) -> nn.Module:
    """Build the network with initial values; its heads' results are full resolution alone."""
    given = dict(arguments)
    class_name = given.pop("class_name", STUNET.class_name)
    architecture = architectures.find(class_name)
    if architecture is None:
        raise WeightsError(f"the adapter is for {class_name}, which is not known here", "pip install -U stunet")
    network = architecture.build(given.pop("input_channels"), given.pop("num_classes"), given)
    network.apply(network.initialize)  # type: ignore[arg-type]  # nnU-Net's convention
    architecture.deeply_supervise(network, False)
    return network


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value, dtype=torch.float64))


def _peft() -> Any:
    try:
        import peft
    # Not only ImportError: what peft imports fails in ways of its own where versions do not fit together.
    except Exception as error:
        if getattr(error, "name", None) == "peft":
            raise UsageError("--peft needs peft, which is not installed", "pip install 'stunet[peft]'") from None
        # Lazy imports wrap the error that says what is wrong, sometimes more than once.
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        raise StunetError(
            f"peft is installed, but its import fails: {type(cause).__name__}: {cause}",
            "python -c 'import peft' shows where; torch, torchvision and transformers must fit together",
        ) from error
    return peft
