"""The values of a run that can be set on the command line (`--set key=value`): their defaults, and what is valid.

They are stored in the plan, as far as they were set: training values in `stunet.train`, values that shape the plan in
`stunet.plan` (derive.py). A new value is one line in one of the two classes; plan.py has the accessors.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from stunet.errors import UsageError, closest, short

LARGEST = 2**62  # upper bound for any value of a run
AUGMENT = ("standard", "safe", "none")  # explained in trainers/supervised.py and trainers/pretexts/augment.py
MIRROR = ("auto", "none", "swap", "all")  # explained in trainers/supervised.py


@dataclass(frozen=True)
class Value:
    """A kind of value: its tag in a plan's name, its type, a further condition, and an example for error messages."""

    tag: str
    type: type
    valid: Callable[[Any], bool]
    example: str


def _value(default: Any, tag: str, kind: type, valid: Callable[[Any], bool], example: str) -> Any:
    return field(default=default, metadata={"value": Value(tag, kind, valid, example)})


def _positive(number: float) -> bool:
    return number > 0


def _is_patch(sizes: list[Any]) -> bool:
    return len(sizes) in (2, 3) and all(type(n) is int and n > 0 for n in sizes)


@dataclass(frozen=True)
class _Settings:
    """Settings that a table of a plan holds; those that it lacks have their defaults."""

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Self:
        """Return the settings of a table. Unknown keys do not count: before a training they are refused (schema.py)."""
        return cls(**{key: value for key, value in content.items() if key in cls.values()})

    @classmethod
    def values(cls) -> dict[str, Value]:
        """Return what is valid for each setting, by name."""
        return {each.name: each.metadata["value"] for each in fields(cls)}


@dataclass(frozen=True)
class TrainSettings(_Settings):
    """Values of a training. The defaults are nnU-Net's where nnU-Net has the value."""

    num_epochs: int = _value(1000, "epochs", int, _positive, "250")
    num_iterations_per_epoch: int = _value(250, "its", int, _positive, "250")
    num_val_iterations_per_epoch: int = _value(50, "valits", int, _positive, "50")
    # None: the fine-tuning strategy's, which differs with and without weights; without a strategy nnU-Net's 0.01
    initial_lr: float | None = _value(None, "lr", float, _positive, "0.001")
    momentum: float = _value(0.99, "mom", float, lambda x: 0 <= x < 1, "0.9")
    weight_decay: float = _value(3e-5, "wd", float, lambda x: x >= 0, "3e-5")
    oversample_foreground_percent: float = _value(0.33, "fg", float, lambda x: 0 <= x <= 1, "0.33")
    seed: int = _value(0, "seed", int, lambda n: n >= 0, "1")
    label_interpolation: str = _value(  # in augmentation
        "linear", "labels", str, lambda s: s in ("linear", "nearest"), "nearest"
    )
    mirror: str = _value("auto", "mirror", str, lambda s: s in MIRROR, "none")
    accumulation: int = _value(1, "acc", int, _positive, "2")  # parts of each process's share of a batch
    # None: half precision with a scaled loss on CUDA, and single precision elsewhere, as in nnU-Net
    precision: str | None = _value(None, "", str, lambda text: text in ("bf16", "fp32"), "bf16")
    # None: all of the fold's training cases; otherwise the seed chooses them
    num_cases: int | None = _value(None, "cases", int, _positive, "16")
    augment: str = _value("standard", "aug", str, lambda text: text in AUGMENT, "none")
    # of a pre-training: how often images of each dataset are drawn: n^(1 - alpha)
    alpha: float = _value(0.5, "alpha", float, lambda x: 0 <= x <= 1, "0.5")


@dataclass(frozen=True)
class PlanSettings(_Settings):
    """Values that shape a plan; None where the planner decides.

    The memory target and the number of stages are not among them: they have options of their own, without `--set`.
    """

    batch_size: int | None = _value(None, "bs", int, _positive, "4")
    patch_size: Sequence[int] | None = _value(None, "patch", list, _is_patch, "[64,64,64]")
    checkpointing: bool | None = _value(None, "ckpt", bool, lambda b: True, "true")


