"""Folders of pairs and BIDS folders become sound raw datasets; what belongs to nothing is listed."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.cli import convert as command
from stunet.datasets.bids import parse, prepare_bids
from stunet.datasets.check import check_dataset
from stunet.datasets.conversion import Conversion
from stunet.datasets.pairs import prepare_pairs
from stunet.errors import DataError, UsageError
from tests.loops import for_each

SHAPE = (4, 5, 6)
NAMES = {1: "liver", 4: "portal vein"}


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, path)
    return path


def image(path: Path) -> Path:
    return write(path, np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16))


def label(path: Path, *values: int) -> Path:
    return write(path, np.resize(np.array(values or (0, 1, 4), np.uint8), SHAPE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two patients in one folder, with two channels and a label map each."""
    for case in ("p_1", "p_2"):
        image(tmp_path / "data" / f"{case}_t1.nii.gz")
        image(tmp_path / "data" / f"{case}_t1ce.nii.gz")
        label(tmp_path / "data" / f"{case}_seg.nii.gz")
    return tmp_path / "data"


CHANNELS = {"T1": "_t1", "T1CE": "_t1ce"}


def pairs(folder: Path, labels: Path | None = None, **options: Any) -> Conversion:
    options = {"channels": CHANNELS, "names": NAMES, "label_suffix": "_seg", **options}
    return prepare_pairs(folder, labels or folder, folder.parent / "raw", 5, "Pairs", **options)


def run(conversion: Conversion) -> Path:
    conversion.run(conversion.pending(), 1)
    return conversion.target


def description(target: Path) -> dict[str, Any]:
    return json.loads((target / "dataset.json").read_text())


