"""Tests of what stunet_predict writes beside or instead of a label image, and of runs that go on with what is there."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stunet import __version__
from stunet.cli.predict import main
from stunet.datasets.dicom import read_series
from stunet.errors import DataError
from stunet.inference.cases import InputCase
from stunet.inference.model import open_model
from stunet.inference.products import Products, write
from stunet.results.dicom_seg import EXTRA
from stunet.results.formats import FORMATS
from stunet.results.formats.output_format import Origin, OutputFormat
from stunet.results.run_report import STAGES
from stunet.results.segmentation import Segmentation
from tests.dicom_files import VOLUME, without, write_series
from tests.loops import for_each
from tests.predictor_models import SMALL, make_model, write_dicom, write_image

MODEL = Path("T__P__3d_fullres")
RUN = {".stunet", "dataset.json", "plans.json", "predict_from_raw_data_args.json", "itksnap_labels.txt"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory: a model, and two images a and b in `in`."""
    monkeypatch.chdir(tmp_path)
    make_model(MODEL, mirror=None)
    for seed, name in enumerate("ab"):
        write_image(Path(f"in/{name}_0000.nii.gz"), seed, SMALL)


def predict(*more: Any, source: str = "in", out: str = "out", model: Path = MODEL) -> int:
    common = ("-device", "cpu", "--disable_progress_bar", "--precision", "fp32")
    return main([str(part) for part in ("-i", source, "-o", out, "--model", model, *common, *more)])


def names(folder: str = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir() if path.name not in RUN)


