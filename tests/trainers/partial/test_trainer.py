"""Training on cases that annotate different classes: real nnU-Net on a small phantom."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stunet import workspace
from stunet.architectures.nnunet_unet import NNUNet
from stunet.architectures.resenc import RESENC
from stunet.cli.train import main
from stunet.datasets.check import check_dataset
from stunet.datasets.phantom import make_phantom
from stunet.errors import DataError, WeightsError
from stunet.files import read_json, write_json
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource, complete_annotations, mirrored_values
from stunet.labels.systems import load
from stunet.plans.derive import derive
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.runs.readiness import check_data
from stunet.trainers.finetune.start import Start, choose_heads, plan_entry, start_from_weights
from stunet.trainers.partial.trainer import STUNetPartialTrainer
from stunet.workspace import FINAL
from tests.stock_plans import stock_plans

LEAVES = ("spine", "liver", "spleen", "kidney_left", "kidney_right")
KIDNEY = ("kidney_left", "kidney_right")
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "batch_size": 2}
NAME = "Dataset997_Parts"
IGNORE = 7  # in label files: after five leaves and a set


def annotations(head: str = "softmax") -> Annotations:
    """Six cases: the first two are complete, two have spine and spleen, two liver and kidney without its side."""
    sources = {
        "all": CaseSource(LEAVES),
        "some": CaseSource(("spine", "spleen")),
        "coarse": CaseSource(("liver", "kidney")),
    }
    cases = {
        f"phantom_{i:03d}": AnnotatedCase(source, sources[source].labels)
        for i, source in enumerate(("all", "some", "coarse") * 2)
    }
    return Annotations(LEAVES, {"kidney": KIDNEY}, sources, cases, head)


def merged(label: np.ndarray, found: Annotations, case: str) -> np.ndarray:
    """The label file of a case that annotates less than the phantom has; a part of the small ones is ignored."""
    values = found.groups(case)[label].astype(np.uint8)
    if found.cases[case].source == "some":
        values[:2] = IGNORE
    return values


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, few_samples: None) -> Iterator[str]:
    """A dataset with annotations, planned for size T and preprocessed."""
    from stunet.plans.fingerprint import extract_fingerprint
    from stunet.plans.planner import STUNetPlanner
    from stunet.preprocessing.dataset import preprocess

    folder, found = tmp_path_factory.mktemp("nnunet"), annotations()
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(variable, str(folder / variable))
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setenv("nnUNet_def_n_proc", "1")
        (folder / "nnUNet_raw").mkdir()
        raw = make_phantom(folder / "nnUNet_raw" / NAME, cases=6, seed=0, shape=(16, 24, 24))
        for case in found.cases:
            path = raw / "labelsTr" / f"{case}.nii.gz"
            image = sitk.ReadImage(path)
            label = sitk.GetImageFromArray(merged(sitk.GetArrayFromImage(image), found, case))
            label.CopyInformation(image)
            sitk.WriteImage(label, path)
        write_json(
            raw / "dataset.json", read_json(raw / "dataset.json") | {"labels": {**found.values, "ignore": IGNORE}}
        )
        found.save(raw)
        extract_fingerprint(NAME, workers=1)
        patch.setenv("nnUNet_n_proc_DA", "1")
        plans = STUNetPlanner(NAME, size="T").plan_experiment()
        patch.setenv("nnUNet_n_proc_DA", "0")
        preprocess(NAME, Plan(plans), ["3d_fullres"], workers=1)
        cases = sorted(found.cases)
        splits = [{"train": cases[:3], "val": cases[3:]}]
        write_json(workspace.preprocessed_dataset(NAME) / "splits_final.json", splits)
        yield NAME


def make_trainer(
    results: Path, monkeypatch: pytest.MonkeyPatch, network: NNUNet | None = None, **overrides: Any
) -> STUNetPartialTrainer:
    """A trainer of STU-Net-T, or of one of nnU-Net's networks as nnU-Net plans it."""
    monkeypatch.setenv("nnUNet_results", str(results))
    folder = workspace.preprocessed_dataset(NAME)
    dataset_json = read_json(folder / "dataset.json")
    plan = Plan(stock_plans(NAME, network)) if network else read_plan(plan_path(NAME, "STUNetPlans_T"))
    plans = derive(plan, dataset_json, overrides={**SHORT, **overrides}).to_json()
    return STUNetPartialTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))


@pytest.fixture(params=["softmax", "sigmoid"])
def head(request: pytest.FixtureRequest, parts: str) -> Iterator[str]:
    """Which head the preprocessed dataset wants."""
    annotations(request.param).save(workspace.preprocessed_dataset(parts))
    yield request.param
    annotations().save(workspace.preprocessed_dataset(parts))


