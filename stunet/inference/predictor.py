"""How does a case become a segmentation? Preprocess, sliding window, average over folds, back to the image's own grid.

Every step is nnU-Net's own, called in this process, so results equal those of nnUNetv2_predict. What is different:
checkpoints are read safely and checked against the network first, files appear whole, and a broken case ends neither
the run nor the other cases. cases.py finds what is predicted; cli/predict.py is the command.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nnunetv2.inference import export_prediction
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

from stunet.errors import DataError, OutOfMemoryError, StunetError, UsageError
from stunet.inference.cases import Case, Model, drop_channel_axis
from stunet.inference.network import build, check_strides
from stunet.inference.output import part_name, remove_parts, whole_case
from stunet.inference.v1_order import V1Preprocessor
from stunet.labels import LabelSystem, apply
from stunet.nifti import check_nifti
from stunet.preprocessor import preprocessor_of
from stunet.weights.checkpoints import check_weights, load_trained

# What nnU-Net, ITK, numpy and nibabel raise for files and images that they cannot take.
UNREADABLE = (RuntimeError, ValueError, OSError, EOFError, AssertionError, IndexError, ImageFileError, HeaderDataError)
INPUT_ENDING = ".input.nii.gz"  # of the temporary image that a DICOM folder becomes


@dataclass(frozen=True)
class Options:
    """How to predict; names and defaults are nnU-Net's.

    Args:
        labels: The results' label system, not with save_probabilities; None: the model's own.
        v1_preprocessing: Resample before normalising, as nnU-Net v1 did; not for cascades.
        show_tiles: Show nnU-Net's bar over the tiles of a case.
    """

    device: str = "cpu"
    step_size: float = 0.5
    mirroring: bool = True
    everything_on_device: bool = True
    save_probabilities: bool = False
    labels: LabelSystem | None = None
    v1_preprocessing: bool = False
    show_tiles: bool = False
    verbose: bool = False


class Prepared(NamedTuple):
    """A preprocessed case: image (C, D, H, W) in float32, and what nnU-Net needs for the way back."""

    image_CDHW: torch.Tensor
    properties: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `file` was written, or `error` says why not."""

    case: Case
    file: Path
    error: StunetError | None = None


