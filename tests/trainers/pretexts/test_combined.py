"""PCRL: what it restores, from which features, and how that adds to MoCo's loss."""

import pytest
import torch
from torch.nn import functional as F

from stunet.trainers.pretexts.base import Setting
from stunet.trainers.pretexts.combined import change, mix
from stunet.trainers.pretexts.contrastive import EMBEDDED
from stunet.trainers.pretexts.methods import METHODS
from tests.pretext_inputs import kept_rows, make_patches, make_pretext

PATCH = (16, 16, 16)


def test_the_loss_is_mocos_and_half_of_each_restorations() -> None:
    pretext, moco = make_pretext("pcrl"), make_pretext("moco")
    for each in (pretext, moco):
        keys = F.normalize(torch.randn(4, EMBEDDED, generator=torch.Generator().manual_seed(2)))
        each.update(kept_rows(each, key=keys))
    rows = pretext.rows(make_patches(3, *PATCH))
    loss, measures = pretext.loss(rows)
    expected = moco.loss({name: rows[name] for name in ("query", "key", "case")})[0]
    expected = expected + (rows["error"].mean() + rows["mixed error"].mean()) / 2
    assert torch.allclose(loss, expected)
    assert set(measures) == {"score", "retrieval", "spread", "explained variance"}
    assert torch.allclose(measures["score"], (measures["retrieval"] + measures["explained variance"]) / 2)
    assert pretext.chance == moco.chance / 2
    assert METHODS["pcrl"].transfers == "all"


def test_a_target_is_changed_by_the_numbers_that_modulate_the_features() -> None:
    images = make_patches(3, *PATCH).images + 1
    numbers = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    same, brighter, flatter = change(images, numbers)
    assert torch.allclose(same, images[0], atol=1e-5)
    assert torch.allclose(brighter, 1.5 * images[1], atol=1e-5)
    assert torch.allclose(flatter.std(), images[2].std() / 1.5, atol=1e-5)
    assert torch.allclose(flatter.mean(), images[2].mean(), atol=1e-5)


def test_the_mix_has_more_of_the_student_and_a_share_per_sample() -> None:
    one, other = torch.ones(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4)
    assert mix(one, other, torch.tensor([0.5, 0.9])).amax((1, 2, 3, 4)).tolist() == pytest.approx([0.5, 0.9])
    pretext, decoded = make_pretext("pcrl"), []
    pretext._restored = lambda features: decoded.append(features) or torch.zeros(2, 1, *PATCH)
    pretext.compute(make_patches(2, *PATCH))
    (alone, mixed), teacher = decoded, pretext.taught(make_patches(2, *PATCH).images)
    assert [each.shape for each in alone] == [each.shape for each in mixed] == [each.shape for each in teacher]
    assert not any(torch.equal(a, b) for a, b in zip(alone, mixed, strict=True))


def test_only_voxels_that_count_are_restored() -> None:
    pretext, patches = make_pretext("pcrl"), make_patches(2, *PATCH)
    patches.valid.zero_()
    rows = pretext.rows(patches)
    assert not bool(rows["error"].any() | rows["mixed error"].any())


def test_safe_views_are_restored_as_they_are() -> None:
    pretext = make_pretext("pcrl")
    shown = pretext.pictures(make_patches(2, *PATCH))
    assert list(shown) == ["input", "output", "target"]
    assert not torch.equal(shown["input"], shown["target"])
    pretext.setting = Setting(PATCH, (1.0,) * 3, 2, 100, "safe")
    shown = pretext.pictures(make_patches(2, *PATCH))
    assert torch.allclose(shown["input"], shown["target"], atol=1e-5)


def test_slices_are_possible() -> None:
    pretext = make_pretext("pcrl", patch=(16, 16), spacing=(1.0, 1.0))
    assert torch.isfinite(pretext(make_patches(3, 16, 16))[0])
