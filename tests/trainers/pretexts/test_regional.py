"""Regional pretexts: losses equal slow references, and what a crop, slab or region is compared with."""

import math

import pytest
import torch
from torch.nn import functional as F

from stunet.errors import UsageError
from stunet.trainers.pretexts import regional
from stunet.trainers.pretexts.augment import disturb
from stunet.trainers.pretexts.regional import (
    cells,
    overlap,
    partition_loss,
    position_loss,
    separation_loss,
    shared,
)
from tests.pretext_inputs import kept_rows, make_draws, make_patches, make_pretext, patches_of

PATCH = (16, 16, 16)


def embeddings(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_vocos_losses_equal_loops_over_their_formulas() -> None:
    shares = torch.tensor([[[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]]])
    similar = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.9, 0.4]]])
    pairs = list(zip(shares.flatten().tolist(), similar.flatten().tolist(), strict=True))
    positive = sum(-share * math.log(1 - abs(share - found)) for share, found in pairs) / 2
    negative = sum(found**2 for share, found in pairs if share == 0) / 2
    assert float(position_loss(similar, shares)) == pytest.approx(positive + negative, rel=1e-4)
    bases = embeddings(1, 4, 5)
    every = [max(0.0, float(bases[0, i] @ bases[0, j])) ** 2 for i in range(4) for j in range(i + 1, 4)]
    assert float(separation_loss(bases)) == pytest.approx(sum(every) / 6, rel=1e-5)


def test_a_crop_shares_its_voxels_among_the_bases() -> None:
    pretext = make_pretext("voco")
    assert (pretext.cells, pretext.size) == ([3, 3, 3], [5, 5, 5])
    crop = torch.tensor([[[5, 8, 0]]])
    found = shared(crop, pretext.bases, pretext.size)[0, 0]
    expected = [
        sum(all(b <= x + o < b + 5 for x, b, o in zip((5, 8, 0), base, at, strict=True)) for at in all_voxels(5)) / 125
        for base in pretext.bases.tolist()
    ]
    assert torch.allclose(found, torch.tensor(expected))
    assert float(found.sum()) == pytest.approx(1)


def all_voxels(side: int) -> list[tuple[int, int, int]]:
    return [(a, b, c) for a in range(side) for b in range(side) for c in range(side)]


def test_bases_leave_more_than_a_voxel_and_a_patch_has_to_have_two() -> None:
    assert make_pretext("voco", patch=(40, 40, 8)).cells == [4, 4, 1]
    with pytest.raises(UsageError, match=r"8 x 8 x 4.*a single base crop"):
        make_pretext("voco", patch=(8, 8, 4))


def test_chance_is_that_of_the_base_most_crops_are_closest_to() -> None:
    # Of eleven first voxels 0 to 10, five (3 to 7) are closest to 5.
    assert make_pretext("voco").chance == pytest.approx((5 / 11) ** 3)


def test_vocos_teacher_takes_part_and_follows_fast() -> None:
    pretext, patches = make_pretext("voco"), make_patches(2, *PATCH)
    first = pretext.compute(patches)["loss"]
    with torch.no_grad():
        for parameter in pretext.teacher.parameters():
            parameter += 0.1
    before = next(pretext.teacher.parameters()).clone()
    assert not torch.equal(pretext.compute(patches._replace(draws=make_draws(2)))["loss"], first)
    pretext.update(kept_rows(pretext))
    expected = 0.9 * before + 0.1 * next(pretext.network.parameters())
    assert torch.allclose(next(pretext.teacher.parameters()), expected, atol=1e-6)
    assert float(overlap(embeddings(1, 1, 3), -embeddings(1, 1, 3))) == 0


