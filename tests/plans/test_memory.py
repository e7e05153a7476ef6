"""The memory model: its counts against torch, its total against published figures."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stunet.architectures.stunet import STUNET
from stunet.networks import SIZES, STUNet
from stunet.plans import memory, topology
from stunet.plans.blueprints import blueprints
from stunet.plans.demand import Demand
from stunet.plans.memory import Network
from tests.loops import for_each

ISOTROPIC = [[1, 1, 1]] + [[2, 2, 2]] * 5


def saved_bytes(
    network: nn.Module, shape: tuple[int, ...], call: Callable[[torch.Tensor], object] | None = None
) -> int:
    """Bytes of distinct tensors that autograd keeps, without parameters and without the statistics of the norms."""
    kept: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        # By storage: as matrix products, 1x1x1 convolutions keep a view with a single axis of space.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and tensor.ndim >= 3:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = (call or network)(torch.zeros(shape))
        total = sum(kept.values())
        del outputs
    return total


@for_each("size", ["T", "S"])
@for_each("strides", [ISOTROPIC[:4], [[1, 1, 1], [1, 2, 2], [2, 2, 2]]])
def test_counted_activations_equal_what_autograd_keeps(size: str, strides: list[list[int]]) -> None:
    network = STUNet(1, 3, size, strides)
    patch = (16, 32, 32)
    counted = memory.activation_bytes(Network({"size": size}, 1, 3), patch, strides) * memory.SINGLE // memory.HALF
    image = 4 * 16 * 32 * 32  # the input, which the stem's two convolutions keep
    assert saved_bytes(network, (1, 1, *patch)) == pytest.approx(counted + image, rel=0.01)


@for_each("demand", [Demand(), Demand(decoded=()), Demand(encoded=(0.25, 0.25), decoded=())])
@for_each("checkpointing", [False, True])
def test_what_a_pretext_keeps_is_counted(demand: Demand, checkpointing: bool) -> None:
    """Views of a quarter of the patch: half of it along two axes."""
    strides, patch = ISOTROPIC[:4], (16, 32, 32)
    network = STUNet(1, 1, "S", strides, checkpointing=checkpointing)
    size = patch if demand.encoded[0] == 1 else (16, 16, 16)

    def passed(image: torch.Tensor) -> object:
        features = [STUNET.features(network, image) for _ in demand.encoded]
        return STUNET.decode(network, features[0]) if demand.decoded else [each[-1] for each in features]

    counted = memory.activation_bytes(
        Network({"size": "S", "checkpointing": checkpointing}, 1, 1, demand=demand), patch, strides
    )
    image = 4 * 16 * size[1] * size[2]
    found = saved_bytes(network, (1, 1, *size), passed)
    if not checkpointing:  # which recomputes one stage at a time: its activations are not there yet
        assert found == pytest.approx(2 * counted + image, rel=0.01)
    assert found <= 1.01 * (2 * counted + image)


def test_what_is_not_trained_takes_less_and_a_teacher_takes_more() -> None:
    def gb(demand: Demand, batch: int = 0) -> float:
        return memory.estimate(Network({"size": "H"}, 1, 1, demand=demand), (64,) * 3, batch, ISOTROPIC)

    encoder = SIZES["H"].encoder_parameters()
    decoder = SIZES["H"].parameters(1, 1) - encoder
    assert gb(Demand()) - gb(Demand(decoded=())) == pytest.approx(10 * decoder / memory.GIB)
    assert gb(Demand(decoded=(), teacher=1.0)) - gb(Demand(decoded=())) == pytest.approx(6 * encoder / memory.GIB)
    assert gb(Demand(teacher=1.0), 2) > gb(Demand(), 2) + gb(Demand(teacher=1.0)) - gb(Demand())
    assert gb(Demand(parameters=10**8, stored=10**8)) - gb(Demand()) == pytest.approx(18e8 / memory.GIB)


@for_each(("size", "published_gb"), [("S", 5.2), ("B", 8.8), ("L", 26.5)])
def test_published_memory_is_reproduced(size: str, published_gb: float) -> None:
    patch = (128, 128, 128)
    ours = memory.estimate(Network({"size": size}, 1, 3), patch, 2, ISOTROPIC)
    with_nnunets_loss = memory.estimate(Network({"size": size}, 1, 3, regions=True), patch, 2, ISOTROPIC)
    # The published form keeps the upsampled features (twice the channels) for the convolution that follows.
    channels = [SIZES[size].channels(stage) for stage in range(6)]
    upsampled = sum(memory.HALF * low * 128**3 // 8**k for k, low in enumerate(channels[1:]))
    published_form = with_nnunets_loss + memory.ACTIVATION_FACTOR * 2 * upsampled / memory.GIB
    assert published_form == pytest.approx(published_gb, rel=0.04)
    assert ours < with_nnunets_loss


@for_each(
    ("name", "patch", "published_gb"),
    [
        ("plain", (128, 128, 128), 7.7),
        ("resenc-m", (128, 128, 128), 9.1),
        ("resenc-l", (192, 192, 192), 22.7),
        ("resenc-xl", (224, 256, 224), 36.6),
    ],
)
def test_published_memory_of_nnunets_networks_is_met(name: str, patch: tuple[int, ...], published_gb: float) -> None:
    """With the patches that nnU-Net's planners give LiTS; which ones the figures are of is not published."""
    blueprint, spacing = blueprints()[name], [1.0, 0.77, 0.77]
    strides = topology.strides_by_patch(patch, spacing)
    network = Network(blueprint.arguments(3), 1, 3, architecture=blueprint.architecture).laid_out(strides, spacing)
    assert memory.estimate(network, patch, 2, strides) == pytest.approx(published_gb, rel=0.07)


def test_checkpointing_needs_less_and_more_classes_need_more() -> None:
    plain = memory.estimate(Network({"size": "L"}, 1, 3), (128,) * 3, 2, ISOTROPIC)
    assert memory.estimate(Network({"size": "L", "checkpointing": True}, 1, 3), (128,) * 3, 2, ISOTROPIC) < 0.8 * plain
    many = memory.estimate(Network({"size": "L"}, 1, 105), (128,) * 3, 2, ISOTROPIC)
    assert plain + 1.5 < many < plain + 2.5
    assert memory.estimate(Network({"size": "L"}, 1, 105, regions=True), (128,) * 3, 2, ISOTROPIC) > many + 7
