"""The TotalSegmentator data set becomes a sound raw dataset: by names, and every mistake is named."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.datasets import read_dataset
from stunet.datasets.check import check_dataset
from stunet.datasets.conversion import Conversion
from stunet.datasets.totalsegmentator import Options, prepare_totalsegmentator
from stunet.errors import DataError, UsageError
from stunet.labels import systems
from stunet.labels.annotations import load_annotations
from tests.loops import for_each
from tests.totalsegmentator_layout import AFFINE, RELEASES, SHAPE, box, write_mask, write_release

MASKS = {"spleen": [box(0, 2)], "liver": [box(1, 4)], "adrenal_gland_right": [box(3, 5)]}
ORGANS = RELEASES["v2"].part("organs")
SPLIT = {"s0001": "train", "s0002": "val", "s0003": "test"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three subjects of v2 with the masks of organs: liver overlaps spleen and adrenal gland."""
    return write_release(tmp_path / "v2", "v2", SPLIT, MASKS, ORGANS)


def prepare(source: Path, classes: str | None = "organs", **options: Any) -> Conversion:
    raw = source.parent / "raw"
    return prepare_totalsegmentator(source, raw, 101, "TS", Options(classes, **options))


def convert(source: Path, workers: int = 1, **changes: Any) -> tuple[Path, list[str]]:
    conversion = prepare(source, **changes)
    return conversion.target, conversion.run(conversion.pending(), workers)


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def description(target: Path) -> dict[str, Any]:
    return json.loads((target / "dataset.json").read_text())


def test_the_official_parts_partition_their_release() -> None:
    counts = {name: {part: len(r.part(part)) for part in r.parts} for name, r in RELEASES.items()}
    assert counts == {
        "v1": {},
        "v2": {"organs": 24, "vertebrae": 26, "cardiac": 18, "muscles": 23, "ribs": 26},
        "mr": {"organs": 29, "muscles": 21},
    }
    assert [len(release.names) for release in RELEASES.values()] == [104, 117, 50]
    for release in (RELEASES["v2"], RELEASES["mr"]):
        assert tuple(name for part in release.parts for name in release.part(part)) == release.names


@for_each(("name", "system"), [("v1", "totalsegmentator-v1-stunet"), ("v2", "totalsegmentator-v2")])
def test_the_default_order_of_v1_is_that_of_stunets_weights_and_of_v2_the_official_one(
    tmp_path: Path, name: str, system: str
) -> None:
    source = write_release(tmp_path / name, name, {"s0001": "train"}, {"spleen": [box(0, 2)]})
    target, _ = convert(source, classes=None)
    assert description(target)["labels"] == systems.load(system).dataset_labels
    value = systems.load(system).dataset_labels["spleen"]
    assert np.unique(read(target / "labelsTr" / "s0001.nii.gz")).tolist() == [0, value]


@for_each(
    ("overlap", "expected"),
    [
        ("last", ["spleen", "liver", "liver", "adrenal_gland_right", "adrenal_gland_right", "background"]),
        ("first", ["spleen", "spleen", "liver", "liver", "adrenal_gland_right", "background"]),
        ("smallest", ["spleen", "spleen", "liver", "adrenal_gland_right", "adrenal_gland_right", "background"]),
        ("ignore", ["spleen", "ignore", "liver", "ignore", "adrenal_gland_right", "background"]),
    ],
)
@for_each("order", ["official", "stunet"])
def test_overlaps_go_by_the_official_order_whatever_the_values(
    source: Path, order: str, overlap: str, expected: list[str]
) -> None:
    target, warnings = convert(source, order=order, overlap=overlap)
    values = description(target)["labels"]
    label = read(target / "labelsTr" / "s0001.nii.gz")
    np.testing.assert_array_equal(label[:, 0, 0], [values[name] for name in expected])
    assert values.get("ignore") == (25 if overlap == "ignore" else None)
    table = (target / "overlaps.csv").read_text().splitlines()
    assert table == ["first;second;voxels;cases", "liver;adrenal_gland_right;60;3", "spleen;liver;60;3"]
    assert "2 pairs of classes overlap, most of all liver and adrenal_gland_right: 60 voxels in 3 cases" in warnings[0]


def test_subjects_that_the_table_does_not_name_are_said_and_hidden_files_are_no_masks(source: Path) -> None:
    text = (source / "meta.csv").read_text()
    (source / "meta.csv").write_text("".join(line for line in text.splitlines(True) if "s0003" not in line))
    (source / "s0001" / "segmentations" / "._liver.nii.gz").write_bytes(b"Mac OS X")
    assert "1 subjects are left out, as meta.csv does not name them: 's0003'" in prepare(source).warnings
    assert not prepare(source, skip=("s0002",)).warnings[0].startswith("2 subjects")


