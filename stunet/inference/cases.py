"""What is predicted with what: the model folder and the input cases, found and checked before torch is imported.

A model folder is nnU-Net's: plans.json, dataset.json and fold_X/CHECKPOINT. Input files are nnU-Net's too
(CASE_0000.nii.gz is channel 0 of CASE), and more: see `find_cases`. Read inference/predictor.py next.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stunet.errors import DataError
from stunet.kinds import read_dataset_json
from stunet.workspace import load_plans, trained_folds

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Model:
    """A trained model on disk; `folds` are averaged."""

    folder: Path
    plans: dict
    dataset: dict
    folds: tuple[int | str, ...]
    checkpoint: str

    @property
    def ending(self) -> str:
        """The file ending of its images and segmentations."""
        return self.dataset["file_ending"]

    @property
    def channels(self) -> list[str]:
        """The names of its input channels, in order."""
        return list((self.dataset.get("channel_names") or self.dataset["modality"]).values())

    @property
    def has_spacing_files(self) -> bool:
        """Whether CASE.json holds the spacing of CASE_0000.tif, and that of a result stands beside it."""
        return self.plans.get("image_reader_writer") == "Tiff3DIO"

    @property
    def weights(self) -> list[Path]:
        """One checkpoint per fold."""
        return [self.folder / f"fold_{fold}" / self.checkpoint for fold in self.folds]


@dataclass(frozen=True)
class Case:
    """One case.

    Args:
        name: Of its output.
        files: One per channel, or one with all of them, or one DICOM folder.
        previous: The previous stage's result, for a cascade.
        error: What is wrong with its files, found before any of them was read.
    """

    name: str
    files: tuple[Path, ...]
    previous: Path | None = None
    error: DataError | None = None

    @property
    def is_dicom(self) -> bool:
        return self.files[0].is_dir()


def open_model(
    folder: Path, folds: Sequence[int | str] | None = None, checkpoint: str = "checkpoint_final.pth"
) -> Model:
    """A model folder with the folds asked for; by default the numbered ones, and `all` where there are none.

    Raises:
        DataError: The folder, its plans.json or dataset.json, or a fold's checkpoint is missing or bad.
    """
    if not (folder / "plans.json").is_file():
        raise DataError(
            f"{str(folder)!r} is no model folder: it has no plans.json",
            "give DATASET/TRAINER__PLANS__CONFIGURATION with --model, or -d and -c",
        )
    plans = load_plans(folder / "plans.json")
    dataset = read_dataset_json(folder / "dataset.json")
    there = trained_folds(folder, checkpoint)
    if not there:
        other = sorted({path.name for path in folder.glob("fold_*/*.pth")})
        hint = f"-chk {other[0]}" if other else "train it first: stunet_train --help"
        raise DataError(f"no fold of {str(folder)!r} has a {checkpoint}", hint)
    missing = [fold for fold in folds or [] if fold not in there]
    if missing:
        known = " ".join(map(str, there))
        raise DataError(f"fold {missing[0]} has no {checkpoint} in {str(folder)!r} (trained: {known})", f"-f {known}")
    numbered = tuple(fold for fold in there if fold != "all")
    return Model(folder, plans, dataset, tuple(folds or numbered or there), checkpoint)


def find_cases(source: Path, model: Model) -> list[Case]:
    """The input cases, sorted by name.

    `source` is a folder of images, a single image, or a folder of DICOM slices (its name becomes the case's). Images
    are named CASE_0000.nii.gz, CASE_0001.nii.gz ... per channel; with one channel _0000 may be left out. Where no case
    has more than its _0000, this file may hold all channels, as in training: reading will tell. A case with too few or
    too many channels has an error, so that the others can be predicted.

    Raises:
        DataError: Nothing is there, or no case is complete.
    """
    ending, channels = model.ending, model.channels
    if not source.exists():
        raise DataError(f"no input {str(source)!r}", "give a folder of images, an image or a DICOM folder with -i")
    if source.is_file():
        if not source.name.endswith(ending):
            raise DataError(
                f"{str(source)!r} does not end with {ending!r}, as this model's images do", f"convert it to {ending}"
            )
        return _group(_siblings(source, model), model)
    files = _images(source, ending)
    if files:
        return _group(files, model)

    from stunet.datasets.dicom import is_dicom_folder

    if is_dicom_folder(source):
        if len(channels) > 1:
            raise DataError(
                f"the model takes {len(channels)} channels ({', '.join(channels)}); a DICOM folder is one",
                f"convert each series to CASE_0000{ending}, CASE_0001{ending} ...",
            )
        return [Case(source.resolve().name, (source,))]
    there = ", ".join(path.name for path in sorted(source.iterdir())[:3])
    raise DataError(
        f"no files ending with {ending!r} and no DICOM slices in {str(source)!r} (there: {there or 'nothing'})",
        f"name the images CASE_0000{ending}",
    )


def geometry(case: Case, orientation: str | None = None) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape in voxels and spacing in mm, both (D, H, W), from the header of a case's first image or slices.

    A volume is turned to `orientation`; DICOM slices are taken to be axial, as most are. As in nnU-Net's readers a 2D
    image is one slice, 999 times as thick as its spacing, and the first of four axes is the channel.

    Raises:
        DataError: The header cannot be read.
    """
    if case.is_dicom:
        from stunet.datasets import dicom

        return dicom.geometry(case.files[0])
    from stunet.images import read_header
    from stunet.orientation import code_of, turn

    try:
        header = read_header(case.files[0])
    except RuntimeError as error:
        raise DataError(f"cannot read the header of {str(case.files[0])!r}: {str(error).splitlines()[-1]}") from None
    shape, spacing = header.size[::-1][-3:], header.spacing[::-1][-3:]
    if orientation and len(header.size) == 3:
        order = turn(code_of(header.direction), orientation).order
        shape, spacing = tuple(shape[axis] for axis in order), tuple(spacing[axis] for axis in order)
    missing = 3 - len(shape)
    return (1,) * missing + shape, (999 * max(spacing),) * missing + spacing


def volumes(file: Path) -> int:
    """How many volumes the header of an image of four axes announces; 1 for others, and where it cannot be read."""
    from stunet.images import read_header

    try:
        size = read_header(file).size
    except RuntimeError:
        return 1
    return size[3] if len(size) == 4 else 1


def drop_channel_axis(properties: dict[str, Any]) -> None:
    """Makes the geometry of a 4D file that of one channel: nnU-Net reads 4D, but writes no segmentation with it.

    Args:
        properties: What nnU-Net's reader says about a file; changed in place.
    """
    itk = properties.get("sitk_stuff", {})
    if len(itk.get("origin", ())) == 4:
        direction = [itk["direction"][4 * row + column] for row in range(3) for column in range(3)]
        itk |= {"spacing": itk["spacing"][:3], "origin": itk["origin"][:3], "direction": direction}


def _images(folder: Path, ending: str) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name.endswith(ending) and not p.name.startswith(".") and p.is_file())


