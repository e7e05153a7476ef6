"""Folders become nnU-Net's summary, and what cannot be compared is named."""

import multiprocessing.dummy
import pickle
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from stunet.errors import DataError
from stunet.evaluation import folders
from stunet.evaluation.folders import evaluate, labels_of, pair
from stunet.evaluation.segmentations import read_segmentation
from stunet.workers import map_cases
from tests.label_files import IGNORING, PLAIN, REGIONS, SHAPE, assert_same_numbers, make_two_cases, noise, write
from tests.loops import for_each


@pytest.fixture
def two_cases(tmp_path: Path) -> tuple[Path, Path]:
    return make_two_cases(tmp_path)


def summarise(folders: tuple[Path, Path], labels: dict = PLAIN, **options: Any) -> dict:
    cases, _ = pair(*folders, ".nii.gz")
    return evaluate(cases, labels_of({"labels": labels}, Path("dataset.json")), **options)


@for_each("labels", [IGNORING, REGIONS])
def test_regions_and_the_ignore_label_count_as_in_nnunet(labels: dict, tmp_path: Path) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    reference = write(tmp_path / "gt" / "a.nii.gz", noise(1, top=3))
    prediction = write(tmp_path / "pred" / "a.nii.gz", noise(2))
    manager = LabelManager(labels, [1, 2])
    classes = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    theirs = compute_metrics(str(reference), str(prediction), SimpleITKIO(), classes, manager.ignore_label)["metrics"]
    ours = summarise((reference.parent, prediction.parent), labels)["metric_per_case"][0]["metrics"]
    assert list(ours) == [str(key) for key in theirs]
    for key, values in theirs.items():
        assert_same_numbers(ours[str(key)], values)


def test_means_leave_undefined_cases_out_and_count_infinite_distances(tmp_path: Path) -> None:
    nothing, liver = np.zeros(SHAPE, np.uint8), np.ones(SHAPE, np.uint8)
    for name, reference, prediction in (("a", liver, liver), ("b", liver, nothing), ("c", nothing, nothing)):
        write(tmp_path / "gt" / f"{name}.nii.gz", reference)
        write(tmp_path / "pred" / f"{name}.nii.gz", prediction)
    summary = summarise((tmp_path / "gt", tmp_path / "pred"))
    mean = summary["mean"]["1"]
    assert (mean["Dice"], mean["NSD"], mean["HD95_mm"]) == (0.5, 0.5, 0.0)
    assert (mean["n_cases"], mean["n_infinite"]) == (2, 1)
    assert isnan(summary["mean"]["2"]["Dice"])
    assert summary["foreground_mean"]["Dice"] == 0.5


def test_surfaces_are_measured_in_the_spacing_of_the_file(tmp_path: Path) -> None:
    for axis in range(3):
        for side, start in (("gt", 2), ("pred", 3)):
            slices = [slice(start, start + 4) if a == axis else slice(2, 6) for a in range(3)]
            labels = np.zeros(SHAPE, np.uint8)
            labels[tuple(slices)] = 1
            write(tmp_path / side / f"{axis}.nii.gz", labels)
    entries = summarise((tmp_path / "gt", tmp_path / "pred"))["metric_per_case"]
    assert [entry["metrics"]["1"]["HD95_mm"] for entry in entries] == pytest.approx([3, 2, 1])  # z, y, x
    assert entries[0]["metrics"]["1"]["ref_ml"] == pytest.approx(64 * 6 / 1000)


def test_several_processes_give_the_same_summary(two_cases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def map_forked(compare: Callable[..., Any], *others: Any) -> Any:
        """Spawned processes import for seconds; what they are started with has to be picklable."""
        return map_cases(pickle.loads(pickle.dumps(compare)), *others, multiprocessing.get_context("fork"))

    monkeypatch.setattr(folders, "map_cases", map_forked)
    done: list[str] = []
    assert summarise(two_cases, workers=2, advance=done.append) == summarise(two_cases)
    assert sorted(done) == ["a", "b"]


def test_an_error_keeps_its_hint_on_the_way_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(DataError("what", "next step")))
    assert (error.message, error.hint) == ("what", "next step")


