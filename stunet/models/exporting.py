"""Pass a model on: as our one file, as a model folder or zip of nnU-Net v2, as nnssl's file, or as ONNX.

folder.py writes the folders, archive.py packs them, weights/nnssl.py and onnx_export.py write the other files.
"""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stunet.errors import DataError, UsageError, WeightsError
from stunet.files import write_lock
from stunet.models.archive import pack
from stunet.models.folder import (
    check_fit,
    check_segments,
    described_network,
    read_folds,
    state_dict,
    write_model_folder,
)
from stunet.models.onnx_export import write_onnx
from stunet.names import check_name
from stunet.plans.plan import WHOLE
from stunet.weights.checkpoints import check_finite, save_weights, to_half
from stunet.weights.nnssl import write_nnssl
from stunet.weights.reading import Weights

NNUNET, NNSSL, ONNX = "nnunet", "nnssl", "onnx"
# The endings that each form can have; without a form they decide.
ENDINGS: dict[str | None, tuple[str, ...]] = {
    None: (".safetensors", ".zip", ""),
    NNUNET: (".zip", ""),
    NNSSL: (".pth",),
    ONNX: (".onnx",),
}
_TRAINER = "nnUNetTrainer"  # in the checkpoints that folder.py writes
_NORMALIZATION = "ZScoreNormalization"  # what nnU-Net's commands for nnssl's files take for every channel


def export(source: Path, target: Path, half: bool = False, form: str | None = None) -> list[str]:
    """Write weights as a self-describing safetensors file, a model folder or a zip of one, or a file of nnssl.

    Args:
        source: A file or model folder that read_weights accepts.
        target: Without a form the ending decides: .safetensors, .zip, or none for a folder.
        half: Write float16, half the size; all our readers and nnU-Net convert it back to float32.
        form: NNUNET, NNSSL, ONNX, or None.

    Returns:
        What to do next, and what the programs that read it do otherwise than ours.

    Raises:
        WeightsError: The weights cannot be read, have no plans, are not of the kind that the form holds, or float16
            cannot hold them.
        DataError: `target` exists.
        UsageError: `target` has another ending, or ONNX is asked for in float16 or without its packages.
    """
    endings, ending = ENDINGS[form], target.suffix.lower()
    if ending not in endings:
        hint = ", ".join(f"OUT{each}" if each else "a folder OUT" for each in endings)
        raise UsageError(f"{str(target)!r} ends with {target.suffix!r}", f"-o {hint.replace(', ', ' or ')}")
    if form == ONNX and half:
        raise UsageError("--half: ONNX files are written in float32", "leave it out")
    _check_free(target)
    folds = read_folds(source)
    if not ending:
        folds = _fitting(folds, half)
        write_model_folder(target, folds, {"source": str(source)})
        return _for_nnunet(folds, target)
    with write_lock(target):
        # Again: another process may have made it before this one got the lock.
        _check_free(target)
        if ending == ".zip":
            folds = _fitting(folds, half)
            _write_zip(target, folds, source)
            return _for_nnunet(folds, target)
        if len(folds) > 1:
            one = f"give one: {source}/{next(iter(folds))}/checkpoint_final.pth"
            raise WeightsError(f"{str(source)!r} has {len(folds)} folds, a {ending} file has one", one)
        first = next(iter(folds.values()))
        if form == NNSSL:
            return _write_nnssl(target, first, half)
        if form == ONNX:
            return write_onnx(target, _fitting({"": first}, half)[""])
        check_segments(first)
        meta = {key: getattr(first, key) for key in ("configuration", "dataset", "mirror_axes", "entry")}
        meta = {"plans": first.plan.content if first.plan else None, **meta}
        save_weights(target, first.tensors, meta, half)
        return []


def _check_free(target: Path) -> None:
    if target.exists():
        raise DataError(f"{str(target)!r} exists already", "take another name, or remove it")


def _fitting(folds: dict[str, Weights], half: bool) -> dict[str, Weights]:
    for weights in folds.values():
        check_segments(weights)
        check_fit(weights)
    return {
        name: replace(weights, tensors=to_half(weights.tensors)) if half else weights for name, weights in folds.items()
    }


