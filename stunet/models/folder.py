"""Write weights as a model folder that stock nnU-Net v2 runs, and check whether a model is consistent.

A model folder is plans.json, dataset.json and fold_X/checkpoint_final.pth; ours also holds model.json, with the origin
of the weights and the checksums of the files. weights/reading.py reads files and folders, store.py decides which, and
exporting.py passes them on.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stunet.errors import WeightsError
from stunet.files import atomic_folder, sha256_of, write_json
from stunet.models.entry import NETWORKS, Entry
from stunet.models.metadata import check_metadata
from stunet.models.record import RECORD, read_record
from stunet.models.registry import dataset_of, plan_of
from stunet.sizes import SIZES
from stunet.weights.checkpoints import check_finite, check_weights, save_checkpoint
from stunet.weights.heads import BACKGROUND
from stunet.weights.naming import all_names
from stunet.weights.pickles import load_pickle
from stunet.weights.reading import Weights, read_weights, unfinished
from stunet.weights.v1 import convert_plans

CHECKPOINT = "checkpoint_final.pth"
log = logging.getLogger("stunet")


def describe(weights: Weights, entry: Entry | None = None) -> Weights:
    """Return the weights with complete plans and dataset: their own, and from the registry what they lack.

    Raises:
        WeightsError: Strides, spacing or class names are in neither, the two contradict each other, the tensors belong
            to another network, or a pretext trained them.
    """
    check_entry(weights, entry)
    check_segments(weights)
    planned = plan_of(entry) if entry and not entry.missing and not entry.has_plans else None
    plan = weights.plan if weights.strides else planned
    classes = (weights.dataset or {}).get("labels") or _numbered(entry.classes if entry else None)
    lacking = {} if plan else {"strides and spacing": "--pkl X.model.pkl"}
    lacking |= {} if classes else {"class names": "--dataset dataset.json"}
    if plan is None or not classes:
        raise WeightsError(
            f"{str(weights.path)!r} cannot become a model that predicts: unknown {' and '.join(lacking)}",
            f"import it with the {' and '.join(lacking.values())} of its training; fine-tuning takes it as it is",
        )
    channels = weights.channels or (entry.channels if entry else None)
    # The registry fills gaps: what the file's own dataset.json states comes later and wins.
    dataset = (dataset_of(entry) if entry and planned else {}) | (weights.dataset or {}) | {"labels": classes}
    dataset["channel_names"] = _by_number(channels or range(weights.network.channels))
    described = replace(
        weights,
        plan=plan,
        configuration=plan.configurations[0],
        dataset={"file_ending": ".nii.gz", **dataset},
        mirror_axes=entry.mirror_axes if entry and weights.mirror_axes is None else weights.mirror_axes,
        entry=entry.name if entry else None,
    )
    check_fit(described)
    return described


def check_segments(weights: Weights) -> None:
    """Check that weights are not those of a pretext, which have no head for classes.

    Raises:
        WeightsError: They are.
    """
    if weights.pretext:
        raise WeightsError(
            f"{str(weights.path)!r} was pre-trained by {weights.pretext!r} without labels: it has no head for classes",
            f"fine-tune it, as it is: stunet_train DATASET --pretrained {weights.path}",
        )


def check_entry(weights: Weights, entry: Entry | None) -> None:
    """Check that nothing in a file contradicts that its weights are those of the entry.

    Raises:
        WeightsError: Something contradicts it.
    """
    if entry and (what := contradiction(weights, entry)):
        raise WeightsError(f"{str(weights.path)!r} is not {entry.name}: {what}", "import it under another --name")


def contradiction(weights: Weights, entry: Entry) -> str | None:
    """Return how the tensors, or their plans and dataset, contradict that they are an entry's; None: not at all."""
    network = weights.network
    pairs: list[tuple[str, Any, Any]] = [
        ("network", network.architecture.class_name.rpartition(".")[2], NETWORKS[entry.network].rpartition(".")[2]),
        ("size", network.size, entry.size),
        ("input channels", network.channels, entry.num_channels),
        ("classes", network.classes, entry.num_classes),
    ]
    if entry.size:  # published without plans, so the entry is what tells; elsewhere the file knows better
        pairs += [
            ("channels", weights.channels, entry.channels),
            ("labels", weights.classes, entry.classes),
            ("strides", weights.strides, entry.strides),
            ("spacing", weights.spacing, entry.spacing),
            ("normalisation", weights.normalization, entry.normalization),
        ]
    for what, here, there in pairs:
        if here is not None and there is not None and not _same(here, there):
            return f"{what} {here} instead of {there}" if len(str(there)) < 100 else f"other {what}"
    # Its names may be spelled in another way, but those of another part of a whole are all different.
    here, there = (set(names or ()) - {BACKGROUND} for names in (weights.classes, entry.classes))
    if here and there and not here & there:
        return f"labels {min(here)} ... instead of {min(there)} ..."
    return None


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-3)
    return one == other


def with_plans(weights: Weights, pkl: Path, entry: Entry | None, name: str) -> Weights:
    """Return the weights with the plans of an nnU-Net v1 training; classes that they name themselves are kept.

    Raises:
        WeightsError: The plans cannot be read, or are for other classes or channels.
    """
    network, classes = weights.network, weights.classes or (entry.classes if entry else None)
    channels = weights.channels or (entry.channels if entry else None)
    plan, dataset, configuration, axes = convert_plans(
        load_pickle(pkl), pkl, network.size, network.stages, classes, channels, name
    )
    dataset = weights.dataset or dataset
    return replace(weights, plan=plan, dataset=dataset, configuration=configuration, mirror_axes=axes)


