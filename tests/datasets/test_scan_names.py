"""Names tell which files are label maps and whose the scans are, in the layouts that people have."""

from pathlib import Path

from stunet.datasets.scan_names import (
    Place,
    describe_subjects,
    is_label_folder,
    is_label_map,
    numbers_channels,
    subjects_of,
)


def subjects(*files: str, roots: int = 0) -> list[str]:
    """Those of files, of which the first folders, `roots` levels deep, are the ones that were given."""
    parts = [Path(file).parts for file in files]
    return subjects_of([Place(Path("/data", *one[:roots]), one[roots:-1], one[-1]) for one in parts])


def test_label_maps_and_masks_are_told_by_the_first_or_last_word() -> None:
    maps = "segmentation-0 labels-1 label0001 mask_001 sub-01_mod-T1w_defacemask p1_brainmask seg_p1 aparc+aseg"
    assert [name for name in maps.split() if not is_label_map(name)] == []
    others = "masked p1_masked volume-0 amos_0001 sub-01_T1w 0001 a p1 segthor_01 segmented_ct roi3d_x LUNG1-001 1 _"
    assert [name for name in others.split() if is_label_map(name)] == []
    folders = ("seg-lungs-LUNA16", "labelsTr", "masks_v2", "derivatives")
    assert [name for name in folders if not is_label_folder(name)] == []
    assert [name for name in ("imagesTr", "p1_seg", "with_labels", "masked", "p1") if is_label_folder(name)] == []
    assert is_label_map("liver_seg1")


def test_numbers_are_those_of_channels_if_every_image_has_one() -> None:
    assert numbers_channels({"a_0000", "a_0001", "b_0000"})
    for stems in ({"amos_0001", "amos_0002"}, {"x_0000", "x_0010"}, {"a_0000", "a_0001", "b"}, {"a"}):
        assert not numbers_channels(stems)
    place = Place(Path("/data"), ("imagesTr",), "a_0000")
    assert subjects_of([place]) == ["a_0000"]
    assert subjects_of([place], {(place.root, place.folders)}) == ["a"]


def test_general_words_are_nobody() -> None:
    for files, whose in (
        (("T1/p1", "T2/p1"), ["p1", "p1"]),
        (("baseline/p1", "followup1/p1"), ["p1", "p1"]),
        (("2019/p1", "2020/p1"), ["p1", "p1"]),
        (("p1_T1", "p1_T2", "p1_ses-2_FLAIR", "T1_p1", "p1_20190301"), ["p1"] * 5),
        (("amos_0001", "amos_0002", "img_1999"), ["amos_0001", "amos_0002", "1999"]),
        (("train/MR/p1/t1", "imagesTr/Scans/p2/scan_1"), ["p1", "p2"]),
        (("sub-01/anat/sub-01_T1w", "sourcedata/sub-01/x", "ds/sub-01_T2w"), ["sub-01"] * 3),
        (
            ("p1/2001-01-30/ct", "p1/x/y/z", "patients/p1/x", "part1/p1", "Task01_X/imagesTr/p1", "test_set/p1"),
            ["p1"] * 6,
        ),
        (("OAS_0001_MR1/a", "OAS_0001_MR2/b", "OAS_0002_MR1/c"), ["OAS_0001", "OAS_0001", "OAS_0002"]),
        (
            ("brain_scan_001", "case_00000/imaging", "1.2.3/1", "p1_scan2"),
            ["brain_scan_001", "case_00000", "1.2.3", "p1"],
        ),
    ):
        assert subjects(*files) == whose


def test_given_folders_are_people_if_nothing_below_them_is() -> None:
    assert subjects("p1/T1", "p1/T2", "p2/anat/T1", roots=1) == ["p1", "p1", "p2"]
    assert subjects("p1/anat/T1", "p2/anat/T1", roots=2) == ["p1", "p2"]
    assert subjects("siteA/001", "siteB/002", roots=1) == ["001", "002"]
    assert subjects("T1") == ["T1"]


def test_names_that_recur_in_a_few_folders_are_people() -> None:
    ixi = [f"IXI-{kind}/IXI{n:03d}-Guys-{kind}" for kind in ("T1", "T2") for n in range(4)]
    assert subjects(*ixi) == [f"IXI{n:03d}-Guys" for n in range(4)] * 2
    sites = [f"{site}/{n:03d}/ct" for site in ("here", "there") for n in range(12)]
    assert subjects(*sites) == [f"{n:03d}" for n in range(12)] * 2
    assert len(set(subjects(*(f"p{n}/{kind}" for n in range(6) for kind in ("x", "y", "z"))))) == 6
    assert set(subjects(*(f"p1/{n}" for n in range(12)))) == {"p1"}


def test_scans_of_one_person_are_told_by_what_their_names_share() -> None:
    for scans in (
        ("BraTS-GLI-{:05d}-000/x", "BraTS-GLI-{:05d}-001/x"),
        ("OAS3{:04d}_MR_d0129/anat1/x", "OAS3{:04d}_MR_d0757/anat1/x", "OAS3{:04d}_CT_d0339/x"),
        ("1000{:03d}_20252_2_0/T1/T1", "1000{:03d}_20252_3_0/T1/T1"),
        ("patient{:03d}_frame01", "patient{:03d}_frame12"),
        ("patient{:03d}_frame01_0000", "patient{:03d}_frame12_0000"),
        ("CHUM-{:03d}__CT", "CHUM-{:03d}__PT"),
        ("train_{}_a_1", "train_{}_a_2", "train_{}_b_1"),
        ("p{:03d}_V1", "p{:03d}_V2"),
        ("c{:03d}_arterial", "c{:03d}_portal"),
    ):
        for people in (3, 30):
            found = subjects(*(scan.format(n) for n in range(people) for scan in scans))
            assert found == [name for name in found[:: len(scans)] for _ in scans], scans
            assert len(set(found)) == people
    some = subjects(*(f"p{n:03d}_{scan}" for n in range(30) for scan in range(1 + (n == 7))))  # one was seen twice
    assert len(set(some)) == 30
    for name in ("amos_{:04d}", "amos_{:04d}_0000", "LUNG1-{:03d}", "IXI{:03d}-Guys-0{:03d}", "C3L-{}", "1.2.840.{}"):
        for people in (8, 80):
            assert len(set(subjects(*(name.format(n, n) for n in range(people))))) == people, name


def test_a_split_that_people_would_not_make_is_said() -> None:
    assert describe_subjects([f"p{n}" for n in range(3)]) == ("3 scans found, of 3 subjects", None)
    assert describe_subjects([f"p{n % 20}" for n in range(40)])[1] is None
    assert "subjects with more than 10% of the scans: 'a' (3), 'b' (2)" in (describe_subjects(list("aaabbc"))[1] or "")
    assert "one subject, 'amos'" in (describe_subjects(["amos"] * 2)[1] or "")
