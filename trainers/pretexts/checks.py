"""Check that a plan suits a method of pre-training, before any data are read: on a small network of the same shape."""

import math

from stunet import architectures
from stunet.errors import UsageError
from stunet.plans.plan import Plan
from stunet.plans.topology import divisor
from stunet.sizes import FOR_TESTS
from stunet.trainers.pretexts.base import Setting
from stunet.trainers.pretexts.methods import build, find


def check_method(plan: Plan, configuration: str, channels: int) -> None:
    """Check batch and patch of a plan against the method that it names.

    Args:
        plan: Names a pretext.
        configuration: Of the plan.
        channels: Of the images.

    Raises:
        UsageError: The batch is too small, or the patch is; or the method trains a part of the network on top of
            others, and the plan names no weights for these.
    """
    assert plan.pretext is not None
    planned, method, name = plan.configuration(configuration), find(plan.pretext), plan.pretext
    if method.after and not plan.weights:
        first = f"stunet_pretrain --method {method.after} first, then --method {name} --pretrained with its result"
        raise UsageError(f"{name} trains on top of an encoder that stays as it is, and no weights are given", first)
    patch, batch, strides = planned.patch_size, planned.batch_size, planned.strides
    if batch < method.demand.least_batch:
        what = f"{name} compares the samples of a batch, and the batch is {batch}"
        raise UsageError(what, f"--set batch_size={method.demand.least_batch}, or more")
    steps = divisor(strides)
    if math.prod(patch) == math.prod(steps):
        larger = ",".join(str(n * (2 if step > 1 else 1)) for n, step in zip(patch, steps, strict=True))
        what = f"a patch of {' x '.join(map(str, patch))} leaves one voxel at the bottom of the network"
        raise UsageError(what, f"--set patch_size=[{larger}], or --stages {len(strides) - 1}")
    arguments = planned.network_arguments
    if "size" in arguments:
        arguments["size"] = FOR_TESTS  # widths do not matter here, and a network of the largest size takes gigabytes
    network = architectures.of_class(planned.network_class).build(channels, channels, arguments)
    train = plan.train
    steps_ = train.num_epochs * train.num_iterations_per_epoch
    build(name, network, Setting(tuple(patch), tuple(planned.spacing), batch, steps_, train.augment))
