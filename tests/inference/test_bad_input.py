"""What stunet_predict says about broken or strange input: one line, exit code 3, and the other cases are done."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from stunet.cli.predict import main
from stunet.datasets.listing import visible
from tests.loops import for_each
from tests.predictor_models import make_model, write_dicom, write_image

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
SHEAR = np.eye(4)
SHEAR[0, 1] = 0.3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "T__P__3d_fullres", mirror=None)


@pytest.fixture(scope="module")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "T__P__3d_fullres", channels=2, mirror=None)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def predict(model: Path, *more: str, source: str = "in", out: str = "out") -> int:
    common = ["-device", "cpu", "--disable_progress_bar", "--precision", "fp32"]
    return main(["-i", source, "-o", out, "--model", str(model), *common, *more])


def results(folder: str = "out") -> list[str]:
    """All files but those about the run."""
    return sorted(path.name for path in visible(Path(folder).glob("*")) if path.suffix not in (".json", ".txt"))


def nifti(
    *shape: int, dtype: np.dtype | type = np.float32, affine: np.ndarray | None = None, scale: float = 100
) -> Callable[[Path], None]:
    """Writes noise, with (x, y, z) voxels."""
    voxels = np.random.default_rng(0).normal(size=shape) * scale
    array = voxels.astype(dtype) if dtype != RGB else np.zeros(shape, dtype)
    return lambda path: nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def constant(value: int) -> Callable[[Path], None]:
    return lambda path: nibabel.save(nibabel.Nifti1Image(np.full((20, 18, 17), value, np.int16), np.eye(4)), path)


def vectors(*shape: int) -> Callable[[Path], None]:
    return lambda path: sitk.WriteImage(sitk.GetImageFromArray(np.ones(shape, np.float32), isVector=True), str(path))


def not_a_number(path: Path) -> None:
    voxels = np.ones((8, 9, 10), np.float32)
    voxels[4, 4, 4] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


BROKEN = {
    "4d": (nifti(10, 11, 12, 3), "holds 3 channel(s), but the model takes 1 (MR0)"),
    "5d": (nifti(6, 7, 8, 2, 3), "Unexpected number of dimensions: 5"),
    "rgb": (nifti(10, 11, 12, dtype=RGB), "holds colours, not one number per voxel"),
    "rgb_slice": (nifti(10, 11, 1, dtype=RGB), "holds colours, not one number per voxel"),
    "complex": (nifti(10, 11, 12, dtype=np.complex64), "holds complex numbers"),
    "vectors": (vectors(10, 11, 12, 2), "holds vectors or colours, not one number per voxel"),
    "vectors_in_a_slice": (vectors(1, 11, 12, 2), "holds vectors or colours, not one number per voxel"),
    "sheared": (nifti(10, 11, 12, affine=SHEAR), "degrees from perpendicular, which ITK cannot read"),
    "empty": (nifti(0, 11, 12), "has no voxels"),
    "no_bytes": (Path.touch, "no NIfTI header"),
    "text": (lambda path: path.write_text("no image"), "it is damaged or truncated"),
    "nan": (not_a_number, "holds NaN or infinity"),
    "too_large_for_float32": (nifti(8, 9, 10, dtype=np.float64, scale=1e300), "NaN or infinite voxels"),
    "kilometres": (nifti(20, 20, 20, affine=np.diag([1e6, 1e6, 1e6, 1])), "mm would be 13333333 x"),
    "metres": (nifti(20, 20, 20, affine=np.diag([1e-3, 1e-3, 1e-3, 1])), "mm would be 0 x 0 x 0 voxels"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_broken_images_are_named_with_the_reason_and_the_others_are_done(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_image(Path("in/good_0000.nii.gz"))
    for name, (write, _) in BROKEN.items():
        write(Path(f"in/{name}_0000.nii.gz"))
    write_image(Path("in/zebra_0000.nii.gz"), 1)
    assert predict(model) == 3
    captured = capfd.readouterr()
    assert captured.out.splitlines() == ["out/good.nii.gz", "out/zebra.nii.gz"]
    # ITK may have said something of its own
    ours = [line for line in captured.err.splitlines() if line.startswith(("stunet_predict: case", "  try"))]
    assert len(ours) == 2 * len(BROKEN)
    for name, what, hint in zip(sorted(BROKEN), ours[::2], ours[1::2], strict=True):
        assert what.startswith(f"stunet_predict: case '{name}' failed: ")
        assert f"in/{name}_0000.nii.gz" in what
        assert BROKEN[name][1] in what
        assert hint.startswith("  try: ")
    assert results() == ["good.nii.gz", "zebra.nii.gz"]


def test_every_format_that_the_reader_takes_is_predicted_and_everything_else_is_a_case_that_failed(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = write_image(Path("in/a_0000.nii.gz"))
    write_image(Path("in/b_0000.nii.gz")).rename("in/b_0000.NII.GZ")
    for name in ("c.nii", "d.nrrd"):
        sitk.WriteImage(sitk.ReadImage(first), f"in/{name}")
    write_dicom(Path("in/series"))
    Path("in/gone.nii.gz").symlink_to("/nowhere/gone.nii.gz")
    shutil.copy(first, f"in/{'x' * 250}.nii")
    shutil.copy(first, os.fsdecode(b"in/M\xfcller.nii.gz"))
    assert predict(model, "--report", "report.json") == 3
    assert [name for name in results() if name.endswith(".nii.gz")] == [
        f"{name}.nii.gz" for name in ("a", "b", "c", "d", "series")
    ]
    same = [sitk.GetArrayFromImage(sitk.ReadImage(f"out/{name}.nii.gz")) for name in "acd"]
    assert all(np.array_equal(same[0], other) for other in same[1:])
    err = capfd.readouterr().err
    assert "case 'gone' failed: 'in/gone.nii.gz' is a broken link" in err
    assert r"case 'M\udcfcller' failed: the name 'in/M\udcfcller.nii.gz' is not UTF-8" in err
    assert "would have names of 257 bytes" in err
    assert len(json.loads(Path("report.json").read_text())["cases"]) == 8


def test_a_3d_tiff_without_its_spacing_is_a_case_that_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "T__P__3d_fullres", reader="Tiff3DIO", ending=".tif", mirror=None)
    array = np.random.default_rng(0).normal(size=(18, 20, 22)).astype(np.float32)
    Path("in").mkdir()
    for name in ("a_0000.tif", "b_0000.TIF"):
        tifffile.imwrite(Path("in") / name, array)
    Path("in/b.json").write_text('{"spacing": [3, 0.5, 0.5]}')
    assert predict(model) == 3
    assert results() == ["b.tif"]
    assert json.loads(Path("out/b.json").read_text()) == {"spacing": [3, 0.5, 0.5]}
    assert "case 'a' failed: 'in/a_0000.tif' has no spacing: no file 'in/a.json'" in capfd.readouterr().err


STRANGE = {
    "zeros": constant(0),
    "constant": constant(-1000),
    "one_slice": nifti(20, 22, 1),
    "one_column": nifti(1, 1, 30),
    "one_voxel": nifti(1, 1, 1),
    "four_axes": nifti(12, 14, 13, 1),
    "smaller_than_a_window": nifti(3, 4, 5),
    "thick": nifti(20, 22, 4, affine=np.diag([0.5, 0.5, 9, 1])),
    "mirrored": nifti(12, 13, 14, affine=np.diag([-1.5, 1.2, -1.8, 1])),
    "oblique": nifti(
        12,
        13,
        14,
        affine=np.block([[np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]), np.ones((3, 1))], [np.eye(4)[3:]]]),
    ),
    "bytes": nifti(12, 13, 14, dtype=np.uint8),
    "doubles": nifti(12, 13, 14, dtype=np.float64),
}


def test_strange_images_in_one_folder_are_segmented_on_their_own_grids(model: Path) -> None:
    Path("in").mkdir()
    for name, write in STRANGE.items():
        write(Path(f"in/{name}_0000.nii.gz"))
    assert predict(model, "--statistics") == 0
    assert [name for name in results() if name.endswith(".gz")] == sorted(f"{name}.nii.gz" for name in STRANGE)
    assert Path("out/statistics.json").is_file()
    for name in STRANGE:
        image, result = (nibabel.load(path) for path in (f"in/{name}_0000.nii.gz", f"out/{name}.nii.gz"))
        assert result.shape == image.shape[:3]
        np.testing.assert_allclose(result.affine, image.affine, atol=1e-5)
        assert set(np.unique(result.dataobj)) <= {0, 1, 2}
    for name in set(STRANGE) - {"zeros", "one_column", "one_voxel"}:
        Path(f"in/{name}_0000.nii.gz").unlink()
    assert predict(model, "--preview", out="pictures") == 0
    assert len(list(Path("pictures").glob("*_preview.png"))) == 3


def test_a_case_that_lacks_a_channel_is_an_error_and_the_others_are_done(
    two_channels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a_0000", "b_0000", "b_0001", "c_0001", "d_0000", "d_0001", "d_0002", "e"):
        write_image(Path(f"in/{name}.nii.gz"))
    assert predict(two_channels, "--dry_run") == 0
    assert "case 'a' lacks channel 1 (MR1): no 'a_0001.nii.gz'" in capsys.readouterr().out
    assert predict(two_channels) == 3
    captured = capsys.readouterr()
    assert captured.out == "out/b.nii.gz\n"
    said = [line.removeprefix("stunet_predict: case ") for line in captured.err.splitlines() if "failed" in line]
    assert [line.split(" failed: ")[1] for line in said] == [
        "case 'a' lacks channel 1 (MR1): no 'a_0001.nii.gz' in 'in'",
        "case 'c' lacks channel 0 (MR0): no 'c_0000.nii.gz' in 'in'",
        "case 'd' has channel 2, but the model takes 2 (MR0, MR1)",
        "'e.nii.gz' has no channel number; the model takes 2: MR0, MR1",
    ]
    assert results() == ["b.nii.gz"]


def test_a_model_of_two_channels_does_not_take_one(two_channels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(Path("in/a_0000.nii.gz"))
    write_image(Path("in/b_0000.nii.gz"))
    assert predict(two_channels) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert len(lines) == 2
    assert "in/a_0000.nii.gz holds 1 channel(s), but the model takes 2 (MR0, MR1)" in lines[0]


@for_each(
    ("arguments", "files"),
    [
        ("-i in -o in", ["in/a_0000.nii.gz"]),
        ("-i in/a_0000.nii.gz -o in", ["in/a_0000.nii.gz"]),
        ("-i in/a.nii.gz -o in/a.nii.gz", ["in/a.nii.gz"]),
        ("-i in/a.nii.gz -o in/../in/a.nii.gz", ["in/a.nii.gz"]),
        ("-i in/a -o in --format masks", ["in/a/a.nii.gz"]),  # the masks would be in in/a
        ("-i in/a/a_0000.nii.gz -o in --format masks", ["in/a/a_0000.nii.gz"]),
    ],
)
def test_results_never_take_the_place_of_what_they_are_made_of(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: str, files: list[str]
) -> None:
    for file in files:
        write_image(Path(file))
    before = {path: path.read_bytes() for path in Path("in").rglob("*.gz")}
    _, source, _, out, *more = arguments.split()
    assert predict(model, *more, source=source, out=out) == 3
    assert "input and results would share the folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("in").rglob("*.*")} == before


def test_a_dicom_folder_is_not_replaced_by_the_folder_of_its_masks(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slices = write_dicom(Path("patient"))
    assert predict(model, "--format", "masks", source="patient", out=".") == 3
    assert "would share the folder '.'" in capsys.readouterr().err
    assert all(path.is_file() for path in slices)


def test_previous_results_of_a_cascade_are_not_replaced_by_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cascade = make_model(tmp_path / "T__P__3d_cascade_fullres", mirror=None)
    write_image(Path("in/a_0000.nii.gz"))
    previous = write_image(Path("previous/a.nii.gz"), values=np.ones((18, 25, 21), np.float32))
    before = previous.read_bytes()
    assert predict(cascade, "-prev_stage_predictions", "previous", out="previous") == 3
    assert "would share the folder 'previous'" in capsys.readouterr().err
    assert previous.read_bytes() == before


def test_a_folder_with_something_else_is_not_replaced_by_masks(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_image(Path(f"in/{name}_0000.nii.gz"))
    assert predict(model, "--format", "masks") == 0
    Path("out/b/notes.txt").write_text("mine")
    kept = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.gz")}
    capsys.readouterr()
    assert predict(model, "--format", "masks") == 3
    assert "the folder 'out/b' holds 'notes.txt', which is not a mask" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.gz")} == kept


def test_an_error_in_a_dicom_folder_names_the_folder(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("patient")
    write_dicom(folder)
    for n, path in enumerate(sorted(folder.iterdir())):
        image = sitk.ReadImage(str(path))
        colours = sitk.Compose([sitk.Cast(image[:, :, 0], sitk.sitkUInt8)] * 3)
        for key in image.GetMetaDataKeys():
            if key.startswith(("0020", "0008|0018", "0008|0060")):
                colours.SetMetaData(key, image.GetMetaData(key))
        path.unlink()
        sitk.WriteImage(colours, str(folder / f"{n}.dcm"))
    assert predict(model, source="patient") == 3
    what = capsys.readouterr().err.splitlines()[-2]
    assert "no DICOM series of images in 'patient' (there: series without a name (CT colour, " in what
    assert not Path("out").exists()
