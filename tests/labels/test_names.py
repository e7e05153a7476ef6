"""Do names of the same class find each other, and no others?"""

import tomllib
from importlib.resources import files
from itertools import pairwise

from stunet.labels import systems
from stunet.labels.names import ClassMatch, Sides, canonical, head_classes, match_classes, sides
from tests.loops import for_each

V1, V2, MR = (
    [entry.name for entry in systems.load(f"totalsegmentator-{version}").classes] for version in ("v1", "v2", "mr")
)
ALIASES = tomllib.loads((files("stunet.presets") / "aliases.toml").read_text())


def sources(target: str, among: list[str] = V1) -> tuple[str, ...]:
    return match_classes([target], among)[0].sources


@for_each(
    "names",
    [
        "left kidney|kidney_left|LK|Left Kidney|L kidney|kidney (left)|Kidney-L|LeftKidney|lkid|the_lt_kidney",
        "inferior_vena_cava|ivc|IVC|postcava|Inferior Vena Cava|vena cava inferior",
        "kidney_right|rkid|RK|right kidney",
        "esophagus|oesophagus|Esophagus",
        "urinary_bladder|bladder|Urinary Bladder",
        "gallbladder|gall_bladder|Gall Bladder",
        "adrenal_gland_left|LAG|left adrenal|Left Adrenal Gland|suprarenal gland left",
        "clavicula_right|right clavicle|clavicle_R",
        "iliac_vena_left|left iliac vein|iliac_vein_left|left common iliac vein",
        "heart_atrium_left|left atrium|LA|Left Heart Atrium",
        "heart_ventricle_right|RV|right ventricle",
        "lung_upper_lobe_right|right upper lobe|RUL|upper lobe of the right lung",
        "portal_vein_and_splenic_vein|portal vein and splenic vein|portal vein & splenic vein|Portal and Splenic Veins",
        "vertebrae_L5|L5|l5|vertebra L5|L5 vertebra",
        "vertebrae_T10|T10|Th10|TH10",
        "rib_left_1|left rib 1|Rib 1 L|rib_1_left",
        "hip_left|left hip|left hip bone",
        "gluteus_maximus_left|left gluteus maximus muscle",
        "liver_tumor|liver tumour|Tumor of the liver|liver tumors",
        "anterior|Anterior|ANTERIOR",
        "heart_myocardium|MYO|left ventricular myocardium|myocardium of the left ventricle|LV myocardium",
        "heart_ventricle_left|left ventricle blood cavity|left ventricular blood cavity|LV blood pool|LV cavity",
        "heart_ventricle_right|right ventricle blood cavity|RV cavity",
        "heart_atrium_left|left atrium blood cavity|left atrial blood pool",
        "aorta|arota|A_Aorta",
        "inferior_vena_cava|V_Venacava_I",
        "superior_vena_cava|V_Venacava_S",
        "portal_vein|V_Portal",
        "subclavian_artery_left|A_Subclavian_L",
        "colon|large intestine|large bowel|Bowel_Large",
        "small_bowel|Bowel_Small",
        "adrenal_gland_left|Glnd_Adrenal_L",
        "thyroid_gland|Glnd_Thyroid",
        "parotid_gland_left|Parotid_L",
        "spinal_cord|SpinalCord",
        "brainstem|BrainStem|brain stem",
        "lung_middle_lobe_right|middle lobe|middle lobe of the lung|right middle lobe|right lung middle lobe|Lung_RML",
        "lung_upper_lobe_left|Lung_LUL",
    ],
)
def test_spellings_of_one_class_are_one_name(names: str) -> None:
    for one, other in pairwise(names.split("|")):
        assert canonical(one) == canonical(other)


def test_the_canonical_name_of_a_canonical_name_is_itself() -> None:
    for name in [*V1, *V2, *MR, "liver tumor", "head of femur L", "prostate/uterus", "肝脏", "???", "1"]:
        assert canonical(canonical(name)) == canonical(name), name


@for_each("names", [V1, V2, MR])
def test_classes_of_one_dataset_stay_apart(names: list[str]) -> None:
    assert len({canonical(name) for name in names}) == len(names)
    assert match_classes(names, names) == [ClassMatch(name, (name,)) for name in names]


def test_no_alias_stands_for_two_classes() -> None:
    aliases = [canonical(alias) for others in ALIASES["names"].values() for alias in others]
    assert [canonical(name) for name, others in ALIASES["names"].items() for _ in others] == aliases
    listed = [alias for others in ALIASES["names"].values() for alias in others]
    assert len(set(listed)) == len(listed)


