"""Describe the content of nnU-Net's JSON files and ours; each file is validated once, when it is read.

`read(path, SPLITS)` returns the content, or reports where in the file something is wrong. Anything that nnU-Net ignores
(keys that other programs add to dataset.json or to plans) is ignored as well. Whether values fit together is checked
where they are used: plans/check.py, labels/annotations.py. plans/schema.py has the kind of plans, schema.py the
checks, and names.py defines what a name is.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stunet.errors import DataError, StunetError
from stunet.files import read_json
from stunet.names import NAME_MAX, has_control_characters, is_orientation, name
from stunet.schema import (
    Check,
    Wrong,
    anything,
    boolean,
    check,
    dict_of,
    either,
    expected,
    integer,
    list_of,
    measured,
    number,
    one_of,
    optional,
    table,
    text,
)

HINT = "correct it there, or make the file again"
FORMAT_HINT = "see nnU-Net's documentation/dataset_format.md"
LARGEST_LABEL = 65535  # fits into a 16-bit file; look-up tables stay small
LARGEST_PITCH = 100_000  # mm: larger than any person


def read(path: Path, kind: Check, hint: str = HINT, error: type[StunetError] = DataError) -> Any:
    """Return the validated content of a JSON file; that of a dataset.json in the form of normalize().

    Raises:
        StunetError: Of the class `error`: the file is missing, is not JSON, or has a wrong value, which is named.
    """
    try:
        content = read_json(path)
    except DataError as problem:
        raise error(problem.message, hint) from None
    check(content, kind, path, hint, error)
    return normalize(content) if kind in (DATASET, CLASSES, RAW) else content


def normalize(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a validated dataset.json in a single form, where nnU-Net accepts several.

    Label values become integers, even if given as "1" or 1.0, and an ignore label even if given as [2]. A `modality`
    next to channel_names is removed unless both have the same number of channels: nnU-Net takes the number of a
    network's inputs from it, but reads channel_names everywhere else.
    """
    content = {**description, "labels": normalize_labels(description["labels"])}
    channels, modality = content.get("channel_names"), content.get("modality")
    if channels is not None and not (isinstance(modality, Mapping) and len(modality) == len(channels)):
        content.pop("modality", None)
    return content


