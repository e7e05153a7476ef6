"""Labels lie as the image that they belong to, also where one of the two files does not say how it lies."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from stunet.images import CaseReader, Reader, file_reader
from stunet.inference.reading import InputImage, _add_previous_stage
from stunet.merging.completing import _onto_image
from stunet.nifti_header import file_has_orientation
from stunet.orientation import file_properties
from stunet.plans.fingerprint import _OfCase
from stunet.trainers import validation
from tests.loops import for_each

KINDS = ["SimpleITKIO", "NibabelIO"]
ARRAY = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)  # (x, y, z)
LAS = np.diag([-1.0, 1.0, 1.0, 1.0])


def save(path: Path, says: bool, affine: np.ndarray = LAS) -> str:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(ARRAY, affine if says else None), path)
    return str(path)


@for_each("kind", KINDS)
@for_each(("image_says", "label_says"), [(True, True), (True, False), (False, True), (False, False)])
def test_labels_are_turned_as_their_image(kind: str, image_says: bool, label_says: bool, tmp_path: Path) -> None:
    image, label = save(tmp_path / "image.nii.gz", image_says), save(tmp_path / "label.nii.gz", label_says)
    reader = Reader(kind, "PIR")
    array, properties = reader.read_images([image])
    assert np.array_equal(array[0], ARRAY.T) is not image_says
    ways: list[Any] = [image, properties, {**properties, "nifti": properties.get("nifti")}]
    for like in ways:
        labels, of_labels = reader.read_seg(label, like)
        np.testing.assert_array_equal(labels, array)
        assert list(of_labels["spacing"]) == list(properties["spacing"])
    case = _OfCase(kind, "PIR")
    case.read_images([image])
    np.testing.assert_array_equal(case.read_seg(label)[0], array)
    raw = _add_previous_stage(InputImage(array, image, properties), Path(label), reader)
    np.testing.assert_array_equal(raw.previous, array)
    stored, of_stored = file_reader(kind).read_seg(label)
    np.testing.assert_array_equal(_onto_image(Path(label), of_stored, raw)(stored), raw.on_file_grid)


@for_each("kind", KINDS)
@for_each(("image_says", "label_says"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_perfect_prediction_is_measured_as_one(kind: str, image_says: bool, label_says: bool, tmp_path: Path) -> None:
    image, label = save(tmp_path / "image.nii.gz", image_says), save(tmp_path / "gt/c.nii.gz", label_says)
    (tmp_path / validation.FOLDER).mkdir()
    predicted = tmp_path / validation.FOLDER / "c.nii.gz"
    place = file_properties(Reader(kind, "PIR").read_images([image])[1], ARRAY.T.shape)
    file_reader(kind).write_seg(np.ascontiguousarray(ARRAY.T), str(predicted), place)
    assert file_has_orientation(predicted) is image_says
    assert nibabel.load(predicted).get_data_dtype() == np.uint8
    np.testing.assert_array_equal(nibabel.load(predicted).dataobj, ARRAY)
    reader = CaseReader(Reader(kind, "PIR"), predicted.parent)
    one, other = (reader.read_seg(file)[0] for file in (label, str(predicted)))
    np.testing.assert_array_equal(one, other)
