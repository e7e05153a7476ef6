"""stunet_train: what it refuses, in one line, before anything is written; the real command in a real process."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stunet import workspace
from stunet.cli.shown import _dice_table
from stunet.cli.train import main
from stunet.files import read_json, write_json
from stunet.networks import build
from stunet.plans.derive import derive
from stunet.plans.files import read_plan
from stunet.trainers.finetune import strategies
from stunet.trainers.finetune.joint import JointStart
from stunet.trainers.finetune.start import Start, choose_heads, plan_entry
from stunet.weights.checkpoints import save_checkpoint
from tests.loops import for_each

STUNET_TRAIN = Path(sys.executable).with_name("stunet_train")
ROUND = ["--set", "num_epochs=3", "num_iterations_per_epoch=4", "num_val_iterations_per_epoch=1", "batch_size=2"]


def fails(capsys: pytest.CaptureFixture[str], code: int, *argv: str) -> str:
    """Runs the command, which must end with this code, one line and at most one hint; returns both."""
    assert main(list(argv)) == code
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert out == ""
    assert lines[0].startswith("stunet_train: ")
    assert len(lines) <= 2
    return err


@for_each(
    ("given", "message", "hint"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT", "torchrun"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            "-num_gpus 3, but torchrun has started 2",
            "leave it out",
        ),
    ],
)
def test_what_torchrun_says_and_the_command_must_agree(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: dict, message: str, hint: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    err = fails(capsys, 2, "998", "-num_gpus", "3")
    assert message in err
    assert hint in err


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@for_each(
    ("argv", "code", "message", "hint"),
    [
        (["7", "3d_fullres", "0"], 3, "no dataset '7'", "stunet_convert --help"),
        (["998", "3d_ful", "0"], 3, "no configuration '3d_ful'", "one of"),
        (["998", "3d_fullres", "x"], 2, "fold 'x' is neither a number nor 'all'", "stunet_train 3 3d_fullres 0"),
        (["998", "-d", "998"], 2, "the dataset is given twice", "one of them"),
        (["998", "-p", "STUNetPlans_X"], 3, "no plans 'STUNetPlans_X'", "stunet_plan_and_preprocess -d 998"),
        (["998", "-tr", "STUNetTrainr"], 2, "did you mean 'STUNetTrainer'", "-tr takes"),
        (["998", "--set", "num_epoch=3"], 2, "did you mean 'num_epochs'", "--set takes"),
        (["998", "--preset", "x"], 3, "no preset 'x'", "one of b, h"),
        (["998", "--preset", "totalseg-b"], 3, "not [1.5, 1.5, 1.5] mm", "stunet_plan_and_preprocess -d 998 --preset"),
        (["998", "--c", "--val"], 2, "exclude each other", "one of them"),
        (["998", "--c"], 3, "nothing to continue: no checkpoint in", "without --c"),
        (["998", "--val"], 3, "no finished training to validate", "--c instead of --val"),
        (["998", "--size", "H", "-gpu_memory_target", "9"], 5, "STU-Net-H needs", "--size"),
        (["998", "--network", "resenc-m", "-gpu_memory_target", "2"], 5, "ResEnc U-Net needs", "more memory than 2 GB"),
        (
            ["998", "--network", "plain", "--size", "B"],
            2,
            "--network plain and --size B both bring a network",
            "one of",
        ),
        (
            ["998", "--network", "plain", "--set", "checkpointing=true"],
            2,
            "is for STU-Net, not for a plain",
            "leave it out",
        ),
        (["998", "--set", "batch_size=900000", "-device", "cpu"], 5, "a batch of 900000 patches", "--set batch_size="),
        (
            ["998", "--set", "patch_size=[4096,4096,4096]", "-device", "cpu"],
            5,
            "not even a batch of 1",
            "a smaller patch",
        ),
        (["998", "-num_gpus", "9", "--set", "batch_size=4"], 2, "a batch of 4 cannot be shared by 9", "batch_size=9"),
        (["998", "-num_gpus", "2", "--set", "batch_size=4", "accumulation=3"], 2, "and 3 parts", "batch_size=6"),
        (["998", "--fsdp"], 2, "there is one", "-num_gpus 2, torchrun"),
        (["998", "-num_gpus", "2", "--fsdp", "--finetune", "linear"], 2, "freeze parts as 'linear' does", "leave it"),
        (["998", "-num_gpus", "0"], 2, "-num_gpus 0 must be 1 or more", "-num_gpus 1"),
        (["998", "-pretrained_weights", "no.pth"], 4, "no model or file 'no.pth'", "stunet_models list"),
        (["998", "--pretrained", "STU-Net-Q"], 4, "no model or file 'STU-Net-Q'; did you mean", "stunet_models list"),
        (["998", "--finetune", "sawtoth"], 2, "did you mean 'sawtooth'", "--finetune takes full"),
        (["998", "--head", "slice"], 2, "there are none", "add --pretrained"),
        (["998", "-pretrained_weights", "a", "--finetune", "full"], 2, "nnU-Net's way to start", "one of them"),
        (["998", "--transfer", "encoder"], 2, "--transfer says what becomes of", "add --pretrained"),
        (["998", "--inflate", "centre"], 2, "--inflate says what becomes of", "add --pretrained"),
        (["998", "--pretrained", "x", "--transfer", "encoder", "--head", "slice"], 2, "takes pre-trained", "one of"),
        (["998", "--pretrained", "x", "--pretrained", "y", "--head", "slice"], 2, "only the encoders", "leave it out"),
        (["998", "--pretrained", "x", "--pretrained", "y", "--transfer", "all"], 2, "only the encoders", "leave it"),
        (["998", "--set", "augment=safe"], 2, "augment=safe is for pre-training", "--set augment=standard, or none"),
        (
            ["998", "--set", "augment=none", "mirror=all"],
            2,
            "mirrors nothing, and mirror=all does",
            "--set mirror=none",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    planned: str, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str, hint: str
) -> None:
    before = everything(workspace.folder("nnUNet_preprocessed"))
    err = fails(capsys, code, *argv)
    assert message in err
    assert hint in err
    assert everything(workspace.folder("nnUNet_preprocessed")) == before


def test_a_missing_variable_shows_the_export_line(
    planned: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_results")
    err = fails(capsys, 3, "998")
    assert "the variable nnUNet_results is not set" in err
    assert "try: export nnUNet_results=" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_an_absent_device_is_named(planned: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "-device cpu" in fails(capsys, 2, "998", "-device", "cuda")


@pytest.fixture
def raw(planned: str) -> Path:
    """The folder of the raw datasets, where `copied` has none."""
    return workspace.folder("nnUNet_raw")


@pytest.fixture
def copied(planned: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the preprocessed dataset that may be changed, without raw data, as on a cluster."""
    copy = tmp_path / "preprocessed" / planned
    shutil.copytree(workspace.preprocessed_dataset(planned), copy)
    monkeypatch.setenv("nnUNet_preprocessed", str(copy.parent))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "nothing"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    return copy