def test_pairs_become_a_sound_dataset_with_consecutive_values(folder: Path) -> None:
    target = run(pairs(folder))
    check_dataset(target)
    content = description(target)
    assert content["labels"] == {"background": 0, "liver": 1, "portal vein": 2}
    assert content["channel_names"] == {"0": "T1", "1": "T1CE"}
    assert content["dataset"]["p_1"]["images"] == [str(folder / f"p_1{suffix}.nii.gz") for suffix in CHANNELS.values()]
    written = sitk.ReadImage(target / "labelsTr" / "p_1.nii.gz")
    assert written.GetMetaData("intent_code") == "1002"
    expected = sitk.GetArrayFromImage(sitk.ReadImage(folder / "p_1_seg.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), np.where(expected == 4, 2, expected))
    assert written.GetSpacing() == pytest.approx((1, 2, 3))


@for_each("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_images_and_labels_may_be_in_two_folders_and_in_other_formats(tmp_path: Path, ending: str) -> None:
    image(tmp_path / "ct" / f"case{ending}")
    label(tmp_path / "masks" / f"case{ending}")
    target = run(pairs(tmp_path / "ct", tmp_path / "masks", channels={"CT": ""}, label_suffix=""))
    check_dataset(target)
    assert description(target)["file_ending"] == ending
    assert (target / "labelsTr" / f"case{ending}").is_file()


def test_more_than_255_classes_are_kept_apart(folder: Path) -> None:
    names = {value: f"class_{value}" for value in range(1, 301)}
    for case in ("p_1", "p_2"):
        write(folder / f"{case}_seg.nii.gz", np.resize(np.arange(301, dtype=np.uint16), SHAPE) + 181)
    target = run(pairs(folder, names=names))
    check_dataset(target)
    assert sitk.GetArrayFromImage(sitk.ReadImage(target / "labelsTr" / "p_1.nii.gz")).max() == 300


def test_files_without_counterpart_are_listed_or_skipped(folder: Path) -> None:
    image(folder / "p_3_t1.nii.gz")
    image(folder / "p_3_t1ce.nii.gz")
    label(folder / "p_4_seg.nii.gz")
    image(folder / "notes.nii.gz")
    with pytest.raises(
        DataError, match=r"4 files without their counterpart: .*notes.*p_3_t1.*p_3_t1ce.*p_4_seg"
    ) as caught:
        pairs(folder)
    assert "--unmatched skip" in caught.value.hint
    assert [case.name for case in pairs(folder, unmatched="skip").sources] == ["p_1", "p_2"]


def test_what_is_no_image_of_a_case_is_listed_or_named_as_left_out(folder: Path) -> None:
    (folder / "p_2_seg.nii.gz").rename(folder / "p_2_seg.NII.GZ")
    (folder / "series").mkdir()
    (folder / "series" / "1.dcm").touch()
    (folder / "p_3_t1.mhd").touch()
    (folder / "._p_1_t1.nii.gz").touch()
    with pytest.raises(DataError, match=r"2 files without their counterpart: .*p_3_t1.mhd.*series"):
        pairs(folder)
    conversion = pairs(folder, unmatched="skip")
    assert [case.name for case in conversion.sources] == ["p_1", "p_2"]
    assert conversion.warnings == ("2 files are left out: 'p_3_t1.mhd', 'series'",)
    check_dataset(run(conversion))


def test_slicers_segmentations_are_label_maps_with_a_suffix(tmp_path: Path) -> None:
    image(tmp_path / "data" / "a.nrrd")
    label(tmp_path / "data" / "a.seg.nrrd")
    [case] = pairs(tmp_path / "data", channels={"CT": ""}, label_suffix=".seg").sources
    assert (case.name, case.labels) == ("a", (tmp_path / "data" / "a.seg.nrrd",))


def test_a_label_map_of_two_channels_and_a_broken_link_are_named_and_the_others_converted(folder: Path) -> None:
    write(folder / "p_1_seg.nii.gz", np.zeros((2, *SHAPE), np.uint8), (1.0, 1.0, 1.0, 1.0))
    for suffix in ("t1", "t1ce", "seg"):
        (folder / f"p_0_{suffix}.nii.gz").symlink_to("/nowhere/image.nii.gz")
    with pytest.raises(DataError, match=r"p_0_t1.nii.gz' is a broken link.*p_1_seg.nii.gz' has 2 channels"):
        run(pairs(folder))
    assert (folder.parent / "raw/Dataset005_Pairs/labelsTr/p_2.nii.gz").is_file()


def _lose_a_channel(folder: Path) -> None:
    (folder / "p_2_t1ce.nii.gz").unlink()


def _another_format(folder: Path) -> None:
    (folder / "p_2_seg.nii.gz").unlink()
    label(folder / "p_2_seg.nrrd")


def _all_in_metaimage(folder: Path) -> None:
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace(".nii.gz", ".mhd")))


def _no_labels(folder: Path) -> None:
    for case in ("p_1", "p_2"):
        (folder / f"{case}_seg.nii.gz").unlink()


def _nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@for_each(
    ("damage", "message"),
    [
        (_lose_a_channel, r"case 'p_2' has 'p_2_t1.nii.gz', but no image that ends with '_t1ce'"),
        (_all_in_metaimage, r"p_1_t1.mhd' is of a format that nnU-Net does not read"),
        (_another_format, r"several formats, such as .*p_2_seg.nrrd.* and .*p_1"),
        (_no_labels, r"no image has a label: 4 files"),
        (_nothing, r"neither images nor labels"),
    ],
)
def test_incomplete_folders_are_refused(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        pairs(folder, unmatched="skip")
    assert caught.value.hint


@for_each(
    ("images", "labels", "hint"),
    [
        (("a_ct", "b_ct"), ("a_seg", "b_seg"), "--label_suffix=_seg --channels NAME=_ct"),
        (("a", "b"), ("a-label", "b-label"), "--label_suffix=-label"),
        (("a", "b"), ("a", "b"), "no suffixes at all"),
        (("a_t1", "b_t1", "a_mask", "b_mask"), None, "--label_suffix=_mask --channels NAME=_t1"),
        (("p1_mr", "p2_mr"), ("p1_mask", "p2_mask"), "--label_suffix=_mask --channels NAME=_mr"),
        (("p1_scan", "p1_seg", "p2_scan", "p2_seg"), None, "--label_suffix=_seg --channels NAME=_scan"),
        (("image1", "image2"), ("mask1", "mask2"), "check the suffixes"),
    ],
)
def test_suffixes_that_fit_nothing_are_answered_with_those_that_do(
    images: tuple[str, ...], labels: tuple[str, ...] | None, hint: str, tmp_path: Path
) -> None:
    for name in images:
        image(tmp_path / "i" / f"{name}.nii.gz")
    for name in labels or ():
        label(tmp_path / "l" / f"{name}.nii.gz")
    with pytest.raises(DataError) as caught:
        pairs(tmp_path / "i", tmp_path / ("l" if labels else "i"), channels={"CT": "_x"}, label_suffix="_y")
    assert hint in caught.value.hint


def test_a_missing_folder_and_suffixes_that_tell_nothing_apart_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        pairs(folder / "nothing")
    with pytest.raises(UsageError, match="do not tell the files apart"):
        pairs(folder, channels={"CT": ""}, label_suffix="")


def _other_value(folder: Path) -> None:
    label(folder / "p_2_seg.nii.gz", 0, 3)


def _other_spacing(folder: Path) -> None:
    write(folder / "p_2_seg.nii.gz", np.zeros(SHAPE, np.uint8), (1.0, 1.0, 1.0))


def _fractions(folder: Path) -> None:
    write(folder / "p_2_seg.nii.gz", np.full(SHAPE, 0.5, np.float32))


def _truncated(folder: Path) -> None:
    path = folder / "p_2_seg.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])


@for_each(
    ("damage", "message"),
    [
        (_other_value, r"case 'p_2': .*p_2_seg.nii.gz' holds the values 3"),
        (_other_spacing, r"case 'p_2': spacing of .*p_2_seg.nii.gz'"),
        (_fractions, r"case 'p_2': .* holds values that are not integers: 0.5"),
        (_truncated, r"case 'p_2': cannot read .*p_2_seg.nii.gz'"),
    ],
)
def test_a_bad_label_map_is_named_and_the_others_are_kept(folder: Path, damage: Any, message: str) -> None:
    damage(folder)
    conversion = pairs(folder)
    with pytest.raises(DataError, match=message):
        run(conversion)
    assert [case.name for case in conversion.pending()] == ["p_2"]


def test_a_full_disk_is_named(folder: Path, room_for: Callable[[int], AbstractContextManager[None]]) -> None:
    conversion = pairs(folder)
    run(conversion)
    (conversion.target / "labelsTr" / "p_2.nii.gz").unlink()
    with room_for(60), pytest.raises(DataError, match="no space for case 'p_2'"):
        run(conversion)
    assert [path.name for path in (conversion.target / "labelsTr").iterdir()] == ["p_1.nii.gz"]


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Two subjects; the second has two sessions, of which one is labelled."""
    root = tmp_path / "bids"
    for name in ("sub-01/anat/sub-01", "sub-02/ses-1/anat/sub-02_ses-1", "sub-02/ses-2/anat/sub-02_ses-2"):
        image(root / f"{name}_T1w.nii.gz")
        image(root / f"{name}_ce-GAD_T1w.nii.gz")
    for name in ("sub-01/anat/sub-01", "sub-02/ses-2/anat/sub-02_ses-2"):
        label(root / "derivatives" / "manual" / f"{name}_space-orig_desc-manual_dseg.nii.gz")
    (root / "derivatives" / "manual" / "desc-manual_dseg.tsv").write_text("index\tname\n1\tliver\n4\tportal vein\n")
    return root


def from_bids(root: Path, **options: Any) -> Conversion:
    options = {"channels": {"T1": "T1w", "CE": "ce-GAD_T1w"}, "unmatched": "skip", **options}
    return prepare_bids(root, root.parent / "raw", 6, "Bids", **options)


def test_a_name_is_taken_apart() -> None:
    name = parse("sub-01_T1w_desc-manual_dseg.nii.gz")
    assert name.entities == (("sub", "01"), ("desc", "manual"))
    assert name.suffix == "dseg"


def test_a_bids_folder_becomes_a_sound_dataset(bids: Path) -> None:
    target = run(from_bids(bids))
    check_dataset(target)
    content = description(target)
    assert set(content["dataset"]) == {"sub-01", "sub-02_ses-2"}
    assert content["dataset"]["sub-01"]["images"][1] == str(bids / "sub-01" / "anat" / "sub-01_ce-GAD_T1w.nii.gz")
    assert content["labels"] == {"background": 0, "liver": 1, "portal vein": 2}


def test_hidden_files_and_other_endings_of_a_bids_folder(bids: Path) -> None:
    (bids / "derivatives" / "manual" / "sub-01" / "anat" / "._sub-01_desc-manual_dseg.nii.gz").touch()
    anat = bids / "sub-01" / "anat"
    (anat / "sub-01_T1w.nii.gz").rename(anat / "sub-01_T1w.NII.GZ")
    assert [case.name for case in from_bids(bids).sources] == ["sub-01", "sub-02_ses-2"]
    (anat / "sub-01_T1w.NII.GZ").rename(anat / "sub-01_T1w.nii")
    with pytest.raises(DataError, match=r"several formats, such as .*sub-01_T1w.nii'"):
        from_bids(bids)


def test_images_without_labels_are_listed(bids: Path) -> None:
    with pytest.raises(DataError, match=r"2 files without their counterpart: .*ses-1_T1w.*") as caught:
        from_bids(bids, channels={"CE": "ce-GAD_T1w", "T1": "T1w"}, unmatched="error")
    assert "--unmatched skip" in caught.value.hint


def _two_labels(root: Path) -> None:
    label(root / "derivatives" / "manual" / "sub-01" / "anat" / "sub-01_desc-auto_dseg.nii.gz")


def _two_pipelines(root: Path) -> None:
    label(root / "derivatives" / "auto" / "sub-01" / "anat" / "sub-01_dseg.nii.gz")


def _no_pipeline(root: Path) -> None:
    (root / "derivatives").rename(root / "other")


def _no_table(root: Path) -> None:
    (root / "derivatives" / "manual" / "desc-manual_dseg.tsv").unlink()


def _no_subject(root: Path) -> None:
    for path in root.glob("sub-*"):
        path.rename(root / f"x{path.name}")


def _no_channel(root: Path) -> None:
    (root / "sub-01" / "anat" / "sub-01_ce-GAD_T1w.nii.gz").unlink()


@for_each(
    ("damage", "message", "hint"),
    [
        (_two_labels, r"desc-auto_dseg.* and .*desc-manual_dseg.* are labels of the same images", "--label"),
        (_two_pipelines, r"2 folders of labels in .*: auto, manual", "--derivatives"),
        (_no_pipeline, r"0 folders of labels in .*: none", "--derivatives"),
        (_no_table, r"0 tables of labels", "--labels"),
        (_no_subject, r"is not a BIDS folder", "dataset_description"),
        (_no_channel, r"has 'sub-01_T1w.nii.gz', but no image that ends with _ce-GAD_T1w.nii.gz", "add the image"),
    ],
)
def test_what_is_not_clear_in_a_bids_folder_is_asked_for(bids: Path, damage: Any, message: str, hint: str) -> None:
    damage(bids)
    with pytest.raises(DataError, match=message) as caught:
        from_bids(bids)
    assert hint in caught.value.hint


def test_what_was_asked_for_is_chosen(bids: Path) -> None:
    _two_labels(bids)
    _two_pipelines(bids)
    conversion = from_bids(bids, derivatives="manual", label="desc-auto_dseg", names=NAMES)
    assert [case.name for case in conversion.sources] == ["sub-01"]
    with pytest.raises(DataError, match=r"no sub-\* in .*hand"):
        from_bids(bids, derivatives="hand")


def test_the_commands_convert(
    folder: Path, bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labels.txt").write_text("1 liver\n4 portal vein\n")
    common = ["-o", str(tmp_path / "raw"), "-np", "1", "--labels", str(tmp_path / "labels.txt")]
    channels = ["--channels", "T1=_t1", "CE=_t1ce", "--label_suffix", "_seg"]
    assert command.main(["pairs", "-i", str(folder), "-d", "5", "--name", "Pairs", *channels, *common]) == 0
    channels = ["--channels", "T1w", "CE=ce-GAD_T1w", "--unmatched", "skip", "--variable", "BIDS"]
    monkeypatch.setenv("BIDS", str(bids))
    assert command.main(["bids", "-i", str(bids), "-d", "6", "--name", "Bids", *channels, *common]) == 0
    targets = [tmp_path / "raw" / name for name in ("Dataset005_Pairs", "Dataset006_Bids")]
    assert capsys.readouterr().out.splitlines() == list(map(str, targets))
    assert description(targets[0])["channel_names"] == {"0": "T1", "1": "CE"}
    assert description(targets[1])["channel_names"] == {"0": "T1w", "1": "CE"}
    assert description(targets[1])["dataset"]["sub-01"]["images"][0] == "$BIDS/sub-01/anat/sub-01_T1w.nii.gz"
    check_dataset(targets[1])


def test_other_labels_may_be_named_as_long_as_no_case_is_converted(folder: Path) -> None:
    with pytest.raises(DataError, match="holds the value"):
        run(pairs(folder, names={1: "liver"}))
    check_dataset(run(pairs(folder)))
    with pytest.raises(DataError, match="was converted with"):
        run(pairs(folder, names={1: "liver"}))


def test_a_channel_that_is_named_twice_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    channels = ["--channels", "T1=_t1", "T1=_t1ce"]
    rest = ["--labels", "liver", "-d", "5", "--name", "Pairs", "-o", str(folder.parent)]
    assert command.main(["pairs", "-i", str(folder), *channels, *rest]) == 2
    assert "--channels names 'T1' twice" in capsys.readouterr().err


@for_each(("there", "twin"), [("p_1_t1.nii.gz", "p_1_t1.nii"), ("p_2_seg.nii.gz", "p_2_seg.NII.GZ")])
def test_a_file_that_is_there_in_two_formats_is_asked_for(folder: Path, there: str, twin: str) -> None:
    (folder / twin).write_bytes((folder / there).read_bytes())
    with pytest.raises(DataError, match=rf"{twin[:5]}.*are the same case") as caught:
        pairs(folder)
    assert caught.value.hint == "remove one of them"
    assert there in caught.value.message
    assert twin in caught.value.message


@for_each("there", ["anat/sub-01_T1w.nii.gz", "anat/sub-01_space-orig_desc-manual_dseg.nii.gz"])
def test_an_image_of_bids_that_is_there_in_two_formats_is_asked_for(bids: Path, there: str) -> None:
    path = (bids if "T1w" in there else bids / "derivatives" / "manual") / "sub-01" / there
    twin = image(path.with_name(path.name.removesuffix(".gz")))
    with pytest.raises(DataError, match=r"sub-01.*\.nii' and .*\.nii\.gz' are the same case"):
        from_bids(bids)
    image(bids / "sub-01" / "func" / "sub-01_bold.nii.gz")
    image(bids / "sub-01" / "func" / "sub-01_bold.nii")
    twin.unlink()
    from_bids(bids)


@for_each("name", ["a\\b", "a\nb", "n" * 224])
def test_names_that_no_case_can_have_are_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    image(tmp_path / "im" / f"{name}.nii.gz")
    label(tmp_path / "lb" / f"{name}.nii.gz")
    with pytest.raises(DataError, match=r"case .*(is a path|control character|longer than 223 bytes)"):
        pairs(tmp_path / "im", tmp_path / "lb", channels={"CT": ""}, label_suffix="")
    assert not (tmp_path / "raw").exists()
