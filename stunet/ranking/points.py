"""Draw the points of a case at which features of all candidates are read: voxels of the label file, in mm.

A point is the centre of a voxel, so its class is that of the file. It is drawn in the axes of REFERENCE and with a seed
from the name of the case: neither how the file stores its axes, nor the candidate, nor another class changes it. Each
class has as many points, of which half lie on its boundary; weights tell how many voxels of the case a point stands
for, and proportional() chooses by volume among them. The background is divided by the distance from all classes.

Only what is annotated counts. There are no points where the ignore label is, in a label of several leaves, or, in a
case that does not annotate all classes, in the background. grid.py finds the points in preprocessed cases.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stunet.datasets import RawCase
from stunet.datasets.contents import nonzero_box
from stunet.errors import DataError
from stunet.evaluation.segmentations import as_labels
from stunet.images import Reader, file_geometry, file_orientation
from stunet.kinds import label_values
from stunet.labels.annotations import HINT, Annotations
from stunet.orientation import REORIENTS, turn, turned_affine
from stunet.ranking.sample import BACKGROUND, BOUNDARY, FAR, INTERIOR, NEAR, REGIONS, Points

REFERENCE = "RAS"  # orientation in which points are drawn
NUMBER = 1000  # of points of each class in a case
NEAR_MM = 10.0  # from a class, along each axis of the grid
UNKNOWN, IGNORED = -1, -2  # in place of a class: not annotated; ignore label
STRATA = len(REGIONS)  # of a class


@dataclass(frozen=True)
class DrawnPoints:
    """The points of a case, those of a class and region one after the other, and these in random order.

    Attributes:
        labels: (P,) class, 0 being the background.
        regions: (P,) index into sample.REGIONS.
        weights: (P,) voxels of its class and region, divided by the number of points there.
        voxels: (P, 3) in the array (D, H, W) of the image in the orientation REFERENCE, if it has one.
        world: (P, 3) mm in RAS; without a geometry, the voxel (x, y, z).
    """

    labels: np.ndarray
    regions: np.ndarray
    weights: np.ndarray
    voxels: np.ndarray
    world: np.ndarray

    @property
    def points(self) -> Points:
        """What scores know of them."""
        return Points(self.labels, self.regions, self.weights)


@dataclass(frozen=True)
class Classes:
    """The classes that points can have.

    Attributes:
        names: In the order of the labels of points; the first is the background.
        values: Label values of each class, in the same order.
        ignore: Value of the ignore label, if there is one.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    ignore: int | None = None

    def table(self, case: str, annotations: Annotations | None = None) -> np.ndarray:
        """Return the class of each label value in the file of a case: an index, UNKNOWN or IGNORED."""
        size = 1 + max(*(value for values in self.values for value in values), self.ignore or 0)
        if annotations:
            size = max(size, 1 + max(annotations.values.values()))
        table = np.full(size, UNKNOWN, np.int16 if len(self.values) < 2**15 else np.int32)
        for index, values in enumerate(self.values):
            table[list(values)] = index
        if annotations:
            if case not in annotations.cases:
                raise DataError(f"annotations.json does not have case {case!r}", HINT)
            known = annotations.cases[case].labels
            single = {annotations.values[label] for label in known if len(annotations.labels[label]) == 1}
            table[[value for value in range(1, size) if value not in single]] = UNKNOWN
            if {leaf for label in known for leaf in annotations.labels[label]} != set(annotations.leaves):
                table[0] = UNKNOWN
        if self.ignore is not None:
            table[self.ignore] = IGNORED
        return table


def classes_of(description: Mapping[str, Any], annotations: Annotations | None = None) -> Classes:
    """Return the classes of a dataset.

    Where classes are regions, which may overlap, those of points are label values; values that belong to the same
    regions are one class, which has the name of the smallest of these.

    Args:
        description: Its dataset.json.
        annotations: What its cases annotate; None: everything. Classes are then the leaves.

    Raises:
        DataError: It has no classes.
    """
    labels = {name: value for name, value in description["labels"].items() if name != "background"}
    ignore = labels.pop("ignore", None)
    if annotations:
        listed: list[tuple[str, tuple[int, ...]]] = [(leaf, (annotations.values[leaf],)) for leaf in annotations.leaves]
    else:
        sets = {name: set(value if isinstance(value, list | tuple) else [value]) for name, value in labels.items()}
        inside: dict[frozenset[str], list[int]] = {}
        for value in sorted(set().union(*sets.values()) - {0}):
            inside.setdefault(frozenset(name for name, own in sets.items() if value in own), []).append(value)
        smallest = [min(names, key=lambda name: (len(sets[name]), name)) for names in inside]
        # Of overlapping regions none may be the smallest alone.
        twice = {name for name in smallest if smallest.count(name) > 1}
        listed = [
            (f"{name} {'+'.join(map(str, values))}" if name in twice else name, tuple(values))
            for name, values in zip(smallest, inside.values(), strict=True)
        ]
    if not listed:
        raise DataError("the dataset has no classes besides the background", "a dataset with labels")
    return Classes(("background", *(name for name, _ in listed)), ((0,), *(values for _, values in listed)), ignore)


