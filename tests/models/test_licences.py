"""Licences: shown before a download, and accepted once where they forbid commercial use."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from stunet.cli import models as command
from stunet.cli import predict
from stunet.errors import DataError, WeightsError
from stunet.models import registry, store
from stunet.models.licences import check_licence, is_accepted
from stunet.networks import build
from tests.tiny_model import STRIDES

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def restricted(website: Path, tmp_path: Path) -> Path:
    """The store, in which the tiny model may not be used commercially."""
    own = tmp_path / "store" / "models.toml"
    own.write_text(own.read_text().replace("[tiny]\n", '[tiny]\nlicence = "CC-BY-NC-4.0"\ncitation = "Doe 2024"\n'))
    torch.save({"state_dict": build("T", STRIDES, 1, 3).state_dict()}, website / "tiny.model")
    return tmp_path / "store"


def test_a_licence_is_shown_before_the_download_and_a_free_one_is_not_asked_for(
    website: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"state_dict": build("T", STRIDES, 1, 3).state_dict()}, website / "tiny.model")
    with caplog.at_level(logging.WARNING, "stunet"):
        store.find_model("STU-Net-T.tiny")
        store.find_model("STU-Net-T.tiny")
    assert caplog.messages == ["STU-Net-T.tiny: licence not stated by its publisher"]
    assert not (registry.store() / "licences.json").exists()


def test_one_that_forbids_commercial_use_is_asked_for_once(
    restricted: Path, caplog: pytest.LogCaptureFixture, asked: list[str]
) -> None:
    with caplog.at_level(logging.WARNING, "stunet"), pytest.raises(WeightsError, match=r"CC-BY-NC-4\.0") as refused:
        store.find_model("STU-Net-T.tiny")
    assert refused.value.hint == "stunet_models download STU-Net-T.tiny --accept_licence, if you accept it"
    assert caplog.messages == ["STU-Net-T.tiny: licence CC-BY-NC-4.0; please cite Doe 2024"]
    assert asked == []
    shutil.rmtree(store.find_model("STU-Net-T.tiny", accept_licence=True))
    assert store.find_model("STU-Net-T.tiny").is_dir()
    assert json.loads((restricted / "licences.json").read_text())["STU-Net-T.tiny"]["licence"] == "CC-BY-NC-4.0"


def test_another_licence_than_the_accepted_one_is_asked_for_again(restricted: Path) -> None:
    check_licence(registry.find("STU-Net-T.tiny"), accepted=True)
    assert is_accepted(registry.find("STU-Net-T.tiny"))
    own = restricted / "models.toml"
    own.write_text(own.read_text().replace("CC-BY-NC-4.0", "CC-BY-NC-ND-4.0"))
    with pytest.raises(WeightsError, match=r"CC-BY-NC-ND-4\.0"):
        check_licence(registry.find("STU-Net-T.tiny"))


def test_commands_take_the_flag_and_say_what_is_accepted(
    restricted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    assert predict.main(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "o"), "--model", "STU-Net-T.tiny"]) == 4
    assert "may not be used commercially" in capsys.readouterr().err
    assert command.main(["download", "STU-Net-T.tiny"]) == 4
    assert command.main(["info", "STU-Net-T.tiny"]) == 0
    assert "not for commercial use; not yet accepted" in capsys.readouterr().out
    assert command.main(["download", "STU-Net-T.tiny", "--accept_licence"]) == 0
    assert command.main(["info", "STU-Net-T.tiny"]) == 0
    assert "not for commercial use; accepted" in capsys.readouterr().out


def test_a_broken_record_of_licences_is_named(restricted: Path) -> None:
    (restricted / "licences.json").write_text("[]")
    with pytest.raises(DataError, match=r"licences\.json"):
        store.find_model("STU-Net-T.tiny", accept_licence=True)
