"""The arguments of nnU-Net's networks in plans: which classes they may name, what is wrong with them, what follows.

nnunet_unet.py has the networks. Lists have one entry per stage, and a single value is for all; classes are dotted
strings, which are looked up in a fixed table. `repeats` is the name of the argument for what an encoder stage is made
of, which the two networks call differently.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONV, NORM, DROPOUT, NONLIN = "conv_op", "norm_op", "dropout_op", "nonlin"
# The classes that plans may name, by argument: the module of torch that defines them, and their names.
_TORCH: dict[str, dict[str, tuple[str, ...]]] = {
    CONV: {"conv": ("Conv2d", "Conv3d")},
    NORM: {"instancenorm": ("InstanceNorm2d", "InstanceNorm3d"), "batchnorm": ("BatchNorm2d", "BatchNorm3d")},
    DROPOUT: {"dropout": ("Dropout", "Dropout2d", "Dropout3d")},
    NONLIN: {"activation": ("ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Mish")},
}
CLASSES: dict[str, dict[str, str]] = {
    key: {
        dotted: name
        for module, names in modules.items()
        for name in names
        for dotted in (f"torch.nn.{name}", f"torch.nn.modules.{module}.{name}")
    }
    for key, modules in _TORCH.items()
}
# What may be given to them.
_OPTIONS = {
    NORM: {"eps", "momentum", "affine", "track_running_stats"},
    DROPOUT: {"p", "inplace"},
    NONLIN: {"inplace", "negative_slope", "alpha", "approximate"},
}
_FROM_OUTPUT = {"ReLU", "LeakyReLU", "ELU"}  # computed in place, these need their output alone for the backward pass
MOST_STAGES = 20
USUAL_WIDTH = 32  # channels of the first stage in nnU-Net's plans; they double per stage
MOST_WIDTH = {2: 512, 3: 320}  # by the number of axes: where they stop doubling


@dataclass(frozen=True)
class Dimensions:
    """The arguments of a plan that shapes or memory depend on, with one entry per stage.

    Attributes:
        features: Channels.
        kernels: Voxels per axis.
        repeats: Convolutions or residual blocks of the encoder.
        decoder: Convolutions per level, coarsest first.
        bias: Whether convolutions have one.
        norm: Whether there are norms.
        affine: Whether norms have parameters.
        tracked: Whether norms have running statistics.
        kept: Tensors of its output's shape that autograd keeps of a convolution with norm and activation: the input of
            the norm, that of the activation unless it works in place, and its output.
    """

    features: tuple[int, ...]
    kernels: tuple[tuple[int, ...], ...]
    repeats: tuple[int, ...]
    decoder: tuple[int, ...]
    bias: bool
    norm: bool
    affine: bool
    tracked: bool
    kept: int

    def convolution(self, c_in: int, c_out: int, kernel: Sequence[int] = (), bias: bool | None = None) -> int:
        """Return the number of parameters of a convolution, one of size 1 by default, and the norm behind it."""
        has_bias = self.bias if bias is None else bias
        return math.prod(kernel) * c_in * c_out + c_out * has_bias + 2 * c_out * self.affine


def dimensions(arguments: Mapping[str, Any], repeats: str, stages: int | None = None) -> Dimensions:
    """Return what counts depend on, of the first `stages` stages: a plan's lists may be of a deeper network."""
    before = arguments["n_stages"]
    count = stages or before
    ndim = ndim_of(arguments)
    norm, options = named(NORM, arguments.get(NORM)), arguments.get("norm_op_kwargs") or {}
    nonlin, inplace = named(NONLIN, arguments.get(NONLIN)), (arguments.get("nonlin_kwargs") or {}).get("inplace")
    is_batch = norm is not None and norm.startswith("Batch")
    # What is computed elsewhere than in place needs its input, too; of ReLU that is known from the output.
    also = nonlin is not None and nonlin != "ReLU" and not (inplace and nonlin in _FROM_OUTPUT)
    return Dimensions(
        tuple(each(arguments["features_per_stage"], count)),
        tuple(tuple(each(kernel, ndim)) for kernel in each(arguments["kernel_sizes"], count)),
        tuple(each(arguments[repeats], count)),
        tuple(each(arguments["n_conv_per_stage_decoder"], before - 1)[before - count :]),
        bool(arguments.get("conv_bias", False)),
        norm is not None,
        norm is not None and bool(options.get("affine", is_batch)),
        norm is not None and bool(options.get("track_running_stats", is_batch)),
        1 + (norm is not None) + also,
    )