def test_the_dataset_is_sound_and_refers_to_the_images(source: Path) -> None:
    target, _ = convert(source)
    check_dataset(target)
    content = description(target)
    assert content["licence"] == "CC BY 4.0"
    assert content["numTraining"] == 2
    ours = {case.name: case for case in read_dataset(target)[0]}
    theirs = get_filenames_of_train_images_and_targets(str(target))
    for name in ("s0001", "s0002"):
        assert ours[name].images == (source / name / "ct.nii.gz",)
        assert theirs[name] == {"images": [str(ours[name].images[0])], "label": str(ours[name].label)}
    assert not (target / "imagesTr").exists()
    label = nibabel.load(target / "labelsTr" / "s0001.nii.gz")
    assert label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(label.affine, AFFINE)


def test_the_split_is_that_of_meta_csv_and_test_subjects_are_links_to_predict(source: Path) -> None:
    target, _ = convert(source)
    assert json.loads((target / "splits_final.json").read_text()) == [{"train": ["s0001"], "val": ["s0002"]}]
    link = target / "imagesTs" / "s0003_0000.nii.gz"
    assert link.is_symlink()
    assert link.resolve() == source / "s0003" / "ct.nii.gz"
    assert [path.name for path in (target / "labelsTs").iterdir()] == ["s0003.nii.gz"]


def test_without_validation_subjects_folds_are_nnunets(tmp_path: Path) -> None:
    masks = {"spleen": [box(0, 2)]}
    source = write_release(tmp_path / "mr", "mr", {"s0001": "train", "s0002": "test"}, masks)
    target, warnings = convert(source, classes=None)
    assert not (target / "splits_final.json").exists()
    assert any("no validation subjects" in warning for warning in warnings)
    assert any("CC BY-NC-SA 2.0: not for commercial use" in warning for warning in warnings)
    assert description(target)["licence"] == "CC BY-NC-SA 2.0"
    assert description(target)["channel_names"] == {"0": "MRI"}


def test_a_part_and_a_list_of_names_take_only_their_classes(tmp_path: Path) -> None:
    masks = {**MASKS, "aorta": [box(3, 5)]}
    source = write_release(tmp_path / "v2", "v2", {"s0001": "train"}, masks)
    target, _ = convert(source, classes="cardiac")
    assert list(description(target)["labels"])[:3] == ["background", "heart", "aorta"]
    assert len(description(target)["labels"]) == 19
    names = tmp_path / "names.txt"
    names.write_text("# two of them\nliver\n\naorta  # and no more\nlung_nodule\n")
    write_mask(source / "s0001" / "segmentations" / "lung_nodule.nii.gz", box(5, 6))
    conversion = prepare_totalsegmentator(source, tmp_path / "raw", 102, "Two", Options(classes=str(names)))
    conversion.run(conversion.pending(), 1)
    assert description(conversion.target)["labels"] == {"background": 0, "liver": 1, "aorta": 2, "lung_nodule": 3}
    assert read(conversion.target / "labelsTr" / "s0001.nii.gz")[:, 0, 0].tolist() == [0, 1, 1, 2, 2, 3]


def test_more_than_254_classes_make_16_bit_labels(tmp_path: Path) -> None:
    own = [f"own_{number:03d}" for number in range(150)]
    there = [*RELEASES["v2"].names, *own]
    source = write_release(tmp_path / "v2", "v2", {"s0001": "train"}, {own[-1]: [box(5, 6)]}, there)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(there))
    target, _ = convert(source, classes=str(names))
    label = nibabel.load(target / "labelsTr" / "s0001.nii.gz")
    assert label.get_data_dtype() == np.uint16
    assert read(target / "labelsTr" / "s0001.nii.gz").max() == 267


def test_missing_masks_become_the_annotations_of_a_case(source: Path) -> None:
    (source / "s0002" / "segmentations" / "liver.nii.gz").unlink()
    (source / "s0003" / "segmentations" / "adrenal_gland_right.nii.gz").unlink()
    with pytest.raises(DataError, match=r"2 masks are missing, first .*liver.nii.gz") as caught:
        prepare(source)
    assert "--missing unannotated" in caught.value.hint
    target, warnings = convert(source, missing="unannotated")
    annotations = load_annotations(target)
    assert annotations
    assert annotations.values == description(target)["labels"]
    assert set(annotations.cases) == {"s0001", "s0002"}
    assert set(annotations.leaves) - set(annotations.cases["s0002"].labels) == {"liver"}
    assert len(annotations.cases["s0001"].labels) == 24
    assert any("test cases lack masks" in warning and "s0003" in warning for warning in warnings)


