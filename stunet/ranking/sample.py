"""What scores are computed from: the labelled points of each case, and what one candidate makes of them.

Arrays of numpy only, so that scores know nothing of networks, images and files. All candidates get the same points.
Layers are ordered from coarse to fine. scores/base.py says what a score is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stunet.errors import DataError

BACKGROUND = 0
INTERIOR, BOUNDARY, NEAR, FAR = range(4)
REGIONS = ("interior", "boundary", "background near", "background far")
ENCODER, DECODER = "encoder", "decoder"
LEVELS = 3  # CC-FV reads the three finest, as the configurations of its public code do

T = TypeVar("T")
Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Points:
    """The points of a case.

    Args:
        labels: (P,) class of each point, 0 being background.
        regions: (P,) index into REGIONS.
        weights: (P,) how many voxels each point stands for; None: points count alike.
    """

    labels: Integers
    regions: Integers
    weights: Floats | None = None


@dataclass(frozen=True)
class Layer:
    """What a layer computes at the points.

    Args:
        name: The module, as in the network.
        part: ENCODER or DECODER.
        features: (P, D) by case.
    """

    name: str
    part: str
    features: Mapping[str, Floats]


@dataclass(frozen=True)
class Facts:
    """What is known of a candidate without looking at the target; None: unknown.

    Args:
        network: As in presets/known_results.toml, such as ResEnc-L.
        method: How it was pre-trained: supervised, random, or a name of trainers/pretexts/methods.py such as mae.
        parameters: Of the network.
        cases: Images it was pre-trained on.
        target: The target, if it is one of known_results.toml, whose results on it must not count.
    """

    network: str | None = None
    method: str | None = None
    parameters: int | None = None
    cases: int | None = None
    target: str | None = None


@dataclass(frozen=True)
class Sample:
    """One candidate at the points of all cases.

    Args:
        points: By case.
        layers: Those of the encoder and of the decoder, each from coarse to fine.
        predictions: (P, Z) by case: probabilities of the Z classes of the candidate's own head, 0 being background,
            each row a distribution; None: no head.
        facts: For the scores that do not look at features.

    Raises:
        DataError: Cases, rows or numbers of channels do not agree, or values are not finite.
    """

    points: Mapping[str, Points]
    layers: Sequence[Layer] = ()
    predictions: Mapping[str, Floats] | None = None
    facts: Facts = field(default_factory=Facts)
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.points:
            raise DataError("no case has points", "check that the dataset has labelled cases: imagesTr, labelsTr")
        for case, points in self.points.items():
            _check_points(case, points)
        for layer in self.layers:
            if layer.part not in (ENCODER, DECODER):
                raise DataError(f"layer {layer.name!r} is of {layer.part!r}", f"{ENCODER!r} or {DECODER!r}")
            self._check_rows(f"features of layer {layer.name!r}", layer.features)
        if self.predictions is not None:
            self._check_rows("predictions", self.predictions)
            for case, rows in self.predictions.items():
                if (rows < 0).any() or np.abs(rows.sum(1) - 1).max(initial=0) > 0.01:
                    raise DataError(f"predictions of {case!r} are not probabilities", "see distribution() for regions")

    def _check_rows(self, what: str, rows: Mapping[str, Floats]) -> None:
        again = "compute the features again"
        if rows.keys() != self.points.keys():
            raise DataError(f"{what}: other cases than the points", again)
        for case, values in rows.items():
            if values.ndim != 2 or len(values) != len(self.points[case].labels) or values.shape[1] == 0:
                raise DataError(
                    f"{what} of {case!r}: {values.shape} for {self.points[case].labels.shape} points", again
                )
            if not np.isfinite(values).all():
                raise DataError(f"{what} of {case!r} are not finite", "read them in fp32, or check the weights")
        if len({values.shape[1] for values in rows.values()}) > 1:
            raise DataError(f"{what}: the number of channels differs between cases", again)

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases in the order that every score and bootstrap uses."""
        return tuple(sorted(self.points))

    @property
    def classes(self) -> tuple[int, ...]:
        """All classes with points in any case, background included."""
        return tuple(sorted({int(label) for points in self.points.values() for label in np.unique(points.labels)}))

    def of(self, part: str) -> tuple[Layer, ...]:
        """The layers of the encoder or of the decoder, from coarse to fine."""
        return tuple(layer for layer in self.layers if layer.part == part)

    def levels(self) -> tuple[Layer, ...]:
        """The layers for scores of several: the finest LEVELS of the decoder, or all of an encoder without one.

        Raises:
            DataError: There are no layers.
        """
        layers = self.of(DECODER)[-LEVELS:] or self.of(ENCODER)
        if not layers:
            raise DataError("no layer of this candidate was read", "compute its features")
        return layers

    def head_input(self) -> Layer:
        """The layer for scores of one: the finest of the decoder, which is the input of the head (CC-FV, section 4).

        Of an encoder without decoder it is the stage that the topology score weights most: the finest stages hold
        edges, the coarsest have voxels larger than most structures. That choice is ours.
        """
        layers = self.levels()
        return layers[-1] if layers[-1].part == DECODER else layers[max(0, len(layers) - 1 - len(layers) // 2)]

    def once(self, key: Any, compute: Callable[[], T]) -> T:
        """Return what several scores need of this sample, computed when the first asks."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def head(self) -> Mapping[str, Floats]:
        """The predictions.

        Raises:
            DataError: The candidate has no head.
        """
        if self.predictions is None:
            raise DataError("this candidate has no head", "leave the score out; nleep needs none")
        return self.predictions

    def labels(self, case: str) -> Integers:
        return self.points[case].labels

    def weights(self, case: str) -> NDArray[np.float64]:
        """How many voxels each point of a case stands for, or 1."""
        points = self.points[case]
        return np.ones(len(points.labels)) if points.weights is None else points.weights.astype(np.float64)

    def only(self, cases: Sequence[str]) -> "Sample":
        """The same candidate at some of the cases."""
        chosen = set(cases)

        def pick(rows: Mapping[str, Any]) -> dict[str, Any]:
            return {case: values for case, values in rows.items() if case in chosen}

        layers = [replace(layer, features=pick(layer.features)) for layer in self.layers]
        predictions = None if self.predictions is None else pick(self.predictions)
        return replace(self, points=pick(self.points), layers=layers, predictions=predictions)


def distribution(probabilities: Floats) -> NDArray[np.float64]:
    """Turn independent probabilities of regions (P, Z) into distributions (P, Z + 1), background first.

    Background has the probability that no region is there. This is ours: the sources know softmax heads only.
    """
    rows = probabilities.astype(np.float64)
    rows = np.concatenate([(1 - rows).prod(1, keepdims=True), rows], 1)
    return np.asarray(rows / rows.sum(1, keepdims=True))


def _check_points(case: str, points: Points) -> None:
    again = "draw the points again"
    rows = len(points.labels)
    if rows == 0 or points.labels.ndim != 1:
        raise DataError(f"case {case!r} has no points", "leave it out, or check its labels")
    if not np.issubdtype(points.labels.dtype, np.integer) or points.labels.min() < 0:
        raise DataError(f"labels of the points of {case!r} are not classes", again)
    if points.regions.shape != (rows,) or not np.isin(points.regions, range(len(REGIONS))).all():
        raise DataError(f"regions of the points of {case!r} do not fit its labels", again)
    if points.weights is not None and (
        points.weights.shape != (rows,) or not np.isfinite(points.weights).all() or (points.weights <= 0).any()
    ):
        raise DataError(f"weights of the points of {case!r} do not fit its labels", again)