def test_training_needs_no_raw_data(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["998", "--dry_run", "-device", "cpu"]) == 0
    assert "STU-Net-T" in capsys.readouterr().err


def test_data_that_are_not_preprocessed_are_named(
    raw: Path, copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "splits_final.json").unlink(missing_ok=True)  # another test may have made nnU-Net write it
    (copied / "STUNetPlans_3d_fullres" / "phantom_003.b2nd").unlink()
    assert "1 cases are missing (e.g. 'phantom_003')" in fails(capsys, 3, "998")  # what is beside the data knows it
    shutil.rmtree(copied / "STUNetPlans_3d_fullres" / ".stunet")
    assert (
        main(["998", "--dry_run", "-device", "cpu"]) == 0
    )  # as nnU-Net preprocesses; without raw data nobody can know
    assert "says what the data there were made from" in capsys.readouterr().err
    monkeypatch.setenv("nnUNet_raw", str(raw))
    err = fails(capsys, 3, "998")
    assert "1 cases are missing (e.g. 'phantom_003')" in err
    assert "stunet_plan_and_preprocess -d 998 -c 3d_fullres" in err
    shutil.rmtree(copied / "STUNetPlans_3d_fullres")
    assert "no case is there" in fails(capsys, 3, "998")


def test_a_cascade_without_its_first_stage_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "STUNetPlans_T.json"
    plans = read_json(path)
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    path.write_text(json.dumps(plans))
    err = fails(capsys, 3, "998", "3d_cascade_fullres")
    assert "3d_cascade_fullres needs predictions of 3d_lowres; 6 are missing" in err
    assert "stunet_train 998 3d_lowres FOLD -p STUNetPlans_T" in err


