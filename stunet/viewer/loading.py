"""Make of a case what the page shows: volumes on one grid, and a list of classes with volumes, Dice and places.

The page gets label maps whose values are positions in that list, 1 for the first: a map of many or large values then
needs no more than a byte or two per voxel, and a colour table no longer than the list. The difference of two maps is
made in the page, because it depends on which classes are shown.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from stunet.errors import DataError
from stunet.results.colours import colour
from stunet.results.window import window
from stunet.viewer.cases import ViewCase
from stunet.viewer.classes import Names
from stunet.viewer.volumes import (
    Volume,
    compact,
    on_grid,
    placed_like,
    read_image,
    read_labels,
    same_grid,
    smaller,
    to_nifti,
    upright,
)

MOST_CLASSES = 2000  # of a case; a colour table is a texture, and WebGL 2 promises 2048 rows
LONGEST = 2048  # voxels along an axis: what browsers grant a texture with three axes
UNNAMED = "image"  # the only channel of an image without a dataset
AIR_HU = -500
SAMPLE = 200_000  # voxels that determine how an image is shown


@dataclass(frozen=True)
class Row:
    """A line of the list of classes: one value of the label files, or a region, the union of several.

    Attributes:
        name: Name of the class.
        value: Value in the label files; None for a region.
        index: Value in the maps that the page gets; 0 for a region.
        parts: Indices that a region is made of.
        colour: Red, green and blue, 0 to 255.
        predicted: Voxels in the prediction.
        referenced: Voxels in the reference; None without a reference that can be compared.
        dice: Overlap; NaN if neither has the class, None if nothing can be compared.
        at: mm in RAS of a voxel of the class, in the middle of the slice with most of it; None if it is nowhere.
        ignored: Whether it is the ignore label, whose voxels are not compared.
    """

    name: str
    value: int | None
    index: int
    parts: tuple[int, ...]
    colour: tuple[int, int, int]
    predicted: int
    referenced: int | None
    dice: float | None
    at: tuple[float, float, float] | None
    ignored: bool = False


@dataclass(frozen=True)
class LoadedCase:
    """A case with everything on the grid of its prediction.

    Attributes:
        name: As in the dataset.
        image: (C, D, H, W); zeros if there is no image.
        channels: A name for each channel; empty if there is no image.
        windows: Intensities shown as black and white, for each channel.
        prediction: Indices, (D, H, W).
        reference: Indices, (D, H, W).
        rows: The classes that the dataset knows or the files have; then regions.
        voxel_ml: Volume of a voxel of the files, of which the rows count; that of the grid may be larger.
        comparable: Whether both label files have the same grid, so that there is a Dice.
        notes: What whoever looks at it should know.
    """

    name: str
    image: Volume
    channels: tuple[str, ...]
    windows: tuple[tuple[float, float], ...]
    prediction: Volume
    reference: Volume | None
    rows: tuple[Row, ...]
    voxel_ml: float
    comparable: bool
    notes: tuple[str, ...] = field(default=())

    @property
    def mean_dice(self) -> float:
        """The mean over the classes, or over the regions of a dataset with regions; NaN if nothing can be compared."""
        counted = [row for row in self.rows if row.parts] or self.rows
        values = [row.dice for row in counted if row.dice is not None and not np.isnan(row.dice)]
        return float(np.mean(values)) if values else nan

    def nifti(self, what: str) -> bytes:
        """Return `prediction`, `reference` or `image0`, `image1`, ... as a NIfTI file.

        Raises:
            KeyError: The case has no such volume.
        """
        grid = self.prediction
        if what == "prediction":
            return to_nifti(grid.array, grid.affine, is_label=True)
        if what == "reference" and self.reference is not None:
            return to_nifti(self.reference.array, grid.affine, is_label=True)
        number = what.removeprefix("image")
        if what.startswith("image") and number.isdecimal() and int(number) < len(self.image.array):
            return to_nifti(compact(self.image.array[int(number)]), grid.affine, is_label=False)
        raise KeyError(what)

    def described(self) -> dict[str, Any]:
        """Return the case without its voxels, as the page takes it."""

        def number(value: float | None) -> float | None:
            return None if value is None or np.isnan(value) else round(value, 6)

        return {
            "name": self.name,
            "shape": list(self.prediction.shape),
            "voxel_ml": self.prediction.voxel_mm3 / 1000,
            "channels": [
                {"name": name, "low": low, "high": high}
                for name, (low, high) in zip(self.channels, self.windows, strict=False)
            ],
            "has_reference": self.reference is not None,
            "comparable": self.comparable,
            "dice": number(self.mean_dice),
            "notes": list(self.notes),
            "classes": [
                {
                    "name": row.name,
                    "value": row.value,
                    "index": row.index,
                    "ignored": row.ignored,
                    "parts": list(row.parts),
                    "colour": list(row.colour),
                    "predicted_ml": row.predicted * self.voxel_ml,
                    "reference_ml": None if row.referenced is None else row.referenced * self.voxel_ml,
                    "dice": number(row.dice),
                    "at": row.at,
                }
                for row in self.rows
            ],
        }


def load(case: ViewCase, names: Names, most_voxels: int | None = None) -> LoadedCase:
    """Read a case.

    Args:
        case: Its files.
        names: What label values mean.
        most_voxels: Resample to a coarser grid if it has more.

    Raises:
        DataError: A file cannot be read, or is not what it is given as.
    """
    notes: list[str] = []
    prediction, image, reference = _read(case, notes)
    comparable = reference is not None and same_grid(reference, prediction)
    if reference and not comparable:
        notes.append(
            f"the reference lies on another grid ({_size(reference)} voxels, the segmentation {_size(prediction)}):"
            " it is shown by nearest voxel, and there is no Dice"
        )
        reference = on_grid(reference, prediction, nearest=True)
    values = _values(prediction, reference, names, notes)
    prediction, reference = _indexed(prediction, values), reference and _indexed(reference, values)
    rows = tuple(_rows(prediction, reference if comparable else None, reference, values, names))
    voxel_ml = prediction.voxel_mm3 / 1000
    if image and not same_grid(image, prediction):
        notes.append(
            f"the image lies on another grid ({_size(image)} voxels, the segmentation {_size(prediction)}):"
            " it is shown on that of the segmentation"
        )
        image = on_grid(image, prediction, nearest=False)
        if image.array.min() == image.array.max():
            notes.append("the image does not reach where the segmentation lies: do they belong together?")
    most_voxels = most_voxels or prediction.array.size
    if prediction.array.size > most_voxels or max(prediction.shape) > LONGEST:
        coarse = smaller(prediction, most_voxels, LONGEST)
        notes.append(
            f"shown with {_size(coarse)} voxels instead of {_size(prediction)}: a browser takes no more;"
            " volumes and Dice are those of the files"
        )
        prediction = on_grid(prediction, coarse, nearest=True)
        reference = reference and on_grid(reference, coarse, nearest=True)
        image = image and on_grid(image, coarse, nearest=False)
    names_of_channels = _channel_names(case, len(image.array)) if image else ()
    image = image or Volume(np.zeros((1, *prediction.shape), np.uint8), prediction.affine)
    inside = prediction.array > 0
    windows = tuple(
        _window(channel, inside, name) for channel, name in zip(image.array, names_of_channels, strict=False)
    )
    return LoadedCase(
        case.name, image, names_of_channels, windows, prediction, reference, rows, voxel_ml, comparable, tuple(notes)
    )


def _read(case: ViewCase, notes: list[str]) -> tuple[Volume, Volume | None, Volume | None]:
    """Return prediction, image and reference of a case, upright, each on its own grid."""
    prediction = read_labels(case.prediction)
    channels = [read_image(path) for path in case.images if path.exists()]
    missing = [path.name for path in case.images if not path.exists()]
    if missing:
        notes.append(f"the image {missing[0]!r} is missing")
    elif not channels:
        notes.append("there is no image of this case")
    # A file that does not say where it lies belongs where its partner is.
    prediction = placed_like(prediction, channels[0]) if channels else prediction
    channels = [upright(placed_like(channel, prediction)) for channel in channels]
    reference = upright(placed_like(read_labels(case.reference), prediction)) if case.reference else None
    return upright(prediction), _joined(channels, notes), reference


def _joined(channels: list[Volume], notes: list[str]) -> Volume | None:
    """Return all channels on the grid of the first, (C, D, H, W)."""
    if len(channels) < 2:
        return channels[0] if channels else None
    first = channels[0]
    if not all(same_grid(channel, first) for channel in channels):
        notes.append("the channels of the image lie on different grids: all are shown on that of the first")
    arrays = [(v if same_grid(v, first) else on_grid(v, first, nearest=False)).array for v in channels]
    return Volume(np.concatenate(arrays), first.affine, first.placed)


def _values(prediction: Volume, reference: Volume | None, names: Names, notes: list[str]) -> list[int]:
    """Return the label values that get a row, sorted; the others are noted."""
    found = {int(value) for v in (prediction, reference) if v for value in np.flatnonzero(np.bincount(v.array.ravel()))}
    unlisted = sorted(found - {0, names.ignore} - set(names.classes))
    if len(unlisted) + len(names.classes) > MOST_CLASSES:
        raise DataError(
            f"the segmentation has {len(found)} values, more than {MOST_CLASSES} classes can be shown",
            "name the image first and the segmentation last: stunet_view IMAGE SEGMENTATION",
        )
    if unlisted and names.known:
        shown = ", ".join(map(str, unlisted[:5])) + (", ..." if len(unlisted) > 5 else "")
        notes.append(f"dataset.json does not list these label values: {shown}")
    return sorted({*names.classes, *unlisted, *([names.ignore] if names.ignore in found else [])} - {0, None})


def _indexed(volume: Volume, values: list[int]) -> Volume:
    """Return label values replaced by their position in the list, from 1."""
    kind = np.uint8 if len(values) <= np.iinfo(np.uint8).max else np.uint16
    table = np.zeros(int(max(volume.array.max(), *values, 0)) + 1, kind)
    table[values] = np.arange(1, len(values) + 1)
    return Volume(table[volume.array], volume.affine, volume.placed)


def _rows(
    prediction: Volume, compared: Volume | None, shown: Volume | None, values: list[int], names: Names
) -> Iterator[Row]:
    """Yield a row for each value, then one for each region.

    Args:
        prediction: Indices.
        compared: Indices of the reference, if both can be compared.
        shown: Indices of the reference, in which a class may be that the prediction lacks.
        values: Label value of index 1, 2, ...
        names: Their names.
    """
    size = len(values) + 1
    predicted, referenced = prediction.array.ravel(), None
    if compared is not None:
        referenced = compared.array.ravel()
        if names.ignore in values:
            counted = referenced != values.index(names.ignore) + 1
            predicted, referenced = predicted[counted], referenced[counted]
    n_pred = np.bincount(predicted, minlength=size)
    n_ref = np.bincount(referenced, minlength=size) if referenced is not None else None
    both = np.bincount(predicted[predicted == referenced], minlength=size) if referenced is not None else None
    boxes = [find_objects(v.array, max_label=len(values)) if v is not None else [] for v in (prediction, shown)]
    for index, value in enumerate(values, start=1):
        at = next(
            (
                _middle(volume, index, box[index - 1])
                for volume, box in zip((prediction, shown), boxes, strict=True)
                if volume is not None and box[index - 1] is not None
            ),
            None,
        )
        ours, theirs = int(n_pred[index]), None if n_ref is None else int(n_ref[index])
        ignored = value == names.ignore
        dice = None if both is None or theirs is None or ignored else _dice(both[index], ours, theirs)
        yield Row(names.name(value), value, index, (), names.colour(value), ours, theirs, dice, at, ignored)
    place = {value: index for index, value in enumerate(values, start=1)}
    for name, members in names.regions.items():
        parts = tuple(place[value] for value in members if value in place)
        is_part = np.zeros(size, bool)
        is_part[list(parts)] = True
        ours, theirs = int(n_pred[is_part].sum()), None if n_ref is None else int(n_ref[is_part].sum())
        dice = None
        if referenced is not None and theirs is not None:
            dice = _dice(int((is_part[predicted] & is_part[referenced]).sum()), ours, theirs)
        yield Row(" ".join(name.split()), None, 0, parts, colour(name), ours, theirs, dice, None)


def _dice(both: int, ours: int, theirs: int) -> float:
    """Return the overlap, with nnU-Net's convention: NaN if neither has the class."""
    return 2 * int(both) / (ours + theirs) if ours + theirs else nan


