"""Pre-training from the command line and the API, on the labelled phantom: what is refused, what is left out."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest

import stunet
from stunet import workspace
from stunet.cli.pretrain import main
from stunet.errors import DataError, OutOfMemoryError, UsageError, WeightsError
from stunet.files import read_json, write_json
from stunet.plans.derive import derive
from stunet.plans.files import read_plan
from stunet.runs.plan_choice import choose_pretraining_plans
from stunet.runs.pretraining import PretrainingRequest, pretrain
from tests.loops import for_each
from tests.phantom_copy import CASES, change
from tests.pretraining_run import write_weights

STEPS = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2}
PATCH = {"patch_size": [16, 16, 16]}
ROUND = {**STEPS, **PATCH}


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@for_each(
    ("given", "error", "message", "hint"),
    [
        ({"dataset": []}, UsageError, "no dataset", "stunet_pretrain -d 50"),
        ({"dataset": 7}, DataError, "no dataset '7'", "stunet_convert"),
        ({"method": "rott"}, UsageError, "unknown method 'rott'; did you mean 'rot'", "one of"),
        ({"plans": "X"}, DataError, "no plans 'X'", "stunet_plan_and_preprocess -d 998"),
        ({"configuration": "3d"}, DataError, "no configuration '3d'", "one of"),
        ({"size": "Q"}, UsageError, "--size 'Q'", "one of T"),
        ({"augment": "strong"}, UsageError, "--augment 'strong'", "one of standard"),
        ({"augment": "safe", "set": {"augment": "none"}}, UsageError, "given twice", "one of them"),
        ({"resume": True, "overwrite": True}, UsageError, "exclude each other", "one of them"),
        ({"set": {"mirror": "none"}}, UsageError, "--set mirror has no meaning", "leave it out"),
        ({"transfer": "encoder"}, UsageError, "--transfer says what becomes of", "add --pretrained"),
        ({"pretrained": "NoSuch"}, WeightsError, "no model or file 'NoSuch'", "stunet_models list"),
        ({"method": "local", "set": ROUND}, UsageError, "no weights are given", "--method global first"),
        ({"num_gpus": 0}, UsageError, "-num_gpus 0 must be 1 or more", "-num_gpus 1"),
        ({"set": {**ROUND, "batch_size": 1}, "num_gpus": 2}, UsageError, "cannot be shared by 2", "batch_size=2"),
        ({"fsdp": True, "set": ROUND}, UsageError, "there is one", "-num_gpus 2"),
        ({"set": ROUND, "resume": True}, DataError, "nothing to continue", "without --c"),
        ({"set": STEPS | {"patch_size": [24, 24, 24]}}, DataError, "smaller than the patch: 16 x 24 x 24",
         "--set patch_size=[16,24,24], which most of them contain"),
        ({"set": STEPS | {"patch_size": [8, 8, 8]}, "method": "rpl"}, UsageError, "strides leave one", "larger sides"),
        ({"like": 998, "set": ROUND}, UsageError, "--like 998 keeps the patch and strides of STUNet", "no --set"),
        ({"like": 998, "stages": 2}, UsageError, "--like 998 keeps the patch and strides of STUNet", "no --set"),
        ({"set": ROUND | {"batch_size": 900000}}, OutOfMemoryError, "a batch of 900000", "--set batch_size="),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_the_next_step(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict, error: type, message: str, hint: str
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    before = everything(workspace.preprocessed_dataset(planned)) | {
        workspace.preprocessed_dataset(planned) / "STUNetPlans_3d_fullres" / ".stunet" / "scans.json"
    }
    with pytest.raises(error, match=message) as caught:
        pretrain(PretrainingRequest(**{"dataset": 998, "method": "rot", "device": "cpu", **given}))
    assert hint in caught.value.hint
    assert everything(workspace.preprocessed_dataset(planned)) <= before


class Heard(stunet.Listener):
    """Keeps notes and warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    warn = note


