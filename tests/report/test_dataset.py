"""The report of a dataset: the numbers of its files, whatever these are, and what the plan chose."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stunet import workspace
from stunet.cli.plan_and_preprocess import main
from stunet.datasets import RawCase
from stunet.datasets.check import ReadCase, examine
from stunet.files import read_json, write_json
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.report import dataset
from stunet.report.page import write
from tests.html_pages import check_page


@pytest.fixture
def plan(planned: str) -> Plan:
    return read_plan(plan_path(planned, "STUNetPlans_T"))


def looks_at(folder: Path) -> list[dataset.Look]:
    names = sorted(path.name.removesuffix("_0000.nii.gz") for path in (folder / "imagesTr").iterdir())
    checked = examine(folder, see=dataset.observer(names, read_json(folder / "dataset.json")))
    return [case.seen for case in checked.values()]


def test_the_command_writes_a_page_about_the_dataset(pre: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-d", "998", "--size", "T", "--no_pp", "-npfp", "2"]) == 0, capsys.readouterr().err
    page = check_page(pre / "STUNetPlans_T.html")
    raw = workspace.raw_dataset(pre.name)
    description = read_json(raw / "dataset.json")
    for name in description["labels"]:
        assert name == "background" or name in page.text
    assert f"cases {description['numTraining']}" in page.text
    assert "3d_fullres" in page.text
    assert "left and right classes: axis" in page.text
    assert len(page.of("image")) == description["numTraining"]  # a thumbnail each
    assert "wrote" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--no_report", "--no_check"])
def test_without_a_look_at_the_files_there_is_no_page(pre: Path, option: str) -> None:
    (pre / "STUNetPlans_T.html").write_text("of an earlier plan")
    assert main(["-d", "998", "--size", "T", "--no_pp", "-npfp", "1", option]) == 0
    assert not (pre / "STUNetPlans_T.html").exists()


def test_a_page_that_cannot_be_written_does_not_stop_the_planning(
    pre: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stunet.report.page.write", full)
    (pre / "STUNetPlans_T.json").unlink()
    assert main(["-d", "998", "--size", "T", "--no_pp", "-npfp", "1"]) == 0
    assert "no page about the dataset: [Errno 28] No space left on device" in capsys.readouterr().err
    assert (pre / "STUNetPlans_T.json").is_file()


def test_flat_images_have_pixels_and_two_axes(plan: Plan, raw: Path, tmp_path: Path) -> None:
    description = read_json(raw / "dataset.json")
    label = np.zeros((1, 4, 5), np.uint8)
    label[0, 1] = 1
    properties = {"spacing": [999.0, 1.0, 1.0]}
    case = ReadCase(RawCase("a", (), None), np.ones((1, 1, 4, 5), np.float32), label, properties, {0: 15, 1: 5})
    look = dataset.observer([], description)(case)
    assert (look.spacing, look.shape, look.voxel_ml) == ((1.0, 1.0), (4, 5), 1.0)
    write(dataset.page("Dataset998", description, [look], dataset.Chosen(plan, [], [], [])), tmp_path / "page.html")
    text = check_page(tmp_path / "page.html").text
    assert "median pixels" in text
    assert "999" not in text.replace("Dataset998", "")


def test_numbers_are_those_of_the_files(raw: Path) -> None:
    (first, *_) = looks_at(raw)
    label = sitk.ReadImage(str(raw / "labelsTr" / f"{first.name}.nii.gz"))
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / f"{first.name}_0000.nii.gz")))
    assert first.spacing == pytest.approx(label.GetSpacing()[::-1])
    assert first.shape == image.shape
    assert first.voxel_ml == pytest.approx(np.prod(label.GetSpacing()) / 1000)
    values, counts = np.unique(sitk.GetArrayFromImage(label), return_counts=True)
    assert dict(first.volumes) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert first.intensities[0] == pytest.approx(np.percentile(image, dataset.PERCENTILES))
    assert first.picture is not None
    assert first.picture.max() > 0


def test_cases_that_cannot_be_drawn_are_listed(raw: Path, plan: Plan, tmp_path: Path) -> None:
    first, *looks = looks_at(raw)
    label = np.zeros((3, 4, 5), np.uint8)
    case = RawCase(first.name, (), None)
    read = ReadCase(case, np.zeros((1, 3, 4, 5), np.float32), label, {"spacing": [1, "wide", 1]}, {0: 60})
    looks.append(dataset.observer([], read_json(raw / "dataset.json"))(read))
    assert [bool(look.error) for look in looks].count(True) == 1
    folds = [{"train": [look.name for look in looks[2:]], "val": [looks[1].name]}]
    chosen = dataset.Chosen(plan, folds, ["<b>odd</b>"], [])
    write(dataset.page("Dataset998_Phantom", read_json(raw / "dataset.json"), looks, chosen), tmp_path / "page.html")
    text = check_page(tmp_path / "page.html").text
    assert "Cases that are not in what follows" in text
    assert "could not convert string to float" in text
    assert "Warning: <b>odd</b>" in text
    for name in read_json(raw / "dataset.json")["labels"]:
        assert name == "background" or name in text


def test_images_without_labels_have_a_page(raw: Path, plan: Plan, tmp_path: Path) -> None:
    shutil.rmtree(raw / "labelsTr")
    write_json(raw / "dataset.json", {**read_json(raw / "dataset.json"), "labels": {"background": 0}})
    chosen = dataset.Chosen(plan, [], [], [])
    looks = looks_at(raw)
    write(dataset.page("Dataset998_Phantom", read_json(raw / "dataset.json"), looks, chosen), tmp_path / "page.html")
    page = check_page(tmp_path / "page.html")
    assert "The images have no labels." in page.text
    assert page.of("image")


def test_nothing_can_be_read(plan: Plan, tmp_path: Path, raw: Path) -> None:
    looks = [dataset.Look("case_1", error="gone")]
    chosen = dataset.Chosen(plan, [], [], [])
    write(dataset.page("Dataset998_Phantom", read_json(raw / "dataset.json"), looks, chosen), tmp_path / "page.html")
    assert "gone" in check_page(tmp_path / "page.html").text
