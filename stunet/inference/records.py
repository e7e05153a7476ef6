"""Record what made the results in a folder, and whether results that are there were made from the same.

The record of a run is stored under the key `stunet` in the settings file that nnU-Net also writes; that of a case, with
the files it was made from, in a hidden folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stunet.errors import DataError
from stunet.files import read_json, write_json
from stunet.inference.cases import InputCase
from stunet.kinds import PART, read
from stunet.plans.plan import Plan

SETTINGS = "predict_from_raw_data_args.json"  # nnU-Net's name
CASES = ".stunet"  # folder with a record per case
PARTS = f"{CASES}/parts"  # with those of the parts of a run, if it had any (parts.py)


def write_run_record(
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


def check_folder_is_free(folder: Path) -> None:
    """Raise a DataError if write_run_record() would replace a dataset.json that no prediction wrote."""
    if (folder / "dataset.json").is_file() and not (folder / SETTINGS).is_file():
        what = f"{str(folder)!r} holds a dataset.json that no prediction wrote, and that this one would replace"
        raise DataError(what, "another folder with -o")


def write_case_record(folder: Path, case: InputCase) -> None:
    """Record what the results of a case were made from."""
    path = _case_record(folder, case)
    path.parent.mkdir(exist_ok=True)
    write_json(path, case.fingerprint())


def remove_case_record(folder: Path, case: InputCase) -> None:
    """Remove the record of a case's source, before its results are replaced."""
    _case_record(folder, case).unlink(missing_ok=True)


def is_stale(folder: Path, case: InputCase, result: Path) -> bool:
    """Return whether a result was made from other files than the case has now; without a record, if it is older."""
    path = _case_record(folder, case)
    try:
        # Fingerprints are lists, because JSON has no tuples to compare with.
        return bool(read_json(path) != case.fingerprint())
    except DataError:
        return case.changed_ns() > result.stat().st_mtime_ns


def _case_record(folder: Path, case: InputCase) -> Path:
    return folder / CASES / f"{case.name}.json"


def check_run_record(folder: Path, made_by: Mapping[str, Any], kept: bool) -> None:
    """Check that results that stay in a folder were made by the same model and options as the new ones.

    Args:
        folder: Folder of the results.
        made_by: As for write_run_record().
        kept: Whether some of them are kept as results of this run: if so, a record must exist.

    Raises:
        DataError: They were made by something else, or there is no record of what made them.
    """
    hint = f"another folder with -o, or remove what is in {str(folder)!r}"
    recorded = _recorded(folder)
    for before in recorded:
        changed = sorted(key for key in {*before, *made_by} if before.get(key) != made_by.get(key))
        if changed:
            raise DataError(f"the results in {str(folder)!r} were made with other {', '.join(changed)}", hint)
    if kept and not recorded:
        raise DataError(f"nothing in {str(folder)!r} says which model made the results there", hint)


def _recorded(folder: Path) -> list[Mapping[str, Any]]:
    """Return what made the results in a folder, as recorded by a run, and by parts that may not be finished."""
    path = folder / SETTINGS
    content = read_json(path) if path.is_file() else None
    found = [content.get("stunet")] if isinstance(content, dict) else []
    for path in sorted((folder / PARTS).glob("part-*.json")):
        found.append(read(path, PART)["agreed"].get("made_by"))
    return [each for each in found if isinstance(each, dict)]
