"""What does one forward of the network take when it was made ready for inference, beside the published form?

    python benchmarks/inference_network.py --work FOLDER --sizes S B --edges 64 96

Trained networks with 105 outputs (inference_models.py) on pieces of a real CT at 1.5 mm; the published form in fp32
(inference/network.py) against ours in fp32 and bf16, which take turns. Labels are compared on two pieces, from
opposite corners of the CT. The goals are 0.75 and 0.35 of the time, and 0.9999 of the labels.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from inference_models import add_folders, model_folder
from inference_stock import load, preprocess
from network import Published
from torch import Tensor

from stunet.inference.engine.optimized import ReadyNetwork
from stunet.networks import STUNet

MODELS = {"S": "105", "B": "105-B"}
PRECISIONS = ("fp32", "bf16")
Forward = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folders(parser)
    parser.add_argument("--sizes", nargs="+", default=list(MODELS))
    parser.add_argument("--edges", nargs="+", type=int, default=[64, 96])
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds (default: 7)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.repeats} rounds")
    print("| forward | published s | ours s | ratio | of the fastest | of CPU s | equal labels |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for size in args.sizes:
        predictor = load(model_folder(MODELS[size], args.work))
        image_CDHW, _ = preprocess(predictor, args.data / "ct" / "thorax_1.5mm.nii.gz")
        strides = predictor.configuration_manager.network_arch_init_kwargs["strides"]
        forms = make_forms(size, strides, predictor.network.state_dict())
        for edge in args.edges:
            for row in measure(forms, corners(image_CDHW, edge), args.repeats):
                print(f"| {size} {edge}^3 {' | '.join(row)} |", flush=True)


def make_forms(size: str, strides: list[list[int]], weights: dict[str, Tensor]) -> dict[str, Forward]:
    """The same network in its published form, and in ours as it is made ready for each precision."""

    def build(kind: type[STUNet]) -> STUNet:
        network = kind(1, 105, size, strides).eval()
        network.decoder.deep_supervision = False
        network.load_state_dict(weights)
        return network

    ready = {precision: ReadyNetwork(build(STUNet), [], torch.device("cpu"), precision) for precision in PRECISIONS}
    return {"published": build(Published), **ready}


def corners(image_CDHW: Tensor, edge: int) -> list[Tensor]:
    """Two pieces (1, C, edge, edge, edge), from the first and the last corner."""
    first, last = [slice(edge)] * 3, [slice(-edge, None)] * 3
    return [image_CDHW[:, *piece][None].contiguous() for piece in (first, last)]


def measure(forms: dict[str, Forward], pieces: list[Tensor], repeats: int) -> list[list[str]]:
    """A row for each precision: times, ratios to the published form, and how many labels are equal to its labels."""
    wall: dict[str, list[float]] = {name: [] for name in forms}
    cpu: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        labels = {name: [form(piece).float().argmax(1) for piece in pieces] for name, form in forms.items()}  # warms up
        for _ in range(repeats):
            for name, form in forms.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                form(pieces[0])
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
    rows = []
    for name in PRECISIONS:
        medians = [statistics.median(wall[form]) for form in ("published", name)]
        pairs = zip(labels[name], labels["published"], strict=True)
        equal = statistics.mean(float((ours == theirs).double().mean()) for ours, theirs in pairs)
        ratios = (
            medians[1] / medians[0],
            min(wall[name]) / min(wall["published"]),
            min(cpu[name]) / min(cpu["published"]),
        )
        rows.append([name, *(f"{s:.3f}" for s in medians), *(f"{r:.2f}" for r in ratios), f"{equal:.6f}"])
    return rows


if __name__ == "__main__":
    main()
