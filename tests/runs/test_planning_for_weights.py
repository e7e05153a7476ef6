"""Planning for pre-trained weights: their network, on images as they know them, in preprocessing and training alike."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

import stunet
from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.architectures.stunet import STUNET
from stunet.errors import StunetError, UsageError, WeightsError
from stunet.files import read_json
from stunet.inference.features.model import Model
from stunet.models.installing import import_file
from stunet.plans.files import read_plan
from stunet.preprocessing.checks import repair_commands
from stunet.weights.nnssl import ADAPTATION
from stunet.workspace import raw_dataset
from tests.loops import for_each
from tests.nnunet_networks import arguments, network
from tests.stock_plans import stock_plans

NAME = "3d_fullres"
CT = {"mean": 50.0, "std": 20.0, "percentile_00_5": -5.0, "percentile_99_5": 110.0}
STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


class Heard(stunet.Listener):
    """Keeps notes and warnings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def write_checkpoint(
    path: Path,
    dataset: str,
    architecture: NNUNet = RESENC,
    ndim: int = 3,
    channels: Sequence[str] = ("CT",),
    order: Sequence[int] = (0, 1, 2),
    intensities: dict[str, Any] = CT,
    **values: Any,
) -> Path:
    """A checkpoint as nnU-Net writes it, of a network of three stages that was trained at another spacing."""
    shape = {"strides": [step[:ndim] for step in STRIDES], "kernel_sizes": [[3] * ndim] * 3}
    plans = copy.deepcopy(stock_plans(dataset, architecture))
    name = NAME if ndim == 3 else "2d"
    planned = plans["configurations"][name] | {
        "spacing": [1.5] * ndim,
        "patch_size": [16] * ndim,
        "normalization_schemes": ["CTNormalization"] * len(channels),
        "use_mask_for_norm": [False] * len(channels),
        **values,
    }
    planned["architecture"]["arch_kwargs"] = arguments(architecture, **shape)
    planned["architecture"]["_kw_requires_import"] = [*architecture.imports]
    planned["architecture"]["_kw_requires_import"].remove("dropout_op")
    plans |= {
        "dataset_name": "Dataset007_Theirs",
        "configurations": {name: planned},
        "foreground_intensity_properties_per_channel": {str(i): intensities for i in range(len(channels))},
        "transpose_forward": list(order),
        "transpose_backward": np.argsort(order).tolist(),
    }
    dataset_json = {
        "channel_names": {str(i): channel for i, channel in enumerate(channels)},
        "labels": {"background": 0, "left kidney": 1, "spleen": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    content = {
        "network_weights": network(architecture, channels=len(channels), **shape).state_dict(),
        "init_args": {"plans": plans, "configuration": name, "dataset_json": dataset_json, "fold": 0},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": tuple(range(ndim)),
    }
    torch.save(content, path)
    return path


def write_adaptation(path: Path, **values: Any) -> Path:
    """A file as nnssl writes it, with the plan for adapting it."""
    planned = {"spacing": [1, 1, 1], "normalization_schemes": ["ZScoreNormalization"], **values}
    adaptation = {
        "architecture_plans": {"arch_class_name": "ResidualEncoderUNet", "arch_kwargs": arguments(RESENC)},
        "pretrain_plan": {"dataset_name": "Dataset745_OpenMind", "configurations": {"onemmiso": planned}},
        "pretrain_num_input_channels": 1,
    }
    content = {
        "network_weights": network(RESENC).state_dict(),
        ADAPTATION: adaptation,
        "trainer_name": "BaseMAETrainer",
    }
    torch.save(content, path)
    return path


def planned_for(path: Path | str, **options: Any) -> tuple[stunet.PlanningResult, Heard]:
    heard = Heard()
    given = {"no_check": True, "np": 1, "npfp": 1, "no_pp": True, **options}
    return stunet.plan(998, pretrained=path, listener=heard, **given), heard


def test_images_are_preprocessed_and_the_network_is_planned_as_the_weights_know_them(pre: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "theirs.pth", pre.name)
    result, heard = planned_for(path, configurations=[NAME], no_pp=False)
    plan, planned = result.plan, result.plan.configuration(NAME)
    assert plan == read_plan(pre / f"{plan.name}.json")
    assert plan.configurations == (NAME,)
    assert plan.name.startswith("STUNetPlans_ResEnc_like-Theirs.")
    assert (planned.spacing, planned.normalization) == ([1.5, 1.5, 1.5], ["CTNormalization"])
    assert plan.intensities == {"0": CT}
    assert (planned.strides, planned.patch_size) == (STRIDES, [16, 16, 16])
    assert plan.mirror_axes == [0, 1]  # the phantom has two kidneys, whatever their training mirrored
    told = next(text for text in heard.notes if text.startswith("as Theirs."))
    assert "spacing 1.5 x 1.5 x 1.5 mm (by itself " in told
    assert "the intensities of Theirs." in told
    assert heard.notes[-1].endswith(f"-p {plan.name} --pretrained {path}")
    again, _ = repair_commands(pre.name, plan, NAME)
    assert again == f"stunet_plan_and_preprocess -d 998 -c {NAME} --pretrained theirs.pth --spacing pretrained"
    # The arrays are clipped and scaled by the intensities of the weights' training.
    array = blosc2.open(str(pre / planned.data_identifier / "phantom_000.b2nd"))[:]
    assert array.min() >= (CT["percentile_00_5"] - CT["mean"]) / CT["std"] - 1e-4
    assert array.max() <= (CT["percentile_99_5"] - CT["mean"]) / CT["std"] + 1e-4
    # Training on them starts from the weights, with nothing to warn of.
    values = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "batch_size": 2}
    trained = stunet.train(998, plans=plan.name, pretrained=path, set=values, device="cpu", listener=(other := Heard()))
    assert trained.plan.configuration(NAME).patch_size == [16, 16, 16]
    assert trained.plan.intensities == {"0": CT}
    report = read_json(trained.folder / "transfer_report.json")
    assert report["coverage"] == 1
    assert report["warnings"] == []
    assert {what for what, *_ in report["changes"]} == {"mirrored axes at test time", "classes"}
    assert not [text for text in other.warnings if "weights" in text]


def test_weights_that_know_the_same_images_share_data_and_others_do_not(pre: Path, tmp_path: Path) -> None:
    folders, names = [], []
    for number, (architecture, values) in enumerate((
        (PLAIN_UNET, {}),
        (RESENC, {}),
        (RESENC, {"intensities": CT | {"std": 21.0}}),
        (RESENC, {"spacing": [1.5, 1.5, 1.6]}),
        (RESENC, {"order": (1, 0, 2)}),
        (RESENC, {"normalization_schemes": ["ZScoreNormalization"]}),
        (RESENC, {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [True]}),
    )):  # fmt: skip
        path = write_checkpoint(tmp_path / f"{number}.pth", pre.name, architecture, **values)
        plan = planned_for(path)[0].plan
        folders.append(plan.configuration(NAME).data_identifier)
        names.append(plan.name)
    assert folders[0] == folders[1]
    assert len({*folders, "STUNetPlans_3d_fullres"}) == len(folders)
    assert len({*names}) == len(names)


def test_the_order_of_axes_is_that_of_the_weights_and_shapes_follow(pre: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.pth", pre.name, order=(2, 0, 1), spacing=[3.0, 1.0, 2.0], patch_size=[7] * 3)
    plan = planned_for(path)[0].plan
    planned, found = plan.configuration(NAME), read_json(pre / "dataset_fingerprint.json")
    assert (plan.transpose_forward, plan.get("transpose_backward")) == ([2, 0, 1], [1, 2, 0])
    assert planned.spacing == [3.0, 1.0, 2.0]
    edges = np.median(np.array(found["spacings"]) * np.array(found["shapes_after_crop"]), axis=0)[[2, 0, 1]]
    np.testing.assert_allclose(np.array(planned.median_shape) * planned.spacing, edges, atol=3)
    assert plan.mirror_axes == [1, 2]
    assert planned.patch_size != [7, 7, 7]  # which the strides do not divide


@for_each(
    ("order", "orientation", "reader", "turned"),
    [
        ((1, 2, 0), "PIR", "SimpleITKIO", "PIR"),
        ((1, 0, 2), None, "NibabelIOWithReorient", "RAS"),  # as that reader turns them
    ],
)
def test_preprocessed_images_are_what_the_weights_own_plan_makes_of_them(
    pre: Path, tmp_path: Path, order: Sequence[int], orientation: str | None, reader: str, turned: str
) -> None:
    path = write_checkpoint(tmp_path / "a.pth", pre.name, order=order, spacing=[1.5, 2.5, 2.0])
    content = torch.load(path, weights_only=False)
    content["inference_allowed_mirroring_axes"] = None  # none: they know only one direction of each axis
    content["init_args"]["plans"]["image_reader_writer"] = reader
    if orientation:
        content["init_args"]["plans"]["stunet"] = {"orientation": orientation}
    torch.save(content, path)
    plan = planned_for(path, configurations=[NAME], no_pp=False)[0].plan
    assert plan.orientation == turned
    assert plan.mirror_axes == [0, 1]
    found = blosc2.open(str(pre / plan.configuration(NAME).data_identifier / "phantom_000.b2nd"))[:]
    prepare = Model(path)._preparation
    raw = prepare.load(raw_dataset(pre.name) / "imagesTr/phantom_000_0000.nii.gz")
    np.testing.assert_array_equal(found, prepare.preprocess(raw).image_CDHW.numpy())


def test_installed_weights_of_two_trainings_on_one_dataset_do_not_share_plans(
    pre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    names = set()
    for number, name in enumerate(("one", "two")):
        path = write_checkpoint(tmp_path / f"{name}.pth", pre.name, spacing=[1.5, 1.5, 1.5 + number])
        content = torch.load(path, weights_only=False)
        content["network_weights"]["decoder.seg_layers.0.bias"] += number
        torch.save(content, path)
        import_file(path, name)
        names.add(planned_for(name)[0].plan.name)
    assert len(names) == 2


def test_what_nnssl_pretrained_is_planned_by_its_adaptation_plan(pre: Path, tmp_path: Path) -> None:
    plan = planned_for(write_adaptation(tmp_path / "mae.pth"))[0].plan
    planned = plan.configuration(NAME)
    assert (planned.spacing, planned.normalization, planned.resamples) == ([1, 1, 1], ["ZScoreNormalization"], True)
    assert planned.network_arguments["n_stages"] == 3
    native = write_adaptation(tmp_path / "native.pth", spacing=None, resampling_fn_data="no_resampling_hack")
    assert not planned_for(native)[0].plan.configuration(NAME).resamples
    # Another spacing, with their normalisation.
    plan = planned_for(tmp_path / "mae.pth", spacing=["2", "1", "1"])[0].plan
    planned = plan.configuration(NAME)
    assert (planned.spacing, planned.normalization) == ([2, 1, 1], ["ZScoreNormalization"])
    assert plan.name.startswith("STUNetPlans_ResEnc_2x1x1mm_like-OpenMind.")
    # Or as without them; training takes their network all the same.
    plan = planned_for(tmp_path / "mae.pth", spacing="dataset", size="T")[0].plan
    assert plan.name == "STUNetPlans_T"
    assert plan.configuration(NAME).normalization == ["CTNormalization"]


def test_a_stunet_keeps_its_size_and_its_strides_with_its_patch(pre: Path, tmp_path: Path) -> None:
    plans = copy.deepcopy(read_plan(pre / "STUNetPlans_T.json").to_json())
    planned = plans["configurations"][NAME]
    strides = [[1, 1, 1], [2, 2, 2], [1, 1, 2]]  # which no patch of this shape would be planned with
    planned |= {"spacing": [1.5, 1.5, 1.5], "patch_size": [16, 16, 16]}
    planned["architecture"]["arch_kwargs"] = {"size": "T", "strides": strides}
    plans |= {"dataset_name": "Dataset007_Theirs", "configurations": {NAME: planned}}
    network_weights = STUNET.build(1, 3, {"size": "T", "strides": strides}).state_dict()
    content = {"network_weights": network_weights, "init_args": {"plans": plans, "configuration": NAME}}
    torch.save(content, tmp_path / "a.pth")
    plan = planned_for(tmp_path / "a.pth")[0].plan
    kept = plan.configuration(NAME)
    assert plan.name.startswith("STUNetPlans_T_like-Theirs.")
    assert (plan.size, plan.stages) == ("T", 3)
    assert (kept.strides, kept.patch_size) == (strides, [16, 16, 16])
    # If the images are smaller, the patch is fitted, and the strides are those that it supports.
    plan = planned_for(tmp_path / "a.pth", spacing=["3", "3", "3"])[0].plan
    assert plan.configuration(NAME).patch_size != [16, 16, 16]
    assert len(plan.configuration(NAME).strides) == 3


def test_2d_weights_are_for_the_slices(pre: Path, tmp_path: Path) -> None:
    plan = planned_for(write_checkpoint(tmp_path / "a.pth", pre.name, ndim=2))[0].plan
    planned = plan.configuration("2d")
    assert plan.configurations == ("2d",)
    assert (planned.spacing, planned.patch_size) == ([1.5, 1.5], [16, 16])


@for_each(
    ("make", "options", "error", "message", "hint"),
    [
        ({"spacing": None}, {}, WeightsError, "nothing says at which spacing Theirs", "--spacing dataset or 1mm"),
        ({"spacing": [0, 1, 1]}, {}, WeightsError, r"spacing\[0\]: expected", "--spacing dataset"),
        ({"spacing": [1, 1]}, {}, WeightsError, "spacing: expected 3 numbers in mm", "--spacing dataset"),
        ({"order": (0, 0, 1)}, {}, WeightsError, "transposition", "--spacing dataset"),
        ({"normalization_schemes": ["os.system"]}, {}, WeightsError, r"normalization\[0\]", "--spacing dataset"),
        ({}, {"size": "B"}, UsageError, "plans the network of the weights, and --size another", "one of them"),
        ({}, {"like": 998}, UsageError, "--like takes another dataset's plan as it is, and --pretrained", "one of"),
        ({}, {"planner": "ExperimentPlanner"}, UsageError, "which knows no --pretrained", "one of"),
        ({}, {"spacing": "pretrained", "pretrained": None}, UsageError, "and none are given", "add --pretrained"),
    ],
)  # fmt: skip
def test_what_nothing_says_or_cannot_be_is_one_line(
    pre: Path, tmp_path: Path, make: dict, options: dict, error: type[StunetError], message: str, hint: str
) -> None:
    path, before = write_checkpoint(tmp_path / "a.pth", pre.name, **make), {*pre.rglob("*.json")}
    with pytest.raises(error, match=message) as caught:
        stunet.plan(998, **{"pretrained": path, "no_check": True, "npfp": 1, "no_pp": True, **options})
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message
    assert {*pre.rglob("*.json")} == before


def test_a_channel_is_normalised_as_theirs_of_the_same_name(pre: Path, tmp_path: Path) -> None:
    schemes = ["ZScoreNormalization", "CTNormalization"]
    path = write_checkpoint(tmp_path / "a.pth", pre.name, channels=("T1", "CT"), normalization_schemes=schemes)
    plan = planned_for(path)[0].plan
    assert plan.configuration(NAME).normalization == ["CTNormalization"]
    assert plan.intensities == {"0": CT}
