"""Do folders become nnU-Net's summary, and does stunet_evaluate say what is wrong with them."""

import csv
import json
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

from stunet.cli.evaluate import main
from stunet.errors import DataError, WorkerCrashed
from stunet.evaluation import folders, metrics
from stunet.evaluation.folders import evaluate, labels_of, pair
from stunet.evaluation.segmentations import read_segmentation
from stunet.workers import Outcome, map_cases
from tests.loops import for_each

SHAPE = (8, 9, 10)
PLAIN = {"background": 0, "liver": 1, "tumour": 2}
IGNORING = {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


def noise(seed: int, top: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top + 1, SHAPE, dtype=np.uint8)


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 2.0, 3.0), **geometry: Any) -> Path:
    """Writes labels in array order; `spacing`, `origin` and `direction` are in SimpleITK's order (x, y, z)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[: array.ndim])
    for name, value in geometry.items():
        getattr(image, f"Set{name.capitalize()}")(value)
    sitk.WriteImage(image, str(path))
    return path


def write_dataset(folder: Path, labels: dict) -> Path:
    content = {"labels": labels, "file_ending": ".nii.gz"}
    if any(isinstance(value, list) for value in labels.values()):
        content["regions_class_order"] = [1, 2]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


@pytest.fixture
def two_cases(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of references and predictions with two cases, and a dataset.json above the references."""
    for seed, name in enumerate(("a", "b")):
        write(tmp_path / "gt" / f"{name}.nii.gz", noise(seed))
        write(tmp_path / "pred" / f"{name}.nii.gz", noise(seed + 10))
    write_dataset(tmp_path, PLAIN)
    return tmp_path / "gt", tmp_path / "pred"


def summarise(folders: tuple[Path, Path], labels: dict = PLAIN, **options: Any) -> dict:
    cases, _ = pair(*folders, ".nii.gz")
    return evaluate(cases, labels_of({"labels": labels}, Path("dataset.json")), **options)


def assert_same_numbers(ours: dict, theirs: dict) -> None:
    for metric, value in theirs.items():
        assert ours[metric] == pytest.approx(value, nan_ok=True), metric


def test_numbers_equal_those_of_nnunet_on_a_folder(
    two_cases: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    # Its pool of one process, which imports nnU-Net for seconds, becomes one of a thread.
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: multiprocessing.dummy)

    references, predictions = map(str, two_cases)
    theirs_file, ours_file = tmp_path / "theirs.json", tmp_path / "ours.json"
    compute_metrics_on_folder(references, predictions, str(theirs_file), SimpleITKIO(), ".nii.gz", [1, 2], None, 1)
    assert main([references, predictions, "-o", str(ours_file), "-np", "1"]) == 0
    theirs, ours = load_summary_json(str(theirs_file)), load_summary_json(str(ours_file))
    assert set(theirs) <= set(ours)
    assert_same_numbers(ours["foreground_mean"], theirs["foreground_mean"])
    for label in (1, 2):
        assert_same_numbers(ours["mean"][label], theirs["mean"][label])
    for one, other in zip(ours["metric_per_case"], theirs["metric_per_case"], strict=True):
        assert all(one[side] == other[side] for side in ("reference_file", "prediction_file"))
        for label in (1, 2):
            assert_same_numbers(one["metrics"][label], other["metrics"][label])


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
    assert summarise(two_cases, processes=2, advance=done.append) == summarise(two_cases)
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


