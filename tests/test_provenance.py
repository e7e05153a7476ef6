"""Is it noticed when data, folds or results were made from something else than what is asked for, and only then?"""

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
import torch

from stunet import workspace
from stunet.cli.plan_and_preprocess import main as plan_and_preprocess
from stunet.cli.shown import Shown
from stunet.errors import DataError, WeightsError
from stunet.files import read_json, write_json
from stunet.folds import Fold
from stunet.plans.derive import derive
from stunet.plans.plan import Plan
from stunet.preprocessing import checks
from stunet.preprocessing.checks import repair_commands
from stunet.preprocessing.dataset import pending_cases, preprocess, read_manifest, stale_cases
from stunet.preprocessing.folds import find_fold
from stunet.provenance import check_checkpoint, check_model, check_result, check_training, training_record
from stunet.runs.launch import Run, forget
from stunet.runs.readiness import check_data
from stunet.runs.training import remaining
from stunet.trainers.supervised import STUNetTrainer
from stunet.weights.checkpoints import load_checkpoint
from tests.loops import for_each

CASES = [f"phantom_{number:03d}" for number in range(6)]
FOLDS = [{"train": CASES[:4], "val": CASES[4:]}, {"train": CASES[2:], "val": CASES[:2]}]
REDO = "stunet_plan_and_preprocess -d 998 -c 3d_fullres -p STUNetPlans_T"
REPLAN = "stunet_plan_and_preprocess -d 998 -c 3d_fullres --size T"


