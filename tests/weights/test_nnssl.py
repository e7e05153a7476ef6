"""nnssl's files: what we write is what nnssl and nnU-Net read, and what they write is understood."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stunet.errors import WeightsError
from stunet.networks import build
from stunet.plans.plan import Plan
from stunet.weights.nnssl import ADAPTATION, check_written, pretext_of_trainer, write_nnssl
from stunet.weights.reading import read_weights
from stunet.weights.transfer import transfer
from stunet.weights.v2 import make_plan
from tests.loops import for_each

STRIDES = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]


def plan(spacing: tuple[float, ...] = (1.0, 1.0, 1.0), **values: Any) -> Plan:
    made = make_plan(
        "Dataset050_Unlabelled", "3d_fullres", "T", strides=STRIDES, spacing=spacing, patch_size=(16, 16, 16),
        median_shape=(20, 20, 20), normalization=["ZScoreNormalization"], mirror_axes=(0, 1, 2),
    )  # fmt: skip
    return made.with_configuration("3d_fullres", **values)


def state(channels: int = 1, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return build("T", STRIDES, channels, channels).state_dict()


def written(path: Path, **values: Any) -> Path:
    citations = [{"type": "Method", "name": "MAE", "apa_citations": ["He et al. 2022"]}]
    write_nnssl(path, state(), plan(**values), "3d_fullres", ["MR"], "mae", citations, "all")
    return path


def kinds_in(value: Any) -> set[type]:
    inside = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    nested = isinstance(value, dict | list | tuple)
    return {type(value)}.union(*(kinds_in(each) for each in inside)) if nested else {type(value)}


def test_a_written_file_has_what_nnssl_writes_in_plain_values_and_tensors_of_the_cpu(tmp_path: Path) -> None:
    content = torch.load(written(tmp_path / "pretrained.pth"), weights_only=True)
    assert kinds_in(content) <= {dict, list, str, int, float, bool, type(None), Tensor}
    weights = content["network_weights"]
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in weights.values())
    adaptation = content[ADAPTATION]
    # The fields of nnssl's AdaptationPlan, Plan and ConfigurationPlan, of which nnU-Net reads most.
    assert set(adaptation) == {
        "architecture_plans", "pretrain_plan", "pretrain_num_input_channels", "recommended_downstream_patchsize",
        "key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe",
    }  # fmt: skip
    assert set(adaptation["pretrain_plan"]) == {
        "dataset_name", "plans_name", "original_median_spacing_after_transp", "image_reader_writer",
        "transpose_forward", "transpose_backward", "configurations", "experiment_planner_used",
    }  # fmt: skip
    assert set(adaptation["pretrain_plan"]["configurations"]["onemmiso"]) == {
        "data_identifier", "preprocessor_name", "spacing_style", "normalization_schemes", "use_mask_for_norm",
        "resampling_fn_data", "resampling_fn_data_kwargs", "resampling_fn_mask", "resampling_fn_mask_kwargs",
        "spacing", "patch_size",
    }  # fmt: skip
    assert adaptation["architecture_plans"] == {
        "arch_class_name": "STUNet",
        "arch_kwargs": {"size": "T", "strides": STRIDES},
        "arch_kwargs_requiring_import": None,
    }
    assert (adaptation["pretrain_num_input_channels"], adaptation["key_to_lpe"]) == (1, None)
    assert (adaptation["key_to_encoder"], adaptation["key_to_stem"]) == ("conv_blocks_context", "conv_blocks_context.0")
    inputs = ["conv_blocks_context.0.0.conv1", "conv_blocks_context.0.0.conv3"]
    assert adaptation["keys_to_in_proj"] == inputs
    assert all(weights[f"{name}.weight"].shape[1] == 1 for name in inputs)
    assert content["citations"][0]["name"] == "MAE"


def test_what_was_written_is_read_with_its_meaning_also_beside_the_plans_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "fold_all").mkdir()
    (tmp_path / "plans.json").write_text("{}")  # where the configuration has another name: not looked at
    weights = read_weights(written(tmp_path / "fold_all/pretrained.pth"))
    assert (weights.kind, weights.pretext, weights.transfers) == ("nnssl", "mae", "all")
    assert (weights.strides, weights.spacing) == (STRIDES, [1.0, 1.0, 1.0])
    assert (weights.normalization, weights.channels, weights.classes) == (["ZScoreNormalization"], ["MR"], None)
    assert all(torch.equal(value, state()[name]) for name, value in weights.tensors.items())


def test_what_nnssls_plan_lacks_is_read_back_as_well(tmp_path: Path) -> None:
    """The intensities by which CT is normalised, and which way the axes run."""
    intensities = {"0": {"mean": 40.0, "std": 270.0}}
    given = plan(normalization_schemes=["CTNormalization"]).with_ours(orientation="RAS")
    given = given.with_values(foreground_intensity_properties_per_channel=intensities, transpose_forward=[1, 0, 2])
    write_nnssl(tmp_path / "x.pth", state(), given, "3d_fullres", ["CT"], "mae")
    weights = read_weights(tmp_path / "x.pth")
    found = weights.plan
    assert found is not None
    assert (found.intensities, found.orientation, found.transpose_forward) == (intensities, "RAS", [1, 0, 2])
    other = {"0": {"std": 17.0}}
    options = {"normalization": ["CTNormalization"], "intensities": other, "transposition": [0, 1, 2]}
    contrast, axes = sorted(transfer(build("T", STRIDES, 1, 4), weights, **options).warnings)[::-1]
    assert "divided by 270 HU" in axes + contrast
    assert "axes in the order [1, 0, 2]" in axes + contrast
    for damaged in ({"orientation": "LLL"}, {"intensities": [1]}):
        content = {**of_nnssl(state()), "stunet": {"pretext": {"method": "mae", "transfers": "all"}, **damaged}}
        with pytest.raises(WeightsError, match=next(iter(damaged))):
            read_weights(saved(tmp_path / "y.pth", content))


def test_of_several_configurations_the_one_that_was_trained_is_read(tmp_path: Path) -> None:
    content = of_nnssl(state())
    other = {"spacing": [2, 2, 2], "normalization_schemes": ["NoNormalization"], "patch_size": [16] * 3}
    content[ADAPTATION]["pretrain_plan"]["configurations"] |= {"median": other}
    for named, spacing in (("median", [2, 2, 2]), ("onemmiso", [1, 1, 1]), ("gone", [1, 1, 1]), (None, [1, 1, 1])):
        content["init_args"] = {"configuration_name": named} if named else {}
        assert read_weights(saved(tmp_path / "x.pth", content)).spacing == spacing, named


@for_each(
    ("values", "style", "spacing"),
    [
        ({"spacing": (2.0, 1.0, 1.0)}, "median", [2.0, 1.0, 1.0]),
        ({"resampling_fn_data": "no_resampling_hack"}, "noresample", None),
    ],
)
def test_the_spacing_is_named_as_nnssl_does(
    tmp_path: Path, values: dict[str, Any], style: str, spacing: list[float] | None
) -> None:
    path = written(tmp_path / "x.pth", **values)
    configurations = torch.load(path, weights_only=True)[ADAPTATION]["pretrain_plan"]["configurations"]
    assert list(configurations) == [configurations[style]["spacing_style"]] == [style]
    assert read_weights(path).spacing == spacing


def test_a_written_file_is_loaded_into_a_new_network_and_compared(tmp_path: Path) -> None:
    path = written(tmp_path / "x.pth")
    check_written(path, state())
    with pytest.raises(WeightsError, match="is not what was loaded"):
        check_written(path, state(seed=2))


def of_nnssl(tensors: Mapping[str, Tensor], **adaptation: Any) -> dict[str, Any]:
    """A checkpoint as nnssl's trainers write it."""
    configuration = {"spacing": [1, 1, 1], "normalization_schemes": ["ZScoreNormalization"], "patch_size": [16] * 3}
    pretrain = {"plans_name": "nnsslPlans", "configurations": {"onemmiso": configuration}}
    plan = {"architecture_plans": {"arch_class_name": "STUNet"}, "pretrain_plan": pretrain, **adaptation}
    return {"network_weights": dict(tensors), ADAPTATION: plan, "trainer_name": "BaseMAETrainer_BS8", "init_args": {}}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def wrapped(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state().items()}


