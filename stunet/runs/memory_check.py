"""Check, before anything is written, that a training step fits into the available memory: see plans/memory.py."""

from bisect import bisect_right
from typing import TYPE_CHECKING

import torch

from stunet.errors import OutOfMemoryError
from stunet.labels.annotations import describe_trained_model
from stunet.machine import GIB, memory_limit
from stunet.plans.derive import describe
from stunet.plans.memory import Network, least
from stunet.plans.plan import Configuration
from stunet.trainers.pretexts.methods import demand_of

if TYPE_CHECKING:
    from stunet.runs.launch import Run


def check_memory(run: "Run", configuration: Configuration) -> None:
    """Reject a batch or patch whose step cannot fit; what might fit is left for training to try.

    Args:
        run: What is to be trained.
        configuration: Its configuration, including inherited values.

    Raises:
        OutOfMemoryError: A step needs more; the message names the batch that fits.
    """
    plan = run.plan
    network = network_of(run)
    patch, strides, batch = configuration.patch_size, configuration.strides, configuration.batch_size
    parts = plan.train.accumulation * run.processes
    here = 1 if run.device == "cuda" else run.processes  # processes that share the memory
    # least() counts the whole network, of which FSDP2 gives each process a share.
    if run.fsdp or (there := _available(run.device)) is None:
        return

    def needs(batch: int) -> float:
        return here * least(network, patch, -(-batch // parts), strides, run.device != "cuda")

    if needs(batch) <= there:
        return
    shape = " x ".join(map(str, patch))
    what = f"a batch of {batch} patches of {shape} needs more than {needs(batch):.1f} GB, and there are {there:.1f} GB"
    # Memory grows with the batch, so that bisection finds the largest that fits.
    fitting = bisect_right(range(batch), there, key=needs) - 1
    if fitting < parts:
        hint = "a smaller patch (--set patch_size=[64,64,64]), --set checkpointing=true, or a smaller network"
        raise OutOfMemoryError(f"{what}; not even a batch of {parts} fits", hint)
    # Half of it is suggested: least() leaves out all that is temporary, and a real step needs more.
    raise OutOfMemoryError(f"{what}; at most {fitting} could fit", f"--set batch_size={max(parts, fitting // 2)}, say")


def network_of(run: "Run") -> Network:
    """Return what the memory of a run depends on."""
    plan = run.plan
    model = describe_trained_model(run.dataset, plan.reused_classes, run.trainer)
    demand = demand_of(plan.pretext, plan.train.augment) if plan.pretext else None
    return describe(plan, run.configuration, model, demand)


def _available(device: str) -> float | None:
    """Return the memory of a device in GiB; None if torch does not report it."""
    if device == "cpu":
        return memory_limit() / GIB
    return (
        torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB if device == "cuda" else None
    )
