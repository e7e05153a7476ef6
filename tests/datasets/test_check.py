"""Every problem of a raw dataset is found, named with its file, and comes with a next step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.datasets import label_values, list_cases, read_dataset, training_files
from stunet.datasets.check import check_dataset
from stunet.datasets.contents import nonzero_box
from stunet.datasets.layout import pairs_command
from stunet.errors import DataError
from tests.loops import for_each
from tests.processes import forked_from_the_server

SHAPE = (4, 5, 6)
Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound dataset: cases a, b and c with two channels, classes organ and tumour."""
    for case in "abc":
        for channel in range(2):
            _write(tmp_path / f"imagesTr/{case}_{channel:04d}.nii.gz", np.ones(SHAPE, np.float32))
        _write(tmp_path / f"labelsTr/{case}.nii.gz", np.arange(120, dtype=np.uint8).reshape(SHAPE) % 3)
    description = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "organ": 1, "tumour": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def test_a_sound_dataset_passes_and_every_case_is_reported(folder: Path) -> None:
    seen: list[str] = []
    check_dataset(folder, on_case=seen.append)
    assert seen == ["a", "b", "c"]


def test_cases_in_other_units_than_the_rest_are_named(folder: Path) -> None:
    hu = np.linspace(-1000, 300, 120, dtype=np.float32).reshape(SHAPE)
    for case, shift in (("a", 0), ("b", 1024), ("c", 1)):
        _write(folder / f"imagesTr/{case}_0000.nii.gz", hu + shift)
    (said,) = [text for text in check_dataset(folder) if "units" in text or "unlike" in text]
    assert "cases 'b' (" in said
    assert "unlike the 2 others" in said


def test_the_real_hippocampus_cases_pass(data: Path, tmp_path: Path) -> None:
    source = data / "Task04_Hippocampus"
    names = ["hippocampus_001", "hippocampus_003", "hippocampus_004"]
    _list_files(
        tmp_path,
        {n: {"images": [f"{source}/imagesTr/{n}.nii.gz"], "label": f"{source}/labelsTr/{n}.nii.gz"} for n in names},
    )
    check_dataset(tmp_path)