def voxels(path: str | Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_a_report_says_what_ran_how_long_and_what_went_wrong() -> None:
    Path("in/broken_0000.nii.gz").write_bytes(b"nothing")
    assert predict("--report", "run.json", "--statistics") == 3
    report = json.loads(Path("run.json").read_text())
    assert (report["succeeded"], report["failed"], report["device"]) == (2, 1, "cpu")
    assert report["versions"]["stunet"] == __version__
    assert {"python", "torch", "nnunetv2"} <= report["versions"].keys()
    assert report["started"] <= report["ended"]
    assert report["made_by"]["precision"] == "fp32"
    assert len(report["made_by"]["checkpoints"]["0"]) == 64
    a, b, broken = report["cases"]
    assert (a["name"], b["name"], broken["name"]) == ("a", "b", "broken")
    for case in (a, b):
        assert list(case["seconds"]) == list(STAGES)
        assert case["peak_gb"] > 0
        assert (case["error"], case["files"]) == (None, [f"{case['name']}.nii.gz"])
    assert "broken_0000.nii.gz" in broken["error"]
    assert broken["files"] == []
    assert b["peak_gb"] >= a["peak_gb"]


def test_statistics_and_previews_of_earlier_runs_are_kept_and_missing_ones_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert predict("--statistics", "--preview", source="in/a_0000.nii.gz") == 0
    before = json.loads(Path("out/statistics.json").read_text())
    preview = Path("out/a_preview.png").read_bytes()
    assert matplotlib.image.imread("out/a_preview.png").ndim == 3
    capsys.readouterr()
    assert predict("--statistics", "--preview", "--continue_prediction") == 0
    assert capsys.readouterr().out == "out/b.nii.gz\n"
    after = json.loads(Path("out/statistics.json").read_text())
    assert list(after) == ["a", "b"]
    assert after["a"] == before["a"]
    assert after["b"]["a"]["voxels"] == (voxels("out/b.nii.gz") == 1).sum()
    assert Path("out/a_preview.png").read_bytes() == preview
    with Path("out/statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows] == [(case, name) for case in "ab" for name in "ab"]
    assert names() == [
        *("a.nii.gz", "a_preview.png", "b.nii.gz", "b_preview.png"), "statistics.csv", "statistics.json"
    ]  # fmt: skip


def test_statistics_that_are_asked_for_later_are_of_all_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict() == 0
    written = Path("out/a.nii.gz").read_bytes()
    assert predict("--statistics", "--continue_prediction") == 0
    assert list(json.loads(Path("out/statistics.json").read_text())) == ["a", "b"]
    assert Path("out/a.nii.gz").read_bytes() == written
    capsys.readouterr()
    assert predict("--statistics", "--continue_prediction") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("2 of 2 cases are done already\nnext")
    Path("out/statistics.json").write_text("{")
    assert predict("--statistics", "--continue_prediction") == 3
    assert "no statistics in 'out/statistics.json'" in capsys.readouterr().err


@for_each(("format_", "results"), [("masks", ["a", "b"]), ("seg.nrrd", ["a.seg.nrrd", "b.seg.nrrd"])])
def test_other_formats_hold_the_same_voxels_go_on_and_are_overwritten(
    capsys: pytest.CaptureFixture[str], format_: str, results: list[str]
) -> None:
    assert predict(out="labels") == 0
    assert predict("--format", format_, source="in/a_0000.nii.gz") == 0
    capsys.readouterr()
    assert predict("--format", format_, "--continue_prediction") == 0
    assert capsys.readouterr().out == f"out/{results[1]}\n"
    assert names() == results
    for name, result in zip("ab", results, strict=True):
        labels = voxels(f"labels/{name}.nii.gz")
        assert {1, 2} <= set(np.unique(labels))
        if format_ == "masks":
            assert names(f"out/{result}") == ["a.nii.gz", "b.nii.gz"]
            for value, mask in ((1, "a"), (2, "b")):
                np.testing.assert_array_equal(voxels(f"out/{result}/{mask}.nii.gz"), labels == value)
        else:
            np.testing.assert_array_equal(voxels(f"out/{result}"), labels)
    stamps = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.*") if path.name not in RUN}
    assert predict("--format", format_) == 0
    assert names() == results
    assert all(path.stat().st_mtime_ns > stamp for path, stamp in stamps.items())


def test_masks_of_another_model_are_not_continued(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("--format", "masks") == 0
    make_model(Path("other/T__P__3d_fullres"), mirror=None, folds=(1,))
    other = ("--format", "masks", "--continue_prediction")
    assert predict(*other, model=Path("other/T__P__3d_fullres")) == 3
    assert "were made with other checkpoints" in capsys.readouterr().err


def test_dicom_seg_refers_to_its_series_and_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("highdicom", reason=f"the extra is not installed: {EXTRA}")
    pydicom = pytest.importorskip("pydicom")
    write_dicom(Path("patient"))
    for _ in range(2):
        assert predict("--format", "dicom_seg", source="patient") == 0
        assert names() == ["patient.dcm"]
        found = pydicom.dcmread("out/patient.dcm")
        assert found.Modality == "SEG"
        assert {segment.SegmentLabel for segment in found.SegmentSequence} <= {"a", "b"}
    capsys.readouterr()
    assert predict("--format", "dicom_seg", "--continue_prediction", source="patient") == 0
    assert capsys.readouterr().err == "1 of 1 cases are done already\n"


@for_each("format_", ["image", "masks"])
def test_a_subset_is_the_whole_result_with_the_other_classes_as_background(format_: str) -> None:
    assert predict(out="whole") == 0
    assert predict("--roi_subset", "b", "--format", format_, "--statistics") == 0
    whole = voxels("whole/a.nii.gz")
    assert len(np.unique(whole)) == 3
    if format_ == "masks":
        assert names("out/a") == ["b.nii.gz"]
        np.testing.assert_array_equal(voxels("out/a/b.nii.gz"), whole == 2)
    else:
        np.testing.assert_array_equal(voxels("out/a.nii.gz"), np.where(whole == 2, 2, 0))
    assert json.loads(Path("out/dataset.json").read_text())["labels"] == {"background": 0, "b": 2}
    assert list(json.loads(Path("out/statistics.json").read_text())["a"]) == ["b"]


def test_a_subset_in_another_label_system_has_its_values() -> None:
    Path("system.toml").write_text("[classes]\nfirst = { labels = [30], from = ['a'] }\nb = 40\n")
    assert predict(out="whole") == 0
    assert predict("--roi_subset", "a", "--labels", "system.toml") == 0
    whole = voxels("whole/a.nii.gz")
    np.testing.assert_array_equal(voxels("out/a.nii.gz"), np.where(whole == 1, 30, 0))


def test_a_subset_is_not_continued_as_the_whole_and_not_the_other_way_round(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert predict("--roi_subset", "b") == 0
    assert predict("--continue_prediction") == 3
    assert "were made with other labels" in capsys.readouterr().err


def test_fast_is_the_model_of_low_resolution_beside_it() -> None:
    low = make_model(Path("T__P__3d_lowres"), mirror=None)
    assert predict("--fast") == 0
    assert predict(model=low, out="low") == 0
    assert predict(out="full") == 0
    fast, alone, full = (voxels(f"{folder}/a.nii.gz") for folder in ("out", "low", "full"))
    np.testing.assert_array_equal(fast, alone)
    assert not np.array_equal(fast, full)


def test_threads_are_those_that_were_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        assert predict("--threads", 3) == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@for_each(
    ("out", "mark", "start"), [("seg.dcm", b"DICM", 128), ("seg.seg.nrrd", b"NRRD", 0), ("seg.nii.gz", b"\x1f\x8b", 0)]
)
def test_a_file_after_o_has_the_format_of_its_ending(
    out: str, mark: bytes, start: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(Path("patient"), np.repeat(VOLUME, 3, 0).repeat(2, 1).repeat(2, 2))
    assert predict(source="patient", out=f"out/{out}") == 0
    assert names() == [out]
    assert capsys.readouterr().out == f"out/{out}\n"
    assert Path("out", out).read_bytes()[start:].startswith(mark)


@for_each(
    ("arguments", "out", "message"),
    [
        ((), "seg.seg.nrrd", "is one file for 2 cases"),
        (("--format", "masks"), "seg.nii.gz", "is not a file of --format masks"),
        (("--format", "image"), "seg.dcm", "is not a file of --format image"),
        ((), "seg.nrrd", "this model's images end with .nii.gz"),
        ((), "seg.dcm", "'a' is not a DICOM folder"),
    ],
)
def test_a_file_after_o_that_cannot_be_is_a_usage_error(
    arguments: tuple[str, ...], out: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if out == "seg.nrrd":
        Path("in/b_0000.nii.gz").unlink()
    assert predict(*arguments, out=out) == 2
    assert message in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_format_of_one_file_and_one_line_is_a_choice_an_ending_and_a_check_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_toy(segmentation: Segmentation, path: Path, origin: Origin) -> None:
        path.write_text(f"{origin.path.name} {int((segmentation.labels_DHW == 1).sum())}")

    def refuse_b(path: Path, series: str | None) -> None:
        if path.name.startswith("b"):
            raise DataError("a toy has no b")

    toy = OutputFormat("toy", ".toy", "a toy", write_toy, check_origin=refuse_b)
    monkeypatch.setitem(FORMATS, "toy", toy)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "DICOM-SEG, or a toy (default: image, or what -o ends with: .seg.nrrd, .dcm, .toy)" in " ".join(
        capsys.readouterr().out.split()
    )
    assert predict("--format", "toy") == 3
    assert "case 'b' failed: a toy has no b" in capsys.readouterr().err
    assert names() == ["a.toy"]
    assert predict(source="in/a_0000.nii.gz", out="single.toy") == 0
    assert predict(out="labels", source="in/a_0000.nii.gz") == 0
    text = f"a_0000.nii.gz {(voxels('labels/a.nii.gz') == 1).sum()}"
    assert [Path(name).read_text() for name in ("out/a.toy", "single.toy")] == [text, text]


def test_what_makes_a_dicom_seg_impossible_is_said_before_the_network_runs(capsys: pytest.CaptureFixture[str]) -> None:
    write_series(Path("patients/good"), np.repeat(VOLUME, 3, 0).repeat(2, 1).repeat(2, 2))
    write_series(Path("patients/bad"), change=without("FrameOfReferenceUID"))
    assert predict("--format", "dicom_seg", "--dry_run", source="patients") == 0
    assert "have no FrameOfReferenceUID" in capsys.readouterr().out
    assert predict("--format", "dicom_seg", "--report", "run.json", source="patients") == 3
    assert "case 'bad' failed: slices in 'patients/bad' have no FrameOfReferenceUID" in capsys.readouterr().err
    assert names() == ["good.dcm"]
    bad = json.loads(Path("run.json").read_text())["cases"][0]
    assert "network" not in bad["seconds"]


def test_what_else_was_asked_for_is_kept_when_one_product_fails(tmp_path: Path) -> None:
    write_series(Path("patient"))
    model, image = open_model(MODEL), read_series(Path("patient"))
    place = (image.GetSpacing()[::-1], image.GetOrigin(), image.GetDirection())
    empty = Segmentation(np.zeros(VOLUME.shape, np.uint8), {"a": 1, "b": 2}, *place)
    case = InputCase("patient", (Path("patient"),))
    Path("out").mkdir()
    files, error = write(
        empty, {}, VOLUME.astype(np.float32), case, Path("out"), Products("dicom_seg", preview=True), model, None
    )
    assert names() == ["patient.nii.gz", "patient_preview.png"] == sorted(file.name for file in files)
    assert error is not None
    assert "nothing is segmented" in error.message
    assert "kept as 'patient.nii.gz'" in error.message


def test_a_ct_that_is_not_in_hu_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    plans = json.loads((MODEL / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["CTNormalization"]
    known = {"min": -900, "max": 900, "mean": 50, "std": 60, "median": 50}
    known |= {"percentile_00_5": -50, "percentile_99_5": 200}
    plans["foreground_intensity_properties_per_channel"] = {"0": known}
    (MODEL / "plans.json").write_text(json.dumps(plans))
    hu = np.random.default_rng(0).normal(0, 300, (18, 20, 20)).astype(np.float32)
    hu[:, :5] = -1000
    for name, values in (("a", hu), ("b", hu + 1024), ("c", (hu + 1000) / 2000)):
        sitk.WriteImage(sitk.GetImageFromArray(values), f"in/{name}_0000.nii.gz")
    assert predict() == 0
    said = [record.getMessage() for record in caplog.records if "units" in record.getMessage()]
    assert [line.split(": ")[0] for line in said] == ["in/b_0000.nii.gz", "in/c_0000.nii.gz"]


def test_one_file_that_cannot_be_written_replaces_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setitem(FORMATS, "seg.nrrd", replace(FORMATS["seg.nrrd"], write=fails))  # a library
    others = [Path(f"in/a{end}") for end in (".nii.gz", ".npz", ".pkl", "_preview.png")]
    for other in others[1:]:
        other.write_text("of somebody")
    scan = Path("in/a_0000.nii.gz").rename(others[0])
    before = [other.read_bytes() for other in others]
    assert predict(source=str(scan), out="in/a.seg.nrrd") == 5
    assert [other.read_bytes() for other in others] == before
    others[0].rename("scan.nii.gz")
    assert predict(source="scan.nii.gz", out="in/a.seg.nrrd") == 5
    assert others[0].is_file()  # kept, as nothing stood there


def test_a_kept_result_replaces_no_input_of_a_folder_of_results() -> None:
    write_series(Path("patient"))
    previous = write_image(Path("out/a.nii.gz"))
    case, before = InputCase("a", (Path("patient"),), previous), previous.read_bytes()
    empty = Segmentation(np.zeros(VOLUME.shape, np.uint8), {"a": 1}, (1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
    with pytest.raises(DataError, match=r"not kept, as 'a.nii.gz' is there already"):
        write(empty, {}, None, case, Path("out"), Products("dicom_seg"), open_model(MODEL), None)
    assert previous.read_bytes() == before
    assert names() == ["a.nii.gz"]


def test_runs_for_one_file_each_leave_each_others_temporary_files() -> None:
    model = MODEL.with_name("T__P__3d_cascade_fullres")
    make_model(model, mirror=None)
    make_model(MODEL.with_name("T__P__3d_lowres"), mirror=None)
    live = Path("out/prev_stage_3d_lowres/.part-1-other.nii.gz")
    live.parent.mkdir(parents=True)
    live.touch()
    assert predict(source="in/a_0000.nii.gz", out="out/seg.nii.gz", model=model) == 0
    assert live.exists()
    assert predict(source="in/a_0000.nii.gz", out="out", model=model) == 0
    assert not live.exists()


def test_statistics_wait_for_no_lock_of_their_own_run() -> None:
    assert predict("--statistics", source="in/a_0000.nii.gz", out="out/statistics.nii.gz") == 0
    assert {"statistics.nii.gz", "statistics.json"} <= set(names())


def test_a_folder_of_images_is_not_taken_for_masks(capsys: pytest.CaptureFixture[str]) -> None:
    scan = write_image(Path("out/a/ct.nii.gz"))
    assert predict("--format", "masks") == 3
    assert "holds 'ct.nii.gz', which is not a mask of this model" in capsys.readouterr().err
    assert scan.is_file()


def test_the_dataset_json_of_a_dataset_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/dataset.json").write_text("{}")
    assert predict() == 3
    assert "a dataset.json that no prediction wrote" in capsys.readouterr().err
    assert [path.name for path in Path("out").glob("[!.]*")] == ["dataset.json"]
    assert Path("out/dataset.json").read_text() == "{}"
