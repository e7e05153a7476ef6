"""Can a model's classes be renumbered to every label system, and is every mistake in a file of one named?"""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.errors import DataError
from stunet.labels import systems
from tests.loops import for_each

# Classes that STU-Net's Table 4 scores, by dataset.
TABLE_4 = {
    "msd-liver": 1,
    "msd-pancreas": 1,
    "msd-spleen": 1,
    "btcv": 13,
    "btcv-cervix": 1,
    "abdomenct-1k": 4,
    "kits21": 1,
    "flare22": 13,
    "ct-org": 5,
    "amos": 12,
    "kipa22": 1,
    "verse20": 24,
    "word": 13,
    "segthor": 3,
}
V1_STUNET = systems.load("totalsegmentator-v1-stunet").dataset_labels
LIVER = {"background": 0, "liver": 1, "kidney_left": 2, "kidney_right": 3}


def write(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text)
    return str(path)


@for_each(("name", "count"), TABLE_4.items())
def test_all_classes_of_table_4_are_found_in_totalsegmentator(name: str, count: int) -> None:
    system = systems.load(name)
    lookup = system.from_model(V1_STUNET)
    assert len(system.classes) == count
    assert set(np.unique(lookup)) == set(system.dataset_labels.values())


def test_the_systems_are_those_of_table_4_and_totalsegmentator() -> None:
    own = {"totalsegmentator-v1", "totalsegmentator-v1-stunet", "totalsegmentator-v2", "totalsegmentator-mr"}
    assert set(systems.names()) == set(TABLE_4) | own
    assert [len(systems.load(name).classes) for name in sorted(own)] == [50, 104, 104, 117]
    for name in systems.names():
        assert systems.load(name).title
        assert systems.load(name).source


def test_the_order_of_stunet_is_that_of_the_released_weights(data: Path) -> None:
    order = json.loads((data / "stunet_official" / "label_orders.json").read_text())
    assert {name: int(number) for number, name in order.items()} == V1_STUNET


def test_both_orders_of_version_1_have_the_same_classes() -> None:
    official = systems.load("totalsegmentator-v1")
    lookup = official.from_model(V1_STUNET)
    assert sorted(lookup) == list(range(105))
    assert [lookup[V1_STUNET[name]] for name in ("spleen", "urinary_bladder", "vertebrae_L5")] == [1, 104, 18]


def test_several_classes_of_the_model_become_one_and_the_rest_background() -> None:
    lookup = systems.load("ct-org").from_model(V1_STUNET)
    assert {name for name, value in V1_STUNET.items() if lookup[value] == 3} == {
        name for name in V1_STUNET if name.startswith("lung_")
    }
    assert lookup[V1_STUNET["kidney_left"]] == lookup[V1_STUNET["kidney_right"]] == 4
    assert lookup[V1_STUNET["spleen"]] == lookup[0] == 0
    assert lookup.dtype == np.uint8


def test_sides_of_flare_and_amos_are_not_swapped() -> None:
    for name, left, right in (("flare22", 13, 2), ("amos", 3, 2), ("btcv", 3, 2), ("word", 3, 4)):
        lookup = systems.load(name).from_model(V1_STUNET)
        assert (lookup[V1_STUNET["kidney_left"]], lookup[V1_STUNET["kidney_right"]]) == (left, right)


def test_names_of_the_system_itself_come_before_those_it_is_made_from() -> None:
    word = systems.load("WORD")
    lookup = word.from_model(word.dataset_labels)
    assert all(lookup[value] == value for value in word.dataset_labels.values())
    assert word.from_model(V1_STUNET)[V1_STUNET["femur_left"]] == 15


def test_an_own_file_names_labels_parts_and_what_counts_as_background(tmp_path: Path) -> None:
    text = '[classes]\nboth = { labels = [300, 7], from = ["liver", "kidney"] }\n[other]\nrest = 2\n'
    system = systems.load(write(tmp_path, text))
    assert list(system.from_model(LIVER)) == [0, 300, 300, 300]
    assert system.from_model(LIVER).dtype == np.uint16
    assert system.known == {0, 2, 7, 300}
    assert system.dataset_labels == {"background": 0, "both": 300}


@for_each(
    ("text", "words"),
    [
        ("classes = [", "not valid TOML"),
        ("[classes]\nliver = 1\nliver = 2", "not valid TOML"),
        ("", "missing 'classes'"),
        ("[classes]", "classes: expected a table that is not empty"),
        ("[class]\nliver = 1", "unknown key 'class'; did you mean 'classes'"),
        ("[classes]\nliver = { label = [1] }", "classes.liver: unknown key 'label'; did you mean 'labels'"),
        ("[classes]\nliver = { labels = [] }", "classes.liver.labels: expected a list that is not empty"),
        ("[classes]\nliver = { labels = 1 }", "classes.liver.labels: expected a list that is not empty"),
        ("[classes]\nliver = 0", "classes.liver: expected a label or a table, got 0"),
        ("[classes]\nliver = true", "classes.liver: expected a label or a table, got True"),
        ("[classes]\nliver = 1.5", "classes.liver: expected a label or a table, got 1.5"),
        ("[classes]\nliver = 70000", "classes.liver: expected a label or a table, got 70000"),
        ("[classes]\nliver = 1\n[other]\nspleen = '2'", "other.spleen: expected an integer from 1 to 65535, got '2'"),
        ("[classes]\nliver = { labels = [1], from = [] }", "classes.liver.from: expected a list that is not empty"),
        ("[classes]\nliver = { labels = [1], from = ['', 'x'] }", "classes.liver.from[0]: expected text, got ''"),
        ("[classes]\nliver = { labels = [1, 1] }", "label 1 is 'liver' and 'liver'"),
        ("[classes]\nliver = 1\nspleen = { labels = [2, 1] }", "label 1 is 'liver' and 'spleen'"),
        ("[classes]\nliver = 1\n[other]\nspleen = 1", "label 1 is 'liver' and 'spleen'"),
        ("[classes]\nbackground = 1", "'background' is not a class"),
    ],
)
def test_every_mistake_in_a_file_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        systems.load(write(tmp_path, text))
    assert words in caught.value.message
    assert caught.value.hint


