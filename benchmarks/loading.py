"""What does it cost to load a checkpoint of nnU-Net v1 into a network: memory and time, against torch.load?

    python benchmarks/loading.py [--size B] [--repeats 5]

The file has the layout of the released ones: random weights, and the momentum of SGD beside them, which doubles it.
Each run is a fresh process with torch imported; its peak is what /proc/self/status says (VmHWM), mapped pages
included, beyond what there was before. "into a network" is the real use: stunet.weights.transfer with all its checks,
against torch.load, a network built as usual, and load_state_dict.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from stunet.networks import build

STRIDES = [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]]
RUN = """
import json, sys, time
from pathlib import Path
import torch
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
path, strides, size = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
before, start = peak(), time.perf_counter()
{code}
print(json.dumps([peak() - before, time.perf_counter() - start]))
"""
SIDES = {
    "torch.load": "content = torch.load(path, map_location='cpu', weights_only=False)",
    "read_weights": "from stunet.weights.reading import read_weights; weights = read_weights(path)",
    "torch.load into a network": """
from stunet.networks import build
content = torch.load(path, map_location='cpu', weights_only=False)
network = build(size, strides, 1, 105)
network.load_state_dict(content['state_dict'])
""",
    "stunet into a network": """
from stunet.networks import build
from stunet.weights.transfer import transfer
from stunet.weights.reading import read_weights
weights = read_weights(path)
network = build(size, strides, 1, 105)
transfer(network, weights)
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="B")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.model"
        kept = write_v1(path, args.size)
        print(f"{args.size}: file {path.stat().st_size / 1e6:.0f} MB, weights kept {kept / 1e6:.0f} MB")
        runs: dict[str, list[list[float]]] = {name: [] for name in SIDES}
        for _ in range(args.repeats):
            for name, code in SIDES.items():
                runs[name].append(measure(code, path, args.size))
        for name, results in runs.items():
            peak, seconds = (statistics.median(column) for column in zip(*results, strict=True))
            print(f"{name:26} peak {peak / 1e6:6.0f} MB, {peak / kept:5.2f} x the weights; {seconds:6.2f} s")


def write_v1(path: Path, size: str) -> int:
    """A checkpoint of nnU-Net v1 with random weights and momentum; returns the bytes of the weights."""
    weights = build(size, STRIDES).state_dict()
    momentum = {i: {"momentum_buffer": torch.randn_like(value)} for i, value in enumerate(weights.values())}
    group = {"lr": 1e-2, "momentum": 0.99, "params": list(momentum)}
    content = {
        "epoch": 4000,
        "state_dict": weights,
        "optimizer_state_dict": {"state": momentum, "param_groups": [group]},
        "lr_scheduler_state_dict": None,
        "plot_stuff": ([np.float64(0.5)] * 4000, [np.float64(0.5)] * 4000, [], [np.float64(0.5)] * 4000),
        "best_stuff": (np.float64(0.5), np.float64(0.5), np.float64(0.5)),
        "amp_grad_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
    }
    torch.save(content, path)
    return sum(value.numel() * value.element_size() for value in weights.values())


def measure(code: str, path: Path, size: str) -> list[float]:
    """Peak bytes and seconds of one of SIDES in a fresh process."""
    command = [sys.executable, "-c", RUN.format(code=code), str(path), json.dumps(STRIDES), size]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
