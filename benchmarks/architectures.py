"""What do a training step, a validation step and a forward of each network take, ours beside stock nnU-Net's?

    python benchmarks/architectures.py --networks stunet-s plain resenc-m --edge 64 --json benchmarks/results/steps.json

Both sides train the same network from the same plan on the same batches of noise, in float32 on the CPU with one
thread: nnUNetTrainer and its methods beside STUNetTrainer and its own. For STU-Net as well nnU-Net's side builds our
form of it (benchmarks/network.md compares that with the published one). The forward is that of prediction: nnU-Net's
network as it is, and ours as it is made ready for the CPU. The sides take turns in one process; each peak is that of a
fresh process. Results stand in benchmarks/architectures.md.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from forms import MIB, growth, in_turns, machine, ratio
from runtimes import add

SIDES = ("ours", "nnU-Net")
WORK = ("training step", "validation step", "forward")
BATCH = 2
NAME = "Dataset001_Noise"


def plan_of(name: str, edge: int) -> dict[str, Any]:
    """A plan with one configuration for the network, its depth as nnU-Net plans it for this patch."""
    from stunet.plans.blueprints import blueprints
    from stunet.plans.topology import kernels_for, strides_by_patch
    from stunet.weights.v2 import make_plan

    patch, spacing, blueprint = [edge] * 3, [1.0] * 3, blueprints()[name]
    strides = strides_by_patch(patch, spacing)
    plan = make_plan(
        NAME, "3d_fullres", "S", strides=strides, spacing=spacing, patch_size=patch, median_shape=patch,
        normalization=["ZScoreNormalization"], mirror_axes=(0, 1, 2),
    )  # fmt: skip
    architecture = blueprint.architecture
    arguments = architecture.laid_out(blueprint.arguments(3), strides, kernels_for(strides, spacing))
    content = plan.with_network_class("3d_fullres", architecture.class_name, arguments, architecture.imports).to_json()
    del content["stunet"]
    return content


def trainer_of(side: str, name: str, edge: int, classes: int) -> Any:
    """A trainer that is ready for its first step; nnU-Net reads its folders' names when it is imported."""
    torch.set_num_threads(1)
    root = Path(tempfile.gettempdir()) / f"steps-{os.getpid()}"
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[variable] = str(root / variable)
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from stunet.trainers.supervised import STUNetTrainer
    from stunet.weights.v2 import make_dataset

    plan = plan_of(name, edge)
    data = root / "nnUNet_preprocessed" / NAME / plan["configurations"]["3d_fullres"]["data_identifier"]
    data.mkdir(parents=True, exist_ok=True)
    (data / "case.b2nd").touch()  # its ending tells nnU-Net the format
    dataset = make_dataset(NAME, ["MR"], ["background", *(f"class {n}" for n in range(1, classes))], 1)
    kind = STUNetTrainer if side == "ours" else nnUNetTrainer
    given = {**plan, "continue_training": False}
    trainer = kind(given, "3d_fullres", 0, dataset, torch.device("cpu"))
    torch.manual_seed(0)
    trainer.initialize()
    return trainer


def batch_of(trainer: Any) -> dict[str, Any]:
    """Noise, with labels of noise at each resolution."""
    generator = torch.Generator().manual_seed(1)
    shape, classes = trainer.configuration_manager.patch_size, trainer.label_manager.num_segmentation_heads
    scales = trainer._get_deep_supervision_scales()
    sizes = [[round(n * share) for n, share in zip(shape, each, strict=True)] for each in scales]
    targets = [torch.randint(classes, (BATCH, 1, *size), generator=generator).float() for size in sizes]
    return {"data": torch.randn(BATCH, 1, *shape, generator=generator), "target": targets, "keys": ["a", "b"]}


def step(trainer: Any, work: str) -> Callable[[], Any]:
    """The work of one trainer, to be called again and again."""
    batch, network = batch_of(trainer), trainer.network
    if work == "training step":
        network.train()
        return lambda: trainer.train_step(batch)
    if work == "validation step":
        network.eval()

        def validate() -> Any:
            with torch.no_grad():
                return trainer.validation_step(batch)

        trainer._validated = 0  # on_validation_epoch_start() sets it, of ours
        return validate
    from stunet.inference.engine.optimized import ReadyNetwork
    from stunet.trainers.supervised import STUNetTrainer

    trainer.set_deep_supervision_enabled(False)
    network.eval()
    ready = ReadyNetwork(network, [], torch.device("cpu"), "fp32") if isinstance(trainer, STUNetTrainer) else network
    image = batch["data"][:1]

    def forward() -> Any:
        with torch.inference_mode():
            return ready(image)

    return forward


def timed(work: str, rounds: int, *case: Any) -> dict[str, list[float]]:
    """CPU seconds of both sides by round."""
    return in_turns({side: step(trainer_of(side, *case), work) for side in SIDES}, rounds)


def peak(side: str, work: str, *case: Any) -> int:
    """Bytes that two steps add to the peak of this process, the state of the optimizer among them."""
    run = step(trainer_of(side, *case), work)
    return growth(lambda: (run(), run()))


def measure(name: str, edge: int, classes: int, work: str, rounds: int, peaks: int) -> dict[str, Any]:
    case = (name, edge, classes)
    fresh = partial(ProcessPoolExecutor, 1, mp_context=get_context("spawn"), max_tasks_per_child=1)
    before = os.getloadavg()[0]
    with fresh() as process:
        cpu_s = process.submit(timed, work, rounds, *case).result()
        found = {
            side: [process.submit(peak, side, work, *case).result() for _ in range(peaks)] for side in SIDES
        }  # fmt: skip
    return {
        "network": name, "edge": edge, "classes": classes, "work": work, "cpu_s": cpu_s,
        "ratio": ratio(cpu_s["ours"], cpu_s["nnU-Net"]), "peak_bytes": found,
        "peak_ratio": statistics.median(found["ours"]) / statistics.median(found["nnU-Net"]),
        "load": [before, os.getloadavg()[0]],
    }  # fmt: skip


def shown(row: dict[str, Any]) -> str:
    cells = [row["network"], row["work"], str(row["classes"])]
    cells += [f"{statistics.median(row['cpu_s'][side]):.2f}" for side in SIDES] + [f"{row['ratio']:.2f}"]
    cells += [f"{statistics.median(row['peak_bytes'][side]) / MIB:.0f}" for side in SIDES]
    cells += [f"{row['peak_ratio']:.2f}", f"{row['load'][1]:.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["stunet-s", "plain", "resenc-m"])
    parser.add_argument("--edge", type=int, default=32, help="of the patch (default: 32)")
    parser.add_argument("--classes", nargs="+", type=int, default=[3])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peaks", type=int, default=1, help="fresh processes for each peak; the median counts")
    parser.add_argument("--json", type=Path, help="adds the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = machine("dynamic_network_architectures")
    print(json.dumps(about))
    heads = ["network", "work", "classes", "CPU s", "nnU-Net", "ratio", "peak MiB", "nnU-Net", "ratio", "load"]
    print(f"| {' | '.join(heads)} |\n|---|---|{8 * '---:|'}")
    for name in args.networks:
        for work in args.work:
            for classes in args.classes:
                row = measure(name, args.edge, classes, work, args.rounds, args.peaks)
                print(shown(row), flush=True)
                if args.json:
                    add(args.json, about, [row])


if __name__ == "__main__":
    main()
