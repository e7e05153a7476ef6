"""Scans of any format become a sound dataset without labels; bad ones end the conversion, or are left out."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from stunet.cli import convert as command
from stunet.datasets import read_dataset
from stunet.datasets.check import check_dataset, read_images
from stunet.datasets.conversion import Conversion
from stunet.datasets.dicom import read_series
from stunet.datasets.unlabelled import prepare_images
from stunet.errors import DataError, UsageError
from tests.dicom_files import write_series
from tests.loops import for_each

SHAPE = (5, 6, 7)


def write(path: Path, array: np.ndarray | None = None, direction: str = "LPS") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(path.name)).integers(0, 900, SHAPE).astype(np.int16) if array is None else array
    image = sitk.GetImageFromArray(values)
    if values.ndim == 3:
        image.SetSpacing((1.0, 2.0, 3.0))
        image = sitk.DICOMOrient(image, direction)
    sitk.WriteImage(image, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two patients, one with two scans."""
    for name in ("p1/a", "p1/b", "p2/a"):
        write(tmp_path / "data" / f"{name}.nii.gz")
    return tmp_path / "data"


def images(folder: Path, *others: Path, **options: Any) -> Conversion:
    return prepare_images([folder, *others], folder.parent / "raw", 50, "Unlabelled", **options)


def run(conversion: Conversion) -> list[str]:
    return conversion.run(conversion.pending(), 1)


def description(folder: Path) -> dict[str, Any]:
    return json.loads((folder.parent / "raw" / "Dataset050_Unlabelled" / "dataset.json").read_text())


def test_images_become_a_dataset_by_reference_with_their_subjects(folder: Path) -> None:
    conversion = images(folder)
    assert run(conversion) == []
    assert description(folder) == {
        "name": "Unlabelled",
        "channel_names": {"0": "image"},
        "labels": {"background": 0},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
        "dataset": {
            f"{p}_{s}": {"images": [str(folder / p / f"{s}.nii.gz")]}
            for p, s in (("p1", "a"), ("p1", "b"), ("p2", "a"))
        },
        "subjects": {"p1_a": "p1", "p1_b": "p1", "p2_a": "p2"},
    }
    assert check_dataset(conversion.target) == []
    assert not [path for path in conversion.target.iterdir() if path.name not in (".stunet", "dataset.json")]
    write(folder / "p3" / "a.nii.gz")
    assert [source.name for source in images(folder).pending()] == ["p3_a"]  # the others are there already


def test_files_of_all_formats_and_orientations_are_read_as_they_are(folder: Path) -> None:
    """What one array holds comes out of each of its files, on the same grid, where only the axes may run otherwise."""
    array = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
    for name, direction in (("a.nii", "RAS"), ("b.nrrd", "LPS"), ("c.mha", "PSR"), ("d.mhd", "RAI"), ("e.nhdr", "LPS")):
        write(folder / "formats" / name, array, direction)
    freesurfer = nibabel.load(folder / "formats" / "a.nii")
    nibabel.save(nibabel.MGHImage(np.asanyarray(freesurfer.dataobj), freesurfer.affine), folder / "formats" / "f.mgz")
    conversion = images(folder / "formats", channels={"CT": ""})
    run(conversion)
    cases, rules = read_dataset(conversion.target)
    assert [case.images[0].name for case in cases] == [
        "a.nii", "b.nrrd", "c.mha", "d_0000.nii.gz", "e_0000.nii.gz", "f_0000.nii.gz",
    ]  # fmt: skip
    assert rules.channels == ("CT",)
    for case in cases:
        image = sitk.DICOMOrient(sitk.ReadImage(case.images[0]), "LPS")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
        assert image.GetSpacing() == pytest.approx((1, 2, 3))
    check_dataset(conversion.target)


