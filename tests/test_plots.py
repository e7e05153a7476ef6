"""Plots look alike whatever style the process has."""

from pathlib import Path

import matplotlib

from stunet.plots import plotted


def draw(path: Path) -> bytes:
    with plotted(path, 3, 2) as figure:
        axes = figure.add_subplot()
        axes.plot([1, 2], [3, 4])
        axes.set(title="title", xlabel="x")
    return path.read_bytes()


def test_a_plot_has_matplotlibs_own_style_and_leaves_that_of_the_process(tmp_path: Path) -> None:
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        before = draw(tmp_path / "a.png")
        matplotlib.rcParams["font.size"] = 30  # as nnU-Net's progress.png leaves it
        assert draw(tmp_path / "b.png") == before
        assert matplotlib.rcParams["font.size"] == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
