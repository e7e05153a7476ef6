"""Do nnU-Net's own commands work on what ours wrote, and do both predict the same?

They need no variables but nnU-Net's three, with one exception: training with a class that is not nnU-Net's.
"""

import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from stunet import nnunet_ext
from stunet.files import read_json

if TYPE_CHECKING:
    from tests.slow.conftest import Place

pytestmark = pytest.mark.slow

CONFIGURATIONS = ("3d_fullres", "2d")
HELD_OUT = {"phantom_008", "phantom_009"}
# nnU-Net adds weighted logits in half precision, and its weights at the rim of a window are so small that logits become
# multiples of up to 1 there. These images are one window.
HALF = 1.0  # of a logit
RIM = 0.02  # share of the voxels
# A trainer of somebody else, with few steps.
SHORT_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerShort(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
"""
ALONE = ("-npp", 0, "-nps", 0)  # nnU-Net then starts no processes, which take longer than the work
# nnU-Net's look-up of a trainer imports all of its own, one of them timm and with it torchvision. A torchvision of
# another build than torch fails to import for lack of two operators, which nothing here calls.
OPERATORS = """
import torch
try:
    import torchvision
except RuntimeError:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def stock(place: "Place", configuration: str) -> list[Any]:
    """nnU-Net's command for what `ours` predicts."""
    return ["nnUNetv2_predict", *_model(place, configuration), "-p", place.plans, "-tr", "STUNetTrainer"]


def ours(place: "Place", configuration: str) -> list[Any]:
    """Ours in float32, which nnU-Net computes in on the CPU."""
    return ["stunet_predict", *_model(place, configuration), "--precision", "fp32"]


def _model(place: "Place", configuration: str) -> list[Any]:
    return ["-i", place.raw / "imagesTs", "-d", 997, "-c", configuration, "-device", "cpu"]


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """The same files with the same voxels, which are not all of one class."""
    assert one.keys() == other.keys() != set()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])
        assert len(np.unique(array)) > 1


