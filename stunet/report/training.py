"""Reports of trainings: one of a fold, and one of a model with all its folds. cli/report.py and trainers write them.

They are made from what lies in the result folder alone (runs.py), so that those of old runs, and of stock nnU-Net's,
look the same. Read next: comparison.py for the final validation.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

from stunet import __version__
from stunet.errors import StunetError
from stunet.files import cached_sha256_of
from stunet.plans.plan import Plan
from stunet.report import calibration, comparison, page
from stunet.report.blocks import Block, Cell, Command, Facts, Links, Page, Section, Table, Text, number, text
from stunet.report.compared import Compared, joined
from stunet.report.history import FILE, Epoch, History
from stunet.report.plots import curves
from stunet.report.runs import ENVIRONMENT, Fold, Model
from stunet.report.slices import Sliced, picture, slices
from stunet.workspace import BEST, FINAL, LATEST, PRETRAINING

NAME = "report.html"
FOOTER = f"Written by stunet {__version__}. The file holds everything it shows; it loads nothing."
CURVES = 10  # classes whose online Dice is drawn: with more, the worst ones
LAST = 10  # epochs over which the table of classes averages
ESTIMATE = (
    "An estimate from random patches of the validation cases, and no result: it serves to see whether the training "
    "gets on. The final validation predicts whole cases."
)


def write_fold(folder: Path, with_slices: bool = True, target: Path | None = None) -> Path:
    """Write the report of a fold, and return its file.

    Args:
        folder: That of the fold.
        with_slices: Whether slices of the worst cases are drawn, for which images are read.
        target: The file; None: report.html in the folder.

    Raises:
        OSError: The folder is not writable, or the disk is full.
    """
    page.write(fold_page(Fold(folder), with_slices, is_beside=target is None), target or folder / NAME)
    return target or folder / NAME


def write_model(folder: Path, with_slices: bool = True, target: Path | None = None) -> Path:
    """Write the report of a model, and return its file; arguments and errors are those of write_fold()."""
    page.write(model_page(Model(folder), with_slices, is_beside=target is None), target or folder / NAME)
    return target or folder / NAME


def fold_page(fold: Fold, with_slices: bool = True, is_beside: bool = True) -> Page:
    """Return the report of a fold; it has links if it lies beside the files."""
    model, history, compared = fold.model, fold.history, fold.compared
    trainer, plans, configuration = model.names
    if fold.is_pretraining:
        parts = [Section("Course of the pre-training", _pretraining(fold))]
    else:
        parts = [
            Section("Course of the training", _course(history)),
            Section("Classes during training", _online(history)),
            *_validation([fold], compared, with_slices, fold.folder if is_beside else None),
        ]
    state = "trained" if fold.is_finished else "in training, or stopped"
    numbers = [("epochs", _epochs_of(fold)), *(comparison.headline(compared) if compared else ())]
    return Page(
        title=f"{model.dataset_name}, fold {fold.name}",
        subtitle=f"{configuration or model.folder.name} · {plans} · {trainer or 'unknown trainer'} · {state}",
        headline=numbers,
        sections=[
            *parts,
            Section("Weights it started from", _transfer(fold)),
            Section("Settings", [Facts(_settings(fold))]),
            Section("Versions and files", _files(fold, is_beside)),
        ],
        footer=FOOTER,
    )


def model_page(model: Model, with_slices: bool = True, is_beside: bool = True) -> Page:
    """Return the report of a model with all its folds that were begun; it has links if it lies beside them."""
    folds = [fold for fold in model.folds() if fold.is_begun]
    parts = [fold.compared for fold in folds]
    known = [part for part in parts if part is not None]
    compared = joined(known) if known else None
    trainer, plans, configuration = model.names
    rows = []
    for fold, part in zip(folds, parts, strict=True):
        losses = [value for value in fold.history.values("train_loss") if isfinite(value)]
        rows.append([
            text(fold.name),
            text("yes" if fold.is_finished else "no"),
            text(_epochs_of(fold)),
            number(losses[-1] if losses else None),
            number(part.mean() if part else None, ".4f"),
            number(float(len(part.cases)) if part else None, ".0f"),
        ])  # fmt: skip
    columns = ["fold", "finished", "epochs", "training loss", "validation Dice", "cases"]
    pages = [(f"Report of fold {fold.name}", f"{fold.folder.name}/{NAME}") for fold in folds]
    links = [Links(pages)] if is_beside else []
    return Page(
        title=model.dataset_name,
        subtitle=f"{configuration or model.folder.name} · {plans} · {trainer or 'unknown trainer'} · all folds",
        headline=[("folds", str(len(folds))), *(comparison.headline(compared) if compared else ())],
        sections=[
            Section("Folds", [Table("Folds", columns, rows, "", frozenset({2, 3, 4, 5})), *links, *_of_folds(folds)]),
            *_validation(folds, compared, with_slices, model.folder if is_beside else None),
            Section("Settings", [Facts(_settings(folds[0]))] if folds else []),
        ],
        footer=FOOTER,
    )


def _course(history: History) -> list[Block]:
    if not history.epochs:
        return [Text("No finished epoch was found: neither in metrics.csv, nor in a checkpoint, nor in a log.")]
    epochs = [epoch.number for epoch in history.epochs]
    blocks: list[Block] = [
        curves(
            "Loss",
            epochs,
            {"training": history.values("train_loss"), "validation patches": history.values("validation_loss")},
            "loss",
            "Loss of each epoch. nnU-Net's loss contains the negative Dice, so it may fall below zero.",
        ),
        curves(
            "Online Dice, mean over classes",
            epochs,
            {"epoch": history.values("dice_mean"), "moving average": history.values("dice_moving_average")},
            "Dice",
            f"{ESTIMATE} The best checkpoint is that of the highest moving average.",
            limits=(-0.02, 1.02),
        ),
        curves("Learning rate", epochs, {"": history.values("learning_rate")}, "rate", "Learning rate.", 1.9),
    ]
    times = {"epoch": history.values("seconds")}
    told = "Time of each epoch."
    if any(isfinite(epoch.waiting_share) for epoch in history.epochs):
        times["of it waiting for data"] = [epoch.seconds * epoch.waiting_share for epoch in history.epochs]
        told = f"Time of each epoch, and how much of it the network waited for data: {_waiting(history.epochs)}."
    if any(isfinite(value) for value in times["epoch"]):
        blocks.append(curves("Time", epochs, times, "seconds", told, 1.9))
    if any(isfinite(epoch.memory_gb) for epoch in history.epochs):
        memory = {"": history.values("memory_gb")}
        caption = "Largest memory so far: of the GPU, or of the main process where there is none."
        blocks.append(curves("Memory", epochs, memory, "GB", caption, 1.7))
    return blocks


def _pretraining(fold: Fold) -> list[Block]:
    """Return loss and measure of a pre-training beside what they are by chance."""
    history, summary = fold.history, fold.json(PRETRAINING)
    if not history.epochs:
        return [Text("No finished epoch was found.")]
    epochs = [epoch.number for epoch in history.epochs]
    measure = str(summary.get("measure") or "measure of the method")
    losses = {"training": history.values("train_loss"), "held-out subjects": history.values("validation_loss")}
    measures = {"held-out subjects": history.values("dice_mean")}
    for key, name, lines in (
        ("chance_loss", "chance", losses),
        ("chance", "chance", measures),
        ("untrained", "untrained network", measures),
    ):
        if isinstance(value := summary.get(key), int | float):
            lines[name] = [float(value)] * len(epochs)
    blocks: list[Block] = [Facts([("method", str(summary["method"]))])] if summary.get("method") else []
    told = "It is of the pretext task, and says nothing about segmentation by itself."
    return [
        *blocks,
        curves("Loss", epochs, losses, "loss", "Loss of each epoch."),
        curves(measure, epochs, measures, measure, f"{measure} on held-out subjects. {told}"),
        curves("Learning rate", epochs, {"": history.values("learning_rate")}, "rate", "Learning rate.", 1.9),
        curves("Time", epochs, {"": history.values("seconds")}, "seconds", "Time of each epoch.", 1.9),
    ]


def _waiting(epochs: Sequence[Epoch]) -> str:
    known = [(e.seconds, e.waiting_share) for e in epochs if isfinite(e.seconds) and isfinite(e.waiting_share)]
    total = sum(seconds for seconds, _ in known)
    return f"{sum(seconds * share for seconds, share in known) / total:.1%}" if total else "unknown"


def _online(history: History) -> list[Block]:
    """Return curves of the classes, of the worst ones where there are many, and a table of all."""
    names = list(history.classes)
    if not history.epochs or not names:
        return []
    series = {k: [_at(epoch.dice_of_classes, k) for epoch in history.epochs] for k in range(len(names))}
    last = {k: _mean(values[-LAST:]) for k, values in series.items()}
    order = sorted(last, key=lambda k: (not isfinite(last[k]), last[k] if isfinite(last[k]) else 0.0, k))
    drawn = sorted(order[:CURVES])
    which = "each class" if len(names) <= CURVES else f"the {CURVES} classes that are worst at the end"
    figure = curves(
        f"Online Dice of {which}",
        [epoch.number for epoch in history.epochs],
        {_unique(names, k): series[k] for k in drawn},
        "Dice",
        ESTIMATE,
        3.2,
        limits=(-0.02, 1.02),
    )
    count = min(LAST, len(history.epochs))
    rows = [[text(names[k]), number(last[k])] for k in order]
    title = f"Online Dice, mean of the last {count} epochs, worst first" if count > 1 else "Online Dice, worst first"
    return [figure, Table(title, ["class", "Dice"], rows, ESTIMATE, frozenset({1}), narrow=True)]


def _unique(names: Sequence[str], k: int) -> str:
    """Return the name of a class, with its number where another has the same."""
    return names[k] if names.count(names[k]) == 1 else f"{names[k]} ({k + 1})"


def _of_folds(folds: Sequence[Fold]) -> list[Block]:
    """Return the moving average of each fold's online Dice."""
    longest = max((fold.history.reached for fold in folds), default=0)
    if len(folds) < 2 or not longest:
        return []
    lines = {}
    for fold in folds:
        averages = {epoch.number: epoch.dice_moving_average for epoch in fold.history.epochs}
        lines[f"fold {fold.name}"] = [averages.get(number, nan) for number in range(1, longest + 1)]
    title = "Online Dice of each fold, moving average"
    return [curves(title, range(1, longest + 1), lines, "Dice", ESTIMATE, limits=(-0.02, 1.02))]


