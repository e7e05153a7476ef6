"""A target spacing that does not fit the images is refused with the reason, before anything is planned."""

import logging
from typing import Any

import pytest

from stunet.errors import DataError
from stunet.plans.spacing import check_spacing
from tests.loops import for_each

SHAPES = [[20, 20, 20]] * 6
NAMES = list("abcdef")


def spacings(edge: float, **others: float) -> list[list[float]]:
    return [[others.get(name, edge)] * 3 for name in NAMES]


@for_each("edge", [0.2, 1, 5])
def test_the_images_own_spacing_fits(edge: float, caplog: pytest.LogCaptureFixture) -> None:
    check_spacing([edge] * 3, spacings(edge), SHAPES, NAMES)
    assert caplog.text == ""


@for_each(
    ("target", "given", "options", "message", "hint"),
    [
        (100, spacings(1), {"chosen": True}, "leaves nothing of 6 of 6 cases: 'a', 'b', 'c' and 3 more", "finer"),
        (10, spacings(1), {"chosen": True}, "10 mm leaves 2 x 2 x 2 voxels of the median image", "finer"),
        (1.5, spacings(0.001), {"chosen": True}, "is 0.02 x 0.02 x 0.02 mm large; if .* in metres", "in mm"),
        (1, spacings(1, b=1000), {}, "makes 20000 x 20000 x 20000 voxels of 'b', .* 1000 x 1000 x 1000 mm", "in mm"),
        (0.001, spacings(1), {"chosen": True}, "makes 20000 x .* (6 of 6 cases", "coarser"),
        (1, spacings(1, c=0.02), {}, "leaves nothing of 1 of 6 cases: 'c'", "correct the spacing of these cases"),
    ],
)
def test_what_does_not_fit_is_refused(
    target: float, given: list[list[float]], options: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(DataError, match=message.replace("(6", r"\(6")) as caught:
        check_spacing([target] * 3, given, SHAPES, NAMES, **options)
    assert hint in caught.value.hint


@for_each(("edge", "unit"), [(0.001, "metres"), (1000, "micrometres")])
def test_a_spacing_in_another_unit_is_warned_about(edge: float, unit: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "stunet"):
        check_spacing([edge] * 3, spacings(edge), SHAPES, NAMES)
    assert f"in {unit}" in caplog.text


def test_a_target_in_the_order_of_the_files_axes_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    images, shapes = [[5.0, 0.8, 0.8]] * 6, [[20, 200, 200]] * 6
    for target, chosen in (([5, 0.8, 0.8], True), ([3, 1, 1], True), ([1, 1, 1], True), ([1, 1, 1.5], True),
                           ([0.8, 0.8, 5], False)):  # fmt: skip
        check_spacing(target, images, shapes, NAMES, chosen)
    assert caplog.text == ""
    check_spacing([0.8, 0.8, 5], images, shapes, NAMES, chosen=True)
    assert "0.8 x 0.8 x 5 mm is meant in the order of the arrays, z y x, in which the images have 5 x 0.8 x 0.8 mm" in (
        caplog.text
    )


def test_slices_of_another_thickness_fit() -> None:
    check_spacing([5, 1, 1], [[5, 1, 1], [5, 1, 1], [1, 1, 1]], [[1, 20, 20]] * 3, ["a", "b", "c"])


def test_pictures_of_many_pixels_are_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    check_spacing([999, 1, 1], [[999, 1, 1]], [[1, 5000, 6000]], ["a"])
    assert caplog.text == ""
