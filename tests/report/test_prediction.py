"""The report of stunet_predict: volumes beside those of the training, borders, previews, and what failed."""

from pathlib import Path
from typing import Any

import pytest

from stunet.cli.predict import main
from stunet.files import read_json, write_json
from stunet.inference.products import PREVIEW
from stunet.report import prediction
from stunet.report.page import write
from tests.html_pages import check_page
from tests.predictor_models import SMALL, make_model, write_image

MODEL = Path("T__P__3d_fullres")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory: a model, and two images a and b in `in`."""
    monkeypatch.chdir(tmp_path)
    make_model(MODEL, mirror=None)
    for seed, name in enumerate("ab"):
        write_image(Path(f"in/{name}_0000.nii.gz"), seed, SMALL)


def predict(*more: Any) -> int:
    common = ("-device", "cpu", "--disable_progress_bar", "--precision", "fp32")
    return main([str(part) for part in ("-i", "in", "-o", "out", "--model", MODEL, *common, *more)])


def test_a_page_shows_volumes_previews_and_what_failed() -> None:
    # References of the training that are far larger than anything in these images.
    Path("in/broken_0000.nii.gz").write_bytes(b"nothing")
    metrics = {"Dice": 0.9, "ref_ml": 1e6, "pred_ml": 1e6}
    labels = {k: v for k, v in read_json(MODEL / "dataset.json")["labels"].items() if k != "background"}
    entry = {"metrics": {str(v): metrics for v in labels.values()}, "prediction_file": "x", "reference_file": "y"}
    (MODEL / "fold_0" / "validation").mkdir()
    write_json(MODEL / "fold_0" / "validation" / "summary.json", {"metric_per_case": [entry] * 12})
    assert predict("--statistics", "--preview", "--report", "out/report.html") == 3
    page = check_page(Path("out/report.html"))
    assert "failed 1" in page.text
    assert "broken_0000.nii.gz" in page.text
    assert "too small for the references" in page.text
    assert "1e+06 to 1e+06" in page.text
    assert len(page.of("image")) == 2
    statistics = read_json(Path("out/statistics.json"))
    there = [name for name, row in statistics["a"].items() if row["voxels"]]
    assert there
    for name in there:
        assert f"{statistics['a'][name]['volume_mm3'] / 1000:.4g}" in page.text


def test_without_statistics_and_previews_the_page_says_so() -> None:
    assert predict("--report", "run.html") == 0
    text = check_page(Path("run.html")).text
    assert "--statistics measures them" in text
    assert "failed 0" in text
    assert "cases 2" in text


def test_a_report_that_cannot_be_written_is_said_before_anything_is_predicted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert predict("--report", "nowhere/run.html") == 3
    assert "cannot write the report 'nowhere/run.html'" in capsys.readouterr().err
    assert not list(Path("out").glob("*.nii.gz"))


def test_only_so_many_previews_are_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict("--preview", "--report", "run.json") == 0
    monkeypatch.setattr(prediction, "PICTURES", Path(f"out/a{PREVIEW}").stat().st_size)
    run = read_json(Path("run.json"))
    Path(f"out/b{PREVIEW}").write_bytes(b"no picture")
    write(prediction.page(run, Path("out"), None, PREVIEW), Path("page.html"))
    page = check_page(Path("page.html"))
    assert len(page.of("image")) == 1
    assert "1 more previews lie in the folder" in page.text
