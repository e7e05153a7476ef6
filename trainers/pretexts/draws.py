"""Random numbers per sample: what is drawn for a sample depends on that sample's generator alone.

So a sample is treated alike in any batch, micro-batch and process. The generators are the CPU's, whatever device the
images are on: a run continues on another device with the same crops, masks and noise. B is the number of samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Draws = Sequence[torch.Generator]


def generators(seeds: Tensor) -> list[torch.Generator]:
    """Return a generator for each sample, from their seeds (B,), int64."""
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def integers(draws: Draws, high: int, *shape: int) -> Tensor:
    """Draw from 0, ..., high - 1; (B, *shape), int64."""
    return torch.stack([torch.randint(high, shape, generator=each) for each in draws])


def uniform(draws: Draws, low: float, high: float, *shape: int) -> Tensor:
    """Draw evenly from low to high; (B, *shape), float32."""
    return torch.stack([torch.rand(shape, generator=each) for each in draws]) * (high - low) + low


def flags(draws: Draws, probability: float, *shape: int) -> Tensor:
    """Draw True with a probability; (B, *shape), bool."""
    return torch.stack([torch.rand(shape, generator=each) for each in draws]) < probability


def normal(draws: Draws, *shape: int) -> Tensor:
    """Draw from the standard normal distribution; (B, *shape), float32."""
    return torch.stack([torch.randn(shape, generator=each) for each in draws])


def permutations(draws: Draws, count: int) -> Tensor:
    """Draw an order of 0, ..., count - 1; (B, count), int64."""
    return torch.stack([torch.randperm(count, generator=each) for each in draws])