def _validation(
    folds: Sequence[Fold], compared: Compared | None, with_slices: bool, beside: Path | None
) -> list[Section]:
    """Return the sections of a validation; `beside` is the page's folder, if it has links to pages of the viewer."""
    title = "Final validation: " if len(folds) == 1 else "Cross-validation: "
    if compared is None:
        where = "this fold" if len(folds) == 1 else "any fold"
        return [Section("Final validation", [comparison.nothing(where)])]
    # By position: another fold may have validated the same case.
    owners = [fold for fold in folds if fold.compared for _ in fold.compared.cases]

    def slices_of(position: int) -> list[Block]:
        shown = _sliced(owners[position], compared, position)
        return [slices(shown), *_viewed(owners[position], compared.cases[position], shown.prediction, beside)]

    found = comparison.sections(compared, slices_of if with_slices else None, title)
    if with_slices:
        found.append(Section(f"{title}calibration", _calibration(folds)))
    return found


def worst_pictures(fold: Fold) -> Iterator[tuple[str, bytes]]:
    """Yield name and PNG of the slices of a fold's worst validation cases, as its report shows them."""
    if (compared := fold.compared) is None:
        return
    for position in comparison.worst_cases(compared)[: comparison.WORST]:
        if found := picture(_sliced(fold, compared, position)):
            yield compared.cases[position], found


