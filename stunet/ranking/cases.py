"""Choose the labelled cases that a ranking looks at, so that they span the dataset, and draw their points."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stunet.datasets import RawCase
from stunet.datasets.check import UNREADABLE
from stunet.errors import DataError
from stunet.images import file_geometry
from stunet.inference.failures import reason
from stunet.labels.annotations import Annotations
from stunet.orientation import REORIENTS
from stunet.ranking.bank import ENDING, POINTS, Bank, read_arrays, write_arrays
from stunet.ranking.points import NUMBER, DrawnPoints, classes_of, draw_points

LEAST = 5  # of the chosen cases should have each class
LOOK = 100  # further cases whose labels are read for classes that fewer have
MOST = 20_000  # points of a case


@dataclass(frozen=True)
class Target:
    """A labelled dataset.

    Attributes:
        kind: Name of its reader, such as SimpleITKIO.
        description: Its dataset.json.
        annotations: What its cases annotate; None: everything.
        seed: Of the points, beside the name of the case.
        number: Points of each class; None: NUMBER, or fewer where classes are many.
    """

    kind: str
    description: Mapping[str, Any]
    annotations: Annotations | None = None
    seed: int = 0
    number: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that points have, the background first."""
        return classes_of(self.description, self.annotations).names

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the images' channels."""
        names = self.description.get("channel_names") or self.description["modality"]
        return tuple(str(names[str(channel)]) for channel in range(len(names)))

    @property
    def per_class(self) -> int:
        """The number of points of each class in a case."""
        return self.number or max(1, min(NUMBER, MOST // len(self.classes)))

    def draw(self, case: RawCase, bank: Bank) -> DrawnPoints:
        """Return the points of a case: those in the bank, or new ones.

        Raises:
            DataError: They cannot be drawn.
            OSError: They cannot be written.
        """
        try:
            stamps = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in case.files]
            classes = classes_of(self.description, self.annotations)
            made_from = {
                "files": stamps,
                "reader": self.kind,
                "labels": self.description["labels"],
                "classes": classes.table(case.name, self.annotations).tolist(),
                "number": self.per_class,
                "seed": self.seed,
            }
            path = bank.folder / POINTS / f"{case.name}{ENDING}"
            if (found := read_arrays(path, made_from)) is not None:
                return DrawnPoints(**found)
            drawn = draw_points(
                case, self.kind, self.description, self.annotations, number=self.per_class, seed=self.seed
            )
        except UNREADABLE as error:
            raise reason(error, f"reading case {case.name!r}") from None
        names = ("labels", "regions", "weights", "voxels", "world")
        write_arrays(path, {name: getattr(drawn, name) for name in names}, made_from)
        return drawn


def choose(cases: Sequence[RawCase], kind: str, number: int) -> list[RawCase]:
    """Return all cases, the first `number` of which span the sizes and spacings of their images.

    Each is the farthest from those before it, in the logarithms of sizes and spacings over their standard deviations,
    and the first is the nearest to the median. Where these do not differ, the order is that of hashes of the names.
    """
    ordered = sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).digest())
    places = np.array([_extent(case, kind) for case in ordered])
    places = (places - np.median(places, axis=0)) / np.maximum(places.std(axis=0), 1e-6)
    chosen = [int(np.linalg.norm(places, axis=1).argmin())]
    distances = np.full(len(ordered), np.inf)
    while len(chosen) < min(number, len(ordered)):
        distances = np.minimum(distances, np.linalg.norm(places - places[chosen[-1]], axis=1))
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
    rest = [index for index in range(len(ordered)) if index not in set(chosen)]
    return [ordered[index] for index in chosen + rest]


def _extent(case: RawCase, kind: str) -> list[float]:
    if (found := spacing_and_size(case, kind)) is None:
        return [0.0] * 6
    return np.log(np.maximum(np.concatenate(found), 1e-6)).tolist()


def spacing_and_size(case: RawCase, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return pitches and sides of a case's image in mm (x, y, z), as the dataset's reader sees it; None: unknown."""
    kind = kind.removesuffix(REORIENTS)
    if not kind.startswith(("SimpleITK", "Nibabel")):
        return None
    try:
        affine, shape = file_geometry(case.images[0], kind)
    except UNREADABLE:  # draw() says why
        return None
    if affine is None or len(shape) != 3:
        return None
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return spacing, spacing * shape[::-1]


def cover(
    order: Sequence[RawCase],
    number: int,
    classes: Collection[int],
    classes_in: Callable[[RawCase], Collection[int]],
) -> list[RawCase]:
    """Return `number` cases, the first ones but for some that give way to others with rare classes.

    Args:
        order: From choose().
        number: How many are wanted.
        classes: That LEAST of them should have, or half of them if these are fewer.
        classes_in: Tells which of them a case has; called once for the first ones, and for up to LOOK others.
    """
    chosen = list(order[:number])
    found = {case.name: set(classes_in(case)) for case in chosen}
    wanted = min(LEAST, -(-len(chosen) // 2))

    def count(label: int) -> int:
        return sum(label in found[case.name] for case in chosen)

    for case in order[number : number + LOOK]:
        lacking = {label for label in classes if count(label) < wanted}
        if not lacking:
            break
        own = set(classes_in(case))
        # The last one gives way that no class needs, and that lacks what this one brings.
        for other in reversed(chosen):
            before = found[other.name] & set(classes)
            if (own & lacking) - before and all(count(label) > wanted for label in before - own):
                chosen[chosen.index(other)] = case
                found[case.name] = own
                break
    return chosen


def check_classes(points: Mapping[str, DrawnPoints], names: Sequence[str]) -> list[str]:
    """Return what limits a ranking on these points, a sentence each.

    Raises:
        DataError: There are fewer than two cases, or no class is in two of them.
    """
    if len(points) < 2:
        raise DataError(f"{len(points)} labelled case(s): a ranking compares cases", "label at least 2, better 20")
    count = {index: sum(index in drawn.labels for drawn in points.values()) for index in range(1, len(names))}
    if not any(n > 1 for n in count.values()):
        raise DataError("no class is in two of the labelled cases", "label the same structures in more cases")
    missing = [names[index] for index, n in count.items() if n == 0]
    once = [names[index] for index, n in count.items() if n == 1]
    notes = []
    if missing:
        notes.append(f"no case that was looked at has {', '.join(missing)}")
    if once:
        notes.append(f"only one case has {', '.join(once)}: what scores compare between cases leaves that out")
    return notes
