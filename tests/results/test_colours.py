"""Are colours the same everywhere, and can the classes of a dataset be told apart?"""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from skimage.color import rgb2lab

from stunet.labels import systems
from stunet.labels.names import canonical
from stunet.results.colours import _COMMON, colour, unit_colour
from tests.loops import for_each


def distance(*names: str) -> float:
    """CIE 1976 difference of the two that are closest; about 2 is just noticeable."""
    return float(pdist(rgb2lab(np.array([unit_colour(name) for name in names]))).min())


@pytest.mark.process
def test_all_names_of_a_class_have_one_colour_in_every_process() -> None:
    assert colour("kidney_left") == colour("Left Kidney") == colour("LK") == colour("kidney")
    names = ["spleen", "rib_left_3", "something else", "hippocampus anterior"]
    code = f"from stunet.results.colours import colour\nprint([colour(name) for name in {names!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([colour(name) for name in names])


@for_each("system", ["btcv", "amos", "flare22", "ct-org", "segthor", "abdomenct-1k"])
def test_organs_of_a_dataset_differ_clearly(system: str) -> None:
    names = [entry.name for entry in systems.load(system).classes]
    assert distance(*names) > 15


@for_each("system", ["totalsegmentator-v1", "totalsegmentator-v2", "totalsegmentator-mr"])
def test_no_two_of_many_classes_are_the_same(system: str) -> None:
    names = [entry.name for entry in systems.load(system).classes]
    assert distance(*names) > 2


def test_neighbouring_vertebrae_and_ribs_and_both_sides_differ_clearly() -> None:
    spine = [f"vertebrae_{part}{n}" for part, top in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, top + 1)]
    ribs = [f"rib_left_{n}" for n in range(1, 13)]
    for row in (spine, ribs):
        assert min(distance(*pair) for pair in pairwise(row)) > 25
    for name in ("kidney", "femur", "rib_3", "adrenal gland"):
        assert distance(f"left {name}", f"right {name}") > 15


def test_arteries_are_red_and_veins_are_blue() -> None:
    for name in ("aorta", "iliac_artery_left", "subclavian_artery_right"):
        assert colour(name)[0] > 2 * max(colour(name)[1:])
    for name in ("inferior_vena_cava", "superior_vena_cava", "iliac_vena_right"):
        assert colour(name)[2] > 1.4 * max(colour(name)[:2])


def test_colours_are_visible_on_black_and_in_range() -> None:
    for entry in systems.load("totalsegmentator-v2").classes:
        assert 90 < max(colour(entry.name)) <= 255
        assert min(colour(entry.name)) >= 0
    assert colour("line\nbreak") == colour("line break")


def test_the_table_of_colours_is_found_by_canonical_names() -> None:
    assert [name for name in _COMMON if canonical(name) != name] == []
