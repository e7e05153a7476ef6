"""Calibration: against numbers that are known, streamed from nnU-Net's files, damaged ones left out."""

from math import isnan
from pathlib import Path

import numpy as np
import pytest

from stunet.report.calibration import BINS, LEAST, Bins, Case, blocks, measure


def test_a_calibrated_network_has_no_error_and_one_that_is_too_sure_has() -> None:
    random = np.random.default_rng(0)
    stated = random.uniform(0, 1, 400_000)
    right, sure = Bins.empty(), Bins.empty()
    is_class = random.uniform(0, 1, stated.shape) < stated
    right.add(stated, is_class)
    assert right.error() < 0.005
    # It states the square root: E|sqrt(u) - u| = 2/3 - 1/2 for uniform u.
    sure.add(np.sqrt(stated), is_class)
    assert sure.error() == pytest.approx(1 / 6, abs=0.005)
    assert isnan(Bins.empty().error())


def test_the_error_is_that_of_the_definition() -> None:
    random = np.random.default_rng(1)
    stated, is_class = random.uniform(0, 1, 500), random.uniform(0, 1, 500) < 0.3
    bins = Bins.empty()
    bins.add(stated, is_class)
    chosen = stated >= LEAST
    slow = 0.0
    for low in np.arange(BINS) / BINS:
        inside = chosen & (stated >= low) & (stated < low + 1 / BINS)
        slow += inside.sum() / chosen.sum() * abs(stated[inside].mean() - is_class[inside].mean())
    assert bins.error() == pytest.approx(slow)


def saved(path: Path, labels: np.ndarray, kind: type = np.float32) -> Case:
    """Probabilities of 0.8 for the true class of two, in nnU-Net's file."""
    of_class = np.where(labels == 1, 0.8, 0.2).astype(kind)
    np.savez_compressed(path, probabilities=np.stack([1 - of_class, of_class]))
    return Case(path, lambda: labels)


def test_files_are_read_class_by_class_and_damaged_ones_left_out(tmp_path: Path) -> None:
    labels = np.zeros((4, 6, 5), np.uint8)
    labels[1:3] = 1
    labels[3] = 2  # ignored
    rows = {"background": (0,), "<b>liver</b>": (1,)}
    whole = [saved(tmp_path / "a.npz", labels), saved(tmp_path / "b.npz", labels, np.float16)]
    found = measure(whole, rows, ignore=2)
    assert [bins.count.sum() for bins in found.values()] == [2 * 90, 2 * 90]
    assert [bins.error() for bins in found.values()] == pytest.approx([0.2, 0.2], abs=1e-3)
    torn = saved(tmp_path / "c.npz", labels)
    torn.probabilities.write_bytes(torn.probabilities.read_bytes()[:100])
    np.savez(tmp_path / "d.npz", probabilities=np.zeros((3, 4, 6, 5), np.float32))
    np.savez(tmp_path / "e.npz", other=np.zeros(3))
    others = [torn, *(Case(tmp_path / name, lambda: labels) for name in ("d.npz", "e.npz", "none.npz"))]
    assert measure([*whole, *others], rows, 2)["background"].count.sum() == 2 * 90
    assert measure(others, rows, 2) == {}
    assert blocks({}) == []
    figure, table = blocks(found)
    assert figure.kind == "figure"
    assert len(table.rows) == 2  # type: ignore[union-attr]