def _middle(volume: Volume, index: int, box: tuple[slice, ...]) -> tuple[float, float, float]:
    """Return mm in RAS of a voxel of the class near the middle of the axial slice with most of it."""
    mask = volume.array[box] == index
    sizes = mask.sum(axis=(1, 2))
    fullest = np.flatnonzero(sizes == sizes.max())
    plane = int(fullest[len(fullest) // 2])
    inside = np.argwhere(mask[plane])
    nearest = inside[((inside - inside.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    z, y, x = (float(b.start + n) for b, n in zip(box, (plane, *nearest), strict=True))
    mm = volume.affine @ (x, y, z, 1.0)
    return float(mm[0]), float(mm[1]), float(mm[2])


def _channel_names(case: ViewCase, count: int) -> tuple[str, ...]:
    if len(case.channels) == count:
        return tuple(" ".join(str(name).split()) for name in case.channels)
    return tuple(f"channel {i}" for i in range(count)) if count > 1 else (UNNAMED,)


def _window(channel_DHW: np.ndarray, inside: np.ndarray, name: str) -> tuple[float, float]:
    step = max(1, channel_DHW.size // SAMPLE)
    sample, segmented = channel_DHW.ravel()[::step], inside.ravel()[::step]
    # Without a dataset, channels have no names; only CT has values so far below 0.
    is_ct = name.casefold() == "ct" or (name == UNNAMED and float(sample.min()) < AIR_HU)
    return window(sample, sample[segmented], is_ct)


def _size(volume: Volume) -> str:
    return "x".join(map(str, volume.shape[::-1]))
