"""What the folder of results says about its making, and results of something else are never taken for one's own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stunet.cli.predict import main
from stunet.datasets.listing import visible
from tests.loops import for_each
from tests.predictor_models import make_model, write_image

MODEL = Path("T__P__3d_fullres")
SETTINGS = Path("out/predict_from_raw_data_args.json")
SYSTEM = "[classes]\nb = 7\norgan = { labels = [3], from = ['a'] }\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory: a model with three folds, and two images a and b in `in`."""
    monkeypatch.chdir(tmp_path)
    make_model(MODEL, folds=(0, 1, 2), mirror=None)
    for seed, name in enumerate("ab"):
        write_image(Path(f"in/{name}_0000.nii.gz"), seed, (13, 25, 15))


def predict(*more: Any, source: str = "in", out: str = "out", fold: int = 0) -> int:
    options = ("-device", "cpu", "--disable_progress_bar", "-f", fold, *more)
    return main([str(part) for part in ("-i", source, "-o", out, "--model", MODEL, *options)])


def refused(capsys: pytest.CaptureFixture[str], what: str) -> None:
    """The last command said so, and that another folder is the way out."""
    message, hint = capsys.readouterr().err.splitlines()[-2:]
    assert what in message
    assert "another folder with -o" in hint


def retrain() -> None:
    """Other weights take the place of fold 0."""
    shutil.copy(MODEL / "fold_1/checkpoint_final.pth", MODEL / "fold_0/checkpoint_final.pth")


def results() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("out").glob("*.nii.gz")}


def test_results_are_kept_only_if_the_same_would_come_out(capsys: pytest.CaptureFixture[str]) -> None:
    Path("system.toml").write_text(SYSTEM)
    assert predict() == 0
    whole = results()
    Path("out/b.nii.gz").unlink()
    for options, what in (
        (["--labels", "system.toml"], "labels"),
        (["--v1_preprocessing"], "v1_preprocessing"),
        (["-step_size", 0.9], "step_size"),
        (["--disable_tta"], "mirroring"),
    ):
        assert predict("--continue_prediction", *options) == 3
        refused(capsys, f"were made with other {what}")
    assert predict("--continue_prediction", fold=1) == 3
    refused(capsys, "were made with other checkpoints")
    plans = json.loads((MODEL / "plans.json").read_text())
    (MODEL / "plans.json").write_text(json.dumps(plans | {"plans_name": "Other"}))
    assert predict("--continue_prediction") == 3
    refused(capsys, "were made with other plans")
    (MODEL / "plans.json").write_text(json.dumps(plans))
    assert predict("--continue_prediction") == 0
    assert results() == whole


def test_a_label_file_that_changed_is_other_labels(capsys: pytest.CaptureFixture[str]) -> None:
    Path("system.toml").write_text(SYSTEM)
    assert predict("--labels", "system.toml") == 0
    written = json.loads(SETTINGS.read_text())["stunet"]
    assert written["labels"] == {"background": 0, "a": 3, "b": 7}
    Path("system.toml").write_text(SYSTEM.replace("[3]", "[4]"))
    assert predict("--labels", "system.toml", "--continue_prediction") == 3
    refused(capsys, "were made with other labels")


def test_weights_that_were_trained_again_do_not_continue_what_the_old_ones_began(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert predict() == 0
    retrain()
    Path("out/b.nii.gz").unlink()
    assert predict("--continue_prediction") == 3
    refused(capsys, "were made with other checkpoints")
    assert predict() == 0  # without --continue_prediction they are overwritten


@for_each("content", [None, "{}", "[]", '{"stunet": 1}'])
def test_results_of_nobody_knows_what_are_not_continued(
    capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    Path("out").mkdir()
    of_nnunet = Path("in/a_0000.nii.gz").read_bytes()
    Path("out/a.nii.gz").write_bytes(of_nnunet)
    if content:
        SETTINGS.write_text(content)
    assert predict("--continue_prediction") == 3
    refused(capsys, "nothing in 'out' says which model")
    assert results() == {"a.nii.gz": of_nnunet}


def test_a_run_that_ends_early_leaves_no_result_of_the_model_before_it() -> None:
    assert predict("--save_probabilities") == 0
    retrain()
    Path("in/b_0000.nii.gz").write_bytes(b"damaged meanwhile")
    assert predict() == 3
    names = {path.name for path in visible(Path("out").glob("*")) if path.suffix not in (".json", ".txt")}
    assert names == {"a.nii.gz"}
    write_image(Path("in/b_0000.nii.gz"), 1)
    assert predict("--continue_prediction") == 0
    assert predict(out="again") == 0
    assert results() == {path.name: path.read_bytes() for path in Path("again").glob("*.nii.gz")}


def test_results_of_two_models_do_not_mix_in_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict() == 0
    before = results()
    retrain()
    for out in ("out", "out/c.nii.gz"):  # a folder or one file: beside results of other weights either way
        assert predict(source="in/a_0000.nii.gz", out=out) == 3
        refused(capsys, "were made with other checkpoints")
    assert results() == before


def test_one_file_is_predicted_anew_whatever_was_there(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/seg.nii.gz").write_bytes(b"old")
    assert predict("--continue_prediction", source="in/a_0000.nii.gz", out="out/seg.nii.gz") == 0
    assert capsys.readouterr().out == "out/seg.nii.gz\n"
    assert results()["seg.nii.gz"] != b"old"
    assert not SETTINGS.exists()
