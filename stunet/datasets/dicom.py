"""How a folder of DICOM slices becomes one volume, and when it must not.

ITK stacks whatever slices it is given; a missing slice or a tilted gantry would bend the volume without a word.
"""

import logging
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from stunet.errors import DataError
from stunet.files import whole

TOLERANCE = 0.01  # of the distance between slices
POSITION, ORIENTATION = "0020|0032", "0020|0037"  # ImagePositionPatient, ImageOrientationPatient

log = logging.getLogger("stunet")


def is_dicom_folder(path: Path) -> bool:
    """Whether the folder itself, not a folder in it, holds a file with DICOM's mark: `DICM` at byte 128."""
    return path.is_dir() and any(_is_dicom(file) for file in sorted(path.iterdir()))


def read_series(folder: Path) -> sitk.Image:
    """The volume of the largest series in a folder, in the scanner's units (HU for CT), slices sorted by position.

    Raises:
        DataError: No series, slices that cannot be read or do not fit together, or slices that are not evenly spaced
            along their normal within 1 % of their distance (one is missing, or the gantry was tilted).
    """
    files = series_files(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:  # how SimpleITK reports anything
        raise DataError(
            f"cannot read the series in {str(folder)!r}: {str(error).splitlines()[-1]}", "export it again"
        ) from error
    _check_slices(reader, files)
    return image


def series_files(folder: Path) -> tuple[str, ...]:
    """The files of the largest series in a folder, one per slice, in the order of read_series's array.

    Raises:
        DataError: No series.
    """
    series = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in _series_ids(folder)}
    if not series:
        raise DataError(f"no DICOM series in {str(folder)!r}", "give the folder that holds the slices of one series")
    files = max(series.values(), key=len)
    if len(series) > 1:
        log.warning("%s holds %d series; taking the largest, %d slices", folder, len(series), len(files))
    return files


def geometry(folder: Path) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Shape in voxels and spacing in mm, both (D, H, W), of the largest series, from the headers of two slices.

    Raises:
        DataError: No series, or a header that cannot be read.
    """
    files = series_files(folder)
    first = sitk.ImageFileReader()
    last = sitk.ImageFileReader()
    try:
        for reader, file in ((first, files[0]), (last, files[-1])):
            reader.SetFileName(file)
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise DataError(f"cannot read a header in {str(folder)!r}: {str(error).splitlines()[-1]}") from None
    width, height, depth = (*first.GetSize(), 1)[:3]
    right, down, along = (*first.GetSpacing(), 1.0)[:3]
    if len(files) > 1:
        length = np.linalg.norm(np.subtract(last.GetOrigin(), first.GetOrigin()))
        depth, along = len(files), float(length) / (len(files) - 1)
    return (depth, height, width), (along, down, right)


def to_nifti(folder: Path, target: Path) -> None:
    """Writes the largest series of a folder as one NIfTI file.

    Raises:
        DataError: As read_series.
    """
    image = read_series(folder)
    with whole(target) as part:
        sitk.WriteImage(image, part, useCompression=True)


def _is_dicom(file: Path) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _series_ids(folder: Path) -> tuple[str, ...]:
    return sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) if is_dicom_folder(folder) else ()


def _check_slices(reader: sitk.ImageSeriesReader, files: tuple[str, ...]) -> None:
    """Compares the steps between neighbouring slices with their median and with the normal of the slices."""
    if len(files) < 2 or not all(
        reader.HasMetaDataKey(i, key) for i in range(len(files)) for key in (POSITION, ORIENTATION)
    ):
        return  # a single slice, or an enhanced file that holds its own geometry
    positions = np.array([_numbers(reader.GetMetaData(i, POSITION)) for i in range(len(files))])
    directions = np.array([_numbers(reader.GetMetaData(i, ORIENTATION)) for i in range(len(files))])
    where = f"in {str(Path(files[0]).parent)!r}"
    if np.abs(directions - directions[0]).max() > TOLERANCE:
        raise DataError(
            f"slices of different orientation {where}", "put the slices of each orientation into a folder of their own"
        )
    steps = np.diff(positions, axis=0)
    step = np.median(steps, axis=0)
    distance = np.linalg.norm(step)
    uneven = np.linalg.norm(steps - step, axis=1) > TOLERANCE * distance
    if uneven.any():
        first = int(np.argmax(uneven))
        names = " and ".join(repr(Path(file).name) for file in files[first : first + 2])
        found = f"{np.linalg.norm(steps[first]):.2f} mm between slices {names} {where}, mostly {distance:.2f} mm"
        hint = "export the whole series again, or resample it onto an even grid first"
        raise DataError(f"{found}: a slice is missing or doubled ({int(uneven.sum())} such gaps)", hint)
    normal = np.cross(directions[0, :3], directions[0, 3:])
    if np.linalg.norm(np.cross(step, normal)) > TOLERANCE * distance:
        raise DataError(
            f"the slices {where} are not stacked along their normal (tilted gantry)",
            "resample the series onto a straight grid first",
        )


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split("\\")]