def test_dicom_series_are_written_with_their_geometry_and_name_the_channel(tmp_path: Path) -> None:
    write_series(tmp_path / "data" / "p1", PatientID="1", SeriesInstanceUID="1.1")
    write_series(tmp_path / "data" / "p2", PatientID="2", SeriesInstanceUID="1.2", slope=2.0)
    conversion = images(tmp_path / "data")
    run(conversion)
    content = description(tmp_path / "data")
    assert content["channel_names"] == {"0": "CT"}
    assert content["dataset"]["p1"] == {"images": ["imagesTr/p1_0000.nii.gz"]}
    for name in ("p1", "p2"):
        theirs = read_series(tmp_path / "data" / name)
        ours = sitk.ReadImage(conversion.target / "imagesTr" / f"{name}_0000.nii.gz")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
        assert ours.GetSpacing() == pytest.approx(theirs.GetSpacing())
        assert ours.GetOrigin() == pytest.approx(theirs.GetOrigin())
    check_dataset(conversion.target)
    assert images(tmp_path / "data").pending() == []
    slice_of = sorted((tmp_path / "data" / "p1").iterdir())[0]
    slice_of.write_bytes(slice_of.read_bytes() + b"\0\0")
    assert [source.name for source in images(tmp_path / "data").pending()] == ["p1"]


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "damaged|cut|end"),
    "text": (lambda path: path.write_text("no image"), "damaged|NIfTI"),
    "gone": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "broken link"),
    "constant": (lambda path: write(path, np.full(SHAPE, 4.0)), "holds one value only"),
    "flat": (lambda path: write(path, np.arange(42.0).reshape(1, 6, 7)), "is flat, 1 x 6 x 7 voxels"),
    "4D": (lambda path: write(path, np.ones((3, *SHAPE))), "has 3 channels, --channels names 1: image"),
    "NaN": (lambda path: write(path, np.full(SHAPE, np.nan)), "NaN"),
    "labels": (
        lambda path: write(path, np.arange(210.0).reshape(SHAPE) // 20),
        "few whole numbers only, as label maps",
    ),
}


@for_each("kind", list(BAD))
def test_bad_scans_end_the_conversion_or_are_left_out_and_listed(folder: Path, kind: str) -> None:
    damage, message = BAD[kind]
    damage(folder / "p1" / "b.nii.gz")
    with pytest.raises(DataError, match=f"case 'p1_b': .*({message})") as caught:
        run(images(folder))
    assert "--skip_bad" in caught.value.hint
    target = images(folder).target
    assert not (target / "dataset.json").exists()
    (warning,) = run(images(folder, skip_bad=True))
    assert "1 cases are left out, which left_out.json lists" in warning
    assert list(json.loads((target / "left_out.json").read_text())) == ["p1_b"]
    assert list(description(folder)["dataset"]) == list(description(folder)["subjects"]) == ["p1_a", "p2_a"]
    check_dataset(target)
    (folder / "p1" / "b.nii.gz").unlink()
    write(folder / "p1" / "b.nii.gz")
    assert run(images(folder, skip_bad=True)) == []
    assert not (target / "left_out.json").exists()
    assert description(folder)["numTraining"] == 3


def test_nothing_of_a_bad_series_stays(tmp_path: Path) -> None:
    write_series(tmp_path / "data" / "p1", SeriesInstanceUID="1.1")
    write_series(tmp_path / "data" / "p2", np.zeros((6, 8, 9), np.int16), SeriesInstanceUID="1.2")
    (last := sorted(write_series(tmp_path / "data" / "p3", SeriesInstanceUID="1.3"))[2]).write_bytes(b"")
    conversion = images(tmp_path / "data", skip_bad=True)
    (warning,) = run(conversion)
    assert "case 'p2': image 'p2' holds one value only" in warning
    assert repr(last.name) in warning
    assert [path.name for path in (conversion.target / "imagesTr").iterdir()] == ["p1_0000.nii.gz"]
    shutil.rmtree(tmp_path / "data" / "p1")
    write_series(tmp_path / "data" / "p1", np.zeros((6, 8, 9), np.int16), SeriesInstanceUID="1.1")
    with pytest.raises(DataError, match="no case is left"):
        run(images(tmp_path / "data", skip_bad=True))


def test_a_ct_that_was_scaled_slice_by_slice_is_bad(tmp_path: Path) -> None:
    write_series(tmp_path / "data" / "p1", SeriesInstanceUID="1.1", slope=[1, 1, 1, 2, 1, 1])
    write_series(tmp_path / "data" / "p2", SeriesInstanceUID="1.2", slope=[1, 1, 1, 2, 1, 1], Modality="PT")
    with pytest.raises(DataError, match=r"RescaleSlope differs from slice to slice in series .*: 1 to 2") as caught:
        run(images(tmp_path / "data"))
    assert "--series" not in caught.value.hint


