"""Show what a run reports: results on stdout, everything else on stderr."""

import shlex
from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING, Any

from stunet import console, workspace
from stunet.cli import live
from stunet.errors import DataError
from stunet.machine import GB
from stunet.runs.listener import Listener, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from stunet.errors import StunetError
    from stunet.inference.cases import InputCase
    from stunet.inference.predictor import Predictor
    from stunet.plans.plan import Plan
    from stunet.runs.evaluation import EvaluationResult
    from stunet.runs.features import FeaturesResult
    from stunet.runs.planning import PlanningResult
    from stunet.runs.prediction import PredictedCase, PredictionOutline
    from stunet.runs.pretraining import PretrainingResult
    from stunet.runs.ranking import RankingResult
    from stunet.runs.training import TrainingResult


class Shown(Listener):
    """Shows what commands report.

    Args:
        progress: Whether loops show their progress.
    """

    def __init__(self, progress: bool = True) -> None:
        self._progress = progress

    def note(self, text: str) -> None:
        console.note(text)

    def warn(self, text: str) -> None:
        console.warn(text)

    def progress(self, title: str, total: int) -> Progress:
        return live.Progress(title, total, disable=not self._progress)

    def training(self) -> live.TrainingProgress:
        return live.TrainingProgress()

    def planned(self, result: "PlanningResult") -> None:
        assert result.plan is not None
        console.result(f"{result.dataset}: {result.plan.name}")
        console.table(*_planned_table(result.plan))

    def trained(self, result: "TrainingResult") -> None:
        assert result.metrics is not None
        console.table(*_dice_table(result))
        console.result(f"mean validation Dice {result.dice:.4f}  {result.folder}")
        if (report := result.folder / "report.html").is_file():
            console.note(f"report: {report}")
        trainer, plans = result.model.name.split("__")[0], shlex.quote(result.plan.name)
        which = f"-d {workspace.dataset_number(result.dataset)} -c {result.configuration} -p {plans} -f {result.fold}"
        other = "" if trainer == workspace.TRAINER else f" -tr {trainer}"
        console.note(f"next: stunet_predict -i IMAGES -o OUT {which}{other}")

    def pretrained(self, result: "PretrainingResult") -> None:
        assert result.metrics is not None
        name, chance, untrained = (result.metrics.get(key) for key in ("measure", "chance", "untrained"))
        before = "" if untrained is None else f", untrained {untrained:.4g}"
        console.result(f"held-out {name} {result.measure:.4f} (chance {chance:.4g}{before})  {result.folder}")
        console.note(
            f"next: stunet_train DATASET {result.configuration} 0 --pretrained {shlex.quote(str(result.model))}"
        )

    def evaluated(self, result: "EvaluationResult") -> None:
        console.table(*measured_table(result.metrics))
        if (lowest := _lowest_dice(result.metrics)) is not None:
            console.note(f"look at first: {lowest}")

    def would_predict(self, outline: "PredictionOutline") -> None:
        last = outline.stages[-1]
        for stage in outline.stages:
            console.result(f"model          {stage.model.folder}")
            console.result(f"configuration  {stage.configuration_name}, patch {' x '.join(map(str, stage.patch))}")
            console.result(f"folds          {', '.join(map(str, stage.model.folds))}")
        console.result(f"orientation    {last.orientation or 'as the images have it'}")
        console.result(f"device         {last.options.device}, {last.precision}")
        console.result(f"results        {outline.folder}")
        rows = [(case.name, ", ".join(file.name for file in case.files), _memory(last, case)) for case in outline.cases]
        console.table(("case", "input", "memory"), rows)

    def predicted(self, case: "PredictedCase") -> None:
        if case.error:
            console.error("stunet_predict", f"case {case.name!r} failed: {case.error.message}", case.error.hint)
        else:
            console.result(str(case.file))

    def featured(self, case: str, file: "Path | None", error: "StunetError | None") -> None:
        if error:
            console.error("stunet_features", f"case {case!r} failed: {error.message}", error.hint)
        else:
            console.result(str(file))

    def probed(self, result: "FeaturesResult") -> None:
        for probe in result.probes:
            found = probe.probed
            classes = ", ".join(f"{count} {name}" for name, count in found.classes.items())
            of = f" of {probe.name}" if probe.name else ""
            title = f"{probe.target}{of}: {probe.task}, {found.rows} rows of {found.subjects} subjects"
            columns = ["features", "measure", "value", "95 % interval", "chance"]
            rows = [
                [s.stage, s.metric, f"{s.value:.3f}", f"{s.low:.3f} to {s.high:.3f}", f"{s.chance:.3g}"]
                for s in found.scores
            ]
            console.table(columns, rows, f"{title} ({classes})" if classes else title)

    def failed(self, candidate: str, error: "StunetError") -> None:
        console.error("stunet_rank", f"candidate {candidate!r}: {error.message}", error.hint)

    def ranked(self, result: "RankingResult") -> None:
        from stunet.ranking import tables

        outcome = result.outcome
        count = f"{len(outcome.cases)} cases, {len(outcome.classes) - 1} classes"
        where = f", read at the {outcome.read}" if outcome.read else ""
        console.table(*tables.table(outcome), f"{outcome.target}: {count}{where}; higher is better")
        console.result(outcome.verdict())
        number = workspace.dataset_number(result.dataset)
        where = f"{number} {result.configuration} {result.fold}"
        console.result(f"next: stunet_train {where} --pretrained {shlex.quote(result.best)}")
        for path in result.files:
            console.note(f"wrote {path}")