def test_a_model_of_partial_labels_trains_and_validates_as_nnunets(
    head: str, parts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = make_trainer(tmp_path, monkeypatch)
    trainer.run_training()
    trainer.perform_actual_validation()
    page = (Path(trainer.output_folder) / "report.html").read_text()
    assert "Final validation: classes" in page
    assert all(f">{name}<" in page for name in trainer.class_names())
    summary = read_json(Path(trainer.output_folder) / "validation" / "summary.json")
    assert [len(case["metrics"]) for case in summary["metric_per_case"]] == [6, 2, 2]
    kidney = "(4, 5, 6)" if head == "sigmoid" else "(4, 5)"
    assert list(summary["metric_per_case"][2]["metrics"]) == [kidney, "2"]
    model = read_json(Path(trainer.output_folder_base) / "dataset.json")
    assert list(model["labels"])[1:-1] == (["kidney", *LEAVES] if head == "sigmoid" else list(LEAVES))
    assert model["labels"]["ignore"] == (7 if head == "sigmoid" else 6)
    ignored = summary["metric_per_case"][1]["metrics"]["1"]
    assert sum(ignored[key] for key in ("TP", "FP", "FN", "TN")) == 14 * 24 * 24
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    assert predictor.label_manager.num_segmentation_heads == 6
    assert predictor.label_manager.has_regions == (head == "sigmoid")
    case = summary["metric_per_case"][0]["prediction_file"]
    image = workspace.raw_dataset(parts) / "imagesTr" / Path(case).name.replace(".nii.gz", "_0000.nii.gz")
    predicted = predictor.predict_single_npy_array(*SimpleITKIO().read_images([str(image)]))
    ours = sitk.GetArrayFromImage(sitk.ReadImage(case))
    assert (predicted == ours).mean() > 0.98  # almost untrained: near ties are everywhere
    assert set(np.unique(ours)) <= set(range(7 if head == "sigmoid" else 6))


def test_a_network_of_nnunets_learns_from_partial_labels(
    parts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, monkeypatch, RESENC)
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = read_json(Path(trainer.output_folder) / "validation" / "summary.json")
    assert [len(case["metrics"]) for case in summary["metric_per_case"]] == [6, 2, 2]


def test_each_batch_is_judged_by_what_its_cases_annotate(
    parts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, monkeypatch)
    trainer.initialize()
    loaders = trainer.get_dataloaders()
    batch = next(loaders[0])
    assert set(batch["keys"]) <= set(trainer.training_cases)
    groups = trainer.tables(batch)[0]
    assert torch.equal(groups, torch.stack([torch.from_numpy(annotations().groups(case)) for case in batch["keys"]]))
    for target, group in zip(batch["target"][0], groups, strict=True):
        assert set(target.unique().tolist()) <= {*group.tolist(), IGNORE}
    trainer.on_validation_epoch_start()
    found = trainer.validation_step(batch)
    assert len(found["tp_hard"]) == 6  # five leaves and a set
    annotated = {value for row in groups.tolist() for value in row}
    counts = found["tp_hard"] + found["fp_hard"] + found["fn_hard"]
    assert {label for label, count in enumerate(counts, start=1) if count} <= annotated


def test_without_augmentation_patches_and_the_values_of_label_files_stay(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, monkeypatch, augment="none")
    trainer.initialize()
    source = trainer.get_dataloaders()[0]._loader.dataset.source  # type: ignore[attr-defined]
    samples = []
    for transforms in (source.transforms, None):
        source.transforms = transforms
        np.random.seed(0)
        samples.append(source.sample(1))
    prepared, plain = samples
    assert torch.equal(prepared["data"], plain["data"])
    assert torch.equal(prepared["target"][0], plain["target"].clamp(min=0))


def test_a_checkpoint_of_other_annotations_is_refused_with_the_difference(
    parts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, monkeypatch)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1)
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    make_trainer(tmp_path, monkeypatch).load_checkpoint(str(file))
    folder = workspace.preprocessed_dataset(parts)
    changed = json.loads((folder / "annotations.json").read_text())
    changed["cases"]["phantom_001"]["labels"] = ["spine"]
    write_json(folder / "annotations.json", changed)
    try:
        with pytest.raises(WeightsError, match=r"annotations\.cases\.phantom_001\.labels: nothing -> "):
            make_trainer(tmp_path, monkeypatch).load_checkpoint(str(file))
    finally:
        annotations().save(folder)


def test_a_case_without_annotations_is_named(parts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workspace.preprocessed_dataset(parts)
    changed = json.loads((folder / "annotations.json").read_text())
    del changed["cases"]["phantom_001"]
    write_json(folder / "annotations.json", changed)
    try:
        with pytest.raises(DataError, match=r"does not say what 1 cases annotate \(e\.g\. 'phantom_001'\)"):
            make_trainer(tmp_path, monkeypatch).do_split()
    finally:
        annotations().save(folder)


def test_labels_and_their_mirror_images_are_exchanged_where_a_case_annotates_both() -> None:
    assert mirrored_values(annotations()) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 5, 5: 4, 6: 6}


def test_values_of_labels_that_no_case_annotates_stay_when_sides_are_exchanged() -> None:
    fewer = replace(annotations(), cases={"phantom_000": AnnotatedCase("all", ("spine",))})
    assert mirrored_values(fewer) == {value: value for value in range(IGNORE)}


