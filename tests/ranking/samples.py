"""Samples for the tests of scores: the recipes of the golden numbers, and small random ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stunet.ranking.sample import BOUNDARY, DECODER, ENCODER, FAR, INTERIOR, NEAR, Facts, Layer, Points, Sample

Features = dict[str, dict[int, list[NDArray[Any]]]]


def make(seed: int, cases: int, classes: int, layers: Mapping[str, tuple[int, int]]) -> Features:
    """Features (n, D) of every layer, class (background first) and case; the order of draws is part of the recipe."""
    rs = np.random.RandomState(seed)
    features: Features = {}
    for layer, (n, channels) in layers.items():
        features[layer] = {c: [] for c in range(classes + 1)}
        scale = 1.0 / np.sqrt(1.0 + np.arange(channels))
        for _ in range(cases):
            for c in range(classes + 1):
                rows = rs.standard_normal((n, channels)) * scale + 0.5 * c / (1.0 + np.arange(channels))
                features[layer][c].append((rows + 0.2 * rs.standard_normal(channels)).astype(np.float32))
    return features


def one_layer(features: Features, layer: str) -> Sample:
    """A sample of one layer of `make`, whose layers have different points."""
    of_class = features[layer]
    cases = [f"case{i}" for i in range(len(of_class[0]))]
    labels = np.repeat(np.arange(len(of_class)), [len(rows[0]) for rows in of_class.values()])
    points = {case: points_of(labels) for case in cases}
    rows = {case: np.concatenate([of_class[c][i] for c in of_class]) for i, case in enumerate(cases)}
    return Sample(points, [Layer(layer, DECODER, rows)])


def points_of(labels: NDArray[Any]) -> Points:
    """Points of which every second one is at a boundary, or near one."""
    odd = np.arange(len(labels)) % 2 == 1
    return Points(labels, np.where(labels > 0, np.where(odd, BOUNDARY, INTERIOR), np.where(odd, NEAR, FAR)))


def pooled(features: NDArray[Any], labels: NDArray[Any], predictions: NDArray[Any] | None = None) -> Sample:
    """A sample of one case, for scores that pool all points."""
    case = "case0"
    return Sample(
        {case: points_of(labels)},
        [Layer("finest", DECODER, {case: features})],
        None if predictions is None else {case: predictions},
    )


def random_sample(
    seed: int = 0,
    cases: int = 6,
    classes: int = 2,
    points: int = 40,
    channels: tuple[int, ...] = (12, 8),
    separation: float = 2.0,
    case_shift: float = 0.3,
    heads: int = 5,
    facts: Facts | None = None,
) -> Sample:
    """Classes `separation` apart and cases shifted by `case_shift`, in layers of decoder and encoder, with a head."""
    rs = np.random.RandomState(seed)
    names = [f"case{i}" for i in range(cases)]
    labels = np.repeat(np.arange(classes + 1), points)
    layers = []
    for part in (ENCODER, DECODER):
        for number, width in enumerate(channels):
            centres = separation * rs.standard_normal((classes + 1, width))
            rows = {
                name: (
                    centres[labels]
                    + rs.standard_normal((len(labels), width))
                    + case_shift * rs.standard_normal((1, width))
                ).astype(np.float32)
                for name in names
            }
            layers.append(Layer(f"{part}{number}", part, rows))
    logits = rs.standard_normal((classes + 1, heads))
    predictions = {}
    for name in names:
        raw = np.exp(separation * logits[labels] + rs.standard_normal((len(labels), heads)))
        predictions[name] = raw / raw.sum(1, keepdims=True)
    return Sample({name: points_of(labels) for name in names}, layers, predictions, facts or Facts())