def usual(ndim: int, repeats: str, first: int) -> dict[str, Any]:
    """Return the arguments that nnU-Net's planners give, of the first stage alone, which has `first` repeats."""
    return {
        "n_stages": 1,
        "features_per_stage": [USUAL_WIDTH],
        CONV: f"torch.nn.modules.conv.Conv{ndim}d",
        "kernel_sizes": [[3] * ndim],
        "strides": [[1] * ndim],
        repeats: [first],
        "n_conv_per_stage_decoder": [],
        "conv_bias": True,
        NORM: f"torch.nn.modules.instancenorm.InstanceNorm{ndim}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        DROPOUT: None,
        "dropout_op_kwargs": None,
        NONLIN: "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def problems(arguments: Mapping[str, Any], repeats: str, known: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield what is wrong; only the first is of use, as later checks rely on earlier ones.

    Args:
        arguments: Those of a plan.
        repeats: The argument for what an encoder stage is made of.
        known: The dotted strings that each argument may have which is a class.
    """
    stages = arguments["n_stages"]
    if type(stages) is not int or not 2 <= stages <= MOST_STAGES:
        yield f"n_stages {stages!r} must be 2 to {MOST_STAGES}"
    for key, dotted in known.items():
        value = arguments.get(key)
        if not (isinstance(value, str) and value in dotted) and (value is not None or key == CONV):
            names = ", ".join(sorted(dotted, key=len)[: len(dotted) // 2 or 1])
            yield f"{key} {value!r} is not one of the classes that are known here: {names}"
    ndim = ndim_of(arguments)
    for key, count in (
        ("features_per_stage", stages), (repeats, stages), ("n_conv_per_stage_decoder", stages - 1),
    ):  # fmt: skip
        if not _are_counts(arguments[key], count):
            yield f"{key} {arguments[key]!r} must be {count} positive integers"
    kernels = arguments["kernel_sizes"]
    given = kernels if isinstance(kernels, list | tuple) else [kernels] * stages
    if len(given) != stages or not all(_are_counts(one, ndim, odd=True) for one in given):
        yield f"kernel_sizes {kernels!r} must be {stages} entries of {ndim} odd numbers"
    strides = arguments.get("strides", [[]] * stages)
    if not isinstance(strides, list | tuple) or len(strides) != stages:
        yield f"strides {strides!r} must have an entry for each of {stages} stages"
    if not isinstance(arguments.get("conv_bias", False), bool):
        yield f"conv_bias {arguments['conv_bias']!r} must be true or false"
    if (norm := named(NORM, arguments.get(NORM))) and not norm.endswith(f"{ndim}d"):
        yield f"norm_op {arguments[NORM]!r} is not for {ndim}D"
    for key, known_options in _OPTIONS.items():
        options = arguments.get(f"{key}_kwargs")
        if options is not None and not _are_plain(options, known_options):
            yield f"{key}_kwargs {options!r} must be numbers by the names {', '.join(sorted(known_options))}"


def ndim_of(arguments: Mapping[str, Any]) -> int:
    """Return the number of axes in space."""
    return int(CLASSES[CONV][arguments[CONV]].removeprefix("Conv")[0])


def each(value: Any, count: int) -> list[Any]:
    """Return one value per stage or axis; a single one is for all."""
    return list(value[:count]) if isinstance(value, list | tuple) else [value] * count


def named(key: str, dotted: str | None) -> str | None:
    """Return the name of a class in torch.nn."""
    return None if dotted is None else CLASSES[key][dotted]


def _are_counts(value: Any, count: int, odd: bool = False) -> bool:
    """Return whether a value is a positive integer, or as many of them."""
    given = value if isinstance(value, list | tuple) else [value] * count
    return len(given) == count and all(type(one) is int and one > 0 and (one % 2 or not odd) for one in given)


def _are_plain(options: Any, known: set[str]) -> bool:
    return isinstance(options, Mapping) and all(
        key in known and (value is None or isinstance(value, bool | int | float | str))
        for key, value in options.items()
    )
