"""Draw three planes through a segmentation, oriented as in radiology, to show at a glance whether it worked.

The patient's right is on the left of the picture, anterior or superior is up; letters at the edges say so. Voxels
keep their shape in mm, and all planes have the same scale. planes.py cuts and colours the planes.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stunet.errors import DataError
from stunet.files import atomic_write
from stunet.results.colours import unit_colour
from stunet.results.planes import Plane, cut, overlay
from stunet.results.segmentation import Segmentation
from stunet.results.window import window

SIDE = 560  # pixels of the longest side of a plane
GAP, TOP, HEAD = 26, 40, 36  # pixels: around planes, above all of them, above each one for its name
ROW, COLUMN = 17, 210  # pixels: a line and a column of the legend
LEAST_ROWS, LEAST_WIDTH = 8, 130  # minimum lines of the legend, minimum pixels for the name of a plane
LEGEND = 60  # maximum number of classes in the legend
DPI = 100
WHITE, GREY = "#f0f0f0", "#9a9a9a"


def write_preview(
    segmentation: Segmentation, image_DHW: np.ndarray, path: Path, is_ct: bool = False, title: str = ""
) -> None:
    """Write a PNG with the plane of each direction in which most is segmented; a single slice gives one plane.

    Args:
        segmentation: May be empty: the planes are then in the middle.
        image_DHW: One channel of the original image, on the same grid.
        path: Ends with .png.
        is_ct: Whether the image is in HU and shown with a CT window; others are shown between percentiles.
        title: Usually the name of the case.

    Raises:
        DataError: Image and segmentation differ in shape.
        OSError: The file cannot be written, or the disk is full.
    """
    if image_DHW.shape != segmentation.labels_DHW.shape:
        raise DataError(
            f"the image has shape {image_DHW.shape} and its segmentation {segmentation.labels_DHW.shape}",
            "give the image that was segmented",
        )
    planes = cut(segmentation, image_DHW)
    low, high = window_of(planes, is_ct)
    scale = SIDE / max(max(plane.size_mm) for plane in planes)
    pictures = [overlay(plane, segmentation, scale, low, high) for plane in planes]
    shown = np.unique(np.concatenate([np.unique(plane.labels) for plane in planes]))
    names = [name for name, value in segmentation.names.items() if value in shown]
    canvas = _Canvas(pictures, len(names))
    what = "" if names else ", nothing is segmented"
    grey = f"grey values {low:.4g} to {high:.4g}{' HU' if is_ct else ''}"
    canvas.add_text(GAP, 10, f"{title}   {grey}{_tilt(planes)}{what}".strip(), 11, WHITE)
    for index, (plane, picture) in enumerate(zip(planes, pictures, strict=True)):
        canvas.add_plane(index, plane, picture)
    canvas.add_legend(names, [segmentation.value_names[segmentation.names[name]] for name in names])
    with atomic_write(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # letters of names that the font lacks become boxes
        canvas.figure.savefig(part, format="png", dpi=DPI, facecolor="black")


class _Canvas:
    """A figure with planes in columns and a legend; all measures are in pixels from its upper left corner."""

    def __init__(self, pictures: Sequence[np.ndarray], classes: int) -> None:
        self.corners: dict[int, tuple[int, int]] = {}
        left, bottom = GAP, TOP + LEAST_ROWS * ROW
        for column in _columns([picture.shape[0] for picture in pictures]):
            top = TOP
            for index in column:
                self.corners[index] = (left, top + HEAD)
                top += HEAD + pictures[index].shape[0] + GAP
            left += max(LEAST_WIDTH, *(pictures[index].shape[1] for index in column)) + 2 * GAP
            bottom = max(bottom, top)
        self.lines = (bottom - TOP - HEAD) // ROW
        self.legend = left
        self.room = max(1, -(-min(classes, LEGEND) // self.lines)) * self.lines
        self.height, self.width = bottom, left + self.room // self.lines * COLUMN
        self.figure = Figure((self.width / DPI, self.height / DPI), dpi=DPI, facecolor="black")
        FigureCanvasAgg(self.figure)

    def add_plane(self, index: int, plane: Plane, picture: np.ndarray) -> None:
        """Draw a plane with its name above and the letters at its edges."""
        left, top = self.corners[index]
        rows, columns = picture.shape[:2]
        box = (left / self.width, 1 - (top + rows) / self.height, columns / self.width, rows / self.height)
        axes = self.figure.add_axes(box)
        axes.imshow(picture, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        self.add_text(left, top - HEAD, plane.caption, 9, WHITE)
        west, east, north, south = plane.edges
        for letter, x, y in (
            (west, left - 14, top + rows / 2 - 7),
            (east, left + columns + 6, top + rows / 2 - 7),
            (north, left + columns / 2 - 4, top - 17),
            (south, left + columns / 2 - 4, top + rows + 3),
        ):
            self.add_text(x, y, letter, 10, WHITE)

    def add_legend(self, names: Sequence[str], texts: Sequence[str]) -> None:
        """Draw a line for each class in the planes, or as many as fit."""
        shown = len(names) if len(names) <= self.room else self.room - 1
        rows: list[tuple[str, str]] = list(zip(names[:shown], texts[:shown], strict=True))
        if shown < len(names):
            rows.append(("", f"and {len(names) - shown} more"))
        for index, (name, text) in enumerate(rows):
            column, line = divmod(index, self.lines)
            x, y = self.legend + column * COLUMN, TOP + HEAD + line * ROW
            if name:
                self.add_text(x, y - 1, "■", 11, unit_colour(name))
            self.add_text(x + 16, y, text if len(text) <= 30 else f"{text[:29]}…", 8, WHITE if name else GREY)

    def add_text(self, x: float, y: float, text: str, size: int, colour: str | tuple[float, float, float]) -> None:
        """Write a line of text with its upper left corner at x, y."""
        place = (x / self.width, 1 - y / self.height)
        self.figure.text(*place, text, size=size, color=colour, va="top", parse_math=False)


def _columns(heights: Sequence[int]) -> list[list[int]]:
    """Return the planes of each column; coronal and sagittal share one if the volume has few slices."""
    if len(heights) == 3 and heights[1] + heights[2] + HEAD + GAP <= max(heights[0], SIDE // 2):
        return [[0], [1, 2]]
    return [[index] for index in range(len(heights))]


def window_of(planes: Sequence[Plane], is_ct: bool) -> tuple[float, float]:
    """Return the intensities that are shown as black and as white."""
    values = np.concatenate([plane.image.ravel() for plane in planes])
    inside = np.concatenate([plane.labels.ravel() for plane in planes]) > 0
    return window(values, values[inside], is_ct)


def _tilt(planes: Sequence[Plane]) -> str:
    degrees = planes[0].tilt
    return f", planes along the image's axes, {degrees:.0f}° from the patient's" if degrees >= 1 else ""