def draw_points(
    case: RawCase,
    kind: str,
    description: Mapping[str, Any],
    annotations: Annotations | None = None,
    number: int = NUMBER,
    seed: int = 0,
) -> DrawnPoints:
    """Draw the points of a case of a raw dataset, in the part of it that preprocessing keeps.

    Args:
        case: With its label file.
        kind: Reader of the dataset, such as SimpleITKIO.
        description: The dataset's dataset.json.
        annotations: What its cases annotate; None: everything.
        number: Points of each class.
        seed: Beside the name of the case.

    Raises:
        DataError: The case has no label file, or one with unknown values or of another shape than the image, or nothing
            in it is annotated.
    """
    labels, affine = read_reference(case, kind, description)
    image, _ = Reader(kind.removesuffix(REORIENTS), REFERENCE).read_images([str(path) for path in case.images])
    kept = nonzero_box(image)
    del image
    table = classes_of(description, annotations).table(case.name, annotations)
    if labels.max() >= len(table):
        table = np.pad(table, (0, int(labels.max()) + 1 - len(table)), constant_values=UNKNOWN)
    found = table[labels]
    inside = np.zeros(found.shape, bool)
    inside[kept] = True
    found[~inside] = IGNORED
    return draw(found, affine, case.name, number, seed)


def read_reference(case: RawCase, kind: str, description: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (D, H, W) of a case in the orientation REFERENCE, and their affine from (x, y, z) to mm in RAS.

    Both are those of the image, as preprocessing reads it. Without an orientation nothing is turned, and without a
    geometry the affine is that of the voxels themselves.

    Raises:
        DataError: As for draw_points().
    """
    kind = kind.removesuffix(REORIENTS)
    image, path = case.images[0], case.needed_label
    array, _ = Reader(kind, REFERENCE).read_seg(str(path), like=str(image))
    labels = as_labels(array[0], label_values(description["labels"], description.get("regions_class_order")), path)
    if not kind.startswith(("SimpleITK", "Nibabel")):
        return labels, np.eye(4)
    affine, shape = file_geometry(image, kind)
    own = file_orientation(image, kind)
    if affine is None:  # 2D
        return labels, np.eye(4)
    if own is not None:
        way = turn(own, REFERENCE)
        affine, shape = turned_affine(affine, way, shape), tuple(shape[axis] for axis in way.order)
    if labels.shape != tuple(shape):
        what = f"{str(path)!r} has {labels.shape} voxels, its image {tuple(shape)}"
        raise DataError(what, "stunet_plan_and_preprocess checks all cases")
    return labels, affine


def draw(classes_DHW: np.ndarray, affine: np.ndarray, case: str, number: int = NUMBER, seed: int = 0) -> DrawnPoints:
    """Draw points of an array of classes.

    Args:
        classes_DHW: Class of each voxel, UNKNOWN or IGNORED.
        affine: From a voxel (x, y, z) to mm in RAS, (4, 4).
        case: Its name, part of the seed.
        number: Points of each class; half of them in each of its two regions, if these have as many voxels.
        seed: Another part of it.

    Raises:
        DataError: No voxel has a class.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
    strata = _strata(classes_DHW, spacing)
    # By plane, the first column for what has no class.
    counts = np.stack([np.bincount(plane.ravel() + 1, minlength=int(strata.max()) + 2) for plane in strata])
    sizes = counts.sum(axis=0)[1:]
    present = np.flatnonzero(sizes)
    if not present.size:
        raise DataError(f"nothing is annotated in case {case!r}", "leave it out, or check its labels and dataset.json")
    ranks: dict[int, np.ndarray] = {}
    for label in np.unique(present // STRATA):
        own = present[present // STRATA == label]
        for stratum, n in zip(own.tolist(), _shares(sizes[own].tolist(), number), strict=True):
            # In random order.
            ranks[stratum] = _generator(case, seed, stratum).choice(sizes[stratum], n, replace=False)
    each = [len(chosen) for chosen in ranks.values()]
    stratum_of = np.repeat(list(ranks), each)
    voxels = _voxels_at(strata, counts, stratum_of, np.concatenate(list(ranks.values())))
    return DrawnPoints(
        labels=stratum_of // STRATA,
        regions=stratum_of % STRATA,
        weights=sizes[stratum_of] / np.repeat(each, each),
        voxels=voxels,
        world=voxels[:, ::-1] @ affine[:3, :3].T + affine[:3, 3],
    )


def _strata(classes: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return class times STRATA plus region for each voxel, -1 where there is no class."""
    # Where the background is known, what is unknown is a label of several leaves.
    near = (classes > BACKGROUND) | (classes == UNKNOWN)
    for axis, pitch in enumerate(spacing):
        _widen(near, max(1, int(NEAR_MM / pitch + 1e-6)), axis)
    strata = np.empty(classes.shape, np.int16 if classes.max() < 2**15 // STRATA else np.int32)
    for index, plane in enumerate(classes):  # what has to be kept of all of them is only the result
        boundary = np.zeros(plane.shape, bool)
        for other in classes[max(0, index - 1) : index + 2]:
            boundary |= _ends(plane, other)
        for one, other, place in (
            (plane[1:], plane[:-1], boundary[1:]),
            (plane[:-1], plane[1:], boundary[:-1]),
            (plane[:, 1:], plane[:, :-1], boundary[:, 1:]),
            (plane[:, :-1], plane[:, 1:], boundary[:, :-1]),
        ):
            place |= _ends(one, other)
        region = np.where(plane == BACKGROUND, np.where(near[index], NEAR, FAR), np.where(boundary, BOUNDARY, INTERIOR))
        strata[index] = np.where(plane >= 0, plane.astype(strata.dtype) * STRATA + region, -1)
    return strata


def _ends(classes: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Return where a class ends: also at what is not annotated, but not at the ignore label, which may be the same."""
    return (classes != neighbours) & (neighbours != IGNORED)


def _widen(mask: np.ndarray, reach: int, axis: int) -> None:
    """Extend a mask by `reach` voxels in both directions of an axis, in place; in steps of double length."""
    mask = np.moveaxis(mask, axis, 0)
    for view in (mask, mask[::-1]):
        done, whole = 0, min(reach, len(mask) - 1)
        while done < whole:
            step = min(done + 1, whole - done)
            view[step:] |= view[:-step]  # numpy copies where both overlap
            done += step


def _shares(sizes: Sequence[int], number: int) -> list[int]:
    """Return how many of a number each stratum gives: the same, or all that it has, and the others more."""
    left, shares = number, dict.fromkeys(range(len(sizes)), 0)
    for done, index in enumerate(sorted(shares, key=lambda i: sizes[i])):
        # At least one each: no stratum that exists may be left without a point.
        shares[index] = min(sizes[index], max(1, left // (len(sizes) - done)))
        left -= shares[index]
    return [shares[index] for index in range(len(sizes))]


def _generator(case: str, seed: int, stratum: int) -> np.random.Generator:
    digest = hashlib.sha256(case.encode()).digest()
    return np.random.default_rng([seed, stratum, *np.frombuffer(digest, "<u4").tolist()])


def _voxels_at(strata: np.ndarray, counts: np.ndarray, stratum_of: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return the voxels (n, 3) with these ranks among all voxels of their strata.

    Plane by plane, since a list of all voxels may be eight times as large as the labels; `counts` (planes, 1 + strata)
    has the voxels of none and of each stratum.
    """
    ends = counts.cumsum(axis=0)
    starts = counts.cumsum(axis=1) - counts  # in a plane whose voxels are sorted by stratum
    plane_of = np.empty(len(ranks), np.int64)
    for stratum in np.unique(stratum_of):
        own = stratum_of == stratum
        plane_of[own] = np.searchsorted(ends[:, stratum + 1], ranks[own], side="right")
    places = np.empty(len(ranks), np.int64)
    for plane in np.unique(plane_of):
        here = np.flatnonzero(plane_of == plane)
        column = stratum_of[here] + 1
        before = ends[plane, column] - counts[plane, column]
        order = np.argsort(strata[plane], axis=None, kind="stable")
        places[here] = order[starts[plane, column] + ranks[here] - before]
    return np.stack([plane_of, *np.divmod(places, strata.shape[2])], axis=1)


def proportional(points: Points, number: int) -> np.ndarray:
    """Return the indices of up to `number` points of classes, each class and region with its share of the volume.

    There are fewer where a class or region has not as many points as its share: shares stay what they are, up to
    rounding, and each keeps a point.
    """
    if points.weights is None:
        raise ValueError("points without weights have no volume")
    stratum = points.labels * STRATA + points.regions
    own = [s for s in np.unique(stratum) if s // STRATA != BACKGROUND]
    each = np.array([(stratum == s).sum() for s in own])
    volume = np.array([points.weights[stratum == s].sum() for s in own])
    if not own:
        return np.empty(0, np.int64)
    total = min(number, (each / (volume / volume.sum())).min())
    wanted = np.clip(np.floor(volume / volume.sum() * total + 1e-9).astype(int), 1, each)
    # Points of a stratum are in random order, so its first ones are a random choice.
    return np.concatenate([np.flatnonzero(stratum == s)[:n] for s, n in zip(own, wanted, strict=True)])
