"""Find scans in folders of any layout: what is taken for one, which case it becomes, and whose it is.

Taken is every file of a volume and every original DICOM series, at any depth. Left out, by name, is what is obviously
not an image: label maps and masks (labelsTr, BIDS derivatives, CASE_seg.nii.gz), localizers, and series that were
derived from others.

A case is named after its path below the folder that was given: `p1/ct.nii.gz` is p1_ct, `sub-01/anat/sub-01_T1w.nii.gz`
is sub-01_T1w. A subject is, in this order: the PatientID of DICOM (as a hash: dataset.json ends up in checkpoints), the
sub-XX of BIDS, the first folder below the one that was given whose name is not general (imagesTr, train, ct), the name
of the file. The same name in two of the given folders is taken for the same subject: of two people with one name, at
most one too many is held out; of one person with two names, a scan in training would show what validation asks for.

Read next: unlabelled.py, which makes a dataset of them.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stunet.datasets.conversion import SourceCase
from stunet.datasets.dicom import OPEN, folders_below, modality_of
from stunet.datasets.dicom_headers import Series, scan
from stunet.datasets.growing import signature
from stunet.datasets.listing import HEADERS, ending_of, is_dicom, is_hidden, named
from stunet.errors import DataError, first_few
from stunet.names import NAME_MAX, RESERVED_BYTES, to_file_name

REFERRED = (".nii.gz", ".nii", ".nrrd", ".mha", ".gipl")  # ITK reads them where they are, from a single file
BY_ITK = (".nhdr", ".mhd", ".hdr", ".gipl.gz")  # rewritten as NIfTI: most are a header next to a file of voxels
BY_NIBABEL = (".mgz", ".mgh")
SLICER = ".seg.nrrd"  # ending of its segmentations
LABEL_FOLDER = re.compile(
    r"derivatives|labels?(tr|ts|va)?|masks?(tr|ts)?|seg|segs|segmentations?|gt|gts|ground_?truths?|annotations?|rois?",
    re.IGNORECASE,
)
LABEL_FILE = re.compile(
    r"(.*[._-])?(d?seg|segmentations?|labels?|labelmap|masks?|probseg|gt|ground_?truth|annotations?|rois?)",
    re.IGNORECASE,
)
GENERAL = re.compile(
    r"images?(tr|ts|va)?|train(ing)?|test(ing)?|val(idation)?|data|raw|nifti|niftis|dicoms?|scans?|volumes?|cts?|mrs?|mris?"
    r"|pets?|anat|sourcedata|rawdata",
    re.IGNORECASE,
)
BIDS_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
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
        return signature((*self.images, *self.parts, *masks), self.series, bool(self.mask), bool(self.roi))


@dataclass
class Found:
    """What folders hold.

    Attributes:
        scans: In the order of the folders.
        kinds: Of the images: modalities of DICOM (CT, MR), suffixes of BIDS (T1w); empty where nothing tells.
        left_out: What is not taken, by reason.
    """

    scans: list[Scan] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: Path) -> None:
        """Record a file or folder that is not taken."""
        self.left_out.setdefault(reason, []).append(path)

    def warnings(self) -> list[str]:
        """Return what is not taken, a sentence for each reason."""
        return [
            f"{len(paths)} {reason} are left out: {named(paths)}" for reason, paths in sorted(self.left_out.items())
        ]


@dataclass(frozen=True)
class Place:
    """Where an image lies: a folder that was given, the folders below it, and the name without ending."""

    root: Path
    folders: tuple[str, ...]
    stem: str

    def subject(self) -> str:
        """Return whose scan it is, by the rule above."""
        for number, name in enumerate(self.folders):
            if BIDS_SUBJECT.fullmatch(name):
                return "/".join(self.folders[: number + 1])
        if match := BIDS_SUBJECT.match(self.stem):
            return match[0]
        special = [name for name in self.folders if not GENERAL.fullmatch(name)]
        return special[0] if special else re.sub(r"_\d{4}$", "", self.stem)

    def names(self) -> Iterator[str]:
        """Yield names for the case, the best first: of BIDS that of the file; the path; that with the root's name."""
        whole = "_".join((*self.folders, self.stem))
        if BIDS_SUBJECT.match(self.stem):
            yield self.stem
        yield whole
        yield f"{self.root.resolve().name}_{whole}"


