"""Each thing that can be wrong with a union is found before anything is written, and said with its place and remedy."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from stunet.errors import WorkerCrashed
from stunet.files import write_json
from stunet.merging import Finding, scan
from stunet.merging.check import CheckedUnion, check, open_sources
from stunet.merging.findings import room
from stunet.merging.recipe import load_recipe
from stunet.merging.union import Union
from stunet.workers import Outcome
from stunet.workspace import VARIABLES
from tests.loops import for_each
from tests.merge_sources import AFFINE, BOXES, SHAPE, describe, make_source, read, save, write_recipe

Sources = Sequence[dict[str, Any]]
A = {"id": "a", "dataset": "Dataset001_A"}
B = {"id": "b", "dataset": "Dataset002_B"}
Check = Callable[..., CheckedUnion]
BOTH_KIDNEYS = {"left kidney": ["kidney_left"], "right kidney": ["kidney_right"]}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A: liver and spleen; B: spleen and both kidneys."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_raw"
    make_source(folder, "Dataset001_A", {"liver": ["liver", "liver_tumor"], "spleen": ["spleen"]}, seed=1)
    make_source(folder, "Dataset002_B", {"spleen": ["spleen"], **BOTH_KIDNEYS}, seed=2)
    return folder


@pytest.fixture
def checked(raw: Path, tmp_path: Path) -> Check:
    """Checks a recipe of these sources and keys."""

    def run(
        sources: Sources = (A, B), classes: Any = ("liver", "spleen", "kidney_left", "kidney_right"), **more: Any
    ) -> CheckedUnion:
        listed = classes if isinstance(classes, str) else list(classes)
        recipe = load_recipe(write_recipe(tmp_path / "merge.yaml", sources, classes=listed, **more))
        members, findings = open_sources(recipe)
        found = check(recipe, members)
        return CheckedUnion(found.union, found.estimate, findings + found.findings)

    return run


def problems(checked: CheckedUnion) -> list[str]:
    """The messages of what forbids to build."""
    return [finding.message for finding in checked.findings if finding.fatal]


def warnings(checked: CheckedUnion) -> list[str]:
    """The other messages."""
    return [finding.message for finding in checked.findings if not finding.fatal]


def the(findings: Sequence[Finding], words: str) -> Finding:
    """The only finding with these words."""
    (finding,) = [finding for finding in findings if words in finding.message]
    assert finding.hint
    return finding


def union_of(checked: CheckedUnion) -> Union:
    """The union, which must be there."""
    assert checked.union is not None
    return checked.union


def test_sound_sources_make_a_union_in_which_each_says_what_it_annotates(checked: Check) -> None:
    found = checked()
    assert problems(found) == []
    union = union_of(found)
    assert union.values == {"background": 0, "liver": 1, "spleen": 2, "kidney_left": 3, "kidney_right": 4}
    assert union.space.labels("a") == ("liver", "spleen")
    assert union.space.labels("b") == ("spleen", "kidney_left", "kidney_right")
    assert union.annotations.groups("a_case_0").tolist() == [0, 1, 2, 0, 0]
    assert union.annotating("spleen") == {"a": 2, "b": 2}
    assert union.shares() == {"a": 0.5, "b": 0.5}


# 1: unknown names
def test_an_unknown_label_comes_with_the_three_nearest_classes(raw: Path, checked: Check) -> None:
    describe(raw / "Dataset001_A", labels={"background": 0, "lever": 1, "spleen": 2})
    found = the(checked().findings, "'lever' is not a class of the union")
    assert "nearest: 'liver', " in found.message
    assert found.message.count("'") == 2 * 5
    assert "{as: unannotated}" in found.hint


def test_an_unknown_class_that_a_label_is_mapped_to_is_named(checked: Check) -> None:
    found = checked([A | {"labels": {"liver": "livre"}}, B])
    assert "is 'livre', which is not a class of the union; nearest: 'liver'" in problems(found)[0]


def test_a_mapped_label_that_the_source_does_not_have_is_named(checked: Check) -> None:
    found = checked([A | {"labels": {"livre": "liver"}}, B])
    assert "no label 'livre'; did you mean 'liver'" in problems(found)[0]


def test_unknown_labels_may_count_as_not_annotated(raw: Path, checked: Check) -> None:
    describe(raw / "Dataset001_A", labels={"background": 0, "liver": 1, "something else": 2})
    found = checked(defaults={"on_unknown_label": "unannotated"})
    assert problems(found) == []
    assert union_of(found).space.labels("a") == ("liver",)


# 2: sets that overlap
def test_labels_of_a_source_may_not_share_a_class(checked: Check) -> None:
    found = checked([A | {"labels": {"liver": ["liver", "spleen"]}}, B])
    assert "source 'a': 'liver' and 'spleen' are both spleen" in problems(found)


def test_two_labels_of_the_same_classes_become_one(checked: Check) -> None:
    union = union_of(
        checked(
            [A, B | {"labels": {"left kidney": "kidney_left", "right kidney": "kidney_left"}}],
            ["liver", "spleen", "kidney_left"],
        )
    )
    assert union.space.values("b", "kidney_left") == [2, 3]


# 3: classes that nobody annotates
def test_a_listed_class_that_no_source_annotates_is_a_problem(checked: Check) -> None:
    found = checked(extra_classes=["pancreas"])
    assert problems(found) == ["no source annotates 'pancreas'"]


def test_classes_of_a_system_that_no_source_annotates_are_left_out(checked: Check) -> None:
    found = checked(classes="totalsegmentator-v2")
    assert problems(found) == []
    assert "113 classes of 'totalsegmentator-v2' are annotated nowhere" in warnings(found)
    assert union_of(found).space.leaves == ("spleen", "kidney_right", "kidney_left", "liver")


def test_a_class_of_one_source_alone_is_a_warning(checked: Check) -> None:
    assert "only source 'a' annotates 'liver'" in warnings(checked())


# 4: classes that are never told apart
def test_classes_that_are_only_ever_in_one_label_cannot_be_learned(raw: Path, checked: Check) -> None:
    make_source(raw, "Dataset002_B", {"kidney": ["kidney_left", "kidney_right"]}, seed=2)
    found = checked()
    assert problems(found) == [
        "no source tells 'kidney_left', 'kidney_right' apart: they are only ever in the same label"
    ]
    assert union_of(found).space.sets == {"kidney": ("kidney_left", "kidney_right")}


def test_a_coarse_label_is_fine_where_another_source_tells_its_classes_apart(raw: Path, checked: Check) -> None:
    make_source(raw, "Dataset001_A", {"liver": ["liver"], "Kidneys": ["kidney_left", "kidney_right"]}, seed=1)
    found = checked()
    assert problems(found) == []
    union = union_of(found)
    assert union.values["kidneys"] == 5
    assert union.annotations.groups("a_case_0").tolist() == [0, 1, 0, 5, 5]


def test_a_sigmoid_head_needs_a_source_for_each_class_by_itself(raw: Path, checked: Check) -> None:
    make_source(raw, "Dataset001_A", {"x": ["liver"], "y": ["spleen"]}, seed=1)
    make_source(raw, "Dataset002_B", {"z": ["liver"], "spleen": ["spleen"]}, seed=2)
    first = A | {"labels": {"x": ["liver", "liver_tumor"], "y": "spleen"}}
    second = B | {"labels": {"z": ["liver_tumor", "spleen"], "spleen": "liver"}}
    classes = ["liver", "liver_tumor", "spleen"]
    assert not [text for text in problems(checked([first, second], classes)) if "itself" in text]
    found = checked([first, second], classes, head="sigmoid")
    assert "no source annotates 'liver_tumor' by itself, which a sigmoid head needs" in problems(found)


# 5: organs and their tumours
def test_an_organ_beside_a_tumour_of_another_source_asks_what_its_mask_includes(raw: Path, checked: Check) -> None:
    make_source(raw, "Dataset002_B", {"liver": ["liver"], "liver tumour": ["liver_tumor"]}, seed=2)
    classes = ["liver", "spleen", "liver_tumor"]
    found = the(checked(classes=classes).findings, "does its mask include that?")
    assert found.fatal
    assert "source 'a': 'liver' is liver, and nothing there is liver_tumor" in found.message
    assert "liver: [liver, liver_tumor]" in found.hint
    assert problems(checked([A | {"labels": {"liver": ["liver", "liver_tumor"]}}, B], classes)) == []
    answered = checked([A | {"labels": {"liver": "liver"}}, B], classes)
    assert problems(answered) == []
    assert any("does its mask include that?" in text for text in warnings(answered))


# 6: values and labels that do not belong together
def test_a_value_that_dataset_json_does_not_know_is_named_with_its_file(raw: Path, checked: Check) -> None:
    path = raw / "Dataset001_A/labelsTr/case_1.nii.gz"
    save(path, np.where(read(path) == 2, 7, 0).astype(np.uint8))
    assert f"{str(path)!r} holds the values 7; dataset.json knows 0 to 2" in problems(checked())[0]


def test_a_label_that_no_file_has_is_a_problem_or_what_the_recipe_says(raw: Path, checked: Check) -> None:
    describe(raw / "Dataset001_A", labels={"background": 0, "liver": 1, "spleen": 2, "kidney": 3})
    assert problems(checked()) == ["source 'a': 'kidney' occurs in none of its 2 label files"]
    kept = checked(defaults={"on_absent_label": "keep"})
    assert problems(kept) == []
    assert union_of(kept).space.labels("a") == ("liver", "spleen", "kidney")
    assert not any("no case of any source" in text for text in warnings(kept))
    dropped = checked(defaults={"on_absent_label": "unannotated"})
    assert union_of(dropped).space.labels("a") == ("liver", "spleen")


def test_a_class_without_a_voxel_anywhere_is_a_warning(raw: Path, checked: Check) -> None:
    describe(raw / "Dataset001_A", labels={"background": 0, "liver": 1, "spleen": 2, "aorta": 3})
    found = checked(extra_classes=["aorta"], defaults={"on_absent_label": "keep"})
    assert "no case of any source has a voxel of 'aorta', although annotated" in warnings(found)


# 7: geometry
def test_a_mask_on_another_grid_is_named(raw: Path, checked: Check) -> None:
    path = raw / "Dataset001_A/labelsTr/case_0.nii.gz"
    save(path, read(path)[:-1])
    assert f"source 'a': shape of {str(path)!r}" in problems(checked())[0]


def test_axes_that_are_not_at_right_angles_are_named(raw: Path, checked: Check) -> None:
    path = raw / "Dataset001_A/imagesTr/case_0_0000.nii.gz"
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    save(path, read(path), sheared)
    assert f"the axes of {str(path)!r} are not at right angles" in problems(checked())[0]


def test_files_of_four_axes_are_named(raw: Path, checked: Check) -> None:
    path = raw / "Dataset001_A/imagesTr/case_0_0000.nii.gz"
    save(path, np.zeros((*SHAPE, 2), np.int16))
    assert f"{str(path)!r} has 4 axes: (12, 12, 12, 2)" in problems(checked())[0]


def test_unreadable_and_empty_files_are_all_named(raw: Path, checked: Check) -> None:
    cut = raw / "Dataset001_A/imagesTr/case_0_0000.nii.gz"
    cut.write_bytes(cut.read_bytes()[:400])
    empty = raw / "Dataset002_B/labelsTr/case_1.nii.gz"
    empty.write_bytes(b"")
    texts = problems(checked())
    assert [any(f"cannot read {str(path)!r}" in text for text in texts) for path in (cut, empty)] == [True, True]


def test_files_that_are_no_nifti_are_refused(raw: Path, checked: Check) -> None:
    for path in [*raw.glob("Dataset001_A/*/*.nii.gz")]:
        path.rename(path.with_name(path.name.replace(".nii.gz", ".nrrd")))
    describe(raw / "Dataset001_A", file_ending=".nrrd", overwrite_image_reader_writer="SimpleITKIO")
    assert "case_0_0000.nrrd' is not a NIfTI file" in problems(checked())[0]


# 8: channels and modalities
def test_another_number_of_channels_is_a_problem(raw: Path, checked: Check) -> None:
    make_source(raw, "Dataset002_B", {"spleen": ["spleen"], **BOTH_KIDNEYS}, seed=2, channels=("T1", "T2"))
    assert "source 'b' has 2: T1, T2; 'a' has 1: CT" in problems(checked())


def test_ct_intensities_want_ct(checked: Check) -> None:
    rule = {"from": "case_id", "CT": "<1", "MR": ">=1"}
    found = checked([A, B | {"modality": rule}], intensity={"scheme": "ct"})
    assert problems(found) == ["source 'b': intensity is ct, but 'case_1' is MR"]
    assert problems(checked([A, B | {"modality": rule}])) == []
    assert (
        "no rule of its modality matches 'case_1'" in problems(checked([A, B | {"modality": rule | {"MR": ">5"}}]))[0]
    )


# 9: duplicates
def test_an_image_in_two_sources_is_refused(raw: Path, checked: Check) -> None:
    image = "imagesTr/case_1_0000.nii.gz"
    turned = nibabel.load(raw / "Dataset001_A" / image).as_reoriented(nibabel.orientations.axcodes2ornt("LPS"))
    nibabel.save(turned, raw / "Dataset002_B" / image)
    label = nibabel.load(raw / "Dataset002_B/labelsTr/case_1.nii.gz")
    nibabel.save(
        label.as_reoriented(nibabel.orientations.axcodes2ornt("LPS")), raw / "Dataset002_B/labelsTr/case_1.nii.gz"
    )
    found = the(checked().findings, "the same image is 'case_1' of 'a' and 'case_1' of 'b'")
    assert found.fatal
    assert found.hint == "keep one of them: exclude: [case_1] in source 'b'"
    assert problems(checked([A, B | {"exclude": ["case_1"]}])) == []


def test_an_image_twice_in_a_source_is_refused_where_it_leaks_into_validation(raw: Path, checked: Check) -> None:
    folder = make_source(raw, "Dataset001_A", {"liver": ["liver"], "spleen": ["spleen"]}, cases=3, seed=1)
    save(folder / "imagesTr/case_1_0000.nii.gz", read(folder / "imagesTr/case_0_0000.nii.gz"))
    together = [{"train": ["case_0", "case_1"], "val": ["case_2"]}]
    write_json(folder / "splits_final.json", together)
    assert not the(checked().findings, "the same image is 'case_0' of 'a' and 'case_1' of 'a'").fatal
    write_json(folder / "splits_final.json", [{"train": ["case_0", "case_2"], "val": ["case_1"]}])
    assert problems(checked()) == [
        "the same image is 'case_0' of 'a' and 'case_1' of 'a', in training and in validation"
    ]


def test_images_of_fractions_are_told_apart(raw: Path, checked: Check) -> None:
    for index in range(2):
        path = raw / f"Dataset001_A/imagesTr/case_{index}_0000.nii.gz"
        save(path, (read(path) / 1e5).astype(np.float32))
    assert not [text for text in warnings(checked()) if "same image" in text]


# 10: left and right
def test_left_on_the_patients_right_is_a_problem(raw: Path, checked: Check) -> None:
    make_source(
        raw, "Dataset002_B", {"spleen": ["spleen"], "L kidney": ["kidney_right"], "R kidney": ["kidney_left"]}, seed=2
    )
    found = the(checked().findings, "kidney_left is on the patient's right of kidney_right in 2 of 2 cases")
    assert found.fatal
    assert "swap the two" in found.hint


def test_swap_is_a_problem_where_a_mirror_makes_what_has_no_name(raw: Path, checked: Check) -> None:
    make_source(raw, "Dataset002_B", {"spleen": ["spleen"], "L kidney": ["kidney_left"]}, seed=2)
    text = "mirror=swap: case 'b_case_1' annotates 'kidney_left' without its mirror image"
    assert text in problems(checked(mirror="swap"))


def test_one_odd_patient_is_a_warning(raw: Path, checked: Check) -> None:
    folder = make_source(raw, "Dataset002_B", {"spleen": ["spleen"], **BOTH_KIDNEYS}, cases=3, seed=2)
    label = read(folder / "labelsTr/case_2.nii.gz")
    save(folder / "labelsTr/case_2.nii.gz", np.array([0, 1, 3, 2], np.uint8)[label])
    found = checked()
    assert problems(found) == []
    assert any("in 1 of 3 cases: 'case_2'" in text for text in warnings(found))


@for_each("codes", ["LPS", "PSR", "SAL"])
@for_each("reader", ["nibabel_reorient", "simpleitk_reorient"])
def test_sides_are_seen_in_every_orientation_of_the_file(raw: Path, checked: Check, codes: str, reader: str) -> None:
    for path in raw.glob("Dataset002_B/*/*.nii.gz"):
        image = nibabel.load(path)
        wanted = nibabel.orientations.axcodes2ornt(codes)
        nibabel.save(
            image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)), path
        )
    assert problems(checked(geometry={"reader": reader})) == []


# 11: many labels
def test_more_labels_than_a_byte_holds_are_a_warning(raw: Path, checked: Check) -> None:
    names = [f"part {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]
    describe(raw / "Dataset001_A", labels={"background": 0, **{name: i for i, name in enumerate(names, start=1)}})
    found = checked([A], classes=names, defaults={"on_absent_label": "keep"})
    assert problems(found) == []
    assert "the union has values up to 300: its label files hold 16-bit integers" in warnings(found)


# 12: licences
def test_a_non_commercial_licence_has_to_be_agreed_to(checked: Check) -> None:
    sources = [A, B | {"license": "CC BY-NC-SA 2.0"}]
    assert "source 'b' is under CC BY-NC-SA 2.0" in problems(checked(sources))[0]
    agreed = checked(sources, defaults={"allow_noncommercial": True})
    assert problems(agreed) == []
    assert any("CC BY-NC-SA 2.0 requires the same licence" in text for text in warnings(agreed))


def test_a_missing_licence_is_a_warning(raw: Path, checked: Check) -> None:
    describe(raw / "Dataset001_A", licence="")
    assert any("source 'a' has no licence" in text for text in warnings(checked()))


# 13: sampling
def test_a_source_that_is_hardly_drawn_is_a_warning(checked: Check) -> None:
    assert "source 'b' has 0.50% of the draws" in warnings(checked([A, B | {"weight": 0.005}]))


# 14: disk and memory
def test_a_disk_without_room_is_a_problem(checked: Check, tmp_path: Path) -> None:
    found = checked(images="copy")
    assert found.estimate is not None
    stored = sum(path.stat().st_size for path in tmp_path.glob("nnUNet_raw/Dataset*/*/*.nii.gz"))
    assert found.estimate.raw_bytes == stored
    assert found.estimate.preprocessed_bytes == 4 * 12**3 * (4 + 1)
    assert found.estimate.case_bytes == 2 * 12**3 * 4
    larger = type(found.estimate)(10**18, 0, 0, (1.0,))
    (full,) = room(union_of(found), larger, tmp_path / "Dataset900_Union")
    assert "takes about 1000000000.0 GB" in full.message


# 15: overlapping regions; 16, another recipe on resume, is in test_build.py
def test_a_class_of_its_own_beside_the_common_one_wants_a_sigmoid_head(checked: Check) -> None:
    sources = [A, B | {"labels": {"spleen": {"as": "separate"}}}]
    found = checked(sources)
    assert problems(found) == []
    assert any("'spleen@b' and 'spleen' claim the same voxels" in text for text in warnings(found))
    union = union_of(checked(sources, head="sigmoid"))
    assert union.space.leaves == ("liver", "spleen", "kidney_left", "kidney_right", "spleen@b")
    assert not any("claim the same voxels" in text for text in warnings(checked(sources, head="sigmoid")))


# what a source is
def test_a_source_that_is_not_there_is_named_with_the_others_problems(checked: Check) -> None:
    found = checked([A | {"labels": {"liver": "livre"}}, B | {"dataset": "Dataset077_C"}])
    assert any("source 'b': no dataset 'Dataset077_C'" in text for text in problems(found))
    assert any("'livre'" in text for text in problems(found))


def test_regions_want_to_know_what_each_value_is(raw: Path, checked: Check) -> None:
    labels = {"background": 0, "organ": [1, 2], "mass": 2}
    describe(raw / "Dataset001_A", labels=labels, regions_class_order=[1, 2])
    first, second = problems(checked([A], ["liver", "spleen"]))[:2]
    assert "what is the value 1, which lies in organ?" in first
    assert "what is the value 2, which lies in organ and mass?" in second
    mapped = checked([A | {"labels": {1: "liver", 2: "spleen"}}], ["liver", "spleen"])
    assert problems(mapped) == []


def test_an_excluded_case_that_is_not_there_is_named(checked: Check) -> None:
    assert "no case 'case_9' to exclude; did you mean" in problems(checked([A | {"exclude": ["case_9"]}, B]))[0]


def test_two_cases_of_one_name_are_refused(raw: Path, checked: Check) -> None:
    for path in raw.glob("Dataset002_B/*/case_*"):
        path.rename(path.with_name(path.name.replace("case", "x_case")))
    found = checked([A | {"id": "s_x"}, B | {"id": "s"}])
    assert "'case_0' of 's_x' and 'x_case_0' of 's' would both be called 's_x_case_0'" in problems(found)


# per-case annotations
def test_a_table_says_what_single_cases_annotate(tmp_path: Path, checked: Check) -> None:
    (tmp_path / "cases.csv").write_text("case;classes\ncase_1;right kidney, spleen\n")
    union = union_of(checked([A, B | {"annotated_overrides": "cases.csv"}]))
    assert union.annotations.cases["b_case_1"].labels == ("spleen", "kidney_right")
    assert union.annotations.cases["b_case_0"].labels == ("spleen", "kidney_left", "kidney_right")


@for_each(
    ("table", "message"),
    [
        ("case,classes\n", "the first line of"),
        ("case;classes\ncase_9;spleen\n", "has no case 'case_9'; did you mean"),
        ("case;classes\ncase_1;liver\n", "case 'case_1': source 'b' does not annotate 'liver'"),
        ("case;classes\ncase_1;\n", "line 2 of"),
        (None, "cannot read annotated_overrides"),
    ],
)
def test_what_is_wrong_with_the_table_is_named(tmp_path: Path, checked: Check, table: str | None, message: str) -> None:
    if table is not None:
        (tmp_path / "cases.csv").write_text(table)
    assert any(message in text for text in problems(checked([A, B | {"annotated_overrides": "cases.csv"}])))


def test_a_source_that_is_a_union_itself_keeps_what_its_cases_annotate(raw: Path, checked: Check) -> None:
    folder = make_source(
        raw,
        "Dataset001_A",
        {"kidney_left": ["kidney_left"], "kidney_right": ["kidney_right"], "any": ["liver"]},
        seed=1,
    )
    content = {
        "leaves": ["kidney_left", "kidney_right"],
        "sets": {"any": ["kidney_left", "kidney_right"]},
        "head": "softmax",
        "alpha": 0.5,
        "sources": {"fine": {"labels": ["kidney_left", "kidney_right"]}, "coarse": {"labels": ["any"]}},
        "cases": {"case_0": {"source": "fine"}, "case_1": {"source": "coarse"}},
    }
    write_json(folder / "annotations.json", content)
    found = checked(classes=["kidney_left", "kidney_right", "spleen"])
    assert problems(found) == []
    assert union_of(found).annotations.groups("a_case_0").tolist() == [0, 1, 2, 0]
    assert union_of(found).annotations.groups("a_case_1").tolist() == [0, 4, 4, 0]


# the cache
def test_what_was_read_is_not_read_again_until_a_file_changes(raw: Path, tmp_path: Path, checked: Check) -> None:
    first = union_of(checked())
    cache = tmp_path / "merge.scan.jsonl"
    lines = cache.read_text().splitlines()
    assert len(lines) == 4
    cache.write_text("\n".join(lines[:3]) + "\n" + lines[3][:50])  # as a killed run leaves it
    assert union_of(checked()).scans == first.scans
    path = raw / "Dataset001_A/imagesTr/case_0_0000.nii.gz"
    save(path, read(path) + np.int16(1))
    assert union_of(checked()).scans["a"]["case_0"].fingerprint != first.scans["a"]["case_0"].fingerprint
    assert len(cache.read_text().splitlines()) == 4


def test_a_crash_ends_the_check_and_is_not_a_finding(checked: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(work: Any, cases: Any, *_: Any) -> Any:
        yield from (Outcome(i, case, error=WorkerCrashed(f"{case.name} crashed")) for i, case in enumerate(cases))

    monkeypatch.setattr(scan, "map_cases", crash)
    with pytest.raises(WorkerCrashed, match=r"^case_0 crashed; case_1 crashed$"):
        checked()


def test_voxels_and_centres_are_those_of_the_boxes(checked: Check) -> None:
    scan = union_of(checked()).scans["b"]["case_0"]
    assert scan.voxels == {1: 27, 2: 45, 3: 36}
    assert scan.centre[2] == np.mean(np.arange(*BOXES["kidney_left"][0].indices(12)))
