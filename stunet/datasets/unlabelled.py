"""Make a raw dataset without labels, for self-supervised pre-training, of scans in folders of any layout.

Images stay where they are. What nnU-Net's reader would not read as one file, DICOM series above all, is written as
NIfTI, with the geometry of the source. Every image is read once: broken, constant and flat ones, and those with another
number of channels, are an error, or are left out. So are images of a few whole numbers, which are label maps, and a CT
whose slices have slopes of their own. dataset.json names the reader, ITK, so files of several
formats can be in one dataset. Read next: scans.py, which finds the scans and defines names and subjects; nnssl.py.
"""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from stunet.datasets import FILE_ENDING, RawCase, Rules, dicom, units
from stunet.datasets.check import (
    UNREADABLE,
    CheckedImages,
    check_leaves_voxels,
    read_images,
    read_mask,
)
from stunet.datasets.contents import is_like_label_map, look
from stunet.datasets.conversion import Conversion, Description, SourceCase, dataset_folder
from stunet.datasets.dicom_headers import scan as scan_series
from stunet.datasets.listing import ending_of, unusable
from stunet.datasets.pairs import write_map
from stunet.datasets.scans import BY_ITK, BY_NIBABEL, REFERRED, Found, Masks, Scan, find_scans
from stunet.errors import DataError, UsageError, is_disk_full, is_out_of_memory, last_line
from stunet.files import atomic_write
from stunet.images import read_sitk, write_sitk
from stunet.nifti import check_nifti

READER = "SimpleITKIO"
UNKNOWN = "image"  # name of a channel of which nothing says what it is
AIR_HU = -500  # in a CT in HU some voxels are below it