def test_the_command_prints_a_table_and_writes_summary_and_csv(
    two_cases: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, predictions = map(str, two_cases)
    table_file = tmp_path / "new" / "cases.csv"
    options = ["-pfile", "plans.json", "--tolerance", "2", "--csv", str(table_file), "-np", "1"]
    assert main([references, predictions, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads((two_cases[1] / "summary.json").read_text())
    assert lines[0].split("  ")[0] == "class"
    assert "NSD 2 mm" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["liver", "tumour", "foreground"]
    assert lines[2].split()[1:3] == [f"{summary['mean']['1'][metric]:.4f}" for metric in ("Dice", "NSD")]
    rows = list(csv.DictReader(table_file.read_text().splitlines()))
    assert [(row["case"], row["class"]) for row in rows] == [(c, name) for c in "ab" for name in ("liver", "tumour")]
    assert float(rows[3]["NSD"]) == summary["metric_per_case"][1]["metrics"]["2"]["NSD"]


def test_a_metric_of_one_line_is_in_the_summary_the_csv_file_and_the_table(
    two_cases: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precision = metrics.Metric(lambda pair: pair.tp / pair.n_pred, "precision within {tolerance_mm:g} mm", ".1f")
    monkeypatch.setitem(metrics.METRICS, "precision", precision)
    assert main([*map(str, two_cases), "--csv", str(tmp_path / "cases.csv"), "-np", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "HD95 mm  precision within 1 mm  cases" in lines[0]
    summary = json.loads((two_cases[1] / "summary.json").read_text())
    values = summary["metric_per_case"][0]["metrics"]["1"]
    assert values["precision"] == values["TP"] / values["n_pred"]
    assert f"{summary['foreground_mean']['precision']:.1f}" in lines[-1].split()
    row = next(csv.DictReader((tmp_path / "cases.csv").read_text().splitlines()))
    assert float(row["precision"]) == values["precision"]


def test_json_on_stdout_is_valid_and_has_null_for_undefined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = write(tmp_path / "gt" / "a.nii.gz", noise(1, top=1))
    prediction = write(tmp_path / "pred" / "a.nii.gz", noise(2, top=1))
    write_dataset(tmp_path / "pred", PLAIN)
    assert main([str(reference), str(prediction), "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert document["mean"]["2"]["Dice"] is None
    assert document["labels"] == {"1": "liver", "2": "tumour"}
    assert set(document["mean"]["1"]) == {*metrics.METRICS, "n_cases", "n_infinite"}
    assert not (tmp_path / "pred" / "summary.json").exists()


@for_each("folder", ["raw/Dataset007_X/labelsTs", "preprocessed/Dataset007_X/gt_segmentations"])
def test_a_dataset_number_stands_for_its_references(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    write_dataset(tmp_path / folder.rsplit("/", 1)[0], PLAIN)
    write(tmp_path / "raw/Dataset007_X/labelsTr/other.nii.gz", noise(3))
    write(tmp_path / folder / "a.nii.gz", noise(1))
    write(tmp_path / "pred" / "a.nii.gz", noise(1))
    assert main(["-d", "7", str(tmp_path / "pred"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["foreground_mean"]["Dice"] == 1
    assert document["metric_per_case"][0]["reference_file"] == str(tmp_path / folder / "a.nii.gz")


def test_what_is_wrong_ends_in_one_line_a_hint_and_a_code(
    two_cases: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, predictions = map(str, two_cases)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    for arguments, code, words in (
        ([references, str(tmp_path / "nowhere")], 3, "nowhere"),
        ([references, str(tmp_path / "empty")], 3, "no .nii.gz files"),
        ([references, predictions, "-djfile", str(tmp_path / "none.json")], 3, "none.json"),
        ([references, predictions, "-djfile", str(tmp_path / "bad.json")], 3, "file_ending"),
        ([predictions], 2, "only one folder"),
        ([references, predictions, "-np", "0"], 2, "-np 0"),
        ([references, predictions, "--tolerance", "-1"], 2, "--tolerance"),
        ([references, predictions, "-o", "summary.csv"], 2, ".json"),
    ):
        assert main(arguments) == code
        printed = capsys.readouterr()
        assert words in printed.err.splitlines()[0]
        assert printed.out == ""
    assert not (two_cases[1] / "summary.json").exists()


MODEL = {"background": 0, "kidney_left": 1, "spleen": 2, "kidney_right": 3, "liver": 4, "pancreas": 5}


@pytest.fixture
def abdomen(tmp_path: Path) -> tuple[Path, Path]:
    """References with the ids of AbdomenCT-1K, and the same voxels in the labels of a model that knows both sides."""
    organs = noise(1, top=5)
    write(tmp_path / "gt" / "a.nii.gz", np.array([0, 2, 3, 2, 1, 4], np.uint8)[organs])
    write(tmp_path / "pred" / "a.nii.gz", organs)
    write_dataset(tmp_path / "pred", MODEL)
    return tmp_path / "gt", tmp_path / "pred"


def test_predictions_of_a_model_are_compared_in_the_ids_of_the_references(
    abdomen: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*map(str, abdomen), "--labels", "abdomenct-1k", "-np", "1"]) == 0
    summary = json.loads((abdomen[1] / "summary.json").read_text())
    assert summary["label_system"] == "abdomenct-1k"
    assert summary["labels"] == {"1": "liver", "2": "kidney", "3": "spleen", "4": "pancreas"}
    assert all(mean["Dice"] == 1 for mean in summary["mean"].values())
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "liver",
        "kidney",
        "spleen",
        "pancreas",
        "foreground",
    ]


def test_predictions_in_the_ids_of_the_references_need_no_dataset_json(abdomen: tuple[Path, Path]) -> None:
    (abdomen[1] / "dataset.json").unlink()
    (abdomen[0] / "a.nii.gz").replace(abdomen[1] / "a.nii.gz")
    write(abdomen[0] / "a.nii.gz", np.zeros(SHAPE, np.uint8))
    assert main([*map(str, abdomen), "--labels", "abdomenct-1k"]) == 0
    mean = json.loads((abdomen[1] / "summary.json").read_text())["mean"]
    assert {values["n_ref"] for values in mean.values()} == {0}
    assert all(values["n_pred"] > 0 for values in mean.values())


def test_several_ids_of_the_references_are_one_class_and_others_background(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[classes]\nliver = { labels = [3, 1] }\n[other]\nbone = 2\n")
    reference = noise(1, top=3)
    write(tmp_path / "gt" / "a.nii.gz", reference)
    write(tmp_path / "pred" / "a.nii.gz", np.where(reference % 2 == 1, np.uint8(3), np.uint8(0)))
    assert main([str(tmp_path / "gt"), str(tmp_path / "pred"), "--labels", str(own)]) == 0
    summary = json.loads((tmp_path / "pred" / "summary.json").read_text())
    assert (summary["labels"], summary["foreground_mean"]["Dice"]) == ({"(3, 1)": "liver"}, 1)


def test_what_is_wrong_with_labels_is_said_before_anything_is_compared(
    abdomen: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (
        ("abdomen", "no label system 'abdomen'; did you mean 'abdomenct-1k'"),
        ("segthor", "the model has no 'esophagus', 'trachea', 'aorta'"),
        ("msd-liver", "gt/a.nii.gz' has values that the label system 'msd-liver' does not list: 3, 4"),
    ):
        assert main([*map(str, abdomen), "--labels", name]) == 3
        assert words in capsys.readouterr().err.splitlines()[0]
    write_dataset(abdomen[1], {"liver": 1})
    assert main([*map(str, abdomen), "--labels", "msd-liver"]) == 3
    assert "'background': 0" in capsys.readouterr().err
    assert not (abdomen[1] / "summary.json").exists()


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


def test_the_references_of_a_dataset_are_found_whatever_their_endings(
    two_cases: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw" / "Dataset005_A"
    raw.mkdir(parents=True)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path / variable.removeprefix("nnUNet_")))
    two_cases[0].rename(raw / "labelsTs")
    write_dataset(raw, {"background": "0", "a": "1", "b": 2.0})
    for name in ("a", "b"):
        path = two_cases[1] / f"{name}.nii.gz"
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path.with_name(f"{name}.nrrd")))
        path.unlink()
    assert main(["-d", "5", str(two_cases[1]), "-np", "1"]) == 0


def test_damaged_files_do_not_stop_the_others(two_cases: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    references, predictions = two_cases
    for name in "cd":
        write(references / f"{name}.nii.gz", noise(0))
        (predictions / f"{name}.nii.gz").write_bytes(b"no image")
    command = [str(references), str(predictions), "-np", "1"]
    assert main(command) == 3
    err = capsys.readouterr().err
    assert all(f"{name}.nii.gz" in err for name in "cd")
    assert main([*command, "--chill", "--csv", str(predictions / "cases.csv")]) == 0
    assert "case 'd' is left out" in capsys.readouterr().err
    assert len(json.loads((predictions / "summary.json").read_text())["metric_per_case"]) == 2
    assert len((predictions / "cases.csv").read_text().splitlines()) == 5


def test_a_crash_is_not_what_chill_leaves_out(two_cases: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(work: Callable[..., Any], cases: Any, *_: Any) -> Any:
        yield Outcome(1, cases[1], value=work(cases[1]))
        yield Outcome(0, cases[0], error=WorkerCrashed("case 'a': its process crashed twice (SIGABRT)"))

    monkeypatch.setattr(folders, "map_cases", crash)
    assert main([*map(str, two_cases), "-np", "2", "--chill"]) == 3
    assert not (two_cases[1] / "summary.json").exists()
