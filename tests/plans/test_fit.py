"""Strides, patch and batch: properties that must hold for any dataset."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from stunet.architectures.resenc import RESENC
from stunet.errors import DataError, OutOfMemoryError
from stunet.plans import fit, memory, topology
from stunet.plans.demand import Demand
from stunet.plans.fit import MemoryTarget
from stunet.plans.memory import Network
from tests.loops import for_each

spacings = st.lists(st.floats(0.2, 8.0), min_size=2, max_size=3)
stages = st.one_of(st.none(), st.integers(2, 8))


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    spacing = draw(spacings)
    shape = draw(st.lists(st.integers(4, 700), min_size=len(spacing), max_size=len(spacing)))
    return spacing, shape


@settings(deadline=None, max_examples=150)
@given(
    datasets(),
    st.sampled_from("SBLH"),
    st.integers(1, 5),
    st.integers(2, 120),
    st.floats(4, 100),
    stages,
    st.booleans(),
)
def test_a_fit_is_divisible_not_too_small_and_within_the_target(
    dataset: tuple[list[float], list[int]],
    size: str,
    channels: int,
    classes: int,
    target_gb: float,
    depth: int | None,
    checkpointing: bool,
) -> None:
    spacing, shape = dataset
    network = Network({"size": size, "checkpointing": checkpointing}, channels, classes)
    try:
        found = fit.fit(network, spacing, shape, 100 * math.prod(shape), MemoryTarget(target_gb, depth))
    except OutOfMemoryError:
        return  # see test_what_does_not_fit_names_the_size_that_would
    assert all(n % d == 0 for n, d in zip(found.patch, topology.divisor(found.strides), strict=True))
    assert all(n >= least for n, least in zip(found.patch, topology.minimum(found.strides), strict=True))
    assert memory.estimate(network, found.patch, found.batch, found.strides) == found.memory_gb <= target_gb
    assert found.batch >= fit.MIN_BATCH
    assert len(found.strides) == depth or (depth is None and 4 <= len(found.strides) <= 7)
    assert topology.strides_for(found.patch, spacing, len(found.strides)) == found.strides


@given(datasets())
def test_strides_and_kernels_of_nnunets_networks_are_nnunets(dataset: tuple[list[float], list[int]]) -> None:
    spacing, shape = dataset
    _, theirs, kernels, _, _ = get_pool_and_conv_props(spacing, shape, topology.MIN_EDGE, 999)
    strides = topology.strides_by_patch(shape, spacing)
    if len(theirs) == 1:  # of which nnU-Net cannot build a network
        assert strides == [[1] * len(shape)] * 2
        return
    assert strides == [list(stride) for stride in theirs]
    assert topology.kernels_for(strides, spacing) == [list(kernel) for kernel in kernels]
    assert topology.strides_by_patch(shape, spacing, 2) == strides[:2]


@given(datasets(), st.integers(2, 8))
def test_strides_keep_the_resolution_of_coarse_axes(dataset: tuple[list[float], list[int]], depth: int) -> None:
    spacing, shape = dataset
    strides = topology.strides_for(shape, spacing, depth)
    pitch = list(spacing)
    assert strides[0] == [1] * len(shape)
    for stride in strides[1:]:
        for axis, factor in enumerate(stride):
            assert factor == 1 or pitch[axis] <= 2 * min(pitch)  # never halved at under half the resolution of another
        pitch = [p * f for p, f in zip(pitch, stride, strict=True)]
    assert max(topology.divisor(strides)) <= 2**topology.MAX_HALVINGS


@for_each(
    ("patch", "spacing", "expected"),
    [
        ([128, 128, 128], [1.5, 1.5, 1.5], [[2, 2, 2]] * 5),
        ([40, 56, 40], [1, 1, 1], [[2, 2, 2]] * 3 + [[1, 1, 1]] * 2),  # hippocampus: three halvings, six stages
        ([20, 256, 224], [5, 1.56, 1.56], [[1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]),  # ACDC
        ([64, 192, 160], [2, 0.69, 0.69], [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]),  # AMOS CT
    ],
)
def test_strides_of_known_datasets(patch: list[int], spacing: list[float], expected: list[list[int]]) -> None:
    assert topology.strides_for(patch, spacing, 6) == [[1, 1, 1], *expected]


def test_patch_grows_with_the_memory_and_then_the_batch() -> None:
    network, spacing, shape = Network({"size": "S"}, 1, 3), [1.5] * 3, [96, 96, 96]
    fits = [fit.fit(network, spacing, shape, 1e9, MemoryTarget(gb)) for gb in (3, 5, 8, 16)]
    volumes = [math.prod(found.patch) for found in fits]
    assert volumes == sorted(volumes)
    assert volumes[0] < volumes[-1] == 96**3
    assert [found.batch for found in fits] == sorted(found.batch for found in fits)
    assert fits[-1].batch > 2


def test_what_does_not_fit_names_the_size_that_would() -> None:
    with pytest.raises(OutOfMemoryError, match=r"STU-Net-H needs .* the target is 10 GB") as caught:
        fit.fit(Network({"size": "H"}, 1, 3), [1.0] * 3, [200] * 3, 1e9, MemoryTarget(10))
    assert "--size L" in caught.value.hint
    with pytest.raises(OutOfMemoryError) as caught:
        fit.fit(Network({"size": "S"}, 1, 3), [1.0] * 3, [200] * 3, 1e9, MemoryTarget(1))
    assert "-gpu_memory_target 3" in caught.value.hint


def test_a_probe_that_measures_more_makes_the_patch_smaller() -> None:
    network = Network({"size": "S"}, 1, 3)

    def search(correction: float) -> fit.Fit:
        return fit.fit(network, [1.0] * 3, [160] * 3, 1e9, MemoryTarget(6, correction=correction))

    measured = []

    def measure(found: fit.Fit) -> float:  # a device on which activations take half as much again
        measured.append(memory.estimate(network, found.patch, found.batch, found.strides, correction=1.5))
        return measured[-1]

    found, gigabytes, correction = fit.corrected(network, measure, search, 6)
    assert measured[0] > 6 >= gigabytes == measured[-1]
    assert math.prod(found.patch) < math.prod(search(1.0).patch)
    assert correction > 1


def test_a_pretraining_fits_its_patch_into_the_scans_and_its_batch_into_the_memory() -> None:
    def found(demand: Demand, shape: list[int], cases: int = 200) -> fit.Fit:
        network = Network({"size": "S"}, 1, 1, demand=demand)
        return fit.fit(network, [1.0] * 3, shape, cases * math.prod(shape), MemoryTarget(6))

    restores, compares = found(Demand(), [37, 50, 35]), found(Demand(decoded=(), compares=True), [37, 50, 35])
    assert restores.patch == compares.patch == [32, 48, 32]
    assert restores.batch < compares.batch == fit.MOST_COMPARED
    assert restores.memory_gb <= 6
    large = found(Demand(), [300, 300, 300])
    assert math.prod(large.patch) > 100**3
    assert large.memory_gb <= 6


def test_strides_that_stay_leave_the_last_stage_more_than_one_voxel() -> None:
    strides = [[1, 1, 1], *[[2, 2, 2]] * 5]
    arguments = RESENC.laid_out(RESENC.usual(3), strides, [[3, 3, 3]] * 6)
    network = Network(arguments, 1, 2, architecture=RESENC)
    small = fit.fit(network, [1, 1, 1], [16, 24, 30], 1e7, MemoryTarget(24, None), strides)
    assert sorted(small.patch) == [32, 32, 64]
    tight = fit.fit(network, [1, 1, 1], [100, 100, 100], 1e7, MemoryTarget(6, None), strides)
    assert math.prod(tight.patch) > 32**3
    with pytest.raises(OutOfMemoryError, match="even with its smallest patch"):
        fit.fit(network, [1, 1, 1], [100, 100, 100], 1e7, MemoryTarget(2.5, None), strides)
    # A pre-training learns nothing from padding.
    with pytest.raises(DataError, match=r"need \[32, 32, 32\] voxels, and scans have \[16, 24, 30\]"):
        fit.fit(replace(network, demand=Demand()), [1, 1, 1], [16, 24, 30], 1e7, MemoryTarget(24, None), strides)
