"""Masks become one label map by the policy that was asked for, and every voxel of several masks is counted."""

import gzip
from itertools import combinations
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from stunet.datasets.masks import OVERLAPS, merge, nifti_bytes, read_mask, read_nifti, total
from stunet.errors import DataError
from tests.loops import for_each

SHAPE = (4, 5, 6)
AFFINE = np.diag([1.5, 1.5, 3, 1])


def slow_merge(masks: list[np.ndarray | None], overlap: str) -> tuple[np.ndarray, dict[tuple[int, int], int]]:
    """The policy voxel by voxel."""
    sizes = [0 if mask is None else int((mask > 0).sum()) for mask in masks]
    size = next(len(mask) for mask in masks if mask is not None)
    ranks, overlaps = np.zeros(size, int), {}
    for voxel in range(size):
        owners = [rank for rank, mask in enumerate(masks, 1) if mask is not None and mask[voxel] > 0]
        for pair in combinations(owners, 2):
            overlaps[pair] = overlaps.get(pair, 0) + 1
        if len(owners) == 1 or (owners and overlap == "first"):
            ranks[voxel] = owners[0]
        elif owners:
            smallest = max(owners, key=lambda rank: (-sizes[rank - 1], rank))
            ranks[voxel] = {"last": owners[-1], "smallest": smallest, "ignore": len(masks) + 1}[overlap]
    return ranks, overlaps


@for_each("overlap", OVERLAPS)
@for_each("seed", range(4))
def test_merging_equals_the_policy_voxel_by_voxel(overlap: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks: list[Any] = [(rng.random(300) < share).astype(np.uint8) for share in (0.5, 0.1, 0.3, 0.3, 0.02)]
    masks[1] *= 255
    masks[2] = masks[3].astype(np.int16)
    masks.insert(2, None)
    merged = merge(masks, len(masks), 300, overlap)
    expected, overlaps = slow_merge(masks, overlap)
    np.testing.assert_array_equal(merged.ranks, expected)
    assert merged.overlaps == overlaps
    assert merged.voxels.tolist() == [0 if mask is None else int((mask > 0).sum()) for mask in masks]


def test_the_last_of_more_than_255_masks_has_its_own_rank() -> None:
    masks = [np.eye(300, dtype=np.uint8)[i] for i in range(300)]
    np.testing.assert_array_equal(merge(masks, 300, 300, "last").ranks, np.arange(1, 301))


def test_the_overlaps_of_cases_are_added_up_with_the_most_voxels_first() -> None:
    cases = [{("heart", "aorta"): 3, ("rib", "liver"): 10}, {("heart", "aorta"): 8}]
    assert total(cases) == [("heart", "aorta", 11, 2), ("rib", "liver", 10, 1)]


def test_a_mask_is_read_in_the_order_of_its_file_whatever_its_type(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).integers(0, 2, SHAPE)
    for kind in (np.uint8, np.int16, np.float32):
        for name in ("a.nii.gz", "a.nii"):
            nibabel.save(nibabel.Nifti1Image(expected.astype(kind), AFFINE), tmp_path / name)
            flat = read_mask(tmp_path / name, Path("ct.nii.gz"), SHAPE, AFFINE)
            np.testing.assert_array_equal(flat.reshape(SHAPE, order="F"), expected)


def test_scaled_values_are_unscaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.full(SHAPE, 7, np.uint8), AFFINE)
    image.header.set_slope_inter(2, -14)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    assert not read_mask(tmp_path / "a.nii", Path("ct.nii.gz"), SHAPE, AFFINE).any()


def _moved(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


@for_each(
    ("array", "affine", "message"),
    [
        (np.zeros((4, 5, 7), np.uint8), AFFINE, r"a.nii.gz' has the shape \(4, 5, 7\), 'ct.nii.gz' \(4, 5, 6\)"),
        (np.zeros(SHAPE, np.uint8), _moved(0.01), r"affine of .*a.nii.gz' differs .* by up to 0.01"),
        (np.full(SHAPE, -1, np.int16), AFFINE, "negative numbers or NaN"),
        (np.full(SHAPE, np.nan, np.float32), AFFINE, "negative numbers or NaN"),
    ],
)
def test_a_mask_of_another_grid_or_kind_is_refused(tmp_path: Path, array: Any, affine: Any, message: str) -> None:
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=message) as caught:
        read_mask(tmp_path / "a.nii.gz", Path("ct.nii.gz"), SHAPE, AFFINE)
    assert caught.value.hint


def test_rounding_in_headers_is_no_other_grid(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), _moved(1e-4)), tmp_path / "a.nii.gz")
    assert read_mask(tmp_path / "a.nii.gz", Path("ct.nii.gz"), SHAPE, AFFINE).all()


SOUND = gzip.compress(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE).to_bytes())
WRONG_SUM = SOUND[:-8] + bytes(4) + SOUND[-4:]
TEXT = gzip.compress(b"no image" * 200)
SHORT = gzip.compress(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE).to_bytes()[:-10])


@for_each("content", [b"", b"no image", SOUND[:-20], WRONG_SUM, TEXT, SHORT])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*a.nii.gz', it is damaged or truncated") as caught:
        read_nifti(tmp_path / "a.nii.gz")
    assert caught.value.hint
    with pytest.raises(DataError, match="no file"):
        read_nifti(tmp_path / "b.nii.gz")


def test_what_is_written_keeps_codes_and_units_and_is_the_same_every_time() -> None:
    like = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), None)
    like.set_sform(AFFINE, 2)
    like.header.set_xyzt_units("mm")
    content = nifti_bytes(np.ones(SHAPE, np.uint8), AFFINE, like)
    assert content == nifti_bytes(np.ones(SHAPE, np.uint8), AFFINE, like)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (0, 2)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(image.affine, AFFINE)
    assert image.get_data_dtype() == np.uint8
