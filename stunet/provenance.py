"""Check what preprocessed data and trained networks were made from, against what is requested now.

A data folder has a manifest (preprocessing/dataset.py): the settings that determine what its arrays hold, and per case
the raw files and the written ones. A checkpoint records the fold, the cases and the labels that it was trained with.
Both are compared with the plans, dataset.json, splits_final.json, and the raw files if they are on this machine.
Differences are reported as an error, with the command that resolves them; what cannot be compared is a warning.

Raw files are the same if name, size and modification time are; if only the time differs, as in a copy, their content is
compared.

Imports neither torch nor nnunetv2. Read next: folds.py; runs/readiness.py and trainers/checkpoint.py use this module.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from stunet.errors import DataError, WeightsError, first_few
from stunet.files import json_differences
from stunet.folds import ALL, FILE, MADE, Fold, check_fold, chosen, read_folds
from stunet.kinds import FINGERPRINT as FINGERPRINT_KIND
from stunet.kinds import RUN_RECORD, normalize_labels, read, read_dataset_json
from stunet.labels.names import head_classes
from stunet.plans.files import read_plan
from stunet.plans.plan import Plan, hash_of_fingerprint
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
)
from stunet.sizes import DEFAULT, SIZES
from stunet.workspace import dataset_number, preprocessed_dataset

RECORD = "made_from.json"  # in the folder of a fold
MEANING = ("labels", "regions_class_order", "channel_names", "modality", "file_ending", "overwrite_image_reader_writer")
FINGERPRINT = "dataset_fingerprint.json"
READ_BYTES = 2**30  # limit per check for reading raw files whose time has changed: a second or two
HASH_LENGTH = 16  # characters of the SHA-256 that are kept in checkpoints
OF_THE_INPUT = (  # the settings that determine what the network's input values mean
    "spacing", "transpose_forward", "normalization_schemes", "use_mask_for_norm", "orientation",
    "foreground_intensity_properties_per_channel",
)  # fmt: skip


def check_data(dataset: str, plan: Plan, configuration: str) -> list[str]:
    """Compare preprocessed data with the plans that they are for, with dataset.json and with the raw files.

    Args:
        dataset: Full name.
        plan: A plan, ours or nnU-Net's.
        configuration: Name of one of its configurations.

    Returns:
        Warnings about what cannot be compared.

    Raises:
        DataError: Data are missing or made from something else; the message states what, its hint the remedy.
    """
    folder = preprocessed_dataset(dataset) / plan.configuration(configuration).data_identifier
    present = set(preprocessed_cases(dataset, plan, configuration))
    manifest = read_manifest(folder)
    raw, warnings = _raw(dataset)
    replan, redo = commands(dataset, plan, configuration)
    description = read_dataset_json(preprocessed_dataset(dataset) / "dataset.json")
    if raw is not None:
        changed = json_differences(_meaning(description), _meaning(raw[0]))
        if changed:
            raise DataError(f"dataset.json of {dataset} has changed since it was planned: {first_few(changed)}", replan)
    _check_complete(dataset, plan, configuration, present, manifest, raw, replan)
    if manifest is None:
        if len(plan.orientations) > 1:
            what = f"{plan.name} turns the images of {dataset}, and the data in {str(folder)!r} do not say"
            raise DataError(f"{what} that they were turned", redo)
        what = f"nothing in {str(folder)!r} says what the data there were made from: only their cases are compared"
        return [*warnings, f"{what}; {redo} makes them again, with a record"]
    stale_plan = _stale_plan(dataset, plan)
    settings = settings_of(plan, configuration, description["labels"])
    changed = json_differences(_without_version(manifest.settings), _without_version(settings))
    if changed:
        what = f"the data in {str(folder)!r} were preprocessed with other settings than those of {plan.name}"
        raise DataError(f"{what}: {first_few(changed)}", replan if stale_plan else redo)
    if damaged := changed_files(folder, manifest):
        what = f"{len(damaged)} cases in {str(folder)!r} are not as they were written (e.g. {damaged[0]!r})"
        raise DataError(what, redo)
    if raw is not None:
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
    _, redo = commands(dataset, plan, configuration)
    files = {case: f"{case}{ending}" for case in sorted(cases)}
    if missing := [case for case in files if files[case] not in sizes]:
        what = f"the labels of {len(missing)} validation cases are not in {str(labels)!r} (e.g. {missing[0]!r})"
        raise DataError(what, redo)
    budget = _Budget()
    for case, name in files.items():
        if (record := records.get(case)) is None:
            continue
        path, stat = labels / name, sizes[name]
        there = StampedCase(case, (), path, [[record["raw"][-1][0], stat.st_size, stat.st_mtime_ns]])
        before = {"raw": record["raw"][-1:], "sha256": (record.get("sha256") or [])[-1:]}
        if compare_raw(before, there, budget.takes) == CHANGED:
            raise DataError(f"{str(path)!r} is not the label that {case!r} was preprocessed with", redo)


def fold_of(dataset: str, plan: Plan, configuration: str, fold: int | str) -> Fold | None:
    """Return the cases of a fold of a preprocessed dataset; None if nnU-Net has not made the folds yet.

    Raises:
        DataError: The fold cannot be trained, or there are too few cases to make folds.
    """
    cases = preprocessed_cases(dataset, plan, configuration)
    path = preprocessed_dataset(dataset) / FILE
    if fold == ALL:
        return Fold(tuple(cases), tuple(cases))
    everything = f"stunet_train {dataset_number(dataset)} {configuration} {ALL} -p {plan.name}"
    if not path.is_file():
        if len(cases) < MADE:
            what = f"{dataset} has {len(cases)} cases, too few for the {MADE} folds that nnU-Net makes"
            raise DataError(what, f"{everything}, or write folds of your own into {path}")
        if int(fold) >= MADE:
            raise DataError(f"there is no fold {fold}: nnU-Net makes {MADE}, 0 to {MADE - 1}", "one of these, or 'all'")
        return None
    found = check_fold(read_folds(path), int(fold), frozenset(cases), path)
    return Fold(tuple(chosen(found.train, plan.train.num_cases, plan.train.seed, fold)), found.val)


def left_out(dataset: str, plan: Plan, configuration: str) -> list[str]:
    """Return the preprocessed cases in no fold of splits_final.json, which was apparently made without them."""
    path = preprocessed_dataset(dataset) / FILE
    if not path.is_file():
        return []
    named = {name for fold in read_folds(path) for name in (*fold.train, *fold.val)}
    return sorted(set(preprocessed_cases(dataset, plan, configuration)) - named)


def trained_with(dataset: str, plan: Plan, configuration: str, fold: int | str, cases: Fold) -> dict[str, Any]:
    """Return the record of a run, as JSON: its fold and cases, and sizes and hashes of each case's raw files."""
    folder = preprocessed_dataset(dataset) / plan.configuration(configuration).data_identifier
    manifest = read_manifest(folder)
    records = manifest.cases if manifest else {}
    names = sorted({*cases.train, *cases.val} & records.keys())
    return {
        "dataset": dataset,
        "configuration": configuration,
        "fold": fold,
        "train": list(map(str, cases.train)),
        "val": list(map(str, cases.val)),
        "made_from": {name: _content(records[name]) for name in names},
    }