def _siblings(file: Path, model: Model) -> list[Path]:
    """The files of the same case beside `file`; with one channel that is the file alone."""
    match = _CHANNEL.fullmatch(file.name.removesuffix(model.ending))
    if len(model.channels) == 1 or not match:
        return [file]
    name = re.compile(re.escape(match[1]) + r"_\d{4}" + re.escape(model.ending))
    return [path for path in _images(file.parent, model.ending) if name.fullmatch(path.name)]


def _group(files: list[Path], model: Model) -> list[Case]:
    ending, channels = model.ending, model.channels
    numbered = len(channels) > 1 or model.has_spacing_files  # whose reader cuts _0000 off without looking
    stems = {path.name.removesuffix(ending): path for path in files}
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    errors: dict[str, DataError] = {}
    for stem, path in stems.items():
        match = _CHANNEL.fullmatch(stem)
        name, channel = stem, 0
        if match and (numbered or f"{match[1]}_0000" in stems):
            name, channel = match[1], int(match[2])
        elif numbered:
            errors[name] = DataError(
                f"{path.name!r} has no channel number; the model takes {len(channels)}: {', '.join(channels)}",
                f"name the images CASE_0000{ending}" + f", CASE_0001{ending} ..." * (len(channels) > 1),
            )
        if channel in groups[name]:
            both = f"{path.name!r} and {groups[name][channel].name!r}"
            errors[name] = DataError(f"{both} are the same case", "remove one of them")
        groups[name][channel] = path
    if any(set(group) != {0} for name, group in groups.items() if name not in errors):
        for name in groups.keys() - errors.keys():
            if error := _wrong_channels(name, groups[name], ending, channels):
                errors[name] = error
    if len(errors) == len(groups):
        raise errors[min(errors)]
    return [
        Case(name, tuple(groups[name][channel] for channel in sorted(groups[name])), error=errors.get(name))
        for name in sorted(groups)
    ]


def _wrong_channels(name: str, files: dict[int, Path], ending: str, channels: list[str]) -> DataError | None:
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
