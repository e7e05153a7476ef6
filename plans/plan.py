"""A plan: nnU-Net's plans JSON, with typed access to what it says. The only place that knows its keys.

    plan = read_plan(path)                             # files.py
    plan.configuration("3d_fullres").patch_size        # with all that the configuration inherits
    plan.train.num_epochs                              # what was set, else the default
    PlansManager(plan.to_json())                       # nnU-Net takes the document

nnU-Net's keys describe data and networks; ours are in the block "stunet", which plans of other programs lack. The
document is kept as it was read, also what nobody here knows, so it is written as it was read. Plans never change: what
derives one from another returns a new one. This module imports neither torch nor nnunetv2. Read next: settings.py for
values that a user sets, check.py for what makes a plan consistent, derive.py.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stunet.errors import DataError, closest
from stunet.plans.settings import PlanSettings, TrainSettings
from stunet.plans.topology import Strides

# How nnU-Net 2.2 and earlier described the network in a configuration.
_OLD_NETWORK_KEYS = {
    "UNet_class_name", "UNet_base_num_features", "unet_max_num_features", "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder", "num_pool_per_axis", "pool_op_kernel_sizes", "conv_kernel_sizes",
}  # fmt: skip
PLANNER = "STUNetPlanner"  # the name of ours in a plan
HINT = "correct the plans file, or make it again: stunet_plan_and_preprocess -d ... --no_pp"
ENCODER_ALONE, WHOLE = "encoder", "all"
TRANSFERS = (ENCODER_ALONE, WHOLE)  # what of pre-trained weights is taken: stem and encoder, or whatever fits
CENTRE, AVERAGE = "centre", "average"
INFLATIONS = (CENTRE, AVERAGE)  # how 2D kernels become 3D ones (weights/inflation.py)


@dataclass(frozen=True)
class StartingWeights:
    """The weights that training starts from: their name, and the SHA-256 of their file.

    `head` is "slice" (its rows of the same classes), "reset", or "reuse": all of it, with its `classes`. `pretext` is
    the method that trained them without labels. `transfer` is one of TRANSFERS, None where it goes without saying;
    `taken` says it. `inflate` is one of INFLATIONS for 2D weights in a 3D network.
    """

    name: str
    sha256: str
    head: str
    classes: Sequence[str] | None = None
    pretext: str | None = None
    transfer: str | None = None
    inflate: str | None = None

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "StartingWeights":
        """Return the weights that a plan holds in this form."""
        optional = {key: content.get(key) for key in ("classes", "pretext", "transfer", "inflate")}
        return cls(content["name"], content["sha256"], content["head"], **optional)

    def to_json(self) -> dict[str, Any]:
        """Return the weights in the form in which a plan holds them."""
        classes = None if self.classes is None else list(self.classes)
        known = {"name": self.name, "sha256": self.sha256, "head": self.head, "classes": classes}
        known |= {"pretext": self.pretext, "transfer": self.transfer, "inflate": self.inflate}
        return {key: value for key, value in known.items() if value is not None}

    @property
    def taken(self) -> str | None:
        """What is taken, of TRANSFERS, or None: what the pretext's file says. Older plans name none, and take all."""
        return self.transfer or (None if self.pretext else WHOLE)

    def tags(self, pretraining: bool) -> list[str]:
        """Return the parts of a plan's name that tell what is unusual about the weights and what is taken of them.

        Args:
            pretraining: The plan is that of a pre-training.
        """
        # There, as with the heads of a pretext or the encoder alone, heads are new in any case: not worth a tag.
        new = pretraining or self.pretext or self.transfer == ENCODER_ALONE
        head = [] if self.head == "slice" or new else [self.head]
        inflate = [f"inflate-{self.inflate}"] if self.inflate else []
        return [*filter(None, (self.pretext, self.transfer)), *head, *inflate]


