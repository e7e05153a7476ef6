"""Units of a CT: what is not in HU is noticed, what is in HU never."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stunet.datasets.phantom import make_case
from stunet.datasets.units import Values, look, unlike_others, unlike_plan
from tests.loops import for_each

HU = make_case(np.random.default_rng(0), (24, 24, 24))[0].astype(np.float32)
NOISE = np.random.default_rng(1).normal(0, 10, HU.shape)
PLAN = {"min": -900.0, "percentile_00_5": -40.0, "percentile_99_5": 250.0, "mean": 60.0}
WIDE_PLAN = {"min": -1000.0, "percentile_00_5": -958.0, "percentile_99_5": 276.0}
OTHER_UNITS = {
    "0 to 1": (np.clip(HU, -1000, 1000) + 1000) / 2000,
    "-1 to 1": np.clip(HU, -1000, 1000) / 1000,
    "0 to 255": (np.clip(HU, -160, 240) + 160) * 255 / 400,
    "shifted": HU + 1024,
    "shifted, with noise in air": HU + 1024 + NOISE,
    "shifted, with padding": np.where(HU < -900, -2000, HU + 1024),
    "unsigned": np.clip(HU, 0, None),
    "wrapped": HU.astype(np.int16).astype(np.uint16).astype(np.float32),
    "standardised": (HU - HU.mean()) / HU.std(),
    "in thousands": HU / 1000,
}


@for_each("plan", [PLAN, WIDE_PLAN])
@for_each("units", OTHER_UNITS)
def test_a_ct_in_other_units_is_noticed(units: str, plan: dict[str, float]) -> None:
    said = unlike_plan(OTHER_UNITS[units], plan)
    assert said.startswith("values from ")
    assert said.endswith("bring it to HU: air -1000, water 0")


@for_each("plan", [PLAN, WIDE_PLAN])
def test_hu_are_not_complained_of(plan: dict[str, float]) -> None:
    soft_tissue = np.random.default_rng(2).normal(40, 20, (8, 8, 8))
    for image in (HU, HU + NOISE, np.where(HU < -900, -3024, HU), soft_tissue):
        assert unlike_plan(image, plan) == ""
    assert unlike_plan(HU + 1024, {"min": 0.0, "percentile_00_5": 980.0, "percentile_99_5": 1280.0}) == ""


def test_nothing_is_said_without_the_plans_intensities() -> None:
    assert unlike_plan(HU + 1024, {}) == ""


def test_real_ct_are_not_complained_of(data: Path) -> None:
    files = [data / "ct" / "thorax_1.5mm.nii.gz", data / "TotalSegmentator_v2" / "s0001" / "ct.nii.gz"]
    for file in files:
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        assert unlike_plan(image, PLAN) == unlike_plan(image, WIDE_PLAN) == ""
        assert look(image).is_hu
        assert unlike_plan(image + 1024.0, PLAN)


def test_cases_that_differ_grossly_from_the_others_are_named() -> None:
    seen = {f"c{i}": look(HU + i) for i in range(4)}
    assert unlike_others(seen) == []
    assert unlike_others({}) == []
    (said,) = unlike_others({**seen, "odd": look(HU + 1024)})
    assert said.startswith("cases 'odd' (0 to ")
    assert "unlike the 4 others" in said
    (said,) = unlike_others({**seen, "odd": look(HU / 1000)})
    assert "much narrower range" in said
    (said,) = unlike_others({"hu": seen["c0"], "x": Values(0, 1500, False), "y": Values(0, 1600, False)})
    assert said.startswith("cases 'hu' (")
