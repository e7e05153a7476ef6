"""Convert folders of images and label maps to a raw dataset; files are matched by name.

An image is named CASE + the suffix of its channel + ending, a label map CASE + its suffix + ending. bids.py finds files
in another way and passes them to the same function, `prepare`.
"""

import re
import shlex
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from stunet.datasets import RawCase, Rules, find_reader
from stunet.datasets.check import UNREADABLE, read_case
from stunet.datasets.conversion import Conversion, Description, SourceCase, dataset_folder
from stunet.datasets.label_lists import renumber
from stunet.datasets.listing import ending_of, list_images, named, same_case, unusable
from stunet.errors import DataError, UsageError, first_few
from stunet.files import atomic_write
from stunet.images import write_labels
from stunet.labels import systems
from stunet.nifti import check_nifti

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")  # of volumes that nnU-Net can read
SLICER = ".nrrd"  # takes precedence over .seg.nrrd: .seg is then the suffix of label maps
SHOWN = 5
LABEL_WORDS = re.compile("seg|label|mask|gt|annot")


@dataclass(frozen=True)
class Renumber:
    """The step of this conversion: check the images and label map of a case, and make the values consecutive.

    Attributes:
        names: Class names by value in the label maps.
        reader: nnU-Net's reader class.
        channels: Names of the channels.
        ending: Ending of all files.
    """

    names: Mapping[int, str]
    reader: type
    channels: tuple[str, ...]
    ending: str

    def options(self) -> dict[str, Any]:
        names = {str(value): name for value, name in sorted(self.names.items())}
        return {"format": "pairs", "labels": names, "channels": list(self.channels), "ending": self.ending}

    def __call__(self, source: SourceCase, folder: Path) -> tuple[list[Path], dict[str, Any]]:
        _, values = renumber(self.names)
        rules = Rules(self.reader, self.channels, frozenset(values), "the command line")
        _, label, properties = read_case(RawCase(source.name, source.images, source.labels[0]), rules)
        table = np.zeros(max(values) + 1, np.min_scalar_type(max(values.values())))
        for old, new in values.items():
            table[old] = new
        path = folder / f"labels{source.subset}" / f"{source.name}{self.ending}"
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as part:
            write_map(self.reader(), systems.apply_lookup(table, label.astype(np.intp)), part, properties)
        return [path], {}


def write_map(reader: Any, labels_DHW: np.ndarray, path: Path, properties: dict[str, Any]) -> None:
    """Write a label map or mask and read it back: ITK hardly reports a full disk, for compressed NIfTI not at all.

    Raises:
        OSError: The disk is full.
        DataError: What was read back is something else.
    """
    try:
        write_labels(reader, labels_DHW, path, properties)
        check_nifti(path)
        same = np.array_equal(reader.read_seg(str(path))[0][0], labels_DHW)
    except (*UNREADABLE, DataError):
        same = False
    if not same:
        path.write_bytes(bytes(2**20))  # raises the real reason, such as a full disk
        raise DataError(f"{str(path)!r} is not what was written", "look at the disk's health")


@dataclass(frozen=True)
class Files:
    """Files of a dataset that belong together, by case, and those without a counterpart."""

    cases: Mapping[str, tuple[tuple[Path, ...], Path]]
    unmatched: tuple[Path, ...]


