"""Tests of weights/reading.py: every kind of file is read with its meaning, and nothing in any of them is executed."""

import gzip
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stunet.architectures.base import Recognised
from stunet.architectures.stunet import STUNET
from stunet.errors import WeightsError
from stunet.networks import STUNet, build
from stunet.sizes import SIZES, Size
from stunet.weights.checkpoints import load_checkpoint, save_weights
from stunet.weights.reading import read_weights
from stunet.weights.recognition import recognise
from tests.loops import for_each

STRIDES = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
NETWORK = "stunet.networks.STUNet"


class Payload:
    """Unpickled the ordinary way, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def state(classes: int = 3, channels: int = 1, strides: list[list[int]] = STRIDES) -> dict[str, torch.Tensor]:
    drawn = _drawn(classes, channels, tuple(map(tuple, strides)))
    return {name: value.clone() for name, value in drawn.items()}


@cache
def _drawn(classes: int, channels: int, strides: tuple[tuple[int, ...], ...]) -> dict[str, torch.Tensor]:
    return build("T", [list(stride) for stride in strides], channels, classes).state_dict()


def plans(strides: list[list[int]] = STRIDES, name: str = NETWORK) -> dict:
    configuration = {
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": {"network_class_name": name, "arch_kwargs": {"size": "T", "strides": strides}},
    }
    return {"plans_name": "P", "configurations": {"3d_fullres": configuration, "own": {"inherits_from": "3d_fullres"}}}


def dataset(*names: str) -> dict:
    names = names or ("background", "liver", "spleen")
    return {"channel_names": {"0": "CT"}, "labels": {name: i for i, name in enumerate(names)}, "file_ending": ".nii.gz"}


def v1_content() -> dict:
    weights = state()
    momentum = {i: {"momentum_buffer": torch.randn_like(value)} for i, value in enumerate(weights.values())}
    return {
        "epoch": 2,
        "state_dict": weights,
        "optimizer_state_dict": {"state": momentum, "param_groups": [{"lr": 0.01, "params": [*momentum]}]},
        "lr_scheduler_state_dict": None,
        "plot_stuff": ([np.float64(0.5)], [np.float32(0.5)], [], [np.float64(0.1)]),
        "best_stuff": (np.float64(0.5), np.float64(0.5), np.float64(0.5)),
        "amp_grad_scaler": {"scale": 65536.0},
    }


def v2_content(**arguments: object) -> dict:
    own = {"plans": plans(), "configuration": "own", "dataset_json": dataset(), "device": torch.device("cpu")}
    return {
        "network_weights": state(),
        "logging": {"mean_fg_dice": [np.float64(0.1)]},
        "init_args": own | arguments,
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }


def nnssl_content() -> dict:
    configuration = {"spacing": [1, 1, 1], "normalization_schemes": ["ZScoreNormalization"]}
    kwargs = {"arch_kwargs": {"strides": STRIDES}}
    pretrain = {"plans_name": "nnsslPlans", "configurations": {"onemmiso": configuration}}
    encoder = {name: value for name, value in state().items() if name.startswith("conv_blocks_context")}
    return {
        "network_weights": encoder,
        "nnssl_adaptation_plan": {"architecture_plans": kwargs, "pretrain_plan": pretrain},
        "init_args": {"plan": pretrain, "configuration_name": "onemmiso"},
        "trainer_name": "BaseMAETrainer",
    }


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_a_file_of_nnunet_v1_without_its_plans_is_weights_without_meaning(tmp_path: Path) -> None:
    content = v1_content()
    weights = read_weights(saved(tmp_path / "x.model", content))
    assert weights.kind == "nnU-Net v1"
    assert weights.network == Recognised(STUNET, {"size": "T"}, "T", 3, 1, 3, 3)
    assert (weights.strides, weights.spacing, weights.classes, weights.channels) == (None, None, None, None)
    assert weights.tensors.keys() == content["state_dict"].keys()
    assert all(torch.equal(value, content["state_dict"][name]) for name, value in weights.tensors.items())


def test_a_released_file_gets_its_meaning_from_the_plans_beside_it(tmp_path: Path, data: Path) -> None:
    official = data / "stunet_official"
    network = build("S", [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]])
    shapes = json.loads((official / "state_dict_keys_S.json").read_text())
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == shapes
    saved(tmp_path / "small_ep4k.model", v1_content() | {"state_dict": network.state_dict()})
    (tmp_path / "small_ep4k.model.pkl").write_bytes((official / "small_ep4k.model.pkl").read_bytes())
    weights = read_weights(tmp_path / "small_ep4k.model")
    assert weights.network == Recognised(STUNET, {"size": "S"}, "S", 6, 1, 105, 3)
    assert weights.strides == [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]]
    assert weights.spacing == [1.5, 1.5, 1.5]
    assert weights.normalization == ["ZScoreNormalization"]
    assert weights.mirror_axes == (0, 1, 2)


def test_numpy_scalars_of_both_generations_of_numpy_are_read(tmp_path: Path) -> None:
    new = saved(tmp_path / "new.model", v1_content())
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(tmp_path / "old.model", "w") as target:
        assert b"numpy._core.multiarray" in source.read("new/data.pkl")
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_weights(new).network == read_weights(tmp_path / "old.model").network


def test_a_checkpoint_of_nnunet_v2_brings_its_meaning_along(tmp_path: Path) -> None:
    weights = read_weights(saved(tmp_path / "c.pth", v2_content()))
    assert (weights.kind, weights.configuration) == ("nnU-Net v2", "own")
    assert (weights.strides, weights.spacing) == (STRIDES, [2.0, 1.0, 1.0])
    assert weights.normalization == ["ZScoreNormalization"]
    assert (weights.classes, weights.channels) == (["background", "liver", "spleen"], ["CT"])
    assert weights.mirror_axes == (0, 1)
    assert list(weights.plan.content["configurations"]) == ["own"]


@for_each("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_ddp_and_compile_are_taken_off(tmp_path: Path, prefix: str) -> None:
    content = v2_content() | {"network_weights": {prefix + name: value for name, value in state().items()}}
    assert read_weights(saved(tmp_path / "c.pth", content)).tensors.keys() == state().keys()


def test_plans_of_nnunet_2_2_are_understood_as_the_published_network_did(tmp_path: Path) -> None:
    old = {
        "UNet_class_name": "PlainConvUNet",
        "pool_op_kernel_sizes": [*STRIDES, [2, 2, 2]],  # one more than the network has stages
        "conv_kernel_sizes": [[3, 3, 3]] * 4,
        "spacing": [1, 1, 1],
    }
    content = v2_content(plans={"configurations": {"own": old}})
    weights = read_weights(saved(tmp_path / "c.pth", content))
    assert weights.strides == STRIDES
    assert weights.plan.content["configurations"]["own"] == {
        "spacing": [1, 1, 1],
        "architecture": {
            "network_class_name": NETWORK,
            "arch_kwargs": {"size": "T", "strides": STRIDES},
            "_kw_requires_import": [],
        },
    }


def test_a_class_that_plans_name_never_gets_out_of_a_checkpoint(tmp_path: Path) -> None:
    weights = read_weights(saved(tmp_path / "c.pth", v2_content(plans=plans(name="os.system"))))
    assert "os.system" not in json.dumps(weights.plan.content)


def test_nnssl_checkpoints_are_read_with_and_without_an_adaptation_plan(tmp_path: Path) -> None:
    content = nnssl_content()
    weights = read_weights(saved(tmp_path / "with.pth", content))
    assert (weights.kind, weights.network.classes) == ("nnssl", 0)
    assert (weights.strides, weights.spacing) == (STRIDES, [1, 1, 1])
    del content["nnssl_adaptation_plan"]
    weights = read_weights(saved(tmp_path / "without.pth", content))
    assert (weights.kind, weights.strides, weights.spacing) == ("nnssl", None, [1, 1, 1])


@for_each("half", [False, True])
def test_our_own_file_keeps_everything(tmp_path: Path, half: bool) -> None:
    first = read_weights(saved(tmp_path / "c.pth", v2_content()))
    meta = {name: getattr(first, name) for name in ("configuration", "dataset", "mirror_axes")}
    meta["plans"] = first.plan.to_json()
    save_weights(tmp_path / "x.bin", first.tensors, meta | {"entry": "STU-Net-T.test"}, half)
    second = read_weights(tmp_path / "x.bin")
    assert (second.kind, second.entry) == ("stunet", "STU-Net-T.test")
    for name in ("plan", "configuration", "dataset", "mirror_axes", "strides", "classes", "network"):
        assert getattr(second, name) == getattr(first, name)
    for name, value in first.tensors.items():
        assert torch.equal(second.tensors[name], value.half() if half else value)


def test_bare_parameters_and_files_of_torch_before_1_6_are_read(tmp_path: Path) -> None:
    assert read_weights(saved(tmp_path / "bare.pth", state())).kind == "bare"
    save_file(state(), tmp_path / "bare.safetensors")
    assert read_weights(tmp_path / "bare.safetensors").kind == "bare"
    torch.save(v1_content(), tmp_path / "old.model", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old.model").network.size == "T"


@for_each("size", sorted(SIZES))
@for_each("strides", [STRIDES, [[1, 1], [2, 2]]])
def test_every_size_is_recognised_from_its_shapes(size: str, strides: list[list[int]]) -> None:
    with torch.device("meta"):
        tensors = STUNet(2, 7, size, strides).state_dict()
    found = recognise(tensors, Path("x"))
    assert found == Recognised(STUNET, {"size": size}, size, len(strides), 2, 7, len(strides[0]))


def test_a_width_of_no_size_is_recognised_without_a_name() -> None:
    with torch.device("meta"):
        tensors = STUNet(1, 2, Size(24, 2), STRIDES).state_dict()
    assert recognise(tensors, Path("x")) == Recognised(STUNET, {"size": Size(24, 2)}, None, 3, 1, 2, 3)


@for_each(
    ("name", "what"),
    [
        ("conv_blocks_context.0.blocks.0.conv.weight", "Generic_UNet"),
        ("swinViT.patch_embed.proj.weight", "SwinUNETR, as VoCo and SuPreM publish it"),
        ("backbone.swinViT.layers1.0.blocks.0.norm1.weight", "SwinUNETR"),
        ("backbone.convInit.conv.weight", "SegResNet, as SuPreM"),
        ("conv_init.weight", "SegResEncoder, as CT-FM"),
        ("encoder.conv_init.weight", "SegResEncoder, as CT-FM"),
        ("backbone.down_tr64.ops.0.conv1.weight", "the U-Net of Models Genesis, as SuPreM"),
        ("enc_block_0.0.conv1.weight", "MedNeXt"),
        ("encoder.stages.0.blocks.0.conv1.conv.weight", "a part of nnU-Net's ResidualEncoderUNet"),
        ("encoder.stages.1.0.convs.0.conv.weight", "a part of nnU-Net's PlainConvUNet"),
        ("decoder.stages.0.blocks.0.conv1.conv.weight", "nnU-Net's ResidualUNet"),
        ("a.weight", r"a network with 1 tensors of other names \('a.weight'\)"),
    ],
)
def test_other_networks_are_told_by_the_names_of_their_parameters(name: str, what: str) -> None:
    with pytest.raises(WeightsError, match=f"{what}.*, not a STU-Net"):
        recognise({name: torch.zeros(2, 1, 3, 3, 3)}, Path("x"))


def test_parts_that_do_not_fit_together_are_refused() -> None:
    tensors = state()
    with pytest.raises(WeightsError, match=r"'upsample_layers.0.conv.weight' has shape \(3,\) instead of \(8, 16, 1"):
        recognise(tensors | {"upsample_layers.0.conv.weight": torch.zeros(3)}, Path("x"))
    with pytest.raises(WeightsError, match="lacks parts of its encoder: 2 blocks instead of 3 stages of 1"):
        recognise({k: v for k, v in tensors.items() if not k.startswith("conv_blocks_context.1")}, Path("x"))
    with pytest.raises(WeightsError, match="lacks parts of its encoder"):
        recognise(tensors | {"conv_blocks_context.99.99.x": torch.zeros(1)}, Path("x"))


def model_folder(folder: Path, content: dict, fold: str = "fold_0", name: str = "checkpoint_final.pth") -> Path:
    (folder / fold).mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans()))
    (folder / "dataset.json").write_text(json.dumps(dataset("background", "a", "b")))
    torch.save(content, folder / fold / name)
    return folder


def test_a_model_folder_means_what_its_own_files_say(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", v2_content())
    (folder / "model.json").write_text(json.dumps({"entry": "STU-Net-T.test"}))
    for path in (folder, folder / "fold_0" / "checkpoint_final.pth"):
        weights = read_weights(path)
        assert (weights.classes, weights.entry) == (["background", "a", "b"], "STU-Net-T.test")
        assert weights.path == folder / "fold_0" / "checkpoint_final.pth"


def test_the_lowest_fold_is_taken_then_all_then_the_best(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, v2_content(), "fold_all", "checkpoint_best.pth")
    assert read_weights(folder).path == folder / "fold_all" / "checkpoint_best.pth"
    for fold in ("fold_all", "fold_3", "fold_1"):
        model_folder(folder, v2_content(), fold)
        assert read_weights(folder).path.parent.name == fold


def test_parts_of_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    other = v2_content(plans=plans([[1, 1, 1], [2, 2, 2], [2, 2, 2]]))
    with pytest.raises(WeightsError, match=r"says strides .* but 'checkpoint_final.pth' was trained with"):
        read_weights(model_folder(tmp_path / "strides", other))
    deeper = v2_content() | {"network_weights": state(strides=[*STRIDES, [2, 2, 2]])}
    with pytest.raises(WeightsError, match=r"has 4 stages in 3D, and its plans say strides"):
        read_weights(model_folder(tmp_path / "stages", deeper))
    with pytest.raises(WeightsError, match="has 5 rows, but 3 classes are named"):
        read_weights(model_folder(tmp_path / "head", v2_content() | {"network_weights": state(classes=5)}))
    wider = plans()
    wider["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["size"] = "B"
    with pytest.raises(WeightsError, match="plans say size 'B', but its tensors are of size 'T'"):
        read_weights(saved(tmp_path / "size.pth", v2_content(plans=wider)))


def test_folders_that_are_no_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"it has no plans.json"):
        read_weights(tmp_path)
    (tmp_path / "plans.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"it has no dataset.json"):
        read_weights(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"has a checkpoint_final.pth"):
        read_weights(tmp_path)


def test_regions_and_missing_names_are_no_class_names(tmp_path: Path) -> None:
    regions = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}}
    assert read_weights(saved(tmp_path / "c.pth", v2_content(dataset_json=regions))).classes is None
    assert read_weights(saved(tmp_path / "d.pth", v2_content(dataset_json=None))).classes is None


def _mutated(content: dict, *keys: object) -> Callable[[Payload], object]:
    def put(payload: Payload) -> object:
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = payload
        return content

    return put


POSITIONS = {
    "v1 state_dict": lambda: _mutated(v1_content(), "state_dict", "conv_blocks_context.0.0.conv1.weight"),
    "v1 optimizer": lambda: _mutated(v1_content(), "optimizer_state_dict", "param_groups"),
    "v1 plot_stuff": lambda: _mutated(v1_content(), "plot_stuff"),
    "v1 key": lambda: lambda payload: v1_content() | {"state_dict": {payload: 1}},
    "v2 weights": lambda: _mutated(v2_content(), "network_weights"),
    "v2 init_args": lambda: _mutated(v2_content(), "init_args", "plans", "configurations"),
    "v2 logging": lambda: _mutated(v2_content(), "logging", "mean_fg_dice"),
    "nnssl plan": lambda: _mutated(nnssl_content(), "nnssl_adaptation_plan", "pretrain_plan"),
    "bare": lambda: lambda payload: {"x": payload},
    "top": lambda: lambda payload: payload,
}


@for_each("zipped", [True, False])
@for_each("position", POSITIONS)
def test_a_malicious_pickle_is_refused_by_name_wherever_it_is(tmp_path: Path, position: str, zipped: bool) -> None:
    content = POSITIONS[position]()(Payload(tmp_path / "pwned"))
    torch.save(content, tmp_path / "bad.model", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"wants to import \w+\.mkdir.*; it was refused and nothing was executed"):
        read_weights(tmp_path / "bad.model")
    assert not (tmp_path / "pwned").exists()
    torch.load(tmp_path / "bad.model", weights_only=False)
    assert (tmp_path / "pwned").exists()  # the payload does work where pickles are executed


def test_a_malicious_pickle_in_the_plans_beside_a_file_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "x.model", v1_content())
    bad = pickle.dumps({"init": (Payload(tmp_path / "pwned"),), "plans": {}})
    (tmp_path / "x.model.pkl").write_bytes(bad)
    with pytest.raises(WeightsError, match=r"x.model.pkl' wants to import \w+\.mkdir; it was refused"):
        read_weights(tmp_path / "x.model")
    assert not (tmp_path / "pwned").exists()


def test_a_pickle_in_the_metadata_of_a_safetensors_file_stays_text(tmp_path: Path) -> None:
    text = pickle.dumps(Payload(tmp_path / "pwned"), 0).decode()
    for metadata in (text, json.dumps({"version": 1, "plans": text, "configuration": "x"})):
        save_file(state(), tmp_path / "bad.safetensors", {"stunet": metadata})
        with pytest.raises(WeightsError, match="damaged"):
            read_weights(tmp_path / "bad.safetensors")
    assert not (tmp_path / "pwned").exists()
    pickle.loads(text.encode())
    assert (tmp_path / "pwned").exists()


@for_each(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>", "an HTML page: the download page, not the file"),
        (gzip.compress(bytes(344) + b"n+1\0", mtime=0), "a NIfTI image"),
        (bytes(344) + b"n+1\0", "a NIfTI image"),
        (gzip.compress(b"tar", mtime=0), "a gzip archive; unpack it first"),
        (gzip.compress(b"tar", mtime=0)[:8], "a gzip archive; unpack it first"),
        (pickle.dumps({"plans": 1}), "a pickle: metadata"),
        (b"PK\3\4", "the rest is missing"),
        (b"what is this", "of an unknown kind"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_content(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x.model").write_bytes(content)
    with pytest.raises(WeightsError, match=f"not a whole checkpoint: .*{what}"):
        read_weights(tmp_path / "x.model")


@for_each("name", ["x.pth", "x.safetensors"])
def test_a_pointer_of_git_lfs_is_named_with_what_gets_the_file(tmp_path: Path, name: str) -> None:
    """Also in a folder, as cloning from Hugging Face without Git LFS leaves it."""
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0d92\nsize 124920555\n")
    (tmp_path / "adaptation_plan.json").write_text("{}")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(WeightsError, match=f"{name}.* is not a whole checkpoint: a pointer of Git LFS") as refused:
            read_weights(path)
        assert "git lfs pull" in refused.value.hint


@for_each("key", ["net", "model", "model_state_dict"])
def test_parameters_that_other_programs_keep_under_a_name_are_found(tmp_path: Path, key: str) -> None:
    wrapped = {f"module.{name}": value for name, value in state().items()}
    read = read_weights(saved(tmp_path / "x.pth", {"epoch": 3, key: wrapped, "optimizer": {}}))
    assert read.tensors.keys() == state().keys()
    swin = {"module.backbone.swinViT.patch_embed.proj.weight": torch.zeros(2, 1, 2, 2, 2)}
    with pytest.raises(WeightsError, match="SwinUNETR") as refused:
        read_weights(saved(tmp_path / "y.pth", {key: swin}))
    assert "VoComni-nnUNet" in refused.value.hint


def test_truncated_and_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no checkpoint"):
        read_weights(tmp_path / "none.model")
    save_weights(tmp_path / "x.safetensors", state(), {})
    torch.save(state(), tmp_path / "x.pth")
    torch.save(state(), tmp_path / "x.model", _use_new_zipfile_serialization=False)
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for keep in (0.999, 0.5, 0.1):
            path.write_bytes(whole[: int(keep * len(whole))])
            with pytest.raises(WeightsError, match=r"damaged|not a whole checkpoint"):
                read_weights(path)


def test_a_checkpoint_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(build("T", STRIDES).parameters(), 0.1).state_dict()
    with pytest.raises(WeightsError, match="holds the state of an optimizer and no weights"):
        read_weights(saved(tmp_path / "o.pth", optimizer))
    with pytest.raises(WeightsError, match=r"holds no weights \(there: 'epoch'\)"):
        read_weights(saved(tmp_path / "e.pth", {"epoch": 1}))
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("model/plans.json", "{}")
    with pytest.raises(WeightsError, match=r"a zip archive \(of 'model/plans.json' ...\), not a checkpoint"):
        read_weights(tmp_path / "model.zip")


def test_metadata_of_the_wrong_shape_are_damaged(tmp_path: Path) -> None:
    for i, arguments in enumerate(
        ({"plans": {"configurations": {"own": 3}}}, {"dataset_json": {"labels": {"a": "x"}}})
    ):
        with pytest.raises(WeightsError, match=r"the metadata of .* are damaged"):
            read_weights(saved(tmp_path / f"{i}.pth", v2_content(**arguments)))
    with pytest.raises(WeightsError, match="no configuration '2d'"):
        read_weights(saved(tmp_path / "c.pth", v2_content(configuration="2d")))
    save_file(state(), tmp_path / "later.safetensors", {"stunet": json.dumps({"version": 99})})
    with pytest.raises(WeightsError, match="metadata that this version of stunet does not know"):
        read_weights(tmp_path / "later.safetensors")


def test_gigabytes_from_a_few_bytes_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1 << 20)}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    with pytest.raises(WeightsError, match="claims more bytes than it has; it was not unpacked"):
        load_checkpoint(tmp_path / "bomb.pth")
    huge = state() | {"seg_outputs.1.weight": torch.zeros(1, 1, 1, 1, 1).expand(10**9, 4, 1, 1, 1)}
    with pytest.raises(WeightsError, match=r"'seg_outputs.1.weight' exists twice or claims more bytes than it has"):
        read_weights(saved(tmp_path / "huge.pth", huge))


STEM = "conv_blocks_context.0.0.conv1.weight"


@for_each(
    ("change", "message"),
    [
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "values of type qint8"),
        (lambda value: value.to(torch.complex64), "values of type complex64"),
        (lambda value: value.to(torch.float8_e4m3fn), "values of type float8_e4m3fn"),
        (lambda value: value.to(torch.int64), "values of type int64"),
        (lambda value: value > 0, "values of type bool"),
        (lambda value: value.to("meta"), "claims more bytes than it has"),
        (lambda value: value[:0], "has 0 values"),
        (lambda value: torch.zeros(10**9, 0, 3, 3, 3), "has 0 values"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch, about its old kinds of storage
def test_weights_of_another_kind_of_number_are_refused(tmp_path: Path, change: Callable, message: str) -> None:
    tensors = state()
    tensors[STEM] = change(tensors[STEM])
    with pytest.raises(WeightsError, match=message):
        read_weights(saved(tmp_path / "x.pth", {"network_weights": tensors}))


@for_each("axes", ["01", [0.5], ["0"]])
def test_mirror_axes_are_whole_numbers(tmp_path: Path, axes: object) -> None:
    with pytest.raises(WeightsError, match=r"metadata .* are damaged: TypeError mirror axes"):
        read_weights(saved(tmp_path / "x.pth", v2_content() | {"inference_allowed_mirroring_axes": axes}))
