"""How long does the final validation of a training take, and how much memory, beside nnU-Net's own?

    python benchmarks/validation.py 4 3d_fullres 0 -device cpu -p STUNetPlans_S-epochs1 --repeats 3

Takes a fold that is trained, as arguments of stunet_train, and validates it in both ways in turn, each in a fresh
process: start-up and reading the checkpoint are part of both. Wall and CPU time in seconds and the peak of the memory,
all processes together (measuring.py says how); `validation` is the wall time of that alone. nnU-Net starts as many
processes as nnUNet_def_n_proc says, by default here one per core. Read next: trainers/validation.py.
"""

import argparse
import re
import statistics
import sys

from measuring import run

CODE = """
import sys, time
from stunet.nnunet import limit_processes
limit_processes()
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from stunet.cli.train import main
from stunet.trainers.trainer import BaseTrainer

validate = {"nnU-Net": nnUNetTrainer, "ours": BaseTrainer}[sys.argv[1]].perform_actual_validation

def timed(*arguments):
    started = time.perf_counter()
    validate(*arguments)
    sys.__stderr__.write(f"validation {time.perf_counter() - started} s\\n")

BaseTrainer.perform_actual_validation = timed
raise SystemExit(main([*sys.argv[2:], "--val"]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args, trained = parser.parse_known_args()
    measured: dict[str, list[tuple[float, ...]]] = {"nnU-Net": [], "ours": []}
    for _ in range(args.repeats):
        for name, rounds in measured.items():
            usage, text = run([sys.executable, "-c", CODE, name, *trained])
            found = re.search(r"^validation (\S+) s$", text, re.MULTILINE)
            assert found
            rounds.append((float(found[1]), usage.wall_s, usage.cpu_s, usage.peak / 1e6))
    print(f"{'':10}{'validation s':>14}{'wall s':>8}{'CPU s':>8}{'peak MB':>9}   medians of {args.repeats}")
    for name, rounds in measured.items():
        validation, wall, cpu, peak = map(statistics.median, zip(*rounds, strict=True))
        print(f"{name:10}{validation:14.1f}{wall:8.1f}{cpu:8.1f}{peak:9.0f}")


if __name__ == "__main__":
    main()
