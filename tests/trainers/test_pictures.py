"""Pictures of a pre-training: in which epochs, and what is in the file."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.image import imread

from stunet.trainers.pictures import are_due, write
from stunet.workspace import DRAWN


def test_about_ten_are_drawn_the_first_and_the_last_among_them() -> None:
    drawn = [epoch for epoch in range(1, 101) if are_due(epoch, 100)]
    assert drawn == [1, *range(10, 101, 10)]
    assert [epoch for epoch in (1, 2, 3) if are_due(epoch, 3)] == [1, 2, 3]
    assert [epoch for epoch in range(1, 1001) if are_due(epoch, 1000)][:3] == [1, 100, 200]


def test_rows_are_slices_of_patches_and_columns_are_titles(tmp_path: Path) -> None:
    images = torch.rand(3, 2, 8, 12, 10, generator=torch.Generator().manual_seed(0))
    write({"input": torch.zeros_like(images), "output": images, "target": images}, tmp_path, 10)
    (file,) = tmp_path.glob(DRAWN[1])  # where a new training looks for what to remove
    assert file.name == "epoch_0010.png"
    picture = imread(file)[..., 0]  # (H, W), in [0, 1]
    height, width = picture.shape
    assert height > 1.7 * width  # two patches in three slices, three titles
    left, middle, right = np.array_split(picture[height // 8 :], 3, axis=1)
    assert left.max() < 0.1 < middle.mean()
    assert abs(middle.mean() - right.mean()) < 0.02


def test_a_slice_and_an_image_without_contrast_can_be_drawn(tmp_path: Path) -> None:
    write({"input": torch.zeros(1, 1, 8, 8), "target": torch.zeros(1, 1, 8, 8)}, tmp_path, 1)
    assert (tmp_path / "pictures" / "epoch_0001.png").is_file()
