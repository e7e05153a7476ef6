"""What do the losses cost beside nnU-Net's: time and peak memory of forward and backward?

    OMP_WAIT_POLICY=PASSIVE python benchmarks/losses.py --edges 64 96
    OMP_WAIT_POLICY=PASSIVE python benchmarks/losses.py --edges 64 --losses step --repeats 3

Batches of 2 with 105 outputs on the CPU. `step` is a training step of size S with deep supervision, with either loss;
the other rows are losses alone, on random logits. Both sides have the same value (tests/losses/test_compound.py).
Results stand in benchmarks/losses.md.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from stunet.losses import DeepSupervision, DiceCE, MaskedSigmoid, PartitionDiceCE
from stunet.networks import STUNet

OUTPUTS = 105
ANNOTATED = 20  # of the partly labelled rows
STRIDES = [(1, 1, 1)] + 5 * [(2, 2, 2)]
WEIGHTS = [weight / 1.875 for weight in (1, 0.5, 0.25, 0.125, 0)]  # of the resolutions, as nnU-Net has them
SIDES = ("ours", "nnU-Net")
Step = Callable[[], object]


def nnunets(softmax: bool) -> nn.Module:
    """As nnUNetTrainer._build_loss sets it up."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": not softmax, "ddp": False}
    kind = DC_and_CE_loss if softmax else DC_and_BCE_loss
    args = (dice, {}) if softmax else ({}, dice)
    return kind(*args, dice_class=MemoryEfficientSoftDiceLoss)


def labels(edge: int, known: int) -> Tensor:
    """Random labels below `known`, of the loader's type."""
    return torch.randint(known, (2, 1, edge, edge, edge)).to(torch.int16)


def of_loss(loss: nn.Module, edge: int, dtype: torch.dtype, *inputs: Tensor) -> Step:
    """Forward and backward of a loss of random logits."""
    logits = torch.randn((2, OUTPUTS, edge, edge, edge), dtype=dtype).requires_grad_()

    def step() -> None:
        logits.grad = None
        loss(logits, *inputs).backward()

    return step


def softmax(side: str, edge: int, dtype: torch.dtype = torch.float32) -> Step:
    return of_loss(DiceCE(True) if side == "ours" else nnunets(True), edge, dtype, labels(edge, OUTPUTS))


def partition(side: str, edge: int) -> Step:
    """nnU-Net's side is the ordinary loss: it has no other."""
    groups = torch.arange(OUTPUTS).where(torch.arange(OUTPUTS) <= ANNOTATED, 0).expand(2, -1)
    if side == "ours":
        return of_loss(PartitionDiceCE(OUTPUTS, True), edge, torch.float32, labels(edge, ANNOTATED + 1), groups)
    return of_loss(nnunets(True), edge, torch.float32, labels(edge, ANNOTATED + 1))


def sigmoid(side: str, edge: int, known: int = OUTPUTS) -> Step:
    """nnU-Net's target is a mask per output, which its loader makes: it stands in memory before."""
    target = labels(edge, known + 1)
    if side == "nnU-Net":
        return of_loss(nnunets(False), edge, torch.float32, target == torch.arange(1, OUTPUTS + 1).view(1, -1, 1, 1, 1))
    annotated = (torch.arange(OUTPUTS) < known).expand(2, -1)
    inside = torch.eye(OUTPUTS + 1, dtype=torch.bool)[1:].expand(2, -1, -1)
    return of_loss(MaskedSigmoid(True), edge, torch.float32, target, annotated, inside & annotated[..., None])


def training(side: str, edge: int) -> Step:
    network = STUNet(1, OUTPUTS, "S", STRIDES, deep_supervision=True)
    image = torch.randn(2, 1, edge, edge, edge)
    targets = [labels(edge // 2**level, OUTPUTS) for level in range(len(WEIGHTS))]
    if side == "ours":
        loss: nn.Module = DeepSupervision(DiceCE(True), WEIGHTS)
    else:
        loss = DeepSupervisionWrapper(nnunets(True), WEIGHTS)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        loss(network(image), targets).backward()

    return step


MAKERS = {
    "softmax": softmax,
    "softmax, bfloat16": partial(softmax, dtype=torch.bfloat16),
    f"softmax, {ANNOTATED} labels": partition,
    "sigmoid": sigmoid,
    f"sigmoid, {ANNOTATED} labels": partial(sigmoid, known=ANNOTATED),
    "step": training,
}


@dataclass(frozen=True)
class Times:
    """Seconds of single rounds."""

    wall: list[float]
    cpu: list[float]


def times(name: str, edge: int, repeats: int) -> list[Times]:
    """Of both sides, which take turns, so that a busy machine slows both. One round warms up."""
    steps = [MAKERS[name](side, edge) for side in SIDES]
    taken = [Times([], []) for _ in SIDES]
    for _ in range(repeats + 1):
        for step, times in zip(steps, taken, strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            times.wall.append(time.perf_counter() - wall)
            times.cpu.append(time.process_time() - cpu)
    return [Times(x.wall[1:], x.cpu[1:]) for x in taken]


def peak_bytes(name: str, side: str, edge: int) -> int:
    """By how much a step raises the peak memory of this process, which must be fresh; Linux counts it in KiB."""
    softmax(side, 32)()  # what the first step of all costs
    step = MAKERS[name](side, edge)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def measure(name: str, edge: int, repeats: int) -> list[str]:
    """One row of the table. Every figure comes from a process of its own; this one stays small for their sake."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        taken = fresh.submit(times, name, edge, repeats).result()
        peaks = [fresh.submit(peak_bytes, name, side, edge).result() for side in SIDES]
    row = [f"{name}, {edge}^3"]
    for kind in (lambda x: x.wall, lambda x: x.cpu):
        medians = [statistics.median(kind(x)) for x in taken]
        row += [f"{medians[0]:.2f}", f"{medians[1]:.2f}", f"{medians[0] / medians[1]:.2f}"]
    return [*row, *(f"{peak / 2**20:.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.1f}x"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=MAKERS, default=list(MAKERS)[:-1], help="rows")
    parser.add_argument("--edges", nargs="+", type=int, default=[64, 96], help="voxels; default: 64 96")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds; the median counts (default: 5)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {OUTPUTS} outputs, {args.repeats} rounds\n")
    print("| | wall s | nnU-Net | ratio | CPU s | nnU-Net | ratio | peak MiB | nnU-Net | less |\n|---|" + 9 * "---:|")
    for edge in args.edges:
        for name in args.losses:
            print(f"| {' | '.join(measure(name, edge, args.repeats))} |", flush=True)


if __name__ == "__main__":
    main()