def _sliced(fold: Fold, compared: Compared, position: int) -> Sliced:
    case, dice = compared.cases[position], compared.dice[position]
    prediction, reference = fold.pair(*compared.files[position])
    worst = sorted((k for k in range(len(dice)) if isfinite(dice[k])), key=lambda k: dice[k])
    return Sliced(
        title=f"{case}: mean Dice {compared.case_means()[position]:.3f}",
        images=fold.images(case),
        reference=reference,
        prediction=prediction,
        reader=fold.model.reader,
        dataset=fold.model.dataset,
        worst=[compared.classes[k] for k in worst],
    )


def _viewed(fold: Fold, case: str, prediction: Path, beside: Path | None) -> list[Block]:
    """Return the link to a case's page of the viewer, if there is one that is no older than the prediction; or how to
    start the viewer."""
    view = fold.view(case)
    if beside and view.is_file() and prediction.is_file() and view.stat().st_mtime >= prediction.stat().st_mtime:
        return [Links([(f"{case} in the viewer", view.relative_to(beside).as_posix())])]
    name = fold.model.dataset_name
    dataset = ["-d", name] if re.fullmatch(r"Dataset\d{3}_.+", name) else []
    command = shlex.join(["stunet_view", *dataset, "validation", "--case", case])
    return [Command(f"In the viewer, from the folder {fold.folder.name}", command)]


