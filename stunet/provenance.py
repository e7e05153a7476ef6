"""Check what a trained network was made from, against what is requested now.

A checkpoint records the fold and the cases that it was trained with, with sizes and hashes of their raw files, and the
labels. They are compared with the plan, dataset.json and splits_final.json. Differences are an error, with the command
that resolves them; what cannot be compared is a warning. preprocessing/checks.py does the same for preprocessed data.

Imports neither torch nor nnunetv2. runs/readiness.py and trainers/checkpoint.py use this module.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stunet.errors import DataError, WeightsError, first_few
from stunet.files import json_differences
from stunet.folds import ALL, FILE, Fold
from stunet.kinds import RUN_RECORD, normalize_labels, read, read_dataset_json
from stunet.labels.names import region_values
from stunet.plans.files import read_plan
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import read_manifest, settings_of, without_version
from stunet.preprocessing.folds import find_fold
from stunet.workspace import preprocessed_dataset

RECORD = "made_from.json"  # in the folder of a fold
HASH_LENGTH = 16  # characters of the SHA-256 that are kept in checkpoints
INPUT_SETTINGS = (  # the settings that determine what the network's input values mean
    "spacing", "transpose_forward", "normalization_schemes", "use_mask_for_norm", "orientation",
    "foreground_intensity_properties_per_channel",
)  # fmt: skip
FOLDS_HINT = (
    f"put {FILE} back as it was ({RECORD} in the folder of the fold has it), or train from scratch with --overwrite"
)
NETWORK_KEYS = ("labels", "regions_class_order", "channel_names", "modality")  # of dataset.json: what a network has


def training_record(dataset: str, plan: Plan, configuration: str, fold: int | str, cases: Fold) -> dict[str, Any]:
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


def check_training(name: str, before: Mapping[str, Any] | None, now: Mapping[str, Any], goes_on: bool) -> list[str]:
    """Compare what a network was trained with to what its run would use now.

    Args:
        name: Name of the checkpoint or result, for messages.
        before: Its record; None in those of earlier versions.
        now: training_record() as of today.
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
    # First, and whether training goes on or not: Dice on cases it was trained with looks normal and means nothing.
    if now["fold"] != ALL and (both := sorted(seen & validated)):
        what = f"{name} was trained with {len(both)} cases that {where} validates with (e.g. {both[0]!r})"
        raise DataError(what, FOLDS_HINT)
    changed = [_changed(kind, before[kind], now[kind]) for kind in ("train", "val")]
    if changed[0] and goes_on:
        what = f"{name} was trained with other cases than {where} has: {changed[0]}"
        raise DataError(what, FOLDS_HINT)
    other = _other_content(before, now)
    if other and goes_on:
        what = f"{name} was trained with other raw files of {len(other)} cases (e.g. {other[0]!r})"
        raise DataError(what, "bring these files back and preprocess again, or --overwrite to train with today's")
    warnings = [f"{name} was made with other cases than {where} has: {text}" for text in changed if text]
    if other:
        warnings.append(f"{name} was made with other raw files of {len(other)} cases (e.g. {other[0]!r})")
    return warnings


def continued_record(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a continued run: the training cases are those it has seen, validation is today's."""
    # Of a case in both, the files it was trained with count.
    return {**now, "train": before["train"], "made_from": {**now["made_from"], **before["made_from"]}}


def seen_in_training(weights: Path, cases: Mapping[str, Iterable[str]]) -> list[str]:
    """Return which of these cases some weights were trained on, sorted; none if no record lies beside their file.

    Args:
        weights: The file.
        cases: By full name of their dataset.
    """
    try:
        record = read(weights.parent / RECORD, RUN_RECORD)
    except DataError:
        return []
    prefix = "" if "datasets" in record else f"{record['dataset']}."  # of several datasets, the names have it already
    seen = {f"{prefix}{case}" for case in record["train"]}
    return sorted(case for dataset, names in cases.items() for case in names if f"{dataset}.{case}" in seen)


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
        hint = "put dataset.json back as it was, or --overwrite to train from scratch"
        raise WeightsError(f"{name} was trained with another dataset.json: {first_few(changed)}", hint)


def check_model(
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
    if before.orientation and plan.orientation and before.orientation != plan.orientation:
        what = f"{str(path)!r} was trained on images turned to {before.orientation}, and plans.json says "
        what += plan.orientation
        raise WeightsError(what, hint)
    if configuration in before.configurations:
        one, other = (without_version(settings_of(x, configuration, {})) for x in (before, plan))
        if changed := json_differences(one, other):
            what = f"{str(path)!r} was trained on data of other settings than plans.json says: {first_few(changed)}"
            if any(json_differences(one.get(key), other.get(key)) for key in INPUT_SETTINGS):
                raise WeightsError(what, hint)
            warnings.append(what)  # edited by hand, to read or resample images in another way
    known = _plain(arguments.get("dataset_json"))
    labels = known.get("labels")
    if labels is not None and (changed := json_differences(labels, dict(dataset_json["labels"]))):
        what = f"{str(path)!r} was trained with other labels than dataset.json says: {first_few(changed)}"
        if not _renamed(labels, dataset_json["labels"]):
            raise WeightsError(what, hint)
        warnings.append(what)
    if rows := region_values(known):
        one = {**rows, "order": known.get("regions_class_order")}
        other = {**region_values(dataset_json), "order": dataset_json.get("regions_class_order")}
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
    # Results of nnU-Net and of earlier versions have no record, so there is nothing to compare.
    if not (folder / RECORD).is_file():
        return []
    before = read(folder / RECORD, RUN_RECORD)
    plan = read_plan(folder.parent / "plans.json")
    dataset, configuration, fold = (before[key] for key in ("dataset", "configuration", "fold"))
    try:
        cases = find_fold(dataset, plan, configuration, fold)
    except DataError as error:
        return [error.message]
    # The file of folds is missing: it was removed, or nnU-Net has not made it yet.
    if cases is None:
        return []
    manifest = read_manifest(preprocessed_dataset(dataset) / plan.configuration(configuration).data_identifier)
    labels = read_dataset_json(preprocessed_dataset(dataset) / "dataset.json")["labels"]
    one, other = settings_of(plan, configuration, labels), manifest.settings if manifest else None
    if other and (changed := json_differences(without_version(one), without_version(other))):
        return [f"{str(folder)!r} was trained on data of other settings than today's: {first_few(changed)}"]
    try:
        return check_training(
            repr(str(folder)), before, training_record(dataset, plan, configuration, fold, cases), False
        )
    except DataError as error:
        return [error.message]


def _renamed(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether the labels have the same values under other names, and no name has another value."""
    one, other = (
        {name: str(list(value) if isinstance(value, list | tuple) else [value]) for name, value in labels.items()}
        for labels in (before, now)
    )
    return sorted(one.values()) == sorted(other.values()) and all(
        other.get(n, value) == value for n, value in one.items()
    )


def _plain(description: Any) -> dict[str, Any]:
    """Return a dataset.json from a checkpoint in the form in which files are read; empty if it is not one."""
    if not isinstance(description, Mapping) or not isinstance(description.get("labels"), Mapping):
        return {}
    return {**description, "labels": normalize_labels(description["labels"])}


def _labels(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return labels and channels, as the network has them."""
    return {**{key: description.get(key) for key in NETWORK_KEYS}, **region_values(description)}


def _content(record: Mapping[str, Any]) -> list[list[Any]]:
    """Return size and hash (None if unknown) of each raw file of a case."""
    # A raw file is its name, size and time; the time is left out, because a mere copy changes it.
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
