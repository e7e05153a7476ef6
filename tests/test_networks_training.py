"""Does the network train in all the ways it is used: checkpointed, compiled, in half precision, distributed?"""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from stunet.networks import Size, STUNet, build
from tests.loops import for_each
from tests.processes import on_two_ranks

SHALLOW = [(1, 1, 1), (2, 2, 2), (1, 2, 2)]


def tiny(deep_supervision: bool = True, checkpointing: bool = False, strides: Sequence = SHALLOW) -> STUNet:
    torch.manual_seed(0)
    return STUNet(2, 3, Size(4, 2), strides, deep_supervision, checkpointing)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def step(network: nn.Module, x: Tensor) -> list[Tensor]:
    """The gradients of all parameters after one step whose loss weighs every logit differently."""
    network.zero_grad()
    sum(
        (logits * torch.linspace(-1, 1, logits.numel(), device=x.device).view_as(logits)).mean()
        for logits in network(x)
    ).backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


def test_initialisation_is_he_with_slope_and_zero_biases() -> None:
    torch.manual_seed(0)
    network = build("S", [(1, 1, 1)] + 4 * [(2, 2, 2)])
    checked = 0
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            assert bool((parameter == float("norm" in name and name.endswith("weight"))).all()), name
        elif parameter.numel() > 10_000:
            expected = math.sqrt(2 / (1 + 0.01**2) / math.prod(parameter.shape[1:]))
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.03), name
            checked += 1
    assert checked > 10


def test_checkpointing_changes_neither_logits_nor_gradients() -> None:
    x = image(2, 2, 8, 8, 8)
    plain, lean = tiny(), tiny(checkpointing=True)
    for ours, theirs in zip(lean(x), plain(x), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(step(lean, x), step(plain, x), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpointing_keeps_nothing_but_the_output_of_every_stage() -> None:
    x = image(1, 2, 16, 16, 16)
    voxels = [16 * 16 * 16, 8 * 8 * 8, 8 * 4 * 4]
    encoder, decoder, logits = [4, 8, 16], [4, 8, 0], [3, 3, 0]  # channels at each of these resolutions, float32
    expected = sum(4 * sum(channels) * n for *channels, n in zip(encoder, decoder, logits, voxels, strict=True))
    assert kept_bytes(tiny(checkpointing=True), x) == pytest.approx(expected, rel=0.01)
    assert kept_bytes(tiny(), x) > 4 * expected


def kept_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes allocated and not freed by a forward whose outputs are held: what waits for the backward."""
    with profile(profile_memory=True) as record:
        logits = network(x)
    del logits
    return sum(event.self_cpu_memory_usage for event in record.events())


def test_deep_supervision_can_be_switched_and_changes_no_parameter() -> None:
    network = tiny(deep_supervision=True)
    x = image(1, 2, 8, 8, 8)
    names = list(network.state_dict())
    heads = network(x)
    assert [tuple(head.shape[2:]) for head in heads] == [(8, 8, 8), (4, 4, 4)]
    network.decoder.deep_supervision = False
    assert torch.equal(network(x), heads[0])
    assert list(tiny(deep_supervision=False).state_dict()) == names


def test_it_compiles_into_one_graph() -> None:
    network = STUNet(2, 3, Size(4, 1), SHALLOW[:2])
    x = image(1, 2, 4, 4, 4)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(step(compiled, x), step(network, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_compiled_network_follows_the_switch_of_deep_supervision() -> None:
    network = tiny(strides=SHALLOW[:2])
    x = image(1, 2, 4, 4, 4)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    heads = compiled(x)
    network.decoder.deep_supervision = False
    torch.testing.assert_close(compiled(x), heads[0])


def test_bf16_autocast_trains_and_stays_near_float32() -> None:
    network, x = tiny(), image(1, 2, 8, 8, 8)
    exact = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    for ours, theirs in zip(logits, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert relative_error(ours, theirs) < 0.03
    sum(head.float().mean() for head in logits).backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in network.parameters())


@for_each("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_predict_nearly_the_same(dtype: torch.dtype) -> None:
    network, x = tiny(deep_supervision=False), image(1, 2, 8, 8, 8)
    with torch.inference_mode():
        exact = network(x)
        logits = network.to(dtype)(x.to(dtype))
    assert logits.dtype == dtype
    assert relative_error(logits, exact) < 0.03


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).detach().abs().mean() / exact.detach().abs().mean())


def test_channels_last_changes_nothing_but_the_layout() -> None:
    network, x = tiny(), image(2, 2, 8, 8, 8)
    expected = step(network, x)
    network.to(memory_format=torch.channels_last_3d)
    for ours, theirs in zip(step(network, x.to(memory_format=torch.channels_last_3d)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def check_shared_gradients(rank: int) -> None:
    torch.manual_seed(0)
    alone = STUNet(1, 2, "T", [(1, 1, 1), (2, 2, 2)])
    x = torch.randn(2, 1, 4, 4, 4)

    def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
        sum(logits.square().mean() for logits in network(x)).backward()
        return [parameter.grad.clone() for parameter in alone.parameters()]

    expected = gradients(alone, x)
    alone.zero_grad()
    together = nn.parallel.DistributedDataParallel(alone)
    for found, wanted in zip(gradients(together, x[rank : rank + 1]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.process
def test_two_processes_average_to_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    on_two_ranks(check_shared_gradients, tmp_path / "store")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_computes_what_the_cpu_computes() -> None:
    network, x = tiny(), image(2, 2, 8, 8, 8)
    expected = step(network, x)
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = step(network.to("cuda"), x.to("cuda"))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-4)
