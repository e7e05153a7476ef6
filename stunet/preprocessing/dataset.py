"""Find the cases that need preprocessing, so that a run can be killed and repeated at any time and data never go stale.

The arrays are nnU-Net's: labels are identical, images are equal up to rounding in float32 (case.py). A case
appears in its data folder only when it is complete, and a manifest records what it was made from; a repeated run does
whatever is missing or out of date. A data folder holds

    CASE.b2nd  CASE_seg.b2nd  CASE.pkl   the same files that nnU-Net's preprocessor writes; case.py says what they hold
                                         of a case without labels
    .stunet/manifest.json                the settings, and per case the raw files, their SHA-256 and the written files
    .stunet/part/CASE/                   what is being written
    .stunet/lock                         held during a run; parts of a run share it, and each holds .stunet/lock-part-I
    .stunet/parts/                       what parts have recorded (parts.py); the last one writes the manifest

Imports neither torch nor nnunetv2. Read next: worker.py, which does one case, and checks.py, which
compares all that with what a training needs.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stunet.datasets import RawCase, list_cases
from stunet.errors import DataError, UsageError, first_few
from stunet.files import (
    cached_sha256_of,
    exclusive_lock,
    json_differences,
    sha256_of_json,
    shared_lock,
    write_json,
)
from stunet.kinds import MANIFEST, PART, normalize_labels, read, read_dataset_json
from stunet.orientation import REORIENTS
from stunet.parts import WHOLE, Part, Records, to_merge
from stunet.plans.known_input import BY_THE_IMAGE
from stunet.plans.plan import Plan
from stunet.preprocessing.labels import copy_labels
from stunet.preprocessing.worker import OWN_FOLDER, Done, Job, names_case, run
from stunet.schema import check
from stunet.workers import Workers
from stunet.workspace import planning, preprocessed_dataset, raw_dataset

PLAN_SETTINGS = (
    "transpose_forward",
    "image_reader_writer",
    "label_manager",
    "foreground_intensity_properties_per_channel",
)
CONFIGURATION_SETTINGS = (  # without the patch: it only affects how files are chunked, and all network sizes share data
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
    "preprocessor_name",
)
PARTS = f"{OWN_FOLDER}/parts"
SAME, TOUCHED, CHANGED, UNKNOWN = "same", "touched", "changed", "unknown"  # raw files, compared with their record
log = logging.getLogger("stunet")
# A manifest is written whole, with a record per case: not after each of thousands.
SAVE_INTERVAL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class StampedCase(RawCase):
    """A training case; `stamps` are name, size in bytes and modification time in ns of its files.

    The name of a file that dataset.json lists is its path as it stands there.
    """

    stamps: list[list[Any]]


@dataclass(frozen=True)
class DataFolder:
    """A data folder to fill.

    Attributes:
        configuration: The configuration that is preprocessed into it.
        path: Where it is.
        settings: The settings that determine what its arrays hold.
        records: The manifest's records of the cases that are complete and up to date.
        stale: Why other cases in the folder have to be done again; empty if there are none.
    """

    configuration: str
    path: Path
    settings: dict[str, Any]
    records: dict[str, dict[str, Any]]
    stale: str
    shared: Records

    def save(self) -> None:
        """Write the manifest; of a part, its record."""
        if self.shared.part.is_whole:
            self.write_manifest(self.records)
        else:
            self.shared.save({"cases": self.records})

    def write_manifest(self, records: Mapping[str, Any]) -> None:
        """Write the manifest with these cases, by name."""
        cases = {name: records[name] for name in sorted(records)}
        write_json(self.path / OWN_FOLDER / "manifest.json", {"settings": self.settings, "cases": cases})


def preprocess(
    dataset: str,
    plan: Plan,
    configurations: Sequence[str],
    workers: Workers,
    on_case: Callable[[str], None] | None = None,
    verbose: bool = False,
    part: Part = WHOLE,
) -> str:
    """Preprocess every training case into the data folders of the configurations; up-to-date cases are left alone.

    Also copies dataset.json and the labels (gt_segmentations) next to the data folders, as nnU-Net does for validation,
    and annotations.json if there is one.

    Args:
        dataset: The full name, `Dataset003_Liver`.
        plan: A plan of the dataset, ours or nnU-Net's.
        configurations: Names of its configurations; those that share a data folder are done once.
        workers: Number of processes, or workers of a cluster; each holds one case in memory and computes on one thread.
        on_case: Called with the case's name whenever one is finished; `pending_cases` tells how many there will be.
        verbose: Workers report what happens to each case.
        part: Of which the cases are done; the last part writes the manifests.

    Returns:
        Which parts are missing, in words; empty if none is.

    Raises:
        DataError: A configuration is unknown, a raw file is missing or damaged, a case fails, a worker was killed, the
            disk is full, or another run works on the same folder. Finished cases are kept.
        OutOfMemoryError: A case does not fit into memory.
    """
    if isinstance(workers, int) and workers < 1:
        raise UsageError(f"the number of workers must be at least 1, not {workers}", "-np 1")
    description, cases = raw_cases(dataset)
    own, names, what = part.take(cases), {case.name for case in cases}, (dataset, plan, configurations, description)
    # Twice: which folders to lock, and, once nobody else changes them, what is left to do there.
    with _locked([folder.path for folder in _data_folders(*what, cases, part)], part):
        folders = _data_folders(*what, cases, part)
        for folder in folders:
            _clear(folder, own, names)
            folder.save()
            if part.is_whole:
                shutil.rmtree(folder.shared.folder, ignore_errors=True)  # the manifest has what they recorded
        # All configurations share these files, and a planning in another process writes some of them: wait for it.
        with planning(dataset, wait=lambda what: None):
            copy_labels(dataset, description["file_ending"], cases, own)
        jobs = [Job(f.configuration, f.path, c.name, c.images, c.label, c.mask) for f, c in _pending(folders, own)]
        try:
            with closing(run(jobs, plan, description, workers, verbose)) as finished:
                _record(finished, folders, own, on_case or (lambda name: None))
        finally:
            for folder in folders:
                _remove_unfinished(folder, own)
                folder.save()
        return "" if part.is_whole else _finish(folders, names)


def merge_parts(dataset: str, plan: Plan, configurations: Sequence[str], count: int) -> None:
    """Write the manifests of data folders that `count` parts have filled; 1: as many as have left records.

    Raises:
        DataError: Parts are missing; the error names them.
    """
    description, cases = raw_cases(dataset)
    names = {case.name for case in cases}
    for name in configurations:
        folder = preprocessed_dataset(dataset) / plan.configuration(name).data_identifier / PARTS
        part = to_merge(folder, count)
        for each in _data_folders(dataset, plan, [name], description, cases, part):
            each.shared.merge(partial(_merge, each, names))


def _finish(folders: Sequence[DataFolder], names: set[str]) -> str:
    """Hand over what a part has done, and merge what all have; return which parts are missing, in words."""
    missing = [folder.shared.finish({"cases": folder.records}, partial(_merge, folder, names)) for folder in folders]
    return next(filter(None, missing), "")


def _merge(folder: DataFolder, names: set[str], contents: list[Any]) -> None:
    """Write the manifest from what all parts have done, and remove files of cases that the dataset does not have."""
    folder.write_manifest({name: record for content in contents for name, record in content["cases"].items()})
    with suppress(OSError):  # now that nobody else makes folders there
        (folder.path / OWN_FOLDER / "part").rmdir()
    for entry in sorted(os.scandir(folder.path), key=lambda entry: names_case(entry.name), reverse=True):
        if entry.is_file() and not _cases_of(entry.name) & names:
            Path(entry).unlink(missing_ok=True)


def pending_cases(dataset: str, plan: Plan, configurations: Sequence[str], part: Part = WHOLE) -> list[tuple[str, str]]:
    """Return what `preprocess` would do: (configuration, case), in order. Changes nothing.

    Raises:
        DataError: A configuration is unknown or a raw file is missing.
    """
    description, cases = raw_cases(dataset)
    folders = _data_folders(dataset, plan, configurations, description, cases, part)
    return [(folder.configuration, case.name) for folder, case in _pending(folders, part.take(cases))]


def stale_cases(dataset: str, plan: Plan, configurations: Sequence[str], part: Part = WHOLE) -> list[str]:
    """Return why `preprocess` would redo existing cases, a sentence for each configuration where it would.

    Raises:
        DataError: As for pending_cases().
    """
    folders = _data_folders(dataset, plan, configurations, *raw_cases(dataset), part)
    return [f"{folder.configuration}: {folder.stale}" for folder in folders if folder.stale]


def preprocessed_cases(dataset: str, plan: Plan, configuration: str) -> list[str]:
    """Return the cases in a configuration's data folder, sorted. Needs no raw data, which clusters often lack.

    Raises:
        DataError: The configuration is unknown.
    """
    folder = preprocessed_dataset(dataset) / plan.configuration(configuration).data_identifier
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    names = [name.removesuffix(".pkl") for name in present if name.endswith(".pkl")]
    # .npz is the form of nnU-Net's older versions, nnUNetDatasetNumpy.
    return sorted(n for n in names if {f"{n}.b2nd", f"{n}_seg.b2nd"} <= present or f"{n}.npz" in present)


def raw_cases(dataset: str) -> tuple[dict, list[StampedCase]]:
    """Return dataset.json and the training cases, sorted by name.

    Raises:
        DataError: A raw file is missing or not named as nnU-Net expects, or there are none.
    """
    folder = raw_dataset(dataset)
    description = read_dataset_json(folder / "dataset.json")
    listed: Mapping[str, Any] = description.get("dataset") or {}
    cases = sorted(list_cases(folder, description), key=lambda case: case.name)
    return description, [_stamp(case, listed.get(case.name)) for case in cases]


def _stamp(case: RawCase, entry: Mapping[str, Any] | None) -> StampedCase:
    try:
        stats = [os.stat(path) for path in case.files]
    except OSError as error:
        message = f"case {case.name!r} has no readable file {str(error.filename)!r}: {error.strerror}"
        raise DataError(message, "add the file, or take the case out of the dataset") from None
    names = [path.name for path in case.files]
    if entry:  # files of several folders may be called the same
        names = [*entry["images"], *(entry[key] for key in ("label", "mask") if getattr(case, key))]
    stamps = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)]
    return StampedCase(case.name, case.images, case.label, case.mask, stamps=stamps)


def _data_folders(
    dataset: str, plan: Plan, configurations: Sequence[str], description: dict, cases: Sequence[StampedCase], part: Part
) -> list[DataFolder]:
    """Return the data folders of the configurations, each once, with the records of the cases of a part."""
    found: dict[Path, DataFolder] = {}
    for name in configurations:
        path = preprocessed_dataset(dataset) / plan.configuration(name).data_identifier
        if path not in found:
            settings = settings_of(plan, name, description["labels"])
            agreed = {"settings": settings, "dataset": sha256_of_json([case.name for case in cases])}
            shared = Records(path / PARTS, part, agreed)
            found[path] = DataFolder(name, path, settings, *_valid_records(path, settings, part.take(cases)), shared)
    return list(found.values())


def settings_of(plan: Plan, configuration: str, labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that determine the arrays of preprocessed cases, as JSON.

    Args:
        plan: A plan, ours or nnU-Net's.
        configuration: Name of one of its configurations.
        labels: Values by name, from dataset.json.

    Raises:
        DataError: The configuration is unknown.
    """
    planned = plan.configuration(configuration)
    settings: dict[str, Any] = {"nnunetv2": version("nnunetv2"), "labels": labels}
    settings |= {key: plan.get(key) for key in PLAN_SETTINGS}
    settings |= {key: planned.get(key) for key in CONFIGURATION_SETTINGS}
    known = plan.orientations
    foreign = known and plan.orientation not in known and not plan.reader.endswith(REORIENTS)
    if len(known) > 1 or foreign:  # otherwise nothing is turned, except by the reader
        settings["orientation"] = plan.orientation
    # As it is read back from the manifest: tuples become lists.
    return _decisive(json.loads(json.dumps(settings)))


