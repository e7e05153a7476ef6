"""What the page gets of a case: volumes on one grid at the right place, Dice, names and notes."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from stunet.errors import DataError
from stunet.evaluation.metrics import compare
from stunet.results.nifti_labels import write_nifti
from stunet.results.segmentation import Segmentation
from stunet.viewer.cases import ViewCase, case_of_files, cases_of_dataset, cases_of_folders
from stunet.viewer.classes import Names, names_in, names_of
from stunet.viewer.loading import LoadedCase, Row, load
from stunet.viewer.page import single_page
from tests.loops import for_each
from tests.viewer.files import CLASSES, SHAPE, image_of, intensities, labels, value_at, write

DATASET = {"labels": {"background": 0, **CLASSES}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
NAMES = names_of(DATASET)


def rows(case: LoadedCase) -> dict[str, Row]:
    return {row.name: row for row in case.rows}


def tags(page: str) -> list[str]:
    """The elements that a browser makes of a page."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append(tag)  # type: ignore[method-assign]
    parser.feed(page)
    return found


def served(case: LoadedCase, what: str) -> Any:
    return nibabel.Nifti1Image.from_bytes(case.nifti(what))


@for_each("degrees", [0.0, 17.0])
@for_each("orientation", ["LPS", "RAS", "SAR", "PIL"])
@for_each("ending", [".nii.gz", ".nrrd", ".mha"])
def test_everything_lies_where_itk_sees_it(tmp_path: Path, degrees: float, orientation: str, ending: str) -> None:
    if degrees and orientation != "LPS":
        degrees *= -1
    paths = [
        write(image_of(array, degrees, orientation), tmp_path / f"{name}{ending}")
        for name, array in (("image", intensities()), ("ours", labels(1)), ("theirs", labels()))
    ]
    case = load(ViewCase("a", (paths[0],), paths[1], paths[2]), NAMES)
    assert case.comparable
    assert case.notes == ()
    for what, path in zip(("image0", "prediction", "reference"), paths, strict=True):
        volume = served(case, what)
        values = np.asarray(volume.dataobj)
        for place in np.argwhere(values > -1000)[::97]:
            there = value_at(path, (volume.affine @ (*place, 1))[:3])
            assert values[tuple(place)] == there
    for name, row in rows(case).items():
        assert row.at is not None
        assert value_at(paths[1], row.at) == CLASSES[name]


def test_numbers_are_those_of_stunet_evaluate(tmp_path: Path) -> None:
    ours, theirs = (write(image_of(labels(shift)), tmp_path / f"{shift}.nii.gz") for shift in (1, 0))
    found = rows(load(ViewCase("a", (), ours, theirs), NAMES))
    names = {name: (value,) for name, value in CLASSES.items()}
    expected = compare(labels(), labels(1), names, (2.5, 1.0, 1.5))
    assert set(found) == set(CLASSES)
    for name, row in found.items():
        assert row.dice == pytest.approx(expected[name]["Dice"])
        assert (row.predicted, row.referenced) == (expected[name]["n_pred"], expected[name]["n_ref"])
    described = load(ViewCase("a", (), ours, theirs), NAMES).described()
    for line in described["classes"]:
        assert line["predicted_ml"] == pytest.approx(expected[line["name"]]["pred_ml"])
    assert described["dice"] == pytest.approx(np.mean([expected[name]["Dice"] for name in CLASSES]), abs=1e-6)


