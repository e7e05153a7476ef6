"""A union is a raw dataset of nnU-Net, appears whole, and goes on where it was stopped or tells what has changed."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.datasets import read_dataset
from stunet.datasets.check import check_dataset
from stunet.errors import DataError
from stunet.files import read_json, write_json
from stunet.labels.annotations import load_annotations
from stunet.merging import build as building
from stunet.merging.build import build
from stunet.merging.check import check, open_sources
from stunet.merging.recipe import load_recipe
from stunet.workspace import VARIABLES
from tests.loops import for_each
from tests.merge_sources import BOXES, describe, make_source, read, save, write_recipe
from tests.processes import forked_from_the_server

A = {"id": "a", "dataset": "Dataset001_A"}
B = {"id": "b", "dataset": "Dataset002_B"}
CLASSES = ["liver", "spleen", "kidney_left", "kidney_right"]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A: spleen, then liver; B: both kidneys as one, the left one, the right one (in one case each)."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_raw"
    make_source(folder, "Dataset001_A", {"spleen": ["spleen"], "liver": ["liver"]}, cases=3, seed=1)
    make_source(folder, "Dataset002_B", {"left kidney": ["kidney_left"], "right kidney": ["kidney_right"]}, seed=2)
    make_source(folder, "Dataset003_C", {"kidney": ["kidney_left", "kidney_right"], "spleen": ["spleen"]}, seed=3)
    return folder


Run = Callable[..., Path]


@pytest.fixture
def run(raw: Path, tmp_path: Path) -> Run:
    """Builds the union of these sources."""

    def build_it(
        sources: Sequence[dict[str, Any]] = (A, B, {"id": "c", "dataset": "3"}),
        workers: int = 1,
        on_case: Callable[[str], None] = lambda name: None,
        **more: Any,
    ) -> Path:
        recipe = load_recipe(write_recipe(tmp_path / "merge.yaml", sources, **({"classes": CLASSES} | more)))
        members, findings = open_sources(recipe)
        checked = check(recipe, members)
        assert [f.message for f in [*findings, *checked.findings] if f.fatal] == []
        return build(checked, workers, on_case)

    return build_it


def test_labels_have_the_values_of_the_union_on_the_grid_of_the_source(raw: Path, run: Run) -> None:
    path = raw / "Dataset001_A/labelsTr/case_0.nii.gz"
    image = nibabel.load(path)
    image.set_sform(image.affine, 2)
    image.set_qform(image.affine, 1)
    nibabel.save(image, path)
    target = run()
    label = nibabel.load(target / "labelsTr/a_case_0.nii.gz")
    assert label.header["intent_code"] == 1002
    expected = np.array([0, 2, 1], np.uint8)[np.asanyarray(image.dataobj)]
    np.testing.assert_array_equal(np.asanyarray(label.dataobj), expected)
    assert (label.get_data_dtype(), label.shape) == (np.uint8, image.shape)
    np.testing.assert_array_equal(label.affine, image.affine)
    assert (label.header["sform_code"], label.header["qform_code"]) == (2, 1)
    coarse = read(target / "labelsTr/c_case_0.nii.gz")
    assert set(np.unique(coarse)) == {0, 2, 5}
    assert (coarse[BOXES["kidney_left"]] == 5).all()


def test_the_union_is_a_dataset_of_nnunet_with_annotations(run: Run) -> None:
    target = run()
    check_dataset(target)
    description = read_json(target / "dataset.json")
    assert description["labels"] == {"background": 0, **{n: i for i, n in enumerate([*CLASSES, "kidney"], start=1)}}
    assert description["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    assert description["channel_names"] == {"0": "CT z-score"}
    assert description["licence"] == "CC-BY-4.0"
    assert description["numTraining"] == 7
    cases, rules = read_dataset(target)
    assert rules.reader.__name__ == "NibabelIOWithReorient"
    annotations = load_annotations(target)
    assert annotations is not None
    assert set(annotations.cases) == {case.name for case in cases}
    assert annotations.values == description["labels"]
    assert annotations.groups("c_case_1").tolist() == [0, 0, 2, 5, 5]
    found = get_filenames_of_train_images_and_targets(str(target))
    assert found.keys() == annotations.cases.keys()
    assert maybe_convert_to_dataset_name(900) == target.name


def test_images_stay_where_they_are_or_are_linked_or_copied(raw: Path, run: Run) -> None:
    entry = {}
    for number, way in ((900, "reference"), (901, "symlink"), (902, "copy")):
        target = run(name=f"Dataset{number}_X", images=way)
        entry[way] = target, read_json(target / "dataset.json")["dataset"]["a_case_0"]["images"]
    assert entry["reference"][1] == ["$nnUNet_raw/Dataset001_A/imagesTr/case_0_0000.nii.gz"]
    assert not (entry["reference"][0] / "imagesTr").exists()
    original = raw / "Dataset001_A/imagesTr/case_0_0000.nii.gz"
    for way in ("symlink", "copy"):
        target, images = entry[way]
        assert images == ["imagesTr/a_case_0_0000.nii.gz"]
        assert (target / images[0]).is_symlink() == (way == "symlink")
        assert (target / images[0]).read_bytes() == original.read_bytes()


def test_an_image_outside_of_nnunet_raw_is_named_by_its_path(raw: Path, run: Run, tmp_path: Path) -> None:
    image = raw / "Dataset001_A/imagesTr/case_0_0000.nii.gz"
    elsewhere = tmp_path / "elsewhere.nii.gz"
    image.rename(elsewhere)
    listed = {
        f"case_{i}": {"images": [f"imagesTr/case_{i}_0000.nii.gz"], "label": f"labelsTr/case_{i}.nii.gz"}
        for i in range(3)
    }
    listed["case_0"]["images"] = [str(elsewhere)]
    describe(raw / "Dataset001_A", dataset=listed)
    assert read_json(run() / "dataset.json")["dataset"]["a_case_0"]["images"] == [str(elsewhere)]


def test_voxels_that_a_case_does_not_annotate_become_background(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("case;classes\ncase_1;left kidney\n")
    target = run([A, B | {"annotated_overrides": "cases.csv"}])
    assert set(np.unique(read(target / "labelsTr/b_case_0.nii.gz"))) == {0, 3, 4}
    assert set(np.unique(read(target / "labelsTr/b_case_1.nii.gz"))) == {0, 3}
    annotations = load_annotations(target)
    assert annotations is not None
    assert annotations.groups("b_case_1").tolist() == [0, 0, 0, 3, 0]


def test_the_ignore_label_comes_last(raw: Path, run: Run) -> None:
    describe(raw / "Dataset001_A", labels={"background": 0, "spleen": 1, "ignore": 2})
    target = run([A, B], classes=["spleen", "kidney_left", "kidney_right"])
    assert read_json(target / "dataset.json")["labels"]["ignore"] == 4
    assert set(np.unique(read(target / "labelsTr/a_case_0.nii.gz"))) == {0, 1, 4}
    check_dataset(target)


def test_more_than_255_labels_are_16_bit(raw: Path, run: Run) -> None:
    names = [f"part {i // 26}{chr(97 + i % 26)}" for i in range(300)]
    path = raw / "Dataset001_A/labelsTr/case_0.nii.gz"
    save(path, np.where(read(path) == 2, 300, 0).astype(np.float32))
    labels = {"background": 0, **{name: i for i, name in enumerate(names, start=1)}}
    describe(raw / "Dataset001_A", labels=labels)
    target = run([A], classes=names, defaults={"on_absent_label": "keep"})
    label = nibabel.load(target / "labelsTr/a_case_0.nii.gz")
    assert label.get_data_dtype() == np.uint16
    assert set(np.unique(label.dataobj)) == {0, 300}
    check_dataset(target)


def test_folds_are_those_of_the_sources_or_seeded(raw: Path, run: Run) -> None:
    write_json(raw / "Dataset001_A/splits_final.json", [{"train": ["case_0", "case_1"], "val": ["case_2"]}])
    folds = read_json(run(folds={"number": 2, "seed": 3}) / "splits_final.json")
    assert len(folds) == 2
    for fold in folds:
        assert {name for name in fold["val"] if name.startswith("a_")} == {"a_case_2"}
        assert not set(fold["train"]) & set(fold["val"])
        assert len([name for name in fold["val"] if name.startswith("b_")]) == 1
    assert {name for fold in folds for name in fold["val"]} >= {"b_case_0", "b_case_1", "c_case_0", "c_case_1"}
    again = read_json(run(name="Dataset901_Again", folds={"number": 2, "seed": 3}) / "splits_final.json")
    assert again == folds
    few = read_json(run(name="Dataset902_Few") / "splits_final.json")
    assert [len(fold["val"]) for fold in few] == [1] * 5  # two cases are too few for five folds: always for training


@for_each(
    ("folds", "message"),
    [
        ([{"train": ["case_0", "case_1"], "val": ["case_1"]}], "case 'case_1' is in train and in val of fold 0"),
        ([{"train": ["case_0"], "val": ["case_7"]}], "has the case 'case_7', the dataset does not; did you mean"),
        ({"train": []}, "expected a list of folds"),
        ([{"train": "case_0", "val": []}], "[0].train: expected a list"),
        (None, "split: dataset, but there is no splits_final.json in"),
    ],
)
def test_what_is_wrong_with_folds_of_a_source_is_named(raw: Path, tmp_path: Path, folds: Any, message: str) -> None:
    if folds is not None:
        write_json(raw / "Dataset001_A/splits_final.json", folds)
    recipe = load_recipe(write_recipe(tmp_path / "merge.yaml", [A | {"split": "dataset"}], classes=["liver", "spleen"]))
    members, _ = open_sources(recipe)
    assert any(message in finding.message for finding in check(recipe, members).findings if finding.fatal)


def test_cases_that_no_fold_has_are_a_warning(raw: Path, tmp_path: Path) -> None:
    write_json(raw / "Dataset001_A/splits_final.json", [{"train": ["case_0"], "val": ["case_1"]}])
    recipe = load_recipe(write_recipe(tmp_path / "merge.yaml", [A], classes=["liver", "spleen"]))
    members, _ = open_sources(recipe)
    messages = [finding.message for finding in check(recipe, members).findings if not finding.fatal]
    assert "source 'a': its folds leave out 'case_2'" in messages


def test_the_record_says_what_the_union_was_made_from(run: Run) -> None:
    record = read_json(run() / "provenance.json")
    assert record["sources"]["a"]["labels"] == {"spleen": "spleen", "liver": "liver"}
    assert record["sources"]["a"]["licence"] == "CC-BY-4.0"
    assert record["sources"]["a"]["cases"] == 3
    assert len(record["sources"]["a"]["dataset.json"]) == 64
    assert record["classes"]["spleen"] == {"leaves": ["spleen"], "cases": 5, "voxels": 5 * 27}
    assert len(set(record["images"].values())) == 7


def _killed_after(cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build ends like one that is killed, after so many cases."""
    write, written = building.write_label, []

    def stop(*args: Any) -> None:
        if len(written) == cases:
            raise KeyboardInterrupt
        write(*args)
        written.append(args)

    monkeypatch.setattr(building, "write_label", stop)


