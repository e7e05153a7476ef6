"""Predict the validation cases of the fold with the trained network, and have nnU-Net compare them with the labels.

Replaces nnU-Net's perform_actual_validation: the files, log lines and metrics are the same. nnU-Net hands the logits of
whole cases to new processes, which interpolate every class in float64. Here the logits become labels as they arrive, in
this process (inference/engine/segmenter.py), and threads write the files. The network computes as nnU-Net's does, in
float32 on the CPU and in half precision under autocast on CUDA: with the bfloat16 of stunet_predict, the metrics would
depend on the processor.
"""

import pickle
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nnunetv2.evaluation.evaluate_predictions as evaluation
import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.configuration import default_num_processes
from nnunetv2.training.dataloading import nnunet_dataset as datasets
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from stunet.files import atomic_write, remove_staging
from stunet.images import CaseReader, Reader, file_reader
from stunet.inference.cases import drop_channel_axis
from stunet.inference.engine.optimized import ReadyNetwork
from stunet.inference.engine.probabilities import PLAIN, compress
from stunet.inference.engine.segmenter import Segmenter
from stunet.inference.engine.windows import SlidingWindow
from stunet.inference.model import ModelFolder
from stunet.inference.products import Products, endings_of_parts
from stunet.inference.staging import atomic_case, staging_endings, staging_of_case
from stunet.nnunet import patched
from stunet.orientation import file_properties, for_nnunet
from stunet.preprocessing.stored import StoredCases
from stunet.workspace import HANDED_OVER

if TYPE_CHECKING:
    from stunet.trainers.trainer import BaseTrainer

FOLDER, SUMMARY = "validation", "summary.json"  # nnU-Net's names
BARRIER_EVERY = 20  # cases: a process that waits too long for the others gives up


def validate(trainer: "BaseTrainer", probabilities: bool) -> None:
    """Predict the validation cases, divided among the processes, and write the predictions and their metrics.

    Args:
        trainer: With an initialised network, which is left unchanged.
        probabilities: Also write the probabilities of all classes.

    Raises:
        DataError: The files of a preprocessed case are damaged.
        OSError: The disk is full; the files of finished cases are complete.
    """
    _, cases = trainer.do_split()
    processes = dist.get_world_size() if trainer.is_ddp else 1
    last_barrier = len(cases) // processes - 1  # only among the cases that every process has
    own = sorted(map(str, cases[trainer.local_rank :: processes]))
    segmenter = make_segmenter(trainer)
    source = StoredCases(
        trainer.dataset_class(trainer.preprocessed_dataset_folder, own, trainer.folder_with_segs_from_previous_stage)
    )
    if trainer.local_rank == 0:
        _remove_others(trainer, cases)
    with _Results(trainer, own, probabilities) as results:
        for number, case in enumerate(own):
            trainer.print_to_log_file(f"predicting {case}")
            trainer.listener.case(case, number + 1, len(own))
            image, properties = _load(trainer, source, case)
            trainer.print_to_log_file(f"{case}, shape {image.shape}, rank {trainer.local_rank}")
            grids = _grids(trainer, results.next_stages, case, segmenter.dtype)
            labels = segmenter.segment(image, properties, results.plain(case), list(grids.values()))
            results.add(case, labels, properties, grids)
            if trainer.is_ddp and number < last_barrier and (number + 1) % BARRIER_EVERY == 0:
                dist.barrier()
    trainer.listener.validated()
    if trainer.is_ddp:
        dist.barrier()
    if trainer.local_rank == 0:
        trainer.measure_validation(processes)


def _remove_others(trainer: "BaseTrainer", cases: Sequence[str]) -> None:
    """Remove predictions of cases that are no longer validated: nnU-Net would evaluate every file in the folder."""
    ending, validated = trainer.dataset_json["file_ending"], set(cases)
    for path in (Path(trainer.output_folder) / FOLDER).glob(f"*{ending}"):
        if (name := path.name.removesuffix(ending)) not in validated and not name.startswith("."):
            for end in (ending, ".npz", ".pkl"):
                path.with_name(f"{name}{end}").unlink(missing_ok=True)