@for_each("prefix", ["", "network.", "module.", "module.network.", "network.module.", "model.backbone."])
def test_a_network_is_found_in_whatever_wraps_it(tmp_path: Path, prefix: str) -> None:
    tensors = {**wrapped(prefix), "projector.weight": torch.ones(2, 2)}
    weights = read_weights(saved(tmp_path / "x.pth", of_nnssl(tensors)))
    assert state().keys() <= weights.tensors.keys()
    assert (weights.pretext, weights.transfers, weights.spacing) == ("mae", "encoder", [1, 1, 1])
    report = transfer(build("T", STRIDES, 2, 4), weights, channels=["T1", "T2"], normalization=["CTNormalization"] * 2)
    assert report.coverage == 1
    assert "pre-training: mae, images of 1 channel(s), at 1 x 1 x 1 mm, ZScoreNormalization" in report.lines()
    assert [text for text in report.warnings if "normalised by ZScoreNormalization" in text]


def test_of_several_networks_the_one_that_the_file_means_is_taken(tmp_path: Path) -> None:
    tensors = {**wrapped("student."), **{f"teacher.{name}": value for name, value in state(seed=2).items()}}
    meant = of_nnssl(tensors, key_to_encoder="teacher.conv_blocks_context")
    found = read_weights(saved(tmp_path / "x.pth", meant)).tensors
    assert all(torch.equal(value, found[name]) for name, value in state(seed=2).items())
    with pytest.raises(WeightsError, match=r"several networks: student\., teacher\."):
        read_weights(saved(tmp_path / "x.pth", of_nnssl(tensors)))


