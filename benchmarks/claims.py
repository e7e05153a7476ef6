"""Do published claims on self-supervised pre-training hold for the fine-tunings in benchmarks/selfsupervised/?

    python benchmarks/claims.py collect FOLDER     # Dice by case of what stunet_experiment ... -o FOLDER has finished
    python benchmarks/claims.py table              # each claim with its difference, interval and verdict
    python benchmarks/claims.py methods            # each method's Dice, and what it gains; writes a plot

`collect` adds to benchmarks/results/selfsupervised_arms.json, from which the others compute. Differences are paired by
seed and held-out case, and their intervals those of stunet_experiment (stunet/experiment/summary.py).
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stunet.console import note, table
from stunet.evaluation.bootstrap import mean_dice
from stunet.experiment.arms import arms, command, read_experiment, request
from stunet.experiment.runs import Record, results
from stunet.experiment.summary import bootstrap
from stunet.files import atomic_write, read_json
from stunet.trainers.pretexts.methods import METHODS
from stunet.weights.checkpoints import load_checkpoint

HERE = Path(__file__).parent
FINISHED = HERE / "results" / "selfsupervised_arms.json"
SHARES = (0.1, 0.25, 0.5, 1.0)  # of the steps, for the speed of convergence
WINDOW = 4  # epochs whose Dice is averaged there
SEEDS = 3  # with fewer there is no verdict


@dataclass(frozen=True)
class Claim:
    """A claim that the first of two arms has a higher Dice, the mean over `cases`; arms are FILE:LINE[@CLASS].

    With four arms it is that the difference of the first two is larger than that of the last two.
    """

    text: str
    source: str
    arms: Sequence[str]
    cases: Sequence[int] = (8,)


ALL = (4, 8, 16)
ZHANG, KHAN, WALD = "Zhang 2022", "Khan 2023", "Wald 2025"
CLAIMS = [
    Claim("AE: without skip connections is better", ZHANG, ("few_cases:ae full", "few_cases:ae-skips full"), ALL),
    Claim("MG: the same", ZHANG, ("few_cases:mg full", "few_cases:mg-skips full"), ALL),
    Claim("MAE: the same", "-", ("few_cases:mae-no-skips full", "few_cases:mae full"), ALL),
    Claim("MAE: the encoder alone is better", ZHANG, ("few_cases:mae full", "transfer:mae full all"), ALL),
    Claim("MG: the same", ZHANG, ("few_cases:mg-skips full", "transfer:mg-skips full all"), ALL),
    Claim("MAE: with the decoder is better", WALD, ("transfer:mae full all", "few_cases:mae full"), ALL),
    *(
        Claim(f"{title}, at a tenth of the rate: {how}", source, (f"tenth:{name} full {part}", other))
        for title, name in (("MAE", "mae"), ("MG", "mg-skips"))
        for how, source, part, other in (
            ("the encoder alone is better", ZHANG, "encoder", f"tenth:{name} full all"),
            ("all of the weights beat scratch at its rate", WALD, "all", "few_cases:scratch full"),
        )
    ),
    Claim("MAE: full beats frozen warm-up", ZHANG, ("few_cases:mae full", "strategies:mae warmup encoder")),
    Claim("SimCLR: the same", ZHANG, ("few_cases:simclr full", "strategies:simclr warmup encoder")),
    Claim("MAE: a ramp is better", WALD, ("strategies:mae ramp encoder", "few_cases:mae full")),
    Claim(
        "SimCLR: 25-50 % beats 50-75 %",
        KHAN,
        ("quarters:simclr quarter-2 encoder", "quarters:simclr quarter-3 encoder"),
    ),
    Claim("MoCo: the same", KHAN, ("quarters:moco quarter-2 encoder", "quarters:moco quarter-3 encoder")),
    Claim("MAE: 50-75 % beats 25-50 %", KHAN, ("quarters:mae quarter-3 encoder", "quarters:mae quarter-2 encoder")),
    Claim("MG: the same", KHAN, ("quarters:mg quarter-3 encoder", "quarters:mg quarter-2 encoder")),
    Claim("MAE: 0-75 % beats end-to-end", KHAN, ("strategies:mae shallow encoder", "few_cases:mae full")),
    Claim("SimCLR: the same", KHAN, ("strategies:simclr shallow encoder", "few_cases:simclr full")),
    *(
        Claim(
            f"{title}: augmentation lowers the gain",
            ZHANG,
            (
                f"no_augmentation:{name} full encoder",
                "no_augmentation:scratch full",
                with_augmentation,
                "few_cases:scratch full",
            ),
        )
        for title, name, with_augmentation in (
            ("MAE", "mae", "few_cases:mae full"),
            ("SimCLR", "simclr", "few_cases:simclr full"),
        )
    ),
    *(
        Claim(
            f"{title}: the rare class gains more{how}",
            ZHANG,
            tuple(
                f"{file}:{line}@{part}"
                for part in ("Posterior", "Anterior")
                for line in (f"{name} full encoder", "scratch full")
            ),
        )
        for title, name in (("MAE", "mae"), ("SimCLR", "simclr"))
        for file, how in (("rare", ""), ("rare_oversampled", ", with oversampling"))
    ),
    Claim("RKB: one hidden layer beats two", ZHANG, ("few_cases:rkb full", "few_cases:rkb-deep full"), ALL),
    Claim("BYOL: online beats teacher", ZHANG, ("few_cases:byol full", "teacher:byol-teacher full"), ALL),
    Claim("MAE and SimCLR together beat MAE", KHAN, ("multi:both full", "few_cases:mae full"), ALL),
    Claim("and SimCLR", KHAN, ("multi:both full", "few_cases:simclr full"), ALL),
    Claim("and the ensemble of both", "-", ("multi:both full", "ensemble:mae + simclr full"), ALL),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("folder", type=Path)
    commands.add_parser("table")
    commands.add_parser("methods")
    args = parser.parse_args()
    if args.command == "collect":
        return collect(args.folder)
    found = read_json(FINISHED) if FINISHED.is_file() else {}
    if args.command == "table":
        show(found)
    else:
        show_methods(found)
        plot(found)


def collect(folder: Path) -> None:
    """Adds the finished arms: Dice by class and case, and the Dice on patches at some shares of the steps."""
    record, found = Record(folder), read_json(FINISHED) if FINISHED.is_file() else {}
    for file in sorted(folder.glob("*.toml")):
        experiment = read_experiment(file)
        todo = {arm: command(request(experiment, arm)) for arm in arms(experiment)}
        for arm, dice in results(todo, record).items():
            fold = record.summary(todo[arm]).parents[1]
            epochs = load_checkpoint(fold / "checkpoint_final.pth")["logging"]["mean_fg_dice"]
            ends = [round(share * len(epochs)) for share in SHARES]
            found.setdefault(f"{file.stem}:{arm.line}", {}).setdefault(str(arm.cases), {})[str(arm.seed)] = {
                "dice": {case: {name: round(value, 4) for name, value in each.items()} for case, each in dice.items()},
                "on_patches": [round(float(np.mean(epochs[max(0, end - WINDOW) : end])), 4) for end in ends],
            }
    for path in sorted(folder.glob("ensembles/*/summary.json")):  # of ensemble.py
        run = read_json(path)
        found.setdefault(f"ensemble:{run['arm']}", {}).setdefault(run["cases"], {})[run["seed"]] = {
            "dice": {
                Path(case["reference_file"]).name: {
                    run["labels"][key]: round(value["Dice"], 4) for key, value in case["metrics"].items()
                }
                for case in run["metric_per_case"]
            }
        }
    with atomic_write(FINISHED) as part:  # a line for each arm
        rows = ",\n".join(f"{json.dumps(line)}: {json.dumps(found[line])}" for line in sorted(found))
        part.write_text(f"{{\n{rows}\n}}\n")
    note(f"{sum(len(seeds) for line in found.values() for seeds in line.values())} arms in {FINISHED.name}")


def show(found: dict[str, Any]) -> None:
    rows = []
    for claim in CLAIMS:
        if len(seeds := common_seeds(found, claim)) < SEEDS:
            rows.append([claim.text, claim.source, "-", "-", f"{len(seeds)} of {SEEDS} seeds run"])
            continue
        difference, low, high = compare(found, claim, seeds)
        verdict = "holds" if low > 0 else "does not hold" if high < 0 else "cannot be told"
        rows.append([claim.text, claim.source, f"{difference:+.3f}", f"{low:+.3f} to {high:+.3f}", verdict])
    table(("claim", "source", "difference", "95 % interval", "verdict"), rows)
    show_convergence(found)


def show_convergence(found: dict[str, Any]) -> None:
    """Prints what each arm is ahead of scratch by after some of the steps, in Dice on patches of held-out cases."""
    scratch = "few_cases:scratch full"
    rows = []
    for line in (line for line in found if line.startswith("few_cases:") or line == "few_cases:mae full"):
        claim = Claim("", "", (line, scratch), ALL)
        if line == scratch or len(seeds := common_seeds(found, claim)) < SEEDS:
            continue
        row = [line.partition(":")[2]]
        for share in range(len(SHARES)):
            one, other = (
                np.array([[[found[arm][str(cases)][seed]["on_patches"][share]] for cases in ALL] for seed in seeds])
                for arm in claim.arms
            )
            low, high = np.nanquantile(bootstrap(one, other), [0.025, 0.975])
            row.append(f"{float((one - other).mean()):+.3f} ({low:+.3f} to {high:+.3f})")
        rows.append(row)
    table(("ahead of scratch after", *(f"{share:.0%} of the steps" for share in SHARES)), rows)


def show_methods(found: dict[str, Any]) -> None:
    """Prints each method's Dice by number of cases, and its gain over scratch and over weights made with labels."""
    rows = []
    for name in (name for name in ("scratch", "anterior", *METHODS) if f"few_cases:{name} full" in found):
        row = [name, *(f"{_mean(found, name, cases):.3f}" for cases in ALL)]
        for other in ("scratch", "anterior"):
            claim = Claim("", "", (f"few_cases:{name} full", f"few_cases:{other} full"), ALL)
            if name == other or len(seeds := common_seeds(found, claim)) < SEEDS:
                row.append("-")
                continue
            difference, low, high = compare(found, claim, seeds)
            row.append(f"{difference:+.3f} ({low:+.3f} to {high:+.3f})")
        rows.append(row)
    columns = ("weights", *(f"{cases} cases" for cases in ALL), "gain over scratch", "over anterior")
    table(columns, rows)


