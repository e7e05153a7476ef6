"""The files that others publish, in small: TotalSegmentator's tasks, MultiTalent's archive, VoCo's nnU-Net."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.architectures.resenc import RESENC
from stunet.errors import WeightsError
from stunet.files import write_json
from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from stunet.models import registry, store
from stunet.models.folder import check, check_entry
from stunet.models.installing import import_file, import_models
from stunet.plans.plan import Plan
from stunet.weights import nnssl
from stunet.weights.checkpoints import save_checkpoint
from stunet.weights.reading import read_weights
from stunet.weights.transfer import transfer
from stunet.weights.v2 import make_dataset, make_plan
from tests.loops import for_each
from tests.nnunet_networks import STRIDES, arguments, network

pytestmark = pytest.mark.usefixtures("environment")
NO_MIRRORING = "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"


def stock_plans(architecture: NNUNet, spacing: tuple[float, ...] = (1.5, 1.5, 1.5), **values: Any) -> dict[str, Any]:
    """Plans as nnU-Net writes them."""
    plan = make_plan(
        "Dataset291_TotalSegmentator_part1_organs_1559subj", "3d_fullres", None, strides=STRIDES, spacing=spacing,
        patch_size=(16, 16, 16), median_shape=(20, 20, 20), normalization=["CTNormalization"], mirror_axes=(),
    )  # fmt: skip
    content = plan.with_configuration(
        "3d_fullres",
        architecture={
            "network_class_name": architecture.class_name,
            "arch_kwargs": arguments(architecture),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **values,
    ).to_json()
    content.pop("stunet")
    statistics = {"mean": 40.0, "std": 270.0, "percentile_00_5": -900.0, "percentile_99_5": 900.0}
    return {**content, "plans_name": "nnUNetPlans", "foreground_intensity_properties_per_channel": {"0": statistics}}


def write_task(results: Path, name: str, trainer: str = NO_MIRRORING) -> Path:
    """Write what totalseg_download_weights unpacks for an entry of the registry, and return the task's folder."""
    entry = registry.find(name)
    task = results / str(entry.filename).removesuffix(".zip")
    folder = task / trainer
    (folder / "fold_0").mkdir(parents=True)
    plans, dataset = stock_plans(PLAIN_UNET), make_dataset(task.name, ["CT"], entry.classes or ())
    write_json(folder / "plans.json", plans)
    write_json(folder / "dataset.json", dataset)
    content = {
        "network_weights": network(PLAIN_UNET, classes=entry.num_classes).state_dict(),
        "optimizer_state": {},
        "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": 0, "dataset_json": dataset},
        "trainer_name": trainer.partition("__")[0],
        "inference_allowed_mirroring_axes": None,
    }
    save_checkpoint(content, folder / "fold_0" / "checkpoint_final.pth")
    return task


def pack(folder: Path) -> Path:
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w") as target:
        for path in folder.rglob("*.*"):
            target.write(path, path.relative_to(folder.parent))
        target.writestr(f"{folder.name}/.DS_Store", "x")
    return archive


@for_each("how", ["folder", "model", "zip"])
def test_a_task_of_totalsegmentator_is_recognised_and_runs(tmp_path: Path, how: str) -> None:
    task = write_task(tmp_path, "TotalSegmentator-total-part3")
    path = {"folder": task, "model": task / NO_MIRRORING, "zip": pack(task)}[how]
    model = import_file(path)
    assert model.name == "TotalSegmentator-total-part3"
    read = read_weights(model.path)
    assert (read.network.architecture, read.spacing, read.mirror_axes) == (PLAIN_UNET, [1.5] * 3, ())
    assert read.orientation == "RAS"  # which their plans do not say
    assert tuple(read.classes or ()) == registry.find(model.name).classes
    assert check(model.path)[-1].endswith("they fit the plans")
    predictor = Predictor(open_model(model.path), Options())
    assert predictor.patch == (16, 16, 16)


def test_the_results_of_totalsegmentator_are_installed_part_by_part(tmp_path: Path) -> None:
    parts = [entry.name for entry in registry.parts_of("TotalSegmentator-total_mr")]
    for name in (*parts, "TotalSegmentator-total-3mm"):
        write_task(tmp_path / "results", name, "nnUNetTrainer_2000epochs_NoMirroring__nnUNetPlans__3d_fullres")
    assert [model.name for model in import_models(tmp_path / "results")] == ["TotalSegmentator-total-3mm", *parts]


def test_half_of_the_parts_of_totalsegmentator_are_refused(tmp_path: Path) -> None:
    for part in (1, 3):
        write_task(tmp_path, f"TotalSegmentator-total-part{part}")
    with pytest.raises(WeightsError, match=r"only some parts of TotalSegmentator-total: .*-part2, .*-part4, .*-part5"):
        import_models(tmp_path)
    assert store.installed() == []


def test_a_folder_that_is_named_like_a_task_and_has_other_classes_is_not_that_task(tmp_path: Path) -> None:
    task = write_task(tmp_path, "TotalSegmentator-total-part3")
    other = task.rename(tmp_path / "Dataset291_TotalSegmentator_part1_organs_1559subj")
    with pytest.raises(WeightsError, match="not a model that the registry knows"):
        import_file(other)
    with pytest.raises(WeightsError, match="is not TotalSegmentator-total-part1: classes 19 instead of 25"):
        import_file(other, "TotalSegmentator-total-part1")


