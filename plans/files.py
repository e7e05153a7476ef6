"""Find and read the plans of a preprocessed dataset. Imports neither torch nor nnunetv2."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stunet.errors import DataError, closest
from stunet.files import read_json, sha256_of_json
from stunet.kinds import HINT, read
from stunet.plans.plan import Plan
from stunet.plans.schema import PLANS
from stunet.workspace import dataset_number, preprocessed_dataset

OTHERS = {"dataset", "dataset_fingerprint", "splits_final"}  # JSON files in the same folder that are never plans
log = logging.getLogger("stunet")


def read_plan(path: Path, hint: str = HINT) -> Plan:
    """Read a plans file, of ours or of another program; check.py tells whether it is consistent.

    Raises:
        DataError: Something in it is wrong; the message states where.
    """
    return Plan(read(path, PLANS, hint))


def read_dataset_plan(path: Path) -> Plan:
    """Read the plans file of a preprocessed dataset: one whose data and results nnU-Net will look for where we do.

    Raises:
        DataError: Something in it is wrong, or it is a copy that still has another dataset's name or other plans'.
    """
    plan, dataset = read_plan(path), path.parent.name
    if plan.dataset_name not in ("", dataset):
        raise DataError(
            f"{str(path)!r} are plans of {plan.dataset_name}: its data would be taken, and its results replaced",
            "nnUNetv2_move_plans_between_datasets, which adapts the names in a copy",
        )
    if plan.name not in ("", path.stem) and path.with_name(f"{plan.name}.json").is_file():
        raise DataError(
            f"{str(path)!r} has the plans_name {plan.name!r}, as {plan.name}.json has: their results would be mixed",
            f'"plans_name": "{path.stem}" in it',
        )
    return plan


def list_plans(dataset: str) -> list[str]:
    """Return the names of all plans for a dataset, ours and those of nnU-Net's planners, sorted."""
    return sorted(_plans(dataset))


def list_planned(dataset: str) -> list[str]:
    """Return the names of our plans for a dataset that were planned, not derived from another one."""
    return sorted(name for name, plan in _plans(dataset).items() if plan.is_ours and not plan.is_derived)


def plan_path(dataset: str, name: str | None = None) -> Path:
    """Return the path of the plans file called `name`, or of the dataset's only one that was planned.

    Raises:
        DataError: There is no such plan, or several and no name was given.
    """
    number = dataset_number(dataset)
    if name is None:
        base = list_planned(dataset)
        if len(base) > 1:
            raise DataError(f"{dataset} has {len(base)} plans: {', '.join(base)}", f"add -p {base[0]}")
        if not base:
            stock = sorted(name for name, plan in _plans(dataset).items() if not plan.is_ours)
            others = [f"-p {name} for those of nnU-Net's planner, or " for name in stock[:1]]
            raise DataError(
                f"no plans {'of stunet ' if others else ''}for {dataset} in {str(preprocessed_dataset(dataset))!r}",
                f"{''.join(others)}stunet_plan_and_preprocess -d {number}",
            )
        name = base[0]
    path = preprocessed_dataset(dataset) / f"{name}.json"
    if not path.is_file():
        raise DataError(
            f"no plans {name!r} for {dataset}{closest(name, list_plans(dataset))}",
            f"stunet_plan_and_preprocess -d {number}",
        )
    return path


def hash_of_fingerprint(content: Mapping[str, Any]) -> str:
    """Return the hash that a plan stores of its dataset_fingerprint.json; our own keys in that are left out."""
    # They hold sizes and times of the files, which a mere copy changes although the statistics stay the same.
    own = {key: value for key, value in content.items() if not key.startswith("stunet")}
    return sha256_of_json(own)[:16]


def _plans(dataset: str) -> dict[str, Plan]:
    """Return the plans for a dataset by the names of their files; nothing in them has been checked."""
    files = [path for path in preprocessed_dataset(dataset).glob("*.json") if path.stem not in OTHERS]
    # Hidden files, such as macOS's ._NAME.json, are ignored everywhere.
    contents = {path.stem: _content(path) for path in files if not path.name.startswith(".")}
    plans = {name: Plan(content) for name, content in contents.items() if isinstance(content, dict)}
    return {name: plan for name, plan in plans.items() if plan.is_ours or plan.get("configurations")}


def _content(path: Path) -> Any:
    """Return the content of a file that may be plans; an unrelated note next to them must not stop anything."""
    try:
        return read_json(path)
    except DataError as error:
        log.warning("warning: passed over: %s", error.message)
        return None
