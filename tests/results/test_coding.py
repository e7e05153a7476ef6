"""Are classes coded as what they are, and is nothing coded as what it is not?"""

import pytest

from stunet.labels import systems

pytest.importorskip("pydicom")
from stunet.labels.names import canonical
from stunet.results.coding import _KEYWORDS, _OTHERS, coding
from tests.loops import for_each

GENERAL = "91723000"  # anatomical structure


@for_each(
    ("name", "meaning", "side"),
    [
        ("liver", "Liver", None),
        ("LK", "Kidney", "Left"),
        ("right adrenal gland", "Adrenal gland", "Right"),
        ("IVC", "Inferior vena cava", None),
        ("L5", "L5 vertebra", None),
        ("rib_left_7", "Rib", "Left"),
        ("LV", "Left ventricle", None),
        ("left lower lobe", "Lower lobe of lung", "Left"),
        ("small bowel", "Small intestine", None),
        ("autochthon_right", "Deep muscle of back", "Right"),
    ],
)
def test_structures_have_the_codes_of_dicoms_list(name: str, meaning: str, side: str | None) -> None:
    found = coding(name)
    assert found.type.meaning == meaning
    assert (found.side.meaning if found.side else None) == side
    assert found.category.value == GENERAL
    assert found.type.scheme_designator == "SCT"


@for_each(
    ("name", "kind", "region"),
    [("liver tumour", "Neoplasm", "Liver"), ("kidney_cyst_left", "Cyst", "Kidney"), ("tumor", "Neoplasm", None)],
)
def test_lesions_are_abnormal_and_lie_somewhere(name: str, kind: str, region: str | None) -> None:
    found = coding(name)
    assert found.category.value == "49755003"
    assert found.type.meaning == kind
    assert (found.region.meaning if found.region else None) == region


@for_each("name", ["Anterior", "whole", "something else", "label 3", "7", "left"])
def test_what_is_not_in_the_list_is_a_structure_and_no_more(name: str) -> None:
    assert coding(name).type.value == GENERAL


def test_all_classes_of_totalsegmentator_are_known() -> None:
    names = [entry.name for entry in systems.load("totalsegmentator-v2").classes]
    assert [name for name in names if coding(name).type.value == GENERAL] == []


def test_the_tables_are_found_by_canonical_names() -> None:
    assert [name for name in (*_KEYWORDS, *_OTHERS) if canonical(name) != name] == []
