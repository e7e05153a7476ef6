"""Restorative pretexts: what counts in their losses, and what they start from."""

import pytest
import torch

from stunet.trainers.pretexts.methods import METHODS
from stunet.trainers.pretexts.restorative import MIXED, errors, explained_variance
from tests.pretext_inputs import make_draws, make_patches, make_pretext

PATCH = (16, 16, 16)
RESTORATIVE = {name: method for name, method in METHODS.items() if method.family == "restorative"}


def test_what_is_visible_or_does_not_count_has_no_gradient() -> None:
    pretext, patches = make_pretext("mae"), make_patches(2, *PATCH)
    patches.valid[..., 8:] = False
    output = torch.randn(2, 1, 16, 16, 16, requires_grad=True)
    pretext.restore = lambda corrupted: output
    hidden = pretext.corrupt(patches.images, make_draws(2))[1]
    pretext(patches)[0].backward()
    assert output.grad is not None
    assert torch.equal(output.grad != 0, hidden & patches.valid)


def test_the_measure_is_zero_for_the_mean_and_one_for_the_image() -> None:
    pretext, (seen, everywhere, *_) = make_pretext("ae"), make_patches(2, *PATCH)
    mean = seen.flatten(2).mean(2)[..., None, None, None].expand_as(seen)
    measured = [pretext.loss(errors(answer, seen, everywhere))[1]["explained variance"] for answer in (mean, seen)]
    assert [float(each) for each in measured] == pytest.approx([0, 1], abs=1e-5)
    assert float(pretext.loss(errors(mean, seen, ~everywhere))[0]) == 0


def test_the_measure_weights_voxels_by_what_there_is_to_explain() -> None:
    everywhere = torch.ones(2, 1, 8, 8, 8, dtype=torch.bool)
    images = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, 1] += 3  # a channel's mean explains nothing of its voxels
    mean = images.mean((2, 3, 4), keepdim=True).expand_as(images)
    assert float(explained_variance(errors(mean, images, everywhere))) == pytest.approx(0, abs=1e-5)
    images[1] = 0  # air
    rows = errors(images + 0.01, images, everywhere)
    assert float(explained_variance(rows)) > 0.99
    air = {name: value[1:] for name, value in rows.items()}
    assert float(explained_variance(air)) == 0


def test_a_sample_without_voxels_takes_no_part() -> None:
    for name, method in RESTORATIVE.items():
        pretext, patches = make_pretext(name), make_patches(2, *PATCH, channels=method.patches)
        valid = torch.ones_like(patches.images, dtype=torch.bool)  # of each of the sample's patches
        valid[1] = False
        rows = pretext.compute(patches._replace(valid=valid))
        assert rows["counts"].tolist() == [1, 0]
        loss, measures = pretext.loss(rows)
        alone, alone_measures = pretext.loss({key: value[:1] for key, value in rows.items()})
        assert torch.allclose(loss, alone), name
        assert measures == alone_measures, name


def test_a_decoder_that_never_saw_skip_connections_is_not_transferred() -> None:
    for name, method in RESTORATIVE.items():
        assert method.options.get("skips", True) or method.transfers == "encoder", name


def test_without_skips_the_decoder_sees_the_last_stage_only() -> None:
    for name, method in RESTORATIVE.items():
        pretext, seen = make_pretext(name), []
        for stage in pretext.network.conv_blocks_localization:
            stage.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        pretext(make_patches(2, *PATCH, channels=method.patches))
        skips = [bool(each[:, each.shape[1] // 2 :].any()) for each in seen]
        assert skips == [method.options.get("skips", True)] * 2, name


def test_every_weight_that_requires_a_gradient_gets_one() -> None:
    for name, method in RESTORATIVE.items():
        pretext = make_pretext(name, channels=2)
        pretext(make_patches(2, *PATCH, channels=2 * method.patches))[0].backward()
        assert {n for n, p in pretext.named_parameters() if p.requires_grad == (p.grad is None)} == set(), name


def test_fusion_starts_at_chance_and_has_all_classes() -> None:
    pretext = make_pretext("fusion")
    assert pretext.chance == 1 / len(MIXED)
    assert set(pretext._mixture(make_draws(1)[0]).unique().tolist()) == set(range(len(MIXED)))
    measures = pretext(make_patches(2, *PATCH, channels=2))[1]
    assert float(measures["recall"]) == pytest.approx(pretext.chance, abs=0.1)
    perfect = torch.tensor([[0.0, 10, 10, 10, 10]])  # of a batch that lacks a class
    rows = {"loss": torch.zeros(1), "counts": torch.ones(1), "hits": perfect, "voxels": perfect}
    assert float(pretext.loss(rows)[1]["recall"]) == 1


def test_pictures_show_what_the_network_saw_and_answered() -> None:
    shown = make_pretext("mae").pictures(make_patches(2, *PATCH))
    assert list(shown) == ["input", "output", "target"]
    visible = shown["input"] != 0
    assert torch.equal(shown["output"][visible], shown["target"][visible])
    assert not torch.equal(shown["output"], shown["target"])
