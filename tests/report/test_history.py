"""The course of a training from metrics.csv, logs and checkpoints: as it was written, torn or odd."""

from dataclasses import replace
from math import isnan, nan
from pathlib import Path

import pytest
import torch

from stunet.report.history import (
    Epoch,
    History,
    append_csv,
    logs_of,
    of_log,
    read_csv,
    read_history,
    read_logs,
    write_csv,
)

EPOCHS = [
    Epoch(1, 10.5, 0.25, 1.5, 0.01, 0.1, -0.2, 0.5, 0.5, (0.4, 0.6)),
    Epoch(2, 11.5, nan, nan, 0.009, 0.05, nan, nan, 0.5, (nan, 0.7)),
]
LOG = """
2026-11-30 20:26:58.173745:
2026-11-30 20:26:58.173811: Epoch 0
2026-11-30 20:26:58.173915: Current learning rate: 0.1
2026-11-30 20:27:22.128745: train_loss -0.3274
2026-11-30 20:27:22.128981: val_loss 1e-05
2026-11-30 20:27:22.129035: Pseudo dice [np.float32(0.5), np.float32(nan)]
2026-11-30 20:27:22.129109: Epoch time: 23.96 s
2026-11-30 20:27:22.129150: Yayy! New best EMA pseudo Dice: 0.776199996471405
2026-11-30 20:27:22.148221: Epoch 1
2026-11-30 20:27:22.148315: Current learning rate: 0.09
2026-11-30 20:27:46.642453: train_loss nan
2026-11-30 20:27:46.642760: val_loss -0.7
2026-11-30 20:27:46.642834: Pseudo dice [0.7, 0.9]
2026-11-30 20:27:46.642894: Epoch time: 24.49 s
2026-11-30 20:27:46.658914: Epoch 2
2026-11-30 20:27:46.659012: Current learning rate: 0.08
2026-11-30 20:28:09.441863: train_loss -0.7
"""


def same(one: Epoch, other: Epoch) -> bool:
    numbers = [[*[*vars(epoch).values()][:-1], *epoch.dice_of_classes] for epoch in (one, other)]
    return all(a == pytest.approx(b, nan_ok=True) for a, b in zip(*numbers, strict=True))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_csv(path, EPOCHS[:1], ["=left\nkidney", "b"])
    append_csv(path, EPOCHS[1])
    history = read_csv(path)
    assert all(map(same, history.epochs, EPOCHS))
    assert history.classes == ["=left kidney", "b"]
    assert path.read_text().splitlines()[0].endswith("dice_moving_average,dice_of =left kidney,dice_of b")


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_row_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    write_csv(path, EPOCHS, ["a", "b"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    epochs = read_csv(path).epochs
    # The last cell may be cut without a sign of it; nothing else may differ.
    assert all(
        same(replace(a, dice_of_classes=(nan,)), replace(b, dice_of_classes=(nan,)))
        for a, b in zip(epochs, EPOCHS, strict=False)
    )
    path.write_bytes(whole + b"\x00\xff,,,")
    assert len(read_csv(path).epochs) == 2


def test_a_log_is_read_to_its_last_whole_epoch(tmp_path: Path) -> None:
    path = tmp_path / "training_log_1.txt"
    path.write_text(LOG)
    first, second = read_logs([path])
    assert (first.number, first.seconds, first.learning_rate, first.validation_loss) == (1, 23.96, 0.1, 1e-05)
    assert first.dice_of_classes[0] == first.dice_mean == 0.5
    assert isnan(first.dice_of_classes[1])
    assert isnan(second.train_loss)
    assert second.dice_moving_average == pytest.approx(0.9 * 0.5 + 0.1 * 0.8)
    # A training that went on repeats the epoch that was not saved.
    later = tmp_path / "training_log_2.txt"
    later.write_text(LOG[LOG.index("2026-11-30 20:27:22.148221") :].replace("[0.7, 0.9]", "[0.1, 0.1]"))
    assert [epoch.dice_mean for epoch in read_logs([path, later])] == pytest.approx([0.5, 0.1])
    # The first log was removed.
    (only,) = read_logs([later])
    assert only.number == History([only]).reached == 2


def test_epochs_of_a_run_that_was_given_up_do_not_count(tmp_path: Path) -> None:
    crashed, resumed, again = (tmp_path / f"training_log_{number}.txt" for number in (1, 2, 3))
    crashed.write_text(LOG.replace("20:28:09.441863: train_loss -0.7", "20:28:09.441863: Epoch time: 20 s"))
    assert [epoch.number for epoch in read_logs([crashed])] == [1, 2, 3]
    resumed.write_text(LOG[LOG.index("2026-11-30 20:27:22.148221") :])
    assert [epoch.number for epoch in read_logs([crashed, resumed])] == [1, 2]
    again.write_text(LOG[: LOG.index("2026-11-30 20:27:22.148221")])
    assert [epoch.number for epoch in read_logs([crashed, resumed, again])] == [1]


@pytest.mark.parametrize("cut", range(0, len(LOG), 61))
def test_a_log_may_be_torn_anywhere(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "training_log_1.txt"
    path.write_bytes(LOG.encode()[:cut] + b"\xff\x00")
    assert len(read_logs([path])) <= 2


def test_the_longest_source_counts(tmp_path: Path) -> None:
    assert read_history(tmp_path).epochs == ()
    (tmp_path / "training_log_1.txt").write_text(LOG)
    assert len(read_history(tmp_path)) == 2
    log = {
        "train_losses": [0.5] * 3, "val_losses": [0.4] * 3, "lrs": [0.1] * 3, "mean_fg_dice": [0.3] * 3,
        "ema_fg_dice": [0.3] * 3, "dice_per_class_or_region": [[0.2, 0.4]] * 3, "epoch_start_timestamps": [0.0] * 3,
        "epoch_end_timestamps": [2.0] * 3,
    }  # fmt: skip
    torch.save({"logging": log}, tmp_path / "checkpoint_final.pth")
    found = read_history(tmp_path).epochs
    assert len(found) == 3
    assert all(map(same, found, of_log(log)))
    assert found[0].seconds == 2.0
    write_csv(tmp_path / "metrics.csv", [*EPOCHS, replace(EPOCHS[0], number=3)], ["a", "b"])
    assert read_history(tmp_path).classes == ["a", "b"]


def test_a_checkpoint_that_cannot_be_read_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_final.pth").write_bytes(b"no checkpoint")
    (tmp_path / "training_log_1.txt").write_text(LOG)
    assert len(read_history(tmp_path)) == 2


def test_logs_are_in_the_order_of_their_dates(tmp_path: Path) -> None:
    names = [
        "training_log_2026_9_30_23_59_59.txt",
        "training_log_2026_10_9_1_1_1.txt",
        "training_log_2026_10_10_0_0_0.txt",
    ]
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [path.name for path in logs_of(tmp_path)] == names
