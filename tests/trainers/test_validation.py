"""The final validation of a training on a small phantom, compared with nnU-Net's own on the same network."""

import os
import pickle
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import blosc2
import nnunetv2.evaluation.evaluate_predictions as evaluation
import nnunetv2.training.nnUNetTrainer.nnUNetTrainer as host
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from stunet import workspace
from stunet.errors import DataError, Interrupted
from stunet.files import read_json
from stunet.orientation import turn_image
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import preprocess
from stunet.runs.launch import _stops
from stunet.trainers.progress import NullListener
from stunet.trainers.supervised import STUNetTrainer
from stunet.trainers.validation import make_segmenter
from tests.loops import for_each
from tests.predictor_models import _exact_logits

SEED = 0
HALF = 1.0  # of a logit: nnU-Net's weights near the corners of a window are so small that it rounds logits to integers
CASES = ["phantom_003", "phantom_005"]  # of fold 0
REGIONS = {
    "labels": {"background": 0, "organs": [1, 2, 3, 4, 5], "kidneys": [4, 5]},
    "regions_class_order": [1, 4],
}
Make = Callable[..., STUNetTrainer]


class Cases(NullListener):
    """Remembers what was predicted."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def case(self, name: str, number: int, count: int) -> None:
        self.names.append(name)


class Threads:
    """Runs what nnU-Net gives to new processes, which take seconds to start, in threads."""

    @staticmethod
    def get_context(kind: str) -> type["Threads"]:
        return Threads

    Pool = ThreadPool


@pytest.fixture
def make(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes initialised trainers, whose random networks find all classes, with preprocessed data of their own."""
    shutil.copytree(workspace.preprocessed_dataset(planned), tmp_path / "preprocessed" / planned)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))

    def new(folder: str = "ours", configuration: str = "3d_fullres", **options: Any) -> STUNetTrainer:
        monkeypatch.setenv("nnUNet_results", str(tmp_path / folder))
        dataset = {**read_json(workspace.preprocessed_dataset(planned) / "dataset.json"), **options.pop("dataset", {})}
        plans = read_plan(plan_path(planned, "STUNetPlans_T")).to_json()
        plans["configurations"].update(options.pop("more", {}))
        kind = options.pop("kind", STUNetTrainer)
        plans = derive(Plan(plans), dataset, stages=3, overrides={"batch_size": 2, "seed": SEED}, **options).to_json()
        trainer = kind(plans, configuration, 0, dataset, torch.device("cpu"))
        trainer.initialize()
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # says along which axes to mirror
        return trainer

    return new


def stock(trainer: STUNetTrainer, monkeypatch: pytest.MonkeyPatch, exact: bool) -> Path:
    """nnU-Net's own validation with the trainer's network; `exact`: with network and logits in float64."""
    with monkeypatch.context() as patch:
        patch.setattr(host, "multiprocessing", Threads)
        if exact:
            patch.setattr(nnUNetPredictor, "_internal_predict_sliding_window_return_logits", _exact_logits)
        patch.setattr(evaluation, "multiprocessing", Threads)
        nnUNetTrainer.perform_actual_validation(trainer, save_probabilities=True)
    trainer.network.float()
    return Path(trainer.output_folder) / "validation"


def ours(trainer: STUNetTrainer, probabilities: bool = False) -> Path:
    trainer.perform_actual_validation(probabilities)
    return Path(trainer.output_folder) / "validation"


def labels(path: Path) -> np.ndarray:
    return labels_of(sitk.ReadImage(str(path)))


