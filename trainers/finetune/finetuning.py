"""What pre-trained weights and a fine-tuning strategy add to a training: which parameters train when, and how fast.

A trainer has this only if its plan names weights or a strategy. A pre-training that starts from weights has no
strategy: all that its pretext trains is trained from the first step on. start.py loads the weights; strategies.py and
lora.py say what a strategy is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stunet.errors import WeightsError
from stunet.plans.plan import Plan, StartingWeights
from stunet.trainers.distributed import sharding
from stunet.trainers.finetune import lora, strategies

NO_STATE: dict[str, Any] = {"fresh": None, "adapters": {}}  # in the checkpoints of trainings without fine-tuning


class FineTuning:
    """The fine-tuning of one training.

    Args:
        weights: The plan's record of the weights to start from; empty: the strategy's schedule, without weights.
        strategy: None: the weights with nnU-Net's own schedule.

    Attributes:
        fresh: Names of the parameters that are not pre-trained; None: all of them, or nothing is loaded yet.
    """

    def __init__(self, weights: Sequence[StartingWeights], strategy: strategies.Strategy | None) -> None:
        self.weights, self.strategy = weights, strategy
        self.fresh: frozenset[str] | None = None
        self._phase: strategies.Phase | None = None  # of the last epoch; a resumed training has to enter it again

    @classmethod
    def from_plan(cls, plan: Plan) -> "FineTuning | None":
        """Return what a plan asks for; None if it names neither weights nor a strategy.

        Raises:
            UsageError: The strategy is unknown.
        """
        if not plan.weights and plan.finetune is None:
            return None
        return cls(plan.weights, strategies.find(plan.finetune) if plan.finetune else None)

    def peak_lr(self, default: float) -> float:
        """Return the strategy's learning rate, which is higher without pre-trained weights."""
        if self.strategy is None:
            return default
        return self.strategy.lr if self.weights else self.strategy.scratch_lr

    def check_started(self, plan: Plan) -> None:
        """Raise if the plan starts from weights and none are loaded: a random network would be trained in their name.

        Raises:
            WeightsError: None are loaded.
        """
        if self.weights and self.fresh is None:
            names = " and ".join(repr(each.name) for each in self.weights)
            raise WeightsError(
                f"the plan starts from {names}, and nothing was loaded",
                f"{'stunet_pretrain' if plan.pretext else 'stunet_train'} with -p {plan.name}, and --pretrained",
            )

    def start(self, network: nn.Module, fresh: frozenset[str], seed: int) -> None:
        """Note which parameters are not pre-trained, and add the strategy's adapters to the others."""
        self.fresh = fresh
        if self.strategy is not None and self.strategy.lora_rank:
            lora.add(network, self.strategy.lora_rank, seed, fresh)

    def optimizer(
        self, stock: torch.optim.Optimizer, network: nn.Module, epochs: int, lr: float
    ) -> tuple[torch.optim.Optimizer, strategies.Schedule]:
        """Return the strategy's parameter groups and schedule, with all other values of the stock optimizer."""
        assert self.strategy is not None
        # Weight decay, momentum and Nesterov stay as they are: a strategy only differs in groups and rates.
        values = {key: value for key, value in stock.param_groups[0].items() if key != "params"}
        groups = strategies.groups(network, self.strategy, self._fresh(network))
        optimizer = torch.optim.SGD([{**values, **group} for group in groups], lr)
        return optimizer, strategies.Schedule(optimizer, self.strategy, epochs, lr)

    def enter(self, network: nn.Module, epoch: int, epochs: int) -> str | None:
        """Freeze and unfreeze what an epoch, counted from 0, requires; describe it if the phase is a new one."""
        if self.strategy is None:
            return None
        phase = strategies.phase_of(self.strategy, epoch, epochs)
        if phase is self._phase:
            return None
        self._phase = phase
        trained, total = strategies.set_trainable(network, phase, self._fresh(network))
        return f"{trained:,} of {total:,} parameters ({trained / total:.1%})"

    def merged(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """Return the network's state with the adapters merged into their weights."""
        return lora.merged_state(network)

    def state(self, network: nn.Module) -> dict[str, Any]:
        """Return what a checkpoint needs besides merged()."""
        return {"fresh": None if self.fresh is None else sorted(self.fresh), "adapters": lora.adapters_state(network)}

    def load(
        self, network: nn.Module, merged: Mapping[str, torch.Tensor], adapters: Mapping[str, torch.Tensor]
    ) -> None:
        """Load what merged() and state() returned into a network that start() has prepared.

        Raises:
            WeightsError: The adapters do not match those of the network.
        """
        lora.load(network, sharding.shard_like(merged, network.state_dict()), adapters)

    def _fresh(self, network: nn.Module) -> frozenset[str]:
        # Without weights there is nothing to preserve: everything is fresh, so all of it trains in every phase.
        return frozenset(name for name, _ in network.named_parameters()) if self.fresh is None else self.fresh