@dataclass(frozen=True)
class Configuration:
    """A configuration with everything that it inherits. What is missing raises a DataError that names it."""

    name: str
    plan_name: str
    content: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """Return a value by nnU-Net's name for it, to be compared or recorded; None if it is missing."""
        return self.content.get(key)

    @property
    def data_identifier(self) -> str:
        """The name of the folder with the preprocessed cases."""
        return self._of("data_identifier")

    @property
    def spacing(self) -> list[float]:
        """In mm, in the transposed order of axes."""
        return list(self._of("spacing"))

    @property
    def patch_size(self) -> list[int]:
        """In voxels."""
        return list(self._of("patch_size"))

    @property
    def batch_size(self) -> int:
        """Samples per step of the optimizer, of all processes together."""
        return self._of("batch_size")

    @property
    def median_shape(self) -> list[float]:
        """Shape of the median image at the spacing, in voxels; empty if the plan does not state it."""
        return list(self.content.get("median_image_size_in_voxels", ()))

    @property
    def normalization(self) -> list[str]:
        """nnU-Net's normalization scheme of each channel."""
        return list(self._of("normalization_schemes"))

    @property
    def preprocessor(self) -> str:
        """The name of nnU-Net's class that preprocesses the cases."""
        return str(self._of("preprocessor_name"))

    def resampling(self, what: str) -> str:
        """Return the name of nnU-Net's function that resamples "data", "seg" or "probabilities"."""
        return str(self._of(f"resampling_fn_{what}"))

    @property
    def resamples(self) -> bool:
        """Whether images are resampled to the spacing, which is otherwise their median."""
        return self.resampling("data") != "no_resampling_hack"

    @property
    def previous_stage(self) -> str | None:
        """The configuration whose predictions this one takes as input, in a cascade."""
        return self.content.get("previous_stage")

    @property
    def next_stages(self) -> tuple[str, ...]:
        """The configurations that take the predictions of this one; nnU-Net writes a name or a list of names."""
        stages = self.content.get("next_stage") or ()
        return (stages,) if isinstance(stages, str) else tuple(stages)

    @property
    def has_network(self) -> bool:
        """Whether the plan describes the network, as nnU-Net does since 2.3."""
        return "architecture" in self.content

    @property
    def network_class(self) -> str | None:
        """The class of the network, with its module."""
        return self._architecture.get("network_class_name")

    @property
    def network_arguments(self) -> dict[str, Any]:
        """The arguments of the network's class, besides channels and classes."""
        return dict(self._architecture.get("arch_kwargs") or {})

    @property
    def strides(self) -> Strides:
        """One entry per stage, the first all ones."""
        return [list(stride) for stride in self._of_network("strides")]

    @property
    def checkpointing(self) -> bool:
        """Whether stages are computed again in the backward pass, which takes less memory."""
        return bool(self.network_arguments.get("checkpointing", False))

    @property
    def memory_gb(self) -> float | None:
        """GPU memory of a training step: measured if a probe was made, else estimated; None if nobody knows."""
        # derive.py drops a measurement as soon as patch or batch are others than those that were measured.
        return self._memory.get("measured_gb", self._memory.get("memory_gb"))

    @property
    def is_measured(self) -> bool:
        """Whether `memory_gb` was measured by a probe."""
        return "measured_gb" in self._memory

    # Values that describe weights of other programs, whose plans may lack them.

    @property
    def known_spacing(self) -> list[float] | None:
        """The spacing in mm, if the plan states it."""
        return self.content.get("spacing")

    @property
    def known_normalization(self) -> list[str] | None:
        """The normalization schemes, if the plan states them."""
        return self.content.get("normalization_schemes")

    @property
    def known_strides(self) -> Strides | None:
        """The strides, if the plan states them."""
        return self.network_arguments.get("strides")

    @property
    def pooling(self) -> Strides | None:
        """The strides where nnU-Net 2.2 and earlier stated them, which described no network."""
        return self.content.get("pool_op_kernel_sizes")

    @property
    def _memory(self) -> Mapping[str, float]:
        return self.content.get("stunet", {})

    @property
    def _architecture(self) -> Mapping[str, Any]:
        return self.content.get("architecture") or {}

    def _of(self, key: str) -> Any:
        if key not in self.content:
            raise DataError(f"configuration {self.name!r} of plans {self.plan_name!r}: missing {key!r}", HINT)
        return self.content[key]

    def _of_network(self, key: str) -> Any:
        if key not in self.network_arguments:
            raise DataError(f"configuration {self.name!r} of plans {self.plan_name!r}: missing arch_kwargs.{key}", HINT)
        return self.network_arguments[key]