def plot(found: dict[str, Any]) -> None:
    """Plots Dice against the number of cases: a panel per family, a line per method, in each also without weights."""
    families = sorted({method.family for method in METHODS.values()})
    figure = Figure(figsize=(11, 3.6 * math.ceil(len(families) / 3)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(math.ceil(len(families) / 3), 3, sharex=True, sharey=True, squeeze=False).flat
    for family, axes in zip_longest(families, panels):
        axes.set_visible(family is not None)
        methods = [name for name, method in METHODS.items() if method.family == family]
        for number, name in enumerate(("scratch", "anterior", *methods)):
            if f"few_cases:{name} full" not in found:
                continue
            dice = [_mean(found, name, cases) for cases in ALL]
            known = number < 2
            colour, style = "0.4" if known else f"C{number - 2}", ("--", ":", "-")[min(number, 2)]
            axes.plot(range(len(ALL)), dice, style, marker="osDv^P"[number % 6], color=colour, label=name)
        axes.set(title=family, xticks=range(len(ALL)), xticklabels=ALL, xlim=(-0.3, len(ALL) - 0.7))
        axes.grid(axis="y", color="0.9")
        axes.legend(frameon=False, fontsize=8)
    figure.supxlabel("labelled training cases")
    figure.supylabel("mean Dice on 20 held-out cases")
    figure.savefig(FINISHED.with_suffix(".png"), dpi=110)


def _mean(found: dict[str, Any], name: str, cases: int) -> float:
    """Returns the mean Dice over the seeds that have run, NaN if none has."""
    runs = found[f"few_cases:{name} full"].get(str(cases), {}).values()
    means = [mean_dice(np.array([[each[k] for k in sorted(each)] for each in run["dice"].values()])) for run in runs]
    return float(np.mean(means)) if means else math.nan


def common_seeds(found: dict[str, Any], claim: Claim) -> list[str]:
    """Returns the seeds that all arms of a claim have been run with."""
    lines = [found.get(arm.partition("@")[0], {}) for arm in claim.arms]
    return sorted(set.intersection(*(set(line.get(str(cases), {})) for line in lines for cases in claim.cases)))


def compare(found: dict[str, Any], claim: Claim, seeds: Sequence[str]) -> tuple[float, float, float]:
    """Returns the mean difference of a claim's arms and its interval."""
    draws, difference = np.zeros(1), 0.0
    for sign, more, less in zip((1, -1), claim.arms[::2], claim.arms[1::2], strict=False):
        for cases in claim.cases:
            one, other = (_dice(found, arm, cases, seeds) for arm in (more, less))
            # Without a generator, all of them draw the same seeds and cases.
            draws = draws + sign * bootstrap(one, other) / len(claim.cases)
            means = [mean_dice(a) - mean_dice(b) for a, b in zip(one, other, strict=True)]
            difference += sign * float(np.mean(means)) / len(claim.cases)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return difference, float(low), float(high)


def _dice(found: dict[str, Any], arm: str, cases: int, seeds: Sequence[str]) -> np.ndarray:
    """Returns the Dice of an arm by seed, case and class, each in order; of one class alone if the arm names it."""
    line, _, only = arm.partition("@")
    runs = [found[line][str(cases)][seed]["dice"] for seed in seeds]
    assert len({tuple(sorted(run)) for run in runs}) == 1, f"{line}: held-out cases differ"
    return np.array([
        [[each[name] for name in sorted(each) if only in ("", name)] for _, each in sorted(run.items())] for run in runs
    ])  # fmt: skip


if __name__ == "__main__":
    main()