def check_run(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any], goes_on: bool) -> list[str]:
    """Compare what a network was trained with to what its run would use now.

    Args:
        name: Name of the checkpoint or result, for messages.
        before: Its record; None in those of earlier versions.
        now: trained_with() as of today.
        goes_on: Whether training continues; otherwise the network is only validated, and its result must be for cases
            that it has not seen.

    Returns:
        Warnings about what is different but harmless, or cannot be compared.

    Raises:
        DataError: It was trained with other cases or other data.
    """
    if before is None:
        return [f"{name} does not say which cases it was trained with: whether they are those of {FILE} is not known"]
    where = f"fold {now['fold']} of {FILE}" if now["fold"] != ALL else "the preprocessed dataset"
    seen, validated = set(before["train"]), set(now["val"])
    if now["fold"] != ALL and (both := sorted(seen & validated)):
        what = f"{name} was trained with {len(both)} cases that {where} validates with (e.g. {both[0]!r})"
        raise DataError(
            what,
            f"put {FILE} back as it was ({RECORD} in the folder of the fold has it), or train anew with --overwrite",
        )
    changed = [_changed(kind, before[kind], now[kind]) for kind in ("train", "val")]
    if changed[0] and goes_on:
        what = f"{name} was trained with other cases than {where} has: {changed[0]}"
        raise DataError(
            what,
            f"put {FILE} back as it was ({RECORD} in the folder of the fold has it), or train anew with --overwrite",
        )
    other = _other_content(before, now)
    if other and goes_on:
        what = f"{name} was trained with other raw files of {len(other)} cases (e.g. {other[0]!r})"
        raise DataError(what, "bring these files back and preprocess again, or --overwrite to train with today's")
    warnings = [f"{name} was made with other cases than {where} has: {text}" for text in changed if text]
    if other:
        warnings.append(f"{name} was made with other raw files of {len(other)} cases (e.g. {other[0]!r})")
    return warnings