@dataclass(frozen=True)
class Plan:
    """A plan; `content` is the JSON document, which must not be modified."""

    content: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the document, as a copy that may be modified: nnU-Net's trainer takes a key out of its plans."""
        return copy.deepcopy(dict(self.content))

    def get(self, key: str) -> Any:
        """Return a value by nnU-Net's name for it, to be compared or recorded; None if it is missing."""
        return self.content.get(key)

    # What nnU-Net's keys say.

    @property
    def name(self) -> str:
        """The name, which is in the names of files and of result folders; "" if the plan has none."""
        return str(self.content.get("plans_name", ""))

    @property
    def dataset_name(self) -> str:
        """The dataset that was planned; "" if the plan does not state it."""
        return str(self.content.get("dataset_name", ""))

    @property
    def reader(self) -> str:
        """The name of nnU-Net's class that reads images and writes segmentations; "" if the plan does not state it."""
        return str(self.content.get("image_reader_writer", ""))

    @property
    def label_manager(self) -> str:
        """The name of nnU-Net's class that interprets labels."""
        return str(self.content.get("label_manager", ""))

    @property
    def transpose_forward(self) -> list[int]:
        """The order that an image's array axes are brought to."""
        return list(self.content["transpose_forward"])

    @property
    def intensities(self) -> Mapping[str, Mapping[str, float]] | None:
        """Statistics of the foreground's intensities by the number of the channel, if the plan states them."""
        return self.content.get("foreground_intensity_properties_per_channel")

    @property
    def configurations(self) -> tuple[str, ...]:
        """The names of the configurations."""
        return tuple(self.content.get("configurations") or ())

    @property
    def configurations_with_network(self) -> tuple[str, ...]:
        """The configurations that have a network of their own; a cascade's second stage inherits its network."""
        return tuple(name for name in self.configurations if "architecture" in self.own_values(name))

    def own_values(self, configuration: str) -> Mapping[str, Any]:
        """Return the part of the document that is a configuration's own, without what it inherits."""
        return dict(self.content["configurations"][configuration])

    def configuration(self, name: str) -> Configuration:
        """Return a configuration with everything that it inherits (nnU-Net's `inherits_from`).

        Raises:
            DataError: It or one that it inherits from does not exist, or the inheritance is circular.
        """
        resolved: dict[str, Any] = {}
        # Farthest first: a configuration's own values replace those that it inherits.
        for each in reversed(self.lineage(name)):
            own = self.own_values(each)
            if "architecture" in own:
                resolved.pop("stunet", None)  # the memory of another network
            resolved |= own
        resolved.pop("inherits_from", None)
        return Configuration(name, self.name, resolved)

    def lineage(self, configuration: str) -> list[str]:
        """Return the configuration and those that it inherits from, nearest first; raise as configuration() does."""
        names: list[str] = []
        name: str | None = configuration
        while name is not None:
            if name not in self.configurations:
                near = closest(name, list(self.configurations))
                known = f"one of {', '.join(self.configurations)}"
                raise DataError(f"no configuration {name!r} in plans {self.name!r}{near}", known)
            if name in names:
                raise DataError(
                    f"configurations {' -> '.join([*names, name])} inherit in a circle", "correct the plans file"
                )
            names.append(name)
            name = self.own_values(name).get("inherits_from")
        return names

    # What our block says. Foreign plans have none; their values are the defaults, or None.

    @property
    def is_ours(self) -> bool:
        """Whether the plan was made, or derived from another program's, by stunet."""
        return isinstance(self.content.get("stunet"), Mapping)

    @property
    def is_planned_by_us(self) -> bool:
        """Whether stunet planned it, or what it was derived from: other programs' plans may have keys of theirs."""
        return self.is_ours and self.content.get("experiment_planner_used", PLANNER) == PLANNER

    def states(self, key: str) -> bool:
        """Return whether our block has a value; earlier versions did not write all of them."""
        return key in self._ours

    @property
    def size(self) -> str | None:
        """The size of the networks, a key of SIZES; None for networks without sizes."""
        return self._ours.get("size")

    @property
    def network(self) -> str | None:
        """The network that was planned (plans/blueprints.py), of those without sizes; None if the plan names none."""
        return self._ours.get("network")

    @property
    def memory_gb(self) -> float | None:
        """GPU memory in GiB that patch and batch are fitted to; None: they are another program's, and stay."""
        return self._ours.get("memory_gb")

    @property
    def stages(self) -> int | None:
        """The number of stages of the networks; None: as many as each patch supports ("auto" in the document)."""
        return None if (stages := self._ours.get("stages")) == "auto" else stages

    @property
    def mirror_axes(self) -> list[int]:
        """Array axes, after the transposition, that are mirrored; all, as in nnU-Net, if the plan states none."""
        return list(self._ours.get("mirror_axes", range(3)))

    @property
    def orientation(self) -> str | None:
        """The axis codes that images are turned to, such as "LPS"; None if unknown."""
        return self._ours.get("orientation")

    @property
    def orientations(self) -> Mapping[str, int]:
        """How many images of the dataset have each orientation; images are turned if there are several."""
        return dict(self._ours.get("orientations", {}))

    @property
    def fingerprint(self) -> str | None:
        """The hash (files.py) of the fingerprint that the dataset was planned from."""
        return self._ours.get("fingerprint")

    @property
    def root(self) -> str:
        """The name of the plan that was planned and that this one derives from, its own if it was not derived."""
        return str(self._ours.get("derived_from", self.name))

    @property
    def is_derived(self) -> bool:
        """Whether the plan was derived from another one."""
        return "derived_from" in self._ours

    @property
    def finetune(self) -> str | None:
        """The name of the fine-tuning strategy (trainers/finetune/strategies.py)."""
        return self._ours.get("finetune")

    @property
    def pretext(self) -> str | None:
        """The method of self-supervised pre-training (trainers/pretexts/methods.py)."""
        return self._ours.get("pretext")

    @property
    def like(self) -> str | None:
        """The plan of another dataset whose input, patch and strides this one has, as `3:PLANS` (like.py)."""
        return self._ours.get("like")

    @property
    def planned_with(self) -> str | None:
        """The options of a planning for pre-trained weights (pretrained.py), for messages."""
        return self._ours.get("planned_with")

    @property
    def more_datasets(self) -> list[str]:
        """The full names of further datasets whose images are drawn, in a pre-training."""
        return list(self._ours.get("datasets", ()))

    @property
    def contained_shapes(self) -> Mapping[str, Sequence[int]]:
        """By configuration, the voxels per axis that 90 % of the scans contain, of datasets without labels."""
        return dict(self._ours.get("contained_shapes", {}))

    @property
    def weights(self) -> tuple[StartingWeights, ...]:
        """The weights that training starts from, one for each encoder; empty if it starts from none."""
        block = self._ours.get("weights") or ()
        return tuple(map(StartingWeights.read, [block] if isinstance(block, Mapping) else block))

    @property
    def reused_classes(self) -> Sequence[str] | None:
        """The classes of the weights' head, if it is used whole."""
        return self.weights[0].classes if len(self.weights) == 1 else None

    @property
    def train(self) -> TrainSettings:
        """The values of a training."""
        return TrainSettings.read(self.set_for_training)

    @property
    def constraints(self) -> PlanSettings:
        """The values that a user set and that shape the plan."""
        return PlanSettings.read(self.set_for_plan)

    @property
    def set_for_training(self) -> Mapping[str, Any]:
        """The training values that a user set, in their order."""
        return dict(self._ours.get("train", {}))

    @property
    def set_for_plan(self) -> Mapping[str, Any]:
        """The values that a user set and that shape the plan, in their order; also the memory target and the stages."""
        return dict(self._ours.get("plan", {}))

    # Plans with other values.

    def with_name(self, name: str) -> "Plan":
        """Return the plan under another name."""
        return self.with_values(plans_name=name)

    def with_values(self, **values: Any) -> "Plan":
        """Return the plan with these values of nnU-Net's, outside of any configuration."""
        return Plan({**self.content, **values})

    def with_ours(self, **values: Any) -> "Plan":
        """Return the plan with these values in our block; None removes a value."""
        # Only a value given as None removes its key: `...` stands for those that were not given.
        block = {key: value for key, value in {**self._ours, **values}.items() if values.get(key, ...) is not None}
        return Plan({**self.content, "stunet": block})

    def with_configuration(self, name: str, **values: Any) -> "Plan":
        """Return the plan with these values in a configuration, a new one if it has none of this name."""
        before = self.content["configurations"]
        return Plan({**self.content, "configurations": {**before, name: {**before.get(name, {}), **values}}})

    def with_network(self, name: str, **arguments: Any) -> "Plan":
        """Return the plan with these arguments of a configuration's network, which becomes its own."""
        before = self.configuration(name).content["architecture"]
        return self.with_configuration(
            name, architecture={**before, "arch_kwargs": {**before["arch_kwargs"], **arguments}}
        )

    def with_network_class(
        self, name: str, network_class: str, arguments: Mapping[str, Any], imports: Sequence[str] = ()
    ) -> "Plan":
        """Return the plan with another network in a configuration; nnU-Net imports those of `imports` by name."""
        network = {"network_class_name": network_class, "arch_kwargs": dict(arguments)}
        network["_kw_requires_import"] = [key for key in imports if key in arguments]
        return self.with_configuration(name, architecture=network)

    def with_weights(self, weights: Sequence[StartingWeights]) -> "Plan":
        """Return the plan with these weights to start from."""
        entries = [each.to_json() for each in weights]
        return self.with_ours(weights=entries if len(entries) > 1 else entries[0] if entries else None)

    def reduced_to(self, name: str) -> "Plan":
        """Return the plan with a single configuration, complete but for the network if nnU-Net 2.2 described that."""
        planned = {k: value for k, value in self.configuration(name).content.items() if k not in _OLD_NETWORK_KEYS}
        return self.with_values(configurations={name: planned})

    @property
    def _ours(self) -> Mapping[str, Any]:
        block = self.content.get("stunet")
        return block if isinstance(block, Mapping) else {}  # anything may be there in a checkpoint from elsewhere
