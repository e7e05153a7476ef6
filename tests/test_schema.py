"""A value that is wrong is named with its place in the file, and what others add is left alone."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

from stunet import kinds, presets
from stunet.errors import DataError, WeightsError
from stunet.files import read_json
from stunet.models import registry
from stunet.plans.schema import PLANS
from stunet.schema import Wrong, check, dict_of, either, integer, list_of, number, one_of, read_toml, table, text
from tests.loops import for_each
from tests.test_damaged_files import DESCRIPTION, TASK, plans_of_ours

PATCH = table({"patch_size": list_of(integer(1), 2, 3)}, {"name": text}, others=True)
WRONG = [
    ({"patch_size": [64, "x"]}, r"f: patch_size\[1\]: expected an integer of at least 1, got 'x'"),
    ({"patch_size": [64]}, r"patch_size: expected a list of 2 to 3, got \[64\]"),
    ({"patch_size": [True, 1]}, r"patch_size\[0\]: expected an integer of at least 1, got True"),
    ({"patch_size": [10**30, 1]}, r"patch_size\[0\]: expected an integer"),
    ({"name": "x"}, "f: missing 'patch_size'"),
    ({"patch_size": [1, 1], "name": "\ud800"}, "name: expected text"),
    ([], r"f: expected a table, got \[\]"),
]


@for_each(("content", "message"), WRONG)
def test_the_place_of_a_wrong_value_is_named(content: object, message: str) -> None:
    check({"patch_size": [64, 64], "other": None}, PATCH, "f", "")
    with pytest.raises(WeightsError, match=message):
        check(content, PATCH, "f", "", WeightsError)


def test_numbers_are_finite_and_in_their_range() -> None:
    kind = number(above=0, most=2)
    kind(2, "")
    for value in (0, -1, 3, float("nan"), float("inf"), 10**400, "1", None, False):
        with pytest.raises(Wrong, match="expected a number above 0 and of at most 2"):
            kind(value, "")


def test_unknown_keys_and_choices_get_the_closest() -> None:
    with pytest.raises(Wrong, match="a: unknown key 'spacng'; did you mean 'spacing'"):
        dict_of(table({}, {"spacing": text}))({"a": {"spacng": 1}}, "")
    with pytest.raises(Wrong, match="head: expected one of 'slice', 'reset', got 'slic'; did you mean 'slice'"):
        one_of("slice", "reset")("slic", "head")
    with pytest.raises(Wrong, match="expected one of 1"):
        one_of(1)(True, "")


def test_a_wrong_item_of_one_of_several_kinds_is_the_news() -> None:
    kind = either("a number or a list", integer(), list_of(integer()))
    kind([1], "")
    with pytest.raises(Wrong, match=r"x\[1\]: expected an integer, got 'a'"):
        kind([1, "a"], "x")
    with pytest.raises(Wrong, match="x: expected a number or a list, got 'a'"):
        kind("a", "x")


@for_each(
    ("content", "message"),
    [
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key 'c'"),
        (b"\xef\xbb\xbf{}", "BOM.*: save it as UTF-8 without BOM"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b'{"a": "\xe4"}', "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[" * 70 + b"]" * 70, "nested more than 64 deep"),
        (b"9" * 5000, "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_json_that_others_read_otherwise_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(path)


@for_each("content", [b"a = ", b"a = 1\na = 2", b"a = '\xff'", b"a = " + b"[" * 20_000])
def test_toml_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.toml'.* is not "):
        read_toml(path)


def test_sound_files_pass_with_what_others_add() -> None:
    for path in files("stunet.presets").joinpath("plans").iterdir():
        presets.load(path.name.removesuffix(".toml"))
    for entry in registry.entries():
        if entry.size and not entry.missing:
            check(registry.plan_of(entry).to_json(), PLANS, entry.name, "")
            check(registry.dataset_of(entry), kinds.DATASET, entry.name, "")
    ours = json.loads(json.dumps(plans_of_ours()))
    check(ours, PLANS, "", "")
    check({**TASK, "tensorImageSize": "3D", "reference": None}, kinds.TASK, "", "")
    check({**DESCRIPTION, "labels": {"background": 0, "a": "1", "ignore": 2}, "x": None}, kinds.DATASET, "", "")


# What stock nnU-Net 2.0 to 2.8 writes, cut to one of each kind of key.
STOCK = {
    "dataset_name": "Dataset002_Heart",
    "plans_name": "nnUNetResEncUNetLPlans",
    "original_median_spacing_after_transp": [1.37, 1.25, 1.25],
    "original_median_shape_after_transp": [115, 320, 232],
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "experiment_planner_used": "ResEncUNetPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": {"max": 4.0, "mean": float("nan"), "std": 1.0}},
    "configurations": {
        "2d": {
            "data_identifier": "nnUNetPlans_2d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 40,
            "patch_size": [320, 256],
            "median_image_size_in_voxels": [320.0, 232.0],
            "spacing": [1.25, 1.25],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 32,
            "n_conv_per_stage_encoder": [2, 2],
            "pool_op_kernel_sizes": [[1, 1], [2, 2]],
            "conv_kernel_sizes": [[3, 3], [3, 3]],
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": {"is_seg": False, "force_separate_z": None},
            "batch_dice": True,
        },
        "3d_lowres": {
            "inherits_from": "2d",
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
                "arch_kwargs": {"n_stages": 2, "strides": [[1, 1, 1], [2, 2, 2]], "norm_op_kwargs": None},
                "_kw_requires_import": ["norm_op"],
            },
            "next_stage": "3d_cascade_fullres",
        },
        "3d_cascade_fullres": {"inherits_from": "3d_lowres", "previous_stage": "3d_lowres"},
    },
}


def test_plans_of_stock_nnunet_pass() -> None:
    check(STOCK, PLANS, "", "")


def test_names_and_paths_of_the_whole_world_pass_and_control_characters_do_not() -> None:
    case = {"images": ["/data/\u60a3\u8005\u3000\u4e00/My\u00a0Folder/\u200ex.nii.gz"], "label": "labelsTr/c.nii.gz"}
    raw = {**DESCRIPTION, "dataset": {"c": case}}
    check(raw, kinds.RAW, "", "")
    with pytest.raises(DataError, match="the path of a file"):
        check({**raw, "dataset": {"c": {**case, "label": "a\nb.nii.gz"}}}, kinds.RAW, "", "")


def test_the_longest_name_of_a_case_leaves_room_for_what_stands_around_it() -> None:
    name = "n" * 223
    files = {f"{name}_seg.b2nd": 1, f"{name}.pkl": 2}
    check({"settings": {}, "cases": {name: {"raw": [], "files": files}}}, kinds.MANIFEST, "", "")
    check({"source": "x", "files": {f"labelsTr/{name}.nii.gz": "0"}, "facts": {}}, kinds.CASE_RECORD, "", "")
    with pytest.raises(DataError, match="longer than 223 bytes"):
        check({"settings": {}, "cases": {f"{name}n": {"raw": [], "files": {}}}}, kinds.MANIFEST, "", "")


MODEL = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


def test_what_nnunet_leaves_alone_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    for more in ({"modality": "MRI"}, {"numTraining": "2"}, {"dataset": "x"}, {"file_ending": "_ct.nii.gz"}):
        path.write_text(json.dumps({**MODEL, "regions_class_order": None, **more}))
        found = kinds.read_dataset_json(path, kinds.DATASET)
        assert found["channel_names"] == {"0": "CT"}
        assert "modality" not in found
        if "modality" not in more:
            with pytest.raises(DataError, match="expected"):
                kinds.read_dataset_json(path)
    path.write_text(json.dumps({**MODEL, "channel_names": {"0": "CT"}, "modality": {"0": "CT"}}))
    assert kinds.read_dataset_json(path)["modality"] == {"0": "CT"}
    path.write_text(json.dumps({"modality": "CT", "labels": MODEL["labels"], "file_ending": ".nii.gz"}))
    with pytest.raises(DataError, match="modality: expected a table"):
        kinds.read_dataset_json(path)


def test_labels_are_read_as_integers_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    labels = {"b": "2", "background": 0.0, "a": 1.0, "c": [3], "ignore": ["4"]}
    path.write_text(json.dumps({**MODEL, "labels": labels}))
    for content in (kinds.read_dataset_json(path), kinds.read(path, kinds.CLASSES)):
        found = json.dumps(content["labels"])
        assert found == '{"b": 2, "background": 0, "a": 1, "c": [3], "ignore": 4}'