def test_no_annotations_are_written_where_all_masks_are_there(source: Path) -> None:
    target, _ = convert(source, missing="unannotated")
    assert load_annotations(target) is None


def test_a_class_that_nobody_annotates_is_refused(source: Path) -> None:
    for subject in SPLIT:
        (source / subject / "segmentations" / "liver.nii.gz").unlink()
    with pytest.raises(DataError, match="no training case has a mask of 'liver'"):
        convert(source, missing="unannotated")


def test_subjects_that_nobody_annotated_are_left_out(source: Path) -> None:
    for name in MASKS:
        write_mask(source / "s0002" / "segmentations" / f"{name}.nii.gz")
    target, warnings = convert(source)
    assert any("left out, because no mask has a voxel: s0002" in warning for warning in warnings)
    assert [case.name for case in read_dataset(target)[0]] == ["s0001"]
    assert not (target / "splits_final.json").exists()


def test_a_subject_without_any_chosen_class_stays_if_others_are_there(tmp_path: Path) -> None:
    source = write_release(tmp_path / "v2", "v2", {"s0001": "train"}, MASKS)
    target, _ = convert(source, classes="ribs")
    assert len(read_dataset(target)[0]) == 1
    assert not read(target / "labelsTr" / "s0001.nii.gz").any()


def test_resampled_images_are_written_and_preprocessing_finds_nothing_left(source: Path) -> None:
    target, _ = convert(source, spacing_mm=3.0)
    check_dataset(target)
    assert "dataset" not in description(target)
    image = nibabel.load(target / "imagesTr" / "s0001_0000.nii.gz")
    assert image.shape == (3, 2, 2)
    assert image.get_data_dtype() == np.int16
    assert not (target / "imagesTs" / "s0003_0000.nii.gz").is_symlink()
    assert read(target / "labelsTs" / "s0003.nii.gz").shape == (3, 2, 2)


