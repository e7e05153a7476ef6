"""Find the input cases of a prediction and check their names, before torch is imported.

Files are named as for nnU-Net (CASE_0000.nii.gz is channel 0 of CASE), and more is accepted: see `find_cases`.
Read next: reading.py, which reads their voxels.
"""

import logging
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stunet.datasets import tiff
from stunet.datasets.listing import Image, Listing, ending_of, list_images, named, not_utf8, unusable
from stunet.errors import DataError, raise_first
from stunet.inference.model import ModelFolder

SEGMENTATION = ".seg.nrrd"  # of 3D Slicer: a result, although its name ends like an image's
_CHANNEL = re.compile(r"(.+)_(\d{4})", re.DOTALL)  # case and channel; names may contain line breaks
log = logging.getLogger("stunet")


@dataclass(frozen=True)
class InputCase:
    """One case.

    Args:
        name: Name of its output.
        files: One per channel, a single one with all channels, or one DICOM folder.
        previous: The previous stage's result, for a cascade.
        error: What is wrong with its files, if that was found before any of them was read.
        series: Which series of a DICOM folder, as named by datasets.dicom.
        subfolder: Of the folder of the results, in which its own are, as a list says; empty: there.
        shard: Below that, the folder that a hash of its name gives; empty: none.
    """

    name: str
    files: tuple[Path, ...]
    previous: Path | None = None
    error: DataError | None = None
    series: str | None = None
    subfolder: str = ""
    shard: str = ""

    def place(self, folder: Path) -> Path:
        """Return where its results are, if all results are in a folder or below."""
        return folder / self.subfolder / self.shard

    @property
    def is_dicom(self) -> bool:
        """Whether the case is a folder of DICOM slices."""
        return self.files[0].is_dir()

    def fingerprint(self) -> list[Any]:
        """Return the series, and name, size (bytes) and mtime (ns) of each file; a change makes results stale."""
        stats = [(file.name, file.stat()) for file in self._all_files() if file.is_file()]
        return [self.series, *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]

    def changed_ns(self) -> int:
        """Return when the last of its files changed, in ns; an older result was made from something else."""
        return max((file.stat().st_mtime_ns for file in self._all_files() if file.exists()), default=0)

    def _all_files(self) -> list[Path]:
        """Return its files and folders, what the folders hold, and the files with the spacing of TIFFs."""
        spacings = [
            tiff.spacing_file(path, is_image=True) for path in self.files if path.suffix.lower() in tiff.ENDINGS
        ]
        paths = [path for path in (*self.files, *spacings, self.previous) if path]
        return [file for path in paths for file in (path, *(sorted(path.iterdir()) if path.is_dir() else ()))]


def find_cases(source: Path, model: ModelFolder, series: str | None = None) -> list[InputCase]:
    """Return the input cases, sorted by name.

    `source` is a folder of images and of folders of DICOM slices, a single image, a folder of DICOM slices (the case
    takes the folder's name), or a folder that contains such folders at any depth. If there are several series,
    `series` or the model's channel selects one. Images may have any ending that the model's reader takes; they are
    named CASE_0000.nii.gz, CASE_0001.nii.gz ... per channel; with one channel, _0000 may be left out. If no case has
    more than its _0000, that file may hold all channels, as in training: this is checked on reading. Anything that
    looks like an image but cannot be used as one becomes a case with an error, so that the others can be predicted.

    Raises:
        DataError: Nothing was found, or no case is complete.
    """
    if not source.exists():
        missing = DataError(f"no input {str(source)!r}", "give a folder of images, an image or a DICOM folder with -i")
        # A broken link does not exist either; it is called a broken link.
        raise (unusable(source) if source.is_symlink() else None) or missing
    if source.is_file():
        ending = ending_of(source.name, model.ending)
        if ending not in model.readable_endings:
            raise DataError(
                f"{str(source)!r} does not end with {model.ending!r}, as this model's images do",
                f"convert it to {model.ending}",
            )
        image = Image(source, source.name[: -len(ending)], ending, unusable(source))
        return _sorted_cases(_group(_files_of_case(image, model), model))
    found = list_images(source, model.ending)
    masks = [image for image in found.images if image.ending == SEGMENTATION != model.ending]
    cases = _group([image for image in found.images if image not in masks], model)
    # Without images, the source itself is searched: it may be a series, or hold folders of them at any depth.
    for folder in found.series if cases else (source,):
        cases += series_cases(folder, model, series, {case.name for case in cases})
    if found.slices and found.images:
        what = f"{len(found.slices)} DICOM files lie beside images in {str(source)!r}: {named(found.slices)}"
        error = DataError(what, "put them into a folder of their own")
        cases.append(InputCase(source.resolve().name, (source,), error=error))
    if not cases:
        raise _no_images(source, found, model)
    used = {case.files[0] for case in cases}
    below = [path for folder in found.folders for path in _unused_paths(folder, used, model.ending)]
    if left := [*(image.path for image in masks), *below]:
        log.warning("warning: segmentations and sub-folders with images are not predicted: %s", named(left))
    return _sorted_cases(cases)