def test_a_case_that_annotates_one_side_cannot_be_mirrored() -> None:
    half = replace(annotations(), cases={"phantom_000": AnnotatedCase("all", ("spine", "kidney_left"))})
    with pytest.raises(DataError, match="case 'phantom_000' annotates 'kidney_left' without its mirror image"):
        mirrored_values(half)


def test_what_has_no_mirror_image_is_exchanged_with_nothing() -> None:
    heart = ("heart_atrium_left", "heart_atrium_right")
    space = replace(annotations(), leaves=(*LEAVES, *heart), sets={"heart": heart})
    chambers = replace(space, cases={"phantom_000": AnnotatedCase("all", heart)})
    with pytest.raises(DataError, match="case 'phantom_000' annotates 'heart_atrium_left' without its mirror image"):
        mirrored_values(chambers)
    whole = replace(space, cases={"phantom_000": AnnotatedCase("all", ("kidney_left", "kidney_right", "heart"))})
    assert mirrored_values(whole)[space.values["heart"]] == space.values["heart"]
    assert mirrored_values(whole)[space.values["kidney_left"]] == space.values["kidney_right"]


def test_a_reused_head_is_the_pre_trained_one_until_it_is_trained(
    parts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = make_trainer(tmp_path / "given", monkeypatch)
    given.initialize()
    given.on_train_start()  # writes what describes the model
    given.save_checkpoint(str(Path(given.output_folder) / FINAL))
    weights = Path(given.output_folder_base)
    folder = workspace.preprocessed_dataset(parts)
    labels = {
        "background": 0,
        "spine": 1,
        "liver": 2,
        "spleen": 3,
        "L kidney": 4,
        "right kidney": 5,
        "tumor": 6,
        "ignore": 7,
    }
    dataset_json = {**read_json(folder / "dataset.json"), "labels": labels}
    (folder / "annotations.json").unlink()
    try:
        start = Start(weights)
        named = plan_entry(start, choose_heads(start, "reuse", dataset_json), is_file=True)
        assert named.classes == list(LEAVES)
        plan = read_plan(plan_path(parts, "STUNetPlans_T"))
        trained = complete_annotations(dataset_json, ()).map_to_head(LEAVES).model_description(dataset_json)
        plans = derive(plan, trained, overrides=SHORT, weights=[named], finetune="full").to_json()
        assert "-reuse-" in plans["plans_name"]
        trainer = STUNetPartialTrainer(plans, "3d_fullres", 0, dataset_json, torch.device("cpu"))
        report = start_from_weights(trainer, start)
        assert report.heads.mode == "reuse"
        image = torch.randn(1, 1, 16, 24, 24)
        networks = [network.bare_network().eval() for network in (given, trainer)]
        for theirs, ours in zip(*(network(image) for network in networks), strict=True):
            assert torch.equal(ours[:, :6], theirs)
            assert torch.equal(ours.argmax(1), theirs.argmax(1))
            assert ours.shape[1] == 7
        trainer.run_training()
        trainer.perform_actual_validation()
    finally:
        annotations().save(folder)
    cases = read_json(Path(trainer.output_folder) / "validation" / "summary.json")["metric_per_case"]
    assert set(cases[0]["metrics"]) == {"1", "2", "3", "4", "5", "6"}
    model = read_json(Path(trainer.output_folder_base) / "dataset.json")["labels"]
    assert model == {name: value for value, name in enumerate(("background", *LEAVES, "tumor", "ignore"))}
    system = load(str(Path(trainer.output_folder_base) / "labels.toml"))
    assert {**system.dataset_labels, "ignore": 7} == labels
    assert system.from_model(model).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_a_label_that_a_case_does_not_annotate_is_found_before_planning(parts: str) -> None:
    raw = workspace.raw_dataset(parts)
    check_dataset(raw)
    changed = replace(
        annotations(), cases={**annotations().cases, "phantom_000": AnnotatedCase("some", ("spine", "spleen"))}
    )
    changed.save(raw)
    try:
        message = r"phantom_000\.nii\.gz' holds the values 2, 4, 5; annotations\.json, for this case, knows 0, 1, 3, 7"
        with pytest.raises(DataError, match=message):
            check_dataset(raw)
    finally:
        annotations().save(raw)


def test_annotations_that_changed_after_preprocessing_are_refused(parts: str) -> None:
    plans = read_plan(plan_path(parts, "STUNetPlans_T")).to_json()
    raw = workspace.raw_dataset(parts)
    check_data(parts, Plan(plans), "3d_fullres", 0)
    replace(annotations(), alpha=1.0).save(raw)
    try:
        with pytest.raises(DataError, match=r"\(annotations\.json\.alpha: 1\.0 -> 0\.5\)"):
            check_data(parts, Plan(plans), "3d_fullres", 0)
    finally:
        annotations().save(raw)


def test_the_trainer_is_the_one_that_the_data_need(
    parts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    common = ["997", "3d_fullres", "0", "-device", "cpu", "--dry_run"]
    assert main(common) == 0
    assert "STUNetPartialTrainer, because cases annotate different classes" in capsys.readouterr().err
    assert main([*common, "-tr", "STUNetTrainer"]) == 0
    assert "takes what a case does not annotate for background" in capsys.readouterr().err