@for_each(
    "target",
    [
        "liver tumor",
        "liver_tumour",
        "liver vessels",
        "kidney tumor",
        "kidney_cyst_left",
        "kidney and tumor",
        "non-liver",
        "atrial appendage left",
        "femoral head left",
        "spinal canal",
        "heart muscle of the left leg",
        "thigh",
        "ventricle",
        "lateral ventricle left",
        "portal vein",
        "vein",
        "intestine",
        "bone",
        "psoas left",
        "renal artery",
        "rib",
        "edema",
        "right ventricular myocardium",
        "left middle lobe",
        "ventricle cavity",
        "A_Aorta_Asc",
        "ascending aorta",
        "V_Venacava",
        "sigmoid colon",
        "Kidney_Cortex_L",
        "VB_L1",
        "vertebrae_body",
        "L6",
        "T13",
        "L1-L3",
        "gland",
        "prostate/uterus",
        "Anterior",
        "background tissue",
        "l",
        "",
    ],
)
def test_names_that_are_no_class_of_the_source_are_new(target: str) -> None:
    assert sources(target, [name for name in V1 if name != "rib_left_7"]) == ()


def test_the_closest_names_are_those_of_the_source_that_look_alike() -> None:
    assert match_classes(["livr"], V1)[0].closest[0] == "liver"
    assert set(match_classes(["kidney tumor"], V2)[0].closest) >= {"kidney_left", "kidney_right"}
    assert match_classes(["x"], []) == [ClassMatch("x", (), ())]
    rows = match_classes(["edema", "enhancing tumor"], V1)
    assert [(row.sources, len(row.closest)) for row in rows] == [((), 3), ((), 3)]


def test_left_is_never_right_and_an_atrium_never_a_ventricle() -> None:
    assert sources("left atrium") == ("heart_atrium_left",)
    assert sources("left ventricle") == ("heart_ventricle_left",)
    assert sources("Right Kidney") == ("kidney_right",)
    assert sources("right atrium", ["heart_atrium_left", "heart_ventricle_right"]) == ()


def test_coarse_classes_are_unions_of_all_their_parts() -> None:
    lobes = {name for name in V1 if name.startswith("lung_")}
    assert set(sources("lung")) == set(sources("Lungs")) == lobes
    assert set(sources("left lung")) == {name for name in lobes if name.endswith("left")}
    assert sources("kidneys") == ("kidney_left", "kidney_right")
    assert sources("adrenal") == ("adrenal_gland_left", "adrenal_gland_right")
    assert set(sources("ribs")) == {name for name in V1 if name.startswith("rib_")}
    assert sources("rib 3") == ("rib_left_3", "rib_right_3")
    assert set(sources("vertebrae")) == {name for name in V1 if name.startswith("vertebrae_")}
    assert set(sources("heart")) == {name for name in V1 if name.startswith("heart_")}
    assert sources("heart", V2) == ("heart",)
    assert sources("lung", MR) == ("lung_left", "lung_right")


def test_a_union_that_lacks_a_part_and_a_part_of_a_union_are_new() -> None:
    assert sources("lung", [name for name in V1 if name != "lung_middle_lobe_right"]) == ()
    assert sources("kidney", ["kidney_left"]) == ()
    assert sources("kidney_left", ["kidney"]) == ()


def test_a_name_that_two_sources_share_is_refused_unless_it_is_the_very_same() -> None:
    row = match_classes(["LK"], ["left kidney", "kidney_left", "liver"])[0]
    assert row.sources == ()
    assert set(row.closest[:2]) == {"left kidney", "kidney_left"}
    assert sources("kidney_left", ["left kidney", "kidney_left"]) == ("kidney_left",)


def test_v2_classes_find_those_of_v1_that_kept_their_meaning() -> None:
    new = [row.target for row in match_classes(V2, V1) if not row.sources]
    assert set(V1) & set(new) == set()
    assert {"sternum", "skull", "prostate", "vertebrae_S1", "pulmonary_vein", "atrial_appendage_left"} <= set(new)
    assert [row.target for row in match_classes(MR, V1) if len(row.sources) > 1] == [
        "lung_left",
        "lung_right",
        "vertebrae",
        "heart",
    ]


