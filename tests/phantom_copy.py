"""The copy of the phantom of the fixture `pre`: its cases and folds, how to change it, and how a check of it fails."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from stunet.errors import DataError
from stunet.files import read_json, write_json
from stunet.plans.plan import Plan
from stunet.runs.readiness import check_data

CASES = [f"phantom_{number:03d}" for number in range(6)]
FOLDS = [{"train": CASES[:4], "val": CASES[4:]}, {"train": CASES[2:], "val": CASES[:2]}]
REDO = "stunet_plan_and_preprocess -d 998 -c 3d_fullres -p STUNetPlans_T"
REPLAN = "stunet_plan_and_preprocess -d 998 -c 3d_fullres --size T"


def plans_of(pre: Path) -> dict:
    return read_json(pre / "STUNetPlans_T.json")


def check(pre: Path, fold: int | str = 0, plans: dict | None = None) -> list[str]:
    return check_data(pre.name, Plan(plans or plans_of(pre)), "3d_fullres", fold)


def refused(pre: Path, message: str, hint: str, **options: Any) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check(pre, **options)
    assert caught.value.hint.startswith(hint), caught.value.hint


def change(path: Path, **values: Any) -> None:
    write_json(path, {**read_json(path), **values})


def write_image(path: Path, seed: int) -> None:
    image = nibabel.load(path)
    noise = np.random.default_rng(seed).normal(size=image.shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(noise, image.affine), path)
