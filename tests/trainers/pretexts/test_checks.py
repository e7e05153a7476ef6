"""What a method asks of a plan is checked on a small network, before data are read."""

from dataclasses import replace

import pytest
import torch

from stunet.errors import UsageError
from stunet.plans.demand import Demand
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.trainers.pretexts import methods
from stunet.trainers.pretexts.checks import check_method
from tests.loops import for_each
from tests.nnunet_networks import BOTH, network
from tests.pretext_inputs import STRIDES, make_patches, make_pretext


def plan_with(dataset: str, **values: object) -> Plan:
    plan = read_plan(plan_path(dataset, "STUNetPlans_T")).with_ours(pretext="rot")
    return plan.with_configuration("3d_fullres", **values)


def test_a_patch_that_leaves_one_voxel_at_the_bottom_is_refused(planned: str) -> None:
    plan = plan_with(planned, patch_size=[4, 4, 1]).with_network("3d_fullres", strides=[[1, 1, 1], [4, 4, 1]])
    with pytest.raises(UsageError, match="4 x 4 x 1 leaves one voxel at the bottom") as caught:
        check_method(plan, "3d_fullres", 1)
    assert caught.value.hint == "--set patch_size=[8,8,1], or --stages 1"


def test_a_method_that_compares_samples_needs_two(planned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compares = replace(methods.METHODS["rot"], demand=Demand(compares=True))
    monkeypatch.setitem(methods.METHODS, "rot", compares)
    with pytest.raises(UsageError, match="rot compares the samples of a batch, and the batch is 1"):
        check_method(plan_with(planned, batch_size=1), "3d_fullres", 1)
    check_method(plan_with(planned, batch_size=2), "3d_fullres", 1)


@for_each("name", [*{method.family: name for name, method in methods.METHODS.items()}.values(), "jigsaw", "mae"])
def test_every_family_of_pretexts_trains_nnunets_networks(name: str) -> None:
    """All that it says it trains gets a gradient, and what it kept of the batch is taken in."""
    for architecture in BOTH if name == "mae" else BOTH[1:]:
        net = network(architecture, classes=1, strides=STRIDES, kernel_sizes=[[3, 3, 3]] * 3)
        pretext = make_pretext(name, (24, 24, 24), batch=2, network=net)
        patches = make_patches(2, 24, 24, 24, channels=methods.METHODS[name].patches)
        loss, measures, kept = pretext(patches)
        loss.backward()
        lacks = [own for own, p in pretext.named_parameters() if p.requires_grad and p.grad is None]
        assert (lacks, bool(torch.isfinite(loss)), pretext.measure in measures) == ([], True, True), name
        pretext.update(kept)
        pretext.load_own_state(pretext.own_state())


def test_methods_that_compare_samples_say_so() -> None:
    from stunet.trainers.pretexts import base

    for name, method in methods.METHODS.items():
        found = getattr(__import__(f"stunet.trainers.pretexts.{method.family}", fromlist=["x"]), method.pretext)
        assert method.demand.compares or not found.coupled, name
        assert bool(method.demand.decoded) == (found.trains != base.ENCODER), name


def test_the_scale_of_features_is_known_for_every_method() -> None:
    """Also where a sample is more than one patch: the warning about it comes after every epoch."""
    for name, method in methods.METHODS.items():
        pretext = make_pretext(name, (24, 24, 24))
        patches = make_patches(2, 24, 24, 24, channels=method.patches)
        with torch.no_grad():
            scales = pretext(patches, only="scales")
        assert len(scales) == len(pretext.widths), name
        assert bool(((scales > 0.01) & (scales < 100)).all()), name
