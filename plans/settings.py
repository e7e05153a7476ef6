"""The values of a run that can be set on the command line (`--set key=value`), and what is valid for each.

They are stored in the plan: training values in `stunet.train`, values that shape the plan in `stunet.plan` (derive.py).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stunet.errors import UsageError, closest, short


@dataclass(frozen=True)
class Value:
    """A kind of value: its tag in a plan's name, its type, a further condition, and an example for error messages."""

    tag: str
    type: type
    valid: Callable[[Any], bool]
    example: str


LARGEST = 2**62  # upper bound for any value of a run


def _positive(number: float) -> bool:
    return number > 0


MIRROR = ("auto", "none", "swap", "all")  # explained in trainers/supervised.py
TRAIN: dict[str, Value] = {
    "num_epochs": Value("epochs", int, _positive, "250"),
    "num_iterations_per_epoch": Value("its", int, _positive, "250"),
    "num_val_iterations_per_epoch": Value("valits", int, _positive, "50"),
    "initial_lr": Value("lr", float, _positive, "0.001"),
    "momentum": Value("mom", float, lambda x: 0 <= x < 1, "0.9"),
    "weight_decay": Value("wd", float, lambda x: x >= 0, "3e-5"),
    "oversample_foreground_percent": Value("fg", float, lambda x: 0 <= x <= 1, "0.33"),
    "seed": Value("seed", int, lambda n: n >= 0, "1"),
    "label_interpolation": Value("labels", str, lambda s: s in ("linear", "nearest"), "nearest"),  # in augmentation
    "mirror": Value("mirror", str, lambda s: s in MIRROR, "none"),
    "accumulation": Value("acc", int, _positive, "2"),  # parts of each process's share of a batch
    "precision": Value("", str, lambda text: text in ("bf16", "fp32"), "bf16"),
    "num_cases": Value("cases", int, _positive, "16"),  # of the fold's training cases; the seed chooses them
}
PLAN: dict[str, Value] = {
    "batch_size": Value("bs", int, _positive, "4"),
    "patch_size": Value(
        "patch", list, lambda p: len(p) in (2, 3) and all(type(n) is int and n > 0 for n in p), "[64,64,64]"
    ),
    "checkpointing": Value("ckpt", bool, lambda b: True, "true"),
}
KNOWN = TRAIN | PLAN
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
    "checkpointing": ("gradient_checkpointing", "grad_checkpointing", "activation_checkpointing"),
}


def known_as(name: str) -> str | None:
    """Return the key that a name used by other programs, or a hasty spelling, stands for; None if there is none."""
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
            values[key] = checked(key, json.loads(text))
        except (ValueError, RecursionError):  # ValueError also for a number with too many digits
            values[key] = checked(key, text)
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


def checked(key: str, value: Any) -> Any:
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
    return name + (f"{value:g}".replace("-", "m") if isinstance(value, float) else str(value))
