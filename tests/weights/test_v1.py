"""Tests of weights/v1.py and weights/pickles.py: nnU-Net v1's plans, read without running anything, become v2's."""

import copy
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.errors import WeightsError
from stunet.networks import STUNet, build
from stunet.plans.check import check_plan
from stunet.weights.pickles import load_pickle
from stunet.weights.v1 import convert_plans
from tests.loops import for_each


def test_ct_normalisation_needs_its_intensities() -> None:
    plans = v1_plans()
    inner = plans.get("plans", plans)
    del inner["dataset_properties"]["intensityproperties"][0]["sd"]
    with pytest.raises(WeightsError, match=r"normalises channel 0 by 'CT' without saying its intensities' sd"):
        convert_plans(plans, Path("x.pkl"), "T", 4)


class Payload:
    """Unpickled the ordinary way, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def v1_plans() -> dict:
    """What nnU-Net v1 writes for two modalities and two stages, in its own types."""
    ct = {key: np.float64(i) for i, key in enumerate(("mean", "sd", "median", "mn", "mx"))}
    ct |= {"percentile_00_5": np.float32(-100.0), "percentile_99_5": np.float32(300.0), "local_props": {}}
    stages = {
        i: {
            "batch_size": 2,
            "num_pool_per_axis": [3, 3, 3],
            "patch_size": np.array([32, 64, 64]),
            "median_patient_size_in_voxels": np.array([40.0, 90.5, 90.0]),
            "current_spacing": np.array([3.0, 1.0, 1.0]) * (2 - i),
            "original_spacing": np.array([3.0, 1.0, 1.0]),
            "pool_op_kernel_sizes": [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
        }
        for i in (0, 1)
    }
    plans = {
        "num_stages": 2,
        "num_modalities": 2,
        "modalities": {0: "CT", 1: "PET"},
        "normalization_schemes": OrderedDict({0: "CT", 1: "noNorm"}),
        "use_mask_for_norm": OrderedDict({0: False, 1: np.bool_(True)}),
        "num_classes": 1,
        "transpose_forward": [1, np.int64(0), 2],
        "transpose_backward": [np.int64(1), 0, 2],
        "plans_per_stage": stages,
        "dataset_properties": {"intensityproperties": OrderedDict({0: ct})},
    }
    return {"init": ("", 0, "", "", True, 1, True, False, True), "name": "STUNetTrainer", "plans": plans}


def convert(pkl: dict, **arguments: object) -> tuple:
    return convert_plans(pkl, Path("x.model.pkl"), "T", **arguments)


@for_each("size", ["small", "base", "large", "huge"])
def test_the_released_plans_become_v2s(data: Path, size: str) -> None:
    path = data / "stunet_official" / f"{size}_ep4k.model.pkl"
    labels = json.loads((data / "stunet_official" / "label_orders.json").read_text())
    plan, dataset, configuration, mirror_axes = convert_plans(
        load_pickle(path), path, size[0].upper(), names=list(labels.values()), channels=["CT"]
    )
    plans, planned = plan.to_json(), check_plan(plan, configuration).content
    assert (configuration, mirror_axes) == ("3d_fullres", (0, 1, 2))
    assert planned["architecture"]["arch_kwargs"] == {
        "size": size[0].upper(),
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]],
    }
    assert (planned["spacing"], planned["patch_size"]) == ([1.5] * 3, [128] * 3)
    assert (planned["normalization_schemes"], planned["use_mask_for_norm"]) == (["ZScoreNormalization"], [False])
    assert plans["original_median_shape_after_transp"] == planned["median_image_size_in_voxels"] == [228, 228, 240]
    assert plans["foreground_intensity_properties_per_channel"] == {"0": {}}
    assert dataset["channel_names"] == {"0": "CT"}
    assert len(dataset["labels"]) == 105
    assert dataset["labels"]["vertebrae_T9"] == 104
    assert json.loads(json.dumps(plans)) == plans


def test_nnunets_own_classes_accept_the_plans_and_build_the_network() -> None:
    plan, dataset, configuration, _ = convert(v1_plans(), names=["background", "tumour"])
    manager = PlansManager(plan.to_json())
    network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration(configuration), 2, 2, True)
    assert isinstance(network, STUNet)
    expected = build("T", [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 1], [1, 1, 1]], 2, 2)
    assert network.strides == expected.strides
    network.load_state_dict(expected.state_dict())
    assert manager.get_label_manager(dataset).num_segmentation_heads == 2
    assert manager.get_configuration(configuration).normalization_schemes == ["CTNormalization", "NoNormalization"]
    shapes = [tuple(head.shape[2:]) for head in network(torch.zeros(1, 2, 8, 16, 16))]
    assert shapes[0] == (8, 16, 16)


def test_values_of_ct_normalisation_get_v2s_names() -> None:
    plans = convert(v1_plans()).plan.content
    assert plans["foreground_intensity_properties_per_channel"] == {
        "0": {
            "mean": 0.0, "std": 1.0, "median": 2.0, "min": 3.0, "max": 4.0,
            "percentile_00_5": -100.0, "percentile_99_5": 300.0,
        },
        "1": {},
    }  # fmt: skip


def test_the_stage_is_the_one_that_was_trained() -> None:
    pkl = v1_plans()
    plan, _, configuration, _ = convert(pkl)
    assert (configuration, plan.configuration(configuration).spacing) == ("3d_fullres", [3.0, 1.0, 1.0])
    assert plan.own_values(configuration)["batch_dice"] is True
    pkl["init"] = ("", 0, "", "", False, 0)
    plan, _, configuration, _ = convert(pkl)
    assert (configuration, plan.configuration(configuration).spacing) == ("3d_lowres", [6.0, 2.0, 2.0])
    del pkl["init"]
    assert convert(pkl)[2] == "3d_fullres"


def test_without_class_names_there_is_no_dataset_and_the_names_must_fit() -> None:
    assert convert(v1_plans())[1] is None
    dataset = convert(v1_plans(), names=["background", "tumour"])[1]
    assert dataset["channel_names"] == {"0": "CT", "1": "PET"}
    for names, message in ((["background"], "2 classes, but 1 names"), (["a", "a"], "2 classes, but 2 names")):
        with pytest.raises(WeightsError, match=message):
            convert(v1_plans(), names=names)
    with pytest.raises(WeightsError, match="2 channels, but 1 names"):
        convert(v1_plans(), channels=["CT"])


def test_more_poolings_than_the_network_has_are_cut_off() -> None:
    pkl = v1_plans()
    for stage in pkl["plans"]["plans_per_stage"].values():
        stage["pool_op_kernel_sizes"] = [[1, 2, 2], *[[2, 2, 2]] * 5]
    plan, _, configuration, _ = convert(pkl)
    assert plan.configuration(configuration).strides == [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 4]


def test_plans_that_cannot_be_converted_say_why(data: Path) -> None:
    stripped = data / "stunet_official" / "plans.pkl"
    with pytest.raises(WeightsError, match="is stripped: it has no plans_per_stage") as caught:
        convert_plans(load_pickle(stripped), stripped, "B")
    assert "X.model.pkl" in caught.value.hint
    with pytest.raises(WeightsError, match="holds no plans of nnU-Net v1"):
        convert({"init": ()})

    def broken(message: str, *keys: object, value: object) -> None:
        pkl = copy.deepcopy(v1_plans())
        place = pkl["plans"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        with pytest.raises(WeightsError, match=message):
            convert(pkl)

    broken("normalises by 'CT2'", "normalization_schemes", 1, value="CT2")
    broken("plans of a 2D network", "plans_per_stage", 1, "pool_op_kernel_sizes", value=[[2, 2]])
    broken("damaged plans", "plans_per_stage", 1, "current_spacing", value=None)
    broken("damaged plans", "plans_per_stage", value=[1])
    broken("damaged plans", "use_mask_for_norm", value={})


@for_each("protocol", [3, 4, 5])
@for_each("core", [b"numpy.core", b"numpy._core"])
def test_a_pickle_is_read_as_plain_values(tmp_path: Path, protocol: int, core: bytes) -> None:
    content = {
        "scalars": [np.float64(0.5), np.int64(-3), np.bool_(True), np.float32(0.25)],
        "array": np.arange(6.0).reshape(2, 3),
        "column order": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big endian": np.array([1, 2], ">i4"),
        "empty": np.zeros((0, 3)),
        "none": np.array(7.0),
        "ordered": OrderedDict(a=1),
    }
    raw = pickle.dumps(content, protocol).replace(b"numpy._core", core) if protocol == 3 else None
    (tmp_path / "x.pkl").write_bytes(raw or pickle.dumps(content, protocol))
    if protocol == 5:  # writes its arrays through a function of numpy's that is not allowed
        with pytest.raises(WeightsError, match=r"import numpy\._core\.numeric\._frombuffer; it was refused"):
            load_pickle(tmp_path / "x.pkl")
        return
    read = load_pickle(tmp_path / "x.pkl")
    assert read == {
        "scalars": [0.5, -3, True, 0.25],
        "array": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "column order": [[0, 1, 2], [3, 4, 5]],
        "big endian": [1, 2],
        "empty": [],
        "none": [7.0],
        "ordered": OrderedDict(a=1),
    }
    assert [type(value) for value in read["scalars"]] == [float, int, bool, float]


@for_each("where", ["init", "plans"])
def test_a_malicious_pickle_is_refused_by_name(tmp_path: Path, where: str) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(v1_plans() | {where: Payload(tmp_path / "pwned")}))
    with pytest.raises(WeightsError, match=r"wants to import (posix|nt)\.mkdir; it was refused and nothing was exec"):
        load_pickle(tmp_path / "x.pkl")
    assert not (tmp_path / "pwned").exists()
    pickle.loads((tmp_path / "x.pkl").read_bytes())
    assert (tmp_path / "pwned").exists()


@for_each(
    "raw",
    [
        b"\x80\x04ccollections\nOrderedDict.__init__\n.",  # an attribute of an allowed class
        b"\x80\x04cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"\x80\x04\x82\x01.",  # a code of copyreg's registry
        b"\x80\x04X\x02\x00\x00\x00idQ.",  # a persistent id
        b"\x80\x04cnumpy\ndtype\n(X\x01\x00\x00\x00OI00\nI01\ntR.",  # objects in an array
        b"\x80\x04N",
        b"<html>",
        b"",
    ],
)
def test_other_ways_into_a_pickle_are_closed(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(raw)
    with pytest.raises(WeightsError, match=r"x\.pkl"):
        load_pickle(tmp_path / "x.pkl")


def test_what_a_pickle_does_to_its_helpers_does_not_outlive_it(tmp_path: Path) -> None:
    helper = b"\x80\x04cnumpy.core.multiarray\nscalar\n"
    (tmp_path / "marks.pkl").write_bytes(helper + b"N}X\x04\x00\x00\x00markK\x01s\x86b.")
    (tmp_path / "looks.pkl").write_bytes(helper + b".")
    assert load_pickle(tmp_path / "marks.pkl").mark == 1
    assert not hasattr(load_pickle(tmp_path / "looks.pkl"), "mark")


def test_a_pickle_cannot_ask_for_gigabytes(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    far = b"\x80\x04N" + b"r\xff\xff\xff\x3f" + b"."  # the billionth entry of the memo
    claimed = b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"."  # a bytearray of a TB
    nested = pickle.dumps(np.zeros((0, 3)), 4).replace(b"K\x00K\x03\x86", b"J\xff\xff\xff\x3fK\x00\x86")
    for name, raw in (("far", far), ("claimed", claimed), ("nested", nested)):
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(WeightsError, match="makes a memo with gaps"):
        load_pickle(tmp_path / "far")
    with pytest.raises(WeightsError, match="not a complete pickle"):
        load_pickle(tmp_path / "claimed")
    assert load_pickle(tmp_path / "nested") == []
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(WeightsError, match="has 1024 MiB: no plans"):
        load_pickle(tmp_path / "large")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
