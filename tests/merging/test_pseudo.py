"""A teacher adds what a case lacks where it is sure, and never changes what is annotated."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from stunet.cli.pseudo_label import main
from stunet.datasets.check import check_dataset
from stunet.errors import DataError, UsageError
from stunet.files import read_json, write_json
from stunet.inference.cases import InputCase
from stunet.inference.engine.confidence import Confidence
from stunet.inference.model import ModelFolder, open_model
from stunet.inference.predictor import Options, Predictor
from stunet.labels.annotations import load_annotations
from stunet.merging.completing import combine, complete
from stunet.merging.pseudo import plan_completion
from stunet.weights.checkpoints import load_trained, save_checkpoint
from stunet.workspace import VARIABLES
from tests.loops import for_each
from tests.merge_sources import describe, make_source, read
from tests.predictor_models import make_model

NAME = "Dataset901_Completed"


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A union: case_0 annotates liver and spleen, case_1 only the liver, as dataset 900."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = make_source(tmp_path / "nnUNet_raw", "Dataset900_Union", {"liver": ["liver"], "spleen": ["spleen"]})
    path = folder / "labelsTr/case_1.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.where(read(path) == 1, 1, 0).astype(np.uint8), image.affine), path)
    content = {
        "leaves": ["liver", "spleen"],
        "sets": {},
        "head": "softmax",
        "alpha": 0.5,
        "sources": {"a": {"labels": ["liver", "spleen"]}},
        "cases": {"case_0": {"source": "a"}, "case_1": {"source": "a", "labels": ["liver"]}},
    }
    write_json(folder / "annotations.json", content)
    write_json(folder / "splits_final.json", [{"train": ["case_0"], "val": ["case_1"]}])
    return folder


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A network of random weights that sees all of liver, spleen and background; its classes have other numbers."""
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None, forward=(0, 1, 2))
    describe(folder, labels={"background": 0, "Spleen": 1, "hepar": 2})
    path = folder / "fold_0/checkpoint_final.pth"
    content = dict(load_trained(path))
    weights = content["network_weights"]
    for name in [name for name in weights if name.startswith("seg_outputs") and name.endswith("bias")]:
        weights[name] = weights[name] + torch.tensor([0.0, 1.2, -1.3])
    save_checkpoint(content, path)
    return folder


def _model(folder: Path, labels: Mapping[str, Any] | None = None) -> ModelFolder:
    if labels is not None:
        describe(folder, labels=labels, regions_class_order=[1, 2])
    return open_model(folder)


def _predictor(folder: Path) -> Predictor:
    return Predictor(open_model(folder), Options(precision="fp32"))


def test_ground_truth_wins_and_what_is_not_sure_is_ignored() -> None:
    truth = np.array([[[1, 0, 0, 0, 0, 9, 0]]], np.uint8)
    groups = np.array([[[1, 1, 1, 2, 2, 1, 0]]])
    confidence = np.array([[[1.0, 0.9, 0.8, 0.7, 0.6, 1.0, 0.5]]], np.float32)
    result = combine(truth, groups, confidence, [0, 5, 6], [0.6, 0.9, 0.65], ignore=9)
    assert result.tolist() == [[[1, 5, 9, 6, 9, 9, 9]]]


def test_what_is_missing_is_found_by_name_case_by_case(raw: Path, teacher: Path) -> None:
    todo = plan_completion(raw, _model(teacher))
    assert todo.classes == {"spleen": ("Spleen",)}  # `hepar` is no name that is known
    assert [todo.missing(f"case_{i}") for i in range(2)] == [[], ["spleen"]]
    assert todo.values == {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
    assert todo.thresholds == {"spleen": 0.9, "background": 0.9}


def test_a_dataset_that_annotates_all_it_has_gets_the_classes_that_are_named(raw: Path, teacher: Path) -> None:
    (raw / "annotations.json").unlink()
    model = _model(teacher, {"background": 0, "spleen": 1, "pancreas": 2})
    with pytest.raises(DataError, match=r"no case of Dataset900_Union lacks a class that the teacher has") as caught:
        plan_completion(raw, model)
    assert "spleen, pancreas" in caught.value.hint
    todo = plan_completion(raw, model, ["Pancreas"], thresholds={"Pancreas": 0.5})
    assert todo.after.leaves == ("liver", "spleen", "Pancreas")
    assert todo.missing("case_0") == ["Pancreas"]
    assert todo.lookup().tolist() == [0, 1, 2]


def test_a_coarse_label_is_moved_behind_a_new_class_and_its_parts_are_not_missing(raw: Path, teacher: Path) -> None:
    content = read_json(raw / "annotations.json")
    content["sets"] = {"both": ["liver", "spleen"]}
    content["cases"]["case_1"]["labels"] = ["both"]
    write_json(raw / "annotations.json", content)
    describe(raw, labels={"background": 0, "liver": 1, "spleen": 2, "both": 3})
    todo = plan_completion(raw, _model(teacher, {"background": 0, "spleen": 1, "pancreas": 2}), ["pancreas", "spleen"])
    assert todo.values == {"background": 0, "liver": 1, "spleen": 2, "pancreas": 3, "both": 4, "ignore": 5}
    assert todo.lookup().tolist() == [0, 1, 2, 4]
    assert todo.missing("case_1") == ["pancreas"]


PROBLEMS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no such class": ({}, {"classes": ["aorta"]}, r"the teacher has no class 'aorta'; nearest: "),
    "no probability": ({}, {"min_confidence": 1.5}, r"the confidence of 'spleen' is 1.5"),
    "an unknown threshold": ({}, {"thresholds": {"livre": 0.5}}, r"no class 'livre' is completed"),
    "a teacher of regions": ({"organ": [1, 2], "spleen": 2}, {}, r"the teacher has regions"),
}


