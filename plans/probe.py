"""Measure what a training step really takes on the GPU at hand, by running one (`--probe`)."""

import torch

from stunet.losses import DiceCE
from stunet.machine import GIB
from stunet.plans.fit import Fit
from stunet.plans.memory import Network


def measure_step(network: Network, fit: Fit) -> float:
    """Return the peak GiB that a mixed-precision training step reserves, with our loss and nnU-Net's optimizer.

    If the step does not fit, the result is a quarter more than the GPU has, so that the search goes on with less.
    """
    try:
        return _measure(network, fit)
    except torch.OutOfMemoryError:
        return 1.25 * torch.cuda.get_device_properties(0).total_memory / GIB


def _measure(network: Network, fit: Fit) -> float:
    torch.backends.cudnn.benchmark = True  # as in training: its choice of algorithms determines the workspaces
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = network.architecture.build(network.channels, network.classes, fit.arguments).cuda().train()
    network.architecture.deeply_supervise(model, True)
    # The values are nnU-Net's. Momentum takes as many bytes as the weights.
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
    criterion = _of_regions() if network.regions else DiceCE(batch_dice=True)
    channels = network.classes if network.regions else 1
    images = torch.randn(fit.batch, network.channels, *fit.patch, device="cuda")
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(2):  # momentum exists from the second step on
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda"):
            outputs = model(images)
            targets = [torch.zeros(len(o), channels, *o.shape[2:], device="cuda") for o in outputs]
            loss = sum(criterion(o, t) for o, t in zip(outputs, targets, strict=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    # Reserved, not allocated: fragmentation has to fit, too.
    return torch.cuda.max_memory_reserved() / GIB


def _of_regions() -> torch.nn.Module:
    """Return nnU-Net's loss for regions."""
    from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": True, "ddp": False}
    return DC_and_BCE_loss({}, dice, dice_class=MemoryEfficientSoftDiceLoss)
