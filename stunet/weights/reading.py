"""Read weight files of every kind that our networks come in, and determine what they mean.

These are nnU-Net v1 (.model with .model.pkl), nnU-Net v2 and nnssl (.pth, a model folder), our own (safetensors) and
bare parameters. recognition.py recognises the network, checkpoints.py reads safely, transfer.py uses the weights.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from stunet.architectures.base import Recognised
from stunet.errors import DataError, WeightsError
from stunet.kinds import DATASET, MODEL, read
from stunet.labels.names import head_classes
from stunet.names import check_name
from stunet.orientation import REORIENTED, REORIENTS
from stunet.plans.files import read_plan
from stunet.plans.plan import ENCODER_ALONE, WHOLE, Configuration, Plan
from stunet.schema import anything, dict_of
from stunet.weights import nnssl
from stunet.weights.checkpoints import is_safetensors, load_checkpoint, load_safetensors
from stunet.weights.folders import ADAPTATION_FILE, checkpoint_in, model_folder
from stunet.weights.naming import official_tensors
from stunet.weights.pickles import load_pickle
from stunet.weights.recognition import recognise
from stunet.weights.v1 import convert_plans, fit_strides

_NESTED = ("net", "model", "model_state_dict")  # where other training programs keep the parameters
log = logging.getLogger("stunet")
_ONE_TRAINING = "put the plans.json and the checkpoint of one training together"


@dataclass(frozen=True)
class Weights:
    """Parameters under their official names, memory-mapped from `path`, and what is known about them.

    `kind` is a key of _READERS; `plan` has one configuration, `configuration`, with the network of the tensors;
    `dataset` is nnU-Net's dataset.json; `mirror_axes` is None if unknown, and empty if mirroring is known to be wrong.
    `pretext` is the method that trained them without labels, whose heads are of no classes; None: labels did.
    `transfers` is what such a method is meant to give, one of TRANSFERS. `recorded_orientation` is that of the training
    images by the record of an installed model.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    network: Recognised
    plan: Plan | None = None
    configuration: str | None = None
    dataset: dict[str, Any] | None = None
    mirror_axes: tuple[int, ...] | None = None
    entry: str | None = None
    pretext: str | None = None
    transfers: str = WHOLE
    recorded_orientation: str | None = None

    @property
    def strides(self) -> list[list[int]] | None:
        """The strides, one entry per stage, the first all ones."""
        return self._planned.known_strides if self._planned else None

    @property
    def arguments(self) -> dict[str, Any] | None:
        """The arguments of the network in the plan."""
        return self._planned.network_arguments if self._planned else None

    @property
    def spacing(self) -> list[float] | None:
        """The spacing in mm, array order."""
        return self._planned.known_spacing if self._planned else None

    @property
    def normalization(self) -> list[str] | None:
        """nnU-Net's normalisation scheme per channel."""
        return self._planned.known_normalization if self._planned else None

    @property
    def orientation(self) -> str | None:
        """The orientation of the training images: the plan's, that to which its reader turns, or the recorded one."""
        plan = self.plan or Plan({})
        turns = str(plan.get("image_reader_writer") or "").endswith(REORIENTS)
        return plan.orientation or (REORIENTED if turns else self.recorded_orientation)

    @property
    def channels(self) -> list[str] | None:
        """The names of the image channels; the network of a cascade has more inputs than these."""
        names = (self.dataset or {}).get("channel_names") or (self.dataset or {}).get("modality")
        return None if names is None else [str(name) for name in names.values()]

    @property
    def classes(self) -> list[str] | None:
        """Class names in the order of the head's rows, background first.

        None for regions, which have no such row, and for a pretext, whose rows are of no classes.
        """
        if self.pretext:
            return None
        names = head_classes((self.dataset or {}).get("labels") or {})
        return names if "background" in names else None

    @property
    def _planned(self) -> Configuration | None:
        return self.plan.configuration(self.configuration) if self.plan and self.configuration else None


