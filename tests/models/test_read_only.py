"""Models that nobody may write to, and damaged ones: reading works, and what is wrong is one line."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stunet.cli.models import main
from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from stunet.models import installing, store
from stunet.models.folder import check
from stunet.networks import build
from stunet.weights.checkpoints import save_weights
from stunet.weights.reading import read_weights
from stunet.weights.transfer import transfer
from stunet.weights.v2 import make_dataset, make_plan

STRIDES = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
NAME, FILE = "mine", "tiny.safetensors"
NOBODY = 65534  # root may write everywhere


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's, with a file of weights and a store with its model."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    monkeypatch.setenv("STUNET_MODELS", str(folder / "store"))
    plans = make_plan(
        NAME, "3d_fullres", "T", strides=STRIDES, spacing=[2, 1, 1], patch_size=[8, 16, 16], median_shape=[9, 20, 20],
        normalization=["ZScoreNormalization"], mirror_axes=[],
    ).to_json()  # fmt: skip
    dataset = make_dataset(NAME, ["CT"], ["background", "left", "right"])
    meta = {"plans": plans, "configuration": "3d_fullres", "dataset": dataset, "mirror_axes": ()}
    save_weights(folder / FILE, build("T", STRIDES, 1, 3).state_dict(), meta)
    installing.import_file(folder / FILE, NAME)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def nobody_may_write(folder: Path) -> Iterator[None]:
    """Takes the right to write away, from root as well."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(PermissionError):
            (folder / "store" / NAME / "new").touch()
        yield
    finally:
        os.seteuid(user)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def use(place: Path) -> None:
    """Everything that is done with a model without changing it."""
    folder = store.find_model(NAME)
    assert len(check(folder)) == 2
    for source in (folder, place / FILE):
        assert transfer(build("T", STRIDES, 1, 3), read_weights(source)).coverage == 1
    assert Predictor(open_model(folder), Options()).patch == (8, 16, 16)
    assert main(["list"]) == 0
    assert main(["info", NAME]) == 0


def test_a_read_only_model_is_used_and_stays_as_it_is(place: Path) -> None:
    use(place)  # and everything is imported: nobody may not read Python's own folders everywhere
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    with nobody_may_write(place):
        use(place)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_a_read_only_store_takes_no_model_and_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["import", str(place / FILE), "--name", "other"]
    assert main([*command[:-1], NAME]) == 3  # is there already; and everything is imported
    capsys.readouterr()
    before = sorted(place.rglob("*"))
    with nobody_may_write(place):
        assert main(command) == 3
    message, hint = capsys.readouterr().err.splitlines()
    assert "cannot write into the folder of models" in message
    assert "export STUNET_MODELS" in hint
    assert sorted(place.rglob("*")) == before
    assert main(command) == 0


def cut(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    file.write_bytes(file.read_bytes()[:-1000])


def diverge(folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["network_weights"]["seg_outputs.0.bias"][0] = float("nan")
    torch.save(checkpoint, file)


def other_class(folder: Path) -> None:
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace("left", "port"))


def no_record(folder: Path) -> None:
    (folder / "model.json").write_text(json.dumps(["a list"]))


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (cut, 4, "is not a whole checkpoint"),
        (diverge, 4, "NaN or infinite weights in 1 of"),
        (other_class, 4, None),
        (no_record, 3, "expected a table"),
    ],
)
def test_check_names_what_is_damaged(
    place: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], code: int, message: str | None,
    recorded: bool,
) -> None:  # fmt: skip
    """The checksums tell of any change; without them what it breaks is found, which another name is not."""
    folder = place / "copy"
    shutil.copytree(place / "store" / NAME, folder)
    if not recorded:
        (folder / "model.json").unlink()
    damage(folder)
    if recorded and code == 4:
        message = "has changed since it was installed"
    assert main(["check", str(folder)]) == (code if message else 0)
    err = capsys.readouterr().err.splitlines()
    assert len(err) == (2 if message else 0)
    assert (message or "") in "".join(err)
