"""What an experiment's folder says that candidates of a ranking reached."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from stunet.errors import DataError, UsageError
from stunet.experiment.arms import Arm, arm_of, arms, command, read_experiment, request
from stunet.experiment.finetuned import read_finetuned
from stunet.experiment.runs import DONE, FAILED, Record
from stunet.files import write_json

TEXT = """
dataset = 4
weights = { scratch = "none", "ours (best)" = "ours.pth", other = "other.pth" }
strategies = ["ramp"]
cases = [8]
seeds = [0, 1]
set = { num_epochs = 3 }
"""


def make(folder: Path, text: str = TEXT, left: int = 0) -> Path:
    """An experiment whose arms, but for the last ones, are done: its .toml file."""
    folder.mkdir(exist_ok=True)
    file = folder / "compare.toml"
    file.write_text(text)
    experiment = read_experiment(file)
    (folder / "compare").mkdir(parents=True)
    record = Record(folder / "compare")
    found = arms(experiment)
    for number, arm in enumerate(found):
        words = command(request(experiment, arm))
        if number >= len(found) - left:
            record.write(arm, words, FAILED)
            continue
        result = folder / "results" / "Dataset004_Hippocampus" / f"model_{number}" / f"fold_{number}"
        (result / "validation").mkdir(parents=True)
        write_json(result.parent / "dataset.json", {"labels": {"background": 0, "front": 1}})
        case = {"metrics": {"1": {"Dice": 0.5 + number / 100}}, "reference_file": "labels/case_1.nii.gz"}
        write_json(result / "validation" / "summary.json", {"metric_per_case": [case]})
        record.write(arm, words, DONE, folder=str(result))
    return file


def test_a_command_leads_back_to_its_arm(tmp_path: Path) -> None:
    text = TEXT.replace('"ramp"', '"ramp", "full"').replace("[8]", '[8, "all"]') + 'heads = ["slice"]\nsize = "S"\n'
    (tmp_path / "a.toml").write_text(text.replace("\nset =", "\nplans = 'P'\nset ="))
    experiment = read_experiment(tmp_path / "a.toml")
    for arm in arms(experiment):
        found = arm_of(shlex.split(shlex.join(command(request(experiment, arm)))), arm.name)
        assert found.name.strip("-") == arm.name.strip("-")
        assert replace(found, title=arm.title) == arm


def test_candidates_are_found_by_title_and_by_weights(tmp_path: Path) -> None:
    file = make(tmp_path)
    known = {"scratch": "scratch", "ours (best)": "ours (best)", "x/other.pth": "third", "other.pth": "third"}
    for path in (file, file.with_suffix("")):
        found, notes = read_finetuned(path, known)
        assert notes == []
        values = found["Dataset004_Hippocampus"]
        assert set(values) == {"scratch", "ours (best)", "third"}
        assert values["scratch"] == {"0": {"case_1.nii.gz": {"front": 0.5}}, "1": {"case_1.nii.gz": {"front": 0.53}}}
        assert values["third"]["0"] == {"case_1.nii.gz": {"front": 0.52}}


def test_unfinished_arms_are_told(tmp_path: Path) -> None:
    found, notes = read_finetuned(make(tmp_path, left=2), {})
    assert notes == ["compare: 4 of 6 arms are done"]
    assert set(found["Dataset004_Hippocampus"]["ours (best)"]) == {"0"}
    with pytest.raises(DataError, match="no arm is done"):
        read_finetuned(make(tmp_path / "none", left=6), {})


def test_one_of_several_strategies_and_numbers_of_cases_has_to_be_chosen(tmp_path: Path) -> None:
    file = make(tmp_path, TEXT.replace('"ramp"', '"ramp", "full"').replace("[8]", '[4, "all"]'))
    with pytest.raises(UsageError, match="differ: '4', 'all'"):
        read_finetuned(file, {})
    with pytest.raises(UsageError, match="differ: 'ramp', 'full'"):
        read_finetuned(file, {}, cases="all")
    with pytest.raises(UsageError, match="--arms linear"):
        read_finetuned(file, {}, "linear", "4")
    found, _ = read_finetuned(file, {}, "full", "4")
    ramp, _ = read_finetuned(file, {}, "ramp", "4")
    assert set(found["Dataset004_Hippocampus"]) == set(ramp["Dataset004_Hippocampus"])
    assert found["Dataset004_Hippocampus"]["other"] != ramp["Dataset004_Hippocampus"]["other"]


def test_two_trainings_of_one_candidate_are_refused(tmp_path: Path) -> None:
    file = make(tmp_path)
    # The same folder has arms of the values before.
    arm = Arm(title="other", weights=("other.pth",), strategy="ramp", head=None, cases=8, seed=0)
    record = Record(tmp_path / "compare")
    words = next(
        w for text in json.loads((tmp_path / "compare" / "arms.json").read_text()) for w in [shlex.split(text)]
    )
    older = [word.replace("num_epochs=3", "num_epochs=9") for word in words if word not in ("--pretrained",)]
    older[4:4] = ["--pretrained", "other.pth"]
    record.write(arm, older, DONE, folder=str(tmp_path / "results/Dataset004_Hippocampus/model_0/fold_0"))
    with pytest.raises(DataError, match="two trainings of other"):
        read_finetuned(tmp_path / "compare", {})
    read_finetuned(file, {})  # which knows the commands


def test_an_arm_that_is_not_a_command_of_ours_is_an_error(tmp_path: Path) -> None:
    write_json(tmp_path / "arms.json", {"stunet_train 1": {"state": "done", "arm": "a", "folder": "x"}})
    with pytest.raises(DataError, match="not a command of stunet_experiment"):
        read_finetuned(tmp_path, {})