def read_weights(path: Path) -> Weights:
    """Return the weights in a file, or in a folder (folders.py): of a model, its lowest fold, else fold_all.

    The plans.json and dataset.json of a model folder determine what a checkpoint in it means, and adaptation_plan.json
    what the file beside it means, if that does not say so itself.

    Raises:
        WeightsError: The path holds no weights, is damaged, holds another network, or its parts contradict each other.
    """
    path = checkpoint_in(path) if path.is_dir() else path
    kind, raw, content = _load(path)
    tensors = official_tensors(raw, path, nnssl.encoder_of(content) if kind == "nnssl" else None)
    weights = Weights(path, kind, tensors, recognise(tensors, path))
    try:
        weights = _READERS[kind](weights, content)
        weights = _of_store(_of_folder(weights))
        _check(weights)
    except DataError as error:
        raise WeightsError(f"{str(path)!r}: {error.message}", error.hint) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise WeightsError(
            f"the metadata of {str(path)!r} are damaged: {type(error).__name__} {str(error)[:100]}",
            "copy it again from its source",
        ) from None
    return weights


def unfinished(path: Path) -> str | None:
    """Describe which trainings in a model folder are unfinished and what is used; None for files and whole folders."""
    path = model_folder(path)
    if not path.is_dir() or not any(path.glob("fold_*/checkpoint_*.pth")):
        return None
    ended = {file.parent.name for file in path.glob("fold_*/checkpoint_final.pth")}
    begun = {file.parent.name for file in path.glob("fold_*/checkpoint_*.pth")} - ended
    if ended:
        return f"{', '.join(sorted(begun))} of {str(path)!r} is unfinished and left out" if begun else None
    found = checkpoint_in(path)
    content = load_checkpoint(found)
    plan = Plan((content.get("init_args") or {}).get("plans") or {})
    done = f"epoch {content.get('current_epoch', '?')} of {plan.train.num_epochs}"
    return f"no training in {str(path)!r} is finished: {found.parent.name}/{found.name} is used, {done}"


def _load(path: Path) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    """Return the kind of the weights, their parameters, and everything that determines what they mean."""
    kind, raw, content = _load_file(path)
    plan = path.with_name(ADAPTATION_FILE)
    planned = nnssl.ADAPTATION in content or (kind == "nnU-Net v2" and (content.get("init_args") or {}).get("plans"))
    if kind in ("bare", "nnssl", "nnU-Net v2") and not planned and plan.is_file():
        return "nnssl", raw, {**content, nnssl.ADAPTATION: read(plan, dict_of(anything))}
    return kind, raw, content


def _load_file(path: Path) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
    if is_safetensors(path):
        tensors, meta = load_safetensors(path)
        return "stunet" if meta else "bare", tensors, meta
    content = load_checkpoint(path)
    if isinstance(content.get("network_weights"), dict):
        arguments = content.get("init_args")
        # nnssl writes nnU-Net's keys, but `plan` for `plans`.
        by_nnssl = nnssl.ADAPTATION in content or (isinstance(arguments, dict) and "plan" in arguments)
        return "nnssl" if by_nnssl else "nnU-Net v2", content["network_weights"], content
    if isinstance(content.get("state_dict"), dict):
        return "nnU-Net v1", content["state_dict"], content
    for key in _NESTED:
        if isinstance(content.get(key), dict) and any(isinstance(value, Tensor) for value in content[key].values()):
            return "bare", content[key], {}
    if not any(isinstance(value, Tensor) for value in content.values()):
        there = ", ".join(map(repr, list(content)[:3])) or "nothing"
        optimizer = "param_groups" in content or any("optimizer" in str(key) for key in content)
        what = "the state of an optimizer and no weights" if optimizer else "no weights"
        raise WeightsError(f"{str(path)!r} holds {what} (there: {there})", "use the checkpoint that training wrote")
    return "bare", content, {}


def _read_v1(weights: Weights, content: Mapping[str, Any]) -> Weights:
    sidecar = weights.path.with_name(weights.path.name + ".pkl")
    if not sidecar.is_file() or "size" not in weights.network.arguments:  # v1 has no plans for other networks
        return weights
    network = weights.network
    plan, dataset, configuration, mirror_axes = convert_plans(
        load_pickle(sidecar), sidecar, network.size, network.stages
    )
    return replace(weights, plan=plan, dataset=dataset, configuration=configuration, mirror_axes=mirror_axes)


