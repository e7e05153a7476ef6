"""What does recomputing each stage in the backward pass (`--set checkpointing=true`) save, and what does it cost?

    python benchmarks/checkpointing.py [--sizes S B] [--edge 64] [--classes 105] [--repeats 3]

One training step on the CPU in float32, batch 2, each in a process of its own, alternating. "Kept" are the bytes that
wait between the forward and the backward pass, exactly, logits included; the peak is that of the process, beyond what
it had before.
"""

import argparse
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch.profiler import profile

from stunet.losses import DiceCE
from stunet.networks import STUNet

STRIDES = [(1, 1, 1), *[(2, 2, 2)] * 4, (1, 1, 2)]  # of the published pre-training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["S", "B"])
    parser.add_argument("--edge", type=int, default=64)
    parser.add_argument("--classes", type=int, default=105)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print("| size | checkpointing | CPU s | peak MiB | kept MiB |\n|---|---|---:|---:|---:|")
    for size in args.sizes:
        runs: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
        for _ in range(args.repeats):
            for checkpointing, results in runs.items():
                # A process of its own for every figure: peak memory never falls again.
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    results.append(pool.submit(step, size, args.edge, args.classes, checkpointing).result())
        for checkpointing, results in runs.items():
            seconds, peak, kept = (statistics.median(column) for column in zip(*results, strict=True))
            name = "yes" if checkpointing else "no"
            print(f"| {size} | {name} | {seconds:.2f} | {peak / 2**20:.0f} | {kept / 2**20:.0f} |", flush=True)


def step(size: str, edge: int, classes: int, checkpointing: bool) -> tuple[float, float, float]:
    """CPU seconds, peak bytes and kept bytes of a step."""
    torch.manual_seed(0)
    network = STUNet(1, classes, size, STRIDES, deep_supervision=True, checkpointing=checkpointing)
    loss, weights = DiceCE(batch_dice=False), (8, 4, 2, 1)  # over 15
    image = torch.randn(2, 1, edge, edge, edge)
    before, started = _peak(), time.process_time()
    with profile(profile_memory=True) as record:
        outputs = network(image)
    kept = sum(event.self_cpu_memory_usage for event in record.events())  # allocated and not freed
    value = torch.zeros(())
    for weight, logits in zip(weights, outputs, strict=False):  # the lowest head has no part in it
        target = torch.randint(0, classes, (2, 1, *logits.shape[2:]), dtype=torch.int16)
        value = value + weight / 15 * loss(logits, target)
    value.backward()
    return time.process_time() - started, _peak() - before, float(kept)


def _peak() -> float:
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
