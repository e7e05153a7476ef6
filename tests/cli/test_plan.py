"""stunet_plan_and_preprocess and stunet_info in process, on a small phantom with real nnU-Net."""

import json
import os
import shutil
from pathlib import Path

import pytest

from stunet import workspace
from stunet.cli import info
from stunet.cli.plan_and_preprocess import main
from stunet.plans.files import plan_path
from tests.loops import for_each
from tests.processes import kill_while_it_waits, run_tasks, start_task


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@for_each(
    ("argv", "code", "message"),
    [
        (["-d", "5"], 3, "no dataset '5'"),
        (["-d", "998", "--stages", "many"], 2, "--stages 'many' is neither"),
        (["-d", "998", "-np", "1", "2"], 2, "-np has 2 values for 3 configurations"),
        (["-d", "998", "-overwrite_target_spacing", "1", "0", "1"], 2, "mm must be positive"),
        (["-d", "998", "-overwrite_plans_name", "../a"], 2, "is a path, not a name"),
        (["-d", "998", "-overwrite_target_spacing", "1", "nan", "1"], 2, "1 nan 1: mm must be positive"),
        (
            ["-d", "998", "-overwrite_target_spacing", "100", "100", "100", "--no_check"],
            3,
            "target spacing of 100 x 100",
        ),
        (["-d", "998", "-overwrite_plans_name", "a__b"], 2, "nnU-Net splits folder names at '__'"),
        (["-d", "998", "--preset", "giant"], 3, "no preset 'giant'"),
        (["-d", "998", "--network", "plain", "--size", "B"], 2, "--network plain and --size B both name a network"),
        (["-d", "998", "--network", "plain", "--checkpointing"], 2, "is for STU-Net, not for a plain U-Net"),
        (
            ["-d", "998", "-pl", "nnUNetPlannerResEncL", "--stages", "5"],
            2,
            "nnU-Net's planner, which knows no",
        ),
        (
            ["-d", "998", "-pl", "nnUNetPlannerResEncL", "-overwrite_target_spacing", "1", "1", "1"],
            2,
            "makes other data than those of nnUNetResEncUNetLPlans, which they would replace",
        ),
        (
            ["-d", "998", "-pl", "ExperimentPlanner", "-overwrite_plans_name", "STUNetPlans_T"],
            2,
            "plans of this name are stunet's",
        ),
        (["-d", "998", "--like", "998", "--network", "plain"], 2, "and --network plans"),
        (["-d", "998", "--like", "998", "--size", "L"], 2, "and --size plans"),
        (["-d", "998", "--size", "H", "-gpu_memory_target", "8", "--no_check"], 5, "STU-Net-H needs"),
        (["-d", "998", "-num_parts", "2", "-part_id", "2"], 2, "-part_id 2 with -num_parts 2"),
        (["-d", "998", "-num_parts", "2", "--clean"], 2, "--clean is for all cases at once"),
        (["-d", "998", "-num_parts", "2", "--merge"], 3, "nothing to merge: no part has left a record"),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(
    planned: str, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    before = everything(workspace.folder("nnUNet_preprocessed"))
    assert main(argv) == code
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("stunet_plan_and_preprocess: ") and message in line]
    assert everything(workspace.folder("nnUNet_preprocessed")) == before


def test_a_broken_image_is_named_before_anything_is_planned(
    planned: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "raw" / planned
    shutil.copytree(workspace.raw_dataset(planned), copy)
    broken = sorted((copy / "imagesTr").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:-500])
    monkeypatch.setenv("nnUNet_raw", str(copy.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert main(["-d", "998", "-npfp", "1"]) == 3
    assert broken.name in capsys.readouterr().err
    assert everything(tmp_path / "preprocessed") == set()


def test_a_folder_of_pairs_says_how_it_is_converted(
    planned: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("ct/p1.nii.gz", "masks/p1.nii.gz"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True)
        (tmp_path / "mine" / name).touch()
    assert main(["-d", str(tmp_path / "mine")]) == 3
    command = f"stunet_convert pairs -i {tmp_path}/mine/ct -l {tmp_path}/mine/masks -d ID --name mine"
    assert command in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    planned: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace.folder("nnUNet_preprocessed")
    before = everything(folder)
    monkeypatch.setenv("nnUNet_preprocessed", str(folder))  # the command points it elsewhere; put back by monkeypatch
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    assert main(["-d", "998", "--size", "S", "--dry_run", "-npfp", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Dataset998_Phantom: STUNetPlans_S\n")
    assert "3d_fullres" in out
    assert "left and right classes: axis 2 is not mirrored" in err
    assert everything(folder) == before


def test_a_preset_decides_spacing_and_normalization_and_is_named_for_training(
    planned: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    monkeypatch.setenv("nnUNet_preprocessed", str(workspace.folder("nnUNet_preprocessed")))  # put back afterwards
    preset = tmp_path / "own.toml"
    text = 'title = "own"\nsize = "T"\nspacing = [4, 3, 3]\nnormalization = "zscore"\nnote = "an hour, measured"\n'
    preset.write_text(text)
    assert main(["-d", "998", "--preset", str(preset), "--dry_run", "-npfp", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Dataset998_Phantom: STUNetPlans_T_4x3x3mm_z\n")
    assert "4 3 3" in out
    assert "an hour, measured" in err


def test_planning_again_preprocesses_nothing_again(
    planned: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    data = workspace.preprocessed_dataset(planned) / "STUNetPlans_3d_fullres"
    before = {path: path.stat().st_mtime_ns for path in data.glob("*.b2nd")}
    assert main(["-d", "998", "--size", "T", "-c", "3d_fullres", "-npfp", "1", "-np", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in data.glob("*.b2nd")} == before
    assert "next: stunet_train 998 3d_fullres 0" in capsys.readouterr().err


def test_parts_check_and_analyse_first_and_preprocess_once_all_cases_are_planned(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    command = ["-d", "998", "--size", "T", "-c", "3d_fullres", "-npfp", "1", "-np", "1"]

    def run(part: int, *more: str) -> str:
        assert main([*command, "-num_parts", "2", "-part_id", str(part), *more]) == 0
        return capsys.readouterr().err

    def written(folder: Path) -> dict[str, bytes]:
        names = ["dataset_fingerprint.json", "STUNetPlans_T.json", "dataset.json", "gt_segmentations"]
        found = [folder / name for name in (*names[:3], "STUNetPlans_3d_fullres/.stunet/manifest.json")]
        files = {str(path.relative_to(folder)): path.read_bytes() for path in found}
        data = [*(folder / names[3]).iterdir(), *(folder / "STUNetPlans_3d_fullres").glob("*.pkl")]
        return files | {path.name: path.read_bytes() for path in data}

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "one"))
    assert main(command) == 0
    capsys.readouterr()
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "many"))
    many = tmp_path / "many" / raw.name
    assert "part 1 of 2 is done; missing: 0 (not run yet)" in run(1)
    assert sorted(path.name for path in many.iterdir()) == [".parts"]
    said = run(0)  # the last: it plans, and preprocesses its cases
    assert "fold" not in said
    assert "part 0 of 2 is done; missing: 1 (not run yet)" in said
    assert "check Dataset998" not in (said := run(1))
    assert "next: stunet_train 998 3d_fullres 0" in said
    assert written(many) == written(tmp_path / "one" / raw.name)
    plans = (many / "STUNetPlans_T.json").read_bytes()
    (many / "STUNetPlans_3d_fullres/.stunet/manifest.json").unlink()
    (many / "dataset_fingerprint.json").unlink()
    assert main([*command, "--merge"]) == 0
    assert (many / "STUNetPlans_T.json").read_bytes() == plans
    assert written(many) == written(tmp_path / "one" / raw.name)


@pytest.mark.process
def test_an_array_of_parts_preprocesses_what_one_run_does(pre: Path) -> None:
    data = pre / "STUNetPlans_3d_fullres"
    manifest, cases = data / ".stunet/manifest.json", {path.name for path in data.glob("*.pkl")}
    command = ["-d", 998, "-p", "STUNetPlans_T", "-c", "3d_fullres", "-np", 1, "-npfp", 1]
    assert main([str(each) for each in command]) == 0
    before = manifest.read_bytes(), {name: (data / name).read_bytes() for name in cases}
    shutil.rmtree(data)
    kill_while_it_waits(data / ".stunet/parts", lambda: start_task(main, command, 2))
    run_tasks(main, command, [3, 0])
    assert not manifest.exists()
    run_tasks(main, command, [1, 2])
    assert (manifest.read_bytes(), {name: (data / name).read_bytes() for name in cases}) == before


def test_a_dry_run_shows_plans_as_they_are_and_says_what_they_lack(
    planned: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    plans = json.loads(plan_path(planned, "STUNetPlans_T").read_text())
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    added = {**plans["configurations"]["3d_fullres"]}
    del added["stunet"]
    plans["configurations"]["3d_big"] = added
    file = tmp_path / planned / "STUNetPlans_T.json"
    file.parent.mkdir()
    file.write_text(json.dumps(plans))
    command = ["-d", "998", "-p", "STUNetPlans_T", "--dry_run", "--no_check", "-c"]
    assert main([*command, "3d_fullres", "3d_big"]) == 0
    assert "3d_big" in capsys.readouterr().out
    assert os.environ["nnUNet_preprocessed"] == str(tmp_path)
    assert main([*command, "3d_lowres"]) == 2
    assert "have no configuration 3d_lowres" in capsys.readouterr().err
    assert everything(tmp_path) == {file.parent, file}


def test_a_dataset_that_fails_does_not_stop_the_next(
    planned: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    bad = workspace.folder("nnUNet_raw") / "Dataset996_Bad"
    bad.mkdir()
    (bad / "dataset.json").write_text("{}")
    try:
        assert main(["-d", "996", "998", "--size", "T", "-c", "3d_fullres", "-npfp", "1", "-np", "1"]) == 3
    finally:
        shutil.rmtree(bad)
    out, err = capsys.readouterr()
    assert f"{planned}: STUNetPlans_T" in out
    assert "stunet_plan_and_preprocess: Dataset996_Bad: " in err


def test_a_driver_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("not a program")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert info.gpus() == ["nvidia-smi does not answer"]


def test_info_shows_versions_folders_and_what_is_there(
    planned: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert info.main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["packages"]["nnunetv2"]
    assert document["datasets"] == [planned]
    assert f"{planned}/STUNetPlans_T" in document["planned"]
    assert (Path(document["nnUNet_extTrainer for nnUNetv2_train"]) / "stunet_trainers.py").is_file()
    monkeypatch.delenv("nnUNet_raw")
    assert info.main([]) == 0
    out, err = capsys.readouterr()
    assert "nnUNet_raw: not set" in out
    assert "export nnUNet_raw=" in err
