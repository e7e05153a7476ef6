"""Finding and reading the plans of a dataset."""

from pathlib import Path

import pytest

from stunet import workspace
from stunet.errors import DataError
from stunet.files import write_json
from stunet.plans.files import list_planned, list_plans, plan_path, read_dataset_plan, read_plan

DATASET = "Dataset004_Hippocampus"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in workspace.VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    path = tmp_path / "nnUNet_preprocessed" / DATASET
    path.mkdir(parents=True)
    return path


def write_plan(folder: Path, name: str, **block: str) -> None:
    write_json(folder / f"{name}.json", {"stunet": block})


def test_the_plan_of_a_dataset_is_the_one_that_was_not_derived(folder: Path) -> None:
    with pytest.raises(DataError, match="no plans for Dataset004_Hippocampus"):
        plan_path(DATASET)
    write_plan(folder, "STUNetPlans_B")
    write_plan(folder, "STUNetPlans_L", derived_from="STUNetPlans_B")
    assert plan_path(DATASET).stem == "STUNetPlans_B"
    assert plan_path(DATASET, "STUNetPlans_L").stem == "STUNetPlans_L"
    write_plan(folder, "STUNetPlans_S")
    with pytest.raises(DataError, match="has 2 plans: STUNetPlans_B, STUNetPlans_S"):
        plan_path(DATASET)
    with pytest.raises(DataError, match="no plans 'STUNetPlans_H'"):
        plan_path(DATASET, "STUNetPlans_H")
    assert list_planned(DATASET) == ["STUNetPlans_B", "STUNetPlans_S"]
    assert list_plans(DATASET) == ["STUNetPlans_B", "STUNetPlans_L", "STUNetPlans_S"]


def test_a_stray_file_beside_the_plans_is_passed_over(folder: Path) -> None:
    write_plan(folder, "STUNetPlans_B")
    write_json(folder / "nnUNetPlans.json", {"plans_name": "nnUNetPlans"})
    (folder / "notes.json").write_text('{"a": 1,}')
    assert list_plans(DATASET) == ["STUNetPlans_B"]


def test_a_plan_is_written_as_it_was_read(folder: Path) -> None:
    content = {"plans_name": "P", "of_tomorrow": {"x": [1, 2.5]}, "configurations": {"2d": {"batch_size": 2}}}
    write_json(folder / "P.json", content)
    plan = read_plan(folder / "P.json")
    write_json(folder / "Q.json", plan.to_json())
    assert (folder / "Q.json").read_bytes() == (folder / "P.json").read_bytes()


def test_what_is_wrong_in_a_plan_is_named_when_it_is_read(folder: Path) -> None:
    write_json(folder / "P.json", {"configurations": {"2d": {"batch_size": "many"}}})
    with pytest.raises(DataError, match=r"configurations\.2d.batch_size: expected an integer"):
        read_plan(folder / "P.json")


def test_a_copy_with_the_names_of_others_is_refused(folder: Path) -> None:
    content = {"plans_name": "P", "dataset_name": DATASET, "configurations": {"2d": {"batch_size": 2}}}
    for name in ("P", "Q"):
        write_json(folder / f"{name}.json", content)
    assert read_dataset_plan(folder / "P.json").name == "P"
    with pytest.raises(DataError, match=r"has the plans_name 'P', as P\.json has: their results would be mixed"):
        read_dataset_plan(folder / "Q.json")
    (folder / "P.json").unlink()
    assert read_dataset_plan(folder / "Q.json").name == "P"
    write_json(folder / "Q.json", {**content, "dataset_name": "Dataset001_Other"})
    with pytest.raises(DataError, match="are plans of Dataset001_Other: its data would be taken"):
        read_dataset_plan(folder / "Q.json")
