"""Reports of trainings: a real one, one that is torn or lacks parts, one of stock nnU-Net, and the command."""

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import stunet
from stunet import workspace
from stunet.cli.report import main
from stunet.errors import DataError, Interrupted, UsageError
from stunet.files import read_json, write_json
from stunet.report import runs, slices
from stunet.report.history import COLUMNS, read_csv, read_logs
from stunet.report.training import write_fold, write_model
from stunet.runs.reporting import write_reports
from tests.html_pages import check_page

ROUND = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}


@pytest.fixture(scope="module")
def trained(planned: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a fold that was trained for two short epochs, and validated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(tmp_path_factory.mktemp("results")))
        yield stunet.train(998, set=ROUND, device="cpu", npz=True).folder


@pytest.fixture
def fold(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, with its model folder, for a test to change."""
    model = tmp_path / trained.parents[1].name / trained.parent.name
    shutil.copytree(trained.parent, model)
    return model / trained.name


def classes_of(fold: Path) -> list[str]:
    labels = read_json(fold.parent / "dataset.json")["labels"]
    return [name for name in labels if name != "background"]


def test_a_training_leaves_a_report_and_a_row_per_epoch(trained: Path) -> None:
    page = check_page(trained / "report.html")
    for told in (
        "Dataset998_Phantom, fold 0",
        "2 of 2",
        "Final validation: worst cases",
        "Calibration, worst first",
        "An estimate from random",
    ):
        assert told in page.text
    for name in classes_of(trained):
        assert name in page.text
    assert len([image for image in page.of("image") if image["xlink:href"].startswith("data:image/png")]) >= 3
    with (trained / "metrics.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == [*COLUMNS, *(f"dice_of {name}" for name in classes_of(trained))]
    assert [row[0] for row in rows[1:]] == ["1", "2"]
    environment = read_json(trained / "environment.json")
    assert environment["device"] == "cpu"
    assert environment["stunet"] in page.text
    for epoch in read_csv(trained / "metrics.csv").epochs:
        assert 0 <= epoch.waiting_share <= 1
        assert 0.01 < epoch.memory_gb < 100
        assert epoch.seconds > 0
    picture = sitk.ReadImage(str(trained / "progress.png"))
    assert picture.GetWidth() == 1200


def test_the_csv_says_what_the_log_says(trained: Path) -> None:
    ours, logged = read_csv(trained / "metrics.csv").epochs, read_logs(trained.glob("training_log*.txt"))
    assert len(ours) == len(logged) == 2
    for one, other in zip(ours, logged, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
        assert one.validation_loss == pytest.approx(other.validation_loss, abs=1e-4)
        assert one.seconds == pytest.approx(other.seconds, abs=0.01)
        assert one.dice_of_classes == pytest.approx(other.dice_of_classes, abs=1e-4, nan_ok=True)
        assert one.learning_rate == pytest.approx(other.learning_rate, abs=1e-5)


def test_the_dice_of_the_report_is_that_of_the_summary(trained: Path) -> None:
    compared = runs.Fold(trained).compared
    assert compared is not None
    summary = read_json(trained / "validation" / "summary.json")
    assert compared.mean() == pytest.approx(np.nanmean([mean["Dice"] for mean in summary["mean"].values()]))
    assert compared.unit == "ml"
    spacing = sitk.ReadImage(summary["metric_per_case"][0]["reference_file"]).GetSpacing()
    voxels = summary["metric_per_case"][0]["metrics"]["1"]["n_ref"]
    assert compared.reference[0, 0] == pytest.approx(voxels * np.prod(spacing) / 1000)


def test_equal_folders_give_equal_reports(fold: Path) -> None:
    one, other = fold.parent / "one.html", fold.parent / "other.html"
    write_fold(fold, target=one)
    write_fold(fold, target=other)
    assert one.read_bytes() == other.read_bytes()


def test_every_file_may_be_missing_or_torn(fold: Path) -> None:
    whole = {path: path.read_bytes() for path in fold.parent.rglob("*") if path.is_file() and path.suffix != ".html"}
    for path, content in whole.items():
        for damaged in (None, content[: len(content) // 2], b"", b"[]", b'{"labels": 7}', b"\xff\x00"):
            path.unlink(missing_ok=True)
            if damaged is not None:
                path.write_bytes(damaged)
            found = runs.Fold(fold)
            assert found.model.reader
            assert len(found.history.epochs) in (0, 1, 2)
            assert found.compared is None or np.isfinite(found.compared.reference).all()
            assert len(found.model.classes) in (0, 5)
        path.write_bytes(content)


def test_a_page_of_what_is_left(fold: Path) -> None:
    for path in (fold / "metrics.csv", fold.parent / "dataset.json", fold.parent / "plans.json"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write_fold(fold)
    text = check_page(fold / "report.html").text
    assert "missing, or not readable" in text
    assert "label 1" in text


def test_a_run_without_validation_and_one_of_stock_nnunet_have_reports(fold: Path) -> None:
    shutil.rmtree(fold / "validation")
    for name in ("metrics.csv", "environment.json", "made_from.json"):
        (fold / name).unlink()
    plans = {key: value for key, value in read_json(fold.parent / "plans.json").items() if key != "stunet"}
    write_json(fold.parent / "plans.json", plans)
    stock = fold.parent.rename(fold.parent.with_name("nnUNetTrainer__nnUNetPlans__3d_fullres"))
    write_fold(stock / "fold_0")
    text = check_page(stock / "fold_0" / "report.html").text
    assert "There is no final validation in this fold yet." in text
    assert "epochs 2" in text
    for path in (stock / "fold_0").glob("*.pth"):  # only the log is left
        path.unlink()
    write_fold(stock / "fold_0")
    assert "epochs 2" in check_page(stock / "fold_0" / "report.html").text


def test_names_of_classes_may_hold_anything(fold: Path) -> None:
    names = ["<script>alert(1)</script>", 'a"b', "=1+1", "left\nkidney", "\u0643\u0628\u062f"]
    content = read_json(fold.parent / "dataset.json")
    values = {value: name for name, value in content["labels"].items()}
    labels = {"background": 0, **{names[value - 1]: value for value in values if value}}
    write_json(fold.parent / "dataset.json", {**content, "labels": labels})
    (fold / "metrics.csv").unlink()
    write_fold(fold)
    text = check_page(fold / "report.html").text
    for name in names:
        assert " ".join(name.split()) in text


def test_images_of_another_grid_or_none_are_told(fold: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    write_fold(fold)
    assert "its image was not found" in check_page(fold / "report.html").text
    for path in (fold / "validation").glob("*.nii.gz"):
        sitk.WriteImage(sitk.ReadImage(str(path))[1:], str(path))
    write_fold(fold)
    assert "differ in shape" in check_page(fold / "report.html").text
    for path in (fold / "validation").glob("*.nii.gz"):
        path.write_bytes(b"no image")
    write_fold(fold)
    assert "its files cannot be shown" in check_page(fold / "report.html").text


def test_a_model_has_a_report_of_all_folds(fold: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(fold, fold.with_name("fold_1"))
    (fold.with_name("fold_2")).mkdir()
    assert main([str(fold.parent)]) == 0
    assert capsys.readouterr().out == f"{fold.parent / 'report.html'}\n"
    page = check_page(fold.parent / "report.html")
    assert "Cross-validation: classes" in page.text
    assert [link["href"] for link in page.of("a") if "report" in link["href"]] == [
        "fold_0/report.html",
        "fold_1/report.html",
    ]
    assert check_page(fold.with_name("fold_1") / "report.html")
    assert not (fold.with_name("fold_2") / "report.html").exists()
    cases = [len(runs.Fold(path).compared.cases) for path in (fold, fold.with_name("fold_1"))]  # type: ignore[union-attr]
    assert f"cases {sum(cases)}" in page.text


def test_the_command_writes_one_file_where_it_is_told(fold: Path, tmp_path: Path) -> None:
    before = sorted(fold.parent.rglob("*"))
    assert main([str(fold), "-o", str(tmp_path / "new" / "one.html"), "--no_slices"]) == 0
    assert not [figure for figure in check_page(tmp_path / "new" / "one.html").of("image")]
    assert sorted(fold.parent.rglob("*")) == before


def test_what_cannot_be_reported_is_said_in_two_lines(
    fold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(empty)]) == 3
    assert "no training in" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 3
    assert "no folder" in capsys.readouterr().err
    assert main([str(fold.parents[1])]) == 3
    assert f"try: stunet_report {fold.parent}" in capsys.readouterr().err
    assert main([str(fold), "-o", "report.txt"]) == 2
    assert "does not end with .html" in capsys.readouterr().err
    with pytest.raises(DataError, match="no training in"):
        write_reports(workspace.folder("nnUNet_preprocessed"))


def test_reports_link_to_the_viewer(fold: Path, tmp_path: Path) -> None:
    write_reports(fold)
    page = check_page(fold / "report.html")
    assert (
        "In the viewer, from the folder fold_0: stunet_view -d Dataset998_Phantom validation --case phantom_"
        in page.text
    )
    write_reports(fold.parent, with_views=True)
    views = sorted((fold / "views").glob("*.html"))
    assert len(views) == len(list((fold / "validation").glob("*.nii.gz")))
    assert all(view.stem in view.read_text() for view in views)
    for folder, path in ((fold, "views"), (fold.parent, "fold_0/views")):
        page = check_page(folder / "report.html")
        links = [link["href"] for link in page.of("a") if "views" in link["href"]]
        assert sorted(links) == [f"{path}/{view.name}" for view in views]
        assert "In the viewer, from" not in page.text
    with pytest.raises(UsageError, match="no link"):
        write_reports(fold, tmp_path / "alone.html", with_views=True)
    with pytest.raises(UsageError, match="no link"):
        write_reports(fold, with_slices=False, with_views=True)
    elsewhere = tmp_path / "alone.html"
    write_reports(fold.parent, elsewhere)
    assert all(link["href"].startswith("#") for link in check_page(elsewhere).of("a"))
    prediction = next((fold / "validation").glob("*.nii.gz"))
    os.utime(prediction, (views[0].stat().st_mtime + 1,) * 2)  # it was predicted again
    write_reports(fold)
    assert f"--case {prediction.name.removesuffix('.nii.gz')}" in check_page(fold / "report.html").text


def test_without_names_of_classes_there_are_no_pages_of_the_viewer(fold: Path) -> None:
    (fold.parent / "dataset.json").unlink()
    write_reports(fold, with_views=True)
    assert check_page(fold / "report.html")
    assert not (fold / "views").exists()


def test_a_case_of_two_folds_is_shown_as_each_predicted_it(fold: Path) -> None:
    other = fold.with_name("fold_all")
    shutil.copytree(fold, other)
    write_reports(fold.parent)
    page = check_page(fold.parent / "report.html")
    assert "from the folder fold_0:" in page.text
    assert "from the folder fold_all:" in page.text


def test_a_stop_while_slices_are_drawn_stops(fold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr(slices, "file_reader", stop)
    with pytest.raises(Interrupted):
        write_reports(fold)


def test_a_report_of_a_model_may_be_asked_for_alone(fold: Path) -> None:
    write_model(fold.parent, with_slices=False)
    assert "Folds" in check_page(fold.parent / "report.html").text