def test_a_part_is_not_taken_for_another_one_with_as_many_classes(tmp_path: Path) -> None:
    task = write_task(tmp_path, "TotalSegmentator-total-part5")
    with pytest.raises(WeightsError, match=r"not TotalSegmentator-total-part2: labels costal_.* instead of sacrum"):
        import_file(task, "TotalSegmentator-total-part2")


def test_the_nnunet_of_voco_is_kept_as_the_file_that_it_is(tmp_path: Path) -> None:
    weights = network(PLAIN_UNET, classes=21).state_dict()
    torch.save(weights, tmp_path / "VoComni_nnunet.pt")
    model = import_file(tmp_path / "VoComni_nnunet.pt", "VoComni-nnUNet")
    assert model.path.name == "VoComni_nnunet.pt"
    read = read_weights(model.path)
    assert (read.network.architecture, read.network.classes, read.network.strides) == (PLAIN_UNET, 21, STRIDES)
    assert "for fine-tuning only" in check(model.path)[-1]
    torch.save(network(RESENC, classes=21).state_dict(), tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="network ResidualEncoderUNet instead of PlainConvUNet"):
        check_entry(read_weights(tmp_path / "other.pt"), registry.find("VoComni-nnUNet"))


def multitalent(tmp_path: Path) -> Path:
    """Write an archive like MultiTalent's: plans in the folder of the fold, and a head for each dataset."""
    body = network(RESENC, classes=2)
    levels = nn.ModuleList(body.decoder.seg_layers)
    body.decoder.seg_layers = nn.ModuleDict({"003": levels, "351_5": levels})
    for norm, scheme in (("", "CTNormalization"), ("znorm_", "ZScoreNormalization")):
        name = f"MultiTalent_trainer_4000ep__nnUNetResEncUNetL1x1x1_Plans_{norm}bs24__3d_fullres"
        fold = tmp_path / "Dataset617_nativect" / name / "fold_all"
        fold.mkdir(parents=True)
        plans = stock_plans(RESENC, (1, 1, 1), normalization_schemes=[scheme])
        write_json(fold / f"nnUNetResEncUNetL1x1x1_Plans_{norm}bs24.json", plans)
        arguments = {"plans": plans, "configuration": "3d_fullres", "dataset_json": {"dataset_ids": ["003", "351"]}}
        content = {"network_weights": body.state_dict(), "init_args": arguments, "trainer_name": "MultiTalent_trainer"}
        save_checkpoint(content, fold / "checkpoint_final.pth")
        (fold / "checkpoint_best.pth").write_bytes((fold / "checkpoint_final.pth").read_bytes())
    return pack(tmp_path / "Dataset617_nativect")


@for_each(("name", "scheme"), [("MultiTalent-ResEncL", "ZScore"), ("MultiTalent-ResEncL-CTNorm", "CT")])
def test_one_model_of_multitalents_archive_is_taken_without_its_heads(tmp_path: Path, name: str, scheme: str) -> None:
    model = import_file(multitalent(tmp_path), name)
    read = read_weights(model.path)
    assert model.path.name == "checkpoint_final.pth"
    assert (read.network.architecture, read.network.classes) == (RESENC, 0)
    assert (read.spacing, read.normalization) == ([1, 1, 1], [f"{scheme}Normalization"])
    target = network(RESENC, classes=4, seed=1)
    report = transfer(target, read)
    assert report.coverage == 1
    assert torch.equal(target.encoder.stem.convs[0].conv.weight, read.tensors["encoder.stem.convs.0.conv.weight"])
    assert "the weights have no heads" in report.lines()[-1]


@for_each("prefix", ["encoder.", ""])
def test_an_encoder_without_a_plan_has_what_its_entry_says_of_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """As ResEncL-T1-MAE: nobody says how its file is called, and it holds an encoder alone."""
    monkeypatch.setattr(nnssl, "RESENC_L", arguments(RESENC))
    folder = tmp_path / "download"
    folder.mkdir()
    encoder = {f"{prefix}{name}": value for name, value in network(RESENC).encoder.state_dict().items()}
    save_file({name: value.clone() for name, value in encoder.items()}, folder / "encoder.safetensors")
    (folder / "config.json").write_text("{}")
    model = import_file(folder, "ResEncL-T1-MAE")
    read = read_weights(model.path)
    assert (read.entry, read.pretext, read.transfers) == ("ResEncL-T1-MAE", "mae", "encoder")
    assert (read.spacing, read.normalization, read.strides) == ([1, 1, 1], ["ZScoreNormalization"], STRIDES)
    bare = read_weights(folder)
    assert (bare.entry, bare.pretext, bare.spacing, bare.strides) == (None, None, None, None)
    assert "strides that the weights were trained with are unknown" in " ".join(
        transfer(network(RESENC), bare).warnings
    )


def test_an_adaptation_plan_that_names_another_network_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "Repo"
    folder.mkdir()
    torch.save({"network_weights": network(RESENC).state_dict()}, folder / "checkpoint_final.pth")
    plan = Plan(stock_plans(RESENC)).to_json()
    planned = {"architecture_plans": {"arch_class_name": "os.system", "arch_kwargs": None}, "pretrain_plan": plan}
    write_json(folder / "adaptation_plan.json", planned)
    with pytest.raises(WeightsError, match=r"names the network 'os\.system', which is not one of ResEncL, "):
        read_weights(folder)
