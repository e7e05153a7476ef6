"""What a training step really takes on the GPU at hand: one step, run and measured (`--probe`)."""

import torch

from stunet.networks import STUNet
from stunet.plans.fit import Fit
from stunet.plans.memory import GIB, Network


def measure_step(network: Network, fit: Fit) -> float:
    """Peak GiB that a mixed-precision training step reserves on the GPU, with nnU-Net's loss and optimizer.

    Where the step does not fit, the result is a quarter more than the GPU has: reason enough to look for a smaller one.
    """
    try:
        return _measure(network, fit)
    except torch.OutOfMemoryError:
        return 1.25 * torch.cuda.get_device_properties(0).total_memory / GIB


def _measure(network: Network, fit: Fit) -> float:
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    torch.backends.cudnn.benchmark = True  # as in training: its choice of algorithms decides about workspaces
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = (
        STUNet(network.channels, network.classes, network.size, fit.strides, True, network.checkpointing).cuda().train()
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5)
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    criterion = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    images = torch.randn(fit.batch, network.channels, *fit.patch, device="cuda")
    scaler = torch.amp.GradScaler("cuda")
    for _ in range(2):  # momentum exists from the second step on
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda"):
            outputs = model(images)
            targets = [torch.zeros(len(o), 1, *o.shape[2:], device="cuda") for o in outputs]
            loss = sum(criterion(o, t) for o, t in zip(outputs, targets, strict=True))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return torch.cuda.max_memory_reserved() / GIB