def labels_of(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@for_each(("configuration", "dataset"), [("3d_fullres", {}), ("3d_fullres", REGIONS), ("2d", {})])
def test_the_files_are_nnunets_in_float64(
    make: Make, monkeypatch: pytest.MonkeyPatch, configuration: str, dataset: dict[str, Any]
) -> None:
    trainer = make("ours", configuration, dataset=dataset)
    mine = ours(trainer, probabilities=True)
    reference = make("stock", configuration, dataset=dataset)
    theirs = stock(reference, monkeypatch, exact=True)
    assert names(mine) == names(theirs)
    for path in mine.glob("*.nii.gz"):
        one, other = sitk.ReadImage(str(path)), sitk.ReadImage(str(theirs / path.name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other))
        assert len(np.unique(labels(path))) > 1
        for geometry_of in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
            assert getattr(one, geometry_of)() == getattr(other, geometry_of)()
        stem = path.name.removesuffix(".nii.gz")
        one, other = (np.load(folder / f"{stem}.npz")["probabilities"] for folder in (mine, theirs))
        np.testing.assert_allclose(one, other, atol=1e-3)
        one, other = (pickle.loads((folder / f"{stem}.pkl").read_bytes()) for folder in (mine, theirs))
        np.testing.assert_equal(one, other)
    one, other = (read_json(folder / "summary.json") for folder in (mine, theirs))
    for summary in (one, other):
        for case in summary["metric_per_case"]:
            case["prediction_file"] = Path(case["prediction_file"]).name
    assert one == other


def test_with_nnunets_half_precision_only_voxels_between_two_classes_differ(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ours(make(), probabilities=True)
    theirs = stock(make("stock"), monkeypatch, exact=False)
    voxels = differing = 0
    for case in CASES:
        differs = labels(mine / f"{case}.nii.gz") != labels(theirs / f"{case}.nii.gz")
        voxels, differing = voxels + differs.size, differing + differs.sum()
        second, first = np.sort(np.load(mine / f"{case}.npz")["probabilities"], axis=0)[-2:]
        assert np.log(first / second)[differs].max(initial=0) < HALF
    assert differing / voxels < 1e-3
    one, other = (read_json(folder / "summary.json")["foreground_mean"] for folder in (mine, theirs))
    assert one.keys() == other.keys()
    assert one["Dice"] == pytest.approx(other["Dice"], abs=1e-3)


def test_a_case_that_was_turned_is_written_and_measured_as_its_file_lies(make: Make) -> None:
    name, trainer = CASES[0], make()
    before = labels(ours(trainer) / f"{name}.nii.gz")
    metrics = read_json(Path(trainer.output_folder) / "validation" / "summary.json")["mean"]
    data = Path(trainer.preprocessed_dataset_folder)
    properties = pickle.loads((data / f"{name}.pkl").read_bytes())
    array = np.zeros((1, *before.shape), np.int8)
    there, of_there = turn_image(array, properties, "SAR")  # as if the file were stored so
    stored = {**of_there, "sitk_stuff": {k: of_there["sitk_stuff"][k] for k in ("spacing", "origin", "direction")}}
    _, read = turn_image(there, stored, "LPS")
    (data / f"{name}.pkl").write_bytes(pickle.dumps(read))
    truth = data.parent / "gt_segmentations" / f"{name}.nii.gz"
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(truth), "SAR"), truth)
    written = sitk.ReadImage(ours(trainer, probabilities=True) / f"{name}.nii.gz")
    assert written.GetMetaData("intent_code") == "1002"
    np.testing.assert_allclose(written.GetDirection(), sitk.ReadImage(truth).GetDirection())
    np.testing.assert_allclose(written.GetOrigin(), sitk.ReadImage(truth).GetOrigin(), atol=1e-5)
    np.testing.assert_array_equal(labels_of(sitk.DICOMOrient(written, "LPS")), before)
    folder = Path(trainer.output_folder) / "validation"
    likely = np.load(folder / f"{name}.npz")["probabilities"]
    np.testing.assert_array_equal(likely.argmax(0), labels_of(written))
    assert read_json(folder / "summary.json")["mean"] == metrics


def test_the_trainers_network_stays_as_it_is(make: Make) -> None:
    trainer = make()
    network = trainer.bare_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    strides = {name: value.stride() for name, value in network.state_dict().items()}
    ours(trainer)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.stride() == strides[name]
    assert network.training
    assert network.decoder.deep_supervision
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any("forward" in vars(module) for module in network.modules())