def _unused_paths(folder: Path, used: set[Path], ending: str) -> list[Path]:
    """Return what is left of a folder of images: all of it, or, if a case uses some of it, everything else in it."""
    if folder in used:
        return []
    if not any(folder in path.parents for path in used):
        return [folder]
    found = list_images(folder, ending)
    return [
        *(i.path for i in found.images),
        *(path for sub in found.folders for path in _unused_paths(sub, used, ending)),
    ]


def _sorted_cases(cases: list[InputCase]) -> list[InputCase]:
    """Return the cases by name; raise their errors if all of them have one."""
    errors = [case.error for case in sorted(cases, key=lambda case: case.name) if case.error]
    if len(errors) == len(cases):
        raise_first(errors)
    return sorted(cases, key=lambda case: case.name)


def series_cases(source: Path, model: ModelFolder, series: str | None, taken: set[str]) -> list[InputCase]:
    """Return the DICOM series in a folder and below as cases; a name that another case has makes one an error."""
    from stunet.datasets import dicom

    channels, name = model.channels, source.resolve().name
    if problem := not_utf8(source):
        return [InputCase(name, (source,), error=problem)]
    try:
        found = dicom.find_series(source, channels[0], series)
    # A folder that cannot be used is a case that failed, so that the others are predicted.
    except DataError as error:
        return [InputCase(name, (source,), error=error)]
    cases = []
    for stack in found:
        problem = stack.error
        if len(channels) > 1:
            problem = DataError(
                f"the model takes {len(channels)} channels ({', '.join(channels)}); a DICOM folder is one",
                f"convert each series to CASE_0000{model.ending}, CASE_0001{model.ending} ...",
            )
        elif stack.name in taken:
            what = f"the folder {str(stack.folder)!r} and something else in {str(source.parent)!r} are the same case"
            problem = DataError(what, "rename one of them")
        cases.append(InputCase(stack.name, (stack.folder,), series=stack.key, error=problem))
    return cases


def _no_images(source: Path, found: Listing, model: ModelFolder) -> DataError:
    names = ", ".join(repr(path.name) for path in sorted(source.iterdir())[:3])
    return DataError(
        f"no files ending with {model.ending!r} and no DICOM slices in {str(source)!r} (there: {names or 'nothing'})",
        f"-i {found.folders[0]}" if found.folders else f"name the images CASE_0000{model.ending}",
    )


