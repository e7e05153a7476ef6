"""What does a fine-tuning strategy cost per step against `full`: time, peak memory, bytes kept for backward?

    python benchmarks/strategies.py --size S --edge 64 --batch 2

One step as nnU-Net takes it, on the CPU: all heads, loss, backward, SGD with Nesterov momentum. The heads are new, all
else is pre-trained, and each strategy is measured in its first phase: sawtooth and warmup go on as `full`. Results
stand in benchmarks/finetuning.md.
"""

import argparse
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from stunet.architectures.base import HEADS
from stunet.architectures.stunet import STUNET
from stunet.networks import STUNet
from stunet.trainers.finetune.lora import add
from stunet.trainers.finetune.strategies import STRATEGIES, groups, kept_stages, phase_of, set_trainable

STAGES = 6
CLASSES = 5
Case = tuple[STUNet, torch.optim.Optimizer, Tensor]


def prepared(name: str, size: str, edge: int, batch: int) -> tuple[Case, tuple[int, int]]:
    """A network as the strategy's first phase trains it, its optimizer, an input; trained and all parameters."""
    torch.manual_seed(0)
    strategy = STRATEGIES[name]
    strides = [(1, 1, 1)] + (kept_stages(strategy, STAGES) - 1) * [(2, 2, 2)]
    network = STUNet(1, CLASSES, size, strides)
    fresh = {name for name, _ in network.named_parameters() if STUNET.place(name).part == HEADS}
    if strategy.lora_rank:
        add(network, strategy.lora_rank, 0, fresh)
    counts = set_trainable(network, phase_of(strategy, 0, 1000), fresh)
    optimizer = torch.optim.SGD(groups(network, strategy, fresh), 1e-4, momentum=0.99, nesterov=True)
    return (network, optimizer, torch.randn(batch, 1, edge, edge, edge)), counts


def loss_of(network: STUNet, image: Tensor) -> Tensor:
    return sum((logits.square().mean() for logits in network(image)), torch.zeros(()))


def step(case: Case) -> None:
    network, optimizer, image = case
    optimizer.zero_grad(set_to_none=True)
    loss_of(network, image).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()


def seconds(names: list[str], size: str, edge: int, batch: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Wall-clock and CPU seconds per strategy, which take turns, as other work slows them. One round warms up."""
    cases = {name: prepared(name, size, edge, batch)[0] for name in names}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(repeats + 1):
        for name, case in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step(case)
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: values[1:] for name, values in taken.items()}


def peak_bytes(name: str, size: str, edge: int, batch: int) -> int:
    """By how much two steps raise the peak memory of this process, which must be fresh; the second has momenta."""
    case, _ = prepared(name, size, edge, batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(case)
    step(case)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024  # Linux counts in KiB


def kept_bytes(name: str, size: str, edge: int, batch: int) -> tuple[int, int, int]:
    """Bytes kept for backward, distinct storages without parameters and input; trained and all parameters."""
    (network, _, image), counts = prepared(name, size, edge, batch)
    ours = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), image)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(image)
    total = sum(kept.values())
    del outputs  # the graph: until here it held every storage, so that no address was used twice
    return total, *counts


def main() -> None:
    parser = argparse.ArgumentParser(description="a training step of each fine-tuning strategy against that of `full`")
    parser.add_argument("--size", default="S")
    parser.add_argument("--edge", type=int, default=64, help="of the patch; default: 64")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds; the median counts (default: 7)")
    args = parser.parse_args()
    names = ["full", *(name for name in args.strategies if name != "full")]
    what = args.size, args.edge, args.batch
    # Every memory figure comes from a process of its own; this one stays small: a child's peak starts at its parent's.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        peak = {name: fresh.submit(peak_bytes, name, *what).result() for name in names}
        kept = {name: fresh.submit(kept_bytes, name, *what).result() for name in names}
        taken = fresh.submit(seconds, names, *what, args.repeats).result()
    wall, cpu = ({name: statistics.median(pair[i] for pair in taken[name]) for name in names} for i in (0, 1))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {what}, {args.repeats} rounds")
    print(
        "| strategy | trains | wall s | ratio | CPU s | ratio | peak MiB | ratio | kept MiB | ratio |\n|---|"
        + 9 * "---:|"
    )
    for name in names:
        total, trained, parameters = kept[name]
        row = [f"`{name}`", f"{trained / parameters:.1%}", f"{wall[name]:.2f}", f"{wall[name] / wall['full']:.2f}"]
        row += [f"{cpu[name]:.2f}", f"{cpu[name] / cpu['full']:.2f}"]
        row += [f"{peak[name] / 2**20:.0f}", f"{peak[name] / peak['full']:.2f}"]
        row += [f"{total / 2**20:.0f}", f"{total / kept['full'][0]:.2f}"]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
