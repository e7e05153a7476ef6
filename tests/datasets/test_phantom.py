"""The phantom: seeded, sound, and with left and right where DICOM has them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.datasets.check import check_dataset
from stunet.datasets.phantom import LABELS, ORGANS, make_case, make_phantom
from stunet.errors import DataError, UsageError
from stunet.images import file_orientation
from stunet.labels.names import sides
from stunet.orientation import left_right_axis
from tests.loops import for_each

SMALL = (20, 28, 28)


def test_a_phantom_is_a_sound_raw_dataset(tmp_path: Path) -> None:
    folder = make_phantom(tmp_path / "Dataset999_Phantom", cases=2, seed=0, held_out=1, shape=SMALL)
    check_dataset(folder)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.nii.gz"))
    assert files == [
        "imagesTr/phantom_000_0000.nii.gz",
        "imagesTr/phantom_001_0000.nii.gz",
        "imagesTs/phantom_002_0000.nii.gz",
        "labelsTr/phantom_000.nii.gz",
        "labelsTr/phantom_001.nii.gz",
        "labelsTs/phantom_002.nii.gz",
    ]
    assert json.loads((folder / "dataset.json").read_text())["labels"] == LABELS
    assert list(LABELS.values()) == list(range(len(LABELS)))


def test_the_same_seed_gives_the_same_bytes_and_each_case_is_another(tmp_path: Path) -> None:
    first = make_phantom(tmp_path / "a", cases=2, seed=3, shape=SMALL)
    second = make_phantom(tmp_path / "b", cases=1, seed=3, held_out=2, shape=SMALL)
    other = make_phantom(tmp_path / "c", cases=1, seed=4, shape=SMALL)
    name = "imagesTr/phantom_000_0000.nii.gz"
    assert _hash(first / name) == _hash(second / name) != _hash(other / name)
    assert _hash(first / "imagesTr/phantom_001_0000.nii.gz") == _hash(second / "imagesTs/phantom_001_0000.nii.gz")
    assert _hash(first / name) != _hash(first / "imagesTr/phantom_001_0000.nii.gz")


def test_left_organs_stand_on_the_patients_left_by_the_images_own_direction(tmp_path: Path) -> None:
    folder = make_phantom(tmp_path / "a", cases=1, seed=0)
    label = sitk.ReadImage(folder / "labelsTr/phantom_000.nii.gz")
    assert label.GetSpacing() == (1.5, 1.5, 2.0)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(label)
    x, z = ({name: shape.GetCentroid(value)[axis] for name, value in LABELS.items() if value} for axis in (0, 2))
    assert x["kidney_left"] > x["spine"] > x["kidney_right"]  # physical x is DICOM's: it grows to the left
    assert x["spleen"] > x["spine"] > x["liver"]
    assert min(z["liver"], z["spleen"]) > max(z["kidney_left"], z["kidney_right"])
    assert left_right_axis(file_orientation(folder / "imagesTr/phantom_000_0000.nii.gz", "SimpleITKIO")) == 2
    assert sides(LABELS).images == (("kidney_left", "kidney_right"),)


@for_each("index", range(3))
def test_organs_are_in_every_case_as_bright_as_the_table_says(index: int) -> None:
    image, label = make_case(np.random.default_rng((0, index)), (40, 56, 56))
    assert image.shape == label.shape == (40, 56, 56)
    assert image[:, 0, 0].mean() == pytest.approx(-1000, abs=10)
    for organ in ORGANS:
        voxels = image[label == LABELS[organ.name]]
        assert voxels.size > 400
        assert np.median(voxels) == pytest.approx(organ.hu, abs=40)  # 8 HU from case to case, and blurred edges


def test_a_phantom_overwrites_nothing_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="exists"):
        make_phantom(tmp_path / "a", cases=1, seed=0)
    with pytest.raises(UsageError, match="0 cases"):
        make_phantom(tmp_path / "b", cases=0, seed=0)
    with pytest.raises(UsageError, match="shape"):
        make_phantom(tmp_path / "b", cases=1, seed=0, shape=(4, 20, 20))
    with pytest.raises(TypeError):
        make_phantom(tmp_path / "b", cases=1, seed=0, shape=SMALL, spacing=("wide",) * 3)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