def _read_v2(weights: Weights, content: Mapping[str, Any]) -> Weights:
    arguments = content.get("init_args") or {}
    # nnU-Net's None means no axes; only a missing key means that they are unknown.
    axes = content.get("inference_allowed_mirroring_axes", ...)
    weights = replace(weights, mirror_axes=None if axes is ... else _axes(axes or ()))
    if "pretext" in (own := content.get("stunet") or {}):
        pretext = nnssl.read_pretext(own["pretext"])
        weights = replace(weights, pretext=pretext.method, transfers=pretext.transfers)
    return _described(weights, arguments.get("plans"), arguments.get("configuration"), arguments.get("dataset_json"))


def _read_nnssl(weights: Weights, content: Mapping[str, Any]) -> Weights:
    own = content.get("stunet") or {}
    if (axes := own.get("mirror_axes")) is not None:
        weights = replace(weights, mirror_axes=_axes(axes))
    if not own or own["pretext"] is not None:  # None: labels trained it
        pretext = nnssl.read_pretext(own["pretext"]) if own else nnssl.pretext_of_trainer(content.get("trainer_name"))
        weights = replace(weights, pretext=pretext.method, transfers=pretext.transfers)
    channels = {str(i): name for i, name in enumerate(own.get("channels") or ())}
    planned = nnssl.pretrain_plan(content)
    plan, name = planned or (Plan({}), None)
    dataset = {"channel_names": channels, **(own.get("labels") or {})} if channels else None
    return _described(weights, plan.content, name, dataset)


def _read_ours(weights: Weights, meta: Mapping[str, Any]) -> Weights:
    axes, entry = meta.get("mirror_axes"), meta.get("entry")
    weights = replace(
        weights,
        mirror_axes=None if axes is None else _axes(axes),
        entry=None if entry is None else check_name(entry, "entry"),
    )
    return _described(weights, meta.get("plans"), meta.get("configuration"), meta.get("dataset"))


_READERS: dict[str, Callable[[Weights, Mapping[str, Any]], Weights]] = {
    "nnU-Net v1": _read_v1,
    "nnU-Net v2": _read_v2,
    "nnssl": _read_nnssl,
    "stunet": _read_ours,
    "bare": lambda weights, _: weights,
}


def _axes(axes: Any) -> tuple[int, ...]:
    if not isinstance(axes, list | tuple) or not all(type(axis) is int for axis in axes):
        raise TypeError(f"mirror axes {axes!r}")
    return tuple(axes)


def _described(weights: Weights, plans: Any, configuration: str | None, dataset: Any) -> Weights:
    """Return the weights with these plans, reduced to the one configuration, and with the network of the tensors in it.

    Plans can name any class, which nnU-Net would import; the tensors have shown which class it is.
    """
    weights = replace(weights, configuration=configuration, dataset=dict(dataset) if dataset else None)
    if not plans or configuration is None:
        return weights
    plan = Plan(plans)
    planned = plan.configuration(configuration)
    network, architecture = weights.network, weights.network.architecture
    strides: Sequence[Sequence[int]] | None = planned.known_strides or planned.pooling or network.strides
    arguments = network.planned
    if planned.network_class == architecture.class_name:
        try:
            arguments = architecture.settled(planned.network_arguments, network)
        except ValueError as error:
            raise WeightsError(f"{str(weights.path)!r}: its plans {error}", _ONE_TRAINING) from None
    elif strides and not network.strides:
        # STU-Net's trainers ignored the network in the plans, and cut or padded its strides.
        strides = fit_strides(strides, network.stages)
    if strides:
        arguments = {**arguments, "strides": [[int(s) for s in axis] for axis in strides]}
    reduced = plan.reduced_to(configuration)
    described = reduced.with_network_class(configuration, architecture.class_name, arguments, architecture.imports)
    return replace(weights, plan=described)