def test_images_and_tiff_volumes_are_read_with_their_spacing(tmp_path: Path) -> None:
    known = frozenset({0, 1, 2})
    labels, geometry = read_segmentation(write(tmp_path / "a.png", noise(1)[0], (1.0, 1.0)), known)
    assert (labels.shape, geometry.spacing) == (SHAPE[1:], (1, 1))
    tif = write(tmp_path / "b.tif", noise(2))
    (tmp_path / "b.json").write_text('{"spacing": [5, 2, 0.5]}')
    assert read_segmentation(tif, known)[1].spacing == (0.5, 2, 5)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(DataError, match="spacing"):
        read_segmentation(tif, known)


def test_labels_stored_as_floats_are_read_as_integers(tmp_path: Path) -> None:
    for factor in (1, 0.99996, 1.0004):  # exact, and as a scaled file or a resampling leaves them
        path = write(tmp_path / "a.nii.gz", noise(1).astype(np.float32) * np.float32(factor))
        labels, _ = read_segmentation(path, frozenset({0, 1, 2}))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, noise(1))


@for_each(
    ("array", "values"),
    [
        (noise(1, top=4), "dataset.json does not list: 3, 4"),
        (noise(1).astype(np.float32) / 2, "are not integers: 0.5"),
        (noise(1).astype(np.float32) * np.float32(0.998), "are not integers: 0.998, 1.996"),
        (noise(1).astype(np.int16) - 1, "dataset.json does not list: -1"),
        (noise(1).astype(np.int16) * 200, "dataset.json does not list: 200, 400"),
        (np.where(noise(1) == 1, np.nan, 0).astype(np.float32), "are not integers: nan"),
    ],
)
def test_wrong_values_are_named_with_what_is_wrong_about_them(array: np.ndarray, values: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mha", array)
    with pytest.raises(DataError, match=rf"a\.mha' has values that {values}$"):
        read_segmentation(path, frozenset({0, 1, 2}))


@for_each(
    ("what", "value"),
    [("spacing", (1, 2, 3.01)), ("origin", (0, 0, 0.1)), ("direction", (-1, 0, 0, 0, -1, 0, 0, 0, 1))],
)
def test_another_geometry_is_an_error_that_shows_both(what: str, value: tuple, two_cases: tuple[Path, Path]) -> None:
    write(two_cases[1] / "a.nii.gz", noise(0), **{what: value})
    with pytest.raises(DataError, match=rf"{what} \(.*pred/a\.nii\.gz' is not \(.*gt/a\.nii\.gz'"):
        summarise(two_cases)


def test_another_shape_is_an_error_and_rounding_of_the_origin_is_none(two_cases: tuple[Path, Path]) -> None:
    write(two_cases[1] / "a.nii.gz", noise(0), origin=(0.0, 0.0005, 0.0))
    summarise(two_cases)
    write(two_cases[1] / "a.nii.gz", noise(0)[:-1])
    with pytest.raises(DataError, match=r"size \(10, 9, 7\)"):
        summarise(two_cases)


@for_each("spoil", [lambda whole: whole[:200], lambda whole: whole[:-9], lambda whole: b"no image"])
def test_a_damaged_file_is_named(spoil: Callable[[bytes], bytes], two_cases: tuple[Path, Path]) -> None:
    path = two_cases[1] / "b.nii.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"pred/b\.nii\.gz', it is damaged"):
        summarise(two_cases)


def test_a_3d_tiff_without_its_spacing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(0))
    with pytest.raises(DataError, match=r"a\.tif' has no spacing: no file .*a\.json"):
        read_segmentation(path, frozenset({0, 1, 2}))
    path.with_suffix(".json").write_text('{"spacing": [3, 0.5, 1]}')
    assert read_segmentation(path, frozenset({0, 1, 2}))[1].spacing == (1, 0.5, 3)