def _planned_table(plan: "Plan") -> tuple[list[str], list[list[str]]]:
    columns = ["configuration", "spacing mm", "patch", "batch", "stages", "halvings", "GPU memory GB"]
    rows = []
    for name in sorted(plan.configurations_with_network):
        configuration = plan.configuration(name)
        strides, memory_gb = configuration.strides, configuration.memory_gb
        halvings = [sum(s > 1 for s in axis) for axis in zip(*strides, strict=True)]
        source = "measured" if configuration.is_measured else "estimated"
        rows.append([
            name,
            " ".join(f"{pitch:.3g}" for pitch in configuration.spacing),
            "x".join(map(str, configuration.patch_size)),
            str(configuration.batch_size),
            str(len(strides)),
            " ".join(map(str, halvings)),
            "-" if memory_gb is None else f"{memory_gb:.1f} {source}",
        ])  # fmt: skip
    return columns, rows


def _dice_table(result: "TrainingResult") -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of each class's Dice in the final validation, and of how many cases have the class."""
    from stunet.kinds import read_dataset_json
    from stunet.labels.names import name_of_key

    metrics, labels = result.metrics or {}, read_dataset_json(result.model / "dataset.json")["labels"]
    rows = []
    for key, mean in metrics["mean"].items():
        # With partial labels, a case only has the classes that it annotates.
        cases = [case["metrics"][key]["Dice"] for case in metrics["metric_per_case"] if key in case["metrics"]]
        dice = "-" if isnan(mean["Dice"]) else f"{mean['Dice']:.4f}"
        rows.append([name_of_key(key, labels), dice, str(sum(not isnan(each) for each in cases))])
    return ["class", "Dice", "cases"], rows


def measured_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of stunet_evaluate."""
    from stunet.evaluation.metrics import METRICS

    headings = {name: metric.heading.format(**summary) for name, metric in METRICS.items() if metric.heading}

    def cells(values: Mapping[str, float]) -> list[str]:
        return ["-" if isnan(values[name]) else format(values[name], METRICS[name].format) for name in headings]

    rows = [
        [summary["labels"][key], *cells(mean), str(mean["n_cases"]), str(mean["n_infinite"])]
        for key, mean in summary["mean"].items()
    ]
    n_cases, n_infinite = (
        str(sum(mean[key] for mean in summary["mean"].values())) for key in ("n_cases", "n_infinite")
    )
    rows.append(["foreground mean", *cells(summary["foreground_mean"]), n_cases, n_infinite])
    return ["class", *headings.values(), "cases", "one empty"], rows


def _lowest_dice(summary: Mapping[str, Any]) -> str | None:
    """Return the case and class with the lowest Dice, in words; None if none has both segmentations."""
    found = [
        (values["Dice"], case["prediction_file"], summary["labels"][key])
        for case in summary["metric_per_case"]
        for key, values in case["metrics"].items()
        if not isnan(values["Dice"])
    ]
    if not found:
        return None
    dice, file, name = min(found)
    return f"{name} in {file}, Dice {dice:.4f}"


def _memory(stage: "Predictor", case: "InputCase") -> str:
    from stunet.inference.cases import read_geometry

    if case.error:
        return case.error.message
    try:
        return f"{stage.memory_need(*read_geometry(case, stage.orientation)).peak / GB:.2f} GB"
    except DataError as error:
        return error.message
