"""Comparisons: the numbers against slow references, and pages of few, many, odd and missing ones."""

import json
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stunet.report import comparison
from stunet.report.blocks import Page, Table
from stunet.report.compared import Compared, joined, of_summary
from stunet.report.page import write
from stunet.report.plots import limits_of_agreement, volumes
from tests.html_pages import check_page
from tests.loops import for_each


def made(cases: int, classes: int, seed: int = 0, names: list[str] | None = None) -> Compared:
    """A comparison with random numbers; every class lacks some cases, where there are several."""
    random = np.random.default_rng(seed)
    dice = random.beta(8, 2, (cases, classes))
    if cases > 4:
        dice[random.random(dice.shape) < 0.1] = nan
    reference = np.where(np.isnan(dice), 0, random.lognormal(3, 1, dice.shape))
    return Compared(
        cases=[f"case_{c:03}" for c in range(cases)],
        classes=names or [f"class {k}" for k in range(classes)],
        files=[(Path(f"case_{c:03}.nii.gz"), Path(f"case_{c:03}.nii.gz")) for c in range(cases)],
        dice=dice,
        nsd=dice * 0.9,
        hd95=np.where(np.isnan(dice), nan, 5 * (1 - dice)),
        reference=reference,
        prediction=reference * 1.1,
        unit="ml",
        tolerance_mm=1.0,
    )


def test_the_numbers_of_the_table_are_those_of_each_class() -> None:
    compared = made(40, 3)
    table = comparison.class_table(compared, comparison.worst_first(compared))
    means = [float(row[2].key) for row in table.rows]
    assert means == sorted(means)
    for row in table.rows:
        cells = dict(zip(table.columns, row, strict=True))
        k = list(compared.classes).index(cells["class"].text)
        known = compared.dice[:, k][~np.isnan(compared.dice[:, k])]
        assert cells["n"].key == len(known)
        assert cells["Dice"].key == pytest.approx(known.mean())
        assert cells["median"].key == pytest.approx(np.median(known))
        assert cells["5 %"].key == pytest.approx(np.percentile(known, 5))
        assert cells["NSD 1 mm"].key == pytest.approx(0.9 * known.mean())
        assert cells["bias %"].key == pytest.approx(10)
        assert compared.dice[list(compared.cases).index(cells["worst case"].text), k] == known.min()


def test_intervals_are_those_of_resampled_cases() -> None:
    """For many cases the bootstrap gives the normal interval of the mean."""
    compared = made(400, 1, seed=3)
    dice = compared.dice[~np.isnan(compared.dice)]
    half = 1.96 * dice.std(ddof=1) / len(dice) ** 0.5
    low, high = compared.intervals()[:, 0]
    assert (low, high) == pytest.approx((dice.mean() - half, dice.mean() + half), abs=0.15 * half)
    assert np.isnan(made(2, 1).intervals()).all()


def test_limits_of_agreement_follow_bland_and_altman() -> None:
    values = np.random.default_rng(0).normal(2, 3, 5000)
    assert limits_of_agreement(values) == pytest.approx((2, 2 - 1.96 * 3, 2 + 1.96 * 3), abs=0.2)
    assert limits_of_agreement(np.array([1.0]))[0] == 1
    assert all(map(isnan, limits_of_agreement(np.array([nan]))))


@for_each(("cases", "classes"), [(1, 1), (2, 1), (3, 2), (5, 7), (30, 41), (3, 300)])
def test_pages_of_few_and_many(cases: int, classes: int, tmp_path: Path) -> None:
    compared = made(cases, classes)
    write(Page("t", "s", comparison.sections(compared)), tmp_path / "page.html")
    page = check_page(tmp_path / "page.html")
    rows = 1 + classes + 1 + cases
    assert len(page.of("tr")) == rows
    assert "class 0" in page.text


def test_many_dots_are_pixels_and_the_file_stays_small(tmp_path: Path) -> None:
    write(Page("t", "s", comparison.sections(made(200, 117))), tmp_path / "many.html")
    page = check_page(tmp_path / "many.html")
    assert (tmp_path / "many.html").stat().st_size < 1e6
    assert len(page.of("use")) < 2000
    assert [image for image in page.of("image") if image["xlink:href"].startswith("data:image/png")]
    write(Page("t", "s", comparison.sections(made(20, 3))), tmp_path / "few.html")
    assert len(check_page(tmp_path / "few.html").of("use")) > 50


