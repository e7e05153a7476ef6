"""Tests of engine/export.py and interpolation.py: labels are the argmax of nnU-Net's resampling in float64."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg
from scipy.ndimage import gaussian_filter, zoom

from stunet.inference.engine import export
from stunet.inference.engine.export import Slab, axes_between, label, probabilities
from stunet.inference.engine.interpolation import axis, between
from tests.loops import for_each
from tests.predictor_models import network_like

Shape = tuple[int, ...]
EPSILON = 2e-6  # float32's, with a few roundings of eight products


def resampled(logits_DHWK: torch.Tensor, target: Shape, nearest_axis: int | None = None, order: int = 1) -> np.ndarray:
    """nnU-Net's resampling of each class in float64, (K, D, H, W)."""
    values = logits_DHWK.permute(3, 0, 1, 2).double().numpy()
    return resample_data_or_seg(values, target, False, nearest_axis, order, nearest_axis is not None, order_z=0)


def gaps(values_KDHW: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how much the value of the label is below the largest."""
    return values_KDHW.max(0) - np.take_along_axis(values_KDHW, labels[None], 0)[0]


def slabs(logits_DHWK: torch.Tensor, ends: Sequence[int] = ()) -> Iterator[Slab]:
    """Slabs up to each of these planes; each begins with the last plane of the one before."""
    first = 0
    for end in (*ends, len(logits_DHWK)):
        yield Slab(first, logits_DHWK[first:end])
        first = end - 1


def labelled(
    logits_DHWK: torch.Tensor,
    target: Shape,
    nearest_axis: int | None = None,
    order: int = 1,
    regions: Sequence[int] | None = None,
    ends: Sequence[int] = (),
) -> np.ndarray:
    """What label() writes, all planes together; -1 where it wrote nothing."""
    labels = np.full(target, -1)

    def write(start: int, values: torch.Tensor) -> None:
        assert values.dtype == torch.int16
        labels[start : start + len(values)] = values

    axes = axes_between(logits_DHWK.shape[:3], target, nearest_axis, order)
    label(slabs(logits_DHWK, ends), axes, regions, write)
    return labels


def likely(
    logits_DHWK: torch.Tensor, target: Shape, regions: Sequence[int] | None = None, ends: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """What probabilities() writes: labels and probabilities (K, D, H, W)."""
    labels, found = np.full(target, -1), np.full((logits_DHWK.shape[3], *target), np.nan)

    def write(start: int, values: torch.Tensor, each: torch.Tensor) -> None:
        labels[start : start + len(values)] = values
        found[:, start : start + len(values)] = each

    axes = axes_between(logits_DHWK.shape[:3], target, None, 1)
    probabilities(slabs(logits_DHWK, ends), axes, regions, write)
    return labels, found


def noise(shape: Shape, classes: int, seed: int = 0, sigma: float = 0.0) -> torch.Tensor:
    """Logits (D, H, W, K); smooth with a sigma, in voxels."""
    values = np.random.default_rng(seed).normal(size=(*shape, classes))
    if sigma:
        values = gaussian_filter(values, (sigma,) * 3 + (0,)) * 20
    return torch.from_numpy(values.astype(np.float32))


sizes = st.tuples(*[st.integers(1, 9)] * 3)
cuts = st.lists(st.integers(1, 8), max_size=4, unique=True).map(sorted)


@settings(deadline=None, max_examples=100)
@given(
    sizes,
    st.tuples(*[st.integers(1, 14)] * 3),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([0, 1]),
    st.integers(1, 5),
    st.sampled_from([0.0, 1.5]),
    st.integers(0, 99),
)
def test_labels_are_those_of_nnunets_resampling_in_float64(
    source: Shape, target: Shape, nearest_axis: int | None, order: int, classes: int, sigma: float, seed: int
) -> None:
    logits = noise(source, classes, seed, sigma)
    labels = labelled(logits, target, nearest_axis, order)
    values = resampled(logits, target, nearest_axis, order)
    assert (gaps(values, labels) <= EPSILON * np.abs(values).max()).all()
    if order == 0:
        np.testing.assert_array_equal(labels, values.argmax(0))


@for_each(
    ("sigma", "target", "nearest_axis"),
    [(0.0, (27, 23, 29), None), (2.0, (27, 23, 29), None), (2.0, (8, 10, 11), None), (2.0, (26, 20, 31), 0)],
)
def test_only_voxels_that_are_ties_in_float32_differ_and_hardly_any_is(
    sigma: float, target: Shape, nearest_axis: int | None
) -> None:
    logits = noise((16, 15, 17), 105, sigma=sigma)
    labels, values = labelled(logits, target, nearest_axis), resampled(logits, target, nearest_axis)
    top = np.sort(values, axis=0)
    ties = top[-1] - top[-2] <= EPSILON * np.abs(values).max()
    assert ties.mean() < 1e-3
    np.testing.assert_array_equal(labels[~ties], values.argmax(0)[~ties])
    assert len(np.unique(labels)) > 50


@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(2, 9)] * 3), st.tuples(*[st.integers(1, 14)] * 3), st.sampled_from([None, 0, 1]), cuts)
def test_labels_do_not_depend_on_how_the_planes_are_cut(
    source: Shape, target: Shape, nearest_axis: int | None, ends: list[int]
) -> None:
    logits = noise(source, 4)
    ends = [end for end in ends if end < source[0]]
    whole = labelled(logits, target, nearest_axis)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "VOXELS_AT_A_TIME", 20)
        patch.setattr(export, "VALUES_CPU", 30)
        np.testing.assert_array_equal(labelled(logits, target, nearest_axis, ends=ends), whole)


def test_half_precision_slabs_give_the_labels_of_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "COPIED_AT_A_TIME", 3 * 11 * 10 * 7)
    logits = noise((12, 11, 10), 7, sigma=1.0).half()
    np.testing.assert_array_equal(
        labelled(logits, (17, 11, 14), ends=(4, 9)), labelled(logits.float(), (17, 11, 14), ends=(4, 9))
    )


def test_slabs_that_are_part_of_a_larger_array_are_read_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "COPIED_AT_A_TIME", 1)
    logits = noise((12, 14, 16), 7, sigma=1.0)
    part = logits[:, 2:12, 3:13]
    np.testing.assert_array_equal(labelled(part, (17, 11, 14)), labelled(part.contiguous(), (17, 11, 14)))


def test_where_classes_are_equal_the_smaller_one_is_taken() -> None:
    constant = torch.full((5, 6, 7, 4), 0.1)
    assert (labelled(constant, (9, 8, 13)) == 0).all()
    logits = noise((8, 9, 10), 5, sigma=1.0)
    logits[..., 4] = logits[..., 2]
    labels = labelled(logits, (13, 11, 12))
    assert 2 in labels
    assert 4 not in labels
    assert (labelled(logits, (8, 9, 10)) != 4).all()


def test_more_classes_than_a_byte_holds_keep_their_numbers() -> None:
    logits = noise((6, 6, 6), 300)
    values = resampled(logits, (9, 6, 8))
    labels = labelled(logits, (9, 6, 8))
    assert labels.max() > 255
    assert (gaps(values, labels) <= EPSILON * np.abs(values).max()).all()


def overwritten(inside_KDHW: np.ndarray, regions: Sequence[int]) -> np.ndarray:
    """nnU-Net's labels of regions: later ones over earlier ones."""
    labels = np.zeros(inside_KDHW.shape[1:], int)
    for inside, value in zip(inside_KDHW, regions, strict=True):
        labels[inside] = value
    return labels


@for_each("regions", [(1, 2, 3), (3, 1, 2), (7, 7, 2), tuple(range(1, 71))])
@for_each("sigma", [0.0, 2.0])
def test_regions_overwrite_each_other_in_their_order(regions: tuple[int, ...], sigma: float) -> None:
    logits = noise((9, 10, 8), len(regions), sigma=sigma) - 0.5
    values = resampled(logits, (15, 8, 13))
    ties = (np.abs(values) <= EPSILON * np.abs(values).max()).any(0)
    assert ties.mean() < 1e-2
    for labels in (
        labelled(logits, (15, 8, 13), regions=regions, ends=(4,)),
        likely(logits, (15, 8, 13), regions, ends=(4,))[0],
    ):
        np.testing.assert_array_equal(labels[~ties], overwritten(values > 0, regions)[~ties])
    assert len(np.unique(labels)) > 1


def test_the_last_of_many_regions_is_seen_between_grid_points() -> None:
    logits = torch.full((4, 4, 4, 70), -1.0)
    logits[2:, ..., 69] = 1.0
    np.testing.assert_array_equal(labelled(logits, (16, 4, 4), regions=range(1, 71))[:, 0, 0], [0] * 8 + [70] * 8)


@for_each("regions", [None, (1, 2, 3)])
@for_each("target", [(6, 7, 8), (11, 5, 12)])
@for_each("ends", [(), (1,), (3, 5)])
def test_probabilities_are_softmax_or_sigmoid_of_the_interpolated_logits(
    regions: tuple[int, ...] | None, target: Shape, ends: tuple[int, ...]
) -> None:
    logits = noise((6, 7, 8), 3)
    kept = logits.clone()
    labels, found = likely(logits, target, regions, ends)
    values = torch.from_numpy(resampled(logits, target))
    expected = values.softmax(0) if regions is None else values.sigmoid()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(labels, labelled(logits, target, regions=regions))
    assert torch.equal(logits, kept)


def test_network_like_logits_agree_with_nnunets_export_up_to_its_half_precision() -> None:
    """nnU-Net resamples logits to half precision: two that are equal there may differ by four roundings of 2^-11."""
    logits = network_like((30, 33, 27), 25)
    target = (45, 50, 41)
    labels = labelled(logits, target)
    stock = resample_data_or_seg(logits.permute(3, 0, 1, 2).half().numpy(), target, order=1)
    assert stock.dtype == np.half
    differ = labels != stock.argmax(0)
    assert differ.mean() <= 5e-5
    values = resampled(logits, target)
    assert (gaps(values, labels) <= EPSILON * np.abs(values).max()).all()
    theirs = gaps(values, stock.argmax(0))
    assert (theirs[differ] <= 4 * 2**-11 * np.abs(values).max(0)[differ]).all()
    assert differ.any()
    assert len(np.unique(labels)) == 25


@for_each("linear", [True, False])
@for_each(("source", "target"), [(7, 7), (7, 12), (7, 3), (1, 5), (6, 1), (2, 9), (4, 8), (8, 4)])
def test_positions_on_an_axis_are_scipys(source: int, target: int, linear: bool) -> None:
    line = np.random.default_rng(1).normal(size=source)
    found = axis(source, target, linear)
    fraction = found.fraction.double().numpy()
    values = line[found.lower] * (1 - fraction) + line[found.upper] * fraction
    expected = zoom(line, target / source, order=int(linear), mode="nearest", grid_mode=True)
    np.testing.assert_allclose(values, expected, atol=1e-6)


@given(st.integers(1, 12), st.integers(1, 30), st.booleans(), cuts)
def test_ranges_of_source_planes_share_out_every_target_plane_once(
    source: int, target: int, linear: bool, ends: list[int]
) -> None:
    whole = axis(source, target, linear)
    planes = [0, *[end for end in ends if end < source - 1], source - 1]
    found: list[int] = []
    for low, high in itertools.pairwise(planes):
        start, stop = whole.planes(low, high)
        assert not len(found) or start == found[-1] + 1 or start == stop
        found += range(start, stop)
        part = whole.part(start, stop, low)
        assert (part.lower >= 0).all()
        assert (part.upper <= high - low).all()
    if source > 1:
        assert found == list(range(target))


def test_values_between_voxels_are_those_of_torch() -> None:
    values = noise((5, 6, 4), 3)
    axes = axes_between((5, 6, 4), (9, 8, 8), None, 1)
    everywhere = torch.meshgrid(*[torch.arange(n) for n in (9, 8, 8)], indexing="ij")
    found = between(values, axes, [index.flatten() for index in everywhere]).view(9, 8, 8, 3)
    expected = torch.nn.functional.interpolate(values.permute(3, 0, 1, 2)[None], (9, 8, 8), mode="trilinear")
    torch.testing.assert_close(found, expected[0].permute(1, 2, 3, 0), atol=1e-5, rtol=1e-5)