@for_each(("labels", "options", "message"), PROBLEMS.values())
def test_what_cannot_be_completed_is_said(
    raw: Path, teacher: Path, labels: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((DataError, UsageError), match=message):
        plan_completion(raw, _model(teacher, {"background": 0, **labels} if labels else None), **options)


def test_a_teacher_for_other_channels_is_refused(raw: Path, tmp_path: Path) -> None:
    two = make_model(tmp_path / "two" / "T__P__3d_fullres", channels=2)
    with pytest.raises(DataError, match=r"the teacher takes 2 channels \(MR0, MR1\), Dataset900_Union has 1"):
        plan_completion(raw, open_model(two))


def test_cases_that_annotations_do_not_know_are_refused(raw: Path, teacher: Path) -> None:
    content = read_json(raw / "annotations.json")
    del content["cases"]["case_1"]
    write_json(raw / "annotations.json", content)
    with pytest.raises(DataError, match=r"does not know the case 'case_1'"):
        plan_completion(raw, open_model(teacher))


@for_each("reader", ["SimpleITKIO", "NibabelIOWithReorient"])
def test_the_result_is_the_teachers_labels_where_nothing_is_annotated(raw: Path, teacher: Path, reader: str) -> None:
    plans = read_json(teacher / "plans.json") | {"image_reader_writer": reader}
    write_json(teacher / "plans.json", plans)
    if reader == "NibabelIOWithReorient":  # stored in another orientation than it is read in
        for path in raw.glob("*/case_*.nii.gz"):
            nibabel.save(nibabel.load(path).as_reoriented(nibabel.orientations.axcodes2ornt("PSR")), path)
    todo = plan_completion(raw, open_model(teacher), min_confidence=0.5)
    predictor = _predictor(teacher)
    target = complete(todo, raw.with_name(NAME), predictor, {"name": "t"})
    check_dataset(target)

    prepared = predictor.preprocess(predictor.read(InputCase("c", (raw / "imagesTr/case_1_0000.nii.gz",))))
    confidence = Confidence([0, 1, 0])
    seen = predictor.segment(prepared, probabilities=confidence) == 1
    truth = predictor.writer.read_seg(str(raw / "labelsTr/case_1.nii.gz"))[0][0]
    expected = np.where(truth == 1, 1, np.where(confidence.values_DHW < 0.5, 3, np.where(seen, 2, 0)))
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    got = predictor.writer.read_seg(str(target / "labelsTr/case_1.nii.gz"))[0]
    np.testing.assert_array_equal(got[0], expected)
    np.testing.assert_array_equal(read(target / "labelsTr/case_0.nii.gz"), read(raw / "labelsTr/case_0.nii.gz"))
    before, after = (nibabel.load(folder / "labelsTr/case_1.nii.gz") for folder in (raw, target))
    assert after.header["intent_code"] == 1002
    np.testing.assert_allclose(after.affine, before.affine)

    annotations = load_annotations(target)
    assert annotations is not None
    assert annotations.cases["case_1"].labels == ("liver", "spleen")
    record = read_json(target / "provenance.json")
    counts = {"voxels": {"spleen": int((expected == 2).sum())}, "ignored": int((expected == 3).sum())}
    assert record["cases"] == {"case_0": {"voxels": {}, "ignored": 0}, "case_1": counts}
    assert record["state"]["teacher"] == {"name": "t"}
    description = read_json(target / "dataset.json")
    assert description["labels"] == {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}
    assert description["dataset"]["case_1"]["images"] == ["$nnUNet_raw/Dataset900_Union/imagesTr/case_1_0000.nii.gz"]
    assert description["licence"] == "CC-BY-4.0"
    assert read_json(target / "splits_final.json") == read_json(raw / "splits_final.json")


def test_a_run_that_was_stopped_goes_on_and_other_thresholds_are_refused(raw: Path, teacher: Path) -> None:
    (raw / "annotations.json").unlink()
    describe(raw, labels={"background": 0, "liver": 1, "aorta": 2})
    todo = plan_completion(raw, open_model(teacher), ["spleen"])
    predictor, target = _predictor(teacher), raw.with_name(NAME)

    def stop(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        complete(todo, target, predictor, {}, stop)
    assert not target.exists()
    part = target.with_name(f".part-{NAME}")
    first = (part / "labelsTr/case_0.nii.gz").stat().st_mtime_ns
    other = plan_completion(raw, open_model(teacher), ["spleen"], min_confidence=0.8)
    with pytest.raises(DataError, match=r"since then changed thresholds.background: 0.9 -> 0.8"):
        complete(other, target, predictor, {})
    (part / ".stunet/cases/case_1.json").write_text('{"source": "sp')
    complete(todo, target, predictor, {})
    assert (target / "labelsTr/case_0.nii.gz").stat().st_mtime_ns == first
    assert not (target / ".stunet").exists()
    assert set(read_json(target / "provenance.json")["cases"]) == {"case_0", "case_1"}


def test_a_broken_image_is_named_and_what_is_done_stays(raw: Path, teacher: Path) -> None:
    path = raw / "imagesTr/case_1_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"case_1_0000.nii.gz', it is damaged or truncated"):
        complete(plan_completion(raw, open_model(teacher)), raw.with_name(NAME), _predictor(teacher), {})
    assert (raw.with_name(f".part-{NAME}") / "labelsTr/case_0.nii.gz").is_file()


def test_a_broken_case_does_not_stop_the_next(raw: Path, teacher: Path) -> None:
    path = raw / "labelsTr/case_0.nii.gz"
    todo = plan_completion(raw, open_model(teacher))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"case 'case_0': "):
        complete(todo, raw.with_name(NAME), _predictor(teacher), {})
    assert (raw.with_name(f".part-{NAME}") / "labelsTr/case_1.nii.gz").is_file()


def test_the_command_says_what_it_completes_and_does_it_once(
    raw: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-d", "900", "--teacher", str(teacher), "--name", NAME, "-device", "cpu", "--precision", "fp32"]
    command += ["--confidence", "spleen=0.4", "--min_confidence", "0.3"]
    assert main([*command, "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["spleen", "Spleen", "0.4", "1"]
    assert not raw.with_name(NAME).exists()
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(raw.with_name(NAME))
    record = read_json(raw.with_name(NAME) / "provenance.json")
    assert len(record["state"]["teacher"]["checkpoints"]["0"]) == 64
    assert record["state"]["thresholds"] == {"spleen": 0.4, "background": 0.3}
    assert main(command) == 0
    assert "it is there already" in capsys.readouterr().err
    assert main([*command[:-1], "0.2"]) == 3
    assert "thresholds.background: 0.3 -> 0.2" in capsys.readouterr().err


@for_each(
    ("options", "code"),
    [
        (["--name", "Completed"], 2),
        (["-step_size", "0"], 2),
        (["--name", "Dataset900_Union"], 3),
        (["--name", "Dataset900_Other"], 3),
        (["--teacher", "no-such-model"], 4),
    ],
)
def test_what_is_wrong_with_the_command_has_an_exit_code(
    raw: Path, teacher: Path, options: list[str], code: int
) -> None:
    defaults = {"-d": "900", "--teacher": str(teacher), "--name": NAME, "-device": "cpu", "--precision": "fp32"}
    given = defaults | {options[0]: options[1]}
    assert main([word for pair in given.items() for word in pair]) == code


def test_a_confidence_that_is_no_number_is_a_usage_error(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-d", "900", "--teacher", "x", "--name", NAME, "--confidence", "spleen"])
    assert "'spleen' is not of the form CLASS=0.8" in capsys.readouterr().err


def test_parts_write_what_one_run_writes(
    raw: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["-d", "900", "--teacher", str(teacher), "--name", NAME, "--min_confidence", "0.4", "-device", "cpu"]
    command += ["--orientation", "RAS", "--disable_tta"]

    def written() -> dict[str, bytes]:
        paths = [path for path in (raw.parent / NAME).rglob("*") if path.is_file()]
        return {str(path.relative_to(raw.parent)): path.read_bytes() for path in paths}

    assert main(command) == 0
    one = written()
    shutil.rmtree(raw.parent / NAME)
    capsys.readouterr()
    assert main([*command, "-num_parts", "2", "-part_id", "1"]) == 0
    assert "part 1 of 2 is done; missing: 0 (not run yet)" in capsys.readouterr().err
    assert not (raw.parent / NAME).exists()
    assert main([*command, "-num_parts", "2", "--merge"]) == 3
    assert "of 2 parts, 1 are missing: 0" in capsys.readouterr().err
    assert main([*command, "-num_parts", "2", "-part_id", "0"]) == 0
    assert written() == one
    assert main([*command, "-num_parts", "2", "-part_id", "1"]) == 0
    assert "it is there already" in capsys.readouterr().err
    assert not [path for path in raw.parent.iterdir() if path.name.startswith(".parts")]