def assert_agree(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """The same files, and all voxels equal but those that nnU-Net's half precision decides."""
    assert one.keys() == other.keys() != set()
    differing = sum(int((array != other[name]).sum()) for name, array in one.items())
    assert differing < RIM * sum(array.size for array in one.values())
    assert all(len(np.unique(array)) > 1 for array in one.values())


@pytest.fixture(scope="module")
def predicted(trained: "Place") -> Path:
    """Predictions and probabilities of the held-out cases by ours_CONFIGURATION and stock_CONFIGURATION."""
    out = trained.root / "predicted"
    for name in CONFIGURATIONS:
        options = ["-f", 0, 1, "--save_probabilities", "-o"]
        trained.run_all(
            [*ours(trained, name), *options, out / f"ours_{name}"],
            [*stock(trained, name), "-npp", 1, "-nps", 1, *options, out / f"stock_{name}"],
        )
    return out


@pytest.fixture(scope="module")
def best(trained: "Place") -> dict[str, Any]:
    """What nnU-Net says about the best configuration after cross-validation."""
    trained.run("nnUNetv2_find_best_configuration", 997, *_trained_as(trained), "-c", *CONFIGURATIONS, "-f", 0, 1)
    return read_json(trained.results / "inference_information.json")


def _trained_as(place: "Place") -> list[Any]:
    return ["-p", place.plans, "-tr", "STUNetTrainer"]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_both_predict_the_same_but_for_half_precision(trained: "Place", predicted: Path, configuration: str) -> None:
    folders = [predicted / f"{tool}_{configuration}" for tool in ("ours", "stock")]
    segmentations = [trained.read(folder) for folder in folders]
    assert segmentations[0].keys() == {f"{case}.nii.gz" for case in HELD_OUT}
    assert_agree(*segmentations)
    for case in HELD_OUT:
        one, other = (np.load(folder / f"{case}.npz")["probabilities"] for folder in folders)
        assert (abs(one - other) > 0.02).mean() < RIM
        np.testing.assert_allclose(one.sum(0), 1, atol=1e-3)
        first, second = (labels[f"{case}.nii.gz"] for labels in segmentations)
        largest = np.sort(one, axis=0)
        assert np.log(largest[-1] / largest[-2])[first != second].max(initial=0) < HALF


def test_nnunet_trains_our_trainer_to_the_same_weights(place: "Place", tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(OPERATORS)
    threads = {"OMP_NUM_THREADS": os.cpu_count()}  # as many as nnU-Net takes, whatever the variable says
    place.run(*place.training("3d_fullres", 0), nnUNet_results=tmp_path / "ours", **threads)
    place.run(
        *("nnUNetv2_train", 997, "3d_fullres", 0, *_trained_as(place), "-device", "cpu"),
        nnUNet_extTrainer=Path(nnunet_ext.__file__).parent,
        nnUNet_results=tmp_path / "stock",
        PYTHONPATH=tmp_path,
    )
    fold = place.model("3d_fullres").relative_to(place.root / "nnUNet_results") / "fold_0"
    ours, stock = (
        torch.load(tmp_path / tool / fold / "checkpoint_final.pth", weights_only=True)["network_weights"]
        for tool in ("ours", "stock")
    )
    assert ours.keys() == stock.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(stock[name], tensor, rtol=0, atol=0)
    assert_equal(
        place.read(tmp_path / "ours" / fold / "validation"), place.read(tmp_path / "stock" / fold / "validation")
    )


def test_what_nnunet_planned_and_preprocessed_trains_here_and_predicts_there(place: "Place", tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(OPERATORS)
    own = replace(place, root=tmp_path / "own", plans="nnUNetResEncUNetMPlans-epochs1-its2-valits1-bs2")
    shutil.copytree(place.raw, own.raw)
    planning = ["-d", 997, "-pl", "nnUNetPlannerResEncM", "-c", "3d_fullres", "-np", 1, "-npfp", 1]
    own.run("nnUNetv2_plan_and_preprocess", *planning)
    own.run(*own.training("3d_fullres", 0), "-p", "nnUNetResEncUNetMPlans")
    own.run(*ours(own, "3d_fullres"), "-p", own.plans, "-f", 0, "-o", tmp_path / "ours")
    own.run(
        *(*stock(own, "3d_fullres"), "-f", 0, *ALONE, "-o", tmp_path / "stock"), PYTHONPATH=tmp_path / "site"
    )  # fmt: skip
    assert_agree(own.read(tmp_path / "ours"), own.read(tmp_path / "stock"))


def test_what_nnunet_trained_goes_on_here_with_a_table_of_what_changed(place: "Place", tmp_path: Path) -> None:
    for name, text in (("site/sitecustomize.py", OPERATORS), ("trainers/short.py", SHORT_TRAINER)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    own = replace(place, root=tmp_path / "own")
    shutil.copytree(place.raw, own.raw)
    own.run("nnUNetv2_plan_and_preprocess", "-d", 997, "-c", "3d_fullres", "-np", 1, "-npfp", 1)
    own.run(
        *("nnUNetv2_train", 997, "3d_fullres", 0, "-tr", "nnUNetTrainerShort", "-device", "cpu"),
        nnUNet_extTrainer=tmp_path / "trainers",
        PYTHONPATH=tmp_path / "site",
    )
    model = own.results / "nnUNetTrainerShort__nnUNetPlans__3d_fullres"
    start = [*own.training("3d_fullres", 0), "-p", "nnUNetPlans", "--pretrained", model]
    own.run(*start)
    fold = next(own.results.glob("STUNetTrainer__nnUNetPlans-ramp-*__3d_fullres")) / "fold_0"
    report = read_json(fold / "transfer_report.json")
    assert report["coverage"] == 1
    assert {fate["kind"] for fate in report["tensors"]} == {"copied", "head"}
    assert {what for what, *_ in report.get("changes", [])} <= {"batch"}  # which this training sets
    assert (fold / "validation" / "summary.json").is_file()
    # On images of another spacing than theirs, and as they know them.
    own.run("stunet_plan_and_preprocess", "-d", 997, "-c", "3d_fullres", "--size", "T", "--spacing", 6, 6, 6)
    own.run("stunet_plan_and_preprocess", "-d", 997, "-c", "3d_fullres", "--pretrained", model)
    (known,) = (path.stem for path in own.preprocessed.glob("STUNetPlans_Plain_like-*.json"))
    for plans, changed in (("STUNetPlans_T_6x6x6mm", True), (known, False)):
        own.run(*start[:-4], "-p", plans, "--pretrained", model)
        (fold,) = own.results.glob(f"STUNetTrainer__{plans.replace('_T_', '_Plain_')}-ramp-*__3d_fullres/fold_0")
        changes = {what for what, *_ in read_json(fold / "transfer_report.json").get("changes", [])}
        assert ("spacing in mm" in changes) == changed


def test_cross_validation_is_accumulated_and_scored_as_we_score_it(trained: "Place", tmp_path: Path) -> None:
    trained.run(
        *("nnUNetv2_accumulate_crossval_results", 997, *_trained_as(trained)),
        *("-c", "3d_fullres", "-f", 0, 1, "-o", tmp_path / "all"),
    )
    accumulated = trained.read(tmp_path / "all")
    assert len(accumulated) == 8
    folds = [trained.read(trained.model("3d_fullres") / f"fold_{fold}" / "validation") for fold in (0, 1)]
    assert_equal(accumulated, folds[0] | folds[1])
    trained.run("stunet_evaluate", trained.raw / "labelsTr", tmp_path / "all", "-o", tmp_path / "ours.json")
    theirs, own = (
        read_json(file)["foreground_mean"] for file in (tmp_path / "all/summary.json", tmp_path / "ours.json")
    )
    assert theirs["Dice"] > 0
    assert own["Dice"] == pytest.approx(theirs["Dice"], abs=1e-9)


def test_the_best_configuration_is_found_among_ours_and_their_ensemble(trained: "Place", best: dict[str, Any]) -> None:
    results = best["all_results"]
    models = {f"STUNetTrainer__{trained.plans}__{configuration}" for configuration in CONFIGURATIONS}
    assert models < results.keys()
    assert len(results) == 3
    assert best["best_model_or_ensemble"]["result_on_crossval_pre_pp"] == max(results.values()) > 0


def test_the_postprocessing_that_was_found_only_removes(
    trained: "Place", predicted: Path, best: dict[str, Any], tmp_path: Path
) -> None:
    found = best["best_model_or_ensemble"]
    trained.run(
        *("nnUNetv2_apply_postprocessing", "-i", predicted / "ours_3d_fullres", "-o", tmp_path),
        *("-pp_pkl_file", found["postprocessing_file"], "-plans_json", found["some_plans_file"]),
    )
    before, after = trained.read(predicted / "ours_3d_fullres"), trained.read(tmp_path)
    assert before.keys() == after.keys()
    for name, segmentation in after.items():
        changed = segmentation != before[name]
        assert not segmentation[changed].any()


def test_postprocessing_can_be_determined_from_our_validation(
    trained: "Place", best: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "validation"
    shutil.copytree(trained.model("2d") / "crossval_results_folds_0_1", folder)
    settings = ["-plans_json", folder / "plans.json", "-dataset_json", folder / "dataset.json"]
    trained.run("nnUNetv2_determine_postprocessing", "-i", folder, "-ref", trained.raw / "labelsTr", *settings)
    assert (folder / "postprocessing.pkl").is_file()
    assert len(trained.read(folder / "postprocessed")) == 8
    before, after = (
        read_json(place / "summary.json")["foreground_mean"]["Dice"] for place in (folder, folder / "postprocessed")
    )
    assert after >= before > 0


def test_our_probabilities_are_ensembled(trained: "Place", predicted: Path, tmp_path: Path) -> None:
    members = [predicted / f"ours_{configuration}" for configuration in CONFIGURATIONS]
    trained.run("nnUNetv2_ensemble", "-i", *members, "-o", tmp_path)
    mean = {
        f"{case}.nii.gz": np.mean([np.load(folder / f"{case}.npz")["probabilities"] for folder in members], axis=0)
        for case in HELD_OUT
    }
    assert_equal(trained.read(tmp_path), {name: probabilities.argmax(0) for name, probabilities in mean.items()})


def test_an_exported_model_predicts_the_same_where_it_is_installed(
    trained: "Place", predicted: Path, best: dict[str, Any], tmp_path: Path
) -> None:
    archive = tmp_path / "model.zip"
    trained.run(
        *("nnUNetv2_export_model_to_zip", "-d", 997, "-o", archive, *_trained_as(trained)),
        *("-c", *CONFIGURATIONS, "-f", 0, 1),
    )
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
    model = f"{trained.dataset}/STUNetTrainer__{trained.plans}__3d_fullres"
    files = ("plans.json", "dataset.json", "fold_1/checkpoint_final.pth", "crossval_results_folds_0_1/summary.json")
    assert {f"{model}/{file}" for file in files} <= set(names)

    elsewhere = {"nnUNet_results": tmp_path / "installed", "nnUNet_raw": tmp_path, "nnUNet_preprocessed": tmp_path}
    (tmp_path / "installed").mkdir()
    trained.run("nnUNetv2_install_pretrained_model_from_zip", archive, **elsewhere)
    trained.run(*stock(trained, "3d_fullres"), "-f", 0, 1, *ALONE, "-o", tmp_path / "stock", **elsewhere)
    trained.run(*ours(trained, "3d_fullres"), "-o", tmp_path / "ours", **elsewhere)
    expected = trained.read(predicted / "ours_3d_fullres")
    assert_agree(trained.read(tmp_path / "stock"), expected)
    assert_equal(trained.read(tmp_path / "ours"), expected)


def test_nnunet_installs_and_predicts_what_stunet_models_exports(
    trained: "Place", predicted: Path, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(OPERATORS)
    archive, model = tmp_path / "model.zip", trained.model("3d_fullres")
    trained.run("stunet_models", "export", model, "-o", archive, "--format", "nnunet", STUNET_MODELS=tmp_path)
    elsewhere = {"nnUNet_results": tmp_path / "installed", "nnUNet_raw": tmp_path, "nnUNet_preprocessed": tmp_path}
    (tmp_path / "installed").mkdir()
    trained.run("nnUNetv2_install_pretrained_model_from_zip", archive, **elsewhere)
    predict = ["nnUNetv2_predict", *_model(trained, "3d_fullres"), "-p", trained.plans, "-f", 0, 1, *ALONE]
    predict[predict.index("-d") + 1] = trained.dataset  # its name, which elsewhere no number stands for
    trained.run(*predict, "-o", tmp_path / "stock", PYTHONPATH=tmp_path / "site", **elsewhere)
    assert_agree(trained.read(tmp_path / "stock"), trained.read(predicted / "ours_3d_fullres"))


def test_both_predict_the_same_with_a_cascade(place: "Place", tmp_path: Path) -> None:
    place.run_all(*(place.training("3d_half", fold) for fold in (0, 1)))
    handed_over = place.model("3d_half") / "predicted_next_stage" / "3d_cascade_half"
    assert len(list(handed_over.glob("*.b2nd"))) == 8
    place.run(*place.training("3d_cascade_half", 0))

    place.run(*ours(place, "3d_cascade_half"), "-o", tmp_path / "ours")
    place.run(*stock(place, "3d_half"), "-f", 0, 1, *ALONE, "-o", tmp_path / "half")
    first = tmp_path / "ours" / "prev_stage_3d_half"  # the second stage, which is noise, makes more of any difference
    previous = ["-prev_stage_predictions", first]
    place.run(*stock(place, "3d_cascade_half"), "-f", 0, *ALONE, *previous, "-o", tmp_path / "stock")
    assert_agree(place.read(first), place.read(tmp_path / "half"))
    assert_agree(place.read(tmp_path / "ours"), place.read(tmp_path / "stock"))
