"""Tests of stunet_rank: what it finds and writes, what it keeps, how it fails, and what follows from it."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import stunet
from stunet.cli import train
from stunet.cli.rank import main
from stunet.files import read_json
from stunet.ranking.formats import read_scores
from stunet.ranking.scores import SCORES
from stunet.weights.checkpoints import load_checkpoint, save_checkpoint
from tests.html_pages import check_page
from tests.loops import for_each
from tests.predictor_models import SMALL, make_model, write_image

DATASET = "Dataset003_Target"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five labelled images and three models: two of them whole, and an encoder."""
    raw = tmp_path / "raw" / DATASET
    for seed in range(5):
        image = sitk.ReadImage(str(write_image(raw / f"imagesTr/c{seed}_0000.nii.gz", seed, SMALL)))
        labels = np.zeros(SMALL, np.uint8)
        labels[4:7, 5:9, 6 : 9 + seed] = 1
        labels[8:11, 3:6, 3:7] = 2
        made = sitk.GetImageFromArray(labels)
        made.CopyInformation(image)
        (raw / "labelsTr").mkdir(exist_ok=True)
        sitk.WriteImage(made, str(raw / f"labelsTr/c{seed}.nii.gz"))
    describe(raw)
    for name, fold in (("one", 0), ("two", 1), ("encoder", 2)):
        make_model(tmp_path / name / "T__P__3d_fullres", folds=[fold])
    file = tmp_path / "encoder/T__P__3d_fullres/fold_2/checkpoint_final.pth"
    content = load_checkpoint(file)
    content["network_weights"] = {
        name: values for name, values in content["network_weights"].items() if name.startswith("conv_blocks_context")
    }
    file.unlink()
    save_checkpoint(content, file)
    for variable, folder in (("raw", "raw"), ("preprocessed", "pre"), ("results", "res")):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / folder))
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return raw


