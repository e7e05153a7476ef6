"""Lists of images: which cases the lines are, and what is wrong with a line."""

import os
from pathlib import Path

import pytest

from stunet.errors import DataError
from stunet.inference.cases import InputCase
from stunet.inference.index import Index, stamp
from stunet.inference.lists import is_list, listed_cases
from stunet.inference.model import ModelFolder, open_model
from stunet.parts import WHOLE
from tests.loops import for_each
from tests.predictor_models import make_model, write_dicom


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ModelFolder]:
    """Models of one and of two channels."""
    folder = tmp_path_factory.mktemp("models")
    return {n: open_model(make_model(folder / f"T__P{n}__3d_fullres", channels=n)) for n in (1, 2)}


def test_lines_of_text_are_images_of_any_folder_that_are_not_looked_for(
    tmp_path: Path, models: dict[int, ModelFolder]
) -> None:
    source = tmp_path / "scans.txt"
    source.write_text("# what came today\n/data/p2/b_0000.nii.gz\n\n  p1/a.nii.gz\nc.nrrd\n")
    assert is_list(source)
    assert not is_list(tmp_path)
    cases = listed_cases(source, models[1])
    assert [(case.name, case.files) for case in cases] == [
        ("a", (tmp_path / "p1/a.nii.gz",)),
        ("b", (Path("/data/p2/b_0000.nii.gz"),)),
        ("c", (tmp_path / "c.nrrd",)),
    ]
    assert not any(case.error for case in cases)


def test_columns_are_channels_names_and_folders(tmp_path: Path, models: dict[int, ModelFolder]) -> None:
    source = tmp_path / "scans.csv"
    source.write_text("﻿name,image_t1,output,image_t2,age\np1,a/t1.nii.gz,site/b,a/t2.nii.gz,7\np0,x.png,,y.png,\n")
    bad, case = listed_cases(source, models[2])
    assert (case.name, case.subfolder) == ("p1", "site/b")
    assert case.files == (tmp_path / "a/t1.nii.gz", tmp_path / "a/t2.nii.gz")
    assert case.place(Path("out")) == Path("out/site/b")
    assert bad.place(Path("out")) == Path("out")
    assert "is neither a folder nor an image that this model's reader takes" in str(bad.error)
    source.write_text("image,name\nall.nii.gz,p1\n")  # a file may hold all channels
    assert listed_cases(source, models[2])[0].files == (tmp_path / "all.nii.gz",)


def test_a_folder_of_dicom_slices_is_a_line(tmp_path: Path, models: dict[int, ModelFolder]) -> None:
    write_dicom(tmp_path / "patient")
    (tmp_path / "scans.csv").write_text("image,name\npatient,p1\n")
    (case,) = listed_cases(tmp_path / "scans.csv", models[1])
    assert (case.name, case.files, case.is_dicom) == ("p1", (tmp_path / "patient",), True)
    assert case.series


@for_each(
    ("file", "content", "message"),
    [
        ("a.txt", "a.nii.gz\nb/a.nii.gz\n", "line 2 of .*: case 'a' is in line 1 as well"),
        ("a.txt", "# nothing\n", "no image in"),
        ("a.csv", "imgae,name\na.nii.gz,a\n", "no column 'image'; did you mean 'imgae'"),
        ("a.csv", "", "no column 'image'"),
        ("a.csv", "image,name\na.nii.gz,../a\n", "line 2 of .*: name '../a' is a path"),
        ("a.csv", "image,name\n,a\n", "line 2 of .* lacks an image"),
        ("a.csv", "image,output\na.nii.gz,../x\n", "'../x' does not lie below the folder of the results"),
        ("a.csv", "image,output\na.nii.gz,/x\n", "'/x' does not lie below"),
        ("a.csv", "image,output\na.nii.gz,.stunet\n", "'.stunet' does not lie below"),
        ("a.csv", "image_0,image_1,image_2\na.nii.gz,b.nii.gz,c.nii.gz\n", "has 3 images, and the model takes 1"),
        ("a.csv", b"image\n\xff\n", "cannot read"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(
    file: str, content: str | bytes, message: str, tmp_path: Path, models: dict[int, ModelFolder]
) -> None:
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        listed_cases(tmp_path / file, models[1])
    assert caught.value.hint


def test_failures_are_a_list_with_the_cases_as_they_were(tmp_path: Path, models: dict[int, ModelFolder]) -> None:
    one, two = (tmp_path / "all.nii.gz",), (tmp_path / "=t1.nii.gz", tmp_path / "t2.nii.gz")
    cases = [InputCase("-a", one, subfolder="@site", shard="f8"), InputCase("b", two)]
    index = Index(tmp_path / "out", WHOLE)
    with index.begin() as log:
        for case in cases:
            index.add(log, case, stamp(case), case.place(index.folder), 1.0, {}, DataError("damaged", "=another"))
    assert index.write_tables(["b"]) == 1
    (header, *rows) = (tmp_path / "out/failed.csv").read_text().splitlines()
    assert header == "image_0,image_1,name,output,error,try"
    assert rows == [f"{one[0]},,-a,@site,damaged,'=another", f"{two[0]},{two[1]},b,,damaged,'=another"]
    lines = (tmp_path / "out/index.csv").read_text().splitlines()
    assert [line.split(",")[-4:-1] for line in lines[1:]] == [["", str(one[0]), ""], ["", *map(str, two)]]


def test_an_equal_file_of_another_folder_is_another_input(tmp_path: Path) -> None:
    cases = [InputCase("a", (tmp_path / folder / "ct.nii.gz",)) for folder in ("one", "two")]
    for case in cases:
        case.files[0].parent.mkdir()
        case.files[0].write_bytes(b"1")
        os.utime(case.files[0], ns=(1, 1))
    index, before = Index(tmp_path, WHOLE), stamp(cases[0])
    (tmp_path / "a.nii.gz").write_bytes(b"result")
    with index.begin() as log:
        index.add(log, cases[0], before, tmp_path / "a.nii.gz", 1.0, {}, None)
    known = index.known()["a"]
    assert index.is_done(known, cases[0], tmp_path / "a.nii.gz")
    assert not index.is_done(known, cases[1], tmp_path / "a.nii.gz")
