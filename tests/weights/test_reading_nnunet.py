"""Reading files of nnU-Net's networks: whoever trained them, their plans and their tensors have to agree."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.errors import WeightsError
from stunet.files import write_json
from stunet.weights import nnssl
from stunet.weights.checkpoints import save_weights
from stunet.weights.nnssl import check_written, write_nnssl
from stunet.weights.reading import Weights, read_weights
from stunet.weights.recognition import recognise
from tests.loops import for_each
from tests.nnunet_networks import BOTH, STRIDES, arguments, network

IMPORTS = ["conv_op", "norm_op", "dropout_op", "nonlin"]
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "file_ending": ".nii.gz"}
BATCH_NORM = {"norm_op": "torch.nn.BatchNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True}}


def plans(architecture: NNUNet, class_name: str | None = None, **others: Any) -> dict[str, Any]:
    """Plans as nnU-Net writes them, cut down to what describes weights."""
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16, 16],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "architecture": {
            "network_class_name": class_name or architecture.class_name,
            "arch_kwargs": arguments(architecture, **others),
            "_kw_requires_import": IMPORTS,
        },
    }
    return {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": configuration}}


def content(tensors: dict[str, Tensor], plan: dict[str, Any], trainer: str = "nnUNetTrainerDA5") -> dict[str, Any]:
    """A checkpoint of nnU-Net v2."""
    init = {"plans": plan, "configuration": "3d_fullres", "fold": 0, "dataset_json": DATASET}
    mirrored = {"inference_allowed_mirroring_axes": (0, 1, 2)}
    return {"network_weights": tensors, "init_args": init, "trainer_name": trainer, **mirrored}


def saved(path: Path, what: Any) -> Path:
    torch.save(what, path)
    return path


def old(planned: dict[str, Any], architecture: NNUNet) -> dict[str, Any]:
    """The plans as nnU-Net 2.2 and earlier wrote them, those of TotalSegmentator's models among them."""
    configuration = {**planned["configurations"]["3d_fullres"]}
    kwargs = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": architecture.class_name.rpartition(".")[2],
        "UNet_base_num_features": 4,
        "unet_max_num_features": 8,
        "n_conv_per_stage_encoder": kwargs[architecture.repeats],
        "n_conv_per_stage_decoder": kwargs["n_conv_per_stage_decoder"],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": kwargs["strides"],
        "conv_kernel_sizes": kwargs["kernel_sizes"],
    }
    return {**planned, "configurations": {"3d_fullres": configuration}}


@for_each("architecture", BOTH)
def test_a_checkpoint_of_any_trainer_brings_its_meaning_along(tmp_path: Path, architecture: NNUNet) -> None:
    own = {"nonlin": "torch.nn.ReLU", "norm_op_kwargs": {"eps": 1e-3, "affine": True}}
    state = dict(network(architecture, **own).state_dict())
    weights = read_weights(saved(tmp_path / "x.pth", content(state, plans(architecture, **own), "TheirTrainer")))
    assert (weights.kind, weights.network.architecture, weights.pretext) == ("nnU-Net v2", architecture, None)
    assert (weights.strides, weights.spacing, weights.mirror_axes) == (STRIDES, [3.0, 1.0, 1.0], (0, 1, 2))
    assert (weights.classes, weights.channels) == (["background", "liver", "spleen"], ["CT"])
    assert weights.tensors.keys() == {architecture.canonical(name) for name in state}
    assert all(torch.equal(value, state[name]) for name, value in weights.tensors.items())
    planned = weights.plan.configuration("3d_fullres")
    assert planned.network_arguments == arguments(architecture, **own)
    assert planned.content["architecture"]["_kw_requires_import"] == IMPORTS


