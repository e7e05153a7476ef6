"""Tell from the names of files and folders which scans are label maps, what a case is called, and whose scan it is.

Label maps and masks are files whose name begins or ends with such a word, numbered or not (p1_seg, segmentation-0,
label0001, sub-01_brainmask), and all files in folders that are called so or begin so (labelsTr, seg-lungs), and in
derivatives.

A case is named after its path below the folder that was given: `p1/ct.nii.gz` is p1_ct, `sub-01/anat/sub-01_T1w.nii.gz`
is sub-01_T1w.

A subject is the first of these that there is:

1. the PatientID of DICOM, as a hash, because dataset.json ends up in checkpoints (scans.py);
2. the sub-XX of BIDS;
3. the first folder below the one that was given, or else the file's name, of which something is left without general
   words: imagesTr, train, data, patients, part1, Task01_X; modalities such as CT, T1w, FLAIR; visits such as ses-2,
   baseline, followup1; dates, and years if they are folders. At both ends of a name they are removed: p1_T1, p1_MR2 and
   CT_p1 are of p1. The numbers 0000 to 0009 at the end of a name are channels if all images of a folder have them, and
   each name has 0000;
4. the name, general words removed, of the folder that was given, or of the next one above it.

Two exceptions to 3. If most of the next names occur below several of these folders, and there are more than ten such
names for each further folder, they are the subjects (siteA/001, siteB/001; IXI-T1/IXI002, IXI-T2/IXI002). And names
that differ in their last words only are one subject (p001_V1, p001_V2; BraTS-GLI-00000-000, -001) if what they share
has a digit and begins at most ten names, and there are at least as many such beginnings as the most frequent one has
names. So amos_0001 and amos_0002, LUNG1-001 and LUNG1-002 are two people each.

The same name is taken for the same subject wherever it occurs. Of two people with one name, at most one too many is
held out; of one person with two names, a scan in training would show what validation asks for.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stunet.errors import first_few
from stunet.names import NAME_MAX, RESERVED_BYTES, to_file_name

BETWEEN = r"[-_. +]"  # what stands between the words of a name
LABEL = re.compile(
    r"[a-z0-9]*?(seg|masks?|labels?|labelmap)|segs|segmentations?|gts?|ground_?truths?|annotations?|rois?",
    re.IGNORECASE,
)
LABEL_FOLDER = re.compile(r"derivatives|(labels?|masks?)(tr|ts|va)", re.IGNORECASE)
_KIND = (
    r"images?(tr|ts|va)?|imgs?|train(ing)?|test(ing)?|val(idation)?|data|raw(data)?|sourcedata|nii|niftis?|dcm|dicoms?"
    r"|scans?|vol(ume)?s?|anat|original|input"
    r"|cts?|cta|cbct|mrs?|mris?|mra|pets?|pt|us|adc|dwi|swi|asl"
    r"|t1|t1w|t1c|t1ce|t1gd|t1n|mprage|t2|t2w|t2f|t2star|flair|pd|pdw"
    r"|baseline|follow-?up|pre|post|arterial|portal|venous|delayed"
)
_VISIT = rf"(ses|session|visit|time-?point|tp|follow-?up|fu|week|month|day){BETWEEN}?\d+|bl"
_DATE = rf"(19|20)\d\d{BETWEEN}?[01]\d{BETWEEN}?[0-3]\d"
_HOLDS_PEOPLE = (
    r"patients?|subjects?|cases?|controls?|sets?|(task|dataset)\d+([-_].*)?"
    rf"|(part|batch|subset|fold|site|cent(er|re)){BETWEEN}?\d+"
)
GENERAL = re.compile(rf"{_KIND}|{_VISIT}|{_DATE}|{_HOLDS_PEOPLE}", re.IGNORECASE)
AT_START = re.compile(rf"({_KIND}|{_VISIT}){BETWEEN}(?P<rest>.+)", re.IGNORECASE)
AT_END = re.compile(
    rf"(?P<rest>.+?){BETWEEN}+({_KIND}|{_VISIT}|{_DATE}|(scan|run|series|ct|mr|pet)\d\d?)", re.IGNORECASE
)
YEAR = re.compile(r"(19|20)\d\d")
CHANNEL = re.compile(r"(.+)_000\d")
BIDS_SUBJECT = re.compile(r"sub-[A-Za-z0-9]+")
BEGINNING = re.compile(rf"(?P<rest>.*\d.*?){BETWEEN}+[^-_. +]+")  # of a name of a scan, which may be a person
SCANS_MAX = 10  # names that begin alike; more are people of one study
NAMES_PER_FOLDER = 10  # more than that many names for each further folder: the names are people
HELD_OUT = 0.1  # share of the scans above which a held-out part is much larger than what is meant to be held out


def is_label_map(stem: str) -> bool:
    """Return whether a file is called like a label map or mask, by its name without ending."""
    words = _words(stem)
    return any(map(LABEL.fullmatch, (words[0], words[-1])))


def is_label_folder(name: str) -> bool:
    """Return whether a folder is called like one of label maps and masks."""
    return bool(LABEL_FOLDER.fullmatch(name) or LABEL.fullmatch(_words(name)[0]))


def numbers_channels(stems: Collection[str]) -> bool:
    """Return whether the last numbers of a folder's images are those of channels, by their names without ending."""
    found = [match for stem in stems if (match := CHANNEL.fullmatch(stem))]
    return len(found) == len(stems) and all(f"{match[1]}_0000" in stems for match in found)


