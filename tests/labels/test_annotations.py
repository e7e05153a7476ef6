"""Annotations: partitions and regions per case, the file, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from stunet.errors import DataError
from stunet.labels.annotations import (
    FILE,
    AnnotatedCase,
    Annotations,
    CaseSource,
    complete_annotations,
    load_annotations,
)
from tests.loops import for_each

KIDNEYS = Annotations(
    leaves=("kidney_left", "kidney_right", "liver"),
    sets={"kidney": ("kidney_left", "kidney_right")},
    sources={"ts": CaseSource(("kidney_left", "kidney_right", "liver")), "kits": CaseSource(("kidney",), 0.5)},
    cases={
        "ts_1": AnnotatedCase("ts", ("kidney_left", "kidney_right", "liver")),
        "ts_2": AnnotatedCase("ts", ("liver",)),
        "kits_1": AnnotatedCase("kits", ("kidney",)),
    },
)


def test_complete_labels_are_the_partition_into_single_classes():
    assert KIDNEYS.groups("ts_1").tolist() == [0, 1, 2, 3]


def test_what_a_case_does_not_annotate_belongs_to_its_background():
    assert KIDNEYS.groups("ts_2").tolist() == [0, 0, 0, 3]


def test_a_coarse_label_is_one_group_of_several_leaves():
    assert KIDNEYS.groups("kits_1").tolist() == [0, 4, 4, 0]


def test_an_output_of_a_sigmoid_head_is_annotated_where_labels_make_it_up():
    for case, expected in {
        "ts_1": [True, True, True, True],
        "ts_2": [False, False, False, True],
        "kits_1": [True, False, False, False],
    }.items():
        np.testing.assert_array_equal(KIDNEYS.regions(case)[0], expected)
    inside = KIDNEYS.regions("ts_1")[1]
    assert inside[0].tolist() == [False, True, True, False, False]  # kidney: the values of both sides
    assert KIDNEYS.regions("kits_1")[1][0].tolist() == [False, False, False, False, True]


def test_a_softmax_model_has_the_leaves_and_an_ignore_label_after_them():
    given = {"labels": {**KIDNEYS.values, "ignore": 5}, "file_ending": ".nii.gz"}
    assert KIDNEYS.model_description(given) == {
        "labels": {"background": 0, "kidney_left": 1, "kidney_right": 2, "liver": 3, "ignore": 4},
        "file_ending": ".nii.gz",
    }


def test_a_sigmoid_model_has_regions_that_nnunet_paints_from_the_largest_on():
    nested = replace(KIDNEYS, head="sigmoid", sets={**KIDNEYS.sets, "organs": KIDNEYS.leaves})
    found = nested.model_description({"labels": {**nested.values, "ignore": 6}})
    assert found["labels"] == {
        "background": 0,
        "organs": [1, 2, 3, 4, 5],
        "kidney": [1, 2, 4],
        "kidney_left": [1, 1],
        "kidney_right": [2, 2],
        "liver": [3, 3],
        "ignore": 6,
    }
    assert found["regions_class_order"] == [5, 4, 1, 2, 3]


def test_a_model_of_single_sigmoids_is_one_of_regions():
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    single = replace(KIDNEYS, head="sigmoid", sets={})
    found = single.model_description({"labels": {"background": 0}})
    manager = LabelManager(found["labels"], found["regions_class_order"])
    assert manager.has_regions
    assert manager.num_segmentation_heads == 3
    assert manager.all_labels == [0, 1, 2, 3]


def test_another_head_takes_the_labels_by_name_and_keeps_the_values_in_files():
    head = ("liver", "left kidney", "right kidney", "spleen")
    onto = replace(KIDNEYS, leaves=(*KIDNEYS.leaves, "tumor")).map_to_head(head)
    assert onto.leaves == (*head, "tumor")
    assert onto.sets == {"kidney": ("left kidney", "right kidney")}
    assert onto.values == {"background": 0, "left kidney": 1, "right kidney": 2, "liver": 3, "tumor": 4, "kidney": 5}
    assert onto.groups("ts_1").tolist() == [0, 3, 1, 2, 0, 0]
    assert onto.groups("kits_1").tolist() == [0, 0, 5, 5, 0, 0]


def test_the_classes_of_an_ordinary_dataset_are_all_annotated():
    found = complete_annotations(
        {"name": "x", "labels": {"background": 0, "left kidney": 2, "kidney": 1, "ignore": 3}}, ["a"]
    )
    assert found.groups("a").tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="regions"):
        complete_annotations({"labels": {"background": 0, "organs": [1, 2]}}, [])


def test_labels_that_share_a_class_of_the_head_are_refused():
    found = complete_annotations({"labels": {"background": 0, "kidney": 1, "left kidney": 2}}, [])
    with pytest.raises(DataError, match="are both 'kidney_left'"):
        found.map_to_head(("kidney_left", "kidney_right"))


def test_what_is_saved_is_loaded(tmp_path):
    KIDNEYS.save(tmp_path)
    assert load_annotations(tmp_path) == KIDNEYS


def test_a_dataset_without_the_file_annotates_everything(tmp_path):
    assert load_annotations(tmp_path) is None


@for_each(
    ("change", "message"),
    [
        ({"head": "relu"}, "head is 'relu', not one of softmax, sigmoid"),
        ({"leaves": ["liver", "liver"]}, "a name occurs twice among leaves and sets"),
        ({"sets": {"kidney": ["kidney_lft"]}}, "'kidney' has the leaf 'kidney_lft'; did you mean 'kidney_left'"),
        ({"cases": {"a": {"source": "tz"}}}, "case 'a' is of no source 'tz'; did you mean 'ts'"),
        ({"cases": {"a": {"source": "ts", "labels": ["livr"]}}}, "case 'a': no label 'livr'; did you mean 'liver'"),
        (
            {"cases": {"a": {"source": "ts", "labels": ["kidney", "kidney_left"]}}},
            "case 'a': 'kidney' and 'kidney_left' are both 'kidney_left'",
        ),
        (
            {"sources": {"ts": {"labels": [], "weight": 0}, "kits": {"labels": []}}},
            "sources.ts.weight: expected a number",
        ),
        ({"leaves": 3}, "leaves: expected a list that is not empty, got 3"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, message):
    KIDNEYS.save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**content, **change}))
    with pytest.raises(DataError) as error:
        load_annotations(tmp_path)
    assert message in error.value.message


def test_two_labels_that_are_one_class_of_a_head_are_refused():
    both = ("left kidney", "kidney_left")
    sources = {name: CaseSource((name,)) for name in both}
    found = Annotations(leaves=both, sets={}, sources=sources, cases={})
    with pytest.raises(DataError, match="'left kidney' and 'kidney_left' are one class"):
        found.map_to_head(("kidney_left", "kidney_right"))


def test_a_set_that_is_called_as_a_class_of_the_head_is_refused():
    with pytest.raises(DataError, match="a name occurs twice among leaves and sets"):
        KIDNEYS.map_to_head(("kidney", "liver"))