def test_weights_are_there_once_unless_the_device_wants_another_layout(make: Make) -> None:
    trainer = make()
    own = {name: value.data_ptr() for name, value in trainer.bare_network().state_dict().items()}
    ready = make_segmenter(trainer).windows.network._network.state_dict()
    assert ready.keys() == own.keys()
    shared = {name for name, value in ready.items() if value.data_ptr() == own[name]}
    assert {name for name, value in ready.items() if value.ndim < 5} <= shared


def test_adapters_count(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for name, validate in (("ours", ours), ("stock", lambda trainer: stock(trainer, monkeypatch, exact=True))):
        trainer = make(name, finetune="lora")
        trainer.start_from(fresh=[])
        generator = torch.Generator().manual_seed(1)
        for key, parameter in trainer.bare_network().named_parameters():
            if key.endswith(".up"):
                parameter.data.normal_(0, 0.3, generator=generator)
        folders.append(validate(trainer))
    plain = ours(make("plain", finetune="lora"))
    for case in CASES:
        one, other, without = (labels(folder / f"{case}.nii.gz") for folder in (*folders, plain))
        np.testing.assert_array_equal(one, other)
        assert (one != without).any()


def test_a_cascade_gets_nnunets_labels_on_its_grid_and_takes_them(
    planned: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = read_plan(plan_path(planned, "STUNetPlans_T")).to_json()
    spacing = [1.7 * pitch for pitch in plans["configurations"]["3d_fullres"]["spacing"]]
    coarse = {"inherits_from": "3d_fullres", "data_identifier": "STUNetPlans_coarse", "spacing": spacing}
    more = {
        "coarse": {**coarse, "next_stage": "fine"},
        "fine": {"inherits_from": "3d_fullres", "previous_stage": "coarse"},
    }
    plans["configurations"].update(more)
    preprocess(planned, Plan(plans), ["coarse"], workers=1)
    for name in ("ours", "stock"):
        first = make(name, "coarse", more=more)
        _ = ours(first) if name == "ours" else stock(first, monkeypatch, exact=True)
    handed_over = Path("predicted_next_stage") / "fine"
    mine, theirs = (
        Path(make(name, "coarse", more=more).output_folder_base) / handed_over for name in ("ours", "stock")
    )
    assert names(mine) == names(theirs) == [f"{case}.b2nd" for case in CASES]
    for case in CASES:
        one, other = (blosc2.open(str(folder / f"{case}.b2nd"), mode="r") for folder in (mine, theirs))
        np.testing.assert_array_equal(one[:], other[:])
        assert len(np.unique(one[:])) > 1
        assert (one.dtype, one.chunks, one.blocks) == (other.dtype, other.chunks, other.blocks)

    folders = [ours(make("ours", "fine", more=more)), stock(make("stock", "fine", more=more), monkeypatch, exact=True)]
    for case in CASES:
        one, other = (labels(folder / f"{case}.nii.gz") for folder in folders)
        np.testing.assert_array_equal(one, other)
        assert len(np.unique(one)) > 1


@for_each("there", [CASES[1:], None])
def test_a_next_stage_that_is_not_preprocessed_is_logged(planned: str, make: Make, there: list[str] | None) -> None:
    more = {
        "coarse": {"inherits_from": "3d_fullres", "next_stage": "fine"},
        "fine": {"inherits_from": "3d_fullres", "data_identifier": "STUNetPlans_fine", "previous_stage": "coarse"},
    }
    trainer = make("ours", "coarse", more=more)
    folder = workspace.preprocessed_dataset(planned)
    if there is not None:
        (folder / "STUNetPlans_fine").mkdir()
    for case in there or []:
        for path in (folder / "STUNetPlans_3d_fullres").glob(f"{case}*"):
            shutil.copy(path, folder / "STUNetPlans_fine")
    ours(trainer)
    log = Path(trainer.log_file).read_text()
    for case in CASES:
        assert (f"Predicting next stage fine failed for case {case}" in log) == (case not in (there or []))
    handed_over = names(Path(trainer.output_folder_base) / "predicted_next_stage" / "fine")
    assert handed_over == [f"{case}.b2nd" for case in there or []]


def test_the_log_has_nnunets_lines_and_the_listener_hears_of_each_case(make: Make) -> None:
    trainer = make()
    listener = Cases()
    trainer.configure(listener=listener)
    folder = ours(trainer)
    assert listener.names == CASES
    assert names(folder) == [f"{case}.nii.gz" for case in CASES] + ["summary.json"]
    log = Path(trainer.log_file).read_text()
    dice = read_json(folder / "summary.json")["foreground_mean"]["Dice"]
    for line in (*(f"predicting {case}" for case in CASES), "Validation complete", f"Mean Validation Dice:  {dice}"):
        assert line in log


@for_each("ending", [".b2nd", ".pkl"])
def test_a_damaged_case_is_named_and_the_ones_before_it_are_whole(planned: str, make: Make, ending: str) -> None:
    trainer = make()
    file = workspace.preprocessed_dataset(planned) / "STUNetPlans_3d_fullres" / f"{CASES[1]}{ending}"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=f"cannot read the preprocessed files of case '{CASES[1]}' in '.*STUNetPlans_3d_fullres'"
    ) as error:
        trainer.perform_actual_validation()
    assert "stunet_plan_and_preprocess -d 998" in error.value.hint
    folder = Path(trainer.output_folder) / "validation"
    assert names(folder) == [f"{CASES[0]}.nii.gz"]
    assert len(np.unique(labels(folder / f"{CASES[0]}.nii.gz"))) > 1


class Stopped(STUNetTrainer):
    """Gets a signal while its network computes."""

    @staticmethod
    def build_network_architecture(plans_manager: Any, *args: Any) -> torch.nn.Module:
        network = STUNetTrainer.build_network_architecture(plans_manager, *args)
        windows = iter(range(20))
        network.register_forward_pre_hook(
            lambda *_: os.kill(os.getpid(), signal.SIGTERM) if next(windows) == 6 else None
        )
        return network


def test_a_signal_stops_within_a_case_and_leaves_whole_files(make: Make) -> None:
    trainer = make(kind=Stopped)
    with pytest.raises(Interrupted) as stopped, _stops(trainer):
        trainer.perform_actual_validation(True)
    assert stopped.value.exit_code == 75
    folder = Path(trainer.output_folder) / "validation"
    assert names(folder) == [f"{CASES[0]}{ending}" for ending in (".nii.gz", ".npz", ".pkl")]
    assert np.load(folder / f"{CASES[0]}.npz")["probabilities"].sum(0) == pytest.approx(1, abs=1e-5)


def test_a_full_disk_leaves_nothing_half(make: Make, room_for: Callable[[int], AbstractContextManager[None]]) -> None:
    trainer = make()
    folder = Path(trainer.output_folder) / "validation"
    with pytest.raises(OSError, match="File too large"), room_for(100_000):  # the log fits, probabilities do not
        trainer.perform_actual_validation(True)
    assert names(folder) == []


def test_a_second_validation_does_everything_again_and_clears_what_a_killed_one_left(make: Make) -> None:
    trainer = make()
    folder = ours(trainer, probabilities=True)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) == 7
    (folder / f"{CASES[0]}.nii.gz").write_bytes(b"damaged")
    for part in (f".part-1-{CASES[1]}.nii.gz", ".part-1-phantom_000.nii.gz", f".part-1-{CASES[0]}.npy"):
        (folder / part).write_bytes(b"half")
    ours(trainer, probabilities=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_predictions_of_cases_that_are_not_validated_any_more_do_not_count(make: Make) -> None:
    trainer = make()
    folder = ours(trainer)
    before = read_json(folder / "summary.json")["foreground_mean"]
    shutil.copyfile(folder / f"{CASES[0]}.nii.gz", folder / "phantom_000.nii.gz")
    ours(trainer)
    assert read_json(folder / "summary.json")["foreground_mean"] == before
    assert "phantom_000.nii.gz" not in names(folder)
