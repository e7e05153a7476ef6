"""CSV files of targets and points: what they may look like, and what is wrong with them."""

from pathlib import Path

import pytest

from stunet.errors import DataError
from stunet.probing.tables import CLASSIFICATION, REGRESSION, check_cases, read_points, read_targets


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_targets_are_classes_or_numbers_by_their_values(tmp_path: Path) -> None:
    lines = "\n".join(f"c{n};{'ab'[n % 2]};{n % 3};{n / 7:.3f};{n}" for n in range(12))
    path = written(tmp_path / "t.csv", f"Case;Kind;Grade;Volume;Age\n{lines}\n\n")
    found = {target.name: target for target in read_targets(path)}
    tasks = [CLASSIFICATION, CLASSIFICATION, REGRESSION, REGRESSION]
    assert {name: target.task for name, target in found.items()} == dict(
        zip(("kind", "grade", "volume", "age"), tasks, strict=True)
    )
    assert found["age"].values["c5", ""] == 5.0
    assert [target.name for target in read_targets(path, ["Grade"], REGRESSION)] == ["grade"]


def test_a_value_that_is_missing_is_no_class(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "case,subject,grade,age\na,NA,1,nan\nb,p,NA,3.5\nc,p,0,\n")
    grade, age = read_targets(path)
    assert grade.values == {("a", ""): "1", ("c", ""): "0"}
    assert (age.task, age.values) == (REGRESSION, {("b", ""): 3.5})
    assert grade.subjects == {"b": "p", "c": "p"}


def test_what_is_wrong_with_a_table_is_named(tmp_path: Path) -> None:
    for text, message in (
        ("", "no column 'case'"),
        ("case\na\n", "no column with a target"),
        ("case,y\n", "no line besides"),
        ("case,y\na,1\na,2\n", "line 3 .* has two values of 'y'"),
        ("case,y\na,\n", "the column 'y' is empty"),
        ("case,y\na,1,2\n", "line 2 .* has 3 cells for 2 columns"),
        ("case,y\n,1\n", "line 2 .* names no case"),
        ("case,y,y\na,1,1\n", "two columns of one name"),
        ("case,subject,name,y\na,s,1,1\na,t,2,1\n", "is of 't' and of 's'"),
        ("case,name,y\na,1,1\nb,,1\n", "`name` is empty in some lines"),
    ):
        with pytest.raises(DataError, match=message):
            read_targets(written(tmp_path / "t.csv", text))
    with pytest.raises(DataError, match="no column 'agee'; did you mean 'age'"):
        read_targets(written(tmp_path / "t.csv", "case,age\na,1\n"), ["agee"])
    with pytest.raises(DataError, match="'old' of case 'a' in 'age' is not a number"):
        read_targets(written(tmp_path / "t.csv", "case,age\na,old\n"), task=REGRESSION)
    with pytest.raises(DataError, match="no file"):
        read_targets(tmp_path / "nowhere.csv")


def test_points_have_names_or_get_numbers(tmp_path: Path) -> None:
    found = read_points(written(tmp_path / "p.csv", "case,x,y,z\na,1,2,3\na,4,5,6\nb,0,0,-1.5\n"))
    assert found["a"].names == ("1", "2")
    assert found["b"].at == ((0.0, 0.0, -1.5),)
    for text, message in (
        ("case,x,y,z\na,1,2,three\n", "line 2 .* are not three numbers"),
        ("case,x,y,z,name\na,1,2,3,p\na,1,2,3,p\n", "line 3 .* has two points 'p'"),
        ("case,x,y\na,1,2\n", "no column 'z'"),
    ):
        with pytest.raises(DataError, match=message):
            read_points(written(tmp_path / "p.csv", text))


def test_cases_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the case 'case_01', .* nor 1 others; did you mean 'case_1'"):
        check_cases(["case_01", "x", "case_1"], ["case_1"], tmp_path / "t.csv", tmp_path)
