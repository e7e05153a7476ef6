"""Segment an image with a model: read, preprocess, run the network, and return to the image's own grid, in one process.

Images are turned to the orientation of the training images, and results back to the image's own grid. Steps and
formats are nnU-Net's, with two differences: checkpoints are read safely and checked against the network, and the logits
of a scan are never in memory as a whole (engine/segmenter.py). pipeline.py predicts many cases into a folder.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stunet.errors import OutOfMemoryError, UsageError, is_out_of_memory, last_line
from stunet.files import sha256_of, sha256_of_json
from stunet.images import Reader, file_reader
from stunet.inference.cases import InputCase
from stunet.inference.engine import memory
from stunet.inference.engine.confidence import Confidence
from stunet.inference.engine.optimized import ReadyNetwork
from stunet.inference.engine.segmenter import Segmenter
from stunet.inference.engine.windows import SlidingWindow
from stunet.inference.model import ModelFolder, open_model
from stunet.inference.network import build, check_function
from stunet.inference.preparation import NetworkInput, Preparation
from stunet.inference.reading import InputImage
from stunet.labels.systems import LabelSystem
from stunet.orientation import file_properties
from stunet.provenance import check_model
from stunet.results.segmentation import Segmentation
from stunet.results.subset import subset_dataset, subset_table
from stunet.weights.checkpoints import check_weights, load_trained
from stunet.weights.folders import model_folder
from stunet.workspace import FINAL

log = logging.getLogger("stunet")


@dataclass(frozen=True)
class Options:
    """How to predict; names and defaults are nnU-Net's if it has them.

    Args:
        device: cpu, cuda or mps.
        precision: The network's precision: auto, fp32, bf16 or fp16.
        step_size: Step between windows as a fraction of the window, above 0 and at most 1.
        mirroring: Average over mirrored windows, along the axes that training mirrored; up to 8 times slower.
        everything_on_device: Add logits on the device; otherwise in the machine's memory.
        labels: The label system of the results, not with probabilities; None: the model's own.
        roi_subset: The classes that results keep, with which the others still compete; empty: all.
        v1_preprocessing: Resample before normalising, as nnU-Net v1 did; not for cascades.
        orientation: That of the training images, such as LPS, if the model does not state it.
        verbose: Let nnU-Net's preprocessing print what it does.
    """

    device: str = "cpu"
    precision: str = "auto"
    step_size: float = 0.5
    mirroring: bool = True
    everything_on_device: bool = True
    labels: LabelSystem | None = None
    roi_subset: tuple[str, ...] = ()
    v1_preprocessing: bool = False
    orientation: str | None = None
    verbose: bool = False


class Predictor:
    """A loaded and checked model. It may be shared between threads: the network takes their images in turn.

    Args:
        model: A result folder TRAINER__PLANS__CONFIGURATION, or one listed by `stunet_models list`; the folder of a
            dataset stands for the only model in it.
        options: How to predict; None: the defaults.
        folds: Of the model; None: those that were trained.
        checkpoint: Name of the checkpoint in each fold.
        more: Options by name, in place of those of `options`.

    Examples:
        >>> predictor = Predictor(folder, precision="fp32")  # or Predictor("STU-Net-B", device="cuda")
        >>> segmentation = predictor.predict(array, spacing=(1.8, 1.2, 1.5))  # or predict("ct.nii.gz")
        >>> segmentation.labels_DHW.shape == array.shape
        True
        >>> segmentation.names
        {'a': 1, 'b': 2}

    Raises:
        DataError: The folder is not a model folder, or lacks a file; the plans do not describe a network, or one of
            another package; a class of `labels` is missing.
        UsageError: v1_preprocessing with a cascade, an unknown class in roi_subset, a precision that the device lacks,
            an orientation that is invalid or contradicts the model.
        WeightsError: There is no such model; a checkpoint cannot be read, or belongs to another network or strides.
    """

    def __init__(
        self,
        model: str | Path | ModelFolder,
        options: Options | None = None,
        folds: Sequence[int | str] | None = None,
        checkpoint: str = FINAL,
        **more: Any,
    ) -> None:
        if not isinstance(model, ModelFolder):
            model = _open(model, folds, checkpoint)
        elif folds is not None or checkpoint != FINAL:
            raise UsageError("an opened model has its folds and checkpoint", "give them to open_model()")
        self.model = model
        self.options = replace(options or Options(), **more)
        checkpoints = [load_trained(path) for path in model.checkpoint_files]
        # From the checkpoint, as in nnU-Net: the folder may have any name.
        self.configuration_name: str = checkpoints[0]["init_args"]["configuration"]
        self._plans, self._configuration, network = build(model, self.configuration_name)
        for path, found in zip(model.checkpoint_files, checkpoints, strict=True):
            check_weights(path, network, found["network_weights"])
            check_function(path, found, model.plan, self.configuration_name)
        for fold, path, found in zip(model.folds, model.checkpoint_files, checkpoints, strict=True):
            for warning in check_model(
                path, found["init_args"], model.plan, self.configuration_name, fold, model.dataset
            ):
                log.warning("warning: %s", warning)
        if self.options.v1_preprocessing and self.previous_stage:
            raise UsageError(
                f"--v1_preprocessing is not for a cascade such as {self.configuration_name}", "leave it out"
            )
        self._preparation = Preparation(
            model,
            self._plans,
            self._configuration,
            self.options.orientation,
            self.options.v1_preprocessing,
            self.options.verbose,
        )
        # Those of the first fold, and none if it does not name any: both as in nnU-Net.
        mirror_axes = checkpoints[0].get("inference_allowed_mirroring_axes") or ()
        weights = [each["network_weights"] for each in checkpoints]
        self._windows = SlidingWindow(
            ReadyNetwork(
                network,
                weights,
                torch.device(self.options.device),
                self.options.precision,
                mirror_axes if self.options.mirroring else (),
            ),
            self.patch,
            self._plans.get_label_manager(model.dataset).num_segmentation_heads,
            self.options.step_size,
        )
        self._segmenter = Segmenter(
            self._windows,
            self._plans,
            self._configuration,
            model.dataset,
            self._label_table,
            self.options.everything_on_device,
        )
        self._lock = threading.Lock()  # the folds take turns in one network, whose times the segmenter keeps

    @classmethod
    def from_folder(
        cls,
        folder_or_name: str | Path,
        options: Options | None = None,
        folds: Sequence[int | str] | None = None,
        checkpoint: str = FINAL,
    ) -> "Predictor":
        """Return Predictor(folder_or_name, ...): the name of this call in earlier versions."""
        return cls(folder_or_name, options, folds, checkpoint)

    def predict(
        self,
        image: Any,
        spacing: Sequence[float] | None = None,
        on_window: Callable[[], None] = lambda: None,
        *,
        affine: Any = None,
        series: str | None = None,
    ) -> Segmentation:
        """Segment an image, on its own grid.

        Args:
            image: A file or a DICOM folder; a SimpleITK or nibabel image; a list of these, one per channel; or an
                array or tensor (D, H, W) or (C, D, H, W).
            spacing: Spacing of an array, in mm, (D, H, W).
            on_window: Called for each window that the network has processed, count_windows() times.
            affine: Affine of an array, instead of the spacing: (4, 4), as in nibabel, from voxel (x, y, z), the last
                axis of the array first, to mm in RAS. Without it, an array is taken to lie as the training images do.
            series: Series of a DICOM folder: UID, number or description, if the model's channel does not determine it.

        Raises:
            DataError: The image cannot be read or preprocessed.
            OutOfMemoryError: The image does not fit into memory.
            UsageError: The image is of another type.
        """
        prepared = self.preprocess(self._preparation.load(image, spacing, affine, series))
        return self.to_segmentation(self.segment(prepared, on_window), prepared)

    def read(self, case: InputCase) -> InputImage:
        """Read a case; see reading.read()."""
        return self._preparation.read(case)

    def preprocess(self, raw: InputImage) -> NetworkInput:
        """Preprocess a case; its array may be overwritten.

        Raises:
            DataError: The image cannot be preprocessed, or the previous stage has a different shape.
        """
        return self._preparation.preprocess(raw)

    def segment(
        self,
        prepared: NetworkInput,
        on_window: Callable[[], None] = lambda: None,
        probabilities: Path | Confidence | None = None,
        half: bool = False,
        seconds: dict[str, float] | None = None,
    ) -> np.ndarray:
        """Return the labels of a case on the grid of its file, uint8 or uint16.

        Args:
            prepared: From preprocess().
            on_window: Called for each window that the network has processed.
            probabilities: An .npy that receives all probabilities (K, D, H, W), or a Confidence to be filled in.
            half: Add logits in half precision, which takes half the memory.
            seconds: Receives the time of `network` and `export`.

        Raises:
            OutOfMemoryError: The image does not fit into the memory of the device or the machine.
        """
        with self._lock:
            try:
                labels = self._segmenter.segment(
                    prepared.image_CDHW, prepared.properties, probabilities, half=half, on_window=on_window
                )
            # torch reports a lack of the machine's memory as an ordinary RuntimeError.
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemoryError(
                    f"out of memory: {last_line(error)}", "--not_on_device, -device cpu, or a machine with more memory"
                ) from error
            # Under the lock: the next thread's case replaces the times.
            if seconds is not None:
                seconds |= self._segmenter.seconds
        return labels

    def to_segmentation(self, labels_DHW: np.ndarray, prepared: NetworkInput) -> Segmentation:
        """Return the segmentation, with its names and geometry, for labels on the grid of the file."""
        return Segmentation.from_properties(
            labels_DHW, file_properties(prepared.properties, labels_DHW.shape), self.result_dataset
        )

    def count_windows(self, prepared: NetworkInput) -> int:
        """Return how many windows of a case the network processes."""
        return self._windows.count(prepared.image_CDHW.shape[1:])

    def memory_need(self, shape: Sequence[int], spacing: Sequence[float]) -> memory.Need:
        """Estimate how much memory an image needs.

        Args:
            shape: In voxels, array order.
            spacing: In mm, array order.
        """
        network_shape = self._preparation.network_shape(shape, spacing)
        return memory.need(shape, network_shape, len(self.model.channels), self._windows, self._configuration)

    @property
    def orientation(self) -> str | None:
        """That of the training images; None if unknown."""
        return self._preparation.orientation

    @property
    def previous_stage(self) -> str | None:
        """The configuration whose predictions a cascade takes as input."""
        return self._configuration.previous_stage_name

    @property
    def patch(self) -> tuple[int, ...]:
        """The shape of a window in voxels."""
        return tuple(self._configuration.patch_size)

    @property
    def precision(self) -> str:
        """The precision that the network computes in: fp32, bf16 or fp16."""
        return self._windows.network.precision

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """What determines the results: SHA-256 of plans and checkpoints, value by class, options that change voxels."""
        files = zip(self.model.folds, self.model.checkpoint_files, strict=True)
        checkpoints = {str(fold): sha256_of(path) for fold, path in files}
        labels = self.model.dataset["labels"]
        if (table := self._label_table) is not None:
            labels = {name: table[value].tolist() for name, value in labels.items() if name != "ignore"}
        # An orientation in the plans is part of their hash; one from elsewhere has to be recorded.
        stated = {} if self._preparation.orientation_source is None else {"orientation": self.orientation}
        return {
            "plans": sha256_of_json(self.model.plan.content),
            "checkpoints": checkpoints,
            "labels": labels,
            "v1_preprocessing": self.options.v1_preprocessing,
            "step_size": self.options.step_size,
            "mirroring": self.options.mirroring,
            "precision": self.precision,
            **stated,
        }

    @cached_property
    def result_dataset(self) -> dict[str, Any]:
        """The dataset.json that describes the results."""
        dataset = self.model.dataset
        if self.options.roi_subset:
            dataset = subset_dataset(self.options.roi_subset, dataset)
        labels = self.options.labels
        return dataset if labels is None else {**dataset, "labels": labels.dataset_labels}

    @property
    def writer(self) -> Reader:
        """nnU-Net's reader and writer for this model's files, which does not reorient them."""
        return file_reader(self.model.plan.reader)

    @property
    def _label_table(self) -> np.ndarray | None:
        """The final value of each of the model's labels; None: the labels themselves."""
        labels, wanted, table = self.options.labels, self.options.roi_subset, None
        if wanted:
            table = subset_table(wanted, self.model.dataset)
        if labels is not None:
            to_system = labels.from_model(self.model.dataset["labels"])
            # The subset first: its names and values are those of the model.
            table = to_system if table is None else to_system[table]
        return table


def _open(name: str | Path, folds: Sequence[int | str] | None, checkpoint: str) -> ModelFolder:
    from stunet.models.store import find_model

    given = Path(name)
    return open_model(model_folder(given) if given.is_dir() else find_model(str(name)), folds, checkpoint)
