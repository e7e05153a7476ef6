"""Assemble a folder of DICOM files into one volume, or reject the folder if that would be unsafe.

Geometry, slope and intercept are taken from the headers of each frame. A missing value is an error, never guessed, and
so are slices that are missing, duplicated, shifted or damaged. dicom_headers.py reads the headers, dicom_pixels.py the
pixels that follow them.
"""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stunet.datasets import dicom_pixels
from stunet.datasets.dicom_headers import (
    COPY_AGAIN,
    DISTINCTIONS,
    EXPORT_AGAIN,
    WITHOUT_UID,
    Frame,
    Scan,
    Series,
    files_of,
    numbers,
    quietly,
    scan,
    value,
    where,
)
from stunet.datasets.listing import DICOM, begins_as_dicom
from stunet.errors import DataError, first_few
from stunet.files import atomic_write
from stunet.images import write_sitk

TOLERANCE = 0.01  # as a fraction of the distance between slices
ROUNDING_MM = 0.011  # for neighbours whose positions were rounded to two decimals
ANGLE = 1e-3  # tolerance on direction cosines: 0.3 mm at the edge of a slice
ORIGINAL = 4  # when choosing a series, an original image counts as this many derived ones
SHOWN = 4
# Channel names, by the modality of the images that these channels take.
MODALITIES = {
    "CT": r"n?ce?ct\b|ct\b|cbct",
    "MR": r"mri?\b|t1|t2|pd\b|flair|dwi|adc|swi|dixon",
    "PT": r"pe?t\b|suv",
}
OPEN = ("", "OT")  # modalities that tell nothing

log = logging.getLogger("stunet")


@dataclass(frozen=True)
class Found:
    """A series that becomes a case.

    Attributes:
        name: Derived from the path of its folder.
        folder: The folder of its files.
        key: Identifies it within the folder.
        error: Why no series can be taken from this folder.
    """

    name: str
    folder: Path
    key: str | None
    error: DataError | None = None


@dataclass(frozen=True)
class Stack:
    """Frames sorted by position along the normal, and the grid that they form.

    Attributes:
        frames: One per slice.
        size: In voxels, (W, H, D); like spacing, origin and direction, in ITK's order.
        spacing: In mm.
        origin: In mm, LPS.
        direction: Cosines, row by row.
        rescale: Slope and intercept of each frame.
    """

    frames: tuple[Frame, ...]
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    rescale: tuple[tuple[float, float], ...]


def is_dicom_folder(path: Path) -> bool:
    """Return whether the folder itself, not a subfolder, holds a DICOM file other than the index of a disc."""
    return path.is_dir() and any(begins_as_dicom(file) for file in files_of(path))


def find_series(source: Path, channel: str | None = None, wanted: str | None = None) -> list[Found]:
    """Return the series that become cases, from a folder and all folders below it: one per folder, sorted by name.

    Args:
        source: A folder of slices, or a study or patients with one folder per series.
        channel: Name of the model's channel; names for CT, MR and PET select the modality.
        wanted: UID, number or description of the series.

    Raises:
        DataError: There are slices but no series can be taken, or two cases would have the same name.
    """
    folders = [path for path in (source, *folders_below(source)) if _holds_slices(path)]
    found: list[Found] = []
    left_out: list[str] = []
    for folder in folders:
        name = "_".join(folder.relative_to(source).parts) or source.resolve().name
        try:
            series = choose(folder, modality_of(channel), wanted)
            # Whoever names the series takes it as it is.
            if wanted is None:
                check_slopes(series, f"--series {_quoted(series)} reads each slice with its own")
            found.append(Found(name, folder, series.key))
        except _NothingToTakeError as error:
            left_out.append(error.message)
            last = error
        except DataError as error:
            # An error of this case only: the other folders are predicted all the same.
            found.append(Found(name, folder, None, error))
    if folders and not found:
        raise last
    if left_out:
        log.warning("left out: %s", first_few(left_out, SHOWN))
    if len(folders) == 1 and found[0].error:
        raise found[0].error
    _warn_of_parts(found)
    by_name = {one.name: one for one in found}
    if len(by_name) < len(found):
        twice = next(one for one in found if by_name[one.name] is not one)
        both = f"{str(twice.folder)!r} and {str(by_name[twice.name].folder)!r}"
        raise DataError(f"{both} would both be case {twice.name!r}", "rename one of the folders")
    return sorted(found, key=lambda one: one.name)