def without_version(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without nnU-Net's version, to be compared: other versions preprocess alike."""
    return {key: value for key, value in settings.items() if key != "nnunetv2"}


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with plain labels, without intensities of channels that are normalised by the image alone."""
    key, schemes = "foreground_intensity_properties_per_channel", settings.get("normalization_schemes") or []
    used = {str(i) for i, scheme in enumerate(schemes) if scheme not in BY_THE_IMAGE}
    known = settings.get(key) or {}
    labels = settings.get("labels")  # older versions stored them unchanged from dataset.json
    plain = {"labels": normalize_labels(labels)} if isinstance(labels, Mapping) else {}
    return {**settings, **plain, key: {channel: values for channel, values in known.items() if channel in used}}


@dataclass(frozen=True)
class Manifest:
    """A data folder's own record: settings, and per case `raw`, `files` and, in current versions, `sha256`."""

    settings: dict[str, Any]
    cases: dict[str, dict[str, Any]]


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a data folder; None if there is none, as in nnU-Net's folders, or none that is readable."""
    path = folder / OWN_FOLDER / "manifest.json"
    if not os.path.lexists(path):
        return None
    try:
        content = read(path, MANIFEST)
    except DataError as error:
        log.warning("warning: %s; it is taken for none", error.message)
        return None
    return Manifest(_decisive(content["settings"]), content["cases"])


def compare_raw(
    record: Mapping[str, Any], case: StampedCase, may_read: Callable[[int], bool] = lambda size: True
) -> str:
    """Determine what happened to the raw files of a case since it was preprocessed.

    Args:
        record: The manifest's record of the case.
        case: The case as it is now.
        may_read: Returns whether a file of this many bytes may be read to compare its content.

    Returns:
        SAME by name, size and modification time; TOUCHED if the content is the same but the time or folder is not, as
        in a copy; CHANGED; or UNKNOWN if only these differ and the content cannot be compared.
    """
    before = [[Path(name).name, size, time] for name, size, time in record["raw"]]
    now = [[Path(name).name, size, time] for name, size, time in case.stamps]
    if [file[:2] for file in before] != [file[:2] for file in now]:
        return CHANGED
    # Earlier versions recorded no folders.
    before = [old if "/" in old[0] else bare for old, bare in zip(record["raw"], before, strict=True)]
    now = [new if "/" in old[0] else bare for old, new, bare in zip(before, case.stamps, now, strict=True)]
    if before == now:
        return SAME
    hashes = record.get("sha256") or []
    if len(hashes) != len(before):
        return UNKNOWN
    for old, new, path, digest in zip(before, now, case.files, hashes, strict=True):
        if old != new:
            if not may_read(new[1]):
                return UNKNOWN
            if cached_sha256_of(path) != digest:
                return CHANGED
    return TOUCHED


def changed_files(folder: Path, manifest: Manifest) -> list[str]:
    """Return the cases for which a written file is missing or its size has changed, sorted."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    return sorted(name for name, record in manifest.cases.items() if not record["files"].items() <= sizes.items())


def _valid_records(folder: Path, settings: dict, cases: Sequence[StampedCase]) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the manifest's records of cases with the same settings, unchanged raw and intact written files.

    Also return why other existing cases are not valid.
    """
    manifest = _with_parts(folder, settings)
    if manifest is None:
        wanted = {case.name for case in cases}
        files = [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []
        there = any(names_case(name) and _cases_of(name) & wanted for name in files)
        return {}, "all cases again: nothing says what those that are there were made from" if there else ""
    if manifest.settings != settings:
        changed = first_few(json_differences(manifest.settings, settings))
        return {}, f"all cases again, which were made with other settings: {changed}" if manifest.cases else ""
    damaged = set(changed_files(folder, manifest))
    valid, again = {}, []
    for case in cases:
        if (record := manifest.cases.get(case.name)) is None:
            continue
        if case.name not in damaged and compare_raw(record, case) in (SAME, TOUCHED):
            # With the times of today, so that the next run need not read the files again.
            valid[case.name] = {**record, "raw": case.stamps}
        else:
            again.append(case.name)
    some = f" (e.g. {again[0]!r})" if again else ""
    return valid, f"{len(again)} cases again{some}, whose raw or preprocessed files have changed" if again else ""


def _with_parts(folder: Path, settings: Mapping[str, Any]) -> Manifest | None:
    """Return the manifest of a data folder with what parts have recorded; what was written last counts."""
    merged = read_manifest(folder)
    written = (folder / OWN_FOLDER / "manifest.json").stat().st_mtime_ns if merged else 0
    times = {path: path.stat().st_mtime_ns for path in (folder / PARTS).glob("part-*.json")}
    manifest = merged
    for path in sorted(times, key=lambda path: (times[path], path.name)):
        if times[path] < written:  # it is in the manifest, or of what has been replaced since
            continue
        try:
            record = read(path, PART)
            cases = {"settings": dict(settings), "cases": record["content"].get("cases", {})}
            check(cases, MANIFEST, path, "run its part again")
        except DataError as error:
            log.warning("warning: %s; it is taken for none", error.message)
            continue
        if record["agreed"].get("settings") == settings:
            known = manifest.cases if manifest and manifest.settings == settings else {}
            manifest = Manifest(dict(settings), {**known, **cases["cases"]})
    return manifest


def _pending(folders: Sequence[DataFolder], cases: Sequence[StampedCase]) -> list[tuple[DataFolder, StampedCase]]:
    return [(folder, case) for folder in folders for case in cases if case.name not in folder.records]


@contextmanager
def _locked(folders: Sequence[Path], part: Part) -> Iterator[None]:
    """Make the folders and hold their locks; the system releases a lock when the process ends, however it ends."""
    with ExitStack() as stack:
        for folder in folders:
            what, hint = f"another run is preprocessing into {str(folder)!r}", "wait until it is done"
            lock = folder / OWN_FOLDER / "lock"
            if not part.is_whole:  # they share the folder, and none is done twice at a time
                stack.enter_context(shared_lock(lock, what, hint))
                lock = lock.with_name(f"lock-part-{part.number}")
            stack.enter_context(exclusive_lock(lock, what, hint))
        yield


def _clear(folder: DataFolder, own: Sequence[StampedCase], names: set[str]) -> None:
    """Remove all files except those of valid cases, and what a killed run left behind; nothing of other parts."""
    _remove_unfinished(folder, own)
    keep = {name for record in folder.records.values() for name in record["files"]}
    others = names - {case.name for case in own}
    stale = [entry.name for entry in os.scandir(folder.path) if entry.is_file() and entry.name not in keep]
    stale = [name for name in stale if not _cases_of(name) & others]
    # First the file by which nnU-Net finds a case.
    for name in sorted(stale, key=names_case, reverse=True):
        (folder.path / name).unlink(missing_ok=True)  # another part may have done so


def _remove_unfinished(folder: DataFolder, own: Sequence[StampedCase]) -> None:
    """Remove what is being written of the cases of a part, after all of its workers have ended."""
    unfinished = folder.path / OWN_FOLDER / "part"
    if folder.shared.part.is_whole:
        shutil.rmtree(unfinished, ignore_errors=True)
        return
    for case in own:
        shutil.rmtree(unfinished / case.name, ignore_errors=True)


def _cases_of(file: str) -> set[str]:
    """Return the cases that a file in a data folder may be of: CASE_seg.b2nd is of CASE, or the image of CASE_seg."""
    name = file.rpartition(".")[0]
    return {name, name.removesuffix("_seg")}


def _record(
    finished: Iterator[Done],
    folders: Sequence[DataFolder],
    cases: Sequence[StampedCase],
    on_case: Callable[[str], None],
) -> None:
    """Record each finished case; the manifests are written about once a second."""
    by_folder = {folder.path: folder for folder in folders}
    raw = {case.name: case.stamps for case in cases}
    saved = time.monotonic()
    for job, files, hashes in finished:
        folder = by_folder[job.folder]
        folder.records[job.case] = {"raw": raw[job.case], "sha256": hashes, "files": files}
        if time.monotonic() - saved > SAVE_INTERVAL_S:
            folder.save()
            saved = time.monotonic()
        on_case(job.case)
