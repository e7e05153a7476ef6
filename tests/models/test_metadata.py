"""What a model's plans.json and dataset.json must say: everything else is refused when it is imported and checked."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stunet.cli.models import main
from stunet.errors import WeightsError
from stunet.models.metadata import check_metadata
from stunet.networks import build
from stunet.plans.plan import Plan
from stunet.weights.checkpoints import save_weights
from stunet.weights.reading import Weights, read_weights
from stunet.weights.v2 import make_dataset, make_plan
from tests.loops import for_each

STRIDES = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
CT = ["CTNormalization"]
INTENSITIES = {"mean": 0.0, "std": 1.0, "percentile_00_5": -9.0, "percentile_99_5": 9.0}
Change = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], object]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of ours that describes itself completely."""
    plans = make_plan(
        "mine", "3d_fullres", "T", strides=STRIDES, spacing=[2, 1, 1], patch_size=[8, 16, 16], median_shape=[9, 20, 20],
        normalization=["ZScoreNormalization"], mirror_axes=[],
    ).to_json()  # fmt: skip
    dataset = make_dataset("mine", ["CT"], ["background", "left", "right"])
    path = tmp_path_factory.mktemp("described") / "mine.safetensors"
    meta = {"plans": plans, "configuration": "3d_fullres", "dataset": dataset, "mirror_axes": ()}
    save_weights(path, build("T", STRIDES, 1, 3).state_dict(), meta)
    return path


def changed(file: Path, change: Change) -> Weights:
    """The weights of a file after `change` of its plans, the configuration in them, and its dataset."""
    weights = read_weights(file)
    assert weights.plan
    assert weights.dataset
    plans, dataset = weights.plan.to_json(), copy.deepcopy(weights.dataset)
    change(plans, plans["configurations"]["3d_fullres"], dataset)
    return replace(weights, plan=Plan(plans), dataset=dataset)


def put(place: str, *keys: str, value: object) -> Change:
    """Sets a value in the plans ("p"), the configuration ("c") or the dataset ("d")."""

    def change(*places: dict[str, Any]) -> None:
        inner = places["pcd".index(place)]
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def labels(*values: object) -> dict[str, object]:
    return dict(zip(("background", "a", "b"), values, strict=False))


STRIDES_KEY = ("c", "architecture", "arch_kwargs", "strides")
WRONG = [
    (lambda p, c, d: c.pop("preprocessor_name"), "missing 'preprocessor_name'"),
    (lambda p, c, d: p.pop("transpose_forward"), "missing 'transpose_forward'"),
    (lambda p, c, d: d.pop("file_ending"), "missing 'file_ending'"),
    (put("c", "preprocessor_name", value="shutil"), "preprocessor_name is 'shutil'"),
    (put("p", "image_reader_writer", value="os"), "image_reader_writer is 'os'"),
    (put("c", "resampling_fn_data", value="deepcopy"), "resampling_fn_data is 'deepcopy'"),
    (put("d", "labels", value={"z": 0, "a": 1, "b": 2}), "do not name the background"),
    (put("d", "labels", value=labels(0, 1, 1)), "3 classes share 2 labels"),
    (put("d", "labels", value=labels(0, 1, 5)), "not consecutive"),
    (put("d", "labels", value=labels(0, -1, 1)), r"labels\.a: expected an integer"),
    (put("d", "labels", value={**labels(0, [1, 2], 2), "c": 1}), "regions_class_order"),
    (put("d", "labels", value=labels(0, 1)), "the head has 3 rows, and 2 classes are named"),
    (put("d", "channel_names", value={"0": "a", "1": "b"}), r"takes 1 channel\(s\), and 2 are named"),
    (put("d", "channel_names", value={"1": "a"}), "not the numbers from 0"),
    (put("d", "file_ending", value="/../x"), "file_ending"),
    (put("c", "previous_stage", value="3d_lowres"), r"takes 1 channel\(s\)"),
    (put(*STRIDES_KEY, value=[[1, 1, 1], [0, 2, 2], [1, 2, 2]]), "entries of 3 positive integers"),
    (put(*STRIDES_KEY, value=[[2, 1, 1], [2, 2, 2], [1, 2, 2]]), r"begin with \[1, 1, 1\]"),
    (put("c", "spacing", value="abc"), "spacing: expected a list of 2 to 3, got 'abc'"),
    (put("c", "spacing", value=[0, 0, 0]), "spacing"),
    (put("c", "spacing", value=[float("inf"), 1, 1]), "spacing"),
    (put("c", "patch_size", value=None), "patch_size: expected a list of 2 to 3, got None"),
    (put("c", "patch_size", value=[15, 15, 15]), r"multiples of \[2, 4, 4\]"),
    (put("p", "transpose_forward", value=[0, 0, 5]), r"transpose_forward\[2\]: expected an integer from 0 to 2, got 5"),
    (put("p", "transpose_backward", value=[1, 0, 2]), "not an order of axes and its inverse"),
    (put("c", "normalization_schemes", value=["os"]), "normalization_schemes"),
    (put("c", "normalization_schemes", value=[]), "normalization_schemes: expected a list that is not empty"),
    (put("c", "normalization_schemes", value=CT), "CTNormalization of channel 0 needs"),
]


@for_each(("change", "message"), WRONG)
def test_what_prediction_would_stumble_over_is_named(file: Path, change: Change, message: str) -> None:
    check_metadata(read_weights(file))
    with pytest.raises(WeightsError, match=message) as refused:
        check_metadata(changed(file, change))
    assert str(file) in refused.value.message


@for_each("axes", [(7, 9), (0, 0), (-1,)])
def test_mirror_axes_are_those_of_the_image(file: Path, axes: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match="mirror axes"):
        check_metadata(replace(read_weights(file), mirror_axes=axes))


def test_intensities_regions_and_a_previous_stage_are_right_where_they_belong(file: Path) -> None:
    def whole(plans: dict[str, Any], configuration: dict[str, Any], dataset: dict[str, Any]) -> None:
        configuration["normalization_schemes"] = CT
        plans["foreground_intensity_properties_per_channel"] = {"0": INTENSITIES}
        dataset |= {"labels": {"background": 0, "x": [1, 2], "y": [2], "z": 1}, "regions_class_order": [1, 2, 3]}

    check_metadata(changed(file, whole))
    cascade = changed(file, put("c", "previous_stage", value="3d_lowres"))
    check_metadata(replace(cascade, network=replace(cascade.network, channels=3)))


@for_each("key", ["labels", "channel_names"])
def test_import_and_check_refuse_what_is_wrong(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    weights = read_weights(file)
    dataset = {**(weights.dataset or {}), key: ["CT"]}
    meta = {"plans": weights.plan.content, "configuration": weights.configuration, "dataset": dataset}
    save_weights(tmp_path / "bad.safetensors", weights.tensors, meta)
    for command in (["import", "--name", "bad"], ["check"]):
        assert main([command[0], str(tmp_path / "bad.safetensors"), *command[1:]]) == 4
        assert "unexpected" not in capsys.readouterr().err
    assert not (tmp_path / "store" / "bad").exists()