def test_an_image_in_colour_is_an_error(tmp_path: Path) -> None:
    colour = sitk.GetImageFromArray(np.zeros((4, 4, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "b.png"))
    with pytest.raises(DataError, match="3 channels"):
        read_segmentation(tmp_path / "b.png", frozenset({0}))


def test_files_without_a_partner_are_an_error_unless_chill(two_cases: tuple[Path, Path]) -> None:
    references, predictions = two_cases
    (predictions / "a.nii.gz").unlink()
    write(predictions / ".part-1-a.nii.gz", noise(1))
    with pytest.raises(DataError, match=r"no prediction .*pred/a\.nii\.gz"):
        pair(references, predictions, ".nii.gz")
    cases, alone = pair(references, predictions, ".nii.gz", chill=True)
    assert ([case.name for case in cases], alone) == (["b"], ["a.nii.gz"])
    write(predictions / "c.nii.gz", noise(1))
    (references / "a.nii.gz").unlink()
    with pytest.raises(DataError, match=r"no reference .*gt/c\.nii\.gz"):
        pair(references, predictions, ".nii.gz")
    (predictions / "b.nii.gz").unlink()
    with pytest.raises(DataError, match="has the name of"):
        pair(references, predictions, ".nii.gz", chill=True)


def test_cases_of_other_formats_are_compared_by_name(two_cases: tuple[Path, Path]) -> None:
    references, predictions = two_cases
    whole = summarise(two_cases)
    (references / "b.nii.gz").rename(references / "b.NII.GZ")
    (predictions / "a.nii.gz").unlink()
    write(predictions / "a.nrrd", noise(10))
    (predictions / "._a.nrrd").write_bytes(b"x")
    cases, alone = pair(references, predictions, ".nii.gz")
    assert [(case.name, case.reference.name, case.prediction.name) for case in cases] == [
        ("a", "a.nii.gz", "a.nrrd"), ("b", "b.NII.GZ", "b.nii.gz"),
    ]  # fmt: skip
    assert alone == []
    assert summarise(two_cases)["mean"] == whole["mean"]
    assert pair(references, predictions / "a.nrrd", ".nii.gz")[0] == cases[:1]
    write(predictions / "b.mha", noise(12))
    assert pair(references, predictions, ".nii.gz")[0] == cases
    write(predictions / "a.mha", noise(12))
    with pytest.raises(DataError, match=r"a\.mha' and .*a\.nrrd' are the same case"):
        pair(references, predictions, ".nii.gz")


def test_what_cannot_be_read_or_compared_is_named(
    two_cases: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    references, predictions = two_cases
    (predictions / "a.nii.gz").unlink()
    (predictions / "a.nii.gz").symlink_to("/nowhere/a.nii.gz")
    (predictions / "series").mkdir()
    (predictions / "series" / "1.dcm").touch()
    with pytest.raises(DataError, match=r"pred/a\.nii\.gz' is a broken link"):
        pair(references, predictions, ".nii.gz")
    cases, left = pair(references, predictions, ".nii.gz", chill=True)
    assert ([case.name for case in cases], left) == (["b"], ["a.nii.gz"])
    assert "is not compared: 'series'" in caplog.text


@for_each("labels", [None, {"liver": 1}, {"0": "background"}, {**PLAIN, "x": "3"}, {**PLAIN, "x": []}])
def test_labels_that_nnunet_would_not_take_are_an_error(labels: Any) -> None:
    with pytest.raises(DataError, match=r"dataset\.json"):
        labels_of({"labels": labels}, Path("dataset.json"))


@for_each("code", ["RAS", "LPI", "PSL", "SAR"])
def test_axes_in_another_order_are_told_from_another_place(code: str, two_cases: tuple[Path, Path]) -> None:
    path = two_cases[1] / "a.nii.gz"
    tilted = (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)
    write(two_cases[0] / "a.nii.gz", noise(0), origin=(5, 6, 7), direction=tilted)
    write(path, noise(0), origin=(5, 6, 7), direction=tilted)
    summarise(two_cases)
    turned = sitk.DICOMOrient(sitk.ReadImage(str(path)), code)
    sitk.WriteImage(turned, str(path))
    with pytest.raises(DataError, match=rf"gt/a\.nii\.gz' does, but its axes run {code} instead of LPS$") as caught:
        summarise(two_cases)
    assert "DICOMOrient(image, 'LPS')" in caught.value.hint
    sitk.WriteImage(sitk.DICOMOrient(turned, "LPS"), str(path))
    summarise(two_cases)
    turned.SetOrigin((0, 0, 0))
    sitk.WriteImage(turned, str(path))
    with pytest.raises(DataError, match=r"is not \("):
        summarise(two_cases)
