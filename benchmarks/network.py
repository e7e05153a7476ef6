"""What does our form of the network save against the published one: time, peak memory, bytes kept for backward?

    python benchmarks/network.py --sizes S B --edges 64 96

Both have the same parameters and return the same logits (tests/test_networks.py). The published form upsamples before
it convolves, computes every head at inference too, and uses torch's InstanceNorm3d and Conv3d throughout. Results stand
in benchmarks/network.md.
"""

import argparse
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stunet.networks import InstanceNorm, Pointwise3d, STUNet

STRIDES = [(1, 1, 1)] + 5 * [(2, 2, 2)]
FORMS = ("ours", "published")
MODES = ("inference", "training")


class Published(STUNet):
    """The network as published, after Huang et al. 2023: the same parameters, computed in the original order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, InstanceNorm):
                    setattr(module, name, nn.InstanceNorm3d(child.num_channels, affine=True))
                elif isinstance(child, Pointwise3d):
                    setattr(module, name, nn.Conv3d(child.in_channels, child.out_channels, 1))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        skips = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            skips.append(x)
        skips.pop()
        outputs = []
        for up, stage, head in zip(self.upsample_layers, self.conv_blocks_localization, self.seg_outputs, strict=True):
            x = up.conv(F.interpolate(x, scale_factor=up.scale, mode="nearest"))
            x = stage(torch.cat((x, skips.pop()), 1))
            outputs.append(head(x))
        return outputs[::-1] if self.decoder.deep_supervision else outputs[-1]


def network_and_input(form: str, size: str, edge: int, classes: int) -> tuple[STUNet, Tensor]:
    """A network of either form, and one image (1, 1, edge, edge, edge) of noise."""
    torch.manual_seed(0)
    kind = STUNet if form == "ours" else Published
    return kind(1, classes, size, STRIDES), torch.randn(1, 1, edge, edge, edge)


def step(network: STUNet, image: Tensor, mode: str) -> None:
    """One inference forward, or one training step: all heads, the sum of all logits as the loss, backward."""
    network.decoder.deep_supervision = mode == "training"
    if mode == "training":
        sum(logits.sum() for logits in network(image)).backward()
        network.zero_grad(set_to_none=True)
    else:
        with torch.inference_mode():
            network(image)


def seconds(size: str, edge: int, classes: int, mode: str, repeats: int) -> dict[str, list[float]]:
    """Wall-clock seconds per form; the forms take turns, so that a busy machine slows both. One round warms up."""
    pairs = {form: network_and_input(form, size, edge, classes) for form in FORMS}
    taken: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(repeats + 1):
        for form, (network, image) in pairs.items():
            start = time.perf_counter()
            step(network, image, mode)
            taken[form].append(time.perf_counter() - start)
    return {form: values[1:] for form, values in taken.items()}


def peak_bytes(form: str, size: str, edge: int, classes: int, mode: str) -> int:
    """By how much one step raises the peak memory of this process, which must be fresh; Linux counts it in KiB."""
    network, image = network_and_input(form, size, edge, classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(network, image, mode)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def kept_bytes(form: str, size: str, edge: int, classes: int) -> int:
    """Bytes kept for backward after a training forward, on the meta device: distinct storages, no parameters."""
    with torch.device("meta"):
        network, image = network_and_input(form, size, edge, classes)
    parameters = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(image)
    total = sum(storage.nbytes() for storage in kept.values())
    del outputs  # the graph: until here it held every storage, so that no address was used twice
    return total


def measure(size: str, edge: int, mode: str, classes: int, repeats: int) -> list[str]:
    """One row of the table. Every memory figure comes from a process of its own; this one stays small for their sake:
    a child's peak starts at its parent's."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        taken = fresh.submit(seconds, size, edge, classes, mode, repeats).result()
        peak = [fresh.submit(peak_bytes, form, size, edge, classes, mode).result() for form in FORMS]
    median = [statistics.median(taken[form]) for form in FORMS]
    fastest = min(taken["ours"]) / min(taken["published"])
    row = [f"{size} {edge}^3 {mode}", *(f"{t:.2f}" for t in median), f"{median[0] / median[1]:.2f}", f"{fastest:.2f}"]
    row += [*(f"{b / 2**20:.0f}" for b in peak), f"{peak[0] / peak[1]:.2f}"]
    if mode == "inference":
        return [*row, "", "", ""]
    kept = [kept_bytes(form, size, edge, classes) for form in FORMS]
    return [*row, *(f"{b / 2**20:.0f}" for b in kept), f"{kept[0] / kept[1]:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="our form of the network against the published one, on the CPU")
    parser.add_argument("--sizes", nargs="+", default=["S", "B"], help="default: S B")
    parser.add_argument("--edges", nargs="+", type=int, default=[64, 96], help="of the input; default: 64 96")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--classes", type=int, default=105)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds; the median counts (default: 7)")
    args = parser.parse_args()
    heads = ["step", "s", "published", "ratio", "fastest", "peak MiB", "published", "ratio"]
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.classes} classes, {args.repeats} rounds"
    )
    print(f"| {' | '.join([*heads, 'kept MiB', 'published', 'ratio'])} |\n|---|{10 * '---:|'}")
    for size in args.sizes:
        for edge in args.edges:
            for mode in args.modes:
                print(f"| {' | '.join(measure(size, edge, mode, args.classes, args.repeats))} |", flush=True)


if __name__ == "__main__":
    main()
