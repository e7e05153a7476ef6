"""A pretext around a tiny network, and patches for it, for tests."""

from typing import Any

import torch
from torch import nn

from stunet.networks import STUNet
from stunet.trainers.pretexts.base import Patches, Setting
from stunet.trainers.pretexts.methods import build

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def make_pretext(
    method: str,
    patch: tuple[int, ...] = (16, 16, 16),
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    channels: int = 1,
    batch: int = 4,
    network: nn.Module | None = None,
    **setting: Any,
) -> Any:
    torch.manual_seed(0)
    if network is None:
        network = STUNet(channels, channels, "T", [stride[: len(patch)] for stride in STRIDES], deep_supervision=False)
        network.apply(network.initialize)
    return build(method, network, Setting(patch, spacing, batch, 100, **setting))


def make_draws(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def make_patches(count: int, *shape: int, channels: int = 1) -> Patches:
    """Return patches of noise."""
    return patches_of(torch.randn(count, channels, *shape, generator=torch.Generator().manual_seed(1)))


def patches_of(images: torch.Tensor, valid: torch.Tensor | None = None) -> Patches:
    """Return patches of these images, of which all counts if nothing is said; each is of another case."""
    count, everywhere = len(images), torch.ones_like(images[:, :1], dtype=torch.bool)
    places = torch.tensor([[0.0, 1.0]]).repeat(count, 1)
    return Patches(images, everywhere if valid is None else valid, make_draws(count), places, torch.arange(count))


def kept_rows(pretext: Any, **given: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return rows for update(): these, and features of noise, which all count; they are of one case."""
    generator, width = torch.Generator().manual_seed(4), sum(pretext.widths)
    rows = {name: torch.randn(4, 2, width, generator=generator) for name in ("features", "taught")}
    cases = torch.zeros(len(given.get("key", ())), dtype=torch.int64)
    return {**rows, "counts": torch.ones(4), "case": cases, **given}
