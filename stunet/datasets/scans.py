"""Find scans in folders of any layout: what is taken for one, and which masks belong to it.

Taken is every file of a volume and every original DICOM series, at any depth, each once. Left out, by name, is what is
obviously not an image: label maps and masks, localizers, and series that were derived from others.

Masks that lie beside their images have their names with a suffix. Those in a folder of their own have the path of the
image below the folder that was given, with or without that folder's name; or only its name, if a single image has it.

Read next: scan_names.py, which tells names of cases and subjects from paths; unlabelled.py, which makes a dataset.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stunet.datasets.conversion import SourceCase
from stunet.datasets.dicom import OPEN, folders_below, modality_of
from stunet.datasets.dicom_headers import WITHOUT_UID, Series, scan
from stunet.datasets.growing import signature
from stunet.datasets.listing import HEADERS, ending_of, is_dicom, is_hidden, named
from stunet.datasets.scan_names import (
    BIDS_SUBJECT,
    Names,
    Place,
    is_label_folder,
    is_label_map,
    numbers_channels,
    subjects_of,
)
from stunet.errors import DataError, first_few

REFERRED = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")  # ITK reads them where they are, from a single file
BY_ITK = (".nhdr", ".mhd", ".hdr", ".gipl.gz")  # rewritten as NIfTI: most are a header next to a file of voxels
BY_NIBABEL = (".mgz", ".mgh")
SLICER = ".seg.nrrd"  # ending of its segmentations
NOBODY = re.compile(r"\W*|0*|x*|n/?a|none|unknown|removed|anon(ymous|ymi[sz]ed)?|de-?identified|patient", re.IGNORECASE)
SHOWN = 3


@dataclass(frozen=True)
class Scan(SourceCase):
    """An image without labels that becomes a case.

    Attributes:
        roi: Where it is 0, losses do not count.
        series: Key of a DICOM series; then the only image is the folder of its files.
        parts: The files of the series.
    """

    roi: Path | None = None
    series: str | None = None
    parts: tuple[Path, ...] = ()

    @property
    def signature(self) -> str:
        """Hash of the state of its files, and of how they are used."""
        masks = [path for path in (self.mask, self.roi) if path]
        # Images of different folders are often called the same, and what is written does not say which one it was.
        where = [os.path.abspath(path) for path in (*self.images, *masks)]
        return signature((*self.images, *self.parts, *masks), self.series, bool(self.mask), bool(self.roi), where)


@dataclass
class Found:
    """What folders hold.

    Attributes:
        scans: In the order of the folders.
        kinds: Of the images: modalities of DICOM (CT, MR), suffixes of BIDS (T1w); empty where nothing tells.
        left_out: What is not taken, by reason.
        doubts: What else is to be said.
    """

    scans: list[Scan] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, path: Path) -> None:
        """Record a file or folder that is not taken."""
        self.left_out.setdefault(reason, []).append(path)

    def warnings(self) -> list[str]:
        """Return what is not taken, a sentence for each reason, and the doubts."""
        reasons = sorted(self.left_out.items())
        return [*(f"{len(paths)} {reason} are left out: {named(paths)}" for reason, paths in reasons), *self.doubts]


@dataclass(frozen=True)
class Masks:
    """Masks that lie beside the images, or in a folder of their own.

    Args:
        where: A folder whose files have the names of the images, or what the name of a mask has in addition, as _mask.
    """

    where: str

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one."""
        return Path(self.where) if Path(self.where).is_dir() else None

    def is_mask(self, path: Path, stem: str) -> bool:
        """Return whether a file is a mask, not an image."""
        if self.folder is None:
            return stem.endswith(self.where)
        return path.resolve().is_relative_to(self.folder.resolve())

    def assign(self, roots: Sequence[Path], images: Sequence[tuple[Place, Path]]) -> list[Path | None]:
        """Return the mask of each image; None if it has none, or if nothing tells which.

        Args:
            roots: The folders that were given.
            images: Place and folder of each.

        Raises:
            DataError: Several files could be the mask of an image.
        """
        found: list[Path | None] = [None] * len(images)
        for of_image, of_mask in self._keys(roots, images):
            counts = Counter(of_image)
            taken = set(found)
            for number, key in enumerate(of_image):
                fitting = [path for path in of_mask.get(key, []) if path not in taken]
                if found[number] or counts[key] > 1 or not fitting:
                    continue
                if len(fitting) > 1:
                    both = " and ".join(repr(str(path)) for path in fitting[:2])
                    what = f"{both} could be the mask of {images[number][0].stem!r}"
                    raise DataError(what, "put masks into folders as the images are")
                found[number] = fitting[0]
        return found

    def _keys(
        self, roots: Sequence[Path], images: Sequence[tuple[Place, Path]]
    ) -> Iterator[tuple[list[str], dict[str, list[Path]]]]:
        """Yield the keys of the images, and the masks by key, the most certain first."""
        if self.folder is None:
            beside: dict[str, list[Path]] = {}
            for folder, path, stem, ending in (file for root in roots for file in _files(root)):
                key = f"{folder.resolve()}/{stem.removesuffix(self.where)}"
                if ending and stem.endswith(self.where) and path not in beside.setdefault(key, []):
                    beside[key].append(path)
            yield [f"{folder.resolve()}/{place.stem}" for place, folder in images], beside
            return
        masks = [(folder, path, stem) for folder, path, stem, ending in _files(self.folder) if ending]
        below: dict[str, list[Path]] = {}
        by_name: dict[str, list[Path]] = {}
        for folder, path, stem in masks:
            below.setdefault("/".join((*folder.relative_to(self.folder).parts, stem)), []).append(path)
            by_name.setdefault(stem, []).append(path)
        yield ["/".join((place.root.resolve().name, *place.folders, place.stem)) for place, _ in images], below
        yield ["/".join((*place.folders, place.stem)) for place, _ in images], below
        yield [place.stem for place, _ in images], by_name