def describe(raw: Path, **more: Any) -> None:
    content = {"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz", "numTraining": 5}
    (raw / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MR"}, **content, **more}))


def run(*arguments: Any) -> int:
    given = [
        "-d",
        "3",
        "-device",
        "cpu",
        "--precision",
        "fp32",
        "--points",
        "40",
        "--disable_progress_bar",
        "-o",
        "out",
    ]
    return main([*given, *map(str, arguments)])


def stamps() -> dict[str, int]:
    return {str(path.relative_to("out")): path.stat().st_mtime_ns for path in Path("out/bank").rglob("*.safetensors")}


def test_models_are_ranked_and_the_files_say_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--models", "one", "other=two", "--scores", *SCORES) == 0
    out = capsys.readouterr().out
    found = read_json(Path("out/rank.json"))
    assert f"{DATASET}: 5 cases, 2 classes, read at the decoder; higher is better" in out
    best = found["ranking"][0]
    path = Path("one" if best == "one" else "two").absolute()
    assert f"next: stunet_train 3 3d_fullres 0 --pretrained {path}" in out
    assert set(found["ranking"]) == {"one", "other"}
    assert found["verdict"] in out
    values = found["targets"][DATASET]["scores"]
    assert set(values) == set(SCORES)
    for name, table in values.items():
        for each in table.values():
            assert np.isfinite(each["score"]), name
            assert len(each["draws"]) > 250, name
    assert {scored.score for scored in read_scores(Path("out/rank.json")).targets[DATASET]["ccfv"].values()} == {
        each["score"] for each in values["ccfv"].values()
    }
    with Path("out/rank.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * len(SCORES)
    assert Path("out/rank.png").stat().st_size > 5000
    assert "Models" in check_page(Path("out/rank.html")).text
    result = stunet.rank(3, ["one", "other=two"], device="cpu", precision="fp32", points=40, output="again")
    assert result.outcome.order == found["ranking"]
    assert result.outcome.to_json()["targets"][DATASET]["scores"]["ccfv"] == values["ccfv"]


def test_a_further_candidate_or_case_costs_only_itself_and_what_is_damaged_is_read_again(place: Path) -> None:
    assert run("--models", "one", "--cases", 4) == 0
    before = stamps()
    assert len(before) == 8
    expected = read_json(Path("out/rank.json"))
    assert run("--models", "one", "two", "--cases", 5) == 0
    after = stamps()
    assert len(after) == 15
    assert {name for name in before if after[name] != before[name]} == set()
    broken = next(Path(f"out/{name}") for name in before if "points" not in name)
    broken.write_bytes(broken.read_bytes()[:-40])
    changed = place / "imagesTr/c1_0000.nii.gz"
    os.utime(changed, ns=(1, 1))
    assert run("--models", "one", "--cases", 4) == 0
    again = stamps()
    new = {name for name in before if again[name] != before[name]}
    assert new == {str(broken.relative_to("out")), *(name for name in before if name.endswith("c1.safetensors"))}
    assert read_json(Path("out/rank.json"))["targets"] == expected["targets"]
    assert not list(Path("out/bank/.prepared").glob("*"))


def test_two_cases_give_scores_without_intervals(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--models", "one", "two", "--cases", 2) == 0
    assert "one and two cannot be told apart" in capsys.readouterr().out.replace("two and one", "one and two")
    found = json.loads(Path("out/rank.json").read_text(), parse_constant=pytest.fail)
    assert found["targets"][DATASET]["scores"]["ccfv"]["one"]["low"] is None
    assert read_scores(Path("out")).targets[DATASET]["ccfv"]["one"].draws == ()


def test_candidates_are_compared_at_the_part_that_all_have(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--models", "one", "encoder", "--scores", "ccfv", "leep") == 0
    captured = capsys.readouterr()
    assert "all candidates are compared by their encoders; without a trained decoder: encoder" in captured.err
    found = read_json(Path("out/rank.json"))
    assert found["read"] == "encoder"
    assert found["targets"][DATASET]["scores"]["leep"]["encoder"] == {"error": "this candidate has no head"}
    assert run("--models", "one", "encoder", "--layers", "decoder") == 0
    found = read_json(Path("out/rank.json"))
    assert found["ranking"] == ["one"]
    assert found["targets"][DATASET]["scores"]["ccfv"]["encoder"] == {"error": "no trained decoder"}
    assert "only one has the score ccfv" in capsys.readouterr().out


def test_a_candidate_that_fails_does_not_stop_the_others(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(Path("channels/T__P__3d_fullres"), channels=2)
    make_model(Path("flat/T__P__2d"))
    Path("none.pth").write_bytes(b"nothing")
    assert run("--models", "one", "channels", "none.pth", "missing.pth", "two") == 3
    captured = capsys.readouterr()
    assert "candidate 'channels': takes 2 channel(s), and the dataset has 1" in captured.err
    assert "candidate 'none.pth'" in captured.err
    assert "no model or file 'missing.pth'" in captured.err
    assert set(read_json(Path("out/rank.json"))["ranking"]) == {"one", "two"}
    assert run("--models", "channels", "missing.pth") == 3
    assert run("--models", "flat", "one") == 0  # slice by slice


@for_each(
    ("arguments", "code", "what"),
    [
        ([], 2, "the following arguments are required"),
        (["--models", "one", "--scores", "ccvf"], 2, "no score 'ccvf'; did you mean 'ccfv'?"),
        (["--models", "x=one", "x=two"], 2, "two candidates are called 'x'"),
        (["--models", "all-installed"], 2, "no model is installed"),
        (["--models", "one", "--cases", "1"], 2, "a ranking compares cases"),
        (["--models", "one", "-step_size", "2"], 2, "-step_size 2"),
        (["--models", "one", "--seed", "-1"], 2, "--seed -1 is negative"),
        (["--models", "one", "--set", "num_epochs=1"], 2, "are for --finetune"),
        (["--models", "one", "-f", "0"], 3, "-f 0 needs the folds"),
        (["--models", "encoder", "--scores", "leep"], 3, "no candidate has the score leep: this candidate has no head"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: list[str], code: int, what: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert run(*arguments) == code
    except SystemExit as error:
        assert error.code == code  # noqa: PT017
    assert what in capsys.readouterr().err
    assert not Path("out/rank.json").exists()


def test_datasets_that_cannot_be_ranked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(1, 5):
        image = sitk.ReadImage(str(place / f"labelsTr/c{seed}.nii.gz"))
        sitk.WriteImage(image * 0, str(place / f"labelsTr/c{seed}.nii.gz"))
    assert run("--models", "one") == 3
    assert "no class is in two of the labelled cases" in capsys.readouterr().err
    shutil.rmtree(place / "labelsTr")
    assert run("--models", "one") == 3
    error = capsys.readouterr().err
    assert "case 'c0' is left out" in error
    assert "0 labelled case(s): a ranking compares cases" in error
    describe(place, labels={"background": 0})
    assert run("--models", "one") == 3
    assert "images without labels" in capsys.readouterr().err
    assert not Path("out/rank.json").exists()


def test_a_case_that_cannot_be_read_is_left_out_and_a_class_in_one_case_is_told_of(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "labelsTr/c0.nii.gz").write_bytes(b"broken")
    for seed in range(2, 5):
        array = sitk.ReadImage(str(place / f"labelsTr/c{seed}.nii.gz"))
        sitk.WriteImage(sitk.Cast(array == 1, sitk.sitkUInt8), str(place / f"labelsTr/c{seed}.nii.gz"))
    assert run("--models", "one", "two") == 0
    captured = capsys.readouterr()
    assert "case 'c0' is left out" in captured.err
    assert "only one case has b" in captured.err
    assert sorted(read_json(Path("out/rank.json"))["cases"]) == ["c1", "c2", "c3", "c4"]


def test_a_training_takes_the_best_of_a_ranking_while_its_weights_are_the_same(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--models", "one", "two") == 0
    best = read_json(Path("out/rank.json"))["ranking"][0]
    asked = []
    monkeypatch.setattr(train, "train", lambda request, shown: asked.append(request))
    assert train.main(["--pretrained", "best-of", "out/rank.json", "3", "3d_fullres", "0"]) == 0
    assert asked[0].pretrained == [str(Path(best).absolute())]
    assert asked[0].dataset == "3"
    assert train.main(["3", "--pretrained", "best-of"]) == 2
    assert train.main(["3", "--pretrained", "best-of", "none.json"]) == 3
    file = next(Path(best).rglob("checkpoint_final.pth"))
    content = load_checkpoint(file)
    content["network_weights"] = {name: values * 2 for name, values in content["network_weights"].items()}
    torch.save(content, file)
    assert train.main(["3", "--pretrained", "best-of", "out/rank.json"]) == 4
    assert "are not those that were ranked" in capsys.readouterr().err
    assert len(asked) == 1