def test_ignored_voxels_count_nowhere_and_regions_are_unions(tmp_path: Path) -> None:
    reference, prediction = labels(), labels(1)
    reference[:3] = 9
    paths = [write(image_of(array), tmp_path / name) for array, name in ((prediction, "p.nii"), (reference, "r.nii"))]
    ignoring = names_of({"labels": {"background": 0, **CLASSES, "ignore": 9}})
    found = rows(load(ViewCase("a", (), *paths), ignoring))
    expected = compare(reference, prediction, {"liver": (1,)}, (2.5, 1.0, 1.5), ignore=9)["liver"]
    assert found["liver"].dice == pytest.approx(expected["Dice"])
    assert found["ignored"].ignored
    assert found["ignored"].dice is None
    regions = {"labels": {"background": 0, "all": [1, 2, 3], "core": [3]}, "regions_class_order": [1, 3]}
    case = load(
        ViewCase("a", (), write(image_of(labels(1)), paths[0]), write(image_of(labels()), paths[1])), names_of(regions)
    )
    union = compare(labels(), labels(1), {"all": (1, 2, 3), "core": (3,)}, (2.5, 1.0, 1.5))
    found = {row.name: row for row in case.rows if row.parts}
    assert {name: row.dice for name, row in found.items()} == pytest.approx({n: v["Dice"] for n, v in union.items()})
    assert [row.name for row in case.rows if row.index] == ["all without core", "label 2", "core"]
    assert case.mean_dice == pytest.approx(np.mean([values["Dice"] for values in union.values()]))


def test_an_image_on_another_grid_is_shown_where_it_belongs(tmp_path: Path) -> None:
    ours = write(image_of(labels()), tmp_path / "ours.nii.gz")
    fine = sitk.Resample(image_of(intensities()), [32, 28, 24], sitk.Transform(), sitk.sitkLinear,
                         image_of(labels()).GetOrigin(), [0.75, 0.5, 1.25])  # fmt: skip
    case = load(ViewCase("a", (write(fine, tmp_path / "fine.nii.gz"),), ours), NAMES)
    assert "the image lies on another grid (32x28x24 voxels, the segmentation 16x14x12)" in case.notes[0]
    inner = (slice(1, -2),) * 3
    np.testing.assert_allclose(case.image.array[0][inner], intensities()[:, ::-1, ::-1][inner], atol=1e-3)
    far = image_of(intensities())
    far.SetOrigin((500.0, 500.0, 500.0))
    case = load(ViewCase("a", (write(far, tmp_path / "far.nii.gz"),), ours), NAMES)
    assert "do they belong together?" in case.notes[1]


def test_a_reference_on_another_grid_is_shown_without_a_dice(tmp_path: Path) -> None:
    ours = write(image_of(labels()), tmp_path / "ours.nii.gz")
    theirs = write(image_of(labels()[:, :, :-2]), tmp_path / "theirs.nii.gz")
    case = load(ViewCase("a", (), ours, theirs), NAMES)
    assert not case.comparable
    assert np.isnan(case.mean_dice)
    assert case.reference is not None
    np.testing.assert_array_equal(case.reference.array, case.prediction.array)  # it is 0 where the file ends
    assert any("the reference lies on another grid (14x14x12" in note for note in case.notes)
    assert any("no image" in note for note in case.notes)


def test_channels_come_from_several_files_or_from_one(tmp_path: Path) -> None:
    ours = write(image_of(labels()), tmp_path / "ours.nii.gz")
    one, two = intensities(0), (intensities(1) * 0.5).astype(np.float32)
    several = (write(image_of(one), tmp_path / "a_0000.nii"), write(image_of(two), tmp_path / "a_0001.nii"))
    four = sitk.JoinSeries([sitk.Cast(image_of(array), sitk.sitkFloat32) for array in (one, two)])
    vector = sitk.Compose([sitk.Cast(image_of(array), sitk.sitkFloat32) for array in (one, two)])
    for images in (several, (write(four, tmp_path / "four.nii"),), (write(vector, tmp_path / "vector.nrrd"),)):
        case = load(ViewCase("a", images, ours, None, ("T1", "FLAIR")), NAMES)
        assert case.channels == ("T1", "FLAIR")
        np.testing.assert_allclose(np.asarray(served(case, "image0").dataobj).T, one[:, ::-1, ::-1])
        np.testing.assert_allclose(np.asarray(served(case, "image1").dataobj).T, two[:, ::-1, ::-1])
    missing = load(ViewCase("a", (several[0], tmp_path / "a_0001.nrrd"), ours), NAMES)
    assert missing.notes == ("the image 'a_0001.nrrd' is missing",)
    assert len(missing.image.array) == 1