def find_scans(
    roots: Sequence[Path],
    suffixes: Sequence[str] = ("",),
    channel: str | None = None,
    masks: Masks | None = None,
    rois: Masks | None = None,
) -> Found:
    """Find the scans in folders and all folders below them.

    Args:
        roots: The folders.
        suffixes: How names of images end, one per channel; an empty text: any name.
        channel: Name of the only channel, if it is given: those for CT, MR and PET choose among DICOM series.
        masks: Masks of what losses leave out.
        rois: Masks of what they do not leave out.

    Raises:
        DataError: A folder is missing, there is no scan, or no scan has a mask although masks are named.
    """
    for root in roots:
        if not root.is_dir():
            raise DataError(f"no folder {str(root)!r}", "give a folder that holds images")
    search = _Search(roots, tuple(suffixes), channel, masks, rois)
    for root in roots:
        search.look_into(root)
    search.finish()
    _check(search.found, roots, masks, rois)
    return search.found


class _Search:
    """A search through several folders; `found` has what there is once it is finished."""

    def __init__(
        self,
        roots: Sequence[Path],
        suffixes: tuple[str, ...],
        channel: str | None,
        masks: Masks | None,
        rois: Masks | None,
    ) -> None:
        self.found = Found()
        self._roots, self._suffixes, self._channel = roots, suffixes, channel
        self._masks, self._rois = masks, rois
        self._names, self._seen, self._targets = Names(), set[str](), set[str]()
        self._places: list[tuple[Place, Path]] = []  # of each scan, and its folder
        self._of_people: list[Place] = []  # the same, without the numbers of series
        self._numbered: set[tuple[Path, tuple[str, ...]]] = set()  # folders whose images end in a channel's number

    def look_into(self, root: Path) -> None:
        """Add the scans in a folder and the folders below it."""
        groups: dict[tuple[Path, str], dict[str, Path]] = {}
        for folder, path, stem, ending in _files(root):
            if self._is_known(folder, path) or any(
                kind and kind.is_mask(path, stem) for kind in (self._masks, self._rois)
            ):
                continue
            end = max((end for end in self._suffixes if end and stem.endswith(end)), key=len, default="")
            group = groups.setdefault((folder, stem.removesuffix(end)), {}) if ending else {}
            by_name = ending and not end and (ending == SLICER or is_label_map(stem))
            if by_name or any(map(is_label_folder, folder.relative_to(root).parts)):
                self.found.leave_out("label maps and masks, by their names,", path)
            elif not ending:
                self._add_series(root, folder)
            elif ending not in (*REFERRED, *BY_ITK, *BY_NIBABEL):
                self.found.leave_out(f"files of a format that is not read ({ending})", path)
            elif end not in self._suffixes or stem == end:
                self.found.leave_out("files without the suffix of a channel", path)
            elif end in group:
                self.found.leave_out("files of the same name in another format", path)
            else:
                group[end] = path
        stems: dict[Path, set[str]] = {}
        for (folder, stem), files in groups.items():
            if len(files) == len(self._suffixes):
                self._add_files(Place(root, folder.relative_to(root).parts, stem), folder, files)
                stems.setdefault(folder, set()).add(stem)
            for path in files.values() if len(files) < len(self._suffixes) else ():
                self.found.leave_out("files of scans that lack a channel", path)
        for folder, names in stems.items():
            if numbers_channels(names):
                self._numbered.add((root, folder.relative_to(root).parts))

    def finish(self) -> None:
        """Give scans their subjects and masks, for which all of them have to be known."""
        subjects = subjects_of(self._of_people, self._numbered)
        masks, rois = (
            kind.assign(self._roots, self._places) if kind else [None] * len(subjects)
            for kind in (self._masks, self._rois)
        )
        of_series: dict[str, tuple[str, Path]] = {}
        copies = []
        for number, one in enumerate(self.found.scans):
            subject, folder = one.subject or subjects[number], one.images[0]
            if one.series and not one.series.startswith(WITHOUT_UID):
                # Copies, or parts, of a series are of the same patient, wherever they lie.
                of_first, first = of_series.setdefault(one.series, (subject, folder))
                subject = one.subject or of_first
                copies += [f"{str(first)!r} and {str(folder)!r}"] if first != folder else []
            self.found.scans[number] = replace(one, subject=subject, mask=masks[number], roi=rois[number])
        if copies:
            what = f"{len(copies)} DICOM series are in two folders, and are taken twice: {first_few(copies)}"
            self.found.doubts.append(what)

    def _is_known(self, folder: Path, path: Path) -> bool:
        """Return whether a file was seen before: one of the given folders may lie in another one, or link to it."""
        place, target = f"{folder.resolve()}/{path.name}", os.path.realpath(path)
        if place in self._seen:
            return True
        self._seen.add(place)
        if target in self._targets:
            self.found.leave_out("files that are others by a link", path)
            return True
        self._targets.add(target)
        return False

    def _add_files(self, place: Place, folder: Path, files: Mapping[str, Path]) -> None:
        is_bids = BIDS_SUBJECT.match(place.stem) and "_" in place.stem
        self.found.kinds[place.stem.rpartition("_")[2] if is_bids else ""] += 1
        self._add(place, tuple(files[end] for end in self._suffixes), folder)

    def _add_series(self, root: Path, folder: Path) -> None:
        """Add the DICOM series in a folder."""
        below = folder.relative_to(root).parts
        place = Place(root, below[:-1], below[-1] if below else root.resolve().name)
        if len(self._suffixes) > 1:
            self.found.leave_out("folders of DICOM series, which have one channel,", folder)
            return
        there = scan(folder)
        if there.damaged or not there.series:
            # Whoever reads it says what is wrong, and it can be left out like any other scan that is broken.
            self._add(place, (folder,), folder)
            return
        taken = _images_of(there.series, self._channel)
        for _ in range(len(there.series) - len(taken)):
            self.found.leave_out("DICOM series (localizers, derived, of another modality or no images)", folder)
        for series in taken:
            self.found.kinds[series.modality] += 1
            number = series.headers[0].content.get("SeriesNumber") or "series"
            own = Place(root, place.folders, place.stem if len(taken) == 1 else f"{place.stem}_{number}")
            self._add(own, (folder,), folder, series, place)

    def _add(
        self,
        place: Place,
        images: tuple[Path, ...],
        folder: Path,
        series: Series | None = None,
        of_person: Place | None = None,
    ) -> None:
        one = Scan(self._names.give(place.names()), images)
        if series:
            parts = tuple(header.file for header in series.headers)
            one = replace(one, subject=patient_of(series) or "", series=series.key, parts=parts)
        self._places.append((place, folder))
        self._of_people.append(of_person or place)
        self.found.scans.append(one)