def find_pairs(images: Path, label_maps: Path, suffixes: Sequence[str], label_suffix: str) -> Files:
    """Return the cases in a folder of images and a folder of label maps, which may be the same folder.

    Args:
        images: Folder of the images.
        label_maps: Folder of the label maps.
        suffixes: One per channel, between the case's name and the ending; may be empty.
        label_suffix: The suffix of label maps.

    Raises:
        DataError: A folder is missing or has no images, a case lacks a channel, or a file exists in two formats.
        UsageError: Two suffixes are the same, so images and labels, or two channels, cannot be told apart.
    """
    same = images.resolve() == label_maps.resolve()
    ends = [*suffixes, *([label_suffix] if same else [])]
    if len(set(ends)) < len(ends):
        raise UsageError(
            f"suffixes {', '.join(map(repr, ends))} do not tell the files apart",
            "--label_suffix _seg, and for several channels --channels T1=_t1 T2=_t2",
        )
    found: dict[str, dict[str, Path]] = {}
    unmatched: list[Path] = []
    for path, stem in _volumes(images, unmatched):
        # The longest: with the suffixes "" and _seg, CASE_seg fits both.
        end = max((end for end in ends if stem.endswith(end)), key=len, default=None)
        if end is None or stem == end:
            unmatched.append(path)
        elif not (same and end == label_suffix):
            _put(found.setdefault(stem.removesuffix(end), {}), end, path)
    masks: dict[str, Path] = {}
    for path, stem in _volumes(label_maps, [] if same else unmatched):
        is_image = same and any(stem.endswith(end) and len(end) > len(label_suffix) for end in suffixes)
        if stem.endswith(label_suffix) and stem != label_suffix and not is_image:
            _put(masks, stem.removesuffix(label_suffix), path)
        elif not same:
            unmatched.append(path)
    for name, files in found.items():
        lacking = [end for end in suffixes if end not in files]
        # A case without a label is left out anyway.
        if lacking and name in masks:
            there = next(iter(files.values()))
            what = f"case {name!r} has {there.name!r}, but no image that ends with {lacking[0]!r} and its ending"
            raise DataError(f"{what} in {str(images)!r}", "add the image, or take the others of this case away")
    both = sorted(found.keys() & masks.keys())
    if not both and (proposed := propose_suffixes(_stems(images), _stems(label_maps), same)):
        image_end, label_end = proposed
        flags = [f"--label_suffix={shlex.quote(label_end)}"] * bool(label_end)
        flags += [f"--channels NAME={shlex.quote(image_end)}"] * bool(image_end)
        what = f"no image has a label with the suffixes {', '.join(map(repr, suffixes))} and {label_suffix!r}"
        raise DataError(what, f"by the names: {' '.join(flags) or 'no suffixes at all'}")
    unmatched += [path for name, files in found.items() if name not in masks for path in files.values()]
    unmatched += [path for name, path in masks.items() if name not in found]
    cases = {name: (tuple(found[name][end] for end in suffixes), masks[name]) for name in both}
    return Files(cases, tuple(sorted(unmatched)))


def _stems(folder: Path) -> list[str]:
    return [stem for _, stem in _volumes(folder, [])]


def propose_suffixes(images: Sequence[str], labels: Sequence[str], same: bool = False) -> tuple[str, str] | None:
    """Return the suffixes of images and label maps with which most label maps have an image, if there are such.

    Of files in one folder, label maps are those whose suffix says so: seg, label, mask, gt, annotation.

    Examples:
        >>> propose_suffixes(["a1_ct", "a2_ct", "b1_ct"], ["a1_seg", "a2_seg"])
        ('_ct', '_seg')

    Args:
        images: Names without endings.
        labels: Names without endings.
        same: Whether they are of one folder, so that both are all files.
    """
    found: Counter[tuple[str, str]] = Counter()
    names = sorted(images)
    for label in labels:
        if not same and label in images:
            found["", ""] += 1
            continue
        # The names with most characters in common are next to it in order.
        place = bisect_left(names, label)
        near = [name for name in names[max(0, place - 1) : place + 2] if name != label]
        nearest = max(near, key=lambda name: _shared(name, label), default="")
        case = _whole_words(nearest, label)
        if case and (not same or LABEL_WORDS.search(label.removeprefix(case).lower())):
            found[nearest.removeprefix(case), label.removeprefix(case)] += 1
    for ends, count in found.most_common(1):
        if 2 * count > len(labels) / (1 + same):
            return ends
    return None


def _whole_words(one: str, other: str) -> str:
    """Return what two names begin with in common: whole words, without separators after them."""
    shared = one[: _shared(one, other)]
    if all(name[len(shared) :][:1].isalnum() for name in (one, other)):
        shared = re.sub(r"[^_\-. ]*$", "", shared)
    return shared.rstrip("_-. ")