def test_labels_of_any_size_and_type_become_positions_in_the_list(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.int32)
    array.ravel()[:400] = np.repeat(np.arange(1, 401) * 100, 1)
    many = {"labels": {"background": 0, **{f"part {i}": i * 100 for i in range(1, 301)}}}
    case = load(ViewCase("a", (), write(image_of(array), tmp_path / "many.nii")), names_of(many))
    assert served(case, "prediction").get_data_dtype() == np.uint16
    assert served(case, "prediction").header["intent_code"] == 1002
    assert [row.name for row in case.rows][299:302] == ["part 300", "label 30100", "label 30200"]
    assert case.notes[1].startswith("dataset.json does not list these label values: 30100, 30200")
    rounded = write(sitk.Cast(image_of(labels()), sitk.sitkFloat64), tmp_path / "float.nii")
    np.testing.assert_array_equal(
        load(ViewCase("a", (), rounded), NAMES).prediction.array,
        labels()[:, ::-1, ::-1],
    )


@for_each(
    ("array", "says"),
    [
        (intensities(), "its values go from -"),
        (labels() * 0.5, "not all of them integers"),
        (np.full(SHAPE, 70000, np.int32), "70000"),
        (np.arange(8000, dtype=np.int32).reshape(20, 20, 20) * 8, "more than 2000 classes"),
    ],
)
def test_images_given_as_segmentations_are_refused_with_the_order_of_arguments(
    array: np.ndarray, says: str, tmp_path: Path
) -> None:
    path = write(image_of(array), tmp_path / "x.nii")
    with pytest.raises(DataError, match=says) as refused:
        load(ViewCase("a", (), path), Names())
    assert "IMAGE SEGMENTATION" in refused.value.hint


def test_names_come_with_the_file_if_there_is_no_dataset_json(tmp_path: Path) -> None:
    odd = {"labels": {"background": 0, "<script>": 1, "a=\nb": 2, 'ü "&': 3}}
    made = Segmentation.from_properties(labels(), {"spacing": (1, 1, 1)}, odd)
    write_nifti(made, tmp_path / "x.nii.gz")
    assert names_in([tmp_path / "x.nii.gz"]).classes == {1: "<script>", 2: "a= b", 3: 'ü "&'}
    totalsegmentator = (
        '<CaretExtension><LabelTable><Label Key="1" Red="1"><![CDATA[a & b]]></Label>'
        '<Label Key="2"><![CDATA[spleen]]></Label></LabelTable></CaretExtension>'
    )
    made = nibabel.Nifti1Image(labels().T, np.eye(4))
    made.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, totalsegmentator.encode()))
    nibabel.save(made, tmp_path / "total.nii.gz")
    assert names_in([tmp_path / "total.nii.gz"]).classes == {1: "a & b", 2: "spleen"}
    image = image_of(labels())
    for key, text in (("Segment0_LabelValue", "1"), ("Segment0_Name", "liver")):
        image.SetMetaData(key, text)
    assert names_in([write(image, tmp_path / "x.seg.nrrd")]).classes == {1: "liver"}
    assert names_in([write(image, tmp_path / "x.mha")]).classes == {}


def test_files_without_orientation_are_shown_where_their_partner_is(tmp_path: Path) -> None:
    image = write(image_of(intensities(), 17, "SAR"), tmp_path / "image.nii")
    array = sitk.GetArrayFromImage(image_of(labels(), 17, "SAR"))
    bare = nibabel.Nifti1Image(array.T, None)
    bare.header.set_zooms((2.5, 1.0, 1.5))
    nibabel.save(bare, tmp_path / "bare.nii")
    case = load(ViewCase("a", (image,), tmp_path / "bare.nii"), NAMES)
    assert case.notes == ()
    for row in case.rows:
        assert row.at is not None
        placed = write(image_of(labels(), 17, "SAR"), tmp_path / "placed.nii")
        assert value_at(placed, row.at) == row.value


