"""Is it noticed when data, folds or results were made from something else than what is asked for, and only then?"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stunet.cli.shown import Shown
from stunet.errors import DataError, WeightsError
from stunet.files import read_json, write_json
from stunet.plans.derive import derive
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import preprocess
from stunet.preprocessing.folds import find_fold
from stunet.provenance import (
    check_checkpoint,
    check_model,
    check_result,
    check_training,
    seen_in_training,
    training_record,
)
from stunet.runs.launch import Run, forget
from stunet.runs.readiness import check_data
from stunet.runs.training import remaining
from stunet.trainers.supervised import STUNetTrainer
from stunet.weights.checkpoints import load_checkpoint
from tests.loops import for_each
from tests.phantom_copy import CASES, FOLDS, change, check, plans_of, write_image


def record(pre: Path, fold: int = 0) -> dict:
    plans = plans_of(pre)
    cases = find_fold(pre.name, Plan(plans), "3d_fullres", fold)
    assert cases is not None
    return training_record(pre.name, Plan(plans), "3d_fullres", fold, cases)


def test_weights_tell_which_cases_they_were_trained_on(tmp_path: Path) -> None:
    weights, cases = tmp_path / "checkpoint_final.pth", {"Dataset050_A": ["p1", "p2"], "Dataset051_B": ["p1", "p3"]}
    assert seen_in_training(weights, cases) == []
    own = {"dataset": "Dataset050_A", "configuration": "3d_fullres", "fold": "all", "val": [], "made_from": {}}
    for content, seen in (
        ({"train": ["p2", "p3"]}, ["p2"]),
        ({"train": ["Dataset050_A.p2", "Dataset051_B.p1"], "datasets": list(cases)}, ["p1", "p2"]),
    ):
        write_json(tmp_path / "made_from.json", {**own, **content})
        assert seen_in_training(weights, cases) == seen
    (tmp_path / "made_from.json").write_text("{}")  # somebody else's
    assert seen_in_training(weights, cases) == []


Change = Callable[[dict], None]


def _swap(fold: dict) -> None:
    fold["train"], fold["val"] = CASES[2:], CASES[:2]


def _less_training(fold: dict) -> None:
    fold["train"] = CASES[:3]


def _less_validation(fold: dict) -> None:
    fold["val"] = CASES[5:]


@for_each(
    ("edit", "goes_on", "message"),
    [
        (
            _swap,
            True,
            r"was trained with 2 cases that fold 0 of splits_final.json validates with \(e.g. 'phantom_000'\)",
        ),
        (_swap, False, r"was trained with 2 cases that fold 0"),
        (_less_training, True, r"was trained with other cases than fold 0 .* train: 1 gone \(e.g. 'phantom_003'\)"),
        (_less_training, False, None),
        (_less_validation, True, None),
        (_less_validation, False, None),
    ],
)
def test_folds_that_changed_since_a_training_began(pre: Path, edit: Change, goes_on: bool, message: str | None) -> None:
    before = json.loads(json.dumps(record(pre)))
    assert check_training("x", before, record(pre), goes_on) == []
    folds = json.loads(json.dumps(FOLDS))
    edit(folds[0])
    write_json(pre / "splits_final.json", folds)
    if message is None:
        assert len(check_training("x", before, record(pre), goes_on)) == 1
        return
    with pytest.raises(DataError, match=message) as caught:
        check_training("x", before, record(pre), goes_on)
    assert "--overwrite" in caught.value.hint


def test_data_that_changed_since_a_training_began(pre: Path, raw: Path) -> None:
    before = record(pre)
    write_image(raw / "imagesTr" / "phantom_003_0000.nii.gz", 1)
    preprocess(pre.name, Plan(plans_of(pre)), ["3d_fullres"], workers=1)
    assert check(pre) == []
    with pytest.raises(DataError, match=r"with other raw files of 1 cases \(e.g. 'phantom_003'\)"):
        check_training("x", before, record(pre), goes_on=True)
    [warning] = check_training("x", before, record(pre), goes_on=False)
    assert "'phantom_003'" in warning
    unknown = {**before, "made_from": {c: [[size, None] for size, _ in f] for c, f in record(pre)["made_from"].items()}}
    assert check_training("x", unknown, record(pre), goes_on=True) == []
    [warning] = check_training("x", None, record(pre), goes_on=True)
    assert "does not say which cases" in warning


def test_a_checkpoint_of_another_fold_or_other_labels_is_refused(pre: Path) -> None:
    description = read_json(pre / "dataset.json")
    arguments = {"fold": 1, "dataset_json": description}
    check_checkpoint("x", arguments, 1, description)
    check_checkpoint("x", {}, 1, description)
    with pytest.raises(WeightsError, match="x is of fold 1, not of fold 0"):
        check_checkpoint("x", arguments, 0, description)
    other = {**description, "labels": {**description["labels"], "liver": 9}}
    with pytest.raises(WeightsError, match=r"another dataset.json: labels.liver"):
        check_checkpoint("x", arguments, 1, other)


def trainer_of(pre: Path, fold: int) -> STUNetTrainer:
    description = read_json(pre / "dataset.json")
    short = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "batch_size": 2}
    plans = derive(Plan(plans_of(pre)), description, stages=3, overrides=short).to_json()
    return STUNetTrainer(plans, "3d_fullres", fold, description, torch.device("cpu"))


def test_a_checkpoint_goes_on_only_with_the_fold_and_the_cases_that_it_has_seen(pre: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    first = trainer_of(pre, 0)
    first.initialize()
    first.save_checkpoint(str(path))
    trainer_of(pre, 0).load_checkpoint(str(path))
    with pytest.raises(WeightsError, match="is of fold 0, not of fold 1"):
        trainer_of(pre, 1).load_checkpoint(str(path))
    write_json(pre / "splits_final.json", FOLDS[::-1])
    for only_validates in (True, False):
        trainer = trainer_of(pre, 0)
        trainer.configure(only_validates=only_validates)
        with pytest.raises(DataError, match="was trained with 2 cases that fold 0"):
            trainer.load_checkpoint(str(path))
    with pytest.raises(DataError, match="there is no fold 2"):  # nnU-Net would make a random one
        trainer_of(pre, 2).do_split()


def test_a_checkpoint_without_a_record_goes_on_with_a_warning(pre: Path) -> None:
    first = trainer_of(pre, 0)
    first.initialize()
    first.save_checkpoint(str(pre / "checkpoint_latest.pth"))
    content = load_checkpoint(pre / "checkpoint_latest.pth")
    del content["stunet"]["trained_with"]
    resumed, said = trainer_of(pre, 0), list[str]()
    resumed.listener.warning = said.append  # type: ignore[method-assign]
    resumed.load_checkpoint(content)
    assert [text for text in said if "does not say which cases it was trained with" in text] == said != []
    resumed.save_checkpoint(str(pre / "checkpoint_latest.pth"))
    said.clear()
    resumed.load_checkpoint(str(pre / "checkpoint_latest.pth"))  # to go on once does not make it known
    assert said


def test_a_model_predicts_with_the_plans_that_it_was_trained_with(pre: Path) -> None:
    plans, description = plans_of(pre), read_json(pre / "dataset.json")
    path, arguments = Path("fold_0/checkpoint_final.pth"), {"fold": 0, "plans": plans, "dataset_json": description}

    def warnings(plans: dict = plans, fold: int = 0, **labels: int) -> list[str]:
        now = {**description, "labels": {**description["labels"], **labels}}
        return check_model(path, arguments, Plan(plans), "3d_fullres", fold, now)

    assert warnings() == []
    assert check_model(path, {"configuration": "3d_fullres"}, Plan(plans), "3d_fullres", 0, description) == []
    assert "was trained as fold 0" in warnings(fold=1)[0]
    again = json.loads(json.dumps(plans))
    again["configurations"]["3d_fullres"]["spacing"][0] = 9.0
    with pytest.raises(WeightsError, match=r"other settings than plans.json says: spacing\[0\]: .* -> 9.0"):
        warnings(plans=again)
    ours = {**plans["stunet"], "orientation": "LPS"}
    arguments["plans"] = {**plans, "stunet": ours}
    assert warnings(plans={**plans, "stunet": {**ours, "orientation": None}}) == []
    with pytest.raises(WeightsError, match="trained on images turned to LPS"):
        warnings(plans={**plans, "stunet": {**ours, "orientation": "RAS"}})
    with pytest.raises(WeightsError, match=r"other labels than dataset.json says: labels.liver|: liver: "):
        warnings(liver=9)
    values = description["labels"]
    with pytest.raises(WeightsError, match="other labels"):  # the same values, for other classes
        warnings(liver=values["spleen"], spleen=values["liver"])
    other_reader = {**plans, "image_reader_writer": "NibabelIO"}
    assert "image_reader_writer" in warnings(plans=other_reader)[0]


def test_the_order_of_regions_is_that_of_the_heads_rows(pre: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    one = {**read_json(pre / "dataset.json"), "labels": labels, "regions_class_order": [1, 2]}
    other = {**one, "labels": dict(sorted(labels.items()))}
    renamed = {**one, "labels": {"background": 0, "all": [1, 2], "inner": [2]}}
    path, arguments = Path("fold_0/checkpoint_final.pth"), {"fold": 0, "dataset_json": one}
    for now in (other, {**one, "regions_class_order": [2, 1]}):
        with pytest.raises(WeightsError, match="another order of regions"):
            check_model(path, arguments, Plan({}), "3d_fullres", 0, now)
        with pytest.raises(WeightsError, match=r"another dataset\.json"):
            check_checkpoint("x", arguments, 0, now)
    assert "other labels" in check_model(path, arguments, Plan({}), "3d_fullres", 0, renamed)[0]


def test_a_training_that_starts_again_forgets_what_it_handed_to_the_next_stage(pre: Path) -> None:
    run = Run(pre.name, Plan(plans_of(pre)), "3d_fullres", 0, device="cpu")
    folder = run.folder.parent / "predicted_next_stage" / "3d_cascade_fullres"
    folder.mkdir(parents=True)
    for name in CASES:
        (folder / f"{name}.b2nd").touch()
    forget(run)
    assert sorted(path.stem for path in folder.iterdir()) == sorted(CASES[:4])


def test_results_of_other_data_are_not_todays(pre: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "R" / "fold_0"
    folder.mkdir(parents=True)
    assert check_result(folder) == []
    write_json(folder.parent / "plans.json", plans_of(pre))
    write_json(folder / "made_from.json", record(pre))
    assert check_result(folder) == []
    write_json(pre / "splits_final.json", [{"train": CASES[:4], "val": CASES[4:5]}])
    assert "val: 1 gone (e.g. 'phantom_005')" in check_result(folder)[0]
    write_json(pre / "splits_final.json", FOLDS[::-1])
    assert "was trained with 2 cases" in check_result(folder)[0]
    write_json(pre / "splits_final.json", FOLDS[:1])
    change(folder / "made_from.json", fold=3)
    assert "there is no fold 3" in check_result(folder)[0]


def test_results_of_data_that_were_preprocessed_again_in_another_way_are_not_todays(pre: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "R" / "fold_0"
    folder.mkdir(parents=True)
    before = plans_of(pre)
    before["configurations"]["3d_fullres"]["spacing"] = [9.0, 9.0, 9.0]
    write_json(folder.parent / "plans.json", before)
    write_json(folder / "made_from.json", record(pre))
    assert "on data of other settings than today's: spacing" in check_result(folder)[0]


def finished(pre: Path, plans: dict) -> Run:
    """A run whose fold is trained and validated."""
    run = Run(pre.name, Plan(plans), "3d_fullres", 0, device="cpu", resume=True)
    (run.folder / "validation").mkdir(parents=True)
    (run.folder / "checkpoint_final.pth").touch()
    write_json(run.folder / "validation" / "summary.json", {})
    write_json(run.folder.parent / "plans.json", plans)
    write_json(run.folder / "made_from.json", record(pre))
    return run


def test_a_finished_fold_is_not_done_for_other_plans_of_the_same_name(pre: Path) -> None:
    run = finished(pre, plans_of(pre))
    plans = plans_of(pre)
    plans["configurations"]["3d_fullres"]["batch_size"] = 7
    with pytest.raises(DataError, match=r"with other plans than today's \(.*batch_size"):
        remaining(replace(run, plan=Plan(plans)), Shown())


def test_a_finished_fold_is_done_only_for_the_folds_of_its_training(
    pre: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(pre, plans_of(pre))
    assert remaining(run, Shown()) is None
    assert "nothing to do" in capsys.readouterr().err
    write_json(pre / "splits_final.json", FOLDS[::-1])
    with pytest.raises(DataError, match=r"trained and validated, but .* was trained with 2 cases") as caught:
        remaining(run, Shown())
    assert "--overwrite" in caught.value.hint
    forget(run)
    assert remaining(run, Shown()) == run
    assert not (run.folder / "made_from.json").exists()


def test_a_finished_fold_is_validated_again_for_what_the_next_stage_lacks(pre: Path) -> None:
    plans = plans_of(pre)
    plans["configurations"]["3d_fullres"]["next_stage"] = "next"
    plans["configurations"]["next"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_fullres"}
    run = finished(pre, plans)
    left = remaining(run, Shown())
    assert left is not None
    assert (left.only_validate, left.resume) == (True, False)
    with pytest.raises(DataError, match=r"next needs predictions of 3d_fullres; 6 are missing") as caught:
        check_data(pre.name, Plan(plans), "next", 0)
    assert caught.value.hint.startswith("stunet_train 998 3d_fullres 0 -p STUNetPlans_T --val, which predicts them")
    handed_over = run.folder.parent / "predicted_next_stage" / "next"
    handed_over.mkdir(parents=True)
    for case in CASES[4:]:
        (handed_over / f"{case}.b2nd").touch()
    assert remaining(run, Shown()) is None
