"""Determine the folds of the union: a source keeps its own folds, or gets `folds.number` seeded ones.

The union has as many folds as the source with the most. A source with fewer repeats them: one official split into
training and validation holds in every fold.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stunet import workspace
from stunet.errors import DataError, closest
from stunet.kinds import SPLITS, read
from stunet.merging.recipe import Recipe
from stunet.merging.union import Member, case_name

FILE = "splits_final.json"
HINT = 'a list of folds: [{"train": ["case_1"], "val": ["case_2"]}]; or split: seeded'


def find_folds(recipe: Recipe, members: Sequence[Member]) -> tuple[list[dict[str, list[str]]], list[DataError]]:
    """Return the folds of the union in nnU-Net's format, and what is wrong with those of the sources."""
    parts, problems = [], []
    for member in members:
        try:
            parts.append(_renamed(member.recipe.id, _own(member) or _seeded(member, recipe.folds, recipe.seed)))
        except DataError as error:
            problems.append(DataError(f"source {member.recipe.id!r}: {error.message}", error.hint))
    number = max([1, *map(len, parts)])
    folds = [
        {key: [name for part in parts for name in part[index % len(part)][key]] for key in ("train", "val")}
        for index in range(number)
    ]
    return folds, problems


def _renamed(source: str, folds: list[dict[str, list[str]]]) -> list[dict[str, list[str]]]:
    return [{key: [case_name(source, case) for case in fold[key]] for key in ("train", "val")} for fold in folds]


def _seeded(member: Member, number: int, seed: int) -> list[dict[str, list[str]]]:
    """Return folds with every case in validation once; with fewer cases than folds, all are always in training."""
    # Sorted, so that the folds depend on nothing but names and seed.
    names = sorted(case.name for case in member.cases)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    folds = []
    for index in range(number):
        validation = set(order[index::number]) if len(names) >= number else set()
        folds.append({"train": [name for name in names if name not in validation], "val": sorted(validation)})
    return folds


def _own(member: Member) -> list[dict[str, list[str]]]:
    """Return the source's own folds without excluded cases; empty if it has none, or if the recipe seeds them."""
    if member.recipe.split == "seeded":
        return []
    places = [member.folder]
    if os.environ.get("nnUNet_preprocessed"):
        # The folds that nnU-Net trains with go before those that came with the raw dataset.
        places.insert(0, workspace.preprocessed_dataset(member.folder.name))
    path = next((place / FILE for place in places if (place / FILE).is_file()), None)
    if path is None:
        if member.recipe.split == "dataset":
            raise DataError(
                f"split: dataset, but there is no {FILE} in {' or '.join(repr(str(p)) for p in places)}",
                "split: seeded, or put the file there",
            )
        return []
    return _checked(path, read(path, SPLITS, HINT), member)


def _checked(path: Path, content: Any, member: Member) -> list[dict[str, list[str]]]:
    taken = {case.name for case in member.cases}
    # Folds may name cases that the recipe leaves out; the last line removes them.
    known = taken | set(member.recipe.exclude)
    for index, fold in enumerate(content):
        both = sorted(set(fold["train"]) & set(fold["val"]))
        if both:
            text = f"case {both[0]!r} is in train and in val of fold {index} in {str(path)!r}"
            raise DataError(text, "take it out of one of them; or split: seeded")
        unknown = sorted({*fold["train"], *fold["val"]} - known)
        if unknown:
            near = closest(unknown[0], sorted(known))
            raise DataError(f"{str(path)!r} has the case {unknown[0]!r}, the dataset does not{near}", HINT)
    return [{key: [name for name in fold[key] if name in taken] for key in ("train", "val")} for fold in content]
