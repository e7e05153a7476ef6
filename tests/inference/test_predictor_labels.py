"""Results in the labels of another dataset: the right values, described beside them, and scored to the same numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from stunet.cli import evaluate, predict
from stunet.errors import DataError
from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from stunet.labels import systems
from tests.predictor_models import SPACING, make_model, run, write_image, write_png

SYSTEM = """
[classes]
b = 7
organ = { labels = [300, 2], from = ["a"] }
[other]
rectum = 1
"""


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A label system in which the model's a is 300 and its b is 7."""
    path = tmp_path / "system.toml"
    path.write_text(SYSTEM)
    return path


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def renumbered(array: np.ndarray) -> np.ndarray:
    """The model's labels in those of the system, written out."""
    return np.where(array == 1, 300, np.where(array == 2, 7, 0))


def test_every_voxel_has_the_value_of_its_class_in_the_system(tmp_path: Path, system: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    image = write_image(tmp_path / "in/c_0000.nii.gz")
    run(folder, image, tmp_path / "own")
    run(folder, image, tmp_path / "out", labels=systems.load(str(system)))
    own, out = (sitk.ReadImage(str(tmp_path / place / "c.nii.gz")) for place in ("own", "out"))
    array = sitk.GetArrayFromImage(own)
    assert len(np.unique(array)) == 3
    np.testing.assert_array_equal(sitk.GetArrayFromImage(out), renumbered(array))
    assert out.GetPixelID() == sitk.sitkUInt16
    for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(own, geometry)() == getattr(out, geometry)()


def test_other_readers_write_them_as_well(tmp_path: Path, system: Path) -> None:
    image = tmp_path / "tif/c_0000.tif"
    image.parent.mkdir()
    tifffile.imwrite(image, voxels(write_image(tmp_path / "c.nii.gz")))
    (tmp_path / "tif/c.json").write_text(json.dumps({"spacing": SPACING}))
    folder = make_model(tmp_path / "tiff/T__P__3d_fullres", mirror=None, reader="Tiff3DIO", ending=".tif")
    png = tmp_path / "png/c_0000.png"
    png.parent.mkdir()
    write_png(png, (31, 27))
    flat = make_model(tmp_path / "flat/T__P__2d", mirror=None, reader="NaturalImage2DIO", ending=".png")
    for model, source, name in ((folder, image, "c.tif"), (flat, png, "c.png")):
        for place, options in (("own", {}), ("out", {"labels": systems.load(str(system))})):
            [outcome] = run(model, source, tmp_path / place, **options)
            assert outcome.error is None
        read = tifffile.imread if name == "c.tif" else voxels
        own, out = (read(tmp_path / place / name) for place in ("own", "out"))
        assert len(np.unique(own)) > 1
        np.testing.assert_array_equal(out, renumbered(own))


def test_both_ways_to_evaluate_in_a_system_give_the_same_numbers(
    tmp_path: Path, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(Path("T__P__3d_fullres"), mirror=None)
    for number in (0, 1):
        write_image(Path(f"in/c{number}_0000.nii.gz"), number)
    command = ["-i", "in", "--model", "T__P__3d_fullres", "-device", "cpu", "--disable_progress_bar"]
    assert predict.main([*command, "-o", "own"]) == 0
    assert predict.main([*command, "-o", "out", "--labels", str(system)]) == 0
    assert json.loads(Path("out/dataset.json").read_text())["labels"] == {"background": 0, "b": 7, "organ": 300}

    Path("references").mkdir()
    for number in (0, 1):  # the results of the other image, so that the Dice is neither 0 nor 1
        shutil.copy(f"out/c{number}.nii.gz", f"references/c{1 - number}.nii.gz")
    for predictions in ("own", "out"):
        assert evaluate.main(["references", predictions, "--labels", str(system), "-np", "1"]) == 0
    own, out = (json.loads(Path(place, "summary.json").read_text()) for place in ("own", "out"))
    assert own["mean"] == out["mean"]
    assert own["foreground_mean"] == out["foreground_mean"]
    assert 0 < out["foreground_mean"]["Dice"] < 1
    assert set(out["labels"].values()) == {"b", "organ"}


def test_a_model_of_regions_is_refused_before_any_case(tmp_path: Path, system: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    dataset = json.loads((folder / "dataset.json").read_text())
    regions = {"labels": {"background": 0, "a": [1, 2], "b": 2, "c": 3}, "regions_class_order": [1, 2, 3]}
    (folder / "dataset.json").write_text(json.dumps(dataset | regions))
    Predictor(open_model(folder), Options())
    with pytest.raises(DataError, match=r"class 'a' of the model is \[1, 2\], not one label"):
        Predictor(open_model(folder), Options(labels=systems.load(str(system))))
