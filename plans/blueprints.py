"""The networks that can be planned by name (`--network`): STU-Net in each size, and those of nnU-Net's planners.

Widths and blocks of nnU-Net's are those of its ExperimentPlanner and ResEncUNetPlanner (2.8.1). Its presets M, L and XL
are one network, planned for 8, 24 and 40 GB. Patch, batch and depth follow from the memory in planning (fit.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stunet.architectures.base import Architecture, Recognised
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.architectures.stunet import STUNET
from stunet.plans.topology import DEFAULT_STAGES
from stunet.sizes import DEFAULT as DEFAULT_SIZE
from stunet.sizes import SIZES

OF_NNUNET = {  # tag in the plans' name, architecture, memory target in GiB
    "plain": ("Plain", PLAIN_UNET, 8.0),
    "resenc-m": ("ResEncM", RESENC, 8.0),
    "resenc-l": ("ResEncL", RESENC, 24.0),
    "resenc-xl": ("ResEncXL", RESENC, 40.0),
}
DEFAULT_GB = {"plain": 8.0, "resenc": 24.0}  # for those that pre-trained weights bring
# The same networks where pre-trained weights brought them, with other widths or depths: name in a plan, and tag.
NAMES = {PLAIN_UNET.class_name: "plain", RESENC.class_name: "resenc"}
TAGS = {"resenc": "ResEnc", **{name: tag for name, (tag, *_) in OF_NNUNET.items()}}
# nnU-Net's own planners that `-pl` takes, with the names that they give to plans.
STOCK_PLANS = {
    "ExperimentPlanner": "nnUNetPlans",
    "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans",
    "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
    "nnUNetPlannerResEncXL": "nnUNetResEncUNetXLPlans",
}


@dataclass(frozen=True)
class Blueprint:
    """A network to plan.

    Attributes:
        name: As in `--network`.
        tag: Part of the plans' name: STUNetPlans_<tag>.
        architecture: Which network it is.
        target_gb: GPU memory in GiB that a training step may take, unless another is asked for; None: as planned.
        size: Its size; None for networks without sizes.
        found: The network of pre-trained weights, with their strides if these matter; None: the usual one.
    """

    name: str
    tag: str
    architecture: Architecture
    target_gb: float | None
    size: str | None = None
    found: Recognised | None = None

    def arguments(self, ndim: int) -> dict[str, Any]:
        """Return a plan's arguments for two stages; what follows from the strides is laid out for the real ones."""
        given = {"size": self.size} if self.size else self.architecture.usual(ndim)
        return self.architecture.laid_out(given, [[1] * ndim] * 2, [[3] * ndim] * 2)

    @property
    def stages(self) -> int | str:
        """The number of stages that a plan states, unless another is asked for."""
        if self.architecture.depth_by_patch:
            return "auto"
        return self.found.stages if self.found else DEFAULT_STAGES

    @property
    def option(self) -> str:
        """The option that asks for it."""
        return f"--size {self.size}" if self.size else f"--network {self.name}"


def blueprints() -> Mapping[str, Blueprint]:
    """Return the networks by name."""
    found = [Blueprint(f"stunet-{size.lower()}", size, STUNET, known.target_gb, size) for size, known in SIZES.items()]
    found += [Blueprint(name, *row) for name, row in OF_NNUNET.items()]
    return {each.name: each for each in found}


def of_weights(network: Recognised) -> Blueprint:
    """Return the network of pre-trained weights, for plans that take it.

    Args:
        network: With strides, if these matter and are known.
    """
    if network.size:
        return replace(of_size(network.size), found=network)
    name = NAMES[network.architecture.class_name]
    return Blueprint(name, TAGS[name], network.architecture, None, None, network)


def of_size(size: str = DEFAULT_SIZE) -> Blueprint:
    """Return STU-Net of a size, a key of SIZES."""
    return blueprints()[f"stunet-{size.lower()}"]
