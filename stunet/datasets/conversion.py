"""Convert many cases to a raw dataset, such that a run may be killed and repeated at any moment.

A format defines which cases there are and what is done with each (totalsegmentator.py, pairs.py, bids.py, and without
labels unlabelled.py, nnssl.py). Images stay where they are: dataset.json refers to them. A dataset folder holds

    labelsTr/CASE.nii.gz, labelsTs/CASE.nii.gz  each appears only once it is complete
    imagesTr/CASE_0000.nii.gz                   images that nnU-Net's readers could not read where they are
    imagesTs/CASE_0000.nii.gz                   links to the images of test cases, for stunet_predict
    masksTr/CASE.nii.gz                         masks that had to be combined, of images without labels
    left_out.json                               why cases were left out (skip_bad)
    .stunet/                                    records of the finished cases (growing.py)
    splits_final.json, dataset.json             written last: until then the folder is not taken for a dataset
"""

import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from stunet.datasets import FILE_ENDING, write_dataset_json
from stunet.datasets.growing import OWN_FOLDER, GrowingFolder, sharing, signature
from stunet.datasets.listing import named, visible
from stunet.errors import DataError, OutOfMemoryError, StunetError, UsageError, first_few
from stunet.files import atomic_write, sha256_of_json, write_json, write_lock
from stunet.names import check_name
from stunet.parts import WHOLE, Part, Records, to_merge
from stunet.workers import AGAIN, Outcome, Workers, map_cases, raise_failed

LEFT_OUT = "left_out.json"


@dataclass(frozen=True)
class SourceCase:
    """A case before conversion.

    Attributes:
        name: Of the case.
        images: One per channel.
        labels: The files that its label is made from; empty for images without labels.
        training: Whether it is for training, not for tests.
        subject: Whose scan it is; empty: not known.
        mask: Of images without labels: where it is above 0, losses do not count.
    """

    name: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...] = ()
    training: bool = True
    subject: str = ""
    mask: Path | None = None

    @property
    def subset(self) -> str:
        """Suffix of its folders' names, Tr or Ts, as in imagesTr and labelsTs."""
        return "Tr" if self.training else "Ts"

    @property
    def signature(self) -> str:
        """Hash of the state of its files, and of its subset."""
        return signature((*self.images, *self.labels), self.subset)


class Step(Protocol):
    """What is done with a case; sent to the worker processes."""

    def options(self) -> dict[str, Any]:
        """Return everything that determines the output, as JSON."""

    def __call__(self, source: SourceCase, folder: Path) -> tuple[list[Path], dict[str, Any]]:
        """Write the files of a case into a dataset folder; return them, and facts for reports, as JSON.

        Of images without labels the facts `images` and `mask` name the files that were written; None: it was not.
        """


@dataclass(frozen=True)
class Description:
    """What dataset.json holds besides the cases: channels in order, label values by name, and further entries."""

    channels: tuple[str, ...]
    labels: Mapping[str, int]
    more: Mapping[str, Any] = field(default_factory=dict)
    ending: str = FILE_ENDING


