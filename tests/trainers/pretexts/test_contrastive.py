"""Contrastive and distilling pretexts: losses equal slow references, teachers and queues follow their formulas."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stunet.errors import UsageError
from stunet.trainers.pretexts import contrastive, distillation
from stunet.trainers.pretexts.base import Rows
from stunet.trainers.pretexts.contrastive import QUEUE, info_nce, nt_xent
from stunet.trainers.pretexts.methods import METHODS
from stunet.trainers.pretexts.momentum import Projection, rising, spread
from tests.pretext_inputs import kept_rows, make_patches, make_pretext

FAMILIES = ("contrastive", "distillation", "regional", "combined")
METHODS_HERE = [name for name, method in METHODS.items() if method.family in FAMILIES]
COMPARING = [name for name in METHODS_HERE if name not in ("voco", "local")]  # samples with each other
PATCH = (16, 16, 16)


def embeddings(count: int, size: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)))


def test_nt_xent_equals_a_float64_loop() -> None:
    one, other, temperature = embeddings(5, 7, 0), embeddings(5, 7, 1), 0.3
    every = torch.cat([one, other]).double()
    terms = []
    for i in range(10):
        scores = [math.exp(float(every[i] @ every[k]) / temperature) for k in range(10) if k != i]
        terms.append(-math.log(math.exp(float(every[i] @ every[(i + 5) % 10]) / temperature) / sum(scores)))
    assert float(nt_xent(one, other, temperature)[0]) == pytest.approx(sum(terms) / 10, rel=1e-6)


def test_patches_of_the_same_image_are_no_negatives() -> None:
    one, other, temperature = embeddings(4, 7, 0), embeddings(4, 7, 1), 0.3
    case, every, terms = [5, 6, 5, 7] * 2, torch.cat([one, other]).double(), []
    for i in range(8):
        own = (i + 4) % 8
        candidates = [k for k in range(8) if k == own or case[k] != case[i]]
        scores = [math.exp(float(every[i] @ every[k]) / temperature) for k in candidates]
        terms.append(-math.log(math.exp(float(every[i] @ every[own]) / temperature) / sum(scores)))
    found = nt_xent(one, other, temperature, torch.tensor(case[:4]))[0]
    assert float(found) == pytest.approx(sum(terms) / 8, rel=1e-6)
    query, key, queue = embeddings(1, 7, 0), embeddings(1, 7, 1), embeddings(3, 7, 2)
    same = torch.tensor([[False, True, False]])
    assert torch.equal(info_nce(query, key, queue, 0.2, same), info_nce(query, key, queue[[0, 2]], 0.2))


def test_equal_patches_of_one_image_are_found_among_those_of_others() -> None:
    for name in COMPARING:
        pretext, patches = make_pretext(name, batch=4), make_patches(4, *PATCH)
        if pretext.measure != "retrieval":
            continue
        rows = pretext.rows(patches)
        for key in ("one", "other", "target other", "query", "key"):
            rows[key] = embeddings(2, 256, 0)[[0, 0, 1, 1]]
        found = []
        for cases in ([0, 1, 2, 3], [0, 0, 1, 1]):
            found.append(float(pretext.loss({**rows, "case": torch.tensor(cases)})[1]["retrieval"]))
        assert found == [0, 1], name


def test_chance_is_a_share_of_the_candidates_that_are_left() -> None:
    for batch, held_out in ((8, 50), (8, 3), (4, 2), (4, 1)):
        case = torch.arange(batch) % held_out
        found = torch.tensor([
            [
                float(contrastive.nearest(embeddings(batch, 64, seed), embeddings(batch, 64, seed + 500), case)),
                float(nt_xent(embeddings(batch, 64, seed), embeddings(batch, 64, seed + 500), 1.0, case)[1]),
            ]
            for seed in range(200)
        ]).mean(0)  # fmt: skip
        for name, value in (("byol", found[0]), ("moco", found[0]), ("dino", found[0]), ("simclr", found[1])):
            pretext = make_pretext(name, batch=batch, held_out=held_out)
            assert float(value) == pytest.approx(pretext.chance, abs=0.04), (name, held_out)


def test_info_nce_equals_a_float64_loop() -> None:
    query, key, queue, temperature = embeddings(4, 7, 0), embeddings(4, 7, 1), embeddings(9, 7, 2), 0.2
    terms = []
    for q, k in zip(query.double(), key.double(), strict=True):
        positive = math.exp(float(q @ k) / temperature)
        terms.append(
            -math.log(positive / (positive + sum(math.exp(float(q @ n) / temperature) for n in queue.double())))
        )
    assert float(info_nce(query, key, queue, temperature)) == pytest.approx(sum(terms) / 4, rel=1e-6)


def test_losses_equal_those_of_lightly() -> None:
    # lightly 1.6.0 with torch 2.13.0, in an environment of its own, where NTXentLoss is lightly.loss.NTXentLoss:
    #     float(NTXentLoss(temperature=0.5)(embeddings(5, 7, 0), embeddings(5, 7, 1)))
    #     loss = NTXentLoss(temperature=0.2, memory_bank_size=(9, 7)); loss.memory_bank.bank = embeddings(9, 7, 2)
    #     float(loss(embeddings(4, 7, 0), embeddings(4, 7, 1)))
    # MONAI 1.6.1 has 1.57604146 for the first: ContrastiveLoss(temperature=0.5) of monai.losses.
    one, other = embeddings(5, 7, 0), embeddings(5, 7, 1)
    assert float(nt_xent(one, other, 0.5)[0]) == pytest.approx(1.5760412216186523, rel=1e-6)
    found = info_nce(embeddings(4, 7, 0), embeddings(4, 7, 1), embeddings(9, 7, 2), 0.2)
    assert float(found) == pytest.approx(4.786539554595947, rel=1e-6)


def test_every_weight_that_requires_a_gradient_gets_one() -> None:
    for name in METHODS_HERE:
        pretext = make_pretext(name)
        pretext(make_patches(3, *PATCH))[0].backward()
        assert {n for n, p in pretext.named_parameters() if p.requires_grad == (p.grad is None)} == set(), name


def insert(whole: Rows, first: int, own: Rows) -> tuple[Rows, int]:
    return whole, first


def test_the_gradients_of_parts_add_up_to_those_of_the_batch() -> None:
    for name in METHODS_HERE:
        pretext = make_pretext(name).double()
        if "key" in pretext.kept:  # an empty queue has no gradient
            pretext.update(kept_rows(pretext, key=embeddings(5, contrastive.EMBEDDED, 3)))
        whole = make_patches(4, *PATCH)
        whole = whole._replace(images=whole.images.double())
        pretext(whole)[0].backward()
        expected = {n: p.grad.clone() for n, p in pretext.named_parameters() if p.grad is not None}
        pretext.zero_grad()
        with torch.no_grad():
            rows = pretext.rows(whole._replace(draws=make_patches(4, 1).draws))
        for part in (slice(0, 1), slice(1, 4)):
            some = whole._replace(
                images=whole.images[part],
                valid=whole.valid[part],
                draws=make_patches(4, 1).draws[part],
                places=whole.places[part],
                cases=whole.cases[part],
            )
            loss = pretext(some, partial(insert, rows, part.start) if pretext.coupled else None)[0]
            (loss * len(some.images) / 4).backward()
        for n, p in pretext.named_parameters():
            if n in expected:
                assert torch.allclose(p.grad, expected[n], rtol=1e-4, atol=1e-6), (name, n)


def test_projections_take_away_what_all_features_have_in_common() -> None:
    layers = Projection(6, nn.Linear(6, 6, bias=False))
    own, common = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), 100.0
    features = 0.01 * own + common
    assert spread(F.normalize(layers(features))) < 0.001
    layers.observe(features[:20].unflatten(0, (10, 2)))
    assert torch.allclose(layers.mean, features[:20].mean(0))
    assert spread(F.normalize(layers(features[20:]))) > 0.5
    assert torch.allclose(layers(features[20:])[:1], layers(features[20:21]))  # whatever else is in the batch
    layers.observe(features[20:] + 1)
    assert torch.allclose(layers.mean, 0.9 * features[:20].mean(0) + 0.1 * (features[20:].mean(0) + 1))


def test_teachers_follow_and_rest_in_validation() -> None:
    for name, momentum in (("moco", 0.999), ("byol", 0.996), ("dino", 0.996)):
        pretext = make_pretext(name)
        kept = pretext(make_patches(3, *PATCH))[2]
        before = [p.clone() for p in pretext.teacher.parameters()]
        with torch.no_grad():
            for parameter in pretext.network.parameters():
                parameter += 1
        assert all(torch.equal(a, b) for a, b in zip(before, pretext.teacher.parameters(), strict=True))
        pretext.update(kept)
        for old, new, student in zip(before, pretext.teacher.parameters(), pretext.network.parameters(), strict=True):
            assert torch.allclose(new, momentum * old + (1 - momentum) * student, atol=1e-6), name
        assert not any(p.requires_grad for p in pretext.teacher.parameters())


def test_teachers_are_copied_again_once_other_weights_are_in_the_network() -> None:
    for name in ("moco", "byol", "dino", "voco", "pcrl"):
        pretext = make_pretext(name)
        with torch.no_grad():
            for parameter in pretext.parameters():
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        pretext.restart()
        students = dict(pretext.teachers())
        assert set(students) == {module for part, module in pretext.named_children() if part.startswith("teacher")}
        for teacher, student in students.items():
            ours = student.state_dict()
            assert all(torch.equal(value, ours[key]) for key, value in teacher.state_dict().items()), name


def test_momentum_rises_along_a_cosine() -> None:
    assert [rising(0.996, step, 100) for step in (0, 50, 100, 200)] == pytest.approx([0.996, 0.998, 1, 1])


def test_the_queue_takes_keys_in_turn() -> None:
    pretext = make_pretext("moco")
    pretext.taken.fill_(QUEUE - 2)
    keys = embeddings(3, contrastive.EMBEDDED, 4)
    pretext.update(kept_rows(pretext, key=keys))
    assert torch.equal(pretext.queue[[QUEUE - 2, QUEUE - 1, 0]], keys)
    assert int(pretext.taken) == QUEUE + 1


def test_mocos_queue_has_only_keys_and_its_measure_is_among_the_batch() -> None:
    for name in ("moco", "pcrl"):
        pretext = make_pretext(name)
        rows = pretext.rows(make_patches(4, *PATCH))
        keys = embeddings(3, contrastive.EMBEDDED, 4)
        pretext.update(kept_rows(pretext, key=keys))
        rows["query"], rows["key"] = embeddings(4, contrastive.EMBEDDED, 0), embeddings(4, contrastive.EMBEDDED, 1)
        # Those of case 0 are no negatives of the first query.
        same = torch.tensor([[True] * 3] + [[False] * 3] * 3)
        expected = info_nce(rows["query"], rows["key"], keys, contrastive.MOCO_TEMPERATURE, same)
        assert torch.allclose(contrastive.MoCo.loss(pretext, rows)[0], expected)
        rows["query"] = rows["key"][[0, 1, 3, 2]]
        assert float(pretext.loss(rows)[1]["retrieval"]) == 0.5
    assert make_pretext("moco", batch=5).chance == 1 / 5


def test_equal_embeddings_are_no_hit() -> None:
    same = embeddings(1, 7, 0).expand(4, -1)
    assert float(contrastive.nearest(same, same, torch.arange(4))) == 0
    assert float(nt_xent(same, same, 0.5)[1]) == 0


def test_similarities_have_full_precision_inside_of_autocast() -> None:
    one, other = embeddings(5, 64, 0), embeddings(5, 64, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert (one @ other.T).dtype == torch.bfloat16
        inside = contrastive.similarities(one, other), nt_xent(one, other, 0.5)[0]
        rows = make_pretext("simclr").rows(make_patches(3, *PATCH))
    assert torch.equal(inside[0], one @ other.T)
    assert torch.equal(inside[1], nt_xent(one, other, 0.5)[0])
    assert {value.dtype for name, value in rows.items() if name != "case"} == {torch.float32}


def test_crops_that_leave_one_voxel_are_refused() -> None:
    for name, patch in (("dino", (8, 8, 8)), ("simclr", (5, 5, 5)), ("moco", (5, 5, 5)), ("global", (16, 5, 5))):
        with pytest.raises(UsageError, match="of which the network's strides leave one"):
            make_pretext(name, patch)


def test_answers_that_are_all_even_are_not_sharp_and_a_single_winner_has_no_entropy() -> None:
    pretext = make_pretext("dino")
    rows = pretext.rows(make_patches(3, *PATCH))
    rows["teacher"] = torch.zeros_like(rows["teacher"])
    even = pretext.loss(rows)[1]
    assert (float(even["entropy"]), float(even["sharpness"])) == pytest.approx((1, 0), abs=1e-3)
    rows["teacher"][..., 5] = 1
    one = pretext.loss(rows)[1]
    assert (float(one["entropy"]), float(one["sharpness"])) == pytest.approx((0, 1), abs=1e-3)


def test_first_losses_are_near_chance() -> None:
    # A fresh encoder makes nearly the same of all patches, so all of them look alike.
    patches = make_patches(4, *PATCH)
    loss = {name: float(make_pretext(name)(patches)[0].detach()) for name in METHODS_HERE}
    assert loss["simclr"] == pytest.approx(math.log(2 * 4 - 1), abs=0.2)
    assert loss["dino"] == pytest.approx(make_pretext("dino").chance_loss, abs=1.0)


def test_the_centre_follows_the_mean_answer() -> None:
    pretext = make_pretext("dino")
    answers = torch.randn(3, 2, distillation.PROTOTYPES)
    pretext.update(kept_rows(pretext, teacher=answers))
    assert torch.allclose(pretext.center, 0.1 * answers.mean((0, 1)), atol=1e-6)


def test_spread_is_one_for_even_directions_and_zero_for_equal_ones() -> None:
    assert float(spread(embeddings(4000, 64, 0))) == pytest.approx(1, abs=0.02)
    assert float(spread(embeddings(1, 64, 0).expand(8, -1))) == pytest.approx(0, abs=1e-6)


def test_a_batch_of_one_is_refused() -> None:
    for name in COMPARING:
        with pytest.raises(UsageError, match="a batch of 1"):
            make_pretext(name, batch=1)
