"""Write what a prediction leaves behind: whole files, in the requested labels, and a record of what made them.

The record is stored under the key `stunet` in the settings file that nnU-Net also writes. predictor.py calls this.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stunet.errors import DataError
from stunet.files import NAME_MAX, read_json, remove, shortened, staging_name, write_json
from stunet.inference.cases import InputCase
from stunet.nifti import check_nifti
from stunet.plans.plan import Plan

SETTINGS = "predict_from_raw_data_args.json"  # nnU-Net's name
LONGEST_CASE = 200  # bytes of a case's name in temporary names, which also have two .part-PID- prefixes and an ending


@contextmanager
def whole_case(folder: Path, name: str, endings: Sequence[str]) -> Iterator[str]:
    """Yield a temporary path without ending; what the block writes there gets its final names, in this order.

    The block may change `endings` if it cannot write one of them.

    Raises:
        OSError: A segmentation came out truncated, which ITK does not report: the disk is full.
    """
    part, all_endings = folder / part_of_case(name), list(endings)
    try:
        yield str(part)
        for ending in endings:
            try:
                check_nifti(Path(f"{part}{ending}"))
            except DataError:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / f"{name}{ending}")) from None
        for ending in endings:
            os.replace(f"{part}{ending}", folder / f"{name}{ending}")
    finally:
        for ending in {*endings, *all_endings}:
            remove(Path(f"{part}{ending}"))


def part_of_case(name: str) -> str:
    """Return the temporary name of a case while this process works on it; endings are appended to it."""
    return staging_name(name, LONGEST_CASE)


def too_long(name: str, endings: Sequence[str]) -> DataError | None:
    """Return an error for a case whose results would have names longer than any file system accepts."""
    length = max(len(os.fsencode(f"{name}{ending}")) for ending in endings)
    if length <= NAME_MAX:
        return None
    what = f"the results of case {name!r} would have names of {length} bytes, and at most {NAME_MAX} are possible"
    return DataError(what, "rename the image")


def endings_of_case(name: str, endings: Sequence[str]) -> set[str]:
    """Return how temporary files of a case end: its name, as in part_of_case(), followed by one of `endings`."""
    return {f"{shortened(name, LONGEST_CASE)}{ending}" for ending in endings}


def write_record(
    folder: Path, settings: Mapping[str, Any], made_by: Mapping[str, Any], dataset: Mapping[str, Any], plan: Plan
) -> None:
    """Write the three files that nnU-Net leaves next to its predictions; its post-processing reads them.

    Args:
        folder: Folder of the results.
        settings: nnU-Net's own settings.
        made_by: What determines the results, as in Predictor.made_by.
        dataset: dataset.json, with the labels of the results.
        plan: The model's plan.
    """
    write_json(folder / SETTINGS, {**settings, "stunet": made_by})
    write_json(folder / "dataset.json", dataset)
    write_json(folder / "plans.json", plan.content)


def check_free(folder: Path) -> None:
    """Raise a DataError if write_record() would replace a dataset.json that no prediction wrote (a dataset's, say)."""
    if (folder / "dataset.json").is_file() and not (folder / SETTINGS).is_file():
        what = f"{str(folder)!r} holds a dataset.json that no prediction wrote, and that this one would replace"
        raise DataError(what, "another folder with -o")


def write_source(folder: Path, case: InputCase) -> None:
    """Record what the results of a case were made from."""
    path = _source(folder, case)
    path.parent.mkdir(exist_ok=True)
    write_json(path, case.fingerprint())


def remove_source(folder: Path, case: InputCase) -> None:
    """Remove the record of a case's source, before its results are replaced."""
    _source(folder, case).unlink(missing_ok=True)


def has_other_source(folder: Path, case: InputCase, result: Path) -> bool:
    """Return whether a result was made from other files than the case has now; without a record, if it is older."""
    path = _source(folder, case)
    try:
        return bool(read_json(path) != case.fingerprint())
    except DataError:
        return case.changed_ns() > result.stat().st_mtime_ns


def _source(folder: Path, case: InputCase) -> Path:
    return folder / ".stunet" / f"{case.name}.json"


def check_record(folder: Path, made_by: Mapping[str, Any], kept: bool) -> None:
    """Check that results that stay in a folder were made by the same model and options as the new ones.

    Args:
        folder: Folder of the results.
        made_by: As for write_record().
        kept: Whether some of them are kept as results of this run: if so, a record must exist.

    Raises:
        DataError: They were made by something else, or there is no record of what made them.
    """
    path, hint = folder / SETTINGS, f"another folder with -o, or remove what is in {str(folder)!r}"
    content = read_json(path) if path.is_file() else None
    before = content.get("stunet") if isinstance(content, dict) else None
    if isinstance(before, dict):
        changed = sorted(key for key in {*before, *made_by} if before.get(key) != made_by.get(key))
        if changed:
            raise DataError(f"the results in {str(folder)!r} were made with other {', '.join(changed)}", hint)
    elif kept:
        raise DataError(f"nothing in {str(folder)!r} says which model made the results there", hint)
