"""Recognise the release of a TotalSegmentator data set, choose its classes, and read the split of its subjects.

presets/totalsegmentator.toml describes the releases, the label systems list their classes. Classes are identified by
name, never by number: their order changed from v1 to v2.
"""

import csv
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from stunet.datasets import FILE_ENDING
from stunet.datasets.listing import visible
from stunet.errors import DataError, closest
from stunet.labels import systems

MASKS = "segmentations"
META = "meta.csv"
COLUMNS = ("image_id", "split")
SPLITS = ("train", "val", "test")
META_EXAMPLE = "one line per subject: image_id;split, then s0001;train"


@dataclass(frozen=True)
class Release:
    """A release of the data set.

    Attributes:
        name: v1, v2 or mr.
        classes: Upstream's name for the list of all its classes.
        labels: The label system with these classes.
        image: File name of a subject's image.
        channel: What the image shows.
        order: Default order of the values: "stunet" for the release that STU-Net's weights were trained on.
        licence: Licence of the data.
        reference: Paper and record.
        parts: First and last class of each part, by the part's name.
    """

    name: str
    classes: str
    labels: str
    image: str
    channel: str
    order: str
    licence: str
    reference: str
    parts: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All classes in the official order."""
        return tuple(entry.name for entry in systems.load(self.labels).classes)

    def part(self, name: str) -> tuple[str, ...]:
        """Return the classes of a part in the official order."""
        first, last = map(self.names.index, self.parts[name])
        return self.names[first : last + 1]


def releases() -> list[Release]:
    """Return the known releases."""
    content = tomllib.loads((files("stunet.presets") / "totalsegmentator.toml").read_text())
    return [Release(name, **entry) for name, entry in content.items()]


def find_release(source: Path) -> Release:
    """Return the release that a folder holds, judging by the names of images and masks.

    Raises:
        DataError: There is no subject in the folder.
    """
    if not source.is_dir():
        raise DataError(f"no folder {str(source)!r}", f"unpack the archive and give the folder with {META}")
    known = releases()
    # The first subject with image and masks decides; some may be incomplete.
    for folder in _subject_folders(source):
        fitting = [release for release in known if (folder / release.image).is_file()]
        masks = _mask_names(folder)
        if fitting and masks:
            # v1 and v2 both call the image ct.nii.gz: only the classes tell them apart.
            return max(fitting, key=lambda release: len(masks & set(release.names)))
    images = sorted({release.image for release in known})
    what = f"no subject in {str(source)!r}: no folder with {' or '.join(images)} and {MASKS}"
    raise DataError(what, f"give the folder that holds {META} and s0001, s0002, ...")


def choose_classes(release: Release, source: Path, chosen: str | None) -> tuple[str, ...]:
    """Return the chosen classes in the official order; classes from a file that upstream does not know come last.

    Args:
        release: Release of the data set.
        source: Its folder; a file of classes may also name additional masks of its first subject.
        chosen: As in totalsegmentator.Options.

    Raises:
        DataError: Unknown list, part or class, or a list of another release.
    """
    if chosen in (None, release.classes):
        return release.names
    if chosen in release.parts:
        return release.part(chosen)
    own = [release.classes, *release.parts]
    hint = f"one of {', '.join(own)}, or a text file with one name per line"
    if chosen in (other.classes for other in releases()):
        raise DataError(f"{str(source)!r} is TotalSegmentator {release.name}, which has no {chosen!r}", hint)
    path = Path(chosen)
    if not path.is_file():
        raise DataError(f"--classes: no list, part or file {chosen!r}{closest(chosen, own)}", hint)
    extra = sorted(_mask_names(next(iter(_subject_folders(source)))) - set(release.names))
    known = [*release.names, *extra]
    names = _read_names(path, known)
    return tuple(name for name in known if name in names)


def read_subjects(source: Path, release: Release, absent: str, skip: Sequence[str]) -> dict[str, str]:
    """Return the split of every subject, in the order of meta.csv.

    Args:
        source: The data set's folder.
        release: Defines how a subject's image is named.
        absent: "error", or "skip" to leave out subjects without an image.
        skip: Subjects to leave out.

    Raises:
        DataError: meta.csv is missing, lacks columns, has a subject twice or an unknown split, or a subject is missing.
    """
    path = source / META
    subjects = _read_meta(path)
    unknown = [name for name in skip if name not in subjects]
    if unknown:
        raise DataError(f"--skip: {META} has no subject {unknown[0]!r}{closest(unknown[0], list(subjects))}", "s0001")
    subjects = {name: split for name, split in subjects.items() if name not in skip}
    missing = [name for name in subjects if not (source / name / release.image).is_file()]
    if missing and absent == "error":
        what = f"{len(missing)} of {len(subjects)} subjects in {str(path)!r} have no {release.image}"
        hint = "unpack the data set again, or add --absent skip to convert what is there"
        raise DataError(f"{what}, first {missing[0]!r}", hint)
    found = {name: split for name, split in subjects.items() if name not in set(missing)}
    if not any(split != "test" for split in found.values()):
        raise DataError(f"{str(path)!r} has no subject to train or validate in {str(source)!r}", META_EXAMPLE)
    return found


def unlisted_subjects(source: Path, release: Release, subjects: Iterable[str], skip: Sequence[str]) -> list[Path]:
    """Return the subjects that have an image but no line in meta.csv."""
    known = {*subjects, *skip}
    return [path for path in _subject_folders(source) if path.name not in known and (path / release.image).is_file()]


def _read_meta(path: Path) -> dict[str, str]:
    try:
        # -sig: spreadsheets begin such a file with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=";")
            columns, rows = reader.fieldnames or [], list(reader)
    except FileNotFoundError:
        hint = f"unpack the archive again, or write it: {META_EXAMPLE}"
        raise DataError(f"no file {str(path)!r}, which says which subject is in which split", hint) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", META_EXAMPLE) from None
    lacking = [name for name in COLUMNS if name not in columns]
    if lacking:
        found = ", ".join(map(repr, columns)) or "nothing"
        what = f"{str(path)!r} has no column {lacking[0]!r}{closest(lacking[0], list(columns))} (there: {found})"
        raise DataError(what, f"columns separated by ';'; {META_EXAMPLE}")
    subjects: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        # DictReader returns None for what a short line lacks.
        name, split = (row["image_id"] or "").strip(), (row["split"] or "").strip()
        where = f"line {line} of {str(path)!r}"
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise DataError(f"{where} has the subject {name!r}", META_EXAMPLE)
        if split not in SPLITS:
            raise DataError(f"{where}: {name!r} is in {split!r}{closest(split, list(SPLITS))}", "train, val or test")
        if name in subjects:
            what = "is there twice" if subjects[name] == split else f"is in {subjects[name]!r} and in {split!r}"
            raise DataError(f"{where}: subject {name!r} {what}", "keep one of its lines")
        subjects[name] = split
    return subjects


def _read_names(path: Path, known: Sequence[str]) -> set[str]:
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}", "a text file with one name per line") from None
    names = [name for name in lines if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        more = f", nor {len(unknown) - 1} others" if len(unknown) > 1 else ""
        what = f"{str(path)!r}: the data set has no class {unknown[0]!r}{more}{closest(unknown[0], list(known))}"
        raise DataError(what, "names are those of the mask files, without their ending")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or not names:
        what = f"names {twice!r} twice" if twice else "names no class"
        raise DataError(f"{str(path)!r} {what}", "one name per line")
    return set(names)


def _subject_folders(source: Path) -> list[Path]:
    return sorted(path for path in source.iterdir() if (path / MASKS).is_dir())


def _mask_names(folder: Path) -> set[str]:
    return {path.name.removesuffix(FILE_ENDING) for path in visible((folder / MASKS).glob(f"*{FILE_ENDING}"))}