class Names:
    """Gives each case a name of its own, also where file systems take upper and lower case for the same."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def give(self, wanted: Iterator[str]) -> str:
        """Return the first name that is free, made a file name; or the last one with a number."""
        name = "case"
        for text in wanted:
            name = to_file_name(text)
            # A case CASE_seg would look like the labels of CASE; the rest is room for a number.
            name = f"{name}-scan" if name.endswith("_seg") else name
            name = name.encode()[: NAME_MAX - RESERVED_BYTES - 8].decode(errors="ignore")
            if self._is_free(name):
                return name
        number = 2
        while not self._is_free(f"{name}-{number}"):
            number += 1
        return f"{name}-{number}"

    def _is_free(self, name: str) -> bool:
        free = name.casefold() not in self._taken
        self._taken.add(name.casefold())
        return free


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

    def of(self, known: Mapping[str, list[Path]], place: Place, folder: Path) -> Path | None:
        """Return the mask of an image, if it has one.

        Args:
            known: The result of list().
            place: That of the image.
            folder: That of the image.

        Raises:
            DataError: Several files could be it.
        """
        keys = [f"{folder.resolve()}/{place.stem}"]
        if self.folder is not None:
            keys = ["/".join((*place.folders, place.stem)), f"name:{place.stem}"]
        for key in keys:
            fitting = known.get(key, [])
            if len(fitting) > 1:
                both = " and ".join(repr(str(path)) for path in fitting[:2])
                raise DataError(
                    f"{both} could be the mask of {place.stem!r}", "put masks into folders as the images are"
                )
            if fitting:
                return fitting[0]
        return None

    def list(self, roots: Sequence[Path]) -> dict[str, list[Path]]:
        """Return all masks by keys that of() looks for."""
        known: dict[str, list[Path]] = {}
        for root in [self.folder] if self.folder else roots:
            for folder, path, stem, _ in _files(root):
                if self.folder is None:
                    if stem.endswith(self.where):
                        known.setdefault(f"{folder.resolve()}/{stem.removesuffix(self.where)}", []).append(path)
                    continue
                below = "/".join((*folder.relative_to(root).parts, stem))
                for key in (below, f"name:{stem}"):
                    known.setdefault(key, []).append(path)
        return known


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
    _check(search.found, roots, masks, rois)
    return search.found


class _Search:
    """A search through several folders; `found` is what it has found so far."""

    def __init__(
        self,
        roots: Sequence[Path],
        suffixes: tuple[str, ...],
        channel: str | None,
        masks: Masks | None,
        rois: Masks | None,
    ) -> None:
        self.found = Found()
        self._suffixes, self._channel = suffixes, channel
        self._masks = [(kind, kind.list(roots)) if kind else None for kind in (masks, rois)]
        self._names, self._seen = Names(), set[Path]()

    def look_into(self, root: Path) -> None:
        """Add the scans in a folder and the folders below it."""
        groups: dict[tuple[Path, str], dict[str, Path]] = {}
        for folder, path, stem, ending in _files(root):
            # One of the given folders may lie in another one.
            if path.absolute() in self._seen or any(kind and kind[0].is_mask(path, stem) for kind in self._masks):
                continue
            self._seen.add(path.absolute())
            end = max((end for end in self._suffixes if end and stem.endswith(end)), key=len, default="")
            group = groups.setdefault((folder, stem.removesuffix(end)), {}) if ending else {}
            by_name = ending and not end and (ending == SLICER or LABEL_FILE.fullmatch(stem))
            if by_name or any(map(LABEL_FOLDER.fullmatch, folder.relative_to(root).parts)):
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
        for (folder, stem), files in groups.items():
            if len(files) == len(self._suffixes):
                self._add_files(Place(root, folder.relative_to(root).parts, stem), folder, files)
            for path in files.values() if len(files) < len(self._suffixes) else ():
                self.found.leave_out("files of scans that lack a channel", path)

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
            self._add(own, (folder,), folder, series)

    def _add(self, place: Place, images: tuple[Path, ...], folder: Path, series: Series | None = None) -> None:
        mask, roi = (kind and kind[0].of(kind[1], place, folder) for kind in self._masks)
        one = Scan(self._names.give(place.names()), images, subject=place.subject(), mask=mask, roi=roi)
        if series:
            parts = tuple(header.file for header in series.headers)
            one = replace(one, subject=_patient(series) or one.subject, series=series.key, parts=parts)
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


def _patient(series: Series) -> str | None:
    """Return a hash of the PatientID; None if it is missing or means nobody."""
    patient = str(series.headers[0].content.get("PatientID") or "").strip()
    return None if NOBODY.fullmatch(patient) else f"patient-{hashlib.sha256(patient.encode()).hexdigest()[:12]}"


def _check(found: Found, roots: Sequence[Path], masks: Masks | None, rois: Masks | None) -> None:
    where = ", ".join(repr(str(root)) for root in roots)
    if not found.scans:
        why = f"; {first_few(found.warnings())}" if found.left_out else ""
        raise DataError(f"no images in {where}{why}", "NIfTI, NRRD, MHA or folders of DICOM series; see --channels")
    for given, used in ((masks, [one.mask for one in found.scans]), (rois, [one.roi for one in found.scans])):
        if given and not any(used):
            hint = "files named as the images in that folder, or what names of masks have in addition: _mask"
            raise DataError(f"no image in {where} has a mask in {given.where!r}", hint)
