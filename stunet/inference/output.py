"""What does a prediction leave behind? Whole files, in the labels asked for, and beside them what made them.

The record stands in the settings file that nnU-Net writes too, under the key `stunet`. predictor.py calls this.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stunet.errors import DataError
from stunet.files import NAME_MAX, part_name, read_json, remove, shortened, write_json
from stunet.inference.cases import Case
from stunet.nifti import check_nifti

SETTINGS = "predict_from_raw_data_args.json"  # nnU-Net's name
LONGEST_CASE = 200  # bytes of a case's name in temporary names, which have two prefixes of .part-PID- and an ending


@contextmanager
def whole_case(folder: Path, name: str, endings: Sequence[str]) -> Iterator[str]:
    """Yields a temporary path without ending; what the block writes there takes its final names, in this order.

    The block may change `endings` when it cannot write one of them.

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
    """The temporary name of a case while this process works on it; endings come behind it."""
    return part_name(name, LONGEST_CASE)


def too_long(name: str, endings: Sequence[str]) -> DataError | None:
    """What is wrong with a case whose results would have names that no file system takes."""
    length = max(len(os.fsencode(f"{name}{ending}")) for ending in endings)
    if length <= NAME_MAX:
        return None
    what = f"the results of case {name!r} would have names of {length} bytes, and at most {NAME_MAX} are possible"
    return DataError(what, "rename the image")


def endings_of_case(name: str, endings: Sequence[str]) -> set[str]:
    """How the temporary files of a case end: its name, as part_of_case() has it, and one of `endings`."""
    return {f"{shortened(name, LONGEST_CASE)}{ending}" for ending in endings}


def write_record(
    folder: Path, settings: Mapping[str, Any], made_by: Mapping[str, Any], dataset: Mapping[str, Any], plans: Any
) -> None:
    """Writes the three files that nnU-Net leaves beside its predictions; its post-processing reads them.

    Args:
        folder: Of the results.
        settings: nnU-Net's own.
        made_by: What decides the results, as Predictor.made_by has it.
        dataset: dataset.json, with the labels of the results.
        plans: Of the model.
    """
    write_json(folder / SETTINGS, {**settings, "stunet": made_by})
    write_json(folder / "dataset.json", dataset)
    write_json(folder / "plans.json", plans)


def check_free(folder: Path) -> None:
    """Raises a DataError where write_record() would replace the dataset.json of somebody else: of a dataset, say."""
    if (folder / "dataset.json").is_file() and not (folder / SETTINGS).is_file():
        what = f"{str(folder)!r} holds a dataset.json that no prediction wrote, and that this one would replace"
        raise DataError(what, "another folder with -o")


def write_source(folder: Path, case: Case) -> None:
    """Records what the results of a case were made from."""
    path = _source(folder, case)
    path.parent.mkdir(exist_ok=True)
    write_json(path, case.made_from())


def remove_source(folder: Path, case: Case) -> None:
    """Forgets it, before the results are replaced."""
    _source(folder, case).unlink(missing_ok=True)


def has_other_source(folder: Path, case: Case, result: Path) -> bool:
    """Whether a result was made from other files than the case has now; without a record, whether it is older."""
    path = _source(folder, case)
    try:
        return bool(read_json(path) != case.made_from())
    except DataError:
        return case.changed_ns() > result.stat().st_mtime_ns


def _source(folder: Path, case: Case) -> Path:
    return folder / ".stunet" / f"{case.name}.json"


def check_record(folder: Path, made_by: Mapping[str, Any], kept: bool) -> None:
    """Sees that results that stay in a folder were made by what makes those to come.

    Args:
        folder: Of the results.
        made_by: As for write_record.
        kept: Whether some of them are kept as results of this run: then a record must be there.

    Raises:
        DataError: They were made by something else, or nothing says by what.
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
