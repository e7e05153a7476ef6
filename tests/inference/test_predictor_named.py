"""stunet_predict --model NAME: what is installed is found, what is not is downloaded, and what cannot be is said."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from stunet.cli.predict import main
from stunet.models import installing, store
from stunet.networks import build
from tests.loops import for_each
from tests.predictor_models import write_image
from tests.tiny_model import DOWNLOADABLE, STRIDES


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server of the files in `website`."""
    (tmp_path / "website").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "website")) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """The working directory: a store that knows the server, weights that it serves, and an image."""
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    Path("store").mkdir()
    Path("store/models.toml").write_text(DOWNLOADABLE.replace("URL", address))
    torch.manual_seed(0)
    torch.save({"state_dict": build("T", STRIDES, 1, 3).state_dict()}, "website/tiny.model")
    write_image(Path("c_0000.nii.gz"))


def predict(name: str, *more: str) -> int:
    return main(["-i", "c_0000.nii.gz", "-o", "out", "--model", name, "-device", "cpu", *more])


def test_a_model_is_downloaded_once_and_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("STU-Net-T.tiny") == 0
    captured = capsys.readouterr()
    assert captured.out == "out/c.nii.gz\n"
    assert "download STU-Net-T.tiny (MB): " in captured.err
    Path("website/tiny.model").unlink()
    assert predict("stu-net-t.tiny", "--continue_prediction") == 0
    captured = capsys.readouterr()
    assert "1 of 1 cases are done already" in captured.err
    assert "download" not in captured.err


def test_a_download_that_fails_is_said_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("website/tiny.model").unlink()
    assert predict("STU-Net-T.tiny") == 4
    message, _ = capsys.readouterr().err.splitlines()
    assert "could not download 'tiny.model'" in message
    assert store.installed() == []
    assert not Path("out").exists()


def test_weights_without_plans_are_refused_before_and_after_they_are_installed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert predict("STU-Net-T.bare") == 4
    assert "was published without its plans" in capsys.readouterr().err
    model = installing.import_file(Path("website/tiny.model"), "STU-Net-T.bare")
    assert predict("STU-Net-T.bare") == 4
    message, hint = capsys.readouterr().err.splitlines()
    assert f"{str(model.path)!r} is a file of weights" in message
    assert "stunet_train --pretrained STU-Net-T.bare" in hint


@for_each("name", ["website/tiny.model", "weights.pth", "weights.safetensors", "model.zip"])
def test_a_file_is_to_be_imported_first(capsys: pytest.CaptureFixture[str], name: str) -> None:
    Path(name).touch()
    assert predict(name) == 4
    message, hint = capsys.readouterr().err.splitlines()
    assert f"{name!r} is a file of weights, and prediction takes a model folder" in message
    assert hint == f"  try: stunet_models import {name}"
    assert not Path("out").exists()