def test_classes_without_numbers_come_last_and_have_none(tmp_path: Path) -> None:
    compared = made(6, 3)
    compared.dice[:, 1] = compared.nsd[:, 1] = compared.hd95[:, 1] = nan
    compared.reference[:, 1] = compared.prediction[:, 1] = 0
    order = comparison.worst_first(compared)
    assert order[-1] == 1
    last = comparison.class_table(compared, order).rows[-1]
    assert [cell.text for cell in last[1:]] == ["0", *["-"] * 10]
    empty = made(3, 2)
    empty.dice[:] = nan
    empty.reference[:] = empty.prediction[:] = 0
    assert volumes(empty) is None
    write(Page("t", "s", comparison.sections(empty), headline=comparison.headline(empty)), tmp_path / "page.html")
    assert "mean Dice - cases 3 classes 0" in check_page(tmp_path / "page.html").text


def summary(*dice: float, **more: Any) -> dict[str, Any]:
    entries = [
        {
            "metrics": {
                "1": {"Dice": d, "n_ref": 100, "n_pred": 120},
                "(1, 2)": {"Dice": d / 2, "n_ref": 10, "n_pred": 0},
            },
            "prediction_file": f"/x/case_{c}.nii.gz",
            "reference_file": f"/y/case_{c}.nii.gz",
        }
        for c, d in enumerate(dice)
    ]
    return {"metric_per_case": entries, **more}


def test_summaries_of_nnunet_count_voxels() -> None:
    found = of_summary(summary(0.5, nan), {"1": "liver", "(1, 2)": "both"}, ".nii.gz")
    assert found is not None
    assert (found.cases, found.classes, found.unit) == (["case_0", "case_1"], ["liver", "both"], "voxels")
    assert found.reference.tolist() == [[100, 10]] * 2
    measured = of_summary(summary(0.5), {}, ".nii.gz", lambda prediction, reference: 0.5)
    assert measured is not None
    assert (measured.classes, measured.unit) == (["label 1", "label (1, 2)"], "ml")
    assert measured.prediction.tolist() == [[60, 0]]
    assert joined([found, found]).dice.shape == (4, 2)  # type: ignore[union-attr]


@for_each(
    "content",
    [
        {},
        {"metric_per_case": []},
        {"metric_per_case": [{"metrics": None}]},
        {"metric_per_case": [{"metrics": {}}]},
        {"metric_per_case": [{}]},
    ],
)
def test_summaries_without_numbers_are_none(content: dict[str, Any]) -> None:
    assert of_summary(content, {"1": "liver"}, ".nii.gz") is None


def test_odd_values_are_unknown() -> None:
    content = json.loads('{"metric_per_case": [{"metrics": {"1": {"Dice": Infinity, "n_ref": "many"}, "2": 7}}]}')
    found = of_summary(content, {"1": "a", "2": "b"}, ".nii.gz")
    assert found is not None
    assert np.isnan(found.dice).all()
    assert inf not in found.reference


def test_a_table_of_cases_names_the_worst_class() -> None:
    compared = made(3, 2)
    table = comparison.case_table(compared)
    assert isinstance(table, Table)
    for row in table.rows:
        c, k = list(compared.cases).index(row[0].text), list(compared.classes).index(row[2].text)
        assert compared.dice[c, k] == np.nanmin(compared.dice[c])
    assert comparison.case_table(made(3, 1)).columns == ["case", "Dice"]


def test_folds_with_other_classes_are_joined_and_what_one_lacks_is_undefined() -> None:
    """With partial labels the cases of a fold may annotate what those of another do not."""
    metrics = [{"1": 0.5, "(1, 2)": 0.75}, {"3": 0.25}]
    parts = []
    for fold in metrics:
        values = {key: {"Dice": dice, "n_ref": 4, "n_pred": 2} for key, dice in fold.items()}
        content = {
            "metric_per_case": [{"metrics": values, "prediction_file": "a.nii.gz", "reference_file": "a.nii.gz"}]
        }
        parts.append(of_summary(content, {"1": "left", "2": "right", "3": "aorta"}, ".nii.gz", lambda *files: 0.5))
    found = joined(parts)  # type: ignore[arg-type]
    assert found is not None
    assert list(found.classes) == ["left", "left + right", "aorta"]
    np.testing.assert_array_equal(found.dice, [[0.5, 0.75, nan], [nan, nan, 0.25]])
    np.testing.assert_array_equal(found.reference, [[2, 2, nan], [nan, nan, 2]])
    assert found.mean() == 0.5