def test_unknown_names_and_missing_files_are_named_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no label system 'amoss'; did you mean 'amos'"):
        systems.load("amoss")
    with pytest.raises(DataError, match=r"none\.toml"):
        systems.load(str(tmp_path / "none.toml"))


def test_all_classes_that_the_model_lacks_are_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"the model has no 'spleen', 'pancreas'$") as caught:
        systems.load("abdomenct-1k").from_model(LIVER)
    assert "nearest to 'spleen' it has 'liver', 'kidney_left', 'kidney_right'; name a class" in caught.value.hint
    with pytest.raises(DataError) as caught:
        systems.load("abdomenct-1k").from_model({**LIVER, "splen": 4})
    assert "nearest to 'spleen' it has 'splen', 'liver', 'kidney_left'; name a class" in caught.value.hint


def test_a_class_of_the_model_belongs_to_one_class_only(tmp_path: Path) -> None:
    system = systems.load(write(tmp_path, '[classes]\nkidney = 1\n"left kidney" = 2'))
    with pytest.raises(DataError, match="'kidney' and 'left kidney' are both 'kidney_left'"):
        system.from_model(LIVER)


@for_each("value", [[1, 2], "1", 0, -1, 10**9])
def test_a_model_of_regions_or_bad_labels_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="'liver' of the model is"):
        systems.load("msd-liver").from_model({"background": 0, "liver": value})


def test_the_ignore_label_of_a_model_is_no_class() -> None:
    lookup = systems.load("msd-liver").from_model({"background": 0, "spleen": 1, "liver": 2, "ignore": 3})
    assert list(lookup) == [0, 0, 1]


@for_each("shape", [(), (7,), (3, 4), (3, 4, 5), (2, 3, 4, 5), (0, 4, 5)])
def test_a_look_up_equals_numpys_for_every_shape(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    lookup = np.array([0, 9, 300, 1], np.uint16)
    result = systems.apply_lookup(lookup, array)
    np.testing.assert_array_equal(result, lookup[array])
    assert result.dtype == np.uint16


@for_each("value", [-1, 3])
def test_a_value_that_the_model_does_not_have_is_an_error(value: int) -> None:
    with pytest.raises(DataError, match=f"has value {value}, the model's labels are 0 to 2"):
        systems.apply_lookup(np.zeros(3, np.uint8), np.array([[0, value, 1]], np.int16))


def test_real_masks_and_segmentations_have_the_classes_of_their_system(data: Path) -> None:
    v2, mr = (systems.load(f"totalsegmentator-{version}") for version in ("v2", "mr"))
    masks = {file.name.removesuffix(".nii.gz") for file in (data / "TotalSegmentator_v2/s0001/segmentations").iterdir()}
    assert masks == set(v2.dataset_labels) - {"background"}
    ct = sitk.GetArrayFromImage(sitk.ReadImage(str(data / "ct/abdomen_dicom_reference_seg.nii.gz")))
    assert set(np.unique(ct)) <= v2.known
    mr_seg = sitk.ReadImage(str(data / "mr/abdomen_mr_seg.nii.gz"))
    assert set(np.unique(sitk.GetArrayFromImage(mr_seg))) <= mr.known
    # What the ids mean: patient coordinates run to the left, to the back and up.
    places = centres(mr_seg)
    of = {name: places[value] for name, value in mr.dataset_labels.items() if value in places}
    assert of["kidney_left"][0] > of["spinal_cord"][0] > of["kidney_right"][0]
    assert of["spleen"][0] > of["liver"][0]
    assert of["autochthon_left"][0] > of["autochthon_right"][0]
    assert min(of["autochthon_left"][1], of["autochthon_right"][1]) > of["iliopsoas_left"][1] > of["aorta"][1]


def centres(image: sitk.Image) -> dict[int, tuple[float, ...]]:
    """Centre of each label in patient coordinates, in mm."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(image)
    return {label: shape.GetCentroid(label) for label in shape.GetLabels()}


def test_a_real_segmentation_becomes_one_of_another_dataset(data: Path) -> None:
    image = sitk.ReadImage(str(data / "mr/abdomen_mr_seg.nii.gz"))
    array = sitk.GetArrayFromImage(image)
    model = systems.load("totalsegmentator-mr").dataset_labels
    mapped = systems.apply_lookup(systems.load("abdomenct-1k").from_model(model), array)
    kidneys = np.isin(array, [model["kidney_left"], model["kidney_right"]])
    assert kidneys.any()
    np.testing.assert_array_equal(mapped == 2, kidneys)
    np.testing.assert_array_equal(mapped == 4, array == model["pancreas"])
    assert set(np.unique(mapped)) == {0, 1, 2, 3, 4}
