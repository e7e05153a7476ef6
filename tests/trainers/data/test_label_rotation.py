"""Augmentation: images and random numbers are nnU-Net's, labels equal its own, and their number costs little."""

from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import SpatialTransform, nnUNetTrainer

from stunet.trainers.data import augmentation
from stunet.trainers.data.label_rotation import CornerVote
from tests.loops import for_each

ANGLES = (-np.pi, np.pi)


def blobs(shape: tuple[int, ...], classes: int, seed: int) -> torch.Tensor:
    """Labels from -1 in blocks of two voxels, some of them noise."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(-1, classes - 1, [shape[0], *((n + 1) // 2 for n in shape[1:])])
    for axis in range(1, len(shape)):
        labels = labels.repeat(2, axis)
    labels = labels[tuple(slice(n) for n in shape)]
    noisy = generator.random(shape) < 0.2
    labels[noisy] = generator.integers(-1, classes - 1, noisy.sum())
    return torch.from_numpy(labels.astype(np.int16))


def transforms(patch: tuple[int, ...], **changes: Any) -> list[SpatialTransform]:
    """Stock's and ours, which always rotate and scale."""
    given = {"random_crop": False, "p_rotation": 1, "rotation": ANGLES, "p_scaling": 1, "scaling": (0.5, 1.6)}
    given |= {"border_mode_seg": "constant", "padding_value_seg": -1} | changes
    return [kind(patch, patch_center_dist_from_border=0, **given) for kind in (SpatialTransform, CornerVote)]


def applied(transform: Any, seed: int, **sample: torch.Tensor) -> dict[str, torch.Tensor]:
    np.random.seed(seed)
    torch.manual_seed(seed)
    return transform(**{name: array.clone() for name, array in sample.items()})


@for_each("changes", [{}, {"border_mode_seg": "zeros"}, {"p_elastic_deform": 1}, {"scaling": (1, 1)}])
@for_each(("shape", "patch"), [((1, 40, 36, 44), (32, 28, 30)), ((3, 60, 50), (48, 64))])
@for_each("classes", [2, 3, 30])
def test_labels_equal_those_of_the_stock_transform(
    shape: tuple[int, ...], patch: tuple[int, ...], classes: int, changes: dict[str, Any]
) -> None:
    different, voxels = 0, 0
    for seed in range(2):
        sample = {"image": torch.randn(1, *shape[1:]), "segmentation": blobs(shape, classes, seed)}
        theirs, ours = (applied(transform, seed, **sample) for transform in transforms(patch, **changes))
        assert torch.equal(ours["image"], theirs["image"])
        assert ours["segmentation"].dtype == theirs["segmentation"].dtype == torch.int16
        different += int((ours["segmentation"] != theirs["segmentation"]).sum())
        voxels += theirs["segmentation"].numel()
        assert len(theirs["segmentation"].unique()) == classes
    assert different <= 1e-5 * voxels + 1


def test_ties_between_voxels_are_settled_as_by_stock() -> None:
    theirs, ours = on_ties({})
    assert torch.equal(ours, theirs)


@for_each(
    "changes",
    [{"mode_seg": "nearest"}, {"border_mode_seg": "border"}, {"seg_tiebreak": "lowest"}, {"align_corners": True}],
)
def test_settings_that_the_vote_does_not_know_are_left_to_stock(changes: dict[str, Any]) -> None:
    theirs, ours = on_ties(changes)
    assert torch.equal(ours, theirs)
    assert not torch.equal(theirs, on_ties({})[0])  # so the setting matters here


def on_ties(changes: dict[str, Any]) -> list[torch.Tensor]:
    """What stock and ours make of points half-way between voxels, also beyond the border."""
    labels = blobs((1, 12, 12, 12), 5, 0)
    points = torch.arange(-1, 13) / 12 * 2 - 1
    grid = torch.stack(torch.meshgrid(points, points, points, indexing="ij"), dim=-1)
    return [t._apply_to_segmentation(labels, grid=grid) for t in transforms((14, 14, 14), **changes)]


@for_each("dummy_2d", [False, True])
@for_each(
    ("channels", "more"),
    [
        (1, {"foreground_labels": [1, 2, 3]}),
        (1, {"regions": [[1, 2, 3], [2]], "ignore_label": 4}),
        (2, {"foreground_labels": [1, 2, 3], "is_cascaded": True}),
    ],
)
def test_the_whole_augmentation_gives_what_nnunets_gives(channels: int, more: dict[str, Any], dummy_2d: bool) -> None:
    patch, scales = (16, 24, 20), [[1, 1, 1], [0.5, 0.5, 0.5]]
    arguments, stock = (patch, ANGLES, scales, (0, 1, 2), dummy_2d, [True]), nnUNetTrainer.get_training_transforms
    both = [stock(*arguments, **more), augmentation.build(stock, augmentation.REPLACED, *arguments, **more)]
    assert [type(t).__name__ for t in both[1].transforms].count("CornerVote") == 1
    moved = 0
    for seed in range(6):
        shape = (16, 30, 26) if dummy_2d else (22, 30, 26)
        sample = {"image": torch.randn(1, *shape), "segmentation": blobs((channels, *shape), 6, seed).clamp_(-1, 4)}
        theirs, ours = (applied(transform, seed, **sample) for transform in both)
        assert torch.equal(ours["image"], theirs["image"])
        for a, b in zip(ours["segmentation"], theirs["segmentation"], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        moved += len(sample["image"].unique()) != len(theirs["image"][:1].unique())
    assert moved