def _calibration(folds: Sequence[Fold]) -> list[Block]:
    """Return how far probabilities are right, where the validation has saved them (--npz)."""
    cases = [case for fold in folds for case in fold.probabilities()]
    rows, ignore = folds[0].model.rows
    return calibration.blocks(calibration.measure(cases, rows, ignore)) if cases and rows else []


def _transfer(fold: Fold) -> list[Block]:
    """Return what transfer_report.json says; nothing for a training from scratch."""
    report = fold.json("transfer_report.json")
    blocks: list[Block] = []
    for position, part in enumerate(report.get("encoders") or ([report] if report else []), 1):
        blocks += _transferred(part, f"Encoder {position}: " if "encoders" in report else "")
    tensors = [each for each in report.get("tensors", ()) if isinstance(each, dict)]
    if tensors:
        meaning = {
            "copied": "unchanged", "inflated": "fitted to other channels or kernels", "head": "by class name",
            "missing": "initialised at random", "unused": "only in the weights",
        }  # fmt: skip
        rows = []
        for kind in dict.fromkeys(str(each.get("kind")) for each in tensors):
            own = [each for each in tensors if str(each.get("kind")) == kind]
            sizes = [sum(int(each.get(key) or 0) for each in own) for key in ("elements", "pretrained")]
            counts = [number(float(value), ",.0f") for value in (len(own), *sizes)]
            rows.append([text(kind), text(meaning.get(kind, "")), *counts])
        columns = ["fate", "meaning", "tensors", "parameters", "of them pre-trained"]
        blocks.append(Table("What became of the tensors", columns, rows, numeric=frozenset({2, 3, 4})))
    return blocks