def test_a_pretraining_runs_resumes_and_tells_its_result(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    argv = ["-d", "998", "--method", "rot", "-device", "cpu", "--set"]
    argv += [*(f"{key}={value}" for key, value in STEPS.items()), "patch_size=[16,16,16]"]
    try:
        assert main([*argv, "--dry_run"]) == 0
        assert not any(tmp_path.iterdir())
        capsys.readouterr()
        assert main(argv) == 0
        out, err = capsys.readouterr()
        folder = next(tmp_path.glob("*/STUNetPretrainer__STUNetPlans_T-rot-*__3d_fullres/fold_all"))
        assert out.startswith("held-out accuracy ")
        assert f"(chance 0.25)  {folder}" in out
        assert "batch 2, about" in err
        result = stunet.pretrain(998, "rot", set=ROUND, device="cpu", resume=True, listener=(heard := Heard()))
        assert heard.said[-1] == "this pre-training is finished; nothing to do"
        assert result.folder == folder
        assert result.model == folder.parent
        assert result.checkpoint == folder / workspace.FINAL
        assert result.metrics == read_json(folder / "pretraining.json")
        assert result.measure == result.metrics["val_measures"][-1]
        plan = read_plan(folder.parent / "plans.json")
        assert (plan.pretext, plan.name) == ("rot", result.plan.name)
        with pytest.raises(DataError, match="was trained to the end"):
            stunet.pretrain(998, "rot", set=ROUND, device="cpu")
        # Its plans alone mean the same run; a training refuses them.
        again = stunet.pretrain(998, plans=plan.name, device="cpu", resume=True)
        assert again == result
        with pytest.raises(UsageError, match="are those of a pre-training"):
            stunet.train(998, plans=plan.name, device="cpu", dry_run=True)
    finally:
        for path in workspace.preprocessed_dataset(planned).glob("STUNetPlans_T-rot*"):
            path.unlink()


def test_a_pretraining_starts_from_weights_that_its_plan_names(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    weights = write_weights(planned, tmp_path / "weights.pth", "global")
    argv = ["-d", "998", "--method", "local", "--pretrained", str(weights), "-device", "cpu", "--set"]
    argv += [*(f"{key}={value}" for key, value in STEPS.items()), "patch_size=[16,16,16]"]
    before = everything(workspace.preprocessed_dataset(planned))
    try:
        assert main([*argv, "--dry_run"]) == 0
        assert "100.0% of the encoder loaded" in capsys.readouterr().err
        assert not any((tmp_path / "results").iterdir())
        assert everything(workspace.preprocessed_dataset(planned)) == before
        assert main(argv) == 0
        assert "pre-training: global, images of CT" in capsys.readouterr().err
        (folder,) = (tmp_path / "results").glob("*/STUNetPretrainer__STUNetPlans_T-local-Phantom.*-global-*/fold_all")
        report = read_json(folder / "transfer_report.json")
        plan = read_plan(folder.parent / "plans.json")
        assert plan.weights[0].sha256 == report["sha256"]
        weights.unlink()
        # Its plans name the weights, which only a new run needs.
        assert stunet.pretrain(998, plans=plan.name, device="cpu", resume=True).folder == folder
        with pytest.raises(WeightsError, match=r"start from the weights 'Phantom.*', which are not given"):
            stunet.pretrain(998, plans=plan.name, device="cpu", overwrite=True)
        with pytest.raises(WeightsError) as caught:
            stunet.pretrain(998, "local", pretrained=weights, device="cpu", resume=True)
        assert "-p with the name of the training's plans" in caught.value.hint
    finally:
        for path in workspace.preprocessed_dataset(planned).glob("STUNetPlans_T-local*"):
            path.unlink()


def test_weights_that_have_seen_what_measures_the_training_are_warned_of(
    pre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    weights = write_weights(pre.name, tmp_path / "weights.pth", "global")
    record = {"dataset": pre.name, "configuration": "3d_fullres", "fold": "all", "val": [], "made_from": {}}
    common: dict[str, Any] = {"pretrained": weights, "device": "cpu", "dry_run": True}
    for train, number in ((CASES, 1), ([], 0)):
        write_json(tmp_path / "made_from.json", {**record, "train": train})
        stunet.pretrain(998, "local", set=ROUND, listener=(heard := Heard()), **common)
        warned = [text for text in heard.said if "that measure this training" in text]
        assert len(warned) == number
        assert all("was trained on 1 of the 1 scans" in text and "--set seed" in text for text in warned)
        stunet.train(998, "3d_fullres", 0, listener=(heard := Heard()), **common)
        assert len([text for text in heard.said if "validation cases of this fold" in text]) == number


def test_a_plan_that_has_to_be_like_another_keeps_its_patch_at_every_size(pre: Path) -> None:
    plan = read_plan(pre / "STUNetPlans_T.json")
    smaller = derive(plan, read_json(pre / "dataset.json"), overrides={"patch_size": [8, 16, 16]}, stages=3)
    write_json(pre / "STUNetPlans_T.json", smaller.with_ours(plan={}, derived_from=None).with_name(plan.name).to_json())
    for like in (998, None):
        request = PretrainingRequest(dataset=998, method="mae", like=like, size="S")
        chosen = choose_pretraining_plans(pre.name, request, stunet.Listener()).plan.configuration("3d_fullres")
        assert chosen.network_arguments["size"] == "S"
        assert (chosen.patch_size == [8, 16, 16]) == bool(like)


def spoil(folder: Path, case: str, image: np.ndarray[Any, Any]) -> None:
    """Replace a preprocessed image."""
    (folder / f"{case}.b2nd").unlink()
    blosc2.asarray(image.astype(np.float32), urlpath=str(folder / f"{case}.b2nd"))


def test_bad_scans_are_named_and_left_out_as_long_as_the_run_lives(pre: Path) -> None:
    folder = pre / "STUNetPlans_3d_fullres"
    record = folder / ".stunet" / "manifest.json"
    small, constant, broken = "phantom_001", "phantom_002", "phantom_003"
    shape = blosc2.open(str(folder / f"{small}.b2nd")).shape
    spoil(folder, constant, np.ones(shape))
    spoil(folder, broken, np.full(shape, np.nan))
    record.unlink()  # it has the files' sizes
    request = PretrainingRequest(dataset=998, method="rot", set=ROUND, device="cpu")
    with pytest.raises(DataError, match=r"2 of 6 scans of Dataset998_Phantom cannot be used.*is constant") as caught:
        pretrain(request)
    assert caught.value.hint == "--skip_bad goes on without them"
    result = pretrain(PretrainingRequest(dataset=998, method="rot", set=ROUND, device="cpu", skip_bad=True))
    left_out = read_json(result.folder / "left_out.json")
    assert left_out == {constant: "is constant", broken: "has values that are not finite"}
    made_from = read_json(result.folder / "made_from.json")
    assert {*made_from["train"], *made_from["val"]} == {f"phantom_{n:03d}" for n in (0, 1, 4, 5)}
    # What was left out then is left out now, whatever the scans have become.
    shutil.copy(folder / "phantom_000.b2nd", folder / f"{constant}.b2nd")
    (result.folder / workspace.FINAL).rename(result.folder / workspace.LATEST)
    heard = Heard()
    assert pretrain(PretrainingRequest(**{**vars(request), "resume": True}), heard).metrics == result.metrics
    assert [line for line in heard.said if "without 2 scans" in line]


def test_several_datasets_are_drawn_from_and_recorded(pre: Path) -> None:
    copy = pre.with_name("Dataset051_Other")
    shutil.copytree(pre, copy)
    for path in copy.glob("STUNetPlans_T-*.json"):  # which other tests have left
        path.unlink()
    change(copy / "STUNetPlans_T.json", dataset_name=copy.name)
    request = PretrainingRequest(dataset=[998, 51], method="rot", set={**ROUND, "alpha": 1.0}, device="cpu")
    result = pretrain(request)
    assert "T-rot-with51-" in result.plan.name
    made_from = read_json(result.folder / "made_from.json")
    assert made_from["datasets"] == [pre.name, copy.name]
    assert len(made_from["train"]) == 10
    assert {case.split(".")[0] for case in made_from["val"]} == {pre.name, copy.name}
    change(copy / "STUNetPlans_T.json", transpose_forward=[0, 2, 1], transpose_backward=[0, 2, 1])
    with pytest.raises(DataError, match=f"{copy.name} is not preprocessed like STUNetPlans_T") as caught:
        pretrain(replace(request, overwrite=True))
    assert caught.value.hint == "stunet_plan_and_preprocess -d 51 --like 998:STUNetPlans_T -c 3d_fullres"


def test_a_dataset_of_one_subject_is_refused(pre: Path, raw: Path) -> None:
    for folder in (pre, raw):
        change(folder / "dataset.json", subjects={f"phantom_{n:03d}": "one" for n in range(6)})
    with pytest.raises(DataError, match="has 6 preprocessed scans of 1 subject") as caught:
        pretrain(PretrainingRequest(dataset=998, method="rot", set=ROUND, device="cpu"))
    assert caught.value.hint.startswith("add scans of other subjects")
    change(raw / "dataset.json", subjects={})  # somebody has corrected it
    with pytest.raises(DataError, match="has changed since it was preprocessed"):
        pretrain(PretrainingRequest(dataset=998, method="rot", set=ROUND, device="cpu"))