def _write_zip(target: Path, folds: Mapping[str, Weights], source: Path) -> None:
    """Write a zip whose members stand where nnU-Net looks for them once it has unpacked it to nnUNet_results."""
    # A fixed name, under the lock of the target: what a killed export left is removed.
    folder = target.with_name(f".{target.name}.folder")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        pack(write_model_folder(folder, folds, {"source": str(source)}), target, _place(next(iter(folds.values()))))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(weights: Weights) -> str:
    """Return DATASET/TRAINER__PLANS__CONFIGURATION.

    Raises:
        DataError: A name in the plans is no name of a folder.
    """
    assert weights.plan is not None  # weights that fit have one
    names = (weights.plan.dataset_name, weights.plan.name, weights.configuration)
    whats = ("dataset_name", "plans_name", "configuration")
    dataset, plans, configuration = (
        check_name(name, what, str(weights.path)) for name, what in zip(names, whats, strict=True)
    )
    return f"{dataset}/{_TRAINER}__{plans}__{configuration}"


def _for_nnunet(folds: Mapping[str, Weights], target: Path) -> list[str]:
    """Return the commands that predict with a model folder or a zip of one, and what stock nnU-Net does not know."""
    weights = next(iter(folds.values()))
    assert weights.plan is not None  # weights that fit have one
    plan, numbers = weights.plan, " ".join(fold.removeprefix("fold_") for fold in folds)
    common = f"-i IN -o OUT -f {numbers}"
    if target.suffix:
        dataset, _, folder = _place(weights).partition("/")
        found = ["-d", dataset, "-p", plan.name, "-c", str(weights.configuration)]
        predict = f"nnUNetv2_predict {shlex.join(found)}"
        if not dataset.startswith("Dataset"):  # nnU-Net finds no other by name
            predict = f"nnUNetv2_predict_from_modelfolder -m $nnUNet_results/{shlex.quote(dataset)}/{folder}"
        install = f"nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(target))}"
        notes = [f"next: {install}, then {predict} {common}"]
    else:
        notes = [f"next: nnUNetv2_predict_from_modelfolder -m {shlex.quote(str(target))} {common}"]
    name = weights.network.architecture.class_name
    if name.startswith("stunet."):
        notes.append(f"nnU-Net imports {name}: install stunet beside it, nothing has to be copied or set")
    if turned_to := plan.orientation or weights.recorded_orientation:
        notes.append(f"nnU-Net does not turn images: give it images in the orientation {turned_to}")
    return notes


def _write_nnssl(target: Path, weights: Weights, half: bool) -> list[str]:
    """Write a file of nnssl, and return what to do with it.

    Raises:
        WeightsError: The weights have no plan, or are of a kind that nnssl has not.
    """
    plan, network = weights.plan, weights.network
    if weights.kind == NNSSL:  # its plan has fields that ours has not, and names whom to cite
        raise WeightsError(f"{str(weights.path)!r} is in nnssl's format already", "copy it as it is")
    if plan is None or not weights.strides or not weights.spacing or weights.configuration is None:
        raise WeightsError(
            f"{str(weights.path)!r} has no plans, and nnssl's files hold spacing, normalisation and patch",
            "export the model folder of its training, or import it with its plans first",
        )
    channels = weights.channels or [str(number) for number in range(network.channels)]
    if network.ndim != 3 or len(channels) != network.channels:
        what = "is a 2D network" if network.ndim != 3 else "takes the segmentation of a previous stage as well"
        raise WeightsError(f"{str(weights.path)!r} {what}: nnssl has none of these", "export the 3d_fullres one")
    check_finite(weights.tensors, weights.path)
    tensors = to_half(weights.tensors) if half else weights.tensors
    state = state_dict(replace(weights, tensors=tensors), described_network(weights))
    transfers = weights.transfers if weights.pretext else WHOLE
    plan = plan.with_ours(orientation=weights.orientation) if weights.orientation else plan
    write_nnssl(
        target, state, plan, weights.configuration, channels, weights.pretext, transfers=transfers,
        dataset=None if weights.pretext else weights.dataset, mirror_axes=weights.mirror_axes,
    )  # fmt: skip
    architecture, given = network.architecture, weights.normalization or []
    if architecture.class_name.startswith("stunet."):
        return [
            f"nnU-Net's own commands build no {architecture.title}; next: stunet_train DATASET --pretrained {target}"
        ]
    command = f"nnUNetv2_preprocess_like_nnssl -d DATASET -n NAME -pc {shlex.quote(str(target))} -am like_pretrained"
    notes = [f"next: {command}, then nnUNetv2_train_pretrained (nnU-Net from its repository)"]
    if set(given) != {_NORMALIZATION}:
        notes.append(f"these commands normalise by {_NORMALIZATION}; the weights were trained with {', '.join(given)}")
    return notes
