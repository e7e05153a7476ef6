"""How long until something happens: `--help`, `stunet_info --json`, and training up to its first iteration.

    python benchmarks/startup.py [--repeats 5]

Training is compared with stock nnUNetv2_train on the same preprocessed phantom and plan (size T), in turn, each
in a fresh process: wall and CPU time from the start of Python until the first batch is there and the first iteration
begins.
"""

import argparse
import contextlib
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stunet.datasets.phantom import make_phantom

BIN = Path(sys.executable).parent
DATASET = "Dataset998_Phantom"
# Runs an entry point and leaves where nnU-Net's train_step begins its work on the first batch.
UNTIL_FIRST_ITERATION = """
import os, sys, torch
def leave(*args, **kwargs):
    os._exit(0)
torch.optim.SGD.zero_grad = leave
sys.argv = {argv!r}
from {module} import {function} as entry
entry()
"""
SIDES = {
    "nnUNetv2_train": (
        "nnunetv2.run.run_training",
        "run_training_entry",
        ["-p", "STUNetPlans_T", "-tr", "nnUNetTrainer"],
    ),
    "stunet_train": ("stunet.cli.train", "main", ["-p", "STUNetPlans_T", "--overwrite"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for command in (["stunet_train", "--help"], ["stunet_info", "--json"], ["nnUNetv2_train", "--help"]):
        runs = [measure([str(BIN / command[0]), *command[1:]], dict(os.environ)) for _ in range(repeats)]
        report(" ".join(command), runs)
    with tempfile.TemporaryDirectory() as scratch:
        environment = prepare(Path(scratch))
        runs = {name: [] for name in SIDES}
        for _ in range(repeats):
            for name, (module, function, arguments) in SIDES.items():
                argv = [name, DATASET, "3d_fullres", "0", "-device", "cpu", *arguments]
                code = UNTIL_FIRST_ITERATION.format(argv=argv, module=module, function=function)
                runs[name].append(measure([sys.executable, "-c", code], environment))
    for name in SIDES:
        report(f"{name} to the first iteration", runs[name])
    stock, ours = (statistics.median(wall for wall, _ in runs[name]) for name in SIDES)
    print(f"wall time, stunet_train / nnUNetv2_train: {ours / stock:.2f}")


def prepare(folder: Path) -> dict[str, str]:
    """A planned and preprocessed phantom, and the variables that lead to it."""
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    environment = {**os.environ, **{name: str(folder / name) for name in names}}
    (folder / "nnUNet_raw").mkdir()
    make_phantom(folder / "nnUNet_raw" / DATASET, cases=5, seed=0)
    command = [str(BIN / "stunet_plan_and_preprocess"), "-d", "998", "--size", "T", "-c", "3d_fullres"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return environment


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command with its children; children that outlive it are ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    code = process.wait()
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if code:
        raise SystemExit(f"{command[0]} ended with {code}: {process.stderr.read().decode()[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def report(name: str, runs: list[tuple[float, float]]) -> None:
    """Medians and ranges of wall and CPU time."""
    columns = []
    for title, values in zip(("wall", "CPU"), zip(*runs, strict=True), strict=True):
        columns.append(f"{title} {statistics.median(values):6.2f} s ({min(values):.2f} to {max(values):.2f})")
    print(f"{name:38} {'   '.join(columns)}", flush=True)


if __name__ == "__main__":
    main()
