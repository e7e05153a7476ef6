"""What a logger leaves of a training: a whole picture, drawn at most once a minute, and a row per epoch."""

from pathlib import Path

import pytest
import SimpleITK as sitk

from stunet.report.history import read_csv, write_csv
from stunet.trainers import plots

CLASSES = ["liver", "<b>spleen</b>\nleft"]


def log_epoch(logger: plots.Logger, epoch: int, classes: int = 2) -> None:
    logger.log("epoch_start_timestamps", 100.0 * epoch, epoch)
    for key in ("train_losses", "val_losses", "lrs"):
        logger.log(key, 1 / (epoch + 1), epoch)
    logger.log("mean_fg_dice", 0.5, epoch)
    logger.log("dice_per_class_or_region", [0.5, float("nan"), *[0.5] * 298][:classes], epoch)
    logger.log("epoch_end_timestamps", 100.0 * epoch + 10, epoch)


@pytest.fixture
def logger(tmp_path: Path) -> plots.Logger:
    """A logger of a training of two epochs in this folder."""
    logger = plots.Logger(str(tmp_path), False)
    logger.title, logger.classes = "Dataset003_Liver", CLASSES
    write_csv(tmp_path / "metrics.csv", [], CLASSES)
    for epoch in range(2):
        log_epoch(logger, epoch)
    return logger


def test_a_picture_that_cannot_be_written_leaves_the_one_before(
    logger: plots.Logger, tmp_path: Path, room_for: object
) -> None:
    logger.plot(str(tmp_path))
    before = (tmp_path / "progress.png").read_bytes()
    with room_for(1000), pytest.raises(OSError, match="large"):  # type: ignore[operator]
        logger.plot(str(tmp_path))
    assert (tmp_path / "progress.png").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "progress.png"]


def test_the_picture_is_readable_on_a_screen_whatever_the_number_of_classes(tmp_path: Path) -> None:
    for classes in (0, 1, 300):
        logger = plots.Logger(str(tmp_path), False)
        logger.classes = [f"class $_{k}^2 <b>" for k in range(classes)]
        log_epoch(logger, 0, classes)
        logger.plot(str(tmp_path))
        picture = sitk.ReadImage(str(tmp_path / "progress.png"))
        assert picture.GetSize() == (1200, 1300)
        # Something is drawn in each of the five parts.
        grey = sitk.GetArrayFromImage(picture)[..., :3].mean(axis=-1)
        assert all((grey[row : row + 220] < 128).sum() > 100 for row in range(60, 1100, 220))


def test_nnunet_draws_after_every_epoch_and_we_only_when_it_is_time(logger: plots.Logger, tmp_path: Path) -> None:
    logger.plot_progress_png(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    logger._due = 0.0
    logger.plot_progress_png(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "progress.png", "report.html"}
    (tmp_path / "progress.png").unlink()
    logger.plot_progress_png(str(tmp_path))
    assert not (tmp_path / "progress.png").exists()


def test_drawing_takes_at_most_a_hundredth_of_the_time_and_waits_a_minute() -> None:
    assert plots.pause(0.1) == 60
    assert 3 / (3 + plots.pause(3)) < 0.01


def test_every_epoch_has_a_row(logger: plots.Logger, tmp_path: Path) -> None:
    logger._waited_s, logger._memory_gb = 2.5, 1.5
    logger.record(tmp_path)  # of the last epoch that is logged: the second
    assert read_csv(tmp_path / "metrics.csv").epochs == []  # the first is missing, so the course ends before it
    write_csv(tmp_path / "metrics.csv", [], CLASSES)
    other = plots.Logger(str(tmp_path), False)
    log_epoch(other, 0)
    other._waited_s, other._memory_gb = 2.5, 1.5
    other.record(tmp_path)
    (epoch,) = read_csv(tmp_path / "metrics.csv").epochs
    assert (epoch.seconds, epoch.waiting_share, epoch.memory_gb) == (10, 0.25, 1.5)


def test_a_report_that_fails_is_told_and_ends_nothing(logger: plots.Logger, tmp_path: Path) -> None:
    told: list[str] = []
    logger._warn = told.append
    (tmp_path / "report.html").mkdir()
    logger.report(str(tmp_path))
    assert "report.html was not written: IsADirectoryError" in told[0]


def test_a_pretraining_is_plotted_against_chance(tmp_path: Path) -> None:
    logger = plots.PretrainingLogger(str(tmp_path), False)
    logger.measure, logger.chance, logger.chance_loss = "accuracy", 0.1, 2.3
    logger.untrained = 0.2
    for epoch in range(3):
        log_epoch(logger, epoch, classes=0)
    logger.plot_progress_png(str(tmp_path))  # too early, and it has no metrics.csv
    assert not list(tmp_path.iterdir())
    logger.plot(str(tmp_path))
    assert sitk.ReadImage(str(tmp_path / "progress.png")).GetWidth() == 1200