def test_vocos_statistics_are_of_what_counts() -> None:
    pretext = make_pretext("voco")
    rows = kept_rows(pretext, counts=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    pretext.update(rows)
    assert torch.allclose(pretext.project.mean, rows["features"][::2].flatten(0, 1).mean(0))


def test_the_loss_of_partitions_equals_a_float64_loop() -> None:
    vectors, part, temperature = embeddings(7, 5), torch.tensor([0, 1, 0, 1, 2, 2, 2]), 0.3
    scores = [[math.exp(float(a @ b) / temperature) for b in vectors.double()] for a in vectors.double()]
    terms = []
    for i in range(7):
        others = sum(scores[i][n] for n in range(7) if part[n] != part[i])
        positives = [scores[i][p] for p in range(7) if part[p] == part[i] and p != i]
        terms.append(sum(-math.log(score / (score + others)) for score in positives) / len(positives))
    assert float(partition_loss(vectors, part, temperature)) == pytest.approx(sum(terms) / 7, rel=1e-6)


def test_slabs_that_are_all_of_one_part_have_neither_loss_nor_a_broken_gradient() -> None:
    vectors = embeddings(4, 5).requires_grad_()
    loss = partition_loss(vectors, torch.zeros(4, dtype=torch.int64), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0
    assert vectors.grad is not None
    assert not bool(vectors.grad.any())


def test_the_part_of_a_slab_is_that_of_its_middle_in_the_volume() -> None:
    pretext = make_pretext("global")
    patches = make_patches(300, 1, 1, 1)
    places = torch.tensor([[0.0, 1.0], [0.25, 0.75], [-0.5, 1.5]]).repeat(100, 1)
    firsts, parts = pretext._places(patches._replace(places=places))
    assert pretext.thickness == 4
    for first, part, (low, high) in zip(firsts, parts.tolist(), places.tolist(), strict=True):
        assert part == math.floor(4 * (low + (first + 2) / 16 * (high - low)))
    assert set(parts[::3].tolist()) == {0, 1, 2, 3}
    assert set(parts[1::3].tolist()) == {1, 2}
    assert set(parts[2::3].tolist()) == {0, 1, 2, 3}


def test_the_nearest_slab_of_another_sample_is_what_counts() -> None:
    pretext = make_pretext("global", batch=2)
    one, other = embeddings(2, 6)
    slabs = torch.stack([torch.stack([v, v]) for v in (one, other)])  # two slabs, in two views each
    rows = {"slabs": torch.stack([slabs, slabs]), "parts": torch.tensor([[0, 1], [0, 1]]), "case": torch.arange(2)}
    assert float(pretext.loss(rows)[1]["kappa"]) == 1
    # Half of the others is of the same part.
    assert float(pretext.loss({**rows, "parts": torch.tensor([[0, 1], [1, 0]])})[1]["kappa"]) == -1
    assert float(pretext.loss({**rows, "parts": torch.zeros(2, 2, dtype=torch.int64)})[1]["kappa"]) == 0
    # Samples of the same image are none of the others.
    assert float(pretext.loss({**rows, "case": torch.zeros(2, dtype=torch.int64)})[1]["kappa"]) == 0
    three = {name: torch.cat([value, value[:1]]) for name, value in rows.items()}
    three["parts"][2] = torch.tensor([1, 0])
    assert float(pretext.loss(three)[1]["kappa"]) == pytest.approx(1 / 3)


def test_kappa_is_zero_by_chance_however_parts_are_distributed() -> None:
    pretext, found = make_pretext("global"), []
    for seed in range(40):
        random = torch.Generator().manual_seed(seed)
        slabs = F.normalize(torch.randn(8, 2, 2, 16, generator=random), dim=-1)
        parts = torch.multinomial(torch.tensor([1.0, 3, 3, 1]), 16, True, generator=random).view(8, 2)
        rows = {"slabs": slabs, "parts": parts, "case": torch.arange(8) // 2}
        found.append(float(pretext.loss(rows)[1]["kappa"]))
    assert sum(found) / 40 == pytest.approx(pretext.chance, abs=0.05)


def test_vocos_grid_lies_where_voxels_count_or_the_patch_takes_no_part() -> None:
    pretext, patches = make_pretext("voco"), make_patches(6, *PATCH)
    patches.valid[:, :, :1], patches.valid[0, :, :3] = False, False
    seen, embedded = [], pretext._embeddings
    pretext._embeddings = lambda network, project, crops: (seen.append(crops), embedded(network, project, crops))[1]
    rows = pretext.compute(patches._replace(images=patches.images.masked_fill(~patches.valid, torch.nan)))
    assert rows["counts"].tolist() == [0, 1, 1, 1, 1, 1]
    assert bool(seen[0][1:].isfinite().all())


def test_local_contrast_trains_the_first_levels_of_the_decoder_alone() -> None:
    pretext = make_pretext("local")
    trained = {name for name, p in pretext.network.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"upsample_layers", "conv_blocks_localization"}
    pretext.levels = 1
    assert pretext._map(make_patches(1, *PATCH).images).shape[2:] == (8, 8, 8)


def test_regions_are_cells_of_the_map_and_padding_comes_last() -> None:
    maps = torch.arange(5 * 4).view(1, 1, 5, 4)
    assert cells(maps, [2, 2])[0].tolist()[:2] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    pretext, valid = make_pretext("local"), torch.ones(1, 1, *PATCH, dtype=torch.bool)
    assert (pretext.sides, pretext.regions) == ([3, 3, 3], regional.REGIONS)
    valid[..., 3:] = False  # so that only the first of five cells along the last axis counts
    chosen = pretext._choose(valid, PATCH, make_draws(1))[0]
    assert len(set(chosen.tolist())) == regional.REGIONS
    assert all(cell % 5 == 0 for cell in chosen.tolist())


def test_a_change_of_intensity_moves_nothing_and_a_map_of_one_cell_is_refused() -> None:
    images = smooth(2)
    changed = disturb(images, make_draws(2), always=True)
    assert not torch.equal(changed, images)
    alike = [
        float(F.cosine_similarity(images.flatten(), changed.roll(step, -1).flatten(), dim=0)) for step in range(-3, 4)
    ]
    assert max(alike) == alike[3] > 0.7


def smooth(count: int) -> torch.Tensor:
    """Return patches in which neighbours are alike, as in scans: (count, 1, 24, 24, 24)."""
    return F.interpolate(make_patches(count, 8, 8, 8).images, scale_factor=3, mode="trilinear")


def test_regions_are_not_found_without_training() -> None:
    pretext = make_pretext("local", patch=(24, 24, 24))
    with torch.no_grad():
        found = float(pretext(patches_of(smooth(4)))[1]["retrieval"])
    assert pretext.chance == pytest.approx(1 / 8**3)
    assert found < 0.6


def test_slices_are_possible() -> None:
    for name in ("voco", "global", "local"):
        pretext = make_pretext(name, patch=(16, 16), spacing=(1.0, 1.0))
        assert torch.isfinite(pretext(patches_of(torch.randn(3, 1, 16, 16)))[0]), name