def test_images_of_another_folder_are_not_taken_for_those_of_the_same_name(tmp_path: Path) -> None:
    for number, root in enumerate("AB"):
        file = tmp_path / root / "p1.mgh"
        file.parent.mkdir()
        values = np.random.default_rng(number).normal(size=SHAPE).astype(np.float32)
        nibabel.save(nibabel.MGHImage(values, np.eye(4)), file)
        os.utime(file, (1, 1))
    first = tmp_path / "raw" / "Dataset050_Unlabelled" / "imagesTr" / "p1_0000.nii.gz"
    run(images(tmp_path / "A", tmp_path / "B"))
    before = nibabel.load(first).get_fdata()
    # What is called B_p1 at first is called p1 then.
    run(replace(images(tmp_path / "B", tmp_path / "A"), remove_missing=True))
    assert not np.array_equal(nibabel.load(first).get_fdata(), before)
    for content in (b"", b"no image" * 99):
        (tmp_path / "B" / "p1.mgh").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*p1.mgh', it is damaged"):
            run(images(tmp_path / "B", tmp_path / "A"))


def test_cases_that_are_not_found_any_more_are_named_and_all_of_them_refused(folder: Path) -> None:
    run(images(folder))
    write(folder / "p3.nii.gz")
    shutil.rmtree(folder / "p1")
    assert run(images(folder)) == ["2 cases that were here before are not found now, and are removed: 'p1_a', 'p1_b'"]
    other = write(folder.parent / "other" / "x.nii.gz").parent
    with pytest.raises(DataError, match=r"has 2 cases .*, of which none is found now"):
        prepare_images([other], folder.parent / "raw", 50, "Unlabelled").pending()
    assert list(description(folder)["dataset"]) == ["p3", "p2_a"]


def test_what_was_written_stays_if_its_source_is_gone_or_bad_unless_that_is_asked_for(tmp_path: Path) -> None:
    """Whoever archives DICOM series after their conversion may have no other copy at hand."""
    for case in "abc":
        write(tmp_path / "data" / f"{case}.mhd")
    run(images(tmp_path / "data"))
    folder = images(tmp_path / "data").target
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    (tmp_path / "data" / "a.mhd").unlink()
    write(tmp_path / "data" / "d.mhd")
    with pytest.raises(DataError, match=r"Unlabelled' holds files of 1 cases whose .* not found now: 'a'$") as said:
        images(tmp_path / "data").pending()
    assert "--remove_missing" in said.value.hint
    assert {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()} == before
    write(tmp_path / "data" / "a.mhd")
    (tmp_path / "data" / "b.raw").write_bytes(b"cut")
    (tmp_path / "data" / "b.mhd").write_text((tmp_path / "data" / "b.mhd").read_text() + "\n")
    with pytest.raises(DataError, match=r"sources are bad now: 'b'$"):
        run(images(tmp_path / "data", skip_bad=True))
    assert all(path.read_bytes() == content for path, content in before.items() if path.parent.name == "imagesTr")
    (tmp_path / "data" / "c.mhd").unlink()
    *_, removed = run(replace(images(tmp_path / "data", skip_bad=True), remove_missing=True))
    assert removed == "1 cases that were here before are not found now, and are removed: 'c'"
    assert sorted(path.name[0] for path in (folder / "imagesTr").iterdir()) == ["a", "d"]


def test_a_variable_stands_for_all_images_of_a_scan_of_which_one_was_written(tmp_path: Path) -> None:
    for suffix, ending in (("t1", ".nii.gz"), ("flair", ".mhd")):
        write(tmp_path / "data" / f"p1_{suffix}{ending}")
    options = {"channels": {"T1": "_t1", "FLAIR": "_flair"}}
    run(images(tmp_path / "data", **options))
    run(images(tmp_path / "data", **options, variable="DATA"))
    assert description(tmp_path / "data")["dataset"]["p1"]["images"] == [
        "$DATA/p1_t1.nii.gz",
        "imagesTr/p1_0001.nii.gz",
    ]


