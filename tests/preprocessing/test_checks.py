"""Tests of preprocessing/checks.py: data made from something else than what is asked for are noticed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from stunet.cli.plan_and_preprocess import main as plan_and_preprocess
from stunet.errors import DataError
from stunet.files import read_json, sha256_of, write_json
from stunet.folds import Fold
from stunet.plans.derive import derive
from stunet.plans.plan import Plan
from stunet.preprocessing import checks
from stunet.preprocessing.checks import repair_commands
from stunet.preprocessing.dataset import (
    CHANGED,
    SAME,
    TOUCHED,
    StampedCase,
    compare_raw,
    pending_cases,
    read_manifest,
    stale_cases,
)
from stunet.provenance import check_training
from tests.loops import for_each
from tests.phantom_copy import CASES, FOLDS, REDO, REPLAN, change, check, plans_of, refused, write_image


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


def test_a_missing_resampling_option_is_not_null(pre: Path) -> None:
    plans = plans_of(pre)
    del plans["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"]["force_separate_z"]
    refused(pre, "data_kwargs.force_separate_z: null -> nothing", REDO, plans=plans)


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


def test_subjects_that_changed_are_refused_where_they_matter(pre: Path, raw: Path) -> None:
    change(raw / "dataset.json", subjects={case: "one" for case in CASES})
    assert check(pre) == []
    with pytest.raises(DataError, match=r"has changed since it was preprocessed: subjects\.") as caught:
        checks.check_data(pre.name, Plan(plans_of(pre)), "3d_fullres", subjects=True)
    assert caught.value.hint == REDO
    change(raw / "dataset.json", subjects={})
    assert checks.check_data(pre.name, Plan(plans_of(pre)), "3d_fullres", subjects=True) == []


def test_images_of_the_same_name_in_other_folders_are_compared(tmp_path: Path) -> None:
    def case(folder: str, size: int = 4, time: int = 1) -> StampedCase:
        path = tmp_path / folder / "ct.nii"
        return StampedCase("p1_ct", (path,), None, stamps=[[f"{tmp_path}/{folder}/ct.nii", size, time]])

    for folder, content in (("a", "here"), ("b", "else"), ("c", "here")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ct.nii").write_text(content)
    record = {"raw": case("a").stamps, "sha256": [sha256_of(tmp_path / "a" / "ct.nii")]}
    states = [compare_raw(record, case(folder)) for folder in "abc"]
    assert states == [SAME, CHANGED, TOUCHED]
    assert compare_raw(record, case("a", size=5)) == CHANGED
    older = {**record, "raw": [["ct.nii", 4, 1]]}
    assert [compare_raw(older, case("a", time=time)) for time in (1, 2)] == [SAME, TOUCHED]


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