def test_a_page_for_sending_is_resampled_if_it_is_too_large(tmp_path: Path) -> None:
    paths = [
        write(image_of(array, 17), tmp_path / name)
        for name, array in (("image.nii", intensities()), ("ours.nii", labels(1)), ("theirs.nii", labels()))
    ]
    whole = load(ViewCase("a", (paths[0],), *paths[1:]), NAMES)
    small = load(ViewCase("a", (paths[0],), *paths[1:]), NAMES, most_voxels=1000)
    assert small.prediction.array.size <= 1000
    assert small.rows == whole.rows
    assert small.described()["classes"] == whole.described()["classes"]
    assert "voxels instead of 16x14x12" in small.notes[0]
    for corner in ((-0.5,) * 3, tuple(n - 0.5 for n in whole.prediction.shape[::-1])):
        there = tuple(-0.5 if c < 0 else n - 0.5 for c, n in zip(corner, small.prediction.shape[::-1], strict=True))
        np.testing.assert_allclose(whole.prediction.affine @ (*corner, 1), small.prediction.affine @ (*there, 1))
    name = "</script><script>alert(1)</script><!--"
    hostile = load(ViewCase(name, (paths[0],), *paths[1:]), names_of({"labels": {"background": 0, name: 1}}))
    page = single_page(hostile).decode()
    assert name not in page
    data = page.split('id="embedded">')[1].split("</script>")[0]
    assert json.loads(data)["detail"]["classes"][0]["name"] == name
    assert tags(page).count("script") == 3  # the data, NiiVue, the page's own
    assert "Redistribution and use in source and binary forms" in page


def test_cases_are_matched_by_name_whatever_the_format(tmp_path: Path) -> None:
    raw = tmp_path / "Dataset998_X"
    for name in ("one", "two"):
        write(image_of(intensities()), raw / "imagesTr" / f"{name}_0000.nii.gz")
        write(image_of(labels()), raw / "labelsTr" / f"{name}.nii.gz")
    write(image_of(intensities()), raw / "imagesTs" / "three_0000.nii.gz")
    for name in ("one.nii.gz", "two.nrrd", "three.nii.gz", "four.nii.gz"):
        write(image_of(labels(1)), tmp_path / "out" / name)
    found = {case.name: case for case in cases_of_dataset(raw, DATASET, tmp_path / "out", None)}
    assert list(found) == ["four", "one", "three", "two"]
    assert found["two"].images == (raw / "imagesTr" / "two_0000.nii.gz",)
    assert found["two"].reference == raw / "labelsTr" / "two.nii.gz"
    assert found["three"].images == (raw / "imagesTs" / "three_0000.nii.gz",)
    assert (found["three"].reference, found["four"].images) == (None, ())
    assert [case.prediction.parent.name for case in cases_of_dataset(raw, DATASET, None, None)] == ["labelsTr"] * 2
    folders = cases_of_folders(raw / "imagesTr", tmp_path / "out", raw / "labelsTr", ".nii.gz")
    assert [(case.name, len(case.images), case.reference is None) for case in folders] == [
        ("four", 0, True), ("one", 1, False), ("three", 0, True), ("two", 1, False),
    ]  # fmt: skip
    assert case_of_files((), tmp_path / "out" / "two.nrrd", None).name == "two"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="which is empty"):
        cases_of_folders(None, tmp_path / "empty", None, ".nii.gz")


def test_a_wide_picture_is_made_as_small_as_browsers_need(tmp_path: Path) -> None:
    array = np.zeros((30, 4000), np.uint8)
    array[10:20, 1000:3000] = 1
    path = tmp_path / "x.png"
    sitk.WriteImage(sitk.GetImageFromArray(array), path)
    case = load(ViewCase("a", (), path), NAMES)
    assert case.prediction.shape == (1, 15, 2048)
    assert "2048x15x1 voxels instead of 4000x30x1" in case.notes[1]
    assert rows(case)["liver"].predicted == 10 * 2000
