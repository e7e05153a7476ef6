"""The report of stunet_evaluate: its numbers, its slices, and what it leaves out."""

import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk

from stunet import workspace
from stunet.cli.evaluate import main
from stunet.files import read_json
from tests.html_pages import check_page


@pytest.fixture
def predictions(planned: str, tmp_path: Path) -> Path:
    """Two references moved by a voxel, one that has no partner, and one that is no image."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    files = sorted((workspace.folder("nnUNet_raw") / planned / "labelsTr").glob("*.nii.gz"))
    for path in files[:2]:
        moved = sitk.Cast(sitk.CyclicShift(sitk.ReadImage(str(path)), [1, 0, 0]), sitk.sitkUInt8)
        moved.CopyInformation(sitk.ReadImage(str(path)))
        sitk.WriteImage(moved, str(folder / path.name))
    shutil.copy(files[2], folder / "other.nii.gz")
    (folder / files[2].name).write_bytes(b"no image")
    return folder


def test_the_page_has_the_numbers_of_the_summary_and_slices(
    predictions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-d", "998", str(predictions), "--chill", "--report"]) == 0
    page = check_page(predictions / "report.html")
    summary = read_json(predictions / "summary.json")
    for key, mean in summary["mean"].items():
        assert summary["labels"][key] in page.text
        for value in (f"{mean['Dice']:.3f}", f"{mean['NSD']:.3f}", f"{mean['HD95_mm']:.2f}"):
            assert value in page.text
    assert "other.nii.gz no partner" in page.text
    assert f"stunet_view {workspace.folder('nnUNet_raw')}" in page.text
    assert "is damaged, or not an image" in page.text or "no partner, or no content" in page.text
    assert len(page.of("image")) >= 6  # three planes of each case
    assert "wrote" in capsys.readouterr().err


def test_labels_of_other_values_have_no_slices(
    predictions: Path, tmp_path: Path, planned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = read_json(workspace.folder("nnUNet_raw") / planned / "dataset.json")["labels"]
    lines = [f"{name} = {{ labels = [{value}] }}" for name, value in labels.items() if value]
    system = tmp_path / "system.toml"
    system.write_text("\n".join(['title = "Toy"', "[classes]", *lines]))
    target = tmp_path / "new" / "page.html"
    options = ["--labels", str(system), "--report", str(target), "-o", str(tmp_path / "s.json")]
    assert main(["-d", "998", str(predictions), "--chill", *options]) == 0, capsys.readouterr().err
    page = check_page(target)
    assert "No slices are drawn" in page.text
    assert page.of("image") == []


def test_a_report_is_an_html_file(predictions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-d", "998", str(predictions), "--chill", "--report", "page.txt"]) == 2
    assert "'page.txt' does not end with .html" in capsys.readouterr().err
