"""The largest patch that most scans contain."""

import numpy as np

from stunet.plans.contained import largest_contained, resampled_shapes


def test_the_patch_is_contained_in_nine_of_ten_scans() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 9, 10, 40, 200):
        shapes = generator.integers(20, 60, (count, 3))
        patch = largest_contained(shapes.tolist())
        inside = (shapes >= patch).all(axis=1).mean()
        assert inside >= 0.9
        assert (np.array(patch) >= shapes.min(axis=0)).all()
    alike = [[30, 40, 50]] * 9 + [[10, 60, 60]]
    assert largest_contained(alike) == [30, 40, 50]


def test_shapes_are_those_that_the_network_sees() -> None:
    found = {"spacings": [[1.0, 2.0, 4.0]], "shapes_after_crop": [[30, 20, 10]]}
    assert resampled_shapes(found, [2.0, 1.0, 1.0], [2, 0, 1]) == [[20, 30, 40]]
    assert resampled_shapes(found, [1.0, 1.0], [2, 0, 1]) == [[30, 40]]
    assert resampled_shapes(found, [2.0, 1.0, 1.0], [2, 0, 1], resamples=False) == [[10, 30, 20]]
