"""What nnU-Net writes appears whole or not at all, and in the same bytes."""

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from batchgenerators.utilities.file_and_folder_operations import save_json

from stunet.cli.common import explain
from stunet.files import write_json
from stunet.nnunet import write_whole
from tests.loops import for_each

Room = Callable[[int], AbstractContextManager[None]]
CONTENT = {"b": [1, 2.5, None], "a": {"x": "y" * 5000}}


@pytest.fixture
def module() -> Any:
    found: Any = ModuleType("one_of_nnunets")
    found.save_json, found.shutil = save_json, shutil
    write_whole(found)
    return found


def test_json_and_copies_are_the_same_bytes(tmp_path: Path, module: Any) -> None:
    for options in ({}, {"sort_keys": False}):
        save_json(CONTENT, str(tmp_path / "a.json"), **options)
        module.save_json(CONTENT, str(tmp_path / "b.json"), **options)
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    module.shutil.copy(str(tmp_path / "a.json"), str(tmp_path / "c.json"))
    module.shutil.copyfile(str(tmp_path / "a.json"), str(tmp_path / "d.json"))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path: Path, module: Any, room_for: Room) -> None:
    (tmp_path / "old.json").write_text("{}")
    save_json(CONTENT, str(tmp_path / "source.json"))
    for write in (
        lambda path: module.save_json(CONTENT, path),
        lambda path: module.shutil.copy(str(tmp_path / "source.json"), path),
        lambda path: write_json(Path(path), CONTENT),
    ):
        for name in ("old.json", "new.json"):
            with room_for(100), pytest.raises(OSError, match="File too large") as caught:
                write(str(tmp_path / name))
            shown = explain(caught.value)
            assert shown.exit_code == 3
            assert shown.message.startswith("the disk is full: ")
            assert name in shown.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.json", "source.json"]
    assert json.loads((tmp_path / "old.json").read_text()) == {}


def test_nnunets_modules_that_write_are_among_them() -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    import stunet.plans.fingerprint
    import stunet.plans.planner
    import stunet.trainers.trainer  # noqa: F401

    for module in (fingerprint_extractor, default_experiment_planner, nnUNetTrainer):
        assert module.save_json.__module__ == "stunet.nnunet"
    assert default_experiment_planner.shutil is nnUNetTrainer.shutil is not shutil


@for_each("number", [errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EACCES])
def test_what_the_file_system_refuses_ends_with_3_and_the_path(number: int) -> None:
    shown = explain(OSError(number, "why", "some/path"))
    assert shown.exit_code == 3
    assert "some/path" in shown.message


def test_a_plot_that_cannot_be_drawn_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.training.logging.nnunet_logger import MetaLogger

    from stunet.trainers.plots import Logger

    def draw(text: str, error: Exception | None = None) -> None:
        def plot_progress_png(self: MetaLogger, folder: str) -> None:
            (Path(folder) / "progress.png").write_text(text)
            if error:
                raise error

        monkeypatch.setattr(MetaLogger, "plot_progress_png", plot_progress_png)
        logger.plot(str(tmp_path))

    logger = Logger(str(tmp_path), False)
    draw("one")
    with pytest.raises(OSError, match="full"):
        draw("tw", OSError(errno.ENOSPC, "full"))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("progress.png", "one")]