def read_geometry(case: InputCase, orientation: str | None = None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return shape in voxels and spacing in mm, both (D, H, W), from the header of a case's first image or slices.

    A volume is turned to `orientation`; DICOM slices are taken to be axial, as most are. As in nnU-Net's readers, a 2D
    image is one slice, 999 times as thick as its spacing, and the first of four axes is the channel.

    Raises:
        DataError: The header cannot be read.
    """
    if case.error:
        raise case.error
    if case.is_dicom:
        from stunet.datasets import dicom

        return dicom.geometry(case.files[0], case.series)
    from stunet.images import read_header
    from stunet.orientation import FLAT_THICKNESS, orientation_code, turn

    try:
        header = read_header(case.files[0])
    except RuntimeError as error:
        raise DataError(f"cannot read the header of {str(case.files[0])!r}: {str(error).splitlines()[-1]}") from None
    file = case.files[0]
    # ITK's order is x first; reversed, a fourth axis, the channels, comes first and is cut off.
    shape, spacing = header.size[::-1][-3:], header.spacing[::-1][-3:]
    # A TIFF states no spacing; nnU-Net reads it from CASE.json.
    if file.suffix.lower() in tiff.ENDINGS and tiff.spacing_file(file, is_image=True).is_file():
        spacing = tiff.read_spacing(file, is_image=True)
    if orientation and len(header.size) == 3:
        order = turn(orientation_code(header.direction), orientation).order
        shape, spacing = tuple(shape[axis] for axis in order), tuple(spacing[axis] for axis in order)
    missing = 3 - len(shape)
    return (1,) * missing + shape, (FLAT_THICKNESS * max(spacing),) * missing + spacing


def count_volumes(file: Path) -> int:
    """Return how many volumes the header of a 4D image announces; 1 for other images, or if it cannot be read."""
    from stunet.images import read_header

    try:
        size = read_header(file).size
    except RuntimeError:
        return 1
    return size[3] if len(size) == 4 else 1


def drop_channel_axis(properties: dict[str, Any]) -> None:
    """Reduce the geometry of a 4D file to one channel's: nnU-Net reads 4D, but cannot write segmentations with it.

    Args:
        properties: What nnU-Net's reader returns about a file; changed in place.
    """
    itk = properties.get("sitk_stuff", {})
    if len(itk.get("origin", ())) == 4:
        # Row by row, without the last column and row of the 4 x 4 matrix.
        direction = [itk["direction"][4 * row + column] for row in range(3) for column in range(3)]
        itk |= {"spacing": itk["spacing"][:3], "origin": itk["origin"][:3], "direction": direction}


def _files_of_case(image: Image, model: ModelFolder) -> list[Image]:
    """Return the files of the same case in the folder of `image`; with one channel, only the file itself."""
    match = _CHANNEL.fullmatch(image.name)
    if len(model.channels) == 1 or not match:
        return [image]
    name = re.compile(re.escape(match[1]) + r"_\d{4}")
    return [other for other in list_images(image.path.parent, model.ending).images if name.fullmatch(other.name)]


def _group(images: list[Image], model: ModelFolder) -> list[InputCase]:
    """Return the cases that images make up, by the channel numbers in their names."""
    ending, channels = model.ending, model.channels
    numbered = len(channels) > 1 or model.has_spacing_files  # the latter's reader cuts off _0000 without looking
    stems = {image.name for image in images}
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    errors: dict[str, DataError] = {}
    same_in_other_format = []
    # The model's own ending comes first: of CASE.nii.gz and CASE.nrrd, the former is taken and the latter named.
    for image in sorted(images, key=lambda image: (not image.path.name.endswith(ending), image.path)):
        path = image.path
        match = _CHANNEL.fullmatch(image.name)
        name, channel = image.name, 0
        # With one channel, scan_0003 may be a whole name; a number counts only next to a _0000 of the same case.
        if match and (numbered or f"{match[1]}_0000" in stems):
            name, channel = match[1], int(match[2])
        elif numbered:
            errors[name] = DataError(
                f"{path.name!r} has no channel number; the model takes {len(channels)}: {', '.join(channels)}",
                f"name the images CASE_0000{ending}" + f", CASE_0001{ending} ..." * (len(channels) > 1),
            )
        if channel in groups[name] and groups[name][channel].name.endswith(ending) and image.ending != ending:
            same_in_other_format.append(path)
            continue
        if channel in groups[name]:
            both = f"{path.name!r} and {groups[name][channel].name!r}"
            errors[name] = DataError(f"{both} are the same case", "remove one of them")
        groups[name][channel] = path
        if error := image.error or _unreadable(image, model):
            errors.setdefault(name, error)
    if same_in_other_format:
        log.warning(
            "warning: left out, as there is an image %s of the same name: %s", ending, named(same_in_other_format)
        )
    # If every case has its _0000 only, that file may hold all channels; reading.py counts them.
    if any(set(group) != {0} for name, group in groups.items() if name not in errors):
        for name in groups.keys() - errors.keys():
            if error := _wrong_channels(name, groups[name], ending, channels):
                errors[name] = error
    return [
        InputCase(name, tuple(groups[name][channel] for channel in sorted(groups[name])), error=errors.get(name))
        for name in groups
    ]


def _unreadable(image: Image, model: ModelFolder) -> DataError | None:
    """Return the error for an image that the model's reader does not take."""
    if image.ending in model.readable_endings:
        return None
    known = ", ".join(sorted(model.readable_endings))
    what = f"{str(image.path)!r} is not an image that this model's reader takes ({known})"
    return DataError(what, f"convert it to {model.ending}")


def _wrong_channels(name: str, files: dict[int, Path], ending: str, channels: list[str]) -> DataError | None:
    """Return the error for a case that lacks a channel, or has more than the model takes."""
    folder = next(iter(files.values())).parent
    for channel, meaning in enumerate(channels):
        if channel not in files:
            file = f"{name}_{channel:04d}{ending}"
            return DataError(
                f"case {name!r} lacks channel {channel} ({meaning}): no {file!r} in {str(folder)!r}", f"add {file}"
            )
    extra = sorted(set(files) - set(range(len(channels))))
    if extra:
        return DataError(
            f"case {name!r} has channel {extra[0]}, but the model takes {len(channels)} ({', '.join(channels)})",
            f"give only files named CASE_0000{ending} to CASE_{len(channels) - 1:04d}{ending}",
        )
    return None
