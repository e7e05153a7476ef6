"""The report of a dataset: what its images and labels are, how they are divided, and what the plan made of them.

Every case is read once, in several processes: spacing, shape, intensities, volumes of the classes, thumbnails of some.
runs/planning.py writes the report; read next: plots.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stunet.datasets import RawCase, Rules
from stunet.datasets.check import UNREADABLE, read_case, read_images
from stunet.datasets.contents import count_values
from stunet.errors import DataError
from stunet.plans.plan import Plan
from stunet.report.blocks import Block, Facts, Figure, Page, Section, Table, Text, number, text
from stunet.report.figures import drawn, label
from stunet.report.plots import bars, histograms
from stunet.report.training import FOOTER
from stunet.results.planes import cut, overlay
from stunet.results.preview import window_of
from stunet.results.segmentation import Segmentation
from stunet.workers import Workers, map_cases

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

THUMBNAILS = 50  # cases with a picture, evenly spread over all
SIDE = 96  # pixels of its longer side
ROW = 10  # thumbnails side by side
SAMPLE = 100_000  # voxels of an image whose intensities are looked at
PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True)
class Look:
    """What a case is.

    Attributes:
        name: Of the case.
        spacing: In mm, array order.
        shape: Voxels, array order.
        intensities: PERCENTILES of each channel.
        volumes: Voxels by value of the label map; empty without one.
        voxel_ml: Volume of a voxel.
        picture: Thumbnail (rows, columns, 3), uint8; None: none was asked for.
        error: Why the case cannot be read; everything else is empty then.
    """

    name: str
    spacing: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    intensities: tuple[tuple[float, ...], ...] = ()
    volumes: Mapping[float, int] = field(default_factory=dict)
    voxel_ml: float = 0.0
    picture: np.ndarray | None = None
    error: str = ""


@dataclass(frozen=True)
class Chosen:
    """What planning decided, and what is said of it.

    Attributes:
        plan: The plan.
        folds: Training and validation cases of each fold; empty if they are not made yet.
        warnings: What the check of the files found; None: they were not checked.
        remarks: What planning says of the plan.
    """

    plan: Plan
    folds: Sequence[Mapping[str, Sequence[str]]]
    warnings: Sequence[str] | None
    remarks: Sequence[str]


def look_at(
    cases: Sequence[RawCase],
    rules: Rules,
    dataset: Mapping[str, Any],
    workers: Workers = 1,
    on_case: Callable[[str], None] = lambda name: None,
) -> list[Look]:
    """Read every case once, and return what each is.

    Args:
        cases: Of the dataset.
        rules: What they satisfy.
        dataset: Content of dataset.json.
        workers: Number of processes, or workers of a cluster.
        on_case: Called with the name of each case that was read.
    """
    step = max(1, -(-len(cases) // THUMBNAILS))
    drawn_cases = frozenset(case.name for case in cases[::step])
    work = partial(_look, rules=rules, dataset=dataset, drawn_cases=drawn_cases)
    found = {}
    for outcome in map_cases(work, cases, workers, lambda case: case.name):
        on_case(outcome.case.name)
        error = outcome.error
        found[outcome.case.name] = outcome.result if error is None else Look(outcome.case.name, error=error.message)
    return [found[case.name] for case in cases]


def _look(case: RawCase, rules: Rules, dataset: Mapping[str, Any], drawn_cases: frozenset[str]) -> Look:
    try:
        if case.label is None:
            images = read_images(case, rules)
            channels, properties, labels = images.channels, images.properties, None
        else:
            channels, labels, properties = read_case(case, rules)
    except UNREADABLE as error:
        raise DataError(f"case {case.name!r} cannot be read: {str(error)[:200]}", "copy it again") from None
    spacing = tuple(map(float, properties["spacing"]))
    is_ct = bool(rules.channels) and rules.channels[0].casefold() == "ct"
    picture = None
    if case.name in drawn_cases:
        known = np.zeros(channels.shape[1:], np.uint8) if labels is None else labels.astype(np.int64)
        picture = _thumbnail(Segmentation.from_properties(known, properties, dataset), channels[0], is_ct)
    return Look(
        name=case.name,
        spacing=spacing,
        shape=tuple(channels.shape[1:]),
        intensities=tuple(tuple(np.percentile(_sample(channel), PERCENTILES).tolist()) for channel in channels),
        volumes={} if labels is None else count_values(labels),
        voxel_ml=float(np.prod(spacing)) / 1000,
        picture=picture,
    )


def _sample(channel: np.ndarray) -> np.ndarray:
    flat = channel.ravel()
    return flat[:: max(1, len(flat) // SAMPLE)]


def _thumbnail(segmentation: Segmentation, image: np.ndarray, is_ct: bool) -> np.ndarray:
    planes = cut(segmentation, image)
    low, high = window_of(planes, is_ct)
    picture = overlay(planes[0], segmentation, SIDE / max(planes[0].size_mm), low, high)
    return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def page(name: str, dataset: Mapping[str, Any], looks: Sequence[Look], chosen: Chosen) -> Page:
    """Return the report of a dataset.

    Args:
        name: Full name.
        dataset: Content of dataset.json.
        looks: Of all cases.
        chosen: What planning decided.
    """
    read = [look for look in looks if not look.error]
    channels = [str(each) for each in (dataset.get("channel_names") or dataset.get("modality") or {}).values()]
    classes = _values(dataset)
    labelled = [look for look in read if look.volumes]
    unread = [[text(look.name), text(look.error)] for look in looks if look.error]
    return Page(
        title=name,
        subtitle=f"dataset, planned as {chosen.plan.name}",
        headline=[("cases", str(len(looks))), ("classes", str(len(classes))), ("channels", ", ".join(channels))],
        sections=[
            Section("What the check found", _checked(chosen.warnings, unread)),
            Section("What the plan chose", _planned(chosen, read)),
            Section("Spacing and shape", _geometry(read)),
            Section("Intensities", _intensities(read, channels)),
            Section("Classes", _classes(labelled, classes) if labelled else [Text("The images have no labels.")]),
            Section("Folds", _folds(chosen.folds, labelled, classes)),
            Section("Thumbnails", _thumbnails([look for look in read if look.picture is not None])),
        ],
        footer=FOOTER,
    )


def _checked(warnings: Sequence[str] | None, unread: Sequence[Sequence[Any]]) -> list[Block]:
    blocks: list[Block] = [Text(each, is_warning=True) for each in warnings or ()]
    if unread:
        blocks.append(Table("Cases that cannot be read", ["case", "why"], unread))
    if warnings is None:
        blocks.append(Text("The files were not checked (--no_check)."))
    return blocks or [Text("Every file was read, and nothing speaks against training on them.")]


def _planned(chosen: Chosen, looks: Sequence[Look]) -> list[Block]:
    plan = chosen.plan
    rows = []
    for name in sorted(plan.configurations_with_network):
        own = plan.configuration(name)
        source = "measured" if own.is_measured else "estimated"
        memory = "-" if own.memory_gb is None else f"{own.memory_gb:.1f} ({source})"
        halvings = [sum(step > 1 for step in axis) for axis in zip(*own.strides, strict=True)]
        cells = [
            name,
            " ".join(f"{pitch:.3g}" for pitch in own.spacing),
            " x ".join(map(str, own.patch_size)),
            str(own.batch_size),
            str(len(own.strides)),
            " ".join(map(str, halvings)),
            memory,
            ", ".join(own.normalization),
        ]
        rows.append([text(cell) for cell in cells])
    columns = ["configuration", "spacing mm", "patch", "batch", "stages", "halvings", "GPU memory GB", "normalisation"]
    why = (
        "Spacing is nnU-Net's rule unless another was asked for: the median of the images, or finer along an axis of "
        "thick slices. The patch is isotropic in mm and shrinks until a training step fits the memory target; then the "
        "batch grows. An axis is halved while its resolution is not much lower than that of the others."
    )
    facts = [
        ("network", plan.network or (f"STU-Net-{plan.size}" if plan.size else "as the configurations say")),
        ("memory target", f"{plan.memory_gb or 0:g} GB"),
    ]
    if looks:
        middle = [np.median([look.spacing[axis] for look in looks]) for axis in range(len(looks[0].spacing))]
        facts.append(("median spacing", " x ".join(f"{pitch:.4g}" for pitch in middle) + " mm"))
    facts.append(("orientation", plan.orientation or "as the images have it"))
    facts += [(f"images in {axes}", str(count)) for axes, count in plan.orientations.items()]
    table = Table("Configurations", columns, rows, why)
    return [Facts(facts), table, *(Text(each) for each in chosen.remarks)]


def _geometry(looks: Sequence[Look]) -> list[Block]:
    if not looks:
        return []
    axes = ("first axis (slices)", "second axis", "third axis")
    spacing = {f"spacing, {name}": [look.spacing[i] for look in looks] for i, name in enumerate(axes)}
    shape = {f"size, {name}": [float(look.shape[i]) for look in looks] for i, name in enumerate(axes)}
    units = dict.fromkeys(spacing, "mm") | dict.fromkeys(shape, "voxels")
    return [histograms({**spacing, **shape}, units, "Spacing and size of the images, by axis of their arrays.")]


def _intensities(looks: Sequence[Look], channels: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    for position, name in enumerate(channels):
        found = [look.intensities[position] for look in looks if position < len(look.intensities)]
        if found:
            panels = {f"{name}, {share:g} %": [each[i] for each in found] for i, share in enumerate(PERCENTILES)}
            caption = f"Intensities of {name}: percentiles of each image."
            blocks.append(histograms(panels, dict.fromkeys(panels, "HU" if name.casefold() == "ct" else ""), caption))
    return blocks


def _classes(looks: Sequence[Look], classes: Mapping[str, Sequence[int]]) -> list[Block]:
    volumes = {name: _volumes(looks, values) for name, values in classes.items()}
    voxels = {
        name: sum(look.volumes.get(value, 0) for look in looks for value in values) for name, values in classes.items()
    }
    total = sum(sum(count for value, count in look.volumes.items() if value) for look in looks)
    rows = []
    for name, found in volumes.items():
        there = found[found > 0]
        rows.append([
            text(name),
            number(float(len(there)), ".0f"),
            number(100 * len(there) / len(looks), ".0f"),
            number(float(np.median(there)) if len(there) else None, ".4g"),
            number(float(there.min()) if len(there) else None, ".4g"),
            number(float(there.max()) if len(there) else None, ".4g"),
            number(100 * voxels[name] / total if total else None, ".2f"),
        ])  # fmt: skip
    columns = ["class", "cases", "% of cases", "median ml", "least ml", "most ml", "% of labelled voxels"]
    table = Table("Classes", columns, rows, "Volumes are of the cases that have the class.", frozenset(range(1, 7)))
    share = {name: 100 * voxels[name] / total if total else 0.0 for name in classes}
    rarest = dict(sorted(share.items(), key=lambda item: item[1]))
    return [table, bars("Share of labelled voxels, rarest first", rarest, "%", "How rare the classes are.")]


def _volumes(looks: Sequence[Look], values: Sequence[int]) -> np.ndarray:
    return np.array([look.voxel_ml * sum(look.volumes.get(value, 0) for value in values) for look in looks])


def _folds(
    folds: Sequence[Mapping[str, Sequence[str]]], looks: Sequence[Look], classes: Mapping[str, Sequence[int]]
) -> list[Block]:
    if not folds:
        return [Text("Folds are made by the first training: five, at random, unless splits_final.json has others.")]
    rows = []
    for position, fold in enumerate(folds):
        inside = [look for look in looks if look.name in set(fold["val"])]
        lacking = [name for name, values in classes.items() if not any(_volumes(inside, values) > 0)]
        told = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        counts = [number(float(len(fold[side])), ".0f") for side in ("train", "val")]
        rows.append([text(position), *counts, text(told or "-")])
    columns = ["fold", "training cases", "validation cases", "classes that no validation case has"]
    return [Table("Folds", columns, rows, "", frozenset({1, 2}))]


def _thumbnails(looks: Sequence[Look]) -> list[Block]:
    rows = [looks[start : start + ROW] for start in range(0, len(looks), ROW)]
    return [_thumbnail_row(row) for row in rows]


def _thumbnail_row(looks: Sequence[Look]) -> Figure:
    def draw(canvas: "Canvas") -> None:
        for axes, look in zip(canvas.subplots(1, ROW, squeeze=False)[0], [*looks, *[None] * ROW], strict=False):
            axes.set_axis_off()
            if look is not None and look.picture is not None:
                axes.imshow(look.picture, interpolation="none")
                axes.set_title(label(look.name, 18), fontsize=6, loc="center")

    names = f"{looks[0].name} to {looks[-1].name}"
    told = f"{names}: the slice of each case with most labels, in the colours of the classes."
    return drawn(draw, 1.3, told, f"Thumbnails of {len(looks)} cases, {names}.")


def _values(dataset: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the values of each class or region, without background and ignored voxels."""
    entries = {name: tuple(np.atleast_1d(entry).astype(int).tolist()) for name, entry in dataset["labels"].items()}
    entries.pop("ignore", None)
    return {name: values for name, values in entries.items() if set(values) != {0}}