def test_masks_are_referred_to_and_regions_are_turned_into_masks(folder: Path) -> None:
    body = np.zeros(SHAPE, np.uint8)
    body[1:4] = 5
    face = np.zeros(SHAPE, np.uint8)
    face[:, 0] = 1
    write(folder / "p1" / "a_face.nii.gz", face)
    run(images(folder, masks="_face"))
    assert description(folder)["dataset"]["p1_a"]["mask"] == str(folder / "p1" / "a_face.nii.gz")
    assert "mask" not in description(folder)["dataset"]["p1_b"]
    write(folder / "p1" / "a_body.nii.gz", body)
    conversion = images(folder, masks="_face", rois="_body")
    run(conversion)
    assert description(folder)["dataset"]["p1_a"]["mask"] == "masksTr/p1_a.nii.gz"
    written = sitk.GetArrayFromImage(sitk.ReadImage(conversion.target / "masksTr" / "p1_a.nii.gz"))
    np.testing.assert_array_equal(written, (face > 0) | (body == 0))
    check_dataset(conversion.target)
    write(folder / "p1" / "a_face.nii.gz", np.ones((4, 6, 7), np.uint8))
    with pytest.raises(DataError, match="case 'p1_a': shape of"):
        run(images(folder, masks="_face"))


def test_several_channels_are_several_files(tmp_path: Path) -> None:
    for case in ("p1", "p2"):
        for suffix in ("t1", "flair"):
            write(tmp_path / "data" / f"{case}_{suffix}.nii.gz")
    conversion = images(tmp_path / "data", channels={"T1": "_t1", "FLAIR": "_flair"})
    run(conversion)
    cases, rules = read_dataset(conversion.target)
    assert read_images(cases[0], rules).channels.shape == (2, *SHAPE)
    assert description(tmp_path / "data")["channel_names"] == {"0": "T1", "1": "FLAIR"}
    with pytest.raises(UsageError, match="do not tell the files of channels apart"):
        images(tmp_path / "data", channels={"T1": "", "T2": ""})
    with pytest.raises(UsageError, match="stands for one folder"):
        images(tmp_path / "data", tmp_path / "data", variable="DATA")


def test_a_ct_that_is_not_named_so_is_said(folder: Path) -> None:
    write(folder / "p1" / "a.nii.gz", np.linspace(-1000, 900, 210).reshape(SHAPE))
    write(folder / "p1" / "b.nii.gz", np.linspace(-1000, 900, 210).reshape(SHAPE))
    (said,) = run(images(folder))
    assert "2 of 3 images have values as a CT in HU" in said
    assert run(images(folder, channels={"CT": ""})) == []  # and is named without starting from scratch
    assert description(folder)["channel_names"] == {"0": "CT"}


def test_the_command_converts_and_says_what_is_next(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder / "p1" / "a_seg.nii.gz")
    monkeypatch.setenv("DATA", str(folder))
    argv = ["images", "-i", str(folder), "-o", str(folder.parent / "raw"), "-d", "50", "--name", "Unlabelled"]
    assert command.main([*argv, "--variable", "DATA", "-np", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.strip().endswith("Dataset050_Unlabelled")
    assert "1 label maps and masks, by their names, are left out: 'a_seg.nii.gz'" in err
    assert "3 scans found, of 2 subjects" in err
    assert "next: stunet_plan_and_preprocess -d 50" in err
    assert description(folder)["dataset"]["p1_a"]["images"] == ["$DATA/p1/a.nii.gz"]
    assert command.main([*argv, "--variable", "NO", "-np", "1"]) == 2


@pytest.mark.slow
def test_real_series_and_volumes_come_through_with_their_geometry(data: Path, tmp_path: Path) -> None:
    conversion = prepare_images([data / "ct", data / "mr"], tmp_path, 50, "Unlabelled")
    run(conversion)
    cases, rules = read_dataset(conversion.target)
    assert [case.name for case in cases] == ["abdomen_dicom", "thorax_1.5mm", "abdomen_mr"]
    segmentation = sitk.ReadImage(data / "ct" / "abdomen_dicom_reference_seg.nii.gz")
    image = sitk.ReadImage(cases[0].images[0])
    for one in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(sitk.DICOMOrient(image, "LPS"), one)() == pytest.approx(
            getattr(sitk.DICOMOrient(segmentation, "LPS"), one)(), abs=1e-3
        )
    assert [read_images(case, rules).channels.shape[0] for case in cases] == [1, 1, 1]