def choose(folder: Path, modality: str | None = None, wanted: str | None = None) -> Series:
    """Return the intended series of a folder; a warning names it and what is left out.

    It has the given modality, or no known one, and is not a localizer. Among several, the one with the most images is
    taken if it has at least twice as many as any other, counting an original image as 4 derived ones.

    Args:
        folder: The folder of its files.
        modality: DICOM modality; None: any.
        wanted: Key, UID, number or description; then any series of images is accepted.

    Raises:
        DataError: No series or several could be intended, or a file that must be part of a series is damaged.
    """
    there = scan(folder)
    if there.damaged:
        raise _damaged(there, folder)
    images = [series for series in there.series if series.is_image]
    listed = first_few([str(series) for series in there.series], SHOWN) or "nothing"
    if wanted is not None:
        meant = [series for series in images if series.key == wanted] or [s for s in images if s.is_called(wanted)]
        if not meant:
            hint = "--series (in Python: series) with the UID, number or description of one of them"
            raise _NothingToTakeError(f"no images of a series {wanted!r} in {str(folder)!r} (there: {listed})", hint)
    else:
        meant = [series for series in images if series.kind != "localizer"]
        if modality:
            meant = [s for s in meant if s.modality == modality] or [s for s in meant if s.modality in OPEN]
    if not meant:
        hint = "give the folder that holds the slices of one series"
        if images:
            hint = f"--series {_quoted(images[0])} (in Python: series={images[0].key!r}) takes it all the same"
        what = f"no DICOM series of {modality} images" if modality else "no DICOM series of images"
        raise _NothingToTakeError(f"{what} in {str(folder)!r} (there: {listed})", hint)
    best = max(meant, key=_weight)
    rivals = [series for series in meant if series is best or 2 * _weight(series) > _weight(best)]
    if len(rivals) > 1:
        known = first_few([str(series) for series in rivals], SHOWN)
        what = f"{str(folder)!r} holds {len(rivals)} series that may be meant: {known}"
        hint = f"--series {_quoted(best)} (in Python: series={best.key!r}), or another one, or a folder for each series"
        raise DataError(what, hint)
    others = [str(series) for series in there.series if series is not best] + [repr(f.name) for f in there.others]
    if others and wanted != best.key:
        log.warning("%r: taking %s; left out: %s", str(folder), best, first_few(others, SHOWN))
    return best


def read_series(folder: Path, series: str | None = None) -> sitk.Image:
    """Return the volume of a series in the scanner's units (HU for CT), slices sorted by position along their normal.

    The voxel type is the smallest of int16, uint16, int32 and float that holds all values that slopes and intercepts
    can give.

    Args:
        folder: The folder of its files.
        series: Its key, UID, number or description; None: the only one that can be intended.

    Raises:
        DataError: There is no series, or several; a file is damaged or lacks its geometry; slices differ in size,
            PixelSpacing or orientation, are not evenly spaced along their normal (one is missing or duplicated), or
            are shifted against each other (tilted gantry).
    """
    made = stack(choose(folder, wanted=series))
    image = sitk.GetImageFromArray(dicom_pixels.volume(made.frames, made.rescale))
    image.SetSpacing(made.spacing)
    image.SetOrigin(made.origin)
    image.SetDirection(made.direction)
    return image