def _set(**changes: Any) -> Damage:
    """Replaces entries of dataset.json; None removes one."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / "dataset.json").read_text()) | changes
        (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return damage


def _text(text: str) -> Damage:
    return lambda folder: (folder / "dataset.json").write_text(text)


def _remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def _rename(name: str, new: str) -> Damage:
    return lambda folder: (folder / name).rename(folder / new)


def _cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return damage


def _fill(name: str, value: float, **geometry: Any) -> Damage:
    def damage(folder: Path) -> None:
        array = np.zeros(geometry.pop("shape", SHAPE), np.float32)
        array[1, 2, 3] = value
        _write(folder / name, array, **geometry)

    return damage


def _bytes(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def _both(first: Damage, second: Damage) -> Damage:
    return lambda folder: (first(folder), second(folder))


def _channels(name: str) -> Damage:
    return lambda folder: _write(folder / name, np.zeros((2, *SHAPE), np.uint8))


def _link(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/nowhere/image.nii.gz")

    return damage


def _all_labels(value: int, plane: int | None = None) -> Damage:
    """Every label map holds one value, everywhere or in one plane of the first axis."""

    def damage(folder: Path) -> None:
        array = np.full(SHAPE, value, np.uint8)
        if plane is not None:
            array[[i for i in range(SHAPE[0]) if i != plane]] = 0
        for name in "abc":
            _write(folder / f"labelsTr/{name}.nii.gz", array)

    return damage


def _images(planes: dict[int, slice], then: Damage = lambda folder: None) -> Damage:
    """All images are 0 before this plane of the first axis, and 1 and more in the slice of the second one."""

    def damage(folder: Path) -> None:
        array = np.zeros(SHAPE, np.float32)
        for plane, rows in planes.items():
            array[plane:, rows] = np.random.default_rng(plane).uniform(1, 2, array[plane:, rows].shape)
        for path in (folder / "imagesTr").iterdir():
            _write(path, array)
        then(folder)

    return damage


_nibabel = _set(overwrite_image_reader_writer="NibabelIO")  # ITK reads NaN in a NIfTI as 0
PROBLEMS = {
    "dataset.json is missing": (_remove("dataset.json"), r"no file .*dataset.json"),
    "dataset.json is no JSON": (_text('{"labels": '), r"not valid JSON"),
    "dataset.json is a list": (_text("[]"), r"expected a table"),
    "keys are missing": (_set(labels=None, channel_names=None), r"missing 'labels'"),
    "channels are not numbered": (_set(channel_names={"CT": 0}), r"channel_names: is \{'CT': 0\}"),
    "the ending has no dot": (_set(file_ending="nii.gz"), r"file_ending: expected .* got 'nii.gz'"),
    "labels are those of version 1": (_set(labels={"0": "background"}), r"do not name the background"),
    "background is not 0": (_set(labels={"background": 1, "organ": 0}), r"background is 1"),
    "a label is no number": (
        _set(labels={"background": 0, "organ": "x"}),
        r"labels.organ: expected an integer or a list",
    ),
    "labels are not consecutive": (_set(labels={"background": 0, "organ": 2}), r"not consecutive: \[0, 2\]"),
    "ignore is not the highest": (_set(labels={"background": 0, "a": 1, "ignore": 5}), r"ignore label is 5"),
    "regions have no order": (_set(labels={"background": 0, "a": [1, 2], "b": 2}), r"regions_class_order is None"),
    "the number of cases is wrong": (_set(numTraining=5), r"numTraining is 5 .* 3 training cases"),
    "the reader is unknown": (_set(overwrite_image_reader_writer="MyIO"), r"no reader of nnU-Net: 'MyIO'"),
    "there are no such files": (_set(file_ending=".nrrd"), r"no \.nrrd files .*a_0000.nii.gz"),
    "a name has no channel": (
        _rename("imagesTr/b_0000.nii.gz", "imagesTr/b.nii.gz"),
        r"b.nii.gz' does not end in _0000",
    ),
    "a label is missing": (_remove("labelsTr/b.nii.gz"), r"case 'b' has no label .*b.nii.gz"),
    "a channel is missing": (_remove("imagesTr/b_0001.nii.gz"), r"case 'b' lacks the image .*b_0001.nii.gz"),
    "no case has the channel": (_set(channel_names={"0": "CT", "1": "PET", "2": "MR"}), r"lacks the image .*a_0002"),
    "a channel is too many": (_set(channel_names={"0": "CT"}), r"case 'a' has 2 channels, dataset.json names 1: CT"),
    "the first image is no image": (_bytes("imagesTr/a_0000.nii.gz", b"x"), r"readers can read .*a_0000.nii.gz"),
    "an image is no image": (_bytes("imagesTr/b_0000.nii.gz", b"hello"), r"cannot read .*b_0000.nii.gz"),
    "an image is empty": (_bytes("imagesTr/b_0000.nii.gz", b""), r"cannot read .*b_0000.nii.gz"),
    "an image is truncated": (_cut("imagesTr/b_0001.nii.gz", 0.9), r"cannot read .*b_0001.nii.gz.* truncated"),
    "a label is truncated": (_cut("labelsTr/b.nii.gz", 0.9), r"cannot read .*labelsTr/b.nii.gz.* truncated"),
    "an image holds NaN": (
        _both(_nibabel, _fill("imagesTr/b_0001.nii.gz", np.nan)),
        r"b_0001.nii.gz' holds NaN or infinity",
    ),
    "an image holds infinity": (
        _both(_nibabel, _fill("imagesTr/b_0000.nii.gz", -np.inf)),
        r"b_0000.nii.gz' holds NaN or infinity",
    ),
    "a label holds NaN": (_both(_nibabel, _fill("labelsTr/b.nii.gz", np.nan)), r"labelsTr/b.nii.gz' holds NaN"),
    "a label is unknown": (_fill("labelsTr/b.nii.gz", 7), r"labelsTr/b.nii.gz' holds the values 7; .* 0 to 2"),
    "a label is negative": (_fill("labelsTr/b.nii.gz", -1), r"holds the values -1"),
    "a label is no integer": (_fill("labelsTr/b.nii.gz", 0.5), r"not integers: 0.5"),
    "shapes differ": (_fill("labelsTr/b.nii.gz", 1, shape=(4, 5, 7)), r"shape of .*labelsTr/b.nii.gz' is \[4, 5, 7\]"),
    "spacings differ": (_fill("labelsTr/b.nii.gz", 1, spacing=(1, 1, 2)), r"spacing of .*labelsTr/b.nii.gz"),
    "origins differ": (_fill("labelsTr/b.nii.gz", 1, origin=(0, 0, 1)), r"origin of .*labelsTr/b.nii.gz"),
    "directions differ": (
        _fill("labelsTr/b.nii.gz", 1, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1)),
        r"direction of .*labelsTr/b.nii.gz",
    ),
    "channels differ in origin": (_fill("imagesTr/b_0001.nii.gz", 1, origin=(0, 0, 1)), r"origin of .*b_0001.nii.gz"),
    "channels differ in shape": (_fill("imagesTr/b_0001.nii.gz", 1, shape=(5, 5, 6)), r"shape of .*b_0001.nii.gz"),
    "a label has two channels": (_channels("labelsTr/b.nii.gz"), r"labelsTr/b.nii.gz' has 2 channels"),
    "an image is a broken link": (_link("imagesTr/b_0001.nii.gz"), r"lacks the image .*b_0001.nii.gz"),
    "no label has foreground": (_all_labels(0), r"no foreground in any of 3 cases: their labels are 0 only"),
    "all labels are ignored": (
        _both(_set(labels={"background": 0, "organ": 1, "ignore": 2}), _all_labels(2)),
        r"no foreground in any of 3 cases: their labels are 2 only",
    ),
    "all labels are cropped": (_images({2: slice(0, 4)}, _all_labels(1, 1)), r"image is 0 up to its border"),
    "files were left out": (
        _both(_rename("imagesTr/c_0000.nii.gz", "imagesTr/c_0000.NII.GZ"), _remove("imagesTr/c_0001.nii.gz")),
        r"there are 2 training cases; 1 in .*imagesTr' belong to no training case .*c_0000.NII.GZ.*'c.nii.gz'",
    ),
    "listed cases are no dictionary": (_set(dataset=[]), r"dataset: expected a table, got \[\]"),
    "a listed case has no label": (
        _set(dataset={"a": {"images": ["x"]}}),
        r"have no label .e.g. 'a'., and dataset.json names 'organ'",
    ),
    "no case is listed": (_set(dataset={}), r"no training cases"),
    "a listed file is missing": (
        _set(dataset={"q": {"images": ["x.nii.gz"], "label": "y"}}),
        r"lacks the image .*x.nii.gz",
    ),
}


@for_each(("damage", "message"), PROBLEMS.values())
def test_a_problem_is_named_with_its_file_when(folder: Path, damage: Damage, message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        check_dataset(folder)
    assert caught.value.hint or "no file" in message
    assert "\n" not in caught.value.message


def test_three_problems_are_named_and_the_others_counted(folder: Path) -> None:
    entries = {f"case{i}": _entry(folder, "abc"[i % 3]) for i in range(9)}
    _set(dataset=entries, numTraining=9)(folder)
    _fill("labelsTr/b.nii.gz", 7)(folder)
    _fill("imagesTr/c_0001.nii.gz", 1, origin=(1, 0, 0))(folder)
    with pytest.raises(DataError) as caught:
        check_dataset(folder)
    message = caught.value.message
    assert message.count("holds the values") == 2  # case1, case4
    assert message.count("origin") == 1  # case2
    assert message.endswith("and 3 more")
    assert "labels" in caught.value.hint  # of the first problem


def test_an_ignore_label_and_regions_are_allowed(folder: Path) -> None:
    _fill("labelsTr/b.nii.gz", 3)(folder)
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    _set(labels=regions, regions_class_order=[1, 2])(folder)
    check_dataset(folder)


@for_each(
    ("labels", "order"),
    [
        ({"background": 0, "a": 1, "b": 2}, None),
        ({"background": 0, "b": 2, "a": 1, "ignore": 3}, None),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}, [1, 2, 3]),
        ({"background": "0", "a": "1"}, None),
    ],
)
def test_label_values_equal_those_of_nnunets_label_manager(labels: dict, order: list[int] | None) -> None:
    manager = LabelManager(labels, order)
    expected = {*manager.all_labels, *([manager.ignore_label] if manager.has_ignore_label else [])}
    assert label_values(labels, order) == expected


def test_cases_are_found_as_nnunet_finds_them(folder: Path) -> None:
    found = get_filenames_of_train_images_and_targets(str(folder))
    cases = [(case.name, [str(path) for path in case.images], str(case.label)) for case in read_dataset(folder)[0]]
    assert cases == [(name, files["images"], files["label"]) for name, files in found.items()]


def test_listed_paths_are_those_of_nnunet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", str(folder / "link"))
    (folder / "target/deep").mkdir(parents=True)
    (folder / "link").symlink_to(folder / "target/deep")  # link/.. is target, not the folder of the link
    (folder / "target/x.nii.gz").touch()
    listed = [f"{folder}/link/../x.nii.gz", "$ELSEWHERE/../x.nii.gz", "imagesTr/../imagesTr/a_0000.nii.gz"]
    description = {"dataset": {"x": {"images": listed, "label": "../x.nii.gz"}}, "file_ending": ".nii.gz"}
    [case] = list_cases(folder, description)
    assert all(path.is_file() for path in case.images)
    nnunets = get_filenames_of_train_images_and_targets(str(folder), description)["x"]
    assert [str(path) for path in (*case.images, case.label)] == [*nnunets["images"], nnunets["label"]]


def test_listed_files_are_found_through_variables_and_relative_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELSEWHERE", str(folder))
    entry = {"images": ["$ELSEWHERE/imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}
    _set(dataset={"x": entry}, numTraining=1)(folder)
    seen: list[str] = []
    check_dataset(folder, on_case=seen.append)
    assert seen == ["x"]


def test_one_file_may_hold_all_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shape, highest in (("imagesTr/a_0000.png", (8, 9, 3), 255), ("labelsTr/a.png", (8, 9), 2)):
        (tmp_path / name).parent.mkdir(parents=True)
        sitk.WriteImage(
            sitk.GetImageFromArray(rng.integers(0, highest, shape).astype(np.uint8), len(shape) == 3), tmp_path / name
        )
    description = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "x": 1},
        "numTraining": 1,
        "file_ending": ".png",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    check_dataset(tmp_path)
    assert read_dataset(tmp_path)[1].reader.__name__ == "NaturalImage2DIO"


@for_each("reader", ["NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_geometry_is_compared_with_every_reader_of_volumes(folder: Path, reader: str) -> None:
    _set(overwrite_image_reader_writer=reader)(folder)
    check_dataset(folder)
    assert read_dataset(folder)[1].reader.__name__ == reader
    _fill("labelsTr/b.nii.gz", 1, origin=(0, 0, 1))(folder)
    with pytest.raises(DataError, match=r"origin of .*labelsTr/b.nii.gz"):
        check_dataset(folder)


def test_rounding_in_headers_is_no_problem(folder: Path) -> None:
    _fill("labelsTr/b.nii.gz", 1, origin=(1e-4, 0, 0), direction=_rotation(1e-4))(folder)
    check_dataset(folder)


def test_what_training_would_suffer_from_is_said(folder: Path) -> None:
    _images({2: slice(0, 4)})(folder)
    _set(labels={"background": 0, "organ": 1, "tumour": 2, "cyst": 3})(folder)
    _write(folder / "imagesTr/a_0001.nii.gz", np.zeros(SHAPE, np.float32))
    label = np.zeros(SHAPE, np.uint8)
    label[1:3, 0, 0], label[3, 0, 0] = 1, 2
    for name in "bc":
        _write(folder / f"labelsTr/{name}.nii.gz", label)
    _write(folder / "labelsTr/._a.nii.gz", label)
    _write(folder / "labelsTr/z.nii.gz", label)
    beside, cut, tumour, missing, constant = check_dataset(folder)
    assert "'z.nii.gz'" in beside
    assert "voxels of 'organ' in 3 cases ('a', 'b', 'c') lie where the image is 0" in cut
    assert cut.startswith(f"{_lost(folder, 1)} of ")
    assert tumour.startswith(f"{_lost(folder, 2)} of 42 voxels of 'tumour' in 1 case ('a')")
    assert missing.startswith("no case has 'cyst'")
    assert constant.endswith("'a' (PET)")


def _lost(folder: Path, value: int) -> int:
    """By nnU-Net itself."""
    lost = 0
    for name in "abc":
        images = [sitk.ReadImage(folder / f"imagesTr/{name}_{i:04d}.nii.gz") for i in range(2)]
        label = sitk.GetArrayFromImage(sitk.ReadImage(folder / f"labelsTr/{name}.nii.gz"))[None].astype(np.int8)
        before = (label == value).sum()
        _, cropped, _ = crop_to_nonzero(np.stack(list(map(sitk.GetArrayFromImage, images))), label)
        lost += int(before - (cropped == value).sum())
    return lost


@for_each("seed", range(5))
def test_the_box_that_is_kept_is_nnunets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, 6, 7, 8)) * (rng.random((2, 6, 7, 8)) < seed * 0.01)
    _, label, _ = crop_to_nonzero(image, np.ones((1, 6, 7, 8), np.int8))
    assert np.ones((6, 7, 8))[nonzero_box(image)].shape == label.shape[1:]


def test_hidden_files_are_no_cases_whoever_asks(folder: Path) -> None:
    _images({0: slice(0, 5)})(folder)
    for path in [*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()]:
        path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
    assert check_dataset(folder) == []
    description = json.loads((folder / "dataset.json").read_text())
    assert list(training_files(folder, description)) == ["a", "b", "c"]


def test_3d_tiff_needs_its_spacing(tmp_path: Path) -> None:
    _tiff(tmp_path, '{"spacing": [3, 0.5, 0.5]}')
    assert check_dataset(tmp_path) == []
    assert read_dataset(tmp_path)[1].reader.__name__ == "Tiff3DIO"
    (tmp_path / "labelsTr/b.json").unlink()
    with pytest.raises(DataError, match=r"labelsTr/b\.tif' has no spacing: no file .*labelsTr/b\.json"):
        check_dataset(tmp_path)
    for text in ("3 0.5 0.5", "[1, 1, 1]", '{"spacing": [1, 1]}', '{"spacing": [1, 0, 1]}', '{"spacing": [1, 1, "1"]}'):
        (tmp_path / "imagesTr/a.json").write_text(text)
        with pytest.raises(DataError, match=r"imagesTr/a\.json"):
            check_dataset(tmp_path)


def _tiff(folder: Path, text: str) -> None:
    array = np.random.default_rng(0).uniform(size=(5, 6, 7)).astype(np.float32)
    for name in ("imagesTr/a_0000.tif", "imagesTr/b_0000.tif", "labelsTr/a.tif", "labelsTr/b.tif"):
        (folder / name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(folder / name, array if "0000" in name else (array > 0.5).astype(np.uint8))
        (folder / name.replace("_0000", "")).with_suffix(".json").write_text(text)
    description = {"channel_names": {"0": "g"}, "labels": {"background": 0, "a": 1}, "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".tif"}))


@for_each(
    ("files", "command"),
    [
        (
            ["images/a", "images/b", "labels/a"],
            "pairs -i {0}/images -l {0}/labels -d 2 --name X --channels CT --labels",
        ),
        (["ct/a", "masks/a"], "pairs -i {0}/ct -l {0}/masks -d 2"),
        (["imagesTr/a", "labelsTr/a"], "pairs -i {0}/imagesTr -l {0}/labelsTr -d 2"),
        (["a", "a_seg", "b", "b_seg"], "pairs -i {0} --label_suffix _seg -d 2"),
        (["imagesTr/a_0000", "labelsTr/b"], None),
    ],
)
def test_a_folder_of_pairs_names_the_command_that_converts_it(
    tmp_path: Path, files: list[str], command: str | None
) -> None:
    folder = tmp_path / "Dataset001_X"
    for name in files:
        (folder / f"{name}.nii.gz").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.nii.gz").touch()
    found = pairs_command(folder)
    assert found is None if command is None else command.format(folder) in str(found)
    description = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "my liver": 1}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    with pytest.raises(DataError) as caught:
        read_dataset(folder)
    assert ("--channels T1 --labels 'my liver'" in caught.value.hint) == (command is not None)


def test_processes_find_what_one_process_finds(folder: Path) -> None:
    _fill("labelsTr/b.nii.gz", 7)(folder)
    with pytest.raises(DataError) as serial:
        check_dataset(folder)
    with forked_from_the_server(), pytest.raises(DataError) as parallel:
        check_dataset(folder, workers=2)
    assert (parallel.value.message, parallel.value.hint) == (serial.value.message, serial.value.hint)


def _write(path: Path, array: np.ndarray, **geometry: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.get("spacing", (1.0, 1.0, 1.0)))
    image.SetOrigin(geometry.get("origin", (0.0, 0.0, 0.0)))
    image.SetDirection(geometry.get("direction", np.eye(3).ravel().tolist()))
    sitk.WriteImage(image, path)


def test_names_that_later_files_cannot_have_are_refused_at_once(folder: Path) -> None:
    for name in ("a\\b", "n" * 230):
        image = folder / f"imagesTr/{name}_0000.nii.gz"
        image.touch()
        with pytest.raises(DataError, match=r"is a path, not a name|is longer than 223 bytes"):
            check_dataset(folder)
        with pytest.raises(DataError, match=r"is a path, not a name|is longer than 223 bytes"):
            training_files(folder, json.loads((folder / "dataset.json").read_text()))
        image.unlink()


def _entry(folder: Path, case: str) -> dict[str, Any]:
    images = [str(folder / f"imagesTr/{case}_{channel:04d}.nii.gz") for channel in range(2)]
    return {"images": images, "label": str(folder / f"labelsTr/{case}.nii.gz")}


def _list_files(folder: Path, entries: dict[str, Any]) -> None:
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": len(entries),
        "file_ending": ".nii.gz",
        "dataset": entries,
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def _rotation(angle: float) -> list[float]:
    c, s = np.cos(angle), np.sin(angle)
    return [c, -s, 0, s, c, 0, 0, 0, 1]
