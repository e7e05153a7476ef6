"""A training step: nnU-Net's own, the same in micro-batches, and in bfloat16."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet import workspace
from stunet.files import read_json
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.trainers import steps
from stunet.trainers.supervised import STUNetTrainer
from tests.loops import for_each


@pytest.fixture
def trainer_of(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a trainer with its network, for values of the plan."""

    def make(configuration: str = "3d_fullres", labels: dict | None = None, **values: Any) -> STUNetTrainer:
        monkeypatch.setenv("nnUNet_results", str(tmp_path))
        description = read_json(workspace.preprocessed_dataset(planned) / "dataset.json")
        if labels:
            description |= {"labels": labels, "regions_class_order": [1, 2]}
        plan = read_plan(plan_path(planned, "STUNetPlans_T"))
        plans = derive(plan, description, stages=3, overrides={"batch_size": 3, **values}).to_json()
        trainer = STUNetTrainer(plans, configuration, 0, description, torch.device("cpu"))
        trainer.initialize()
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        return trainer

    return make


def batches(trainer: STUNetTrainer) -> list[dict]:
    loader, _ = trainer.get_dataloaders()
    return [next(loader) for _ in range(2)]


def weights(trainer: STUNetTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.network.parameters()])


def test_a_step_is_nnunets(trainer_of: Any) -> None:
    ours, theirs = trainer_of(), trainer_of()
    for batch in batches(ours):
        assert steps.optimize(ours, batch) == nnUNetTrainer.train_step(theirs, batch)
        assert torch.equal(weights(ours), weights(theirs))


IGNORE = {"background": 0, "spine": 1, "liver": 2, "spleen": 3, "kidney_left": 4, "ignore": 5}
REGIONS = {"background": 0, "organs": [1, 2, 3, 4], "kidney": 4, "ignore": 5}


@for_each(
    ("configuration", "labels", "forwards"),
    [
        ("3d_fullres", None, [2, 1]),
        ("3d_fullres", IGNORE, [2, 1]),
        ("2d", IGNORE, [2, 1, 2, 1]),  # the Dice of a batch: outputs first, then gradients
        ("2d", REGIONS, [2, 1, 2, 1]),
    ],
)
def test_micro_batches_of_any_size_add_up_to_the_batch(
    trainer_of: Any, configuration: str, labels: dict[str, Any] | None, forwards: list[int]
) -> None:
    whole, cut = (trainer_of(configuration, labels=labels, accumulation=n) for n in (1, 2))
    assert whole.configuration_manager.batch_dice == (configuration == "2d")
    seen = []
    cut.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    (batch, _) = batches(trainer_of(configuration))  # 5, a kidney, is what the others ignore
    if labels is REGIONS:
        batch["target"] = [torch.cat([t > 0, t > 3, t == 5], dim=1) for t in batch["target"]]
    first, second = whole.train_step(batch), cut.train_step(batch)
    assert float(second["loss"]) == pytest.approx(float(first["loss"]), abs=1e-5)
    torch.testing.assert_close(weights(cut), weights(whole), rtol=0, atol=1e-5)
    with torch.no_grad():
        first, second = (steps.evaluate(each, batch) for each in (whole, cut))
    assert float(second["loss"]) == pytest.approx(float(first["loss"]), abs=1e-5)
    assert (second["tp_hard"] + second["fn_hard"]).tolist() == (first["tp_hard"] + first["fn_hard"]).tolist()
    assert seen == forwards * 2


def test_bfloat16_keeps_weights_and_optimizer_in_float32(trainer_of: Any) -> None:
    exact, half = trainer_of(), trainer_of(precision="bf16")
    kinds = set()
    half.network.conv_blocks_context[1].register_forward_hook(lambda _, __, output: kinds.add(output.dtype))
    (batch, _) = batches(exact)
    first, second = float(exact.train_step(batch)["loss"]), float(half.train_step(batch)["loss"])
    assert kinds == {torch.bfloat16}
    assert second == pytest.approx(first, rel=0.03)
    assert half.grad_scaler is None
    assert {p.dtype for p in half.network.parameters()} == {torch.float32}
    assert {v["momentum_buffer"].dtype for v in half.optimizer.state.values()} == {torch.float32}
    assert not torch.equal(weights(half), weights(exact))