def geometry(folder: Path, series: str | None = None) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Return shape in voxels and spacing in mm, both (D, H, W), of the volume of a series, from its headers alone.

    Raises:
        DataError: As in read_series, except for errors in pixels.
    """
    made = stack(choose(folder, wanted=series))
    (width, height, depth), (right, down, along) = made.size, made.spacing
    return (depth, height, width), (along, down, right)


def to_nifti(folder: Path, target: Path, series: str | None = None) -> None:
    """Write a series as one NIfTI file.

    Raises:
        DataError: As read_series.
        OSError: The disk is full.
    """
    image = read_series(folder, series)
    with atomic_write(target) as part:
        write_sitk(image, part)


@quietly()
def stack(series: Series) -> Stack:
    """Arrange the frames of a series on their grid.

    Raises:
        DataError: As in read_series, except for errors in pixels.
    """
    frames = [Frame(header, number) for header in series.headers for number in range(header.frames)]
    for frame in frames:
        if "ModalityLUTSequence" in frame.header.content:
            raise DataError(f"{where(frame)} has a ModalityLUTSequence in place of a RescaleSlope", EXPORT_AGAIN)
    sizes = [(int(f.header.content.Columns), int(f.header.content.Rows)) for f in frames]
    _check_equal(frames, np.array(sizes, float), "Columns and Rows", 0)
    orientations = _all(frames, "ImageOrientationPatient", 6)
    _check_equal(frames, orientations, "ImageOrientationPatient", ANGLE)
    spacings = _all(frames, "PixelSpacing", 2)
    _check_equal(frames, spacings, "PixelSpacing", 1e-4 * spacings.max())
    if spacings.min() <= 0:
        raise DataError(f"PixelSpacing of {where(frames[int(spacings.min(1).argmin())])} is not above 0", EXPORT_AGAIN)
    direction = _direction(frames[0], orientations[0])
    positions = _all(frames, "ImagePositionPatient", 3)
    # Neither file names nor InstanceNumber have to follow the position.
    distances = positions @ direction[:, 2]
    order = np.argsort(distances, kind="stable")
    frames = [frames[i] for i in order]
    positions = positions[order]
    step = _step(frames, positions, distances[order], direction[:, 2]) if len(frames) > 1 else _thickness(frames[0])
    return Stack(
        tuple(frames),
        (*sizes[0], len(frames)),
        # PixelSpacing begins with the distance between rows (DICOM PS3.3, 10.7.1.3), ITK with that between columns.
        (float(spacings[0, 1]), float(spacings[0, 0]), step),
        tuple(positions[0].tolist()),
        tuple(direction.ravel().tolist()),
        _rescale(frames),
    )


class _NothingToTakeError(DataError):
    """A folder without a series for this model; it is left out if other folders have one."""


@quietly()
def check_slopes(series: Series, remedy: str) -> None:
    """Raise DataError if RescaleSlope differs between the slices of a CT.

    A scanner writes one slope for all slices of a CT; software that scales each slice by itself rarely keeps HU.

    Args:
        series: Of any modality.
        remedy: What to do if it is in HU all the same.
    """
    frames = [Frame(header, number) for header in series.headers for number in range(header.frames)]
    slopes = {slope[0] for frame in frames if (slope := numbers(frame, "RescaleSlope", 1))}
    if series.modality == "CT" and len(slopes) > 1:
        what = f"RescaleSlope differs from slice to slice in {series} in {str(series.folder)!r}"
        what += f": {min(slopes):g} to {max(slopes):g}, where scanners write one for a CT"
        raise DataError(what, f"check that it is in HU; {remedy}")


def _warn_of_parts(found: Sequence[Found]) -> None:
    """Warn about folders that share a UID; each remains a case.

    They may be parts of one series, copies, or badly anonymised.
    """
    by_key: dict[str, Path] = {}
    for one in found:
        if one.key and not one.key.startswith(WITHOUT_UID):
            if one.key in by_key:
                log.warning("%r and %r hold the same series %s", str(by_key[one.key]), str(one.folder), one.key)
            by_key[one.key] = one.folder


def _holds_slices(path: Path) -> bool:
    """Return whether a folder holds slices, even if all of them are damaged."""
    return path.is_dir() and any(file.suffix.lower() in DICOM or begins_as_dicom(file) for file in files_of(path))


def folders_below(source: Path) -> list[Path]:
    """Return all folders below a folder, also through links, each once and without hidden ones."""

    def warn(error: OSError) -> None:
        log.warning("left out: cannot list the folder %r: %s", error.filename, error.strerror)

    found, ways = [], [source]
    seen = {str(parent) for parent in Path(os.path.realpath(source)).parents}  # a link upwards leads to other studies
    while ways:  # links come last, so that a folder is named by its real location if that is below `source`
        for name, names, _ in os.walk(ways.pop(0), onerror=warn):
            path, real = Path(name), os.path.realpath(name)
            # In place: os.walk() goes on with what is left in this list.
            names[:] = [] if real in seen else sorted(below for below in names if not below.startswith("."))
            found += [] if real in seen else [path]
            seen.add(real)
            ways += [path / below for below in names if (path / below).is_symlink()]
    # Without `source` itself, which os.walk() yields first.
    return found[1:]


def modality_of(channel: str | None) -> str | None:
    for modality, names in MODALITIES.items():
        if channel and re.match(names, channel.strip(), re.IGNORECASE):
            return modality
    return None


def _weight(series: Series) -> int:
    return series.size * (ORIGINAL if series.kind == "original" else 1)


def _quoted(series: Series) -> str:
    return series.key if re.fullmatch(r"[\d.]+", series.key) else repr(series.key)


def _damaged(there: Scan, folder: Path) -> DataError:
    listed = [f"{file.name!r} ({reason})" for file, reason in there.damaged.items()]
    return DataError(f"damaged files in {str(folder)!r}: {first_few(listed, SHOWN)}", COPY_AGAIN)


def _all(frames: Sequence[Frame], name: str, count: int) -> np.ndarray:
    """Return an attribute of all frames, (N, count); raise DataError if any frame lacks it."""
    rows = [numbers(frame, name, count) for frame in frames]
    lacking = [frame for frame, row in zip(frames, rows, strict=True) if row is None]
    if lacking:
        more = (
            f", and neither have {len(lacking) - 1} of the other {len(frames) - 1} images" if len(lacking) > 1 else ""
        )
        raise DataError(f"{where(lacking[0])} has no {name}{more}", EXPORT_AGAIN)
    return np.array(rows, float)


def _check_equal(frames: Sequence[Frame], rows: np.ndarray, name: str, tolerance: float) -> None:
    """Raise DataError, which names the frame, if a frame's value differs from that of most frames."""
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    usual = distinct[counts.argmax()]
    other = np.abs(rows - usual).max(axis=1) > tolerance
    if other.any():
        first = int(other.argmax())
        values = f"{_listed(rows[first])}, of {int((~other).sum())} others {_listed(usual)}"
        hint = "put the slices of each kind into a folder of their own"
        raise DataError(f"{name} of {where(frames[first])} is {values}", hint)


