"""How sure the network is of a label is the probability of its group, on the grid of the image's file."""

from pathlib import Path

import numpy as np

from stunet.inference.cases import InputCase
from stunet.inference.engine.confidence import Confidence
from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from tests.loops import for_each
from tests.predictor_models import make_model, write_image


@for_each("groups", [(0, 1, 2), (0, 1, 1), (0, 0, 1)])
def test_confidence_is_the_probability_of_the_labels_group(tmp_path: Path, groups: tuple[int, ...]) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    predictor = Predictor(open_model(folder), Options(precision="fp32"))
    prepared = predictor.preprocess(predictor.read(InputCase("c", (write_image(tmp_path / "c_0000.nii.gz", 1),))))
    confidence = Confidence(groups)
    labels = predictor.segment(prepared, probabilities=confidence)
    file = tmp_path / "p.npy"
    np.testing.assert_array_equal(labels, predictor.segment(prepared, probabilities=file))
    likely = np.load(file)
    group_of = np.array(groups)
    expected = np.zeros(labels.shape, np.float32)
    for number, group in enumerate(groups):
        expected += np.where(group_of[labels] == group, likely[number], 0)
    np.testing.assert_allclose(confidence.values_DHW, expected, atol=1e-6)
    assert len(np.unique(labels)) > 1