def write_model_folder(target: Path, folds: Mapping[str, Weights], record: Mapping[str, Any]) -> Path:
    """Write the model folder `target`, completely or not at all, and return it.

    Args:
        target: Must not exist.
        folds: Described weights by folder name, such as fold_0; plans and dataset are taken from the first.
        record: What model.json records about their origin; the checksums of the files are added.

    Raises:
        DataError: `target` exists, or the disk is full.
    """
    first = next(iter(folds.values()))
    assert first.plan is not None  # described weights have one
    with atomic_folder(target) as part:
        write_json(part / "plans.json", first.plan.content)
        write_json(part / "dataset.json", first.dataset)
        for name, weights in folds.items():
            (part / name).mkdir()
            save_checkpoint(_checkpoint(weights), part / name / CHECKPOINT)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        checksums = {path.relative_to(part).as_posix(): sha256_of(path) for path in files}
        write_json(part / RECORD, {"entry": first.entry, **record, "files": checksums})
    return target


def check_fit(weights: Weights) -> None:
    """Compare every tensor with the network that the weights' plans and dataset, which must be complete, describe.

    Raises:
        WeightsError: Something differs, or is not described; the message names it.
    """
    described = weights.network
    sized = "size" not in described.arguments or described.size is not None
    if not weights.plan or not weights.strides or not sized:
        what = "no plans" if sized else f"a network of no size that stunet knows ({', '.join(SIZES)})"
        raise WeightsError(f"{str(weights.path)!r} has {what}", "stunet_models info NAME lists what is needed")
    check_metadata(weights)
    network = described_network(weights)
    check_weights(weights.path, network, state_dict(weights, network))


def described_network(weights: Weights) -> torch.nn.Module:
    """Return the network of the plans, without memory.

    Raises:
        WeightsError: The plans describe none.
    """
    assert weights.plan is not None  # described weights have one
    found, planned = weights.network, weights.plan.configuration(str(weights.configuration))
    try:
        with torch.device("meta"):  # shapes only: an STU-Net H takes 5.8 GB
            return found.architecture.build(found.channels, found.classes or 1, planned.network_arguments)
    except ValueError as error:
        what = f"{str(weights.path)!r}: no network can be built as its plans say: {error}"
        raise WeightsError(what, "use the plans.json of the training that made it") from None


def state_dict(weights: Weights, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors under all names that a network has for them."""
    return all_names(weights.tensors, network.state_dict(), weights.network.architecture)


def read_folds(path: Path) -> dict[str, Weights]:
    """Read the weights of a file, as fold_0, or of every fold of a model folder: the numbered ones, else fold_all.

    Of a folder without folds, as Hugging Face has them, they are those that read_weights() finds.

    Raises:
        WeightsError: As in read_weights.
    """
    first = read_weights(path)
    if what := unfinished(path):
        log.warning(what)
    if not path.is_dir() or not first.path.parent.name.startswith("fold_"):
        return {"fold_0": first}
    files = sorted(first.path.parent.parent.glob(f"fold_*/{first.path.name}"))
    # As in prediction: fold_all counts only without numbered folds.
    numbered = [file for file in files if re.fullmatch(r"fold_[0-9]{1,3}", file.parent.name)]
    return {file.parent.name: read_weights(file) for file in numbered or files}


def check(source: Path) -> list[str]:
    """Read every byte of a model and return what was found right, one line each.

    Raises:
        WeightsError: Something is wrong: a file that changed, NaN, tensors that do not fit the plans, class names.
        DataError: The record of the installation cannot be read.
    """
    found = []
    folder = source if source.is_dir() else source.parent
    if (folder / RECORD).is_file():
        files = read_record(folder).get("files", {})
        for file, digest in files.items():
            if not (folder / file).is_file() or sha256_of(folder / file) != digest:
                raise WeightsError(
                    f"{str(folder / file)!r} is missing or has changed since it was installed",
                    f"remove {str(folder)!r} and install the model again",
                )
        found.append(f"files: {len(files)}, with the checksums of their installation")
    for name, weights in read_folds(source).items():
        check_finite(weights.tensors, weights.path)
        if weights.pretext:
            fit = f"pre-trained by {weights.pretext!r} without labels: for fine-tuning only"
        elif weights.strides:
            check_fit(weights)
            fit = "they fit the plans"
        else:
            fit = "without plans: for fine-tuning only"
        found.append(f"{name}: {len(weights.tensors)} tensors, none with NaN; {fit}")
    return found


def _checkpoint(weights: Weights) -> dict[str, Any]:
    alone = replace(weights, tensors={name: _own_storage(tensor) for name, tensor in weights.tensors.items()})
    checkpoint: dict[str, Any] = {
        "network_weights": state_dict(alone, described_network(weights)),
        "trainer_name": "nnUNetTrainer",  # stock nnU-Net finds it without any variable
        "init_args": {"configuration": weights.configuration},
    }
    if weights.mirror_axes is not None:  # leave it out if unknown: nnU-Net does not mirror without the key
        checkpoint["inference_allowed_mirroring_axes"] = weights.mirror_axes or None  # nnU-Net refuses ()
    return checkpoint


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor with nothing else in its storage, because torch writes the whole storage."""
    is_alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_alone else tensor.clone(memory_format=torch.contiguous_format)


def _numbered(names: Sequence[str] | None) -> dict[str, int]:
    return {name: i for i, name in enumerate(names or ())}


def _by_number(names: Iterable[Any]) -> dict[str, str]:
    return {str(i): str(name) for i, name in enumerate(names)}