def _listed(row: np.ndarray) -> str:
    return "\\".join(f"{number:g}" for number in row)


def _direction(frame: Frame, orientation: np.ndarray) -> np.ndarray:
    """Return the volume's axes, at right angles, as the columns of a matrix; rounded cosines are corrected."""
    right, down = orientation[:3], orientation[3:]
    axes = np.stack([right, down, np.cross(right, down)], axis=1)
    error = np.abs(axes.T @ axes - np.eye(3)).max()
    if error > 0.02:
        raise DataError(f"ImageOrientationPatient of {where(frame)} is {_listed(orientation)}, no axes", EXPORT_AGAIN)
    if error > 1e-6:
        # u @ v is the orthogonal matrix that is nearest to the axes.
        u, _, v = np.linalg.svd(axes)
        axes = u @ v
    return axes


def _step(frames: Sequence[Frame], positions: np.ndarray, distances: np.ndarray, normal: np.ndarray) -> float:
    """Return the distance between slices in mm, averaged over the whole stack."""
    steps = np.diff(distances)
    usual = float(np.median(steps))
    total = float(distances[-1] - distances[0])
    # Relative to the mean: if every position is there twice, the median may be 0.
    if (double := steps <= TOLERANCE * total / len(steps)).any():
        raise _doubled(frames, distances, int(double.argmax()))
    # Positions rounded to two decimals are off by at most half the last digit; at a gap, by at least half a slice.
    uneven = np.abs(steps - usual) > min(max(TOLERANCE * usual, ROUNDING_MM), usual / 4)
    if uneven.any():
        first = int(uneven.argmax())
        place = f"{frames[first].name} and {where(frames[first + 1])}"
        found = f"{steps[first]:.2f} mm between slices {place}, mostly {usual:.2f} mm"
        hint = "export the whole series again, or resample it onto an even grid first"
        raise DataError(f"{found}: a slice is missing or doubled ({int(uneven.sum())} such gaps)", hint)
    moved = positions - positions[0]
    sideways = np.linalg.norm(moved - np.outer(moved @ normal, normal), axis=1)
    if (shifted := sideways > ROUNDING_MM + TOLERANCE * np.abs(moved @ normal)).any():
        frame = frames[int(shifted.argmax())]
        raise DataError(
            f"the slices are not stacked along their normal: {where(frame)} is shifted (tilted gantry)",
            "resample the series onto a straight grid first",
        )
    # The rounding of single positions does not add up.
    return total / len(steps)


def _doubled(frames: Sequence[Frame], distances: np.ndarray, first: int) -> DataError:
    """Return the error for several images at one position; it names what tells them apart."""
    one, other = frames[first], frames[first + 1]
    place = f"{one.name} and {where(other)} lie at the same position along the normal"
    for name in DISTINCTIONS:
        values = [str(value(frame, name)) for frame in (one, other)]
        if values[0] != values[1]:
            what = f"the series holds several stacks: {place} and differ in {name} ({', '.join(values)})"
            return DataError(what, f"put the images of each {name} into a folder of their own")
    return DataError(f"{place}: a slice is doubled", "take one of them out of the folder")


def _thickness(frame: Frame) -> float:
    """Return the thickness of a single slice in mm."""
    found = numbers(frame, "SliceThickness", 1)
    if found is None or found[0] <= 0:
        raise DataError(f"{where(frame)}, a single slice, has no SliceThickness above 0", EXPORT_AGAIN)
    return found[0]


def _rescale(frames: Sequence[Frame]) -> tuple[tuple[float, float], ...]:
    """Return slope and intercept of each frame; either all frames have the attribute, or none has."""
    columns = []
    # A value that only some frames have is an error in _all(): that of the others would be a guess.
    for name, absent in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        if any(value(frame, name) is not None for frame in frames):
            columns.append(_all(frames, name, 1)[:, 0].tolist())
        else:
            columns.append([absent] * len(frames))
    if 0 in columns[0]:
        raise DataError(f"RescaleSlope of {where(frames[columns[0].index(0)])} is 0", EXPORT_AGAIN)
    return tuple(zip(*columns, strict=True))
