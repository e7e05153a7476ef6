"""What does each method of pre-training cost beside its network, and beside supervised training of the same patch?

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/pretexts.py methods --size S --edge 64
    OMP_NUM_THREADS=1 python benchmarks/pretexts.py data 50 --edge 64
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python benchmarks/pretexts.py shuffle

`methods` takes one training step per method (forward, backward, the pretext's update) and separately what of it is the
pretext's own work: the same compute() with an encoder and decoder that cost nothing. Each method runs in a process of
its own, whose peak memory is compared with that of a supervised step with two classes. `data` draws samples of a
planned dataset as the training does: reading, cropping, turning, mirroring. `shuffle` compares Models Genesis' shuffle
with its published loop. benchmarks/selfsupervised.md has the results.
"""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from stunet import workspace
from stunet.console import note, table
from stunet.errors import UsageError
from stunet.files import read_json
from stunet.losses import DeepSupervision, DiceCE
from stunet.networks import STUNet
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.trainers.pretexts.base import Patches, Setting
from stunet.trainers.pretexts.corruptions import LARGEST, WINDOWS, shuffle
from stunet.trainers.pretexts.methods import METHODS, build

STRIDES = [[1, 1, 1]] + 4 * [[2, 2, 2]] + [[1, 1, 1]]  # as planned for patches of 64 voxels
SUPERVISED = "supervised"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    each = commands.add_parser("methods")
    each.add_argument("--size", default="S")
    each.add_argument("--edge", type=int, default=64)
    each.add_argument("--batch", type=int, default=2)
    each.add_argument("--repeats", type=int, default=3)
    each.add_argument("--methods", nargs="+", default=list(METHODS))
    data = commands.add_parser("data")
    data.add_argument("dataset", type=int)
    data.add_argument("--edge", type=int, default=64)
    data.add_argument("--batches", type=int, default=20)
    commands.add_parser("shuffle")
    args = parser.parse_args()
    if args.command == "shuffle":
        compare_shuffles()
    elif args.command == "data":
        compare_data(args.dataset, args.edge, args.batches)
    else:
        compare_methods(args)


def compare_methods(args: argparse.Namespace) -> None:
    context = get_context("spawn")
    measured = {}
    for name in (SUPERVISED, *args.methods):
        try:
            with ProcessPoolExecutor(1, context) as pool:
                measured[name] = pool.submit(measure, name, args.size, args.edge, args.batch, args.repeats).result()
        except UsageError as error:
            note(f"{name}: {error}")
    step, _, peak = measured[SUPERVISED]
    rows = [
        [
            name,
            f"{whole:.2f}",
            f"{whole / step:.2f}",
            f"{args.batch / whole:.2f}",
            "-" if own is None else f"{own:.3f}",
            "-" if own is None else f"{own / whole:.0%}",
            f"{memory / 2**20:.0f}",
            f"{memory / peak:.2f}",
        ]
        for name, (whole, own, memory) in measured.items()
    ]
    columns = ("method", "step CPU s", "ratio", "samples/CPU s", "own CPU s", "share", "peak MiB", "ratio")
    table(columns, rows)


def measure(name: str, size: str, edge: int, batch: int, repeats: int) -> tuple[float, float | None, int]:
    """Returns the CPU seconds of a step and of the pretext's own part of it, and the bytes that training takes."""
    torch.manual_seed(0)
    empty = peak_bytes()
    if name == SUPERVISED:
        return cpu_seconds(supervised_step(size, edge, batch), repeats), None, peak_bytes() - empty
    pretext, samples = make(name, size, edge, batch), patches(name, edge, batch)

    def step() -> None:
        loss, _, kept = pretext(samples())
        loss.backward()
        with torch.no_grad():
            pretext.update(kept)

    whole, peak = cpu_seconds(step, repeats), peak_bytes() - empty
    pretext.architecture = Free(pretext.architecture)
    with torch.no_grad():
        return whole, cpu_seconds(lambda: pretext.compute(samples()), repeats), peak