def _of_folder(weights: Weights) -> Weights:
    """Return the weights with the meaning given by the model folder around the file, if there is one."""
    folder = weights.path.parent.parent
    if weights.kind == "nnssl":
        return weights  # it is complete, and names its configuration in another way than the plans around it
    if not weights.path.parent.name.startswith("fold_") or not (folder / "plans.json").is_file():
        return weights
    plan, dataset = read_plan(folder / "plans.json"), read(folder / "dataset.json", DATASET)
    configuration = weights.configuration
    if configuration is None and len(plan.configurations) == 1:
        configuration = plan.configurations[0]
    here = _described(weights, plan.content, configuration, dataset)
    _check_one_training(weights, here, folder)
    if not (note := folder / "model.json").is_file():
        return here
    record = read(note, MODEL)
    return replace(here, entry=record.get("entry"), recorded_orientation=record.get("orientation"))


def _check_one_training(weights: Weights, here: Weights, folder: Path) -> None:
    """Compare what a checkpoint says of itself with the model folder around it, which is what counts from here on.

    Raises:
        WeightsError: It was trained with other inputs, it computed another function, or a class has another row.
    """
    trained, said = (_inputs(each) for each in (weights, here))
    for what, value in trained.items():
        if value not in (None, []) and said.get(what) != value:
            raise WeightsError(
                f"{str(folder / 'plans.json')!r} says {what} {said.get(what)}, but {weights.path.name!r} was trained "
                f"with {value}",
                _ONE_TRAINING,
            )
    before, now = (head_classes((each.dataset or {}).get("labels") or {}) for each in (weights, here))
    if not before or before == now:
        return
    # Classes may get other names, but no name may get the row of another class.
    moved = [name for row, name in enumerate(now) if name in before and before.index(name) != row]
    if moved or len(before) != len(now):
        name = (moved + [name for name in (*before, *now) if (name in before) != (name in now)])[0]
        raise WeightsError(
            f"{str(weights.path)!r} was trained with other classes than {str(folder / 'dataset.json')!r} names, or in "
            f"another order (e.g. {name!r})",
            _ONE_TRAINING,
        )
    names = ", ".join(name for name in before if name not in now)
    log.warning("%s was trained with other names of classes than dataset.json has: %s", weights.path, names[:100])


def _inputs(weights: Weights) -> dict[str, Any]:
    """Return what determines what a network computes of an image, besides tensors, as far as the weights say it."""
    plan, schemes = weights.plan or Plan({}), weights.normalization or ()
    intensities = plan.intensities or {}
    return {
        "strides": weights.strides,
        **(weights.network.architecture.untold(weights.arguments) if weights.arguments else {}),
        "spacing": weights.spacing,
        "normalisation": weights.normalization,
        "order of axes": plan.get("transpose_forward"),
        "intensities of CT": [
            intensities[str(channel)]
            for channel, scheme in enumerate(schemes)
            if scheme == "CTNormalization" and intensities.get(str(channel))
        ],
    }


def _of_store(weights: Weights) -> Weights:
    """Return the weights with what models/installing.py recorded of a file that it keeps as it is, if it is one."""
    note = weights.path.with_name("model.json")
    record = read(note, MODEL) if note.is_file() else {}
    if record.get("weights") != weights.path.name:
        return weights
    weights = replace(weights, entry=record.get("entry"), recorded_orientation=record.get("orientation"))
    if record.get("pretext") and weights.pretext in (None, nnssl.UNNAMED):
        given = nnssl.read_pretext({"method": record["pretext"], "transfers": ENCODER_ALONE})
        weights = replace(weights, pretext=given.method, transfers=given.transfers)
    return weights


def _check(weights: Weights) -> None:
    network = weights.network
    # The channels are only read here: if the metadata are damaged, it shows in read_weights() and not later.
    strides, classes, _ = weights.strides, weights.classes, weights.channels
    if strides and (len(strides) != network.stages or {len(axis) for axis in strides} != {network.ndim}):
        raise WeightsError(
            f"{str(weights.path)!r} has {network.stages} stages in {network.ndim}D, and its plans say "
            f"strides {strides}",
            _ONE_TRAINING,
        )
    if strides and network.strides and strides != network.strides:
        raise WeightsError(
            f"{str(weights.path)!r} has tensors for strides {network.strides}, and its plans say {strides}",
            _ONE_TRAINING,
        )
    if classes and network.classes and len(classes) != network.classes:
        raise WeightsError(
            f"the head of {str(weights.path)!r} has {network.classes} rows, but {len(classes)} classes are named",
            "put the dataset.json and the checkpoint of one training together",
        )