@for_each("architecture", BOTH)
def test_plans_that_contradict_the_tensors_are_refused(tmp_path: Path, architecture: NNUNet) -> None:
    state = dict(network(architecture).state_dict())
    deeper = {"strides": [*STRIDES, [2, 2, 2]]}
    for wrong, message in (
        (deeper, "its plans say n_stages 4, but its tensors are of n_stages 3"),
        (
            {"features_per_stage": [4, 8, 16]},
            r"features_per_stage \[4, 8, 16\], but its tensors are of .* \[4, 8, 8\]",
        ),
        ({"kernel_sizes": [[3, 3, 3]] * 3}, "its plans say kernel_sizes"),
        ({architecture.repeats: [1, 1, 1]}, f"its plans say {architecture.repeats}"),
        ({"n_conv_per_stage_decoder": [3, 3]}, "its plans say n_conv_per_stage_decoder"),
        ({"conv_bias": False}, "its plans say conv_bias False, but its tensors are of conv_bias True"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}, "has tensors for strides .*, and its plans say"),
        ({"nonlin": "os.system"}, "its plans describe no .* U-Net: nonlin 'os.system' is not one of the classes"),
        ({"later": 1}, "its plans describe no .* U-Net: name unknown arguments: later"),
    ):
        path = saved(tmp_path / "x.pth", content(state, plans(architecture, **wrong)))
        with pytest.raises(WeightsError, match=message):
            read_weights(path)


@for_each("architecture", BOTH)
def test_a_norm_that_the_trainer_swapped_is_that_of_the_tensors(tmp_path: Path, architecture: NNUNet) -> None:
    state = dict(network(architecture, **BATCH_NORM).state_dict())
    weights = read_weights(saved(tmp_path / "x.pth", content(state, plans(architecture), "nnUNetTrainerBN")))
    planned = weights.plan.configuration("3d_fullres").network_arguments
    assert planned["norm_op"] == "torch.nn.modules.batchnorm.BatchNorm3d"
    built = architecture.build(1, 3, planned).state_dict()
    assert {architecture.canonical(name) for name in built} == weights.tensors.keys()


@for_each("architecture", BOTH)
def test_plans_of_nnunet_before_they_described_networks_are_read(tmp_path: Path, architecture: NNUNet) -> None:
    state, planned = dict(network(architecture).state_dict()), old(plans(architecture), architecture)
    weights = read_weights(saved(tmp_path / "x.pth", content(state, planned, "nnUNetTrainerNoMirroring")))
    found = weights.plan.configuration("3d_fullres")
    assert (found.network_class, found.network_arguments) == (architecture.class_name, arguments(architecture))
    assert not {"UNet_class_name", "pool_op_kernel_sizes"} & found.content.keys()
    planned["configurations"]["3d_fullres"]["pool_op_kernel_sizes"] = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    with pytest.raises(WeightsError, match="has tensors for strides"):
        read_weights(saved(tmp_path / "x.pth", content(state, planned)))


def test_a_trainer_that_built_another_network_than_planned_is_read_by_its_tensors(tmp_path: Path) -> None:
    """nnUNetTrainerResEncUNet was one: its plans were those of the plain network."""
    state = dict(network(RESENC).state_dict())
    weights = read_weights(saved(tmp_path / "x.pth", content(state, plans(PLAIN_UNET))))
    found = weights.plan.configuration("3d_fullres")
    assert (found.network_class, found.network_arguments) == (RESENC.class_name, arguments(RESENC))


@for_each("architecture", BOTH)
def test_a_file_without_plans_is_weights_and_one_of_ours_says_more(tmp_path: Path, architecture: NNUNet) -> None:
    state = dict(network(architecture).state_dict())
    bare = read_weights(saved(tmp_path / "bare.pth", state))
    assert (bare.kind, bare.plan, bare.strides, bare.network.strides) == ("bare", None, None, STRIDES)
    meta = {"plans": plans(architecture), "configuration": "3d_fullres", "dataset": DATASET, "mirror_axes": [0]}
    save_weights(tmp_path / "ours.safetensors", bare.tensors, meta)
    ours = read_weights(tmp_path / "ours.safetensors")
    assert (ours.kind, ours.strides, ours.mirror_axes) == ("stunet", STRIDES, (0,))
    assert all(torch.equal(value, state[name]) for name, value in ours.tensors.items())
    encoder = {name: value for name, value in state.items() if name.startswith("encoder.")}
    alone = read_weights(saved(tmp_path / "encoder.pth", content(encoder, plans(architecture))))
    assert (alone.network.strides, alone.strides, alone.network.classes) == (None, STRIDES, 0)


# Files of nnssl