class Predictor:
    """A model that is loaded and checked.

    Raises:
        DataError: The plans do not describe a network, or one of another package; a class of `labels` is missing.
        UsageError: v1_preprocessing with a cascade.
        WeightsError: A checkpoint cannot be read, or belongs to another network or other strides.
    """

    def __init__(self, model: Model, options: Options) -> None:
        self.model, self.options = model, options
        checkpoints = [load_trained(path) for path in model.weights]
        first = checkpoints[0]
        name = first["init_args"]["configuration"]
        self.name: str = name
        self._plans, self._configuration, network = build(model, name)
        for path, checkpoint in zip(model.weights, checkpoints, strict=True):
            check_weights(path, network, checkpoint["network_weights"])
            check_strides(path, checkpoint, model.plans, name)
        device = torch.device(options.device)
        self._nnunet = nnUNetPredictor(
            tile_step_size=options.step_size,
            use_mirroring=options.mirroring,
            perform_everything_on_device=options.everything_on_device and device.type == "cuda",
            device=device,
            verbose=options.verbose,
            allow_tqdm=options.show_tiles,
        )
        self._nnunet.manual_initialization(
            network,
            self._plans,
            self._configuration,
            [checkpoint["network_weights"] for checkpoint in checkpoints],
            model.dataset,
            "nnUNetTrainer",
            first.get("inference_allowed_mirroring_axes") or None,
        )
        if options.v1_preprocessing and self.previous_stage:
            raise UsageError(f"--v1_preprocessing is not for a cascade such as {name}", "leave it out")
        self._preprocessor = (
            V1Preprocessor(options.verbose)
            if options.v1_preprocessing
            else preprocessor_of(self._configuration, options.verbose, needs_mask=False)
        )
        self._lookup = None if options.labels is None else options.labels.from_model(model.dataset["labels"])

    @property
    def previous_stage(self) -> str | None:
        """The configuration whose predictions a cascade takes as input."""
        return self._configuration.previous_stage_name

    @property
    def patch(self) -> tuple[int, ...]:
        """The shape of a tile in voxels."""
        return tuple(self._configuration.patch_size)

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """What decides the results: SHA-256 of plans and checkpoints, value by class, options that change voxels."""
        checkpoints = {}
        for fold, path in zip(self.model.folds, self.model.weights, strict=True):
            with path.open("rb") as file:
                checkpoints[str(fold)] = hashlib.file_digest(file, "sha256").hexdigest()
        labels = self.model.dataset["labels"]
        if self._lookup is not None:
            labels = {name: int(self._lookup[value]) for name, value in labels.items() if name != "ignore"}
        return {
            "plans": hashlib.sha256(json.dumps(self.model.plans, sort_keys=True).encode()).hexdigest(),
            "checkpoints": checkpoints,
            "labels": labels,
            "v1_preprocessing": self.options.v1_preprocessing,
            "step_size": self.options.step_size,
            "mirroring": self.options.mirroring,
        }

    @property
    def result_dataset(self) -> dict[str, Any]:
        """The dataset.json that describes the results."""
        labels = self.options.labels
        return self.model.dataset if labels is None else {**self.model.dataset, "labels": labels.dataset_labels}

    @property
    def endings(self) -> list[str]:
        """The endings of the files of a finished case; the segmentation is last."""
        probabilities = [".npz", ".pkl"] if self.options.save_probabilities else []
        spacing = [".json"] if self.model.has_spacing_files else []
        return [*probabilities, *spacing, self.model.ending]

    def is_done(self, case: Case, folder: Path) -> bool:
        """Whether all files of a case are there."""
        return all((folder / f"{case.name}{ending}").is_file() for ending in self.endings)

    def remove(self, case: Case, folder: Path) -> None:
        """Removes the files of a case, so that a run that ends early leaves none that something else has made."""
        for ending in {*self.endings, ".npz", ".pkl"}:
            (folder / f"{case.name}{ending}").unlink(missing_ok=True)

    def remove_leftovers(self, folder: Path, cases: Sequence[Case] | None = None) -> None:
        """Removes temporary files of runs that were killed; only those of `cases` where other runs share the folder."""
        endings = [".npz", ".pkl", ".json", INPUT_ENDING, self.model.ending]
        remove_parts(folder, None if cases is None else {f"{case.name}{end}" for case in cases for end in endings})

    def predict(self, cases: Sequence[Case], folder: Path) -> Iterator[Outcome]:
        """Predicts the cases into `folder`; the next case is preprocessed while the network works on one.

        A case that fails is an Outcome with an error. What concerns all cases ends the run: a full disk, a folder
        that cannot be written.
        """
        with ThreadPoolExecutor(max_workers=1) as pool:
            futures = (pool.submit(self.prepare, case, folder) for case in cases)
            for case, future in zip(cases, _one_ahead(futures), strict=True):
                file = folder / f"{case.name}{self.model.ending}"
                try:
                    prepared = future.result()
                    self.export(self.logits(prepared), prepared, case, folder)
                except (StunetError, RuntimeError, MemoryError) as error:
                    yield Outcome(case, file, _reason(error))
                else:
                    yield Outcome(case, file)

    def prepare(self, case: Case, folder: Path) -> Prepared:
        """Reads and preprocesses a case; a DICOM folder becomes a temporary file in `folder` first.

        Raises:
            DataError: A file cannot be read or preprocessed, or the image is not a finite 3D image per channel.
        """
        if not case.is_dicom:
            return self._prepare(case)
        from stunet.datasets.dicom import to_nifti

        part = folder / f"{part_name(case.name)}{INPUT_ENDING}"
        try:
            to_nifti(case.files[0], part)
            return self._prepare(Case(case.name, (part,), case.previous))
        finally:
            part.unlink(missing_ok=True)

    def logits(self, prepared: Prepared) -> torch.Tensor:
        """Logits (K, D, H, W) in float16 on the CPU, averaged over folds, on the preprocessed grid."""
        return self._nnunet.predict_logits_from_preprocessed_data(prepared.image_CDHW).cpu()

    def export(self, logits_KDHW: torch.Tensor, prepared: Prepared, case: Case, folder: Path) -> None:
        """Writes the segmentation on the image's own grid, and with save_probabilities the .npz and .pkl of nnU-Net.

        Raises:
            OSError: The disk is full or the folder cannot be written; no file appears then.
        """
        logits, properties, dataset = logits_KDHW.numpy(), prepared.properties, self.model.dataset
        plans, configuration = self._plans, self._configuration
        with whole_case(folder, case.name, self.endings) as truncated:
            if self._lookup is None:
                export_prediction.export_prediction_from_logits(
                    logits, properties, configuration, plans, dataset, truncated, self.options.save_probabilities
                )
                return
            labels = plans.get_label_manager(dataset)
            segmentation = export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape(
                logits, plans, configuration, labels, properties
            )
            writer = plans.image_reader_writer_class()
            writer.write_seg(apply(self._lookup, segmentation), f"{truncated}{self.model.ending}", properties)

    def peak_gb(self, shape: Sequence[int], spacing: Sequence[float]) -> float:
        """About how much memory the logits of an image need when they are resampled, which is the peak.

        nnU-Net holds them in float16 on both grids, and those of the network's grid once more in float64.

        Args:
            shape: Of the image, in voxels, array order.
            spacing: Of the image, in mm, array order.
        """
        forward = self._plans.transpose_forward
        old_shape, old_spacing = [shape[i] for i in forward], [spacing[i] for i in forward]
        target = list(self._configuration.spacing)
        target = old_spacing[: len(old_spacing) - len(target)] + target  # 2D plans keep the slices
        voxels = np.prod(compute_new_shape(old_shape, old_spacing, target), dtype=float)
        classes = self._plans.get_label_manager(self.model.dataset).num_segmentation_heads
        return float(classes * (10 * voxels + 2 * np.prod(shape, dtype=float)) / 1e9)

    def _prepare(self, case: Case) -> Prepared:
        files = ", ".join(str(file) for file in case.files)
        try:
            for file in case.files:
                check_nifti(file)
            reader = self._plans.image_reader_writer_class()
            image, properties = reader.read_images([str(file) for file in case.files])
            if len(image) != len(self.model.channels):
                wanted = f"{len(self.model.channels)} ({', '.join(self.model.channels)})"
                what = f"{files} holds {len(image)} channel(s), but the model takes {wanted}"
                raise DataError(what, "one file per channel, CASE_0000, CASE_0001 ..., or all in CASE_0000")
            if not np.isfinite(image).all():
                raise DataError(f"NaN or infinite voxels in {files}", "set them to the value of the background")
            previous = None if case.previous is None else reader.read_seg(str(case.previous))[0]
            image, previous, properties = self._preprocessor.run_case_npy(
                image, previous, properties, self._plans, self._configuration, self.model.dataset
            )
            drop_channel_axis(properties)
        except UNREADABLE as error:
            what = _last_line(error) or "the channels differ in shape or spacing"
            raise DataError(f"cannot read or preprocess {files}: {what}", "look at it in a viewer") from error
        if case.previous is not None:
            labels = self._plans.get_label_manager(self.model.dataset).foreground_labels
            image = np.vstack((image, convert_labelmap_to_one_hot(previous[0], labels, image.dtype)))
        return Prepared(torch.from_numpy(image).to(torch.float32, memory_format=torch.contiguous_format), properties)


def _one_ahead(futures: Iterator[Future[Prepared]]) -> Iterator[Future[Prepared]]:
    """The futures; each starts when the one before it is handed out."""
    started = list(islice(futures, 1))
    while started:
        started += islice(futures, 1)
        yield started.pop(0)


def _reason(error: StunetError | RuntimeError | MemoryError) -> StunetError:
    if isinstance(error, StunetError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return OutOfMemoryError(
            f"out of memory: {_last_line(error)}", "--not_on_device, -device cpu, or a machine with more memory"
        )
    return DataError(f"prediction failed: {_last_line(error)}", "the same command with --verbose")


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[-1]