@dataclass(frozen=True)
class TakeScan:
    """The step of this conversion: check a scan and its masks, and write what cannot be referred to.

    Attributes:
        channels: Names of the channels.
        format: Name of the format in which the scans are listed: "images" or "nnssl".
    """

    channels: tuple[str, ...]
    format: str

    def options(self) -> dict[str, Any]:
        # Not their names, which only dataset.json has: whoever named them wrongly need not start from scratch.
        return {"format": self.format, "channels": len(self.channels)}

    def __call__(self, source: SourceCase, folder: Path) -> tuple[list[Path], dict[str, Any]]:
        assert isinstance(source, Scan)
        written: list[Path] = []
        try:
            return written, self._take(source, folder, written)
        except BaseException as error:
            for path in written:  # nothing of a scan that is not taken
                path.unlink(missing_ok=True)
            if isinstance(error, DataError):
                raise DataError(error.message, f"{error.hint}, or --skip_bad to leave such scans out") from error
            raise

    def _take(self, scan: Scan, folder: Path, written: list[Path]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        images = tuple(_readable(scan, number, folder, written) for number in range(len(scan.images)))
        if images != scan.images:
            facts["images"] = [path.relative_to(folder).as_posix() if path in written else None for path in images]
        rules = Rules(_reader(), self.channels, frozenset(), "--channels")
        case = RawCase(scan.name, images, None, scan.mask)
        checked = read_images(case, rules)
        _check_content(scan.name, checked)
        excluded = np.zeros(checked.channels.shape[1:], np.uint8)
        if scan.mask:
            excluded |= read_mask(case, rules, checked.grid, scan.mask) > 0
            check_leaves_voxels(excluded, scan.mask)
        if scan.roi:
            excluded |= read_mask(case, rules, checked.grid, scan.roi) <= 0
            check_leaves_voxels(excluded, scan.roi)
            path = folder / "masksTr" / f"{scan.name}{FILE_ENDING}"
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as part:
                write_map(_reader()(), excluded, part, checked.properties)
            written.append(path)
            facts["mask"] = path.relative_to(folder).as_posix()
        seen = units.look(checked.channels[0])
        return {**facts, "hu": bool(seen.is_hu and seen.low < AIR_HU)}


def prepare_images(
    roots: Sequence[Path],
    raw: Path,
    dataset_id: int,
    name: str,
    channels: Mapping[str, str] | None = None,
    masks: str | None = None,
    rois: str | None = None,
    skip_bad: bool = False,
    variable: str | None = None,
) -> Conversion:
    """Prepare the conversion of folders of scans.

    Args:
        roots: The folders.
        raw: The folder nnUNet_raw.
        dataset_id: 1 to 999.
        name: Name of the dataset.
        channels: Suffix by channel name; None: one channel, named by DICOM (CT, MR) or BIDS (T1w) where all images
            agree, and else "image".
        masks: As for scans.Masks: where losses do not count.
        rois: The same: where they count.
        skip_bad: Leave out scans that are bad, instead of ending with an error.
        variable: Name of the variable that stands for the only folder in dataset.json.

    Raises:
        DataError: A folder is missing or has no scans, masks are missing, or the number is taken.
        UsageError: The number or name is not allowed, or suffixes do not tell channels apart.
    """
    target = dataset_folder(raw, dataset_id, name)
    suffixes = list(channels.values()) if channels else [""]
    if len(set(suffixes)) < len(suffixes):
        shown = ", ".join(map(repr, suffixes))
        raise UsageError(f"suffixes {shown} do not tell the files of channels apart", "--channels T1=_t1 FLAIR=_flair")
    if variable and len(roots) > 1:
        raise UsageError(f"--variable {variable} stands for one folder, and -i has {len(roots)}", "one folder")
    only = next(iter(channels)) if channels and len(channels) == 1 else None
    found = find_scans(roots, suffixes, only, Masks(masks) if masks else None, Masks(rois) if rois else None)
    return prepare_scans(
        target,
        found,
        tuple(channels) if channels else (_channel(found),),
        "images",
        skip_bad,
        (variable, roots[0]) if variable else None,
    )


def prepare_scans(
    target: Path,
    found: Found,
    channels: tuple[str, ...],
    format: str,
    skip_bad: bool,
    variable: tuple[str, Path] | None = None,
) -> Conversion:
    """Prepare the conversion of scans; nothing is written yet.

    Args:
        target: nnUNet_raw/DatasetXXX_Name.
        found: The scans.
        channels: Names of the channels.
        format: As in TakeScan.
        skip_bad: As for prepare_images().
        variable: As in Conversion.
    """
    endings = [ending_of(path.name) for one in found.scans for path in one.images if not one.parts]
    referred = [ending for ending in endings if ending in REFERRED]
    # One ending is all that dataset.json can have, and nothing is looked for by it, as every file is listed.
    ending = max(sorted(set(referred)), key=referred.count, default=FILE_ENDING)
    return Conversion(
        target,
        tuple(found.scans),
        TakeScan(channels, format),
        Description(channels, {"background": 0}, {"overwrite_image_reader_writer": READER}, ending),
        variable=variable,
        report=_Report(channels),
        warnings=tuple(found.warnings()),
        labelled=False,
        skip_bad=skip_bad,
    )


@dataclass(frozen=True)
class _Report:
    """Says what images look like that were named otherwise."""

    channels: tuple[str, ...]

    def __call__(self, target: Path, facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
        alike = sum(one["hu"] for one in facts.values())
        if dicom.modality_of(self.channels[0]) is None and 2 * alike > len(facts):
            what = f"{alike} of {len(facts)} images have values as a CT in HU"
            return [f"{what}, and are normalised one by one as {self.channels[0]!r}: --channels CT names them"]
        return []


def _channel(found: Found) -> str:
    """Return the name of the channel of which all images say that it is theirs; UNKNOWN if they do not agree."""
    if len(found.kinds) == 1 and (kind := next(iter(found.kinds))):
        return kind
    return UNKNOWN


def _readable(scan: Scan, number: int, folder: Path, written: list[Path]) -> Path:
    """Return a file that ITK reads for an image of a scan: its own, or one that is written as NIfTI."""
    source = scan.images[number]
    ending = ending_of(source.name)
    if not source.is_dir() and ending in REFERRED:
        return source
    target = folder / "imagesTr" / f"{scan.name}_{number:04d}{FILE_ENDING}"
    target.parent.mkdir(exist_ok=True)
    if source.is_dir():
        for series in scan_series(source).series:
            if series.key == scan.series:
                dicom.check_slopes(series, "if it is, convert it to NIfTI yourself")
        dicom.to_nifti(source, target, scan.series)
        written.append(target)
        return target
    if problem := unusable(source):
        raise problem
    try:
        with atomic_write(target) as part:
            if ending in BY_ITK:
                write_sitk(read_sitk(source), part)
            elif ending in BY_NIBABEL:
                content = source.read_bytes()  # nibabel.load() leaves such a file open
                image: Any = nibabel.MGHImage.from_bytes(gzip.decompress(content) if ending == ".mgz" else content)
                nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine), part)
                check_nifti(part)
    except (*UNREADABLE, KeyError, TypeError) as error:  # the last two are of nibabel's MGH
        if is_out_of_memory(error) or is_disk_full(error):
            raise
        what = f"cannot read {str(source)!r}, it is damaged or truncated: {last_line(error)}"
        raise DataError(what, "copy the file again, or remove it") from error
    written.append(target)  # only now: of a source that cannot be read any more, an earlier run's copy stays
    return target


def _check_content(name: str, checked: CheckedImages) -> None:
    """Raise DataError if nothing can be learned from an image."""
    shape = checked.channels.shape[1:]
    if min(shape) < 2:
        raise DataError(f"image {name!r} is flat, {' x '.join(map(str, shape))} voxels", "take volumes")
    if constant := look(checked.channels, None, {}).constant:
        which = f"channel {constant[0]} of image" if len(checked.channels) > 1 else "image"
        raise DataError(f"{which} {name!r} holds one value only, nothing to learn from", "take it out of the folder")
    if any(map(is_like_label_map, checked.channels)):
        what = f"image {name!r} holds a few whole numbers only, as label maps and masks do"
        raise DataError(what, "take it out of the folder")


@cache
def _reader() -> type:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    found: type = recursive_find_reader_writer_by_name(READER)
    return found