def _shared(one: str, other: str) -> int:
    """Return the number of characters that two names begin with in common."""
    return sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(one, other, strict=False)))


def prepare(
    files: Files,
    target: Path,
    channels: Sequence[str],
    names: Mapping[int, str],
    unmatched: str = "error",
    variable: tuple[str, Path] | None = None,
) -> Conversion:
    """Prepare the conversion of files that belong together; nothing is written yet.

    Args:
        files: The files of all cases.
        target: nnUNet_raw/DatasetXXX_Name.
        channels: Channel names; nnU-Net normalises a channel named CT in its own way.
        names: Class names by value in the label maps.
        unmatched: "error", or "skip" to leave out files without a counterpart.
        variable: As in Conversion.

    Raises:
        DataError: No files belong together, files have no counterpart, or there are several formats.
    """
    if files.unmatched and (unmatched == "error" or not files.cases):
        shown = first_few([repr(str(path)) for path in files.unmatched], SHOWN, ", ")
        hint = "rename them, or add --unmatched skip" if files.cases else "check the suffixes of images and labels"
        matched = "" if files.cases else "no image has a label: "
        raise DataError(f"{matched}{len(files.unmatched)} files without their counterpart: {shown}", hint)
    left_out = [f"{len(files.unmatched)} files are left out: {named(files.unmatched)}"] if files.unmatched else []
    if not files.cases:
        raise DataError("there are neither images nor labels", f"files that end with {', '.join(ENDINGS)}")
    paths = [path for images, label in files.cases.values() for path in (*images, label)]
    # Reversed, so that the first file of each ending stays.
    by_ending = {ending_of(path.name, SLICER): path for path in reversed(paths)}
    if len(by_ending) > 1:
        both = " and ".join(repr(str(path)) for path in list(by_ending.values())[:2])
        raise DataError(f"the files are of several formats, such as {both}", "convert them to one, such as .nii.gz")
    ending, first = next(iter(by_ending.items()))
    if ending not in ENDINGS:
        raise DataError(f"{str(first)!r} is of a format that nnU-Net does not read", "convert the files to .nii.gz")
    new, _ = renumber(names)
    # By a file that is there: a broken link may be fetched before its case is converted.
    reader = find_reader({"file_ending": ending}, next((path for path in paths if not unusable(path)), paths[0]))
    return Conversion(
        target,
        tuple(SourceCase(name, images, (label,)) for name, (images, label) in files.cases.items()),
        Renumber(dict(names), reader, tuple(channels), ending),
        Description(tuple(channels), new, ending=ending),
        variable=variable,
        warnings=tuple(left_out),
    )


def prepare_pairs(
    images: Path,
    label_maps: Path,
    raw: Path,
    dataset_id: int,
    name: str,
    channels: Mapping[str, str],
    names: Mapping[int, str],
    label_suffix: str = "",
    unmatched: str = "error",
    variable: str | None = None,
) -> Conversion:
    """Prepare the conversion of a folder of pairs.

    Args:
        channels: Suffix by channel name.

    Other arguments and errors: see find_pairs, prepare, conversion.dataset_folder.
    """
    target = dataset_folder(raw, dataset_id, name)
    files = find_pairs(images, label_maps, list(channels.values()), label_suffix)
    return prepare(files, target, list(channels), names, unmatched, (variable, images) if variable else None)


def _put(files: dict[str, Path], key: str, path: Path) -> None:
    if key in files:
        raise same_case(files[key], path)
    files[key] = path


def _volumes(folder: Path, unmatched: list[Path]) -> list[tuple[Path, str]]:
    """Return the images in a folder with their names without ending.

    What cannot be an image, such as a folder of slices, is added to `unmatched`. A broken link counts as an image: its
    target may be fetched before its case is converted.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {str(folder)!r}", "give the folder that holds the files")
    found = list_images(folder, SLICER)
    unmatched += [*found.slices, *found.series, *found.folders]
    return [(image.path, image.name) for image in found.images]
