"""stunet_models as a user types it: what it prints, where, and its exit codes."""

import json
from pathlib import Path

import pytest
import torch

from stunet.cli.models import main
from stunet.networks import build
from tests.loops import for_each
from tests.tiny_model import STRIDES, TINY


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "models.toml").write_text(TINY)
    monkeypatch.setenv("STUNET_MODELS", str(folder))
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save({"state_dict": build("T", STRIDES, 1, 3).state_dict()}, tmp_path / "tiny.model")
    return tmp_path / "tiny.model"


def test_list_has_a_line_per_model(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert main(["import", str(file)]) == 0
    assert main(["import", str(file.parent / "store" / "STU-Net-T.tiny"), "--name", "mine"]) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "467 MB" in lines["STU-Net-B.totalseg"]
    assert "  no  " in lines["STU-Net-B.totalseg"]
    assert "no, by hand" in lines["STU-Net-S.abdomenatlas"]
    assert "unknown" in lines["STU-Net-B.brats21"]
    assert "  yes  " in lines["STU-Net-T.tiny"]
    assert "  yes  " in lines["mine"]


def test_list_as_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    document = {model["name"]: model for model in json.loads(capsys.readouterr().out)}
    assert document["STU-Net-L.totalseg"]["strides"][-1] == [1, 1, 2]
    assert document["STU-Net-L.totalseg"]["installed"] is None
    assert document["STU-Net-B.brats21"]["missing"][:2] == ["channels", "classes"]


def test_info_says_the_preprocessing_in_words_and_whose_checksum_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "stu-net-b"]) == 0
    text = capsys.readouterr().out
    for expected in ("1.5 x 1.5 x 1.5 mm", "z-score of each image", "1 x 1 x 2", "(published)", "Apache-2.0"):
        assert expected in text
    assert main(["info", "STU-Net-L", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sha256"] is None
    assert main(["info", "STU-Net-L"]) == 0
    assert "not published: recorded at the first download" in capsys.readouterr().out


def test_a_model_is_imported_shown_checked_and_exported(
    capsys: pytest.CaptureFixture[str], file: Path, store: Path, tmp_path: Path
) -> None:
    assert main(["import", str(file)]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(store / "STU-Net-T.tiny")
    assert "is STU-Net-T.tiny" in shown.err
    assert "stunet_predict --model STU-Net-T.tiny" in shown.err
    assert main(["download", "STU-Net-T.tiny", "--offline"]) == 0
    assert main(["check", "stu-net-t.tiny"]) == 0
    assert "none with NaN; they fit the plans" in capsys.readouterr().out
    assert main(["export", "STU-Net-T.tiny", "-o", str(tmp_path / "t.safetensors"), "--half"]) == 0
    capsys.readouterr()
    assert main(["export", "STU-Net-T.tiny", "-o", str(tmp_path / "t.zip"), "--format", "nnunet"]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "t.zip")
    assert "nnUNetv2_predict_from_modelfolder -m $nnUNet_results/STU-Net-T.tiny/nnUNetTrainer__" in shown.err
    assert main(["import", str(tmp_path / "t.safetensors"), "--name", "half"]) == 0
    assert "which the registry lacks" in capsys.readouterr().err
    assert main(["info", "half"]) == 0
    assert str(tmp_path / "t.safetensors") in capsys.readouterr().out


@for_each(
    ("arguments", "code", "message"),
    [
        (["info", "STU-Net-X"], 4, "no model 'STU-Net-X'; did you mean"),
        (["download", "STU-Net-B", "--offline"], 4, "is not installed"),
        (["download", "STU-Net-T.tiny"], 4, "cannot be downloaded automatically"),
        (["check", "STU-Net-B"], 4, "is not installed"),
        (["import", "a" * 5000], 4, "no file 'aaa"),
        (["import", "nothing.model"], 4, "no file 'nothing.model'"),
        (["export", "STU-Net-T.tiny", "-o", "x"], 4, "cannot be downloaded"),
        (["export", "STU-Net-T.tiny", "-o", "x", "--peft", "--format", "nnunet"], 2, "--peft is a form of its own"),
        (["import", ".", "--pkl", "x.pkl"], 2, "--pkl and --dataset belong to a file"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_hint(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    first, second = captured.err.splitlines()
    assert first.startswith("stunet_models: ")
    assert message in first
    assert second.startswith("  try: ")
    assert captured.out == ""


def test_a_model_that_is_missing_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "STU-Net-S.totalseg", "STU-Net-B.totalseg", "--offline"]) == 4
    err = capsys.readouterr().err
    assert "STU-Net-S.totalseg" in err
    assert "STU-Net-B.totalseg" in err
