"""Annotations: partitions and regions per case, the file, and what is refused."""

import json

import numpy as np
import pytest

from stunet.annotations import FILE, Annotations, Case, Source, load_annotations
from stunet.errors import DataError

KIDNEYS = Annotations(
    leaves=("kidney_left", "kidney_right", "liver"),
    sets={"kidney": ("kidney_left", "kidney_right")},
    sources={"ts": Source(("kidney_left", "kidney_right", "liver")), "kits": Source(("kidney",), 0.5)},
    cases={
        "ts_1": Case("ts", ("kidney_left", "kidney_right", "liver")),
        "ts_2": Case("ts", ("liver",)),
        "kits_1": Case("kits", ("kidney",)),
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
        "ts_2": [False, False, True, False],
        "kits_1": [False, False, False, True],
    }.items():
        np.testing.assert_array_equal(KIDNEYS.regions(case)[0], expected)
    inside = KIDNEYS.regions("ts_1")[1]
    assert inside[3].tolist() == [False, True, True, False, False]  # kidney: the values of both sides
    assert KIDNEYS.regions("kits_1")[1][3].tolist() == [False, False, False, False, True]


def test_what_is_saved_is_loaded(tmp_path):
    KIDNEYS.save(tmp_path)
    assert load_annotations(tmp_path) == KIDNEYS


def test_a_dataset_without_the_file_annotates_everything(tmp_path):
    assert load_annotations(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "relu"}, "head is 'relu', not one of softmax, sigmoid"),
        ({"leaves": ["liver", "liver"]}, "a name occurs twice among leaves and sets"),
        ({"sets": {"kidney": ["kidney_lft"]}}, "'kidney' has the leaf 'kidney_lft'; did you mean 'kidney_left'"),
        ({"cases": {"a": {"source": "tz"}}}, "is no list of annotations (KeyError: 'tz')"),
        ({"cases": {"a": {"source": "ts", "labels": ["livr"]}}}, "case 'a': no label 'livr'; did you mean 'liver'"),
        (
            {"cases": {"a": {"source": "ts", "labels": ["kidney", "kidney_left"]}}},
            "case 'a': 'kidney' and 'kidney_left' are both 'kidney_left'",
        ),
        ({"sources": {"ts": {"labels": [], "weight": 0}, "kits": {"labels": []}}}, "source 'ts' has weight 0"),
        ({"leaves": 3}, "is no list of annotations (TypeError"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, message):
    KIDNEYS.save(tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**content, **change}))
    with pytest.raises(DataError) as error:
        load_annotations(tmp_path)
    assert message in error.value.message
