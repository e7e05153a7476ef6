"""The methods of self-supervised pre-training, by name. To add one: its class in a file of its family, and a row here.

Does not import torch. base.py says what a class has to provide.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stunet.errors import UsageError, closest
from stunet.plans.demand import Demand

DEFAULT = "mae"


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        family: The file below stunet.trainers.pretexts that has the class.
        pretext: The name of the class.
        title: What it does, in a few words.
        transfers: What of the network is worth transferring: "encoder" or "all".
        mirrors: Whether patches are mirrored, as part of the loader's augmentation.
        turns: Whether patches are rotated and scaled by the loader.
        patches: Of different images in one sample, one behind the other along the channels.
        demand: What it takes of memory and batch, for planning; the default is that of `mae`.
        options: Arguments of the class.
        after: The method whose result it has to start from; None: it may start from a random network.
        rate: Share of nnU-Net's learning rate that it is trained with unless another one is set.
    """

    family: str
    pretext: str
    title: str
    transfers: str = "encoder"
    mirrors: bool = True
    turns: bool = True
    patches: int = 1
    demand: Demand = field(default_factory=Demand)
    options: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None
    rate: float = 1.0


# Turned patches have corners that tell where a part lies.
_PLAIN: dict[str, Any] = {"mirrors": False, "turns": False, "demand": Demand(decoded=())}
_CENTRED: dict[str, Any] = {**_PLAIN, "demand": Demand(encoded=(1 / 27,) * 9, decoded=())}
_RKB = {"turns": True}
_RKB_PLUS = {"turns": True, "masks": True}
# What of a decoder's weights sees the skip connections is not trained without them. With them it is, and was measured
# to be a bad start (benchmarks/selfsupervised.md), unlike published: none of these decoders is transferred.
_NO_SKIPS, _SKIPS = {"skips": False}, {"skips": True}
_FIVE = Demand(outputs=5)
# Crops of 0.8 of each side, heads of size B, and teachers that see both crops at a time.
_VIEWS = Demand(encoded=(0.8**3,) * 2, decoded=(), parameters=1_800_000, compares=True)
# At nnU-Net's rate the features grow a thousandfold, as only their directions matter (benchmarks/selfsupervised.md).
_SLOW = 0.3
_QUEUE = replace(_VIEWS, encoded=(0.8**3,), teacher=0.8**3, stored=4096 * 256)
_TAUGHT = replace(_VIEWS, teacher=2 * 0.8**3, parameters=2_400_000)
_CROPS = replace(_TAUGHT, encoded=(0.8**3,) * 2 + (0.5**3,) * 4, parameters=3_100_000)
_RESTORED = replace(_QUEUE, encoded=(1.0,), decoded=(1.0,) * 2, teacher=1.0)
_CELLS = replace(_VIEWS, encoded=(1.0, 4 / 27), teacher=1 + 4 / 27, compares=False)
# The parts of a volume are along its first axis: patches that were mirrored or turned would be of another part.
_SLABS: dict[str, Any] = {**_PLAIN, "demand": replace(_VIEWS, encoded=(0.8**3 / 4,) * 4)}
# The encoder is not trained, so like a teacher it only has a block at a time; the first levels are the small ones.
_REGIONS = Demand(encoded=(), decoded=(1 / 16,) * 2, teacher=2.0)
METHODS: dict[str, Method] = {
    "rot": Method("predictive", "Rotation", "recognise how a cube was turned", **_PLAIN),
    "rpl": Method("predictive", "Position", "recognise where a part of a patch lies", **_CENTRED),
    "jigsaw": Method("predictive", "Cubes", "recognise the order of eight cubes", **_PLAIN),
    "rkb": Method("predictive", "Cubes", "the same, and which are turned (Rubik's cube)", **_PLAIN, options=_RKB),
    "rkb-plus": Method("predictive", "Cubes", "the same, and which lack voxels", **_PLAIN, options=_RKB_PLUS),
    "rkb-deep": Method("predictive", "Cubes", "rkb with deeper heads", **_PLAIN, options={**_RKB, "deep": True}),
    "mae": Method("restorative", "Masked", "restore hidden blocks", options=_SKIPS),
    "mae-no-skips": Method("restorative", "Masked", "the same without skip connections", options=_NO_SKIPS),
    "mg": Method("restorative", "Genesis", "restore deformed patches (Models Genesis)", options=_NO_SKIPS),
    "mg-skips": Method("restorative", "Genesis", "the same with skip connections", options=_SKIPS),
    "ae": Method("restorative", "Autoencoder", "reproduce patches", options=_NO_SKIPS),
    "ae-skips": Method("restorative", "Autoencoder", "the same with skip connections", options=_SKIPS),
    "simclr": Method("contrastive", "SimCLR", "find the other view of a patch among a batch", demand=_VIEWS),
    "moco": Method("contrastive", "MoCo", "the same among a queue, with a teacher", demand=_QUEUE, rate=_SLOW),
    "byol": Method("contrastive", "BYOL", "predict what a teacher makes of the other view", demand=_TAUGHT),
    "dino": Method("distillation", "Distillation", "answer as a teacher that sees more", demand=_CROPS),
    "pcrl": Method(
        "combined", "PCRL", "moco, and restore views from its features", "all", demand=_RESTORED, rate=_SLOW
    ),
    "voco": Method("regional", "VoCo", "tell how much crops overlap the cells of a grid", demand=_CELLS),
    "global": Method("regional", "Global", "find slabs of the same part of aligned volumes", **_SLABS),
    "local": Method(
        "regional",
        "Local",
        "find regions in the decoder, with the encoder of global (--pretrained)",
        "all",
        demand=_REGIONS,
        after="global",
    ),
    "fusion": Method("restorative", "VolumeFusion", "tell how two patches were mixed", "all", patches=2, demand=_FIVE),
}


def find(name: str) -> Method:
    """Return the method of this name.

    Raises:
        UsageError: There is none.
    """
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}{closest(name, list(METHODS))}", f"one of {', '.join(METHODS)}")
    return METHODS[name]


def demand_of(name: str, augment: str) -> Demand:
    """Return what a method takes of memory and batch; views that may not be cropped are whole patches."""
    demand = find(name).demand
    if augment != "safe" or not demand.compares:
        return demand
    return replace(demand, encoded=(1.0,) * len(demand.encoded), teacher=demand.teacher and 2.0)


def build(name: str, network: Any, setting: Any) -> Any:
    """Return the pretext of a method; base.py explains `network` and `setting`."""
    method = find(name)
    module = importlib.import_module(f"stunet.trainers.pretexts.{method.family}")
    return getattr(module, method.pretext)(network, setting, **method.options)
