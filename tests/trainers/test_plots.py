"""The plot of a training: whole or as it was, and drawn at most once a minute."""

import errno
from pathlib import Path

import pytest
from nnunetv2.training.logging.nnunet_logger import MetaLogger

from stunet.trainers import plots


@pytest.fixture
def logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> plots.Logger:
    """A logger whose plots contain how many there were before; the third one fails half-way."""
    drawn: list[int] = []

    def draw(self: MetaLogger, folder: str) -> None:
        (Path(folder) / "progress.png").write_text(str(len(drawn)))
        drawn.append(0)
        if len(drawn) == 3:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(MetaLogger, "plot_progress_png", draw)
    return plots.Logger(str(tmp_path), False)


def test_a_plot_that_cannot_be_drawn_leaves_the_one_before(logger: plots.Logger, tmp_path: Path) -> None:
    logger.plot(str(tmp_path))
    logger.plot(str(tmp_path))
    with pytest.raises(OSError, match="full"):
        logger.plot(str(tmp_path))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("progress.png", "1")]


def test_nnunet_plots_after_every_epoch_and_we_only_when_it_is_time(
    logger: plots.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger.plot_progress_png(str(tmp_path))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(plots, "INTERVAL_S", 0.0)
    logger.plot_progress_png(str(tmp_path))
    assert list(tmp_path.iterdir())


def test_a_pretraining_is_plotted_against_chance(tmp_path: Path) -> None:
    logger = plots.PretrainingLogger(str(tmp_path), False)
    logger.measure, logger.chance, logger.chance_loss = "accuracy", 0.1, 2.3
    logger.untrained = 0.2
    for epoch in range(3):
        for key in ("train_losses", "val_losses", "mean_fg_dice", "lrs"):
            logger.log(key, 1 / (epoch + 1), epoch)
    logger.plot(str(tmp_path))
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")
