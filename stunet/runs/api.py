"""The Python API: stunet.plan, train, pretrain, predict, evaluate, features and rank.

Each function takes what the command's flags say, as keywords of the same names, and returns what came of it. They
print nothing: a `Listener` shows notes, warnings and progress, and warnings about single files go to the logger
"stunet". Errors are those of stunet.errors; their hints name the flags of the commands.

The calling process is left as it was: torch's threads, random states and environment variables are restored. Calls from
several threads therefore wait for each other; a server that segments in threads uses inference/predictor.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stunet.plans.plan import PLANNER
from stunet.runs import evaluation, planning, prediction, pretraining, ranking, training
from stunet.runs import features as extraction
from stunet.runs.evaluation import EvaluationRequest, EvaluationResult
from stunet.runs.features import FeaturesRequest, FeaturesResult
from stunet.runs.isolation import isolated, quiet
from stunet.runs.listener import Listener
from stunet.runs.planning import PlanningResult
from stunet.runs.planning_request import CONFIGURATIONS, PlanningRequest
from stunet.runs.prediction import PredictionRequest, PredictionResult
from stunet.runs.pretraining import PretrainingRequest, PretrainingResult
from stunet.runs.ranking import RankingRequest, RankingResult
from stunet.runs.training import TrainingRequest, TrainingResult
from stunet.workspace import FINAL


def plan(
    dataset: int | str,
    *,
    network: str | None = None,
    size: str | None = None,
    preset: str | None = None,
    stages: int | str | None = None,
    gpu_memory_target: float | None = None,
    overwrite_target_spacing: Sequence[float] | None = None,
    spacing: str | Sequence[str | float] | None = None,
    pretrained: str | Path | None = None,
    accept_licence: bool = False,
    like: int | str | None = None,
    checkpointing: bool = False,
    probe: bool = False,
    plans: str | None = None,
    planner: str = PLANNER,
    overwrite_plans_name: str | None = None,
    configurations: Sequence[str] = CONFIGURATIONS,
    np: int | Sequence[int] | None = None,
    npfp: int | None = None,
    preprocessor_name: str = "DefaultPreprocessor",
    no_check: bool = False,
    clean: bool = False,
    no_pp: bool = False,
    dry_run: bool = False,
    report: bool = True,
    cluster: str | None = None,
    num_parts: int = 1,
    part_id: int = 0,
    merge: bool = False,
    listener: Listener | None = None,
) -> PlanningResult:
    """Plan a raw dataset and preprocess it, as stunet_plan_and_preprocess does.

        result = stunet.plan(3, size="L", configurations=["3d_fullres"])
        print(result.name, result.path)

    Several processes read and preprocess the cases, so a script needs `if __name__ == "__main__":`, or np=1 and npfp=1.

    Args:
        dataset: Number or name. PlanningRequest documents the other options.
        listener: Shows the progress.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: The dataset is missing or damaged.
        WeightsError: Weights to plan for cannot be read, or nothing says what images they know.
        OutOfMemoryError: The network does not fit into the memory that is planned for, or a case into this machine's.
    """
    # Must come first: from here on, locals() holds more than the parameters.
    options = {**locals()}
    del options["listener"]
    with isolated():
        return planning.plan(PlanningRequest(**options), listener)


def train(
    dataset: int | str | None = None,
    configuration: str = "3d_fullres",
    fold: int | str = 0,
    *,
    trainer: str | None = None,
    plans: str | None = None,
    name: str | None = None,
    size: str | None = None,
    network: str | None = None,
    stages: int | str | None = None,
    gpu_memory_target: float | None = None,
    preset: str | None = None,
    set: Mapping[str, Any] | None = None,
    pretrained: str | Path | Sequence[str | Path] | None = None,
    finetune: str | None = None,
    head: str | None = None,
    transfer: str | None = None,
    inflate: str | None = None,
    pretrained_weights: str | Path | None = None,
    num_gpus: int = 1,
    fsdp: bool = False,
    device: str | None = None,
    npz: bool = False,
    resume: bool = False,
    val: bool = False,
    val_best: bool = False,
    disable_checkpointing: bool = False,
    overwrite: bool = False,
    accept_licence: bool = False,
    log: str | Sequence[str] | None = None,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> TrainingResult:
    """Train a network on a planned dataset, and validate it, as stunet_train does.

        result = stunet.train(3, "3d_fullres", 0, pretrained="STU-Net-B", set={"num_epochs": 100})
        print(result.dice, result.checkpoint)

    The first Ctrl-C or SIGTERM ends the training after its step; Interrupted is raised, and `resume=True` continues.
    In another thread than the main one, signals are left alone.

    Args:
        dataset: Number or name; None: the only dataset that is planned. TrainingRequest documents the other options.
        listener: Shows the progress. With num_gpus > 1 it has to be picklable: its class is defined in a module.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: Something is missing, or is not what the data were made from; or the fold was trained before.
        WeightsError: Weights cannot be read, or do not fit.
        OutOfMemoryError: A step does not fit into the memory.
        Interrupted: A signal stopped the training.
    """
    options = {**locals()}
    del options["listener"]
    with isolated():
        return training.train(TrainingRequest(**{**options, "set": set or {}}), listener)


def pretrain(
    dataset: int | str | Sequence[int | str],
    method: str | None = None,
    configuration: str = "3d_fullres",
    *,
    plans: str | None = None,
    name: str | None = None,
    like: int | str | None = None,
    size: str | None = None,
    network: str | None = None,
    stages: int | str | None = None,
    gpu_memory_target: float | None = None,
    preset: str | None = None,
    set: Mapping[str, Any] | None = None,
    pretrained: str | Path | None = None,
    transfer: str | None = None,
    inflate: str | None = None,
    augment: str | None = None,
    skip_bad: bool = False,
    num_gpus: int = 1,
    fsdp: bool = False,
    device: str | None = None,
    resume: bool = False,
    disable_checkpointing: bool = False,
    overwrite: bool = False,
    accept_licence: bool = False,
    log: str | Sequence[str] | None = None,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> PretrainingResult:
    """Pre-train a network on images without labels, as stunet_pretrain does.

        result = stunet.pretrain(50, "mae", set={"num_epochs": 100})
        print(result.measure, result.metrics["chance"])
        stunet.train(3, pretrained=result.model)

    Ctrl-C and SIGTERM end it as they do train().

    Args:
        dataset: Number or name, or several; labels are ignored. PretrainingRequest documents the other options.
        listener: Shows the progress. With num_gpus > 1 it has to be picklable: its class is defined in a module.

    Raises:
        UsageError: Options contradict each other, or the plan does not suit the method.
        DataError: Something is missing, or is not what the data were made from; scans cannot be used; or it was trained
            before.
        WeightsError: The checkpoint to continue from is of another method or network; weights to start from cannot be
            read, or do not fit.
        OutOfMemoryError: A step does not fit into the memory.
        Interrupted: A signal stopped the training.
    """
    options = {**locals()}
    del options["listener"]
    with isolated():
        return pretraining.pretrain(PretrainingRequest(**{**options, "set": set or {}}), listener)


def predict(
    input: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    dataset: int | str | None = None,
    configuration: str | None = None,
    plans: str | None = None,
    trainer: str | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = FINAL,
    series: str | None = None,
    labels: str | None = None,
    roi_subset: Sequence[str] = (),
    v1_preprocessing: bool = False,
    orientation: str | None = None,
    step_size: float = 0.5,
    disable_tta: bool = False,
    precision: str = "auto",
    fast: bool = False,
    save_probabilities: bool = False,
    continue_prediction: bool = False,
    prev_stage_predictions: str | Path | None = None,
    num_parts: int = 1,
    part_id: int = 0,
    merge: bool = False,
    device: str | None = None,
    not_on_device: bool = False,
    max_memory: float | None = None,
    threads: int | None = None,
    format: str | None = None,
    statistics: bool = False,
    preview: bool = False,
    report: str | Path | None = None,
    index: bool = False,
    shard: int = 0,
    cluster: str | None = None,
    npp: int | None = None,
    nps: int | None = None,
    verbose: bool = False,
    accept_licence: bool = False,
    dry_run: bool = False,
    listener: Listener | None = None,
) -> PredictionResult:
    """Segment images with a trained model, as stunet_predict does. For images in memory see inference/predictor.py.

        result = stunet.predict("imagesTs", "predictions", model="STU-Net-B")
        for case in result.cases:
            print(case.name, case.file, case.error)

    A case that fails does not stop the others; its error is in the result. SIGTERM ends the run with Interrupted, and
    `continue_prediction=True` continues it.

    Args:
        input: Folder with CASE_0000.nii.gz ..., an image, or a folder of DICOM files.
        output: Folder of the results; for one input also a file. PredictionRequest documents the other options.
        model: A model by its name or folder, such as a TrainingResult's; or `dataset` and `configuration` look one up.
        listener: Shows the progress.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: The model, the images or what they need are missing or damaged.
        WeightsError: The weights cannot be read, or belong to another network.
        Interrupted: SIGTERM was received; finished cases are kept.
    """
    options = {**locals()}
    del options["listener"]
    paths = {name: _path(options[name]) for name in ("input", "output", "prev_stage_predictions", "report")}
    with isolated():
        return prediction.predict(PredictionRequest(**{**options, **paths}), listener)


def evaluate(
    gt_folder: str | Path | None,
    pred_folder: str | Path,
    *,
    dataset: int | str | None = None,
    djfile: str | Path | None = None,
    output: str | Path | None = None,
    np: int | None = None,
    chill: bool = False,
    tolerance: float = 1.0,
    labels: str | None = None,
    csv: str | Path | None = None,
    report: str | Path | None = None,
    cluster: str | None = None,
    num_parts: int = 1,
    part_id: int = 0,
    merge: bool = False,
    listener: Listener | None = None,
) -> EvaluationResult:
    """Compare predictions with references, as stunet_evaluate does, and write the summary.

        result = stunet.evaluate("labelsTs", "predictions", tolerance=2)
        print(result.dice, result.metrics["mean"])

    Several processes read the files, so a script needs `if __name__ == "__main__":`, or np=1.

    Args:
        gt_folder: References: a folder or a file; None: those of the `dataset`.
        pred_folder: Predictions: a folder or a file. EvaluationRequest documents the other options.
        listener: Shows the progress.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: Files are missing, damaged, or do not fit each other.
        OutOfMemoryError: A case does not fit into memory.
    """
    options = {**locals()}
    del options["listener"]
    paths = {name: _path(options[name]) for name in ("gt_folder", "pred_folder", "djfile", "output", "csv", "report")}
    # Not isolated(), which imports torch: evaluation changes none of what that restores.
    with quiet():
        return evaluation.evaluate(EvaluationRequest(**{**options, **paths}), listener)


def features(
    input: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    dataset: int | str | None = None,
    configuration: str | None = None,
    plans: str | None = None,
    trainer: str | None = None,
    fold: int | str | None = None,
    checkpoint: str = FINAL,
    series: str | None = None,
    labels: str | Path | None = None,
    points: str | Path | None = None,
    world: str = "RAS",
    pools: Sequence[str] | None = None,
    stages: Sequence[int] | None = None,
    probe: str | Path | None = None,
    targets: Sequence[str] = (),
    task: str | None = None,
    seed: int = 0,
    orientation: str | None = None,
    step_size: float = 0.5,
    precision: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    cluster: str | None = None,
    overwrite: bool = False,
    accept_licence: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    merge: bool = False,
    listener: Listener | None = None,
) -> FeaturesResult:
    """Compute features of images with any encoder, as stunet_features does. For one image see stunet.Model.

        result = stunet.features("imagesTr", "features", model="STU-Net-B", labels="labelsTr", probe="diagnosis.csv")
        print(result.files, [probe.probed.scores for probe in result.probes])

    A case that fails does not stop the others; its error is in the result. Cases that are done are kept.

    Args:
        input: Folder with CASE_0000.nii.gz ..., an image, or a folder of DICOM files.
        output: Folder of the features. FeaturesRequest documents the other options.
        model: A model by its name, its folder, or its weights; or `dataset` and `configuration` look one up.
        listener: Shows the progress.

    Raises:
        UsageError: Options contradict each other, or a value is out of range.
        DataError: The images, labels or tables are missing or do not fit each other.
        WeightsError: The weights cannot be read, or do not say how images are preprocessed.
    """
    options = {**locals()}
    del options["listener"]
    paths = {name: _path(options[name]) for name in ("input", "output", "labels", "points", "probe")}
    with isolated():
        return extraction.features(FeaturesRequest(**{**options, **paths}), listener)


def rank(
    dataset: int | str,
    models: Sequence[str | Path],
    scores: Sequence[str] = (),
    *,
    cases: int = 20,
    fold: int | None = None,
    points: int | None = None,
    layers: str = "auto",
    seed: int = 0,
    output: str | Path | None = None,
    step_size: float = 0.5,
    precision: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    accept_licence: bool = False,
    listener: Listener | None = None,
) -> RankingResult:
    """Rank pre-trained models for a labelled dataset, as stunet_rank does.

        ranking = stunet.rank(3, ["STU-Net-S", "STU-Net-B", "weights.pth"], ["ccfv", "probe", "static"])
        print(ranking.outcome.order, ranking.outcome.verdict())
        stunet.train(3, pretrained=ranking.best)

    A candidate that fails does not stop the others; its error is in the result. Features are kept in `output`.

    Args:
        dataset: Number or name of a raw dataset with labels.
        models: Names, files of weights or model folders. RankingRequest documents the other options.
        scores: The first one decides; empty: ccfv and static.
        listener: Shows the progress.

    Raises:
        UsageError: Options are out of range, or there is no such score.
        DataError: The dataset has no labels, too few cases, or no class in two of them; or no candidate has a score.
    """
    options = {**locals()}
    del options["listener"]
    with isolated():
        return ranking.rank(RankingRequest(**{**options, "output": _path(output)}), listener)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
