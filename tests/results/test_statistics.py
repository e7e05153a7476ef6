"""Are volumes and intensities those that a mask per class gives, and are the files read back as they were?"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.errors import DataError
from stunet.results import statistics
from stunet.results.segmentation import Segmentation
from stunet.results.statistics import Intensity, Measurement, measure, read_statistics, write_statistics
from tests.loops import for_each

PLAIN = {"labels": {"background": 0, "liver": 1, "spleen": 2, "kidney": 7}}
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
SPACING = (2.5, 0.75, 0.5)
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 4, (9, 8, 7), dtype=np.uint8)
IMAGE = RANDOM.normal(1e6, 3, (2, 9, 8, 7)).astype(np.float32)  # far from 0: a naive variance is all rounding


def segmentation(labels: np.ndarray = LABELS, dataset: dict = PLAIN) -> Segmentation:
    return Segmentation.from_properties(labels, {"spacing": SPACING}, dataset)


@for_each("slab", [1, 100, 1 << 21])
def test_numbers_are_those_of_a_mask_per_class_in_double_precision(slab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SLAB_VOXELS", slab)
    found = measure(segmentation(), IMAGE, ["CT", "PET"])
    for name, value in (("liver", 1), ("spleen", 2)):
        mask = np.equal(LABELS, value)
        assert found[name].voxels == mask.sum()
        assert found[name].volume_mm3 == pytest.approx(mask.sum() * 2.5 * 0.75 * 0.5)
        for channel, image in zip(("CT", "PET"), IMAGE.astype(np.float64), strict=True):
            assert found[name].intensity[channel].mean == pytest.approx(image[mask].mean(), rel=1e-12)
            assert found[name].intensity[channel].std == pytest.approx(image[mask].std(), rel=1e-6)


def test_a_class_without_voxels_has_no_volume_and_no_intensity() -> None:
    assert measure(segmentation(), IMAGE, ["CT"])["kidney"] == Measurement(0, 0.0, False, None)


def test_a_region_is_measured_with_all_that_lies_in_it() -> None:
    found = measure(segmentation(dataset=REGIONS), IMAGE, ["CT"])
    mask = (LABELS == 1) | (LABELS == 2)
    assert found["whole"].voxels == mask.sum()
    assert found["whole"].intensity["CT"].mean == pytest.approx(IMAGE[0][mask].mean(dtype=np.float64))
    assert found["core"].voxels == (LABELS == 2).sum()


@for_each("axis", [0, 1, 2])
@for_each("end", [0, -1])
def test_what_touches_a_face_of_the_image_is_marked(axis: int, end: int) -> None:
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[2, 3, 3] = 1
    place: list[int] = [2, 2, 2]
    place[axis] = end
    labels[tuple(place)] = 2
    found = measure(segmentation(labels), np.zeros((1, 5, 6, 7), np.float32), ["CT"])
    assert (found["liver"].touches_border, found["spleen"].touches_border) == (False, True)


def test_a_single_slice_touches_the_border_only_in_its_plane() -> None:
    labels = np.zeros((1, 6, 7), np.uint8)
    labels[0, 3, 3] = 1
    assert not measure(segmentation(labels), np.zeros((1, 1, 6, 7), np.float32), ["CT"])["liver"].touches_border


def test_2d_images_have_voxels_and_no_volume() -> None:
    flat = Segmentation(LABELS[:1], {"liver": 1}, (999.0, 1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    found = measure(flat, IMAGE[:, :1], ["grey"])["liver"]
    assert found.voxels == (LABELS[:1] == 1).sum()
    assert found.volume_mm3 is None


def test_another_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"\(9, 8, 6\)"):
        measure(segmentation(), IMAGE[..., :6], ["CT"])


def test_both_files_hold_every_case_and_class(tmp_path: Path) -> None:
    cases = {"a": measure(segmentation(), IMAGE, ["CT", "PET"]), "b": measure(segmentation(LABELS * 0), IMAGE, ["CT"])}
    write_statistics(tmp_path, cases)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.csv", "statistics.json"]
    assert read_statistics(tmp_path / "statistics.json") == cases
    assert json.loads((tmp_path / "statistics.json").read_text())["b"]["liver"] == {
        "voxels": 0,
        "volume_mm3": 0.0,
        "touches_border": False,
        "intensity": None,
    }
    with (tmp_path / "statistics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"]) for row in rows][:4] == [
        ("a", "liver"), ("a", "spleen"), ("a", "kidney"), ("b", "liver"),
    ]  # fmt: skip
    assert float(rows[0]["PET_std"]) == pytest.approx(cases["a"]["liver"].intensity["PET"].std)
    assert rows[3]["CT_mean"] == ""


def test_files_that_are_no_statistics_are_named(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    for content in ("{", "[]", '{"a": {"liver": {"voxels": 1}}}', '{"a": 3}'):
        path.write_text(content)
        with pytest.raises(DataError, match="no statistics in"):
            read_statistics(path)


def test_a_real_ct_has_the_intensities_of_its_organs(data: Path) -> None:
    subject = data / "TotalSegmentator_v2" / "s0001"
    image = sitk.ReadImage(str(subject / "ct.nii.gz"))
    labels = np.zeros(image.GetSize()[::-1], np.uint8)
    names = ["liver", "spleen", "lung_lower_lobe_left", "aorta"]
    for value, name in enumerate(names, 1):
        labels[sitk.GetArrayViewFromImage(sitk.ReadImage(str(subject / "segmentations" / f"{name}.nii.gz"))) > 0] = (
            value
        )
    dataset = {"labels": {"background": 0, **{name: value for value, name in enumerate(names, 1)}}}
    properties = {"spacing": image.GetSpacing()[::-1]}
    found = measure(
        Segmentation.from_properties(labels, properties, dataset), sitk.GetArrayFromImage(image)[None], ["CT"]
    )
    liver = found["liver"]
    assert isinstance(liver.intensity["CT"], Intensity)
    assert 0 < liver.intensity["CT"].mean < 200
    present = [name for name in names if found[name].voxels]
    assert "liver" in present
    assert liver.volume_mm3 == pytest.approx(liver.voxels * np.prod(image.GetSpacing()))