@dataclass(frozen=True)
class Place:
    """Where an image lies: a folder that was given, the folders below it, and the name without ending."""

    root: Path
    folders: tuple[str, ...]
    stem: str

    def names(self) -> Iterator[str]:
        """Yield names for the case, the best first: of BIDS that of the file; the path; that with the root's name."""
        whole = "_".join((*self.folders, self.stem))
        if BIDS_SUBJECT.match(self.stem):
            yield self.stem
        yield whole
        yield f"{self.root.resolve().name}_{whole}"


def subjects_of(places: Sequence[Place], numbered: Collection[tuple[Path, tuple[str, ...]]] = ()) -> list[str]:
    """Return whose scans images are, by the rules above but the first.

    Args:
        places: Of all images.
        numbered: Root and folders below it of which the images' last numbers are those of channels.
    """
    found = []
    special: list[list[str]] = []  # per image: the parts of its path that may be a person
    for place in places:
        stem = place.stem.rpartition("_")[0] if (place.root, place.folders) in numbered else place.stem
        parts = (*(name for name in place.folders if not YEAR.fullmatch(name)), stem)
        bids = next((match[0] for part in parts if (match := BIDS_SUBJECT.match(part))), None)
        special.append([] if bids else [part for part in parts if _who(part)])
        found.append(bids or next(map(_who, special[-1]), None) or _root_name(place))
    longer: dict[Path, list[int]] = {}
    for number, place in enumerate(places):
        if len(special[number]) > 1:
            longer.setdefault(place.root, []).append(number)
    for own in longer.values():
        if _next_are_people([special[number] for number in own]):
            for number in own:
                found[number] = _who(special[number][1])
    return _without_scans(found)


def describe_subjects(subjects: Sequence[str]) -> tuple[str, str | None]:
    """Return how many scans there are of how many subjects, and what is wrong with that, if anything is.

    Args:
        subjects: Of each scan.
    """
    counts = Counter(subjects)
    said = f"{len(subjects)} scans found, of {len(counts)} subjects"
    most = counts.most_common()
    if len(most) == 1:
        return said, f"all {len(subjects)} scans are taken for those of one subject, {most[0][0]!r}: {_REMEDY}"
    large = [f"{name!r} ({number})" for name, number in most if number > 1 and number > HELD_OUT * len(subjects)]
    if large:
        what = f"subjects with more than {HELD_OUT:.0%} of the scans: {first_few(large, separator=', ')}"
        return said, f"{what}; if these are not people, {_REMEDY}"
    return said, None


_REMEDY = "give the folders that hold people with -i, or correct `subjects` in dataset.json"


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


def _words(name: str) -> list[str]:
    """Return the words of a name without the numbers at the end of each; a name of numbers alone is one word."""
    words = [re.sub(r"\d+$", "", word) for word in re.split(BETWEEN, name)]
    return list(filter(None, words)) or [name]


def _who(name: str) -> str:
    """Return a name without general words at its ends; an empty text if there is nothing else."""
    while not GENERAL.fullmatch(name) and (match := AT_END.fullmatch(name) or AT_START.fullmatch(name)):
        name = match["rest"]
    return "" if GENERAL.fullmatch(name) else name


def _root_name(place: Place) -> str:
    return next(filter(None, map(_who, reversed(place.root.resolve().parts[1:]))), place.stem)


def _next_are_people(paths: Sequence[Sequence[str]]) -> bool:
    """Return whether the second parts of paths, rather than the first, are people: the exception above."""
    firsts: dict[str, set[str]] = {}
    for first, following, *_ in paths:
        firsts.setdefault(_who(following), set()).add(first)
    recurring = sum(len(places) > 1 for places in firsts.values())
    folders = {_who(first) for first, *_ in paths}
    return 2 * recurring > len(firsts) > NAMES_PER_FOLDER * (len(folders) - 1)


def _without_scans(names: Sequence[str]) -> list[str]:
    """Return names without the last words by which only scans of one person differ: the second exception above."""
    best = now = list(names)
    while True:
        rests = {name: match["rest"] for name in set(now) if (match := BEGINNING.fullmatch(name))}
        few = {rest: number for rest, number in Counter(rests.values()).items() if number <= SCANS_MAX}
        if len(few) < max(few.values(), default=1):
            return best
        now = [rests[name] if rests.get(name) in few else name for name in now]
        if len(set(now)) < len(set(best)):  # otherwise these words may belong to the person's name
            best = now
