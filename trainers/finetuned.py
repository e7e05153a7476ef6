"""Training from pre-trained weights: what trains when and at which rate, and what a checkpoint keeps of it.

Read next: finetune/.
"""

from collections.abc import Collection
from typing import Any

import torch

from stunet.errors import WeightsError
from stunet.trainers.base import PlannedTrainer
from stunet.trainers.distributed import sharding
from stunet.trainers.finetune import lora, strategies


class FineTunedTrainer(PlannedTrainer):
    """Trains with the plan's strategy (`finetune` in its `stunet` block); without one, as nnU-Net does."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net reads this signature and passes it on
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        block = self.plans_manager.plans["stunet"]
        self.weights = block.get("weights")
        self.strategy = strategies.find(block["finetune"]) if "finetune" in block else None
        if self.strategy is not None and "initial_lr" not in block["train"]:
            self.initial_lr = self.strategy.lr if self.weights else self.strategy.scratch_lr
        self.fresh: frozenset[str] | None = None  # parameters that are not pre-trained; None: all of them
        self._phase: strategies.Phase | None = None

    def start_with(self, fresh: Collection[str]) -> None:
        """Set up adapters and optimizer as the strategy requires, once weights have been loaded into the network.

        Args:
            fresh: Names of the parameters that are not pre-trained.
        """
        self.fresh = frozenset(fresh)
        if self.strategy is not None and self.strategy.lora_rank:
            lora.add(self.bare_network(), self.strategy.lora_rank, self.seed, self.fresh)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Return the base class's optimizer, with the strategy's parameter groups and learning rates."""
        optimizer, schedule = super().configure_optimizers()
        if self.strategy is None:
            return optimizer, schedule
        values = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
        groups = strategies.groups(self.bare_network(), self.strategy, self._fresh())
        optimizer = torch.optim.SGD([{**values, **group} for group in groups], self.initial_lr)
        return optimizer, strategies.Schedule(optimizer, self.strategy, self.num_epochs, self.initial_lr)

    def run_training(self) -> None:
        """Train as without pre-trained weights.

        Raises:
            WeightsError: The plan starts from weights, but none were loaded.
        """
        if self.weights and self.fresh is None:
            raise WeightsError(
                f"the plan starts from {self.weights['name']!r}, and nothing was loaded",
                f"stunet_train with -p {self.plans_manager.plans_name}, and --pretrained",
            )
        super().run_training()

    def on_train_epoch_start(self) -> None:
        """Freeze and unfreeze what the epoch's phase requires."""
        if self.strategy is not None:
            self._enter(strategies.phase_of(self.strategy, self.current_epoch, self.num_epochs))
        super().on_train_epoch_start()

    def network_state(self) -> dict[str, torch.Tensor]:
        return sharding.whole(lora.merged_state(self.bare_network()))

    def more_state(self) -> dict[str, Any]:
        fresh = None if self.fresh is None else sorted(self.fresh)
        return {"fresh": fresh, "adapters": lora.adapters_state(self.bare_network())}

    def load_network_state(self, weights: dict[str, torch.Tensor], more: dict[str, Any]) -> None:
        if more.get("fresh") is not None and self.fresh is None:
            self.start_with(more["fresh"])
        network = self.bare_network()
        lora.load(network, sharding.like(weights, network.state_dict()), more.get("adapters", {}))

    def _fresh(self) -> Collection[str]:
        return [name for name, _ in self.bare_network().named_parameters()] if self.fresh is None else self.fresh

    def _enter(self, phase: strategies.Phase) -> None:
        if phase is self._phase:
            return
        self._phase = phase
        trained, total = strategies.set_trainable(self.bare_network(), phase, self._fresh())
        share = f"{trained:,} of {total:,} parameters ({trained / total:.1%})"
        self.listener.trains(f"from epoch {self.current_epoch + 1} on: trains {share}")
        if self.is_ddp and not self.fsdp:  # DDP only looks at what is trainable when it is constructed
            self.network = sharding.data_parallel(self.network.module)