@pytest.fixture
def pre(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the preprocessed phantom; a copy of the raw one is there, too."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(workspace.folder(variable) / planned, tmp_path / variable / planned)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    folder = tmp_path / "nnUNet_preprocessed" / planned
    write_json(folder / "splits_final.json", FOLDS)
    return folder


@pytest.fixture
def raw(pre: Path) -> Path:
    """The copy of the raw phantom."""
    return workspace.raw_dataset(pre.name)


def plans_of(pre: Path) -> dict:
    return read_json(pre / "STUNetPlans_T.json")


def check(pre: Path, fold: int | str = 0, plans: dict | None = None) -> list[str]:
    return check_data(pre.name, Plan(plans or plans_of(pre)), "3d_fullres", fold)


def refused(pre: Path, message: str, hint: str, **options: Any) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check(pre, **options)
    assert caught.value.hint.startswith(hint), caught.value.hint


def change(path: Path, **values: Any) -> None:
    write_json(path, {**read_json(path), **values})


def test_data_as_they_were_made_are_taken_without_a_word(pre: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(pre) == []
    assert check(pre, "all") == []
    derived = derive(Plan(plans_of(pre)), read_json(pre / "dataset.json"), size="S", overrides={"num_epochs": 3})
    assert check(pre, plans=derived.to_json()) == []
    monkeypatch.delenv("nnUNet_raw")
    assert check(pre) == []


@for_each(
    ("where", "value", "message"),
    [
        (("configurations", "3d_fullres", "spacing", 0), 9.0, r"spacing\[0\]: [0-9.]+ -> 9.0"),
        (("configurations", "3d_fullres", "normalization_schemes", 0), "NoNormalization", r"schemes\[0\]: "),
        (("configurations", "3d_fullres", "resampling_fn_data_kwargs", "order"), 1, r"kwargs.order: 3 -> 1"),
        (("transpose_forward", 0), 2, r"transpose_forward\[0\]: 0 -> 2"),
    ],
)
def test_plans_that_the_data_were_not_made_by_are_refused(pre: Path, where: tuple, value: object, message: str) -> None:
    plans = plans_of(pre)
    part: Any = plans
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    refused(pre, f"preprocessed with other settings than those of STUNetPlans_T: .*{message}", REDO, plans=plans)


def test_intensities_count_where_a_normalization_looks_at_them(pre: Path) -> None:
    plans, manifest = plans_of(pre), pre / "STUNetPlans_3d_fullres" / ".stunet" / "manifest.json"
    scheme = plans["configurations"]["3d_fullres"]["normalization_schemes"]
    plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = -3.0
    settings = read_json(manifest)["settings"]
    for name, other in (("ZScoreNormalization", False), ("CTNormalization", True)):
        scheme[0] = name
        change(manifest, settings={**settings, "normalization_schemes": [name]})
        if other:
            refused(pre, r"per_channel.0.mean: ", REDO, plans=plans)
        else:
            assert check(pre, plans=plans) == []


def test_labels_that_changed_are_refused_in_raw_and_in_preprocessed_data(pre: Path, raw: Path) -> None:
    labels = read_json(raw / "dataset.json")["labels"]
    swapped = {**labels, "spleen": labels["liver"], "liver": labels["spleen"]}
    change(raw / "dataset.json", labels=swapped)
    refused(pre, "dataset.json of Dataset998_Phantom has changed since it was planned: labels.liver", REPLAN)
    change(pre / "dataset.json", labels=swapped)  # as planning alone leaves it
    refused(pre, "other settings than those of STUNetPlans_T: labels.liver", REDO)
    change(raw / "dataset.json", labels=labels, description="of no meaning")
    change(pre / "dataset.json", labels=labels)
    assert check(pre) == []


def write_image(path: Path, seed: int) -> None:
    image = nibabel.load(path)
    noise = np.random.default_rng(seed).normal(size=image.shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(noise, image.affine), path)


def test_a_changed_image_or_label_is_noticed_and_a_copy_is_not(pre: Path, raw: Path) -> None:
    image, label = raw / "imagesTr" / "phantom_003_0000.nii.gz", raw / "labelsTr" / "phantom_002.nii.gz"
    for path in (image, label):
        os.utime(path, ns=(10**18, 10**18))  # a copy without times
    assert check(pre) == []
    assert pending_cases(pre.name, Plan(plans_of(pre)), ["3d_fullres"]) == []
    content = label.read_bytes()
    label.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the same size
    refused(pre, r"the raw files of 1 cases of Dataset998_Phantom have changed .*'phantom_002'", REPLAN)
    assert pending_cases(pre.name, Plan(plans_of(pre)), ["3d_fullres"]) == [("3d_fullres", "phantom_002")]
    write_image(image, 0)
    refused(pre, r"the raw files of 2 cases", REPLAN)
    [reason] = stale_cases(pre.name, Plan(plans_of(pre)), ["3d_fullres"])
    assert "2 cases again (e.g. 'phantom_002')" in reason


def test_what_cannot_be_compared_is_a_warning(pre: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "READ_BYTES", 0)
    os.utime(raw / "imagesTr" / "phantom_003_0000.nii.gz", ns=(10**18, 10**18))
    [warning] = check(pre)
    assert "1 cases have another time of change" in warning
    assert REPLAN in warning
    shutil.rmtree(pre / "STUNetPlans_3d_fullres" / ".stunet")  # as nnUNetv2_preprocess leaves data
    [warning] = check(pre)
    assert "says what the data there were made from" in warning
    assert REDO in warning


def test_records_of_earlier_versions_are_compared_without_hashes(pre: Path, raw: Path) -> None:
    path = pre / "STUNetPlans_3d_fullres" / ".stunet" / "manifest.json"
    manifest = read_json(path)
    for case in manifest["cases"].values():
        del case["sha256"]
    write_json(path, manifest)
    assert check(pre) == []
    os.utime(raw / "labelsTr" / "phantom_002.nii.gz", ns=(10**18, 10**18))
    [warning] = check(pre, 1)
    assert "another time of change (e.g. 'phantom_002')" in warning
    (raw / "labelsTr" / "phantom_002.nii.gz").write_bytes(b"other")
    refused(pre, "have changed since", REPLAN)


def test_cases_that_came_or_went_are_named(pre: Path, raw: Path) -> None:
    (raw / "imagesTr" / "phantom_005_0000.nii.gz").rename(raw / "imagesTr" / "phantom_006_0000.nii.gz")
    (raw / "labelsTr" / "phantom_005.nii.gz").rename(raw / "labelsTr" / "phantom_006.nii.gz")
    refused(pre, r"1 cases are missing \(e.g. 'phantom_006'\)", REPLAN)
    for folder in ("imagesTr", "labelsTr"):
        next((raw / folder).glob("phantom_006*")).unlink()
    refused(pre, r"1 cases are preprocessed that .* does not have any more \(e.g. 'phantom_005'\)", REPLAN)


def test_preprocessed_files_that_are_gone_or_cut_are_noticed_without_raw_data(
    pre: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_raw")
    file = pre / "STUNetPlans_3d_fullres" / "phantom_001_seg.b2nd"
    file.write_bytes(file.read_bytes()[:-1])
    refused(pre, r"1 cases in .* are not as they were written \(e.g. 'phantom_001'\)", REDO)
    file.unlink()
    refused(pre, r"1 cases are missing \(e.g. 'phantom_001'\)", REPLAN)


def test_raw_files_that_this_machine_does_not_have_are_not_compared(pre: Path, raw: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(raw / folder)
    [warning] = check(pre)
    assert "not on this machine" in warning


def test_images_by_reference_that_this_machine_does_not_have_are_not_compared(pre: Path, raw: Path) -> None:
    entries = {c: {"images": [f"/elsewhere/{c}.nii.gz"], "label": f"labelsTr/{c}.nii.gz"} for c in CASES}
    change(raw / "dataset.json", dataset=entries)
    [warning] = check(pre)
    assert "not on this machine" in warning
    for case in CASES:
        entries[case]["images"] = [f"imagesTr/{case}_0000.nii.gz"]
    change(raw / "dataset.json", dataset=entries)
    assert check(pre) == []


def test_a_plan_of_another_fingerprint_is_said(pre: Path) -> None:
    fingerprint = read_json(pre / "dataset_fingerprint.json")
    change(pre / "dataset_fingerprint.json", stunet_source=[])
    assert check(pre) == []
    change(pre / "dataset_fingerprint.json", spacings=[[9.0, 9.0, 9.0], *fingerprint["spacings"][1:]])
    [warning] = check(pre)
    assert "planned from another fingerprint" in warning
    plans = plans_of(pre)
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    refused(pre, "other settings", REPLAN, plans=plans)


def test_the_command_that_plans_again_has_what_the_plans_name_says(pre: Path) -> None:
    plans = {**plans_of(pre), "plans_name": "STUNetPlans_B_1.5x1.5x3mm-epochs3"}
    plans["stunet"] = {"size": "B", "derived_from": "STUNetPlans_B_1.5x1.5x3mm"}
    assert repair_commands(pre.name, Plan(plans), "2d")[0].endswith(
        "-c 2d --size B -overwrite_target_spacing 1.5 1.5 3"
    )
    plans["stunet"]["derived_from"] = "Mine"
    assert "-overwrite_plans_name Mine" in repair_commands(pre.name, Plan(plans), "2d")[0]


@for_each(
    ("folds", "fold", "message"),
    [
        ({"train": CASES}, 0, "expected a list of folds"),
        ([{"train": CASES[:4], "val": "phantom_004"}], 0, r"\[0\].val: expected a list"),
        (FOLDS, 2, "there is no fold 2 in .*: it has 2 folds, 0 to 1"),
        (FOLDS[:1], 1, "it has 1 fold, 0"),
        ([{"train": CASES[:4], "val": CASES[3:]}], 0, "has 'phantom_003' in training and in validation"),
        ([{"train": CASES[:4], "val": []}], 0, "has 4 cases to train and 0 to validate"),
        ([{"train": CASES[:4], "val": [*CASES[4:], CASES[4]]}], 0, "validates the case 'phantom_004' twice"),
        ([{"train": [*CASES[:3], "phantom_03"], "val": CASES[4:]}], 0, "has the case 'phantom_03'; did you mean"),
    ],
)
def test_folds_that_cannot_be_trained_are_refused_before_training(
    pre: Path, folds: Any, fold: int, message: str
) -> None:
    write_json(pre / "splits_final.json", folds)
    with pytest.raises(DataError, match=message) as caught:
        check(pre, fold)
    assert caught.value.hint
    assert check(pre, "all") == []


def test_cases_in_no_fold_are_said_and_too_few_cases_lead_to_a_command_that_works(pre: Path, raw: Path) -> None:
    write_json(pre / "splits_final.json", [{"train": CASES[:3], "val": CASES[3:5]}])
    [warning] = check(pre)
    assert "1 preprocessed cases are in no fold" in warning
    (pre / "splits_final.json").unlink()
    assert check(pre) == []
    with pytest.raises(DataError, match=r"there is no fold 5: nnU-Net makes 5"):
        check(pre, 5)
    manifest = pre / "STUNetPlans_3d_fullres" / ".stunet" / "manifest.json"
    kept = {case: record for case, record in read_json(manifest)["cases"].items() if case < "phantom_004"}
    change(manifest, cases=kept)
    for case in CASES[4:]:
        for path in (*pre.glob(f"STUNetPlans_3d_fullres/{case}*"), *raw.glob(f"*Tr/{case}*")):
            path.unlink()
    change(raw / "dataset.json", numTraining=4)
    refused(pre, "has 4 cases, too few for the 5 folds", "stunet_train 998 3d_fullres all -p STUNetPlans_T")
    assert check(pre, "all") == []


def test_labels_of_the_validation_that_are_missing_or_others_are_named(pre: Path) -> None:
    labels = pre / "gt_segmentations"
    (labels / "phantom_000.nii.gz").unlink()
    assert check(pre) == []  # it is a training case there
    refused(pre, r"labels of 1 validation cases are not in .*'phantom_000'", REDO, fold=1)
    (labels / "phantom_004.nii.gz").write_bytes((labels / "phantom_003.nii.gz").read_bytes())
    refused(pre, r"is not the label that 'phantom_004' was preprocessed with", REDO)
    shutil.rmtree(labels)
    refused(pre, r"labels of 2 validation cases", REDO)


def record(pre: Path, fold: int = 0) -> dict:
    plans = plans_of(pre)
    cases = find_fold(pre.name, Plan(plans), "3d_fullres", fold)
    assert cases is not None
    return training_record(pre.name, Plan(plans), "3d_fullres", fold, cases)


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


def test_plans_that_are_there_are_preprocessed_as_they_are(
    pre: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-d", "998", "-c", "3d_fullres", "-p", "STUNetPlans_T", "--no_check", "-np", "1", "--no_pbar"]
    assert plan_and_preprocess([*command, "--size", "S"]) == 2
    assert "takes plans as they are, and --size plans" in capsys.readouterr().err
    write_image(raw / "imagesTr" / "phantom_003_0000.nii.gz", 1)
    before = (pre / "STUNetPlans_T.json").read_bytes()
    assert plan_and_preprocess(command) == 0
    said = capsys.readouterr().err
    assert "3d_fullres: 1 cases again (e.g. 'phantom_003'), whose raw or preprocessed files have changed" in said
    assert "next: stunet_train 998 3d_fullres 0\n" in said
    assert (pre / "STUNetPlans_T.json").read_bytes() == before
    assert check(pre) == []


def test_a_manifest_that_is_none_is_none(pre: Path) -> None:
    path = pre / "STUNetPlans_3d_fullres" / ".stunet" / "manifest.json"
    for content in ([], {"settings": {}}, {"settings": {}, "cases": {"a": []}}, {"settings": 3, "cases": {}}):
        write_json(path, content)
        assert read_manifest(path.parents[1]) is None


def test_ten_thousand_cases_take_no_time_to_compare(pre: Path) -> None:
    names = [f"case_{number}" for number in range(10_000)]
    made_from = {name: [[1, "0" * 16]] * 2 for name in names}
    run = {"fold": 0, "train": names[:8000], "val": names[8000:], "made_from": made_from}
    assert check_training("x", run, json.loads(json.dumps(run)), goes_on=True) == []
    assert Fold(tuple(names), ()).all == sorted(names)
