"""Check that preprocessed data were made from what the plan, dataset.json and the raw files hold today.

A data folder has a manifest (dataset.py): the settings that determine what its arrays hold, and per case the raw files
and the written ones. Differences are an error, with the command that resolves them; what cannot be compared, such as
raw files on another machine, is a warning.

Raw files are the same if name, size and modification time are; if only the time differs, as in a copy, or the folder
that dataset.json names, their content is compared.

Imports neither torch nor nnunetv2. provenance.py does the same for trained networks.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from stunet.errors import DataError, first_few
from stunet.files import json_differences
from stunet.kinds import FINGERPRINT as FINGERPRINT_KIND
from stunet.kinds import read, read_dataset_json
from stunet.labels.names import region_values
from stunet.plans.blueprints import STOCK_PLANS, blueprints, of_size
from stunet.plans.files import hash_of_fingerprint
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import (
    CHANGED,
    UNKNOWN,
    Manifest,
    StampedCase,
    changed_files,
    compare_raw,
    preprocessed_cases,
    raw_cases,
    read_manifest,
    settings_of,
    without_version,
)
from stunet.sizes import DEFAULT
from stunet.workspace import dataset_number, preprocessed_dataset

# The keys of dataset.json that say what images and labels mean; the others, such as a licence, may change.
DATASET_KEYS = (
    "labels", "regions_class_order", "channel_names", "modality", "file_ending", "overwrite_image_reader_writer",
)  # fmt: skip
FINGERPRINT = "dataset_fingerprint.json"
READ_BYTES = 2**30  # limit per check for reading raw files whose time has changed: a second or two


def check_data(dataset: str, plan: Plan, configuration: str, subjects: bool = False) -> list[str]:
    """Compare preprocessed data with the plans that they are for, with dataset.json and with the raw files.

    Args:
        dataset: Full name.
        plan: A plan, ours or nnU-Net's.
        configuration: Name of one of its configurations.
        subjects: Whether it matters which scans are of the same subject.

    Returns:
        Warnings about what cannot be compared.

    Raises:
        DataError: Data are missing or made from something else; the message states what, its hint the remedy.
    """
    folder = preprocessed_dataset(dataset) / plan.configuration(configuration).data_identifier
    present = set(preprocessed_cases(dataset, plan, configuration))
    manifest = read_manifest(folder)
    raw, warnings = _raw(dataset)
    replan, redo = repair_commands(dataset, plan, configuration)
    description = read_dataset_json(preprocessed_dataset(dataset) / "dataset.json")
    if raw is not None:
        changed = json_differences(_meaning(description), _meaning(raw[0]))
        if changed:
            raise DataError(f"dataset.json of {dataset} has changed since it was planned: {first_few(changed)}", replan)
        before, now = (_subjects(one, present) for one in (description, raw[0]))
        if subjects and (changed := json_differences(before, now)):
            what = f"dataset.json of {dataset} has changed since it was preprocessed: {first_few(changed)}"
            raise DataError(what, redo)
    _check_complete(dataset, plan, configuration, present, manifest, raw, replan)
    if manifest is None:
        # Without a record, they may be nnU-Net's, which turns nothing.
        if len(plan.orientations) > 1:
            what = f"{plan.name} turns the images of {dataset}, and the data in {str(folder)!r} do not say"
            raise DataError(f"{what} that they were turned", redo)
        what = f"nothing in {str(folder)!r} says what the data there were made from: only their cases are compared"
        return [*warnings, f"{what}; {redo} makes them again, with a record"]
    stale_plan = _stale_plan(dataset, plan)
    settings = settings_of(plan, configuration, description["labels"])
    changed = json_differences(without_version(manifest.settings), without_version(settings))
    if changed:
        what = f"the data in {str(folder)!r} were preprocessed with other settings than those of {plan.name}"
        raise DataError(f"{what}: {first_few(changed)}", replan if stale_plan else redo)
    if damaged := changed_files(folder, manifest):
        what = f"{len(damaged)} cases in {str(folder)!r} are not as they were written (e.g. {damaged[0]!r})"
        raise DataError(what, redo)
    if raw is not None:
        # With the command that plans again, because other raw files may have another fingerprint.
        warnings += _compare_raw(dataset, raw[1], manifest, replan)
    if stale_plan:
        warnings.append(f"{plan.name} was planned from another fingerprint than today's; {replan} plans again")
    return warnings


def check_labels(dataset: str, plan: Plan, configuration: str, cases: Collection[str]) -> None:
    """Check the labels in gt_segmentations against which a validation of these cases will be measured.

    Raises:
        DataError: One is missing, or is not the one that the case was preprocessed with.
    """
    folder = preprocessed_dataset(dataset)
    ending = read_dataset_json(folder / "dataset.json")["file_ending"]
    manifest = read_manifest(folder / plan.configuration(configuration).data_identifier)
    records = manifest.cases if manifest else {}
    labels = folder / "gt_segmentations"
    entries = [*os.scandir(labels)] if labels.is_dir() else []
    sizes = {entry.name: entry.stat() for entry in entries if entry.is_file()}  # no broken links
    _, redo = repair_commands(dataset, plan, configuration)
    files = {case: f"{case}{ending}" for case in sorted(cases)}
    if missing := [case for case in files if files[case] not in sizes]:
        what = f"the labels of {len(missing)} validation cases are not in {str(labels)!r} (e.g. {missing[0]!r})"
        raise DataError(what, redo)
    budget = _Budget()
    for case, name in files.items():
        if (record := records.get(case)) is None:
            continue
        path, stat = labels / name, sizes[name]
        # The label is the last of a case's raw files.
        there = StampedCase(case, (), path, stamps=[[record["raw"][-1][0], stat.st_size, stat.st_mtime_ns]])
        before = {"raw": record["raw"][-1:], "sha256": (record.get("sha256") or [])[-1:]}
        if compare_raw(before, there, budget.takes) == CHANGED:
            raise DataError(f"{str(path)!r} is not the label that {case!r} was preprocessed with", redo)


def repair_commands(dataset: str, plan: Plan, configuration: str) -> tuple[str, str]:
    """Return the command that plans and preprocesses a dataset again, and the one that preprocesses it as planned."""
    number, base = dataset_number(dataset), plan.root
    # Names that our planner gives state the network and the spacing; others say nothing.
    known = blueprints()
    tags = {each.tag: each.option for each in known.values()}
    numbers = r"_(?P<mm>[0-9.]+x[0-9.]+x[0-9.]+)mm"
    start = f"stunet_plan_and_preprocess -d {number} -c {configuration}"
    if plan.like and re.search(r"_like[0-9]+(-|$)", base):
        return f"{start} --like {plan.like}", f"{start} -p {plan.name}"
    if plan.planned_with:
        return f"{start} {plan.planned_with}", f"{start} -p {plan.name}"
    if not plan.is_planned_by_us:
        planner = str(plan.get("experiment_planner_used"))
        named = f" -overwrite_plans_name {base}, with the options of its planning"
        name = "" if base == STOCK_PLANS.get(planner) else named
        command = f"{start} -pl" if planner in STOCK_PLANS else f"nnUNetv2_plan_and_preprocess -d {number} -pl"
        return f"{command} {planner}{name}", f"{start} -p {plan.name}"
    found = re.fullmatch(rf"STUNetPlans_(?P<tag>{'|'.join(tags)})(?:{numbers}|_(?P<kept>median|native))?", base)
    if found is None:
        network = known.get(plan.network or "") or of_size(plan.size or DEFAULT)
        options = f"-overwrite_plans_name {base} {network.option}, with the options of its planning"
    else:
        options = tags[found["tag"]]
        if found["mm"]:
            options += f" -overwrite_target_spacing {found['mm'].replace('x', ' ')}"
        if found["kept"]:
            options += " --spacing " + ("none" if found["kept"] == "native" else "median")
    return f"{start} {options}", f"{start} -p {plan.name}"


class _Budget:
    """Limits how many bytes may still be read."""

    def __init__(self) -> None:
        self.left = READ_BYTES

    def takes(self, size: int) -> bool:
        self.left -= size
        return self.left >= 0


def _raw(dataset: str) -> tuple[tuple[dict, list[StampedCase]] | None, list[str]]:
    """Return dataset.json and the raw cases, if they are on this machine; with a warning if only dataset.json is."""
    root = os.environ.get("nnUNet_raw")
    if not root or not (Path(root) / dataset / "dataset.json").is_file():
        return None, []
    try:
        return raw_cases(dataset), []
    except DataError as error:
        folder = Path(root) / dataset
        # On a machine that only trains, dataset.json may be all that is left: then there is nothing to compare.
        entries = read_dataset_json(folder / "dataset.json").get("dataset")
        listed = [os.path.expandvars(file) for entry in (entries or {}).values() for file in entry["images"]]
        if any((folder / file).exists() for file in listed) or (entries is None and any(folder.glob("imagesTr/*"))):
            raise
        return None, [f"the raw files of {dataset} are not on this machine, and not compared: {error.message}"]


def _check_complete(
    dataset: str,
    plan: Plan,
    configuration: str,
    present: set[str],
    manifest: Manifest | None,
    raw: tuple[dict, list[StampedCase]] | None,
    hint: str,
) -> None:
    """Raise an error if cases are missing, or if there are cases that the dataset does not have."""
    wanted = set(manifest.cases) if manifest else set()
    if raw is not None:
        wanted = {case.name for case in raw[1]}
    missing, extra = sorted(wanted - present), sorted(present - wanted)
    if not present or missing:
        state = f"{len(missing)} cases are missing (e.g. {missing[0]!r})" if present else "no case is there"
        raise DataError(f"{dataset} is not preprocessed for {configuration} with {plan.name}: {state}", hint)
    if extra and raw is not None:
        what = f"{len(extra)} cases are preprocessed that {dataset} does not have any more (e.g. {extra[0]!r})"
        raise DataError(what, hint)


def _compare_raw(dataset: str, cases: Iterable[StampedCase], manifest: Manifest, hint: str) -> list[str]:
    """Raise an error if raw files have changed; return a warning if that is unknown."""
    budget = _Budget()
    found = {
        case.name: compare_raw(manifest.cases[case.name], case, budget.takes)
        for case in cases
        if case.name in manifest.cases
    }
    if changed := [name for name, state in found.items() if state == CHANGED]:
        what = f"the raw files of {len(changed)} cases of {dataset} have changed since they were preprocessed"
        raise DataError(f"{what} (e.g. {changed[0]!r})", hint)
    if unknown := [name for name, state in found.items() if state == UNKNOWN]:
        what = f"the raw files of {len(unknown)} cases have another time of change (e.g. {unknown[0]!r})"
        return [f"{what} or folder, the same size, and are taken for unchanged; {hint} compares them"]
    return []


def _stale_plan(dataset: str, plan: Plan) -> bool:
    """Return whether the plans state that they were made from a fingerprint other than the current one."""
    planned, path = plan.fingerprint, preprocessed_dataset(dataset) / FINGERPRINT
    return planned is not None and path.is_file() and hash_of_fingerprint(read(path, FINGERPRINT_KIND)) != planned


def _subjects(description: Mapping[str, Any], cases: Collection[str]) -> dict[str, Any]:
    """Return of which subject cases are, as far as a dataset.json tells; other entries may be somebody else's."""
    given = description.get("subjects")
    return {"subjects": {case: given[case] for case in cases if case in given} if isinstance(given, Mapping) else {}}


def _meaning(description: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: description[key] for key in DATASET_KEYS if key in description}, **region_values(description)}