@dataclass(frozen=True)
class Conversion:
    """A prepared conversion; nothing has been written yet.

    Attributes:
        target: nnUNet_raw/DatasetXXX_Name.
        sources: All cases.
        step: What is done with each case.
        description: Further contents of dataset.json.
        validation: Cases of the validation set of fold 0; empty: nnU-Net makes the folds.
        variable: Name of a variable, and the folder that it stands for in dataset.json; None: absolute paths.
        copies: Whether the step writes images, too.
        report: Writes the format's reports from the facts of the cases; returns warnings.
        warnings: Warnings so far.
        labelled: Whether the step writes labels.
        skip_bad: Leave out cases whose files are bad, instead of ending with an error.
        skipped: Cases that were taken out by name, and are removed.
        remove_missing: Remove what was written for cases whose sources are gone or bad now, instead of refusing.
        part: Of which the cases are converted; the last part completes the dataset.
    """

    target: Path
    sources: tuple[SourceCase, ...]
    step: Step
    description: Description
    validation: frozenset[str] = frozenset()
    variable: tuple[str, Path] | None = None
    copies: bool = False
    report: Callable[[Path, Mapping[str, dict[str, Any]]], list[str]] = lambda target, facts: []
    warnings: tuple[str, ...] = ()
    labelled: bool = True
    skip_bad: bool = False
    skipped: frozenset[str] = frozenset()
    remove_missing: bool = False
    part: Part = WHOLE

    def __post_init__(self) -> None:
        """Raise DataError, before anything is converted, if a case has a name that no dataset can have."""
        for source in self.sources:
            check_name(source.name, "case", repr(str(source.images[0])))

    def pending(self) -> list[SourceCase]:
        """Return the cases (of the part) that are not converted yet, or whose files have changed since.

        Raises:
            DataError: The target was made with other options or of other cases, or is not a conversion; or it holds
                files of cases that are not found now.
        """
        with nullcontext() if self.part.is_whole else self._records().locked():  # which makes the folder
            self._check_options()
        own = self.part.take(self.sources)
        return [source for source in own if not self._folder.is_done(source.name, source.signature)]

    def run(
        self, pending: Sequence[SourceCase], workers: Workers, on_case: Callable[[str], None] | None = None
    ) -> list[str]:
        """Convert the pending cases and complete the dataset; return warnings.

        Args:
            pending: The cases that pending() returned.
            workers: Number of processes, or workers of a cluster; each holds one case in memory.
            on_case: Called with a case's name once it is finished, converted or not: it counts progress.

        Raises:
            DataError: Cases cannot be converted (the others have been) and are not to be left out, the disk is full, or
                another run is working on the same folder.
            OutOfMemoryError: A case does not fit into memory.
        """
        with write_lock(self.target):
            self._begin(pending)
            shutil.rmtree(self._records().folder, ignore_errors=True)  # of an earlier run in parts
            return self._complete(self._convert_all(pending, workers, on_case))

    def run_part(
        self, pending: Sequence[SourceCase], workers: Workers, on_case: Callable[[str], None] | None = None
    ) -> tuple[list[str], str]:
        """As run(), for the pending cases of a part; the last one completes the dataset.

        Returns:
            Warnings, and which parts are missing, in words; empty if none is.
        """
        warnings: list[str] = []
        records = self._records()
        with sharing(self.target, f"part-{self.part.number}"):
            with records.locked():
                records.save({})
                self._begin(pending)
            bad = self._convert_all(pending, workers, on_case)
            missing = records.finish({"bad": bad}, lambda contents: warnings.extend(self._merge(contents)))
        return warnings, missing

    def merge(self, count: int) -> list[str]:
        """Complete the dataset from what `count` parts have converted, 1: as many as left records; return warnings.

        Raises:
            DataError: Parts are missing, or source files have changed since.
        """
        warnings: list[str] = []
        part = to_merge(self._records().folder, count)
        with sharing(self.target, "merge"):
            self._records(part).merge(lambda contents: warnings.extend(self._merge(contents)))
        return warnings

    def _records(self, part: Part | None = None) -> Records:
        """Return the records of the parts, beside the folder: in it, they would make it look like somebody else's."""
        agreed = {"options": self.step.options(), "cases": sha256_of_json([source.name for source in self.sources])}
        return Records(self.target.with_name(f".parts-{self.target.name}"), part or self.part, agreed)

    def _begin(self, pending: Sequence[SourceCase]) -> None:
        self._check_options()  # again: another run may have finished in the meantime
        self._folder.begin(self.step.options(), alone=self.part.is_whole)
        if pending:  # until it is complete again, nothing may take the folder for a dataset
            (self.target / "dataset.json").unlink(missing_ok=True)

    def _merge(self, contents: Sequence[Any]) -> list[str]:
        bad = dict(sorted((name, why) for content in contents for name, why in content["bad"].items()))
        for source in self.sources:
            if source.name not in bad and self._folder.record(source.name)["source"] != source.signature:
                what = f"the files of case {source.name!r} have changed since its part converted it"
                raise DataError(what, f"run the parts again: {AGAIN}")
        self._folder.begin(self.step.options())  # removes what killed parts have left unfinished
        return self._complete(bad)

    def _convert_all(
        self, pending: Sequence[SourceCase], workers: Workers, on_case: Callable[[str], None] | None
    ) -> dict[str, str]:
        """Convert cases; return why some are left out, by name."""
        convert = partial(_convert, step=self.step, folder=self._folder)
        outcomes: list[Outcome[SourceCase, None]] = []
        for outcome in map_cases(convert, pending, workers, lambda source: source.name):
            outcomes.append(outcome)
            if on_case:
                on_case(outcome.case.name)
        bad = {one.case.name: one.bad_files.message for one in outcomes if self.skip_bad and one.bad_files}
        raise_failed(outcome for outcome in outcomes if outcome.case.name not in bad)
        return dict(sorted(bad.items()))

    @property
    def _folder(self) -> GrowingFolder:
        return GrowingFolder(self.target)

    def _check_options(self) -> None:
        if self.target.exists() and not self._folder.is_own:
            hint = "another number or name with -d and --name, or remove that folder"
            raise DataError(f"{str(self.target)!r} exists and was not made by this command", hint)
        if changed := self._folder.changes(self.step.options()):
            hint = "another number with -d, or remove that folder, or the same options as then"
            raise DataError(f"{str(self.target)!r} was converted with other options: {first_few(changed)}", hint)
        before = self._folder.recorded()
        if before and not {source.name for source in self.sources} & set(before):
            what = f"{str(self.target)!r} has {len(before)} cases (e.g. {before[0]!r}), of which none is found now"
            raise DataError(what, "another number with -d, or remove that folder; or give the same data as then")
        self._check_lost({source.name for source in self.sources}, "not found now")

    def _check_lost(self, kept: Collection[str], why: str) -> None:
        """Raise DataError if files would be removed of which this dataset may hold the only copy.

        Args:
            kept: Names of the cases that stay.
            why: What is wrong with the others.
        """
        folder = self._folder
        gone = set(folder.recorded()) - set(kept) - self.skipped
        lost = [name for name in sorted(gone) if any((folder.path / file).exists() for file in folder.files(name))]
        if lost and not self.remove_missing:
            shown = first_few([repr(name) for name in lost], separator=", ")
            what = f"{str(self.target)!r} holds files of {len(lost)} cases whose sources are {why}: {shown}"
            way = "put the sources back as they were, or give the others another number with -d"
            raise DataError(what, f"{way}; --remove_missing removes these cases")

    def _complete(self, bad: Mapping[str, str]) -> list[str]:
        """Write the files that accompany the cases, dataset.json last; return warnings."""
        records = {source.name: self._folder.record(source.name) for source in self.sources if source.name not in bad}
        facts = {name: record["facts"] for name, record in records.items()}
        kept = [source for source in self.sources if source.name in facts and not facts[source.name].get("left_out")]
        gone = sorted(set(self._folder.recorded()) - {source.name for source in self.sources})
        training = [source for source in kept if source.training]
        # Before anything is removed.
        if not training and bad:
            raise DataError(f"no case is left: {first_few(list(bad.values()))}", "other images")
        if not training:
            raise DataError("no training case is left", "look at the subjects and their split")
        self._check_lost({*records, *gone}, "bad now")
        # Before records are pruned, which tell whose the links are.
        self._remove_links(self._folder.recorded())
        self._folder.prune(records.keys(), {file for source in kept for file in records[source.name]["files"]})
        strange = self._strange({file for record in records.values() for file in record["files"]})
        warnings = self._write_left_out(bad) + self.report(self.target, facts)
        warnings += self._write_splits([source.name for source in training])
        if not self.copies:
            self._link_test_images([source for source in kept if not source.training])
        about = self.description
        entries = {source.name: self._entry(source, facts[source.name]) for source in training}
        listed: dict[str, Any] = {} if self.copies else {"dataset": entries}
        if subjects := {source.name: source.subject for source in training if source.subject}:
            listed["subjects"] = subjects
        more = {**about.more, "file_ending": about.ending, **listed}
        channels = dict(enumerate(about.channels))
        # Without DatasetXXX_, which has 11 characters.
        write_dataset_json(self.target, self.target.name[11:], channels, about.labels, len(training), **more)
        if gone:
            removed = first_few([repr(name) for name in gone], separator=", ")
            warnings.append(f"{len(gone)} cases that were here before are not found now, and are removed: {removed}")
        return [*self.warnings, *strange, *warnings]

    def _write_left_out(self, bad: Mapping[str, str]) -> list[str]:
        """Update left_out.json; return a warning if cases are left out."""
        path = self.target / LEFT_OUT
        path.unlink(missing_ok=True)
        if not bad:
            return []
        write_json(path, dict(bad))
        return [f"{len(bad)} cases are left out, which {LEFT_OUT} lists: {first_few(list(bad.values()))}"]

    def _write_splits(self, training: Sequence[str]) -> list[str]:
        """Update splits_final.json, unless somebody has replaced it since; return warnings."""
        # The copy of our own tells whether the file is still ours.
        path, own = self.target / "splits_final.json", self.target / OWN_FOLDER / "splits.json"
        if path.exists() and not (own.exists() and path.read_bytes() == own.read_bytes()):
            return [f"{str(path)!r} is not what this command wrote: it is kept"]
        for file in (path, own):
            file.unlink(missing_ok=True)
        validation = [name for name in training if name in self.validation]
        if validation:
            folds = [{"train": [name for name in training if name not in self.validation], "val": validation}]
            # The copy first: if the run is killed in between, the file would be taken for somebody else's.
            write_json(own, folds)
            write_json(path, folds)
        return []

    def _remove_links(self, cases: Collection[str]) -> None:
        """Remove this command's links to test images; which cases are still there, the links that follow tell."""
        link = re.compile(rf"(.+)_\d{{4}}{re.escape(self.description.ending)}")
        for path in (self.target / "imagesTs").glob("*"):
            if path.is_symlink() and (match := link.fullmatch(path.name)) and match[1] in cases:
                path.unlink(missing_ok=True)

    def _strange(self, files: set[str]) -> list[str]:
        """Return a warning about training files that this command did not write: nnU-Net would take them for cases."""
        folders = ("imagesTr", "labelsTr", "masksTr")
        strange = [p for f in folders for p in visible((self.target / f).glob("*")) if f"{f}/{p.name}" not in files]
        what = f"{len(strange)} in {str(self.target)!r} are not of this conversion, and kept: {named(strange)}"
        return [what] if strange else []

    def _link_test_images(self, sources: Sequence[SourceCase]) -> None:
        for source in sources:
            for channel, image in enumerate(source.images):
                link = self.target / "imagesTs" / f"{source.name}_{channel:04d}{self.description.ending}"
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(os.path.abspath(image))

    def _entry(self, source: SourceCase, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entry of a case in dataset.json: its files, by reference unless they were written."""
        written = facts.get("images") or [None] * len(source.images)
        images = zip(written, source.images, strict=True)
        entry: dict[str, Any] = {"images": [file or self._reference(image) for file, image in images]}
        if self.labelled:
            return {**entry, "label": f"labelsTr/{source.name}{self.description.ending}"}
        mask = facts.get("mask") or (source.mask and self._reference(source.mask))
        return {**entry, **({"mask": mask} if mask else {})}

    def _reference(self, path: Path) -> str:
        """Return a path as dataset.json refers to it; links stay, because DataLad moves their targets."""
        whole = os.path.abspath(path)
        if self.variable and Path(whole).is_relative_to(os.path.abspath(self.variable[1])):
            name, root = self.variable
            return f"${name}/{os.path.relpath(whole, root)}"
        return whole


def dataset_folder(raw: Path, dataset_id: int, name: str) -> Path:
    """Return raw/DatasetXXX_Name, which may exist already.

    Raises:
        UsageError: The number or name is not allowed.
        DataError: The number is taken by a dataset with another name.
    """
    if not 1 <= dataset_id <= 999 or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UsageError(f"dataset {dataset_id} {name!r}", "a number from 1 to 999; a name of letters, digits, - and _")
    target = raw / f"Dataset{dataset_id:03d}_{name}"
    # nnU-Net finds a dataset by its number, and refuses a number that two have.
    taken = sorted(path for path in raw.glob(f"{target.name[:10]}_*") if path != target)
    if taken:
        hint = "another number with -d, or remove that folder"
        raise DataError(f"number {dataset_id} is taken by {str(taken[0])!r}", hint)
    return target


def write_file(path: Path, content: bytes) -> None:
    """Write a file, which appears only once it is complete; create its folder if needed."""
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as part:
        part.write_bytes(content)


def _convert(source: SourceCase, step: Step, folder: GrowingFolder) -> None:
    """Convert one case, in a worker."""
    try:
        before = source.signature  # a file that changes while it is read is converted again by the next run
        files, facts = step(source, folder.path)
        folder.save(source.name, before, files, facts)
    except OutOfMemoryError:
        raise
    except StunetError as error:
        # The same class, as the exit code of the command depends on it.
        raise type(error)(f"case {source.name!r}: {error.message}", f"{error.hint}, then {AGAIN}") from error
