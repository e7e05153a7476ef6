"""Everything in a folder that looks like an image is listed, hidden files are not."""

import os
from pathlib import Path

import pytest

from stunet.datasets.listing import ending_of, is_dicom, list_images, named
from stunet.errors import DataError
from tests.loops import for_each


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images_slices_and_folders_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.NRRD", "._b.nii.gz", ".part-7-b.nii.gz", "Thumbs.db", "b.json", "b_preview.png")
    touch(tmp_path, "pair.hdr", "pair.img", "alone.img", "one.dcm", "series/2.IMA", "deep/er/x.mha", "empty/y.txt")
    (tmp_path / "two").write_bytes(bytes(128) + b"DICM")
    found = list_images(tmp_path)
    files = [(image.path.name, image.name, image.ending) for image in found.images]
    assert files == [
        ("a.NRRD", "a", ".nrrd"), ("alone.img", "alone", ".img"), ("b.nii.gz", "b", ".nii.gz"),
        ("pair.hdr", "pair", ".hdr"),
    ]  # fmt: skip
    assert found.slices == [tmp_path / "one.dcm", tmp_path / "two"]
    assert (found.series, found.folders) == ([tmp_path / "series"], [tmp_path / "deep"])
    assert [path.name for path in found.others([".nii.gz", ".nrrd"])] == [
        "alone.img", "deep", "one.dcm", "pair.hdr", "series", "two",
    ]  # fmt: skip


def test_pictures_are_images_only_where_pictures_are_wanted(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.BMP")
    assert list_images(tmp_path).images == []
    assert [image.ending for image in list_images(tmp_path, ".png").images] == [".png", ".bmp"]


@for_each(
    ("name", "wanted", "ending"),
    [
        ("a.nii.gz", ".nii.gz", ".nii.gz"),
        ("a.NII.gz", ".nii.gz", ".nii.gz"),
        ("a.seg.nrrd", ".nrrd", ".nrrd"),
        ("a.seg.nrrd", ".nii.gz", ".seg.nrrd"),
        ("a.gz", ".nii.gz", ""),
        ("a.abc", ".abc", ".abc"),
    ],
)
def test_the_ending_that_is_wanted_goes_before_the_longest(name: str, wanted: str, ending: str) -> None:
    assert ending_of(name, wanted) == ending


def test_a_folder_that_is_not_utf8_is_refused_and_one_that_is_missing_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"Patient M\xfcller")
    folder.mkdir()
    with pytest.raises(DataError, match="not UTF-8"):
        list_images(folder)
    assert list_images(tmp_path / "missing").images == []
    assert is_dicom(tmp_path / "missing") is False


def test_the_first_names_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    assert named(tmp_path / name for name in "abcde") == "'a', 'b', 'c' and 2 more"