def normalize_labels(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return labels with integer values; lists stay lists, except for the ignore label, and invalid values stay."""
    values = {
        name: [*map(_as_integer, v)] if isinstance(v, list | tuple) else _as_integer(v) for name, v in labels.items()
    }
    if isinstance(ignore := values.get("ignore"), list) and len(ignore) == 1:
        values["ignore"] = ignore[0]
    return values


def has_classes(description: Mapping[str, Any]) -> bool:
    """Return whether a dataset.json names classes: one of images without labels only has the background."""
    return any(name != "background" for name in description.get("labels", ()))


def read_dataset_json(path: Path, kind: Check | None = None) -> dict[str, Any]:
    """Return a dataset.json of nnU-Net v2, in the form of normalize().

    Args:
        path: Path of the file.
        kind: DATASET for the file of a model, whose cases do not matter; None for that of a dataset.

    Raises:
        DataError: Something in it is wrong; the message states where.
    """
    content: dict[str, Any] = read(path, kind or RAW, FORMAT_HINT)
    if "channel_names" not in content and "modality" not in content:
        raise DataError(f"{str(path)!r} lacks channel_names", FORMAT_HINT)
    label_values(content["labels"], content.get("regions_class_order"), str(path))
    return content


def label_values(labels: Any, regions_class_order: Any = None, path: str = "dataset.json") -> frozenset[int]:
    """Return the values that a label file may hold: those of all classes and regions, and the ignore label.

    Raises:
        DataError: `labels` is not what nnU-Net's LabelManager accepts.
    """
    if not isinstance(labels, dict) or "background" not in labels:
        version1 = isinstance(labels, dict) and "background" in labels.values()
        hint = "stunet_convert msd, for a Decathlon dataset" if version1 else '"labels": {"background": 0, "liver": 1}'
        raise DataError(f"labels in {path!r} do not name the background: {labels!r}", hint)
    check(labels, dict_of(_LABEL), repr(path), FORMAT_HINT)
    found = {key: {int(v) for v in (x if isinstance(x, list | tuple) else [x])} for key, x in labels.items()}
    if found["background"] != {0} or isinstance(labels["background"], list | tuple):
        raise DataError(f"background is {labels['background']!r} in {path!r}", '"background": 0')
    ignore = found.pop("ignore", set())
    leaves = sorted(set().union(*found.values()))
    if leaves != list(range(len(leaves))):
        raise DataError(f"label values in {path!r} are not consecutive: {leaves}", f"0 to {len(leaves) - 1}")
    if ignore and ignore != {len(leaves)}:
        raise DataError(f"the ignore label is {labels['ignore']!r} in {path!r}", f"the highest value: {len(leaves)}")
    regions = sum(value != {0} for value in found.values())
    order = regions_class_order
    ordered = isinstance(order, list) and len(order) == regions and all(type(value) is int for value in order)
    if any(len(value) > 1 for value in found.values()) and not ordered:
        raise DataError(f"regions_class_order is {order!r} in {path!r}", f"one value for each of the {regions} regions")
    return frozenset(leaves) | ignore


def _labels(value: Any, where: str) -> None:
    """Check classes and their values; without a background, label_values() gives a better message."""
    dict_of(_LABEL if isinstance(value, dict) and "background" in value else anything, least=1)(value, where)


def _label(value: Any, where: str) -> None:
    """Check for an integer, or a text or float that int() converts to one, as in nnU-Net."""
    integer(0, LARGEST_LABEL)(_as_integer(value), where)


def _as_integer(value: Any) -> Any:
    # At most five digits, as LARGEST_LABEL has: int() of a very long number raises an error.
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6
    return int(value) if digits or (isinstance(value, float) and value.is_integer()) else value


def _channel_table(value: Any, where: str) -> None:
    dict_of(_channel, least=1)(value, where)
    if set(value) != {str(i) for i in range(len(value))}:
        raise Wrong(where, f"is {value!r}, whose keys are not the numbers from 0")


def _channel(value: Any, where: str) -> None:
    """Check the name of a channel, which is sometimes given as a number."""
    if type(value) not in (int, float):
        text(value, where)


def _ending(value: Any, where: str) -> None:
    """Check a file ending; in models it may include the end of a name, `_ct.nii.gz`."""
    if not isinstance(value, str) or value[:1].isalnum() or "." not in value[:-1] or has_control_characters(value):
        raise expected(value, where, "the ending of files with its dot, such as '.nii.gz'")
    if "/" in value or "\\" in value or ".." in value or len(value) > 20:
        raise Wrong(where, f"the ending {value!r} is a path")


def _raw_ending(value: Any, where: str) -> None:
    _ending(value, where)
    if not value.startswith("."):
        raise expected(value, where, "the ending of files with its dot, such as '.nii.gz'")


def _path(value: Any, where: str) -> None:
    """Check the path of a file, which may lead anywhere: it is only read."""
    text(value, where)
    if any(len(part.encode()) > NAME_MAX for part in value.split("/")) or has_control_characters(value):
        raise expected(value, where, "the path of a file")


def _stored_name(value: Any, where: str) -> None:
    """Check the name of a file that was written: that of a case, and whatever was added to it."""
    name(value, where, NAME_MAX)


def _relative_path(value: Any, where: str) -> None:
    """Check a path below a folder: names separated by /."""
    text(value, where)
    for part in value.split("/"):
        _stored_name(part, where)


def _entry(value: Any, where: str) -> None:
    """Check the files of a case: images, and a label or none; `mask` only counts without a label."""
    table({"images": _FILES}, {"label": _path}, others=True)(value, where)
    if "label" not in value:
        table({}, {"mask": optional(_path)}, others=True)(value, where)


_LABEL = either("an integer or a list of integers", _label, list_of(_label, least=1))
_FILES = list_of(_path, least=1)
_COUNT = integer(0)
PITCH = number(above=0, most=LARGEST_PITCH)
INTENSITIES = dict_of(dict_of(optional(measured)))

_DATASET = {
    "labels": _labels,
    "file_ending": _ending,
    "channel_names": _channel_table,
    "regions_class_order": optional(list_of(integer(0, LARGEST_LABEL))),
    "overwrite_image_reader_writer": text,
}


def _description(*required: str, **more: Check) -> Check:
    """Return a check for a dataset.json with these keys; `modality` only matters without channel_names."""
    known = {**_DATASET, **more}
    kind = table({key: known[key] for key in required}, known, others=True)
    older = table({}, {"modality": _channel_table}, others=True)

    def found(value: Any, where: str) -> None:
        kind(value, where)
        if "channel_names" not in value:
            older(value, where)

    return found


DATASET = _description("labels", "file_ending")
CLASSES = _description("labels")  # a dataset.json that only names classes
RAW = _description(
    "labels",
    "file_ending",
    file_ending=_raw_ending,
    numTraining=number(0),
    dataset=dict_of(_entry, key=name),
)
# A Decathlon task: the dataset.json of nnU-Net v1.
TASK = table(
    {"modality": _channel_table, "labels": dict_of(text, key=_label, least=1)},
    {"training": list_of(table({"image": text}, {"label": text}, others=True))},
    others=True,
)
# nnssl's pretrain_data.json: its images by dataset, subject and session.
_MASKS = table({}, {"anonymization_mask": optional(_path), "anatomy_mask": optional(_path)}, others=True)
_SESSION = table(
    {
        "images": list_of(
            table(
                {"image_path": _path}, {"modality": optional(text), "associated_masks": optional(_MASKS)}, others=True
            )
        )
    },
    others=True,
)
_SUBJECT = table({"sessions": dict_of(_SESSION)}, others=True)
NNSSL = table({"datasets": dict_of(table({"subjects": dict_of(_SUBJECT)}, others=True))}, others=True)
SPLITS = list_of(table({"train": list_of(name), "val": list_of(name)}, others=True), least=1, name="a list of folds")


def orientation(value: Any, where: str) -> None:
    """Check for the codes of three axes."""
    if not isinstance(value, str) or not is_orientation(value):
        raise expected(value, where, "an orientation such as LPS or RAS")


ORIENTATIONS = dict_of(integer(1), key=orientation)
FINGERPRINT = table(
    {
        "spacings": list_of(list_of(PITCH, 3, 3), least=1),
        "shapes_after_crop": list_of(list_of(integer(1), 3, 3), least=1),
        "foreground_intensity_properties_per_channel": INTENSITIES,
        "median_relative_size_after_cropping": number(0),
    },
    {"stunet_orientations": ORIENTATIONS},
    others=True,
)

ANNOTATIONS = table(
    {
        "leaves": list_of(text, least=1),
        "sets": dict_of(list_of(text, least=1)),
        "head": text,
        "alpha": number(0, 1),
        "sources": dict_of(table({"labels": list_of(text)}, {"weight": number(above=0)}, True)),
        "cases": dict_of(table({"source": text}, {"labels": list_of(text)}, True), key=name),
    },
    others=True,
)
# Manifest of a data folder, preprocessing/dataset.py.
MANIFEST = table(
    {
        "settings": dict_of(anything),
        "cases": dict_of(
            table(
                {"raw": list_of(list_of(anything, 3, 3)), "files": dict_of(_COUNT, key=_stored_name)},
                {"sha256": list_of(text)},
                others=True,
            ),
            key=name,
        ),
    },
    others=True,
)
# What is known of preprocessed scans, preprocessing/scans.py.
SCANS = dict_of(
    table(
        {
            "files": list_of(list_of(integer(0), 2, 2)),
            "shape": list_of(integer(1)),
            "problem": either("text", text, one_of("")),
        }
    ),
    key=name,
)
# Scans that a pre-training leaves out, with the reason, runs/pretraining.py.
LEFT_OUT = dict_of(text, key=name)
# Summary of a pre-training, trainers/pretraining.py.
PRETRAINING = table(
    {"method": name, "measure": text, "chance": measured, "val_measures": list_of(measured)},
    {"untrained": optional(measured)},
    others=True,
)
# Record of a training, provenance.py: sizes and hashes of the raw files of each of its cases.
RUN_RECORD = table(
    {
        "dataset": name,
        "configuration": name,
        "fold": either("the number of a fold or 'all'", integer(0), one_of("all")),
        "train": list_of(name),
        "val": list_of(name),
        "made_from": dict_of(list_of(list_of(anything, 2, 2)), key=name),
    },
    others=True,
)
# Record of a converted case, datasets/conversion.py.
CASE_RECORD = table(
    {"source": text, "files": dict_of(text, key=_relative_path), "facts": dict_of(anything)}, others=True
)
# What a part of a run leaves (parts.py).
PART = table({"agreed": dict_of(anything), "done": boolean, "content": dict_of(anything)})
PROVENANCE = table({}, {"state": dict_of(anything)}, others=True)  # of a dataset that was extended
# model.json of an installed model, the checksums of first downloads, and the licences that were accepted.
MODEL = table(
    {},
    {
        "entry": optional(name),
        "weights": optional(name),
        "pretext": optional(name),
        "orientation": optional(orientation),
        "source": optional(text),
        "sha256": optional(text),
        "date": optional(text),
        "files": dict_of(text, key=_relative_path),
    },
    others=True,
)
CHECKSUMS = dict_of(table({}, {"sha256": text, "date": text}, True))
LICENCES = dict_of(table({}, {"licence": text, "date": text}, True))
_METRICS = table({"Dice": measured}, others=True)
# summary.json of an evaluation: its means, and its cases.
SUMMARY = table({"foreground_mean": _METRICS, "mean": dict_of(_METRICS)}, others=True)
SUMMARY_OF_CASES = table(
    {"metric_per_case": list_of(table({"metrics": dict_of(_METRICS), "reference_file": text}, others=True), least=1)},
    others=True,
)
# arms.json of stunet_experiment: what is known about each command.
ARMS = dict_of(table({"state": text}, {"arm": text, "folder": _path, "message": text, "log": text}, True))
# rank.json of stunet_rank: scores of candidates for each target, higher is better; ranking/formats.py has the format.
_SCORED = table(
    {},
    {
        "score": optional(number()),
        "low": optional(number()),
        "high": optional(number()),
        "draws": optional(list_of(number())),
        "error": optional(text),
    },
    others=True,
)
_SCORES = dict_of(dict_of(optional(either("a number or a table", number(), _SCORED))), least=1)
_CANDIDATE = table({}, {"architecture": optional(text), "weights": optional(text)}, others=True)
SCORES = table(
    {"targets": dict_of(table({"scores": _SCORES}, others=True), least=1)},
    {"candidates": dict_of(_CANDIDATE)},
    others=True,
)
# results.json: Dice of fine-tuned candidates for each target, by seed, case and class where known.
_DICE = number(0, 1)
_OF_CASE = either("a Dice from 0 to 1, or those by class", _DICE, dict_of(optional(_DICE), least=1))
_OF_SEED = either("a Dice from 0 to 1, or those by case", _DICE, dict_of(_OF_CASE, least=1))
_OF_CANDIDATE = either("a Dice from 0 to 1, or those by seed", _DICE, dict_of(_OF_SEED, least=1))
RESULTS = table(
    {"targets": dict_of(dict_of(table({"dice": optional(_OF_CANDIDATE)}, others=True), least=1), least=1)},
    others=True,
)
# File next to a TIFF: its spacing in array order.
SPACING = table({"spacing": list_of(PITCH, least=2, most=3)}, others=True)


def mean_dice(summary: Mapping[str, Any]) -> float:
    """Return the mean Dice of a summary.json over the classes that occur; nnU-Net's is NaN if any does not occur."""
    # The mean over classes of the mean over cases, as in nnU-Net.
    if not math.isnan(overall := summary["foreground_mean"]["Dice"]):
        return float(overall)
    found = [mean["Dice"] for mean in summary["mean"].values() if not math.isnan(mean["Dice"])]
    return sum(found) / len(found) if found else math.nan
