"""The topology score: do minimum spanning trees over features follow the labels (Tang et al., arXiv:2602.23916)?

As the authors' public code states it (SPIresearch/TopoTE, 35ad1b9; utils/tda.py, utils/fusion_weights.py):

    GRTD, decoder levels: over the edges of the tree of a case that have an end in class c, with l the length of an edge
        and w = 0 inside a class, min(l, lambda) across, lambda being the median distance between points,
        d_c = (sum l - sum w) / sum l;   GRTD = - mean of d_c over classes (background included) and cases
    LBTC, encoder stages: around up to ANCHORS foreground points at boundaries, the tree of the NEIGHBOURS nearest
        points in feature space, where these have two labels or more; LBTC = 1 - mean share of edges across labels
    layers: weighted by Gaussians, widths 0.8 and 0.9 of a level, around the middle decoder level and encoder stage 3
        of 6
    fusion: S = a N(GRTD) + (1 - a) N(LBTC); N is min-max over candidates, a = tanh(log(K) / 2), K foreground classes

What the published GRTD rewards: d_c is the share of length *inside* classes, so GRTD falls the better classes are
separated; with a single foreground class it has no part in S. `fuse_corrected` turns its sign round; that is ours.

Also ours: at most POINTS of a class (theirs: 800), evenly chosen, as are anchors; a case without mixed neighbourhoods
leaks nothing; a candidate alone is fused without N. S changes with the candidates beside it, and the decoder of a
self-supervised model is mostly random: then GRTD is of the encoder and a random map.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stunet.errors import DataError
from stunet.ranking.sample import BACKGROUND, BOUNDARY, DECODER, ENCODER, Floats, Integers, Layer, Sample
from stunet.ranking.scores.base import Array, Counts, Prepared

POINTS, ANCHORS, NEIGHBOURS = 150, 50, 16
DECODER_WIDTH, ENCODER_WIDTH = 0.8, 0.9
Indices = NDArray[np.intp]


GRAPHS = 10  # whose distances are in memory at a time


def topology(sample: Sample) -> Prepared:
    """Prepare the terms that `fuse` puts together: GRTD, LBTC, and a.

    Raises:
        DataError: No decoder levels, no encoder stages, or no foreground point at a boundary.
    """
    return sample.once("topology", lambda: _topology(sample))


def _topology(sample: Sample) -> Prepared:
    decoder, encoder = sample.of(DECODER), sample.of(ENCODER)
    if not decoder or not encoder:
        missing = ENCODER if decoder else DECODER
        raise DataError(f"topology: no layers of the {missing} were read", f"read the {missing} as well")
    foreground = len([label for label in sample.classes if label != BACKGROUND])
    if foreground == 0:
        raise DataError("topology: no case has foreground points", "check the labels")
    cases = sample.cases
    labels = [sample.labels(case) for case in cases]
    of_trees = np.array([tree_divergences([layer.features[c] for c in cases], labels) for layer in decoder])
    of_boundaries = np.array([[_leakage(layer, sample, c) for c in cases] for layer in encoder])
    grtd = -(_decoder_weights(len(decoder)) @ of_trees)
    lbtc = 1 - _encoder_weights(len(encoder)) @ of_boundaries
    share = np.tanh(np.log(foreground) / 2)

    def terms(counts: Counts) -> Array:
        known = [np.isfinite(values) for values in (grtd, lbtc)]
        columns = [
            _mean(counts, np.where(ok, values, 0), ok.astype(np.float64))
            for values, ok in zip((grtd, lbtc), known, strict=True)
        ]
        return np.stack([*columns, np.full(len(counts), share)], 1)

    once = terms(np.ones((1, len(cases))))[0]
    if np.isnan(once[0]):
        raise DataError("topology: features of the decoder are constant", "check the weights of this candidate")
    if np.isnan(once[1]):
        raise DataError("topology: no foreground point lies at a boundary", "draw points there, or check the labels")
    return Prepared(cases, terms, {"GRTD": float(once[0]), "LBTC": float(once[1]), "share of GRTD": float(share)})


def fuse(terms: Array) -> Array:
    """Fuse GRTD and LBTC (M, B, 3) of the candidates of a pool to scores (M, B)."""
    grtd, lbtc, share = np.moveaxis(terms, -1, 0)
    return np.asarray(share * _between_0_and_1(grtd) + (1 - share) * _between_0_and_1(lbtc))


def fuse_corrected(terms: Array) -> Array:
    """Fuse as `fuse` does, after turning the sign of GRTD round so that separated classes score high."""
    return fuse(terms * np.array([-1, 1, 1]))


def tree_divergences(features: Sequence[Floats], labels: Sequence[Integers]) -> Array:
    """Return the mean over classes of d_c for the points of each case; nan for one point, or if all coincide."""
    chosen = [
        np.concatenate([_evenly(np.flatnonzero(own == label), POINTS) for label in np.unique(own)]) for own in labels
    ]
    result = np.full(len(labels), np.nan)
    for size in {len(c) for c in chosen} - {1}:
        same = [i for i, c in enumerate(chosen) if len(c) == size]  # trees of one size are grown together
        for start in range(0, len(same), GRAPHS):
            group = same[start : start + GRAPHS]
            squares = _squared_distances(np.stack([features[i][chosen[i]] for i in group]))
            starts, ends = spanning_trees(squares)
            for k, i in enumerate(group):
                result[i] = _divergence(squares[k], starts[k], ends[k], labels[i][chosen[i]])
    return result


def _divergence(squares: Array, starts: Indices, ends: Indices, labels: Integers) -> float:
    """Return the mean of d_c over the classes of one tree."""
    lengths = np.sqrt(squares[starts, ends])
    most = lengths.max()
    if np.count_nonzero(squares < most**2) > (squares.size - len(squares)) / 2:  # else no edge exceeds the median
        most = np.median(np.sqrt(squares[np.triu_indices(len(squares), 1)]))
    across = np.where(labels[starts] == labels[ends], 0, np.minimum(lengths, most))
    divergences = []
    for label in np.unique(labels):
        touching = (labels[starts] == label) | (labels[ends] == label)
        total = lengths[touching].sum()
        if total > 0:
            divergences.append((total - across[touching].sum()) / total)
    return float(np.mean(divergences)) if divergences else float("nan")


def spanning_trees(distances: Array) -> tuple[Indices, Indices]:
    """Grow a minimum spanning tree in each of G complete graphs (G, V, V): ends of its edges, (G, V - 1) each.

    Squared distances have the same tree.

    Prim's algorithm, for all graphs in step. scipy's takes a distance of 0 for no edge.
    """
    graphs, size = distances.shape[:2]
    every = np.arange(graphs)
    nearest = distances[:, 0].copy()  # from each point to the tree
    nearest[:, 0] = np.inf
    outside = np.ones((graphs, size), bool)
    outside[:, 0] = False
    parents = np.zeros((graphs, size), np.intp)
    starts, ends = np.empty((graphs, size - 1), np.intp), np.empty((graphs, size - 1), np.intp)
    for step in range(size - 1):
        added = nearest.argmin(1)
        starts[:, step], ends[:, step] = parents[every, added], added
        outside[every, added] = False
        rows = distances[every, added]
        closer = outside & (rows < nearest)
        np.copyto(nearest, rows, where=closer)
        np.copyto(parents, added[:, None], where=closer)
        nearest[every, added] = np.inf
    return starts, ends


def _leakage(layer: Layer, sample: Sample, case: str) -> float:
    """Return the mean share of edges across labels around boundary points of a case; nan without such points."""
    rows, labels, regions = layer.features[case].astype(np.float64), sample.labels(case), sample.points[case].regions
    anchors = _evenly(np.flatnonzero((labels != BACKGROUND) & (regions == BOUNDARY)), ANCHORS)
    if len(anchors) == 0 or len(rows) < 2:
        return float("nan")
    rows = rows - rows.mean(0)
    norms = np.square(rows).sum(1)
    squares = norms[anchors, None] + norms - 2 * rows[anchors] @ rows.T
    count = min(NEIGHBOURS, len(rows))
    nearest = np.sort(np.argpartition(squares, count - 1, axis=1)[:, :count], axis=1)
    mixed = nearest[np.ptp(labels[nearest], axis=1) > 0]
    if len(mixed) == 0:
        return 0.0
    starts, ends = spanning_trees(_squared_distances(rows[mixed]))
    own = labels[mixed]
    across = np.take_along_axis(own, starts, 1) != np.take_along_axis(own, ends, 1)
    return float(across.mean())


def _squared_distances(rows: Floats) -> Array:
    """Squared distances (G, V, V) between the points of each of G sets (G, V, D)."""
    values = rows.astype(np.float64)
    values -= values.mean(1, keepdims=True)
    norms = np.square(values).sum(-1)
    squares = np.empty((*norms.shape, norms.shape[1]))
    for square, value in zip(squares, values, strict=True):
        np.matmul(value, value.T, out=square)  # one by one, BLAS computes half of a symmetric product
    squares *= -2
    squares += norms[:, :, None]
    squares += norms[:, None]
    # Equal points are at distance 0 in exact arithmetic; products leave some 1e-16 of their norms.
    np.copyto(squares, 0, where=squares < 1e-14 * norms.max(1)[:, None, None])
    return squares


def _evenly(indices: Indices, most: int) -> Indices:
    return indices[np.linspace(0, len(indices) - 1, min(len(indices), most)).astype(int)]


def _decoder_weights(levels: int) -> Array:
    return _gaussian(np.arange(levels) - (levels - 1) / 2, DECODER_WIDTH)


def _encoder_weights(stages: int) -> Array:
    """Weights from coarse to fine; the authors count stages from fine to coarse, the heaviest being stages / 2."""
    return _gaussian(np.arange(stages)[::-1] - stages / 2, ENCODER_WIDTH)


def _gaussian(offsets: Floats, width: float) -> Array:
    weights = np.exp(-np.square(offsets / width) / 2)
    return np.asarray(weights / weights.sum())


def _mean(counts: Counts, values: Array, known: Array) -> Array:
    weights = counts @ known
    return np.divide(counts @ values, weights, out=np.full(len(counts), np.nan), where=weights > 0)


def _between_0_and_1(values: Array) -> Array:
    """Min-max over candidates (M, B); of a single candidate the value itself, of equal ones 0."""
    if len(values) == 1:
        return values
    low, high = values.min(0), values.max(0)
    return (values - low) / np.where(high > low, high - low, 1)