@for_each(
    ("labels", "rows"),
    [
        ({"background": 0, "b": 2, "a": 1, "ignore": 3}, ["background", "a", "b"]),
        ({"a": [1], "background": 0}, ["background", "a"]),
        ({"background": 0, "whole": [1, 2], "core": [2], "one": 1, "ignore": 3}, ["whole", "core", "one"]),
    ],
)
def test_the_rows_of_a_head_are_those_of_nnunet(labels: dict, rows: list[str]) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    assert head_classes(labels) == rows
    assert LabelManager(labels, [1, 2, 3]).num_segmentation_heads == len(rows)


@for_each(
    "names",
    [
        *("kidney_left kidney_right", "left kidney|right kidney", "LeftKidney RightKidney", "LKidney RKidney"),
        *("leftkidney rightkidney", "kidneyleft kidneyright", "l_kidney r_kidney", "kidney-L kidney-R"),
        *("KidneyL KidneyR", "KIDNEY_LEFT KIDNEY_RIGHT", "kidney(L) kidney(R)", "L. kidney|R. kidney", "LK RK"),
        *("LAG RAG", "lkidney rkidney", "LAG|right suprarenal gland", "lpsoas rpsoas", "psoasl psoasr"),
        *("rib_left_1 rib_right_1", "Rib7L Rib7R", "rib_L1 rib_R1", "ctx-lh-insula ctx-rh-insula"),
        *("ren sinister|ren dexter", "rein gauche|rein droit", "linke Niere|rechte Niere", "左肾 右肾"),
        *("Left-Lateral-Ventricle|R lateral ventricle", "lung_left lung_right", "left right"),
        *("Glnd_Adrenal_L Glnd_Adrenal_R", "femur_lt femur_rt"),
    ],
)  # fmt: skip
def test_left_and_right_of_a_class_are_mirror_images(names: str) -> None:
    left, right = names.split("|") if "|" in names else names.split()
    assert sides(["background", right, "liver", left]) == Sides(((left, right),), ((left, right),), ())


@for_each(
    "names",
    [
        *("LV RV", "LA RA", "heart_left_atrium heart_right_atrium", "LVendo RVendo", "RV_epi LV_epi", "LUL RUL"),
        *("lung_upper_lobe_left lung_upper_lobe_right", "left liver lobe|right liver lobe"),
        *("LCA RCA", "LICA RICA", "L1 R1", "左心房 右心房", "LV|right ventricle"),
        *("left ventricular wall|right ventricular wall",),
    ],
)  # fmt: skip
def test_what_is_not_alike_on_both_sides_or_cannot_be_told_is_a_pair_without_a_mirror_image(names: str) -> None:
    pair = tuple(names.split("|") if "|" in names else names.split())
    found = sides(pair)
    assert set(found.pairs[0]) == set(pair)
    assert (found.images, found.others) == ((), pair)


@for_each(
    "name", ["kidney_left", "LK", "L kidney", "rkidney", "lfemur", "LV", "lung_middle_lobe_right", "RML", "middle lobe"]
)
def test_a_side_without_its_partner_has_no_mirror_image(name: str) -> None:
    assert sides(["liver", name]) == Sides((), (), (name,))


@for_each(
    "names",
    [
        *("cleft bright", "lung rung", "liver river", "vertebrae_L1 vertebrae_L2", "L1 L2 T1", "upright copyright"),
        *("lens rectum", "larynx retina", "vertebral_body arterial_wall", "heart aorta", "left_and_right_kidney lungs"),
        *("lumen lesion rib", "lobe rim", "scapular sternal", "Leftover Rightmost"),
    ],
)  # fmt: skip
def test_other_names_have_no_side(names: str) -> None:
    assert not sides(names.split())


def test_sides_go_by_number_and_name() -> None:
    left, right = ("left_atrium", "rib_left_1"), ("right_ventricle", "rib_right_2")
    assert sides([*left, *right]) == Sides((), (), (*left, *right))
    twice = sides(["left kidney", "kidney_left", "kidney_right"])
    assert twice == Sides((), (), ("left kidney", "kidney_left", "kidney_right"))


@for_each("names", [V1, V2, MR])
def test_totalsegmentators_sides_are_those_in_its_names(names: list[str]) -> None:
    found = sides(names)
    expected = [(n, twin) for n in names if "left" in n and (twin := n.replace("left", "right")) in names]
    assert sorted(found.pairs) == sorted(expected)
    lobes_and_chambers = ("heart_", "atrial_", "lung_upper", "lung_middle", "lung_lower")
    assert set(found.others) == {n for n in names if n.startswith(lobes_and_chambers) and n[-4:] in ("left", "ight")}
