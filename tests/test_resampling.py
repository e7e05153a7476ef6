"""Resampling: labels bit by bit as nnU-Net's, images up to the rounding of the result, and little memory."""

import tracemalloc
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg

from stunet.resampling import resample_image, resample_labels
from tests.loops import for_each

SHAPES = st.tuples(*[st.integers(1, 12)] * 3)
FACTORS = st.sampled_from([0.5, 1, 2, 3])  # whole factors put new voxels between two old ones: ties
AXES = st.sampled_from([None, 0, 1, 2])
ORDERS = st.permutations(range(3))  # of the axes in memory


def stock(
    array: np.ndarray, new_shape: tuple[int, ...], axis: int | None, order: int, is_seg: bool = False
) -> np.ndarray:
    """nnU-Net's own result; the copy is for its in-place work."""
    return resample_data_or_seg(array.copy(), new_shape, is_seg, axis, order, axis is not None, order_z=0)


def assert_equal_up_to_rounding(ours: np.ndarray, theirs: np.ndarray, image: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype == np.float32
    ulp = np.spacing(np.abs(image).max())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=max(1e-6 * image.std(), 1.01 * ulp))


@settings(max_examples=80, deadline=None)
@given(SHAPES, SHAPES, AXES, ORDERS, st.integers(0, 2**32 - 1), st.data())
def test_labels_equal_nnunets_bit_by_bit(
    shape: tuple[int, ...], new: tuple[int, ...], axis: int | None, order: list[int], seed: int, data: Any
) -> None:
    generator = np.random.default_rng(seed)
    kind, classes = data.draw(st.sampled_from([(np.int16, 300), (np.int16, 3), (np.int8, 2), (np.float32, 5)]))
    if data.draw(st.booleans()):
        new = tuple(max(1, int(n * data.draw(FACTORS))) for n in shape)
    labels = generator.integers(-1, classes, [shape[i] for i in np.argsort(order)]).astype(kind).transpose(order)
    ours = resample_labels(labels, new, axis)
    assert ours.dtype == kind
    np.testing.assert_array_equal(ours, stock(labels[None], new, axis, 1, is_seg=True)[0])


@for_each(("kind", "classes"), [(np.uint16, 300), (np.int16, 300), (np.uint8, 4)])
@for_each("factor", [2, 3])
@for_each("axis", [None, 0, 2])
def test_ties_between_smooth_labels_are_settled_as_in_nnunet(
    kind: type, classes: int, factor: int, axis: int | None
) -> None:
    generator = np.random.default_rng(factor)
    some = generator.choice(classes, min(classes, 24), replace=False)  # nnU-Net resizes each label by itself
    labels = generator.choice(some, (2, 6, 5, 7)).astype(kind).repeat(2, axis=1).repeat(3, axis=3)
    new = tuple(factor * n for n in labels.shape[1:])
    np.testing.assert_array_equal(resample_labels(labels, new, axis), stock(labels, new, axis, 1, is_seg=True))


def test_weights_beyond_the_border_and_on_single_slices_are_scipys_to_the_last_bit() -> None:
    generator = np.random.default_rng(0)
    for _ in range(80):
        labels = generator.integers(-1, 3, (1, *generator.integers(1, 5, 3)))
        new = tuple(3 * n for n in labels.shape[1:])
        np.testing.assert_array_equal(resample_labels(labels, new), stock(labels, new, None, 1, is_seg=True))


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(*[st.integers(1, 40)] * 3), st.tuples(*[st.integers(1, 50)] * 3), AXES, ORDERS,
    st.sampled_from([0, 1, 3]), st.sampled_from([0.1, 1, 1000]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_images_equal_nnunets_up_to_the_rounding_of_the_result(
    shape: tuple[int, ...],
    new: tuple[int, ...],
    axis: int | None,
    memory: list[int],
    order: int,
    sigma: float,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    size = [2, *(shape[i] for i in np.argsort(memory))]
    image = generator.normal(scale=sigma, size=size).astype(np.float32).transpose(0, *(i + 1 for i in memory))
    ours = resample_image(image, new, axis, order)
    assert_equal_up_to_rounding(ours, stock(image, new, axis, order), image)


@for_each("axis", [None, 0, 1, 2])
@for_each("new", [(70, 9, 200), (131, 12, 33)])
def test_axes_longer_than_a_block_equal_nnunets_voxel_by_voxel(new: tuple[int, ...], axis: int | None) -> None:
    image = np.random.default_rng(0).normal(size=(1, 90, 7, 140)).astype(np.float32)
    ours, theirs = resample_image(image, new, axis), stock(image, new, axis, 3)
    assert (ours != theirs).mean() < 1e-4
    assert_equal_up_to_rounding(ours, theirs, image)


@for_each("axis", [None, 1])
def test_a_constant_image_stays_constant_and_overshoots_are_clipped(axis: int | None) -> None:
    image = np.full((2, 9, 8, 7), 0.3, np.float32)
    image[1, :, :, 4:] = 5
    ours = resample_image(image, (14, 12, 15), axis)
    assert (ours[0] == np.float32(0.3)).all()
    assert (ours[1].min(), ours[1].max()) == (np.float32(0.3), 5)
    np.testing.assert_array_equal(ours, stock(image, (14, 12, 15), axis, 3))


def test_the_same_shape_gives_back_what_was_given() -> None:
    image, labels = np.zeros((1, 3, 4, 5), np.float32), np.zeros((3, 4, 5), np.int8)
    assert resample_image(image, (3, 4, 5), 0) is image
    assert resample_labels(labels, (3, 4, 5)) is labels


def test_memory_beyond_the_result_does_not_grow_with_the_volume() -> None:
    def beyond_result_mb(depth: int, kind: str) -> float:
        image = np.random.default_rng(0).integers(0, 50, (1, depth, 32, 32)).astype(kind)
        resample = resample_image if kind == "float32" else resample_labels
        tracemalloc.start()
        result = resample(image, (depth * 3 // 2, 40, 40))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return (peak - result.nbytes) / 1e6

    for kind in ("float32", "int16"):
        assert beyond_result_mb(160, kind) < 1.2 * beyond_result_mb(80, kind) < 1.75
