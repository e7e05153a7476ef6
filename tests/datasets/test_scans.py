"""Scans are found in folders of any layout, each with a name of its own and the subject it is of."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stunet.datasets.scans import Found, Masks, find_scans
from stunet.errors import DataError
from stunet.names import name_problem
from tests.dicom_files import VOLUME, write_series
from tests.loops import for_each


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def cases(found: Found) -> dict[str, str]:
    return {one.name: one.subject for one in found.scans}


@for_each(
    ("files", "expected"),
    [
        (["p1.nii.gz", "p2.nrrd", "p3.mha", "p4.MGZ"], {name: name for name in ("p1", "p2", "p3", "p4")}),
        (["p1/ct.nii.gz", "p1/b/ct.nii.gz"], {"p1_ct": "p1", "p1_b_ct": "p1"}),
        (["imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"], {"imagesTr_a_0000": "a"}),
        (["train/MR/p1/t1.nii", "val/p2/t1.nii"], {"train_MR_p1_t1": "p1", "val_p2_t1": "p2"}),
        (
            ["sub-1/ses-1/anat/sub-1_ses-1_T1w.nii.gz", "sub-1/anat/sub-1_FLAIR.nii.gz", "ds2/sub-1/sub-1_T1w.nii.gz"],
            {"sub-1_ses-1_T1w": "sub-1", "sub-1_FLAIR": "sub-1", "sub-1_T1w": "sub-1"},
        ),
        (["sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz"], {"sub-1_T1w": "sub-1", "sub-1_T2w": "sub-1"}),
        (["a/x.nii", "a_x.nii"], {"a_x": "a_x", "data_a_x": "a"}),
        (["p 1/A:b.nii", "p 1/a b.nii", "p 1/a+b.hdr", "p 1/a+b.img"], {"p_1_A_b": "p 1"}),
    ],
)
def test_names_and_subjects_follow_from_paths(tmp_path: Path, files: list[str], expected: dict[str, str]) -> None:
    touch(tmp_path / "data", *files)
    found = cases(find_scans([tmp_path / "data"]))
    assert expected.items() <= found.items()
    assert len({name.casefold() for name in found}) == len(found)
    assert not any(map(name_problem, found))


def test_long_names_and_names_that_end_like_labels_stay_names(tmp_path: Path) -> None:
    touch(tmp_path / "data", *(f"{'x' * 200}/{letter * 200}.nii" for letter in "ab"), "p_seg/.nii.gz", "p/_seg.nrrd")
    found = cases(find_scans([tmp_path / "data"]))
    assert not any(map(name_problem, found))
    assert len(found) == 2


def test_the_names_of_a_first_folder_stay_when_another_one_comes(tmp_path: Path) -> None:
    for root in ("one", "two"):
        touch(tmp_path / root, "p1/ct.nii.gz")
    first = cases(find_scans([tmp_path / "one"]))
    both = cases(find_scans([tmp_path / "one", tmp_path / "two"]))
    assert both == {**first, "two_p1_ct": "p1"}  # one subject, as far as names tell
    assert cases(find_scans([tmp_path / "one", tmp_path / "one"])) == first
    assert len(cases(find_scans([tmp_path / "one" / "p1", tmp_path]))) == 2


def test_label_maps_are_left_out_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "p1.nii.gz", "p1_seg.nii.gz", "p1.seg.nrrd", "p1-label.nrrd", "mask.nii.gz", "sub-1_dseg.nii.gz")
    touch(tmp_path, "derivatives/p1.nii.gz", "labelsTs/p1.nii.gz", "p2/segmentations/liver.nii.gz", ".hidden.nii.gz")
    touch(tmp_path, "notes.txt", "p3.tif", "masked.nii.gz")
    found = find_scans([tmp_path])
    assert set(cases(found)) == {"p1", "masked"}
    said = " ".join(found.warnings())
    assert "8 label maps and masks, by their names, are left out" in said
    assert "1 files of a format that is not read (.tif) are left out: 'p3.tif'" in said


def test_channels_are_matched_by_suffix_and_incomplete_scans_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "p1/a_t1.nii", "p1/a_flair.nii", "p2/a_t1.nii", "p2/a_flair.nii", "p3/a_t1.nii", "p1/other.nii")
    found = find_scans([tmp_path], ["_t1", "_flair"])
    assert [[path.name for path in one.images] for one in found.scans] == [["a_t1.nii", "a_flair.nii"]] * 2
    assert cases(found) == {"p1_a": "p1", "p2_a": "p2"}
    said = " ".join(found.warnings())
    assert "1 files of scans that lack a channel are left out: 'a_t1.nii'" in said
    assert "1 files without the suffix of a channel are left out: 'other.nii'" in said


def test_masks_lie_beside_the_images_or_in_a_folder_of_their_own(tmp_path: Path) -> None:
    touch(tmp_path / "data", "p1/t1.nii.gz", "p1/t1_deface.nii.gz", "p2/t1.nii.gz")
    touch(tmp_path / "data", "body/p1/t1.nrrd", "body/p2/t1.nrrd")
    found = find_scans([tmp_path / "data"], masks=Masks("_deface"), rois=Masks(str(tmp_path / "data" / "body")))
    assert [(one.name, one.mask and one.mask.name) for one in found.scans] == [
        ("p1_t1", "t1_deface.nii.gz"),
        ("p2_t1", None),
    ]
    assert [one.roi for one in found.scans] == [tmp_path / f"data/body/{name}/t1.nrrd" for name in ("p1", "p2")]
    assert found.scans[0].signature != find_scans([tmp_path / "data"]).scans[0].signature
    with pytest.raises(DataError, match="has a mask in '_no'"):
        find_scans([tmp_path / "data"], masks=Masks("_no"))


def test_a_mask_belongs_to_no_image_if_it_could_belong_to_another(tmp_path: Path) -> None:
    touch(tmp_path, "a/p1/ct.nii.gz", "a/p2/ct.nii.gz", "a/p3/mr.nii.gz", "b/p1/ct.nii.gz", "b/p1/pet.nii.gz")
    touch(
        tmp_path, "masks/p1/ct.nii.gz", "masks/b/p1/pet.nii.gz", "masks/mr.nii.gz", "twice/x/mr.nii", "twice/y/mr.nii"
    )

    def masks(*roots: str, where: str = "masks") -> tuple[Found, dict[str, str]]:
        found = find_scans([tmp_path / root for root in roots], masks=Masks(str(tmp_path / where)))
        paths = {one.name: one.mask and one.mask.relative_to(tmp_path / where).as_posix() for one in found.scans}
        return found, {name: path for name, path in paths.items() if path}

    found, of = masks("a")
    assert of == {"p1_ct": "p1/ct.nii.gz", "p3_mr": "mr.nii.gz"}
    assert [text for text in found.warnings() if "no mask" in text] == [
        f"1 of 3 images have no mask in {str(tmp_path / 'masks')!r}, and count everywhere: 'p2_ct'"
    ]
    # The mask of a/p1 may as well be that of b/p1; a folder with the name of the one that was given tells.
    assert masks("a", "b")[1] == {"p3_mr": "mr.nii.gz", "p1_pet": "b/p1/pet.nii.gz"}
    touch(tmp_path, "masks/a/p1/ct.nii.gz")
    assert masks("a", "b")[1]["p1_ct"] == "a/p1/ct.nii.gz"
    with pytest.raises(DataError, match="could be the mask of 'mr'"):
        masks("a", where="twice")


def test_dicom_series_are_scans_whose_subject_is_a_hash_of_the_patient(tmp_path: Path) -> None:
    write_series(tmp_path / "a" / "ct", PatientID="Doe^Jane", SeriesInstanceUID="1.1", SeriesNumber="4")
    write_series(tmp_path / "a" / "ct", PatientID="Doe^Jane", SeriesInstanceUID="1.2", SeriesNumber="5", names="ghijkl")
    write_series(tmp_path / "b", PatientID="Doe^Jane", ImageType=["ORIGINAL", "PRIMARY"], Modality="MR")
    write_series(tmp_path / "c", VOLUME[:2], PatientID="anonymous", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "d", PatientID="ANONYMIZED", ImageType=["DERIVED", "SECONDARY"], SeriesInstanceUID="1.3")
    found = find_scans([tmp_path])
    assert [one.name for one in found.scans] == ["a_ct_4", "a_ct_5", "b", "d"]
    assert len({one.subject for one in found.scans[:3]}) == 1
    assert found.scans[0].subject.startswith("patient-")
    assert "Doe" not in repr([one.subject for one in found.scans])
    assert found.scans[3].subject == "d"
    assert found.kinds == {"CT": 3, "MR": 1}
    assert "1 DICOM series (localizers, derived, of another modality or no images) are left out" in found.warnings()[0]
    assert [one.name for one in find_scans([tmp_path], channel="MRI").scans] == ["b"]
    with pytest.raises(DataError, match="folders of DICOM series, which have one channel,"):
        find_scans([tmp_path], ["_t1", "_t2"])


def test_series_without_a_patient_are_of_whom_their_folder_is_and_copies_of_the_same(tmp_path: Path) -> None:
    for number, name in ((1, "abcdef"), (2, "ghijkl")):
        uid = f"1.{number}"
        write_series(tmp_path / "p1", PatientID="", SeriesInstanceUID=uid, SeriesNumber=str(number), names=name)
    write_series(tmp_path / "p2" / "copy", PatientID="", SeriesInstanceUID="1.2")
    write_series(tmp_path / "p3", PatientID="", SeriesInstanceUID="1.3")
    found = find_scans([tmp_path])
    assert cases(found) == {"p1_1": "p1", "p1_2": "p1", "p2_copy": "p1", "p3": "p3"}
    assert found.warnings() == [
        "1 DICOM series are in two folders, and are taken twice: "
        f"{str(tmp_path / 'p1')!r} and {str(tmp_path / 'p2' / 'copy')!r}"
    ]


def test_a_scan_is_taken_once_however_it_is_reached(tmp_path: Path) -> None:
    touch(tmp_path / "g", "p1/ct.nii.gz", "p2/ct.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path / "g")
    for other in (tmp_path / "g" / ".." / "g", tmp_path / "link", tmp_path / "g" / "p1"):
        found = find_scans([tmp_path / "g", other])
        assert (len(found.scans), found.warnings()) == (2, [])
    (tmp_path / "g" / "p3").mkdir()
    (tmp_path / "g" / "p3" / "x.nii.gz").symlink_to(tmp_path / "g" / "p1" / "ct.nii.gz")
    assert find_scans([tmp_path / "g"]).warnings() == ["1 files that are others by a link are left out: 'x.nii.gz'"]


@for_each(
    ("make", "message"),
    [
        (lambda root: None, "no folder"),
        (lambda root: touch(root, "notes.txt"), "no images in"),
        (lambda root: touch(root, "labelsTr/a.nii.gz"), "no images in .*1 label maps and masks"),
    ],
)
def test_folders_without_images_are_named(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        find_scans([tmp_path / "data"])