TRAIN = TrainSettings.values()
PLAN = PlanSettings.values()
KNOWN = TRAIN | PLAN
OF_TRAINING = {"oversample_foreground_percent", "label_interpolation", "mirror"}  # without meaning in a pre-training
OF_PRETRAINING = {"alpha"}  # without meaning in any other training
SYNONYMS = {  # what other programs call these values
    "initial_lr": ("lr", "learning_rate", "learningrate", "base_lr", "initial_learning_rate", "max_lr"),
    "num_epochs": ("epoch", "epochs", "max_epochs", "n_epochs", "train_epochs"),
    "batch_size": ("batch", "batchsize", "bs", "train_batch_size"),
    "patch_size": ("patch", "patchsize", "roi_size", "crop_size", "crop", "image_size", "patches"),
    "weight_decay": ("wd", "decay", "l2", "weightdecay"),
    "num_iterations_per_epoch": ("iterations", "iters", "steps", "steps_per_epoch", "iterations_per_epoch"),
    "num_val_iterations_per_epoch": ("val_iterations", "val_steps", "validation_steps"),
    "oversample_foreground_percent": ("oversample", "oversampling", "foreground", "oversample_foreground"),
    "seed": ("random_seed", "random_state", "rng"),
    "mirror": ("mirroring", "mirror_axes", "flip", "flips"),
    "accumulation": ("accumulate", "gradient_accumulation", "grad_accum", "accumulate_grad_batches", "micro_batches"),
    "precision": ("amp", "dtype", "mixed_precision", "bf16", "fp32", "half"),
    "num_cases": ("cases", "n_cases", "num_samples", "train_cases", "subset"),
    "augment": ("augmentation", "augmentations", "transforms", "da"),
    "checkpointing": ("gradient_checkpointing", "grad_checkpointing", "activation_checkpointing"),
}


def known_as(name: str) -> str | None:
    """Return the key that another program's name for it, or another spelling, stands for; None if there is none."""
    plain = name.lstrip("-").lower().replace("-", "_")
    return plain if plain in KNOWN else next((key for key, names in SYNONYMS.items() if plain in names), None)


def parse(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `["num_epochs=250", "patch_size=[64,64,64]"]` to a dictionary; values are JSON.

    Raises:
        UsageError: A pair without `=`, an unknown key, or an invalid value.
    """
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set {pair!r} is not of the form key=value", "--set num_epochs=250")
        try:
            values[key] = check_value(key, json.loads(text))
        except (ValueError, RecursionError):  # ValueError also for a number with too many digits
            # Plain text, so that words need no quotes: --set mirror=none.
            values[key] = check_value(key, text)
    return values


def parse_stages(text: str | int | None) -> int | str | None:
    """Parse a number of stages, "auto", or None if none was given.

    Raises:
        UsageError: Neither a number from 2 to 9 nor "auto".
    """
    if text is None or text == "auto":
        return text
    if not (str(text).isdigit() and 2 <= int(text) <= 9):
        raise UsageError(f"--stages {text!r} is neither a number from 2 to 9 nor 'auto'", "--stages 6")
    return int(text)


def check_value(key: str, value: Any) -> Any:
    """Return the value converted to its type.

    Raises:
        UsageError: Unknown key, or an invalid value for it.
    """
    if key not in KNOWN:
        meant = f"; did you mean {same!r}?" if (same := known_as(key)) else closest(key, list(KNOWN))
        raise UsageError(f"unknown key {key!r}{meant}", f"--set takes {', '.join(KNOWN)}")
    kind = KNOWN[key]
    if not is_valid(kind, value):
        raise UsageError(f"{key}={short(value)} is not a valid {kind.type.__name__}", f"--set {key}={kind.example}")
    return kind.type(value)


def is_valid(kind: Value, value: Any) -> bool:
    """Return whether a value is of a kind; 2.0 counts as an integer."""
    number = type(value) in (int, float) and -LARGEST <= value <= LARGEST  # excludes NaN as well
    of_type = {
        int: number and value == int(value),
        float: number,
        bool: isinstance(value, bool),
        list: isinstance(value, list),
        str: isinstance(value, str),
    }
    return of_type[kind.type] and kind.valid(value)


def tag(key: str, value: Any) -> str:
    """Return a value's tag in a plan's name: `epochs250`, `patch64x64x64`; short, because folder names are limited."""
    if key == "memory_gb":
        return f"{value:g}gb"
    name = KNOWN[key].tag if key in KNOWN else key
    if isinstance(value, list):
        return name + "x".join(map(str, value))
    # 3e-05 becomes 3em05: a minus separates the tags of a name.
    return name + (f"{value:g}".replace("-", "m") if isinstance(value, float) else str(value))
