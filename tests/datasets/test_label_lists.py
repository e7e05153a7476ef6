"""Lists of labels are read in all formats in which people have them, and every mistake in one is named."""

from pathlib import Path

import numpy as np
import pytest

from stunet.datasets.label_lists import read_labels, renumber
from stunet.errors import DataError, UsageError
from stunet.results.itksnap import write_itksnap_labels
from stunet.results.segmentation import Segmentation
from tests.loops import for_each

EXPECTED = {1: "liver", 4: "portal vein"}
FILES = {
    "itksnap.txt": "# ITK-SnAP Label Description File\n"
    '    0     0    0    0        0  0  0    "Clear Label"\n'
    '    1   255    0    0        1  1  1    "liver"\n'
    '    4     0  255    0     0.50  1  0    "portal vein"\n',
    "numbered.txt": "1 liver\n\n4: portal vein\n",
    "list.csv": "index,name,color\n0,background,\n1,liver,red\n4,portal vein,blue\n",
    "dseg.tsv": "index\tname\n1\tliver\n4\tportal vein\n",
    "semicolon.csv": "Name;Label\nliver;1\nportal vein;4\n",
    "names.json": '{"background": 0, "liver": 1, "portal vein": 4}',
    "values.json": '{"1": "liver", "4": "portal vein"}',
    "dataset.json": '{"labels": {"background": 0, "liver": 1, "portal vein": 4}, "channel_names": {}}',
    "own.toml": 'title = "own"\n[classes]\nliver = 1\n"portal vein" = 4\n',
}


@for_each("name", FILES)
def test_every_format_says_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    assert read_labels([str(tmp_path / name)]) == EXPECTED


def test_names_alone_are_numbered(tmp_path: Path) -> None:
    assert read_labels(["liver", "spleen"]) == {1: "liver", 2: "spleen"}
    assert read_labels(["liver"]) == {1: "liver"}
    (tmp_path / "names.txt").write_text("liver\nspleen\n# end\n")
    assert read_labels([str(tmp_path / "names.txt")]) == {1: "liver", 2: "spleen"}
    (tmp_path / "names.json").write_text('["liver", "spleen"]')
    assert read_labels([str(tmp_path / "names.json")]) == {1: "liver", 2: "spleen"}


def test_our_own_list_for_itk_snap_is_read_back(tmp_path: Path) -> None:
    names = {"liver": 1, "kidney_left": 2}
    dataset = {"labels": {"background": 0, **names}}
    empty = Segmentation.from_properties(np.zeros((2, 2, 2), np.uint8), {"spacing": [1, 1, 1]}, dataset)
    write_itksnap_labels(empty, tmp_path / "labels.txt")
    assert read_labels([str(tmp_path / "labels.txt")]) == {value: name for name, value in names.items()}


def test_values_become_consecutive_several_can_be_one_class_and_ignore_is_last() -> None:
    names = {2: "kidney", 7: "ignore", 5: "kidney", 9: "liver"}
    assert renumber(names) == (
        {"background": 0, "kidney": 1, "liver": 2, "ignore": 3},
        {0: 0, 2: 1, 5: 1, 7: 3, 9: 2},
    )


@for_each(
    ("name", "text", "message"),
    [
        ("none.txt", None, "no list of labels"),
        ("a.txt", "", "names no class"),
        ("a.txt", "1 liver\n1 spleen\n", "value 1 is 'liver' and 'spleen'"),
        ("a.txt", "1 background\n", "background is 1"),
        ("a.csv", "", r"no columns index and name \(there: nothing\)"),
        ("a.csv", "number,organ\n1,liver\n", r"no columns index and name \(there: 'number', 'organ'\)"),
        ("a.csv", "index,name\n1\n", "the line '1' with too few columns"),
        ("a.csv", "index,name\none,liver\n", "'liver' is 'one', not an integer"),
        ("a.csv", "index,name\n1,\n", "value '1' has the name ''"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "3", "is not a list of labels but a int"),
        ("a.json", '{"liver": 70000}', "'liver' is 70000, not an integer"),
        ("a.json", '{"liver": true}', "'liver' is True, not an integer"),
        ("a.json", '{"labels": {"background": 0, "both": [1, 2]}}', r"'both' is \[1, 2\], not an integer"),
        ("a.json", '{"ignore": 1}', "names no class"),
        ("a.toml", "x = 1", "unknown key 'x'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_labels([str(tmp_path / name)])
    assert caught.value.hint


def test_a_name_given_twice_and_a_file_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names 'liver' twice"):
        read_labels(["liver", "liver"])
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(DataError, match="cannot read"):
        read_labels([str(tmp_path / "a.txt")])