def test_an_interrupted_build_goes_on_and_nothing_appears_before_the_end(
    raw: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _killed_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert not (raw / "Dataset900_Union").exists()
    part = raw / ".part-Dataset900_Union"
    before = {path.name: path.stat().st_mtime_ns for path in part.glob("labelsTr/*")}
    assert len(before) == 3
    shown: list[str] = []
    target = run(on_case=shown.append)
    assert len(shown) == 7  # those that were there count as well
    after = {path.name: path.stat().st_mtime_ns for path in target.glob("labelsTr/*")}
    assert len(after) == 7
    assert before.items() <= after.items()
    assert sorted(path.name for path in raw.iterdir() if path.name.startswith(".")) == []


def _edit(**more: Any) -> Callable[[Run, Path], object]:
    return lambda run, raw: run(**more)


def _touch(run: Run, raw: Path) -> None:
    path = raw / "Dataset002_B/labelsTr/case_0.nii.gz"
    save(path, np.flip(np.flip(read(path), 1), 1))
    os.utime(path, ns=(1, 1))
    run()


@for_each(
    ("change", "difference", "finished"),
    [
        (_edit(head="sigmoid"), r"recipe.head: nothing -> \"sigmoid\"", False),
        (_edit(classes=[*CLASSES[::-1]]), r"classes\[0\]: \"liver\" -> \"kidney_right\"", True),
        (
            _edit(sources=[A | {"weight": 2}, B, {"id": "c", "dataset": "3"}]),
            r"recipe.sources\[0\].weight: nothing -> 2",
            True,
        ),
        (_touch, r"sources.b.files: ", False),
        (_touch, r"sources.b.files: ", True),
    ],
)
def test_what_was_begun_or_built_from_something_else_is_refused_with_the_difference(
    raw: Path, run: Run, change: Callable[[Run, Path], object], difference: str, finished: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _killed_after(100 if finished else 2, patch)
        try:
            run()
        except KeyboardInterrupt:
            assert not finished
    with pytest.raises(DataError, match=difference) as caught:
        change(run, raw)
    assert ("exists and was made from something else" in caught.value.message) == finished
    assert ("was begun and interrupted, and since then changed" in caught.value.message) != finished


def test_the_same_build_again_changes_nothing(run: Run) -> None:
    target = run()
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    assert run() == target
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before


def test_a_number_or_name_that_is_taken_is_refused(raw: Path, run: Run) -> None:
    with pytest.raises(DataError, match=r"number 001 is taken by .*Dataset001_A"):
        run(name="Dataset001_Union")
    make_source(raw, "Dataset900_Union", {"liver": ["liver"]})
    with pytest.raises(DataError, match=r"exists and was not made by this command"):
        run()


def test_a_full_disk_names_the_case_and_what_is_finished_stays(
    raw: Path, tmp_path: Path, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    path = raw / "Dataset001_A/labelsTr/case_2.nii.gz"
    noise = np.random.default_rng(0).integers(0, 3, (32, 32, 32), np.uint8)  # compresses badly
    save(path, noise)
    save(raw / "Dataset001_A/imagesTr/case_2_0000.nii.gz", noise.astype(np.int16))
    recipe = load_recipe(write_recipe(tmp_path / "merge.yaml", [A], classes=["liver", "spleen"]))
    checked = check(recipe, open_sources(recipe)[0])
    assert not checked.fatal
    with (
        room_for(path.stat().st_size // 2),
        pytest.raises(DataError, match=r"no space for case .a_case_2. at .*part-Dataset900_Union/labelsTr") as caught,
    ):
        build(checked)
    assert "run the same command again" in caught.value.hint
    assert sorted(p.name for p in raw.glob(".part-*/labelsTr/*")) == ["a_case_0.nii.gz", "a_case_1.nii.gz"]
    assert len(list(build(checked).glob("labelsTr/*"))) == 3


def test_several_processes_write_the_same(run: Run) -> None:
    one = run()
    with forked_from_the_server():
        two = run(name="Dataset901_Two", workers=2)
    for path in one.glob("labelsTr/*"):
        np.testing.assert_array_equal(read(path), read(two / "labelsTr" / path.name))
