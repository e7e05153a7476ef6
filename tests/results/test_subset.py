"""Do the classes that are asked for stay, and do no others?"""

from typing import Any

import numpy as np
import pytest

from stunet.errors import UsageError
from stunet.labels import systems
from stunet.results.segmentation import class_names
from stunet.results.subset import choose_classes, subset_dataset, subset_table

V2 = {"labels": systems.load("totalsegmentator-v2").dataset_labels, "file_ending": ".nii.gz"}
REGIONS: dict[str, Any] = {
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    "regions_class_order": [1, 2, 3],
}


def kept(wanted: list[str], dataset: dict[str, Any] = V2) -> set[str]:
    names, _ = class_names(dataset)
    table = subset_table(wanted, dataset)
    assert table[0] == 0
    assert all(table[value] in (0, value) for value in names.values())
    return {name for name, value in names.items() if table[value]}


def test_only_the_classes_asked_for_stay_with_their_values() -> None:
    assert kept(["liver", "spleen"]) == {"liver", "spleen"}
    assert subset_table(["spleen"], V2).dtype == np.uint8
    assert len(subset_table(["spleen"], V2)) == 118


def test_other_names_and_names_of_several_classes_are_understood() -> None:
    assert kept(["Left Kidney", "bladder"]) == {"kidney_left", "urinary_bladder"}
    assert kept(["kidney"]) == {"kidney_left", "kidney_right"}
    assert len(kept(["lumbar vertebrae"])) == 5
    assert {"lung_upper_lobe_left", "lung_middle_lobe_right"} < kept(["lung"])
    assert choose_classes(["spleen", "kidney", "right kidney"], ["kidney_right", "kidney_left", "spleen"]) == [
        "kidney_right", "kidney_left", "spleen",
    ]  # fmt: skip


def test_a_class_that_is_not_there_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(UsageError, match="no class 'splen', 'tooth'") as caught:
        subset_table(["liver", "splen", "tooth"], V2)
    assert "spleen" in caught.value.hint


def test_a_label_map_loses_the_others_and_nothing_else() -> None:
    segmentation = np.random.default_rng(0).integers(0, 118, (8, 9, 10), dtype=np.uint8)
    result = systems.apply_lookup(subset_table(["liver", "spleen"], V2), segmentation)
    values = [V2["labels"]["liver"], V2["labels"]["spleen"]]
    np.testing.assert_array_equal(result, np.where(np.isin(segmentation, values), segmentation, 0))


def test_regions_are_what_a_model_of_only_these_would_write() -> None:
    assert list(subset_table(["whole"], REGIONS)) == [0, 1, 1, 1]
    assert list(subset_table(["core"], REGIONS)) == [0, 0, 2, 2]
    assert list(subset_table(["enhancing", "whole"], REGIONS)) == [0, 1, 1, 3]
    assert list(subset_table(list(class_names(REGIONS)[0]), REGIONS)) == [0, 1, 2, 3]


def test_the_dataset_json_of_a_subset_describes_it() -> None:
    assert class_names(subset_dataset(["kidney"], V2))[0] == {"kidney_right": 2, "kidney_left": 3}
    assert subset_dataset(["kidney"], V2)["file_ending"] == ".nii.gz"
    assert class_names(subset_dataset(["enhancing", "whole"], REGIONS)) == (
        {"whole": 1, "enhancing": 3},
        {"whole": (1, 2, 3), "enhancing": (3,)},
    )
    assert class_names(subset_dataset(["core"], REGIONS)) == ({"core": 2}, {"core": (2, 3)})
