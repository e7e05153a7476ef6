"""Names that files give are names; what is written into a CSV file is no formula."""

import csv
import json
from pathlib import Path

import pytest

from stunet.datasets import read_dataset
from stunet.errors import DataError
from stunet.names import check_name, csv_cells, to_file_name
from stunet.results.statistics import Measurement, write_statistics
from tests.loops import for_each
from tests.merge_sources import describe, make_source

PATHS = [
    "/abs/x",
    "../x",
    "..",
    ".",
    ".hidden",
    "a/b",
    "a\\b",
    "",
    " ",
    "a\nb",
    "a\x00b",
    "\ud800",
    "n" * 224,
    "ü" * 112,
]
FINE = ["case_1", "patient 7", "s0011", "a.b-c", "Fälle 3", "n" * 223, "-1", "=x"]


@for_each("name", PATHS)
def test_paths_are_no_names(name: str) -> None:
    with pytest.raises(DataError, match=r"dataset\.json: case "):
        check_name(name, "case", "dataset.json")


@for_each("name", FINE)
def test_names_are(name: str) -> None:
    assert check_name(name, "case") == name


@for_each("name", ["/abs/x", "../x", "a/b", "a\nb", "n" * 300])
def test_a_case_that_would_be_written_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_source(tmp_path, "Dataset001_A", {"liver": ["liver"]})
    entry = {"images": ["imagesTr/case_0_0000.nii.gz"], "label": "labelsTr/case_0.nii.gz"}
    describe(folder, dataset={name: entry, "case_1": entry})
    with pytest.raises(DataError, match=r"dataset\.json': dataset\."):
        read_dataset(folder)


def test_a_file_ending_is_not_a_way_out(tmp_path: Path) -> None:
    folder = make_source(tmp_path, "Dataset001_A", {"liver": ["liver"]})
    describe(folder, file_ending="./../../x.nii.gz")
    with pytest.raises(DataError, match=r"file_ending: the ending .* is a path"):
        read_dataset(folder)


@for_each(
    ("text", "expected"),
    [
        ("GTV/CTV", "GTV_CTV"),
        ("../../x", "_.._x"),
        ("liver", "liver"),
        ("a\x00\ud800b", "a_b"),
        ("..", "_"),
        ("ü", "ü"),
    ],
)
def test_the_file_of_a_class_has_its_name_as_far_as_names_go(text: str, expected: str) -> None:
    assert to_file_name(text) == expected


def test_cells_that_a_spreadsheet_would_compute_are_text(tmp_path: Path) -> None:
    assert csv_cells(["=1+1", "+x", "-x", "@x", "\tx", "x=1", "", -1.5, 3, None]) == [
        *("'=1+1", "'+x", "'-x", "'@x", "'\tx", "x=1", "", -1.5, 3, None)
    ]
    row = Measurement(voxels=1, volume_mm3=2.0, touches_border=False, intensity=None)
    write_statistics(tmp_path, {"=case": {"@class": row}})
    with (tmp_path / "statistics.csv").open(newline="") as file:
        assert next(iter(list(csv.reader(file))[1:]))[:2] == ["'=case", "'@class"]
    assert list(json.loads((tmp_path / "statistics.json").read_text())) == ["=case"]


def test_a_case_is_not_called_like_the_labels_of_another() -> None:
    with pytest.raises(DataError, match="case 'p1_seg' ends with _seg"):
        check_name("p1_seg", "case")
    assert check_name("p1_seg", "dataset") == "p1_seg"
