"""Minimum spanning trees, the two terms of the topology score, and their fusion."""

import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from stunet.errors import DataError
from stunet.ranking.sample import DECODER, Sample
from stunet.ranking.scores.base import everyone
from stunet.ranking.scores.topology import (
    _decoder_weights,
    _encoder_weights,
    fuse,
    fuse_corrected,
    spanning_trees,
    topology,
    tree_divergences,
)
from tests.ranking.samples import points_of, random_sample


def test_trees_are_scipys() -> None:
    rs = np.random.RandomState(0)
    distances = np.stack([cdist(x, x) for x in rs.standard_normal((3, 30, 4))])
    starts, ends = spanning_trees(distances)
    for number, graph in enumerate(distances):
        edges = {tuple(sorted(edge)) for edge in zip(starts[number], ends[number], strict=True)}
        expected = {tuple(sorted(edge)) for edge in zip(*minimum_spanning_tree(graph).nonzero(), strict=True)}
        assert edges == expected


def test_the_divergence_of_points_on_a_line() -> None:
    rows = np.array([[0.0], [1], [3], [6], [6]])
    labels = np.array([0, 0, 1, 1, 1])  # edges of 1 (inside 0), 2 (across), 3 and 0 (inside 1); median distance 3
    far = np.array([[0.0], [1], [100], [101]])  # the edge across is longer than the median, 99.5, and counts as that
    found = tree_divergences([rows, np.zeros((4, 1)), rows[:1], far], [labels, labels[1:], labels[:1], labels[1:]])
    assert found[0] == pytest.approx((1 / 3 + 3 / 5) / 2)
    assert np.isnan(found[1:3]).all()
    far_labels = np.array([0, 0, 1, 1])
    (found_far,) = tree_divergences([far], [far_labels])
    assert found_far == pytest.approx((100 - 99) / 100)


def test_layer_weights_are_the_published_ones() -> None:
    assert _decoder_weights(5) == pytest.approx([0.022, 0.229, 0.499, 0.229, 0.022], abs=1e-3)
    assert _encoder_weights(6)[::-1] == pytest.approx([0.002, 0.038, 0.240, 0.444, 0.240, 0.038], abs=2e-3)
    assert _decoder_weights(1) == pytest.approx([1])


def test_the_published_global_term_falls_with_separation_and_the_local_term_rises() -> None:
    apart, together = (topology(random_sample(separation=s)).parts for s in (4.0, 0.2))
    assert apart["GRTD"] < together["GRTD"]
    assert apart["LBTC"] > together["LBTC"]
    assert apart["share of GRTD"] == pytest.approx(np.tanh(np.log(2) / 2))


def test_fusion_is_min_max_over_the_pool_and_ignores_the_global_term_for_one_class() -> None:
    terms = np.array([[[-0.9, 0.5, 0.6]], [[-0.5, 0.9, 0.6]], [[-0.7, 0.6, 0.6]]])
    assert fuse(terms)[:, 0] == pytest.approx([0, 1, 0.6 * 0.5 + 0.4 * 0.25])
    assert fuse_corrected(terms)[:, 0] == pytest.approx([0.6, 0.4, 0.6 * 0.5 + 0.4 * 0.25])
    assert fuse(terms[:1])[:, 0] == pytest.approx([0.6 * -0.9 + 0.4 * 0.5])
    one = topology(random_sample(classes=1))
    assert one.terms(everyone(one))[0, 2] == 0


def test_boundaries_without_mixed_neighbourhoods_leak_nothing() -> None:
    prepared = topology(random_sample(separation=100.0, channels=(8,)))
    assert prepared.parts["LBTC"] == 1


def test_what_it_needs_is_said() -> None:
    sample = random_sample()
    with pytest.raises(DataError, match="encoder"):
        topology(Sample(sample.points, sample.of(DECODER)))
    inside = {case: points_of(points.labels) for case, points in sample.points.items()}
    for points in inside.values():
        points.regions[points.regions == 1] = 0
    with pytest.raises(DataError, match="boundary"):
        topology(Sample(inside, sample.layers))