def test_without_an_adaptation_plan_the_tensors_are_read_all_the_same(tmp_path: Path) -> None:
    content = of_nnssl(wrapped("network."))
    del content[ADAPTATION]
    content["init_args"] = {"plan": {}}
    weights = read_weights(saved(tmp_path / "x.pth", content))
    assert (weights.kind, weights.strides, weights.spacing, weights.pretext) == ("nnssl", None, None, "mae")
    assert weights.transfers == "encoder"


@for_each(
    ("trainer", "method"),
    [("BaseMAETrainer_BS8", "mae"), ("SimCLRTrainer", "simclr"), ("VolumeFusionTrainer", "volumefusion"),
     (None, "nnssl"), ("_", "nnssl"), (7, "7")],
)  # fmt: skip
def test_the_method_is_read_from_the_name_of_nnssls_trainer(trainer: Any, method: str) -> None:
    assert pretext_of_trainer(trainer) == (method, "encoder")


@for_each(
    ("name", "shape", "network"),
    [
        ("encoder.stages.0.blocks.0.conv1.conv.weight", (8, 8, 3, 3, 3), "ResidualEncoderUNet"),
        ("eva.blocks.0.norm1.weight", (8,), "Primus"),
    ],
)
def test_other_networks_are_named(tmp_path: Path, name: str, shape: tuple[int, ...], network: str) -> None:
    with pytest.raises(WeightsError, match=f"{network}.* not a STU-Net"):
        read_weights(saved(tmp_path / "x.pth", of_nnssl({name: torch.ones(shape)})))


@for_each(
    "own",
    [
        *({"method": method, "transfers": "all"} for method in ("a__b", "../x", "x" * 41, 1)),
        {"method": "mae", "transfers": "decoder"},
        {"method": "mae"},
        [],
        "mae",
    ],
)
@for_each("nnssl", [True, False])
def test_a_pretext_that_is_damaged_or_would_be_a_bad_name_is_refused(tmp_path: Path, own: Any, nnssl: bool) -> None:
    content = {**of_nnssl(state()), "stunet": {"pretext": own}}
    if not nnssl:
        del content[ADAPTATION]
    with pytest.raises(WeightsError, match=r"metadata of .* are damaged"):
        read_weights(saved(tmp_path / "x.pth", content))


def test_a_checkpoint_of_ours_says_its_pretext(tmp_path: Path) -> None:
    block = {"pretext": {"method": "rkb+", "transfers": "encoder", "state": {"head.weight": torch.ones(2)}}}
    content = {"network_weights": state(), "init_args": {}, "stunet": block}
    weights = read_weights(saved(tmp_path / "x.pth", content))
    assert (weights.kind, weights.pretext, weights.transfers) == ("nnU-Net v2", "rkb+", "encoder")
    assert weights.tensors.keys() == state().keys()