def continued(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a continued run: the training cases are those it has seen, validation is today's."""
    return {**now, "train": before["train"], "made_from": {**now["made_from"], **before["made_from"]}}


def check_checkpoint(
    name: str,
    arguments: Mapping[str, Any],
    fold: int | str,
    dataset_json: Mapping[str, Any],
) -> None:
    """Compare what every nnU-Net checkpoint records about itself with the run that loads it.

    Args:
        name: Name of the checkpoint, for messages.
        arguments: Its `init_args`.
        fold: The run's fold.
        dataset_json: The dataset.json of the run's model.

    Raises:
        WeightsError: It is from another fold, or has other labels or channels.
    """
    of = arguments.get("fold")
    if of is not None and str(of) != str(fold):
        hint = f"put the checkpoint of fold {fold} back, or train it: --overwrite"
        raise WeightsError(f"{name} is of fold {of}, not of fold {fold}", hint)
    before = _plain(arguments.get("dataset_json"))
    if before and (changed := json_differences(_labels(before), _labels(dataset_json))):
        hint = "put dataset.json back as it was, or --overwrite to train anew"
        raise WeightsError(f"{name} was trained with another dataset.json: {first_few(changed)}", hint)


def check_trained(
    path: Path,
    arguments: Mapping[str, Any],
    plan: Plan,
    configuration: str,
    fold: int | str,
    dataset_json: Mapping[str, Any],
) -> list[str]:
    """Compare what a checkpoint was trained with to the plans.json and dataset.json that it predicts with.

    Every training of a fold rewrites these two files: a fold that was trained before its dataset was planned again
    would get images with another spacing.

    Args:
        path: Path of the checkpoint.
        arguments: Its `init_args`; what is missing there is not compared.
        plan: That of the model folder.
        configuration: Name of one of its configurations.
        fold: According to the folder of the checkpoint.
        dataset_json: That of the model folder.

    Returns:
        Warnings: another fold, other names of the same classes.

    Raises:
        WeightsError: Other settings of preprocessing, or other values of labels.
    """
    warnings = []
    if (of := arguments.get("fold")) is not None and str(of) != str(fold):
        warnings.append(f"{str(path)!r} was trained as fold {of}")
    hint = "predict with the folds of one training (-f), and train the others again"
    content = arguments.get("plans")
    before = Plan(content if isinstance(content, Mapping) else {})
    if configuration in before.configurations:
        one, other = (_without_version(settings_of(x, configuration, {})) for x in (before, plan))
        if changed := json_differences(one, other):
            what = f"{str(path)!r} was trained on data of other settings than plans.json says: {first_few(changed)}"
            if any(json_differences(one.get(key), other.get(key)) for key in OF_THE_INPUT):
                raise WeightsError(what, hint)
            warnings.append(what)  # edited by hand, to read or resample images in another way
    if before.orientation and plan.orientation and before.orientation != plan.orientation:
        what = f"{str(path)!r} was trained on images turned to {before.orientation}, and plans.json says "
        what += plan.orientation
        raise WeightsError(what, hint)
    known = _plain(arguments.get("dataset_json"))
    labels = known.get("labels")
    if labels is not None and (changed := json_differences(labels, dict(dataset_json["labels"]))):
        what = f"{str(path)!r} was trained with other labels than dataset.json says: {first_few(changed)}"
        if not _renamed(labels, dataset_json["labels"]):
            raise WeightsError(what, hint)
        warnings.append(what)
    if rows := _rows(known):
        one = {**rows, "order": known.get("regions_class_order")}
        other = {**_rows(dataset_json), "order": dataset_json.get("regions_class_order")}
        if changed := json_differences(one, other):
            what = (
                f"{str(path)!r} was trained with another order of regions than dataset.json has: {first_few(changed)}"
            )
            raise WeightsError(what, hint)
    return warnings


def check_result(folder: Path) -> list[str]:
    """Return what has changed since a fold's result was made, as reasons why it is not one for today's data.

    Args:
        folder: RESULT/fold_X, with the record of its training.
    """
    if not (folder / RECORD).is_file():
        return []
    before = read(folder / RECORD, RUN_RECORD)
    plan = read_plan(folder.parent / "plans.json")
    dataset, configuration, fold = (before[key] for key in ("dataset", "configuration", "fold"))
    try:
        cases = fold_of(dataset, plan, configuration, fold)
    except DataError as error:
        return [error.message]
    if cases is None:
        return []
    manifest = read_manifest(preprocessed_dataset(dataset) / plan.configuration(configuration).data_identifier)
    labels = read_dataset_json(preprocessed_dataset(dataset) / "dataset.json")["labels"]
    one, other = settings_of(plan, configuration, labels), manifest.settings if manifest else None
    if other and (changed := json_differences(_without_version(one), _without_version(other))):
        return [f"{str(folder)!r} was trained on data of other settings than today's: {first_few(changed)}"]
    try:
        return check_run(repr(str(folder)), before, trained_with(dataset, plan, configuration, fold, cases), False)
    except DataError as error:
        return [error.message]


def commands(dataset: str, plan: Plan, configuration: str) -> tuple[str, str]:
    """Return the command that plans and preprocesses a dataset again, and the one that preprocesses it as planned."""
    number, base = dataset_number(dataset), plan.root
    found = re.fullmatch(rf"STUNetPlans_({'|'.join(SIZES)})(?:_([0-9.]+)x([0-9.]+)x([0-9.]+)mm)?", base)
    if found is None:
        size = plan.size if plan.states("size") else DEFAULT
        options = f"-overwrite_plans_name {base} --size {size}, with the options of its planning"
    else:
        spacing = " ".join(found.groups()[1:]) if found[2] else ""
        options = f"--size {found[1]}" + (f" -overwrite_target_spacing {spacing}" if spacing else "")
    start = f"stunet_plan_and_preprocess -d {number} -c {configuration}"
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
        what = f"the raw files of {len(unknown)} cases have another time of change (e.g. {unknown[0]!r}), the same size"
        return [f"{what}, and are taken for unchanged; {hint} compares them"]
    return []


def _stale_plan(dataset: str, plan: Plan) -> bool:
    """Return whether the plans state that they were made from a fingerprint other than the current one."""
    planned, path = plan.fingerprint, preprocessed_dataset(dataset) / FINGERPRINT
    return planned is not None and path.is_file() and hash_of_fingerprint(read(path, FINGERPRINT_KIND)) != planned


def _meaning(description: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: description[key] for key in MEANING if key in description}, **_rows(description)}