def _images_of(there: Sequence[Series], channel: str | None) -> list[Series]:
    """Return the series that are scans of a channel: originals, or derived ones where there are none."""
    images = [series for series in there if series.is_image and series.kind != "localizer"]
    if any(series.kind == "original" for series in images):
        images = [series for series in images if series.kind == "original"]
    modality = modality_of(channel)
    return [series for series in images if modality is None or series.modality in (modality, *OPEN)]


def _files(root: Path) -> Iterator[tuple[Path, Path, str, str]]:
    """Yield folder, path, name without ending, and ending of each image; of DICOM files in a folder the first one."""
    for folder in (root, *folders_below(root)):
        paths = {path.name: path for path in sorted(folder.iterdir()) if not is_hidden(path) and not path.is_dir()}
        is_series = False
        for name, path in paths.items():
            ending = ending_of(name)
            stem = name[: len(name) - len(ending)]
            if ending in HEADERS and any(f"{stem}{end}" in paths for end in (".hdr", ".HDR")):
                continue
            if ending:
                yield folder, path, stem, ending
            elif not is_series and is_dicom(path):
                is_series = True
                yield folder, path, folder.name, ""


def patient_of(series: Series) -> str | None:
    """Return a hash of the PatientID; None if it is missing or means nobody."""
    patient = str(series.headers[0].content.get("PatientID") or "").strip()
    return None if NOBODY.fullmatch(patient) else f"patient-{hashlib.sha256(patient.encode()).hexdigest()[:12]}"


def _check(found: Found, roots: Sequence[Path], masks: Masks | None, rois: Masks | None) -> None:
    where = ", ".join(repr(str(root)) for root in roots)
    if not found.scans:
        why = f"; {first_few(found.warnings())}" if found.left_out else ""
        raise DataError(f"no images in {where}{why}", "NIfTI, NRRD, MHA or folders of DICOM series; see --channels")
    for given, used in ((masks, [one.mask for one in found.scans]), (rois, [one.roi for one in found.scans])):
        lacking = [repr(one.name) for one, path in zip(found.scans, used, strict=True) if given and path is None]
        if given and not any(used):
            hint = "files named as the images in that folder, or what names of masks have in addition: _mask"
            raise DataError(f"no image in {where} has a mask in {given.where!r}", hint)
        if given and lacking:
            what = f"{len(lacking)} of {len(used)} images have no mask in {given.where!r}, and count everywhere"
            found.doubts.append(f"{what}: {first_few(lacking, separator=', ')}")