def _transferred(report: Any, prefix: str) -> list[Block]:
    heads = report.get("heads") or {}
    rows = [
        (f"{prefix}weights", str(report.get("entry") or Path(str(report.get("weights", ""))).name)),
        ("SHA-256", str(report.get("sha256") or "unknown")),
        ("encoder loaded", f"{float(report.get('coverage') or 0):.1%}"),
        ("transferred", str(report.get("transfer") or "all")),
        ("heads", f"{heads.get('mode', 'unknown')}{', ' + heads['reason'] if heads.get('reason') else ''}"),
    ]
    blocks: list[Block] = [Facts(rows), *(Text(str(told), is_warning=True) for told in report.get("warnings", ()))]
    if matched := [row for row in heads.get("rows", ()) if isinstance(row, dict)]:
        cells = [[text(row.get("target")), text(", ".join(row.get("sources") or ()) or "new")] for row in matched]
        blocks.append(Table(f"{prefix}Classes of the heads", ["class", "taken from"], cells, narrow=True))
    if changes := report.get("changes"):
        cells = [[text(value) for value in change] for change in changes]
        blocks.append(Table(f"{prefix}What differs from the weights' training", ["what", "there", "here"], cells))
    return blocks


def _settings(fold: Fold) -> list[tuple[str, str]]:
    """Return what the plans say of the training; only names where they cannot be read."""
    model = fold.model
    trainer, plans, configuration = model.names
    rows = [("trainer", trainer), ("plans", plans), ("configuration", configuration)]
    plan = Plan(dict(model.plans))
    try:
        own, train = plan.configuration(configuration), plan.train
        rows += [
            (
                "network",
                f"{plan.network or own.network_class or 'unknown'}{f', size {plan.size}' if plan.size else ''}",
            ),
            ("patch", " x ".join(map(str, own.patch_size))),
            ("spacing in mm", " x ".join(f"{pitch:.4g}" for pitch in own.spacing)),
            ("batch", str(own.batch_size)),
            ("normalisation", ", ".join(own.normalization)),
        ]
        if plan.is_ours:
            rows += [(name, str(value)) for name, value in vars(train).items() if value is not None]
        if plan.finetune:
            rows.append(("fine-tuning", plan.finetune))
    except (StunetError, KeyError, TypeError, ValueError, AttributeError):
        rows.append(("plans.json", "missing, or not readable"))
    rows.append(("channels", ", ".join(map(str, (model.dataset.get("channel_names") or {}).values()))))
    record = fold.json("made_from.json")
    for key, told in (("train", "training cases"), ("val", "validation cases")):
        if isinstance(record.get(key), list):
            rows.append((told, str(len(record[key]))))
    return [(name, value) for name, value in rows if value]


def _files(fold: Fold, is_beside: bool) -> list[Block]:
    found = [(str(name), str(value)) for name, value in sorted(fold.json(ENVIRONMENT).items())]
    if not found and (debug := fold.json("debug.json")):  # nnU-Net's own
        known = {"torch_version": "torch", "gpu_name": "GPU", "cudnn_version": "cuDNN", "device": "device"}
        found = [(told, str(debug[key])) for key, told in known.items() if debug.get(key) not in (None, "None")]
    blocks: list[Block] = [Facts(found)] if found else []
    rows = []
    for name in (FINAL, BEST, LATEST):
        if (path := fold.folder / name).is_file():
            digest = cached_sha256_of(path) if name == FINAL else ""
            rows.append([text(name), number(path.stat().st_size / 1e6, ".1f"), Cell(digest or "-")])
    if rows:
        blocks.append(Table("Checkpoints", ["file", "MB", "SHA-256"], rows, numeric=frozenset({1})))
    beside = [name for name in (FILE, "progress.png", "validation/summary.json") if (fold.folder / name).is_file()]
    return [*blocks, Links([(name, name) for name in beside])] if beside and is_beside else blocks


def _epochs_of(fold: Fold) -> str:
    """Return how many epochs are done, and of how many."""
    planned = Plan(dict(fold.model.plans))
    try:
        total = f" of {planned.train.num_epochs}" if planned.is_ours else ""
    except (StunetError, TypeError, ValueError):
        total = ""
    return f"{fold.history.reached}{total}"


def _at(values: Sequence[float], k: int) -> float:
    return values[k] if k < len(values) else nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if isfinite(value)]
    return sum(known) / len(known) if known else nan