def _renamed(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether the labels have the same values under other names, and no name has another value."""
    one, other = ({name: str(_listed(value)) for name, value in labels.items()} for labels in (before, now))
    return sorted(one.values()) == sorted(other.values()) and all(
        other.get(n, value) == value for n, value in one.items()
    )


def _plain(description: Any) -> dict[str, Any]:
    """Return a dataset.json from a checkpoint in the form in which files are read; empty if it is not one."""
    if not isinstance(description, Mapping) or not isinstance(description.get("labels"), Mapping):
        return {}
    return {**description, "labels": normalize_labels(description["labels"])}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _rows(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a region head's rows, in the order of the network; nothing without regions."""
    labels = description.get("labels") or {}
    rows = [_listed(labels[name]) for name in head_classes(labels)]
    return {"rows": rows} if any(len(values) > 1 for values in rows) else {}


def _labels(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return labels and channels, as the network has them."""
    return {**{key: description.get(key) for key in MEANING[:4]}, **_rows(description)}


def _without_version(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "nnunetv2"}


def _content(record: Mapping[str, Any]) -> list[list[Any]]:
    """Return size and hash (None if unknown) of each raw file of a case."""
    hashes = record.get("sha256") or [None] * len(record["raw"])
    return [[file[1], digest and digest[:HASH_LENGTH]] for file, digest in zip(record["raw"], hashes, strict=True)]


def _other_content(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return cases of both records that were made from other files; what is unknown about a file is not compared."""

    def differ(one: list[list[Any]], other: list[list[Any]]) -> bool:
        pairs = zip(one, other, strict=False)
        return len(one) != len(other) or any(a[0] != b[0] or (a[1] and b[1] and a[1] != b[1]) for a, b in pairs)

    one, other = before["made_from"], now["made_from"]
    return [name for name in sorted(one.keys() & other.keys()) if differ(one[name], other[name])]


def _changed(kind: str, before: Iterable[str], now: Iterable[str]) -> str:
    """Return in a few words which cases of a part of the fold were removed and added."""
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    texts = [f"{len(names)} {word} (e.g. {names[0]!r})" for names, word in ((gone, "gone"), (new, "new")) if names]
    return f"{kind}: {', '.join(texts)}" if texts else ""
