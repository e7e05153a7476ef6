"""Tests of what stunet_predict writes beside or instead of a label image, and of runs that go on with what is there."""

import csv
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stunet import __version__
from stunet.cli.predict import main
from stunet.results.dicom_seg import EXTRA
from stunet.results.run_report import STAGES
from tests.predictor_models import make_model, write_dicom, write_image

MODEL = Path("T__P__3d_fullres")
RUN = {"dataset.json", "plans.json", "predict_from_raw_data_args.json", "itksnap_labels.txt"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory: a model, and two images a and b in `in`."""
    monkeypatch.chdir(tmp_path)
    make_model(MODEL, mirror=None)
    for seed, name in enumerate("ab"):
        write_image(Path(f"in/{name}_0000.nii.gz"), seed)


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
    assert (captured.out, captured.err) == ("", "2 of 2 cases are done already\n")
    Path("out/statistics.json").write_text("{")
    assert predict("--statistics", "--continue_prediction") == 3
    assert "no statistics in 'out/statistics.json'" in capsys.readouterr().err


@pytest.mark.parametrize(("format_", "results"), [("masks", ["a", "b"]), ("seg.nrrd", ["a.seg.nrrd", "b.seg.nrrd"])])
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


@pytest.mark.parametrize("format_", ["image", "masks"])
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