def test_a_dry_run_shows_the_run_and_writes_nothing(
    planned: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    before = everything(workspace.folder("nnUNet_preprocessed"))
    assert main(["998", "3d_fullres", "0", "--size", "S", "--set", "num_epochs=7", "--dry_run", "-device", "cpu"]) == 0
    err = capsys.readouterr().err
    assert "STU-Net-S, 14.5 M parameters, 6 stages" in err
    assert "STUNetPlans_S-epochs7" in err
    assert everything(tmp_path / "results") == set()
    assert everything(workspace.folder("nnUNet_preprocessed")) == before


@pytest.mark.process
@pytest.mark.slow
def test_a_run_has_the_name_that_is_given(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry = ["998", "--dry_run", "-device", "cpu", "--name", "mine"]
    for values in ([], ["--set", "num_epochs=7"]):
        assert main([*dry, *values]) == 0
        assert "STUNetPlans_T-mine" in capsys.readouterr().err
    plan = derive(
        read_plan(copied / "STUNetPlans_T.json"),
        read_json(copied / "dataset.json"),
        overrides={"num_epochs": 7},
        name="mine",
    )
    write_json(copied / f"{plan.name}.json", plan.to_json())
    assert main([*dry, *values]) == 0
    capsys.readouterr()
    assert "exist and differ" in fails(capsys, 3, *dry, "--set", "num_epochs=8")
    assert "begins or ends with '_'" in fails(capsys, 2, "998", "--dry_run", "--name", "a_")
    assert "is a path, not a name" in fails(capsys, 3, "998", "--dry_run", "--name", "a/b")


def test_the_last_training_is_the_one_that_was_stopped_last(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "none"))
    assert "--last: no training was stopped" in fails(capsys, 3, "--last")
    assert "leave these" in fails(capsys, 2, "998", "--last")


def test_a_training_ends_with_the_dice_of_each_class_that_validation_has(tmp_path: Path) -> None:
    """Of partial labels: a case has what it annotates, a union has no name of its own."""
    labels = {"background": 0, "left": 1, "right": 2, "aorta": 3}
    description = {"labels": labels, "channel_names": {"0": "CT"}, "numTraining": 3, "file_ending": ".nii.gz"}
    write_json(tmp_path / "dataset.json", description)
    cases = [{"1": {"Dice": 0.5}, "(1, 2)": {"Dice": 0.25}}, {"1": {"Dice": 0.75}}, {"3": {"Dice": math.nan}}]
    means = {"1": {"Dice": 0.625}, "(1, 2)": {"Dice": 0.25}, "3": {"Dice": math.nan}}
    metrics = {"mean": means, "metric_per_case": [{"metrics": case} for case in cases]}
    columns, rows = _dice_table(SimpleNamespace(metrics=metrics, model=tmp_path))  # type: ignore[arg-type]
    assert columns == ["class", "Dice", "cases"]
    assert rows == [["left", "0.6250", "2"], ["left + right", "0.2500", "1"], ["aorta", "-", "0"]]


def test_sigterm_leaves_a_state_that_c_continues_to_the_end(
    planned: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    argv = ["998", "3d_fullres", "0", "-device", "cpu", *ROUND]
    with subprocess.Popen([str(STUNET_TRAIN), *argv], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 1/3"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 75, rest
    assert "try: the same command with --c" in rest
    assert (next(tmp_path.glob("*/*/fold_0")) / "checkpoint_latest.pth").is_file()
    assert "this fold was begun" in fails(capsys, 3, *argv)

    done = subprocess.run([str(STUNET_TRAIN), *argv, "--c"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/3" not in done.stderr
    assert "epoch 3/3" in done.stderr
    assert "\nmean validation Dice " in done.stdout
    assert main([*argv, "--c"]) == 0
    out, err = capsys.readouterr()
    assert out == done.stdout
    assert "nothing to do" in err


def weights_file(path: Path, spoil: Callable[[dict[str, torch.Tensor]], None] | None = None, ndim: int = 3) -> Path:
    """Weights of size T without plans, spoilt."""
    state = dict(build("T", [[1] * ndim, *[[2] * ndim] * 5], 1, 3).state_dict())
    if spoil:
        spoil(state)
    torch.save(state, path)
    return path


def pretext_file(path: Path, transfers: str) -> Path:
    """The same as a checkpoint of a pre-training without labels."""
    state = torch.load(weights_file(path), weights_only=True)
    mine = {"method": "mae", "transfers": transfers, "state": {}}
    save_checkpoint({"network_weights": state, "init_args": {}, "stunet": {"pretext": mine}}, path)
    return path


def with_nan(state: dict[str, torch.Tensor]) -> None:
    state["conv_blocks_context.1.0.conv1.weight"].view(-1)[3] = float("nan")


def without_half_of_the_encoder(state: dict[str, torch.Tensor]) -> None:
    for name in [name for name in state if name.startswith("conv_blocks_context.5")]:
        state[name.replace("conv_blocks", "other_blocks")] = state.pop(name)


@for_each(
    ("spoil", "ndim", "message"),
    [(with_nan, 3, "NaN or infinite weights"), (None, 2, "2D"), (without_half_of_the_encoder, 3, "")],
)
def test_weights_that_do_not_fit_leave_nothing_behind(
    planned: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[dict[str, torch.Tensor]], None] | None,
    ndim: int,
    message: str,
) -> None:
    path = weights_file(tmp_path / "w.pth", spoil, ndim)
    folders = [workspace.folder(name) for name in ("nnUNet_preprocessed", "nnUNet_results")]
    before = [everything(folder) for folder in folders]
    assert main(["998", "3d_fullres", "0", "-device", "cpu", "--pretrained", str(path)]) == 4
    assert message in capsys.readouterr().err
    assert [everything(folder) for folder in folders] == before


def test_a_dry_run_shows_what_weights_would_become(
    planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights_file(tmp_path / "w.pth")
    before = everything(workspace.folder("nnUNet_preprocessed"))
    assert main(["998", "3d_fullres", "0", "-device", "cpu", "--pretrained", str(path), "--dry_run"]) == 0
    err = capsys.readouterr().err
    assert "STUNetPlans_T-ramp-w." in err
    assert "100.0% of the encoder" in err
    assert "epochs 1-1000: learning rate rising to 0.001 in 50, falling" in err
    assert everything(workspace.folder("nnUNet_preprocessed")) == before


def test_strategies_are_listed_with_what_they_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(strategies.STRATEGIES)
    assert "learning-rate ramp is 'ramp'" in out


def planned_with(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The plans' name and the rest of what a dry run says."""
    assert main(["998", "3d_fullres", "0", "-device", "cpu", "--dry_run", *argv]) == 0
    return capsys.readouterr().err


def test_plans_with_weights_keep_their_strategy_and_head(
    planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights_file(tmp_path / "w.pth")
    folder = workspace.preprocessed_dataset(planned)
    plan, start = read_plan(folder / "STUNetPlans_T.json"), Start(path)
    weights = plan_entry(start, choose_heads(start, "reset", read_json(folder / "dataset.json")), is_file=True)
    derived = derive(plan, read_json(folder / "dataset.json"), finetune="full", weights=[weights])
    file = folder / f"{derived.name}.json"
    write_json(file, derived.to_json())
    try:
        assert main(["998", "3d_fullres", "0", "-p", file.stem, "--dry_run"]) == 4
        assert "add --pretrained with their file" in capsys.readouterr().err
        assert f"  {file.stem}\n" in planned_with(capsys, "-p", file.stem, "--pretrained", str(path))
        other = planned_with(capsys, "-p", file.stem, "--pretrained", str(path), "--finetune", "linear")
        assert f"  {file.stem.replace('-full-', '-linear-')}\n" in other
    finally:
        file.unlink()


def test_a_head_that_cannot_be_what_was_asked_for_is_warned_of(
    planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights_file(tmp_path / "w.pth")
    assert "warning: --head slice is not possible" in planned_with(capsys, "--pretrained", str(path), "--head", "slice")


def test_the_plan_says_the_pretext_and_what_of_it_is_transferred(
    planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pretext_file(tmp_path / "w.pth", "all")
    err = planned_with(capsys, "--pretrained", str(path))
    assert re.search(r"  STUNetPlans_T-ramp-w\.\w{6}-mae\n", err)
    assert "pre-training: mae" in err
    assert "as the heads of 'mae', which trained the weights without labels, are of no classes" in err
    err = planned_with(capsys, "--pretrained", str(path), "--transfer", "encoder", "--finetune", "encoder-frozen")
    assert re.search(r"  STUNetPlans_T-encoder-frozen-w\.\w{6}-mae-encoder\n", err)
    assert "transferred: stem and encoder; decoder and upsampling are initialised at random" in err
    for head in ("reuse", "slice"):
        err = fails(capsys, 2, "998", "-device", "cpu", "--pretrained", str(path), "--head", head, "--dry_run")
        assert f"--head {head}, but the heads of 'mae'" in err


def test_several_weights_start_a_network_with_an_encoder_for_each(
    planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = pretext_file(tmp_path / "one.pth", "all"), tmp_path / "two.pth"
    torch.manual_seed(1)
    given = ["--pretrained", str(one), "--pretrained", str(weights_file(other))]
    err = planned_with(capsys, *given)
    assert re.search(r"  STUNetPlans_T-ramp-one\.\w{6}-mae-two\.\w{6}\n", err)
    assert "STU-Net-T with 2 encoders" in err
    assert f"encoder 1: weights: {one}; 100.0% of the encoder loaded" in err
    assert "encoder 1: pre-training: mae" in err
    assert f"encoder 2: weights: {other}; 100.0% of the encoder loaded" in err
    assert main(["998", "--dry_run", "--size", "S", *given]) == 2
    assert "but the weights 'one." in capsys.readouterr().err
    folder = workspace.preprocessed_dataset(planned)
    plan, description = read_plan(folder / "STUNetPlans_T.json"), read_json(folder / "dataset.json")
    weights = JointStart([Start(one), Start(other)]).plan_entries([True, True], description)
    derived = derive(plan, description, finetune="ramp", weights=weights)
    file = folder / f"{derived.name}.json"
    write_json(file, derived.to_json())
    try:
        assert main(["998", "3d_fullres", "0", "-p", file.stem, "--dry_run"]) == 4
        assert "add --pretrained for each of them" in capsys.readouterr().err
        assert f"  {file.stem}\n" in planned_with(capsys, "-p", file.stem, *given)
        alone = planned_with(capsys, "-p", file.stem, "--pretrained", str(other))
        assert re.search(r"  STUNetPlans_T-ramp-two\.\w{6}-reset\nSTU-Net-T, ", alone)
    finally:
        file.unlink()


def test_2d_weights_start_a_3d_training_when_asked_to(
    planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights_file(tmp_path / "w.pth", ndim=2)
    err = planned_with(capsys, "--pretrained", str(path), "--inflate", "centre")
    assert re.search(r"  STUNetPlans_T-ramp-w\.\w{6}-reset-inflate-centre\n", err)
    assert "kernels: 2D, made 3D by 'centre'" in err
    dry = ["998", "3d_fullres", "0", "-device", "cpu", "--dry_run", "--pretrained"]
    assert main([*dry, str(path)]) == 4
    assert "--inflate average makes them 3D" in capsys.readouterr().err
    assert main([*dry, str(weights_file(tmp_path / "3d.pth")), "--inflate", "centre"]) == 2
    assert "--inflate makes 2D weights 3D, but" in capsys.readouterr().err


def test_a_preset_sets_what_no_flag_sets(planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text("title = 'x'\nsize = 'T'\nnote = 'takes a day'\n[set]\nnum_epochs = 7\nmomentum = 0.5\n")
    dry = ["998", "--preset", str(preset), "--dry_run", "-device", "cpu"]
    assert main([*dry, "--set", "num_epochs=8"]) == 0
    said = capsys.readouterr().err
    assert f"{preset}: takes a day" in said
    assert "STUNetPlans_T-epochs8-mom0.5" in said
    preset.write_text("title = 'x'\nsize = 'T'\n")
    assert main([*dry, "--fsdp", "-num_gpus", "2"]) == 0
    assert "in 2 parts of 1 (2 processes)" in capsys.readouterr().err


def test_without_weights_a_strategy_is_its_schedule(planned: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = planned_with(capsys, "--finetune", "linear", "--set", "num_epochs=20")
    assert "(its schedule, without weights)" in err
    assert "trains everything" in err
    assert "warning: 20 epochs are too few for the ramp of 'linear': it lasts one epoch or none" in err
    assert "5 stages" in planned_with(capsys, "--finetune", "shallow")


def test_going_on_needs_no_weights(planned: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["998", "3d_fullres", "0", "--pretrained", str(tmp_path / "gone.pth"), "--c"]) == 4
    assert "instead of --pretrained" in capsys.readouterr().err


def test_the_mean_dice_is_that_of_the_classes_that_validation_has() -> None:
    from stunet.kinds import mean_dice

    nan = float("nan")
    missing = {"foreground_mean": {"Dice": nan}}
    means = {"1": {"Dice": 0.5}, "2": {"Dice": nan}, "3": {"Dice": 0.7}}
    assert mean_dice({"mean": means, **missing}) == pytest.approx(0.6)
    assert mean_dice({"mean": means, "foreground_mean": {"Dice": 0.65}}) == 0.65
    assert math.isnan(mean_dice({"mean": {"1": {"Dice": nan}}, **missing}))