def of_nnssl(tensors: dict[str, Tensor], name: str | None, kwargs: Any = None, **more: Any) -> dict[str, Any]:
    configuration = {"spacing": [1, 1, 1], "normalization_schemes": ["ZScoreNormalization"], "patch_size": [160] * 3}
    plan = {
        "architecture_plans": {"arch_class_name": name, "arch_kwargs": kwargs, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {"plans_name": "nnsslPlans", "configurations": {"onemmiso": configuration}},
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        **more,
    }
    return {"network_weights": tensors, "nnssl_adaptation_plan": plan, "trainer_name": "BaseMAETrainer_BS8"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that nnssl's plans only name, in small."""
    monkeypatch.setattr(nnssl, "RESENC_L", arguments(RESENC))


def test_the_network_that_nnssl_only_names_is_the_published_one() -> None:
    assert RESENC.problem(nnssl.RESENC_L) is None
    with torch.device("meta"):
        published = RESENC.build(1, 1, nnssl.RESENC_L)
    found = recognise(published.state_dict(), Path("x"))
    assert str(found) == "6 stages of 32-64-128-256-320-320 channels and 1-3-4-6-6-6 blocks, instance norm"
    assert sum(p.numel() for p in published.parameters()) == pytest.approx(102e6, rel=0.01)


@for_each("name", ["ResEncL", "NoSkipResEncL"])
@for_each("alone", [False, True])
def test_the_meaning_of_nnssls_named_networks_is_known(tmp_path: Path, small: None, name: str, alone: bool) -> None:
    state = dict(network(RESENC).state_dict())
    tensors = {n: value for n, value in state.items() if not alone or n.startswith("encoder.")}
    tensors["projector.layer1.0.weight"] = torch.ones(3, 3)
    weights = read_weights(saved(tmp_path / "x.pth", of_nnssl(tensors, name)))
    assert (weights.kind, weights.pretext, weights.transfers) == ("nnssl", "mae", "encoder")
    assert (weights.strides, weights.spacing) == (STRIDES, [1, 1, 1])
    assert weights.plan.configuration("onemmiso").network_arguments == arguments(RESENC)


@for_each("architecture", BOTH)
def test_a_network_that_nnssls_plan_describes_is_compared_with_it(tmp_path: Path, architecture: NNUNet) -> None:
    name, kwargs = architecture.class_name.rpartition(".")[2], arguments(architecture)
    kwargs["n_blocks_per_stage"] = kwargs.pop(architecture.repeats)  # nnssl's only field for this
    encoder = {f"online_{n}": v for n, v in network(architecture).state_dict().items() if n.startswith("encoder.")}
    given = of_nnssl(encoder, name, kwargs, key_to_encoder="online_encoder.stages", key_to_stem="online_encoder.stem")
    weights = read_weights(saved(tmp_path / "x.pth", given))
    assert (weights.network.architecture, weights.strides) == (architecture, STRIDES)
    kwargs["features_per_stage"] = [4, 8, 16]
    with pytest.raises(WeightsError, match="its plans say features_per_stage"):
        read_weights(saved(tmp_path / "x.pth", of_nnssl(encoder, name, kwargs)))


def test_a_network_that_is_not_in_the_table_is_named(tmp_path: Path, small: None) -> None:
    state = dict(network(RESENC).state_dict())
    with pytest.raises(
        WeightsError, match=r"adaptation plan names the network .os\.system., which is not one of ResEncL"
    ):
        read_weights(saved(tmp_path / "x.pth", of_nnssl(state, "os.system")))
    unnamed = read_weights(saved(tmp_path / "x.pth", of_nnssl(state, None)))
    assert unnamed.strides == STRIDES


@for_each("architecture", BOTH)
def test_what_we_write_for_nnssl_has_each_tensor_once_and_is_read_back(tmp_path: Path, architecture: NNUNet) -> None:
    from stunet.plans.plan import Plan

    net, planned = network(architecture, classes=1), plans(architecture)
    path = tmp_path / "x.pth"
    write_nnssl(path, net.state_dict(), Plan(planned), "3d_fullres", ["CT"], "mae")
    check_written(path, net.state_dict())
    assert path.stat().st_size < 1.5 * sum(4 * p.numel() for p in net.parameters()) + 400_000
    written = torch.load(path, weights_only=True)
    assert written["network_weights"].keys() == net.state_dict().keys()
    adaptation = written["nnssl_adaptation_plan"]
    assert adaptation["architecture_plans"] == {
        "arch_class_name": architecture.class_name.rpartition(".")[2],
        "arch_kwargs": arguments(architecture),
        "arch_kwargs_requiring_import": ["conv_op", "norm_op", "nonlin"],
    }
    keys = [adaptation[key] for key in ("key_to_encoder", "key_to_stem", "keys_to_in_proj")]
    inputs = [name.removesuffix(".conv.weight") for name in architecture.inputs]
    assert keys[0] == net.key_to_encoder
    assert keys[1] == net.key_to_stem
    assert keys[2] == [f"{inputs[0]}.{alias}" for alias in ("conv", "all_modules.0")]
    assert set(keys[2]) == set(net.keys_to_in_proj)
    weights = read_weights(path)
    assert (weights.strides, weights.spacing, weights.pretext) == (STRIDES, [3.0, 1.0, 1.0], "mae")


def test_a_residual_encoder_with_more_than_the_network_has_is_not_taken_for_it(tmp_path: Path) -> None:
    more = {"encoder.stages.0.blocks.0.squeeze_excitation.conv1.weight": torch.ones(2, 4, 1, 1, 1)}
    for prefix in ("", "module."):
        named = {f"{prefix}{name}": value for name, value in (network(RESENC).state_dict() | more).items()}
        with pytest.raises(WeightsError, match=r"1 more tensors in its encoder \(e\.g\. '.*squeeze_excitation"):
            read_weights(saved(tmp_path / "x.pth", named))
    flat = {"strides": [[1, 1, 1], [1, 1, 1], [2, 2, 2]]}  # its shortcut is where another one's pooling is
    alone = {f"encoder.{name}": value for name, value in network(RESENC, **flat).encoder.state_dict().items()}
    assert read_weights(saved(tmp_path / "x.pth", alone)).network.stages == 3


def test_a_checkpoint_of_another_training_is_not_that_of_the_folder_around_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "fold_0").mkdir()
    state, plan = dict(network(PLAIN_UNET).state_dict()), plans(PLAIN_UNET)
    plan |= {"transpose_forward": [0, 1, 2], "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}}}
    saved(tmp_path / "fold_0" / "checkpoint_final.pth", content(state, plan))

    def described(labels: dict[str, int], **changes: Any) -> Weights:
        configuration = plan["configurations"]["3d_fullres"]
        own = {key: value for key, value in changes.items() if key in configuration}
        others = {key: value for key, value in changes.items() if key not in configuration}
        write_json(tmp_path / "plans.json", {**plan, **others, "configurations": {"3d_fullres": configuration | own}})
        write_json(tmp_path / "dataset.json", {**DATASET, "labels": labels})
        return read_weights(tmp_path)

    labels = {"background": 0, "liver": 1, "spleen": 2}
    assert described(labels).classes == [*labels]
    for changes, message in (
        ({"spacing": [2.0, 1.0, 1.0]}, r"says spacing \[2.0, 1.0, 1.0\], but .* was trained with \[3.0, 1.0, 1.0\]"),
        ({"normalization_schemes": ["ZScoreNormalization"]}, "says normalisation"),
        ({"transpose_forward": [1, 0, 2]}, "says order of axes"),
        ({"foreground_intensity_properties_per_channel": {"0": {"mean": 2.0}}}, "says intensities of CT"),
    ):
        with pytest.raises(WeightsError, match=message):
            described(labels, **changes)
    for other in ({"background": 0, "spleen": 1, "liver": 2}, {"background": 0, "liver": 1, "spleen": 2, "aorta": 3}):
        with pytest.raises(WeightsError, match=r"was trained with other classes than .*dataset\.json"):
            described(other)
    assert not caplog.messages
    assert described({"background": 0, "Leber": 1, "Milz": 2}).classes == ["background", "Leber", "Milz"]
    assert caplog.messages[0].endswith("other names of classes than dataset.json has: liver, spleen")
