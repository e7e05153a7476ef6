"""Tests of stunet_features: what it writes, what it keeps, how it fails, and that Python gives the same."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from safetensors.numpy import load_file

import stunet
from stunet.cli.features import main
from stunet.inference.features.model import Model
from stunet.probing import probe as probing
from tests.predictor_models import SMALL, make_model, write_dicom, write_image


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six images of five subjects with labels, a model, and an empty store."""
    make_model(tmp_path / "model" / "T__P__3d_fullres")
    names = ["p1_V1", "p1_V2", "p2_V1", "p3_V1", "p4_V1", "p5_V1"]
    subjects = {name: name[:2] for name in names}
    description = {"labels": {"background": 0, "a": 1, "b": 2}, "subjects": subjects, "file_ending": ".nii.gz"}
    description |= {"channel_names": {"0": "MR0"}, "numTraining": 6}
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/dataset.json").write_text(json.dumps(description))
    for seed, name in enumerate(names):
        image = sitk.ReadImage(str(write_image(tmp_path / f"raw/imagesTr/{name}_0000.nii.gz", seed, SMALL)))
        labels = np.zeros(SMALL, np.uint8)
        labels[4:7, 5:9, 6:10] = 1
        labels[8:, 3, 3] = 2 if seed else 0
        made = sitk.GetImageFromArray(labels)
        made.CopyInformation(image)
        (tmp_path / "raw/labelsTr").mkdir(exist_ok=True)
        sitk.WriteImage(made, str(tmp_path / f"raw/labelsTr/{name}.nii.gz"))
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    monkeypatch.setattr(probing, "BOOTSTRAP", 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: Any) -> int:
    given = ["-i", "raw/imagesTr", "-o", "out", "--model", "model", "-device", "cpu", "--precision", "fp32"]
    return main([*given, "--disable_progress_bar", *map(str, arguments)])