def make_segmenter(trainer: "BaseTrainer") -> Segmenter:
    """Return the trainer's network ready for prediction; it shares the weights, and the trainer's own is unchanged."""
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    classes = trainer.label_manager.num_segmentation_heads
    with torch.device("meta"):  # takes no memory, and no time for initial values
        network = trainer.build_network_architecture(plans, configuration, trainer.num_input_channels, classes, False)
    network.load_state_dict(trainer.network_state(), assign=True)
    precision = "fp16" if trainer.device.type == "cuda" else "fp32"
    mirror_axes = trainer.inference_allowed_mirroring_axes or ()
    ready = ReadyNetwork(network, [], trainer.device, precision, mirror_axes)
    windows = SlidingWindow(ready, configuration.patch_size, classes)
    return Segmenter(windows, plans, configuration, trainer.dataset_json)


def _load(trainer: "BaseTrainer", source: StoredCases, case: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Load a preprocessed image (C, D, H, W), with the previous stage's labels for a cascade, and its properties."""
    with source.reading(case):
        data, _, previous, properties = source.load_case(case)
        # Writable, because memory-mapped cases are not, and torch warns of sharing such memory.
        image = np.require(data[:], np.float32, ["C", "W"])
        if trainer.is_cascaded:
            classes = trainer.label_manager.foreground_labels
            image = np.vstack((image, convert_labelmap_to_one_hot(previous[:], classes, output_dtype=image.dtype)))
    drop_channel_axis(properties)
    return torch.from_numpy(image), properties


@dataclass(frozen=True)
class _NextStage:
    """A configuration that takes the labels of this one as input.

    Args:
        name: Name of the configuration.
        preprocessed: Folder of its cases.
        folder: Where it expects the labels.
    """

    name: str
    preprocessed: Path
    folder: Path

    @property
    def dataset_class(self) -> Any:
        """nnU-Net's dataset class for the preprocessed cases."""
        return datasets.infer_dataset_class(str(self.preprocessed))

    def write(self, case: str, labels_DHW: np.ndarray, patch: Sequence[int]) -> None:
        """Write labels on the grid of the stage's preprocessed case, as nnU-Net's resample_and_save does."""
        (ending,) = (name for name, kind in datasets.file_ending_dataset_mapping.items() if kind is self.dataset_class)
        options = {}
        if self.dataset_class is datasets.nnUNetDatasetBlosc2:
            blocks, chunks = datasets.comp_blosc2_params((1, *labels_DHW.shape), tuple(patch), labels_DHW.itemsize)
            # The parameters are for images, which have an axis of channels.
            options = {"chunks_seg": chunks[1:], "blocks_seg": blocks[1:]}
        with atomic_write(self.folder / f"{case}.{ending}") as part:
            # save_seg appends the ending itself.
            self.dataset_class.save_seg(labels_DHW, str(part.with_suffix("")), **options)


def _grids(
    trainer: "BaseTrainer", stages: Sequence[_NextStage], case: str, dtype: np.dtype
) -> dict[_NextStage, np.ndarray]:
    """Return arrays for the labels that the next stages need; as in nnU-Net, log it if one of them lacks the case."""
    grids = {}
    for stage in stages:
        try:
            source = StoredCases(stage.dataset_class(str(stage.preprocessed), [case]))
            image, *_ = source.dataset.load_case(case)
        except (FileNotFoundError, AssertionError):  # nnU-Net raises the latter for a folder without cases
            trainer.print_to_log_file(
                f"Predicting next stage {stage.name} failed for case {case} because the preprocessed file is missing! "
                "Run the preprocessing for this configuration first!"
            )
            continue
        except Exception:
            with source.reading(case):
                raise
        grids[stage] = np.zeros(image.shape[1:], dtype)
    return grids


class _Results:
    """The files of a validation, written by threads while the network works on the next case."""

    def __init__(self, trainer: "BaseTrainer", cases: Sequence[str], probabilities: bool) -> None:
        manager, base = trainer.plans_manager, Path(trainer.output_folder_base)
        self._folder = Path(trainer.output_folder) / FOLDER
        self._patch = trainer.configuration_manager.patch_size
        self._kind, self._probabilities = trainer.plan.reader, probabilities
        self._writer = file_reader(self._kind)
        model = ModelFolder(base, trainer.plan, trainer.dataset_json, (), "")
        self._endings = Products(probabilities=probabilities).endings(model)
        endings = (*endings_of_parts(model), *(f".{ending}" for ending in datasets.file_ending_dataset_mapping))
        self._parts = {end for case in cases for end in staging_endings(case, endings)}
        self.next_stages = [
            _NextStage(
                name,
                Path(trainer.preprocessed_dataset_folder_base) / manager.get_configuration(name).data_identifier,
                base / HANDED_OVER / name,
            )
            for name in trainer.configuration_manager.next_stage_names or ()
        ]
        self._folders = [self._folder, *(stage.folder for stage in self.next_stages)]
        # As many threads as nnU-Net has processes; compression releases the GIL, and labels need no copy to a process.
        self._pool = ThreadPoolExecutor(default_num_processes)
        self._unwritten: deque[Future[None]] = deque()
        self._stopped = False

    def __enter__(self) -> "_Results":
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error == (None, None, None):
                self._wait(keep=0)
        finally:
            self._stopped = True
            self._pool.shutdown(cancel_futures=True)
            for folder in self._folders:
                remove_staging(folder, self._parts)

    def plain(self, case: str) -> Path | None:
        """Return where the probabilities of a case are collected; None if they are not wanted."""
        return self._folder / f"{staging_of_case(case)}{PLAIN}" if self._probabilities else None

    def add(
        self, case: str, labels_DHW: np.ndarray, properties: dict[str, Any], grids: Mapping[_NextStage, np.ndarray]
    ) -> None:
        """Submit the files of a case for writing.

        Raises:
            OSError: The files of an earlier case could not be written.
        """
        self._unwritten.append(self._pool.submit(self._write, case, labels_DHW, properties, grids))
        # The labels of cases that wait stay in memory: as many as there are threads, and no more.
        self._wait(keep=default_num_processes)

    def _wait(self, keep: int) -> None:
        while self._unwritten and (len(self._unwritten) > keep or self._unwritten[0].done()):
            self._unwritten.popleft().result()

    def _write(
        self, case: str, labels: np.ndarray, properties: dict[str, Any], grids: Mapping[_NextStage, np.ndarray]
    ) -> None:
        place = file_properties(properties, labels.shape)
        with atomic_case(self._folder, case, self._endings) as part:
            if self._probabilities:
                # It takes long enough for a signal to come in between, so it asks whether to go on.
                compress(Path(f"{part}.npz"), self._go_on)
                Path(f"{part}.pkl").write_bytes(pickle.dumps(for_nnunet(place, self._kind)))
            self._writer.write_seg(labels, f"{part}{self._endings[-1]}", place)
        for stage, grid in grids.items():
            stage.write(case, grid, self._patch)

    def _go_on(self) -> None:
        if self._stopped:
            raise CancelledError


class _Threads:
    """Replaces multiprocessing in nnU-Net's metrics: starting processes takes longer than computing most folds."""

    Pool = ThreadPool

    @classmethod
    def get_context(cls, kind: str) -> type["_Threads"]:
        return cls


def measure(trainer: "BaseTrainer", processes: int) -> None:
    """Compare what all processes have written with the labels, and log the agreement."""
    folder, labels = Path(trainer.output_folder) / FOLDER, trainer.label_manager
    remove_staging(folder)  # left by processes that were killed: nnU-Net would take them for cases
    with atomic_write(folder / SUMMARY) as part, patched(evaluation, multiprocessing=_Threads):
        metrics = evaluation.compute_metrics_on_folder(
            str(Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"),
            str(folder),
            str(part),
            CaseReader(Reader(trainer.plan.reader, trainer.plan.orientation), folder),
            trainer.dataset_json["file_ending"],
            labels.foreground_regions if labels.has_regions else labels.foreground_labels,
            labels.ignore_label,
            num_processes=default_num_processes * processes,
            # the folder of labels has all cases of the dataset, not only those of the fold
            chill=True,
        )
    for label, values in metrics["mean"].items():
        trainer.logger.log_summary(f"final_val/class_{label}_dice", values["Dice"])
    trainer.logger.log_summary("final_val/foreground_dice", metrics["foreground_mean"]["Dice"])
    trainer.print_to_log_file("Validation complete", also_print_to_console=True)
    trainer.print_to_log_file("Mean Validation Dice: ", metrics["foreground_mean"]["Dice"], also_print_to_console=True)