def test_a_variable_stands_for_the_folder_of_the_data(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, _ = convert(source, variable="TS_DATA")
    assert description(target)["dataset"]["s0001"]["images"] == ["$TS_DATA/s0001/ct.nii.gz"]
    monkeypatch.setenv("TS_DATA", str(source))
    check_dataset(target)


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda source: (source / name).write_text(text)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda source: (source / name).unlink()


@for_each(
    ("damage", "options", "message", "hint"),
    [
        (_remove("meta.csv"), {}, r"no file .*meta.csv'", "image_id;split"),
        (_write("meta.csv", "image_id,split\ns0001,train\n"), {}, r"no column 'image_id'; did you mean", "';'"),
        (
            _write("meta.csv", "id;splits\ns0001;train\n"),
            {},
            r"no column 'image_id' \(there: 'id', 'splits'\)",
            "s0001",
        ),
        (_write("meta.csv", "image_id;splits\ns1;train\n"), {}, r"no column 'split'; did you mean 'splits'\?", "s0001"),
        (_write("meta.csv", ""), {}, r"no column 'image_id' \(there: nothing\)", "s0001"),
        (_write("meta.csv", "image_id;split\ns0001;trian\n"), {}, r"line 2 .*'trian'; did you mean 'train'", "val"),
        (_write("meta.csv", "image_id;split\ns0001;train\ns0001;train\n"), {}, r"line 3 .* is there twice", "one of"),
        (_write("meta.csv", "image_id;split\ns0001;train\ns0001;val\n"), {}, r"is in 'train' and in 'val'", "one of"),
        (_write("meta.csv", "image_id;split\n../x;train\n"), {}, r"line 2 .* has the subject '../x'", "s0001"),
        (_write("meta.csv", "image_id;split\ns0003;test\n"), {}, r"no subject to train", "s0001;train"),
        (_remove("s0002/ct.nii.gz"), {}, r"1 of 3 subjects .* have no ct.nii.gz, first 's0002'", "--absent skip"),
        (_write("names.txt", "livre\nspleen\n"), {"classes": "names.txt"}, r"no class 'livre'; did you mean", "mask"),
        (_write("names.txt", "liver\nliver\n"), {"classes": "names.txt"}, r"names 'liver' twice", "one name"),
        (_write("names.txt", "\n"), {"classes": "names.txt"}, r"names no class", "one name"),
        (
            _write("names.txt", ""),
            {"classes": "organ"},
            r"no list, part or file 'organ'; did you mean 'organs'",
            "total",
        ),
        (
            _write("names.txt", ""),
            {"classes": "total_v1"},
            r"is TotalSegmentator v2, which has no 'total_v1'",
            "total, ",
        ),
        (_write("names.txt", ""), {"skip": ("s001",)}, r"no subject 's001'; did you mean 's0001'", "s0001"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    source: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, options: dict[str, Any], message: str, hint: str
) -> None:
    damage(source)
    monkeypatch.chdir(source)
    with pytest.raises(DataError, match=message) as caught:
        prepare(source, **options)
    assert hint in caught.value.hint
    assert not (source.parent / "raw").exists()


def test_subjects_can_be_skipped_by_name_and_where_they_are_absent(source: Path) -> None:
    (source / "s0002" / "ct.nii.gz").unlink()
    assert [case.name for case in prepare(source, absent="skip").sources] == ["s0001", "s0003"]
    assert [case.name for case in prepare(source, skip=("s0002",)).sources] == ["s0001", "s0003"]


@for_each("folder", ["nothing", "."])
def test_a_folder_without_subjects_is_no_data_set(tmp_path: Path, folder: str) -> None:
    with pytest.raises(DataError, match=r"no folder|no subject in") as caught:
        prepare(tmp_path / folder)
    assert "meta.csv" in caught.value.hint


def test_impossible_names_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="dataset 0"):
        prepare_totalsegmentator(source, tmp_path, 0, "TS", Options())


def _mask(subject: str, content: bytes) -> Callable[[Path], object]:
    return lambda source: (source / subject / "segmentations" / "liver.nii.gz").write_bytes(content)


def _other_grid(source: Path) -> None:
    write_mask(source / "s0001" / "segmentations" / "liver.nii.gz", shape=(*SHAPE[:2], 9))


def _four_axes(source: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((*SHAPE, 2), np.int16), AFFINE), source / "s0001" / "ct.nii.gz")


def _truncate_image(source: Path) -> None:
    path = source / "s0001" / "ct.nii.gz"
    path.write_bytes(path.read_bytes()[:-30])


@for_each(
    ("damages", "message"),
    [
        ([_mask("s0001", b"")], r"case 's0001': cannot read .*liver.nii.gz'"),
        ([_other_grid], r"case 's0001': .*liver.nii.gz' has the shape"),
        ([_four_axes], r"case 's0001': .*ct.nii.gz' has the shape \(6, 5, 4, 2\)"),
        ([_truncate_image], r"case 's0001': cannot read .*ct.nii.gz'"),
        ([_mask("s0001", b""), _mask("s0003", b"x")], r"case 's0001': .*; case 's0003'"),
    ],
)
def test_a_bad_subject_is_named_and_the_others_are_converted_once(
    source: Path, damages: Sequence[Callable[[Path], object]], message: str
) -> None:
    for damage in damages:
        damage(source)
    with pytest.raises(DataError, match=message) as caught:
        convert(source)
    assert "finished cases are kept" in caught.value.hint
    target = prepare(source).target
    assert (target / "labelsTr" / "s0002.nii.gz").is_file()
    assert not (target / "dataset.json").exists()
    assert "s0002" not in [case.name for case in prepare(source).pending()]


def test_the_real_subject_equals_the_official_loop(data: Path, tmp_path: Path) -> None:
    source = data / "TotalSegmentator_v2"
    conversion = prepare_totalsegmentator(source, tmp_path, 101, "TS", Options())
    conversion.run(conversion.pending(), 1)
    expected = np.zeros((122, 101, 30), np.uint8)
    for value, name in enumerate(RELEASES["v2"].names, start=1):
        expected[nibabel.load(source / "s0001" / "segmentations" / f"{name}.nii.gz").get_fdata() > 0] = value
    np.testing.assert_array_equal(read(conversion.target / "labelsTr" / "s0001.nii.gz"), expected)
    assert len(np.unique(expected)) == 41
    check_dataset(conversion.target)


def test_a_real_mr_image_and_its_masks_are_converted_on_its_own_grid(data: Path, tmp_path: Path) -> None:
    image, reference = (nibabel.load(data / "mr" / f"abdomen_mr{end}.nii.gz") for end in ("", "_seg"))
    expected = np.asanyarray(reference.dataobj).astype(np.uint8)
    folder = tmp_path / "mr" / "s0001"
    (folder / "segmentations").mkdir(parents=True)
    (folder / "mri.nii.gz").symlink_to(data / "mr" / "abdomen_mr.nii.gz")
    for value, name in enumerate(RELEASES["mr"].names, start=1):
        mask = nibabel.Nifti1Image((expected == value).astype(np.uint8), image.affine)
        nibabel.save(mask, folder / "segmentations" / f"{name}.nii.gz")
    (tmp_path / "mr" / "meta.csv").write_text("image_id;split\ns0001;train\n")
    target, warnings = convert(tmp_path / "mr", classes=None)
    np.testing.assert_array_equal(read(target / "labelsTr" / "s0001.nii.gz"), expected)
    assert len(np.unique(expected)) > 10
    assert any("CC BY-NC-SA" in warning for warning in warnings)
    check_dataset(target)