def supervised_step(size: str, edge: int, batch: int) -> Callable[[], object]:
    """Returns a step with two classes and deep supervision."""
    network = STUNet(1, 3, size, STRIDES)
    loss = DeepSupervision(DiceCE(False), [1 / 2**level for level in range(len(STRIDES) - 1)])
    images, sides = torch.randn(batch, 1, edge, edge, edge), [edge // 2**level for level in range(len(STRIDES) - 1)]
    targets = [torch.randint(3, (batch, 1, n, n, n)).to(torch.int16) for n in sides]
    return lambda: loss(network(images), targets).backward()


def make(name: str, size: str, edge: int, batch: int) -> Any:
    """Returns a method's pretext around a fresh network."""
    network = STUNet(1, 1, size, STRIDES, deep_supervision=False)
    network.apply(network.initialize)
    return build(name, network, Setting((edge,) * 3, (1.0, 1.0, 1.0), batch, 1000))


def patches(name: str, edge: int, batch: int) -> Callable[[], Patches]:
    """Returns a function that returns the same patches of noise, with new generators."""
    images = torch.randn(batch, METHODS[name].patches, edge, edge, edge)
    valid = torch.ones_like(images, dtype=torch.bool)
    places = torch.tensor([[0.0, 0.5]]).repeat(batch, 1)
    cases = torch.arange(batch)
    return lambda: Patches(images, valid, [torch.Generator().manual_seed(n) for n in range(batch)], places, cases)


class Free:
    """An architecture whose encoder and decoder cost nothing, so that what is left is the pretext's own work."""

    def __init__(self, architecture: Any) -> None:
        self.architecture = architecture

    def features(self, network: Any, images: torch.Tensor) -> list[torch.Tensor]:
        sides, features = list(images.shape[2:]), []
        for stage, strides in zip(network.conv_blocks_context, STRIDES, strict=True):
            sides = [-(-side // stride) for side, stride in zip(sides, strides, strict=True)]
            features.append(images.new_zeros(1).expand(len(images), stage[0].conv1.out_channels, *sides))
        return features

    def decode(self, network: Any, features: list[torch.Tensor], levels: int | None = None) -> torch.Tensor:
        return features[0 if levels is None else len(features) - 1 - levels]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.architecture, name)


def compare_data(dataset: int, edge: int, batches: int) -> None:
    """Prints what a sample costs before any network sees it, for methods whose patches are drawn alike."""
    os.environ["nnUNet_n_proc_DA"] = "0"  # in this process, whose time is taken
    alike: dict[tuple[bool, bool, int], list[str]] = {}
    for name, method in METHODS.items():
        alike.setdefault((method.turns, method.mirrors, method.patches), []).append(name)
    rows = []
    with TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        for (turns, mirrors, patches), names in alike.items():
            loader, size = make_loader(dataset, names[0], edge)
            # The mean: few samples are turned, and these take the time.
            per_batch = cpu_seconds(lambda loader=loader: next(loader), batches, statistics.mean)
            what = ", ".join(["turned"] * turns + ["mirrored"] * mirrors) or "as they are"
            rows.append(
                [what, str(patches), f"{1000 * per_batch / size:.1f}", f"{size / per_batch:.0f}", " ".join(names)]
            )
    table(("patches", "per sample", "CPU ms per sample", "samples/CPU s", "methods"), rows)


def make_loader(dataset: int, method: str, edge: int) -> tuple[Any, int]:
    """Returns the batches of a pre-training's trainer, and the samples in one."""
    from stunet.trainers.pretraining import STUNetPretrainer

    name = workspace.dataset_name(dataset)
    dataset_json = read_json(workspace.preprocessed_dataset(name) / "dataset.json")
    plan = derive(read_plan(plan_path(name, None)).with_ours(pretext=method), dataset_json)
    plan = plan.with_configuration("3d_fullres", patch_size=[edge] * 3, batch_size=2)
    trainer = STUNetPretrainer(plan.to_json(), "3d_fullres", "all", dataset_json, torch.device("cpu"))
    trainer.initialize()
    return iter(trainer.get_dataloaders()[0]), trainer.batch_size


def compare_shuffles() -> None:
    rows = []
    for shape in ((64, 64, 32), (96, 96, 96), (160, 160, 160)):
        image = torch.rand(1, *shape)
        ours = cpu_seconds(lambda image=image: shuffle(image, torch.Generator().manual_seed(0)), 5)
        theirs = cpu_seconds(lambda image=image: published_shuffle(image[0].numpy()), 3)
        rows.append([" x ".join(map(str, shape)), f"{theirs:.3f}", f"{ours:.4f}", f"{theirs / ours:.1f}"])
    table(("patch", "loop CPU s", "ours CPU s", "ratio"), rows)


def published_shuffle(image: np.ndarray) -> np.ndarray:
    """The loop of Models Genesis over windows, restated."""
    random, shuffled = np.random.default_rng(0), image.copy()
    for _ in range(WINDOWS):
        sides = [random.integers(1, n // LARGEST + 1) for n in image.shape]
        firsts = [random.integers(0, n - side + 1) for n, side in zip(image.shape, sides, strict=True)]
        box = tuple(slice(first, first + side) for first, side in zip(firsts, sides, strict=True))
        window = image[box].flatten()
        random.shuffle(window)
        shuffled[box] = window.reshape(sides)
    return shuffled


def cpu_seconds(
    step: Callable[[], object], repeats: int, average: Callable[[list[float]], float] = statistics.median
) -> float:
    """Returns the average CPU time of a step, after one that does not count."""
    step()
    times = []
    for _ in range(repeats):
        before = time.process_time()
        step()
        times.append(time.process_time() - before)
    return average(times)


def peak_bytes() -> int:
    """Returns the largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