def error(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    what, hint = capsys.readouterr().err.splitlines()[-2:]
    assert what.startswith("stunet_features: ")
    assert hint.startswith("  try: ")
    return what, hint


def test_cases_become_files_and_one_table_and_python_gives_the_same(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--labels", "raw/labelsTr", "--pool", "case", "class", "--stages", 0, 2) == 0
    assert capsys.readouterr().out.splitlines()[0] == "out/p1_V1.safetensors"
    assert sorted(file.name for file in Path("out").iterdir())[-2:] == ["p4_V1.safetensors", "p5_V1.safetensors"]
    tensors = load_file("out/p1_V2.safetensors")
    assert {name: values.shape for name, values in tensors.items()} == {"stage_0": (3, 4), "stage_2": (3, 16)}
    with Path("out/features.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows[:5]] == ["case", "a", "case", "a", "b"]  # the first has no b
    assert [row["subject"] for row in rows[:5]] == ["p1"] * 5
    assert float(rows[3]["stage2_15"]) == pytest.approx(tensors["stage_2"][1, 15], rel=1e-6)
    model = Model("model", precision="fp32")
    image, labels = place / "raw/imagesTr/p1_V2_0000.nii.gz", place / "raw/labelsTr/p1_V2.nii.gz"
    found = model.features(image, labels=labels, pools=["case", "class"], classes={"a": [1], "b": [2]}, stages=[0, 2])
    for stage, values in found.items():
        torch.testing.assert_close(values, torch.from_numpy(tensors[f"stage_{stage}"]), rtol=0, atol=0)
    result = stunet.features(
        "raw/imagesTr", "again", model="model", device="cpu", precision="fp32", labels="raw/labelsTr",
        pools=["case", "class"], stages=[0, 2],
    )  # fmt: skip
    assert not result.errors
    assert Path("again/features.csv").read_bytes() == Path("out/features.csv").read_bytes()


def test_what_is_done_is_kept_unless_something_changed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    before = {file.name: file.stat().st_mtime_ns for file in Path("out").glob("*.safetensors")}
    write_image(place / "raw/imagesTr/p2_V1_0000.nii.gz", 77, SMALL)
    Path("out/p3_V1.safetensors").unlink()
    assert run() == 0
    assert "4 of 6 cases are done already" in capsys.readouterr().err
    after = {file.name: file.stat().st_mtime_ns for file in Path("out").glob("*.safetensors")}
    assert {name for name in after if after[name] != before[name]} == {"p2_V1.safetensors", "p3_V1.safetensors"}
    assert run("-step_size", 1) == 3
    assert "made by another model or with other options" in error(capsys)[0]
    first = write_image(place / "more/q1_0000.nii.gz", 5, SMALL)
    for more in ((), ("--overwrite",)):  # the others stay, and are not of the same features
        assert run("-i", first, "-step_size", 1, *more) == 3
        assert "p1_V1.safetensors' was made by another model or with other options" in error(capsys)[0]
    Path("out/probe.csv").write_text("of what is replaced")
    assert run("-step_size", 1, "--overwrite") == 0
    assert not Path("out/probe.csv").exists()
    Path("out/p3_V1.safetensors").write_bytes(b"nothing")
    assert run("-step_size", 1) == 3
    assert "does not hold features of stunet, or is damaged" in error(capsys)[0]


def test_a_broken_case_does_not_stop_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "raw/imagesTr/p2_V1_0000.nii.gz").write_bytes(b"broken")
    (place / "raw/labelsTr/p3_V1.nii.gz").unlink()
    assert run("--labels", "raw/labelsTr") == 3
    captured = capsys.readouterr()
    assert "case 'p2_V1' failed" in captured.err
    assert "case 'p3_V1' failed: case 'p3_V1' has no label map in 'raw/labelsTr'" in captured.err
    assert len(list(Path("out").glob("*.safetensors"))) == 4


def test_a_probe_shows_scores_with_chance_and_says_when_cases_are_few(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ages = "\n".join(f"{name},{n}.5" for n, name in enumerate(["p1_V1", "p1_V2", "p2_V1", "p3_V1", "p4_V1", "p5_V1"]))
    Path("t.csv").write_text(f"case,age\n{ages}\n")
    assert run("--probe", "t.csv") == 0
    captured = capsys.readouterr()
    assert "age: regression, 6 rows of 5 subjects" in captured.out
    assert "warning: age: 5 subjects are few" in captured.err
    with Path("out/probe.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["features"] for row in rows] == ["stage 0", "stage 1", "stage 2", "all"]
    assert {row["metric"] for row in rows} == {"R2"}
    assert {row["chance"] for row in rows} == {"0.0"}


def test_scans_of_a_person_stay_together_if_a_subject_is_given_for_one_of_them(place: Path) -> None:
    ages = "".join(f"{name},{n}.5,{'X' * (n == 0)}\n" for n, name in enumerate(["p1_V1", "p1_V2", "p2_V1", "p3_V1"]))
    Path("t.csv").write_text(f"case,age,subject\n{ages}")
    assert run("--probe", "t.csv") == 3
    with Path("out/features.csv").open() as file:
        assert [row["subject"] for row in csv.DictReader(file)] == ["X", "X", "p2", "p3", "p4", "p5"]


def test_dicom_says_whose_scans_are(place: Path) -> None:
    for number, name in enumerate(("a", "b")):
        for file in write_dicom(place / name):
            content = pydicom.dcmread(file)
            content.PatientID, content.SeriesInstanceUID = "P17", f"1.2.{number}"
            (place / "scans" / name).mkdir(parents=True, exist_ok=True)
            content.save_as(place / "scans" / name / file.name)
    assert run("-i", "scans") == 0
    with Path("out/features.csv").open() as file:
        subjects = [row["subject"] for row in csv.DictReader(file)]
    assert len(subjects) == 2
    assert len({*subjects}) == 1


def test_classes_and_points_of_one_name_are_not_probed_together(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "raw/dataset.json").unlink()  # classes are called by their values, and points by their numbers
    lines, kinds = ["case,x,y,z"], ["case,kind"]
    for number, name in enumerate(["p1_V1", "p1_V2", "p2_V1", "p3_V1", "p4_V1", "p5_V1"]):
        image = sitk.ReadImage(f"raw/imagesTr/{name}_0000.nii.gz")
        lines.append(",".join(map(str, (name, *image.TransformIndexToPhysicalPoint((5, 6, 7))))))
        kinds.append(f"{name},{'ab'[number % 2]}")
    Path("points.csv").write_text("\n".join(lines))
    Path("t.csv").write_text("\n".join(kinds))
    arguments = ("--labels", "raw/labelsTr", "--points", "points.csv", "--world", "LPS", "--probe", "t.csv")
    assert run(*arguments) == 3
    assert "rows called '1' are those of a class and of a point" in error(capsys)[0]


def test_points_of_a_table_are_rows_with_targets_of_their_own(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, targets = ["case;name;x;y;z"], ["case,name,kind"]
    for number, name in enumerate(["p1_V1", "p1_V2", "p2_V1", "p3_V1", "p4_V1", "p5_V1"]):
        image = sitk.ReadImage(f"raw/imagesTr/{name}_0000.nii.gz")
        for point in range(2):
            x, y, z = image.TransformIndexToPhysicalPoint((5 + point, 6 + number, 7))
            lines.append(f"{name};n{point};{x};{y};{z}")
            targets.append(f"{name},n{point},{'ab'[(number + point) % 2]}")
    Path("points.csv").write_text("\n".join(lines))
    Path("t.csv").write_text("\n".join(targets))
    assert run("--points", "points.csv", "--world", "LPS", "--probe", "t.csv") == 0
    assert "kind: classification, 12 rows of 5 subjects (6 a, 6 b)" in capsys.readouterr().out
    assert load_file("out/p1_V1.safetensors")["stage_0"].shape == (2, 4)


def test_mistakes_are_one_line_with_the_next_step(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_text("case,y\np1_V9,a\n")
    Path("same.csv").write_text("case,y\n" + "".join(f"{n},a\n" for n in ("p1_V1", "p2_V1", "p3_V1", "p4_V1")))
    Path("once.csv").write_text(
        "case,y\n" + "".join(f"{n},{n == 'p4_V1'}\n" for n in ("p1_V1", "p2_V1", "p3_V1", "p4_V1"))
    )
    wrong = [
        (("--probe", "t.csv"), 3, "has the case 'p1_V9', which is not among the images"),
        (("--probe", "same.csv"), 3, "y: the target is the same everywhere, 'a'"),
        (("--probe", "once.csv"), 3, "y: the class 'True' occurs in one subject"),
        (("--target", "y"), 2, "--target and --task are for a probe"),
        (("--labels", "nowhere"), 3, "no folder 'nowhere'"),
        (("--pool", "class"), 2, "--pool class needs --labels"),
        (("--stages", 5), 2, "has no stage 5: it has 0 to 2"),
        (("-f", 3), 3, "fold 3 of"),
        (("-o", "raw/imagesTr"), 3, "would share the folder"),
        (("--model", "NoSuch"), 4, "no model or file 'NoSuch'"),
        (("-d", 3), 2, "--model names a model"),
    ]
    for arguments, code, message in wrong:
        assert run(*arguments) == code, arguments
        assert message in error(capsys)[0]


def test_nothing_of_a_killed_run_is_left(place: Path) -> None:
    Path("out").mkdir()
    left = Path("out") / f".part-{os.getpid() + 10**6}-p1_V1.safetensors"
    left.write_bytes(b"")
    assert run() == 0
    assert not left.exists()


def test_parts_write_what_one_run_writes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("raw/imagesTr/p6_V1_0000.nii.gz").write_bytes(b"no image")
    Path("targets.csv").write_text("case,age\n" + "".join(f"p{n}_V1,{10 * n}\n" for n in range(1, 6)))
    command = ("--stages", 0, "--probe", "targets.csv", "--task", "regression")
    assert run(*command) == 3
    one = {path.name: path.read_bytes() for path in Path("out").glob("[!.]*")}
    shutil.rmtree("out")
    capsys.readouterr()
    assert run(*command, "-num_parts", 3, "-part_id", 2) == 0
    assert "part 2 of 3 is done; missing: 0 (not run yet), 1 (not run yet)" in capsys.readouterr().err
    assert run(*command, "-num_parts", 3, "-part_id", 0) == 3  # the broken one
    assert run(*command, "--merge") == 3
    assert "of 3 parts, 1 are missing: 1 (not run yet)" in error(capsys)[0]
    assert run(*command, "-num_parts", 3, "-part_id", 1) == 3  # it merges, and names the case that failed elsewhere
    assert {path.name: path.read_bytes() for path in Path("out").glob("[!.]*")} == one
    for name in ("features.csv", "probe.csv"):
        Path("out", name).unlink()
    assert run(*command, "--merge") == 3
    assert {path.name: path.read_bytes() for path in Path("out").glob("[!.]*")} == one
    Path("out/p2_V1.safetensors").unlink()
    assert run(*command, "--merge") == 3
    assert error(capsys)[1].endswith("-num_parts 3 -part_id 2")
