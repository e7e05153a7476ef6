"""Compute an image's features with any encoder, in this process: Model is `stunet.Model`.

Images are read and preprocessed as in prediction; the network then computes its encoder only, once per window for all
stages. runs/features.py does the same for folders. opening.py has the weights, engine/pooling.py what a mean over a
region is.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stunet.architectures.base import ENCODER, HEADS
from stunet.errors import DataError, OutOfMemoryError, UsageError, is_out_of_memory, last_line
from stunet.files import sha256_of, sha256_of_json
from stunet.images import Reader, file_reader
from stunet.inference.cases import InputCase, find_cases
from stunet.inference.engine.optimized import ReadyNetwork
from stunet.inference.engine.pooling import Labelled, Points, Pool, Whole, pool
from stunet.inference.engine.windows import SlidingWindow
from stunet.inference.features.opening import open_encoder
from stunet.inference.features.regions import WORLDS, NetworkGrid, as_labels, to_voxels
from stunet.inference.preparation import NetworkInput, Preparation
from stunet.inference.reading import InputImage, read_labels
from stunet.nifti_header import header_has_orientation
from stunet.orientation import orientation_of, way_back
from stunet.preprocessing.dataset import settings_of
from stunet.weights.differences import channel_order
from stunet.workspace import FINAL

CASE, CLASS, POINT = "case", "class", "point"
POOLS = (CASE, CLASS, POINT)
DEFINITION = 1  # of the features; another number makes earlier files those of something else
Values = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Row:
    """What a row of features is of: the case, a class or a point, its name, and how many voxels it was averaged over.

    Those of a class are voxels of the label map, those of a case are voxels of the network's grid.
    """

    pool: str
    name: str
    voxels: int


class Features(Mapping[int, Tensor]):
    """Features by encoder stage, 0 being the finest: {stage: (rows, C)} in float32, and what the rows are of."""

    def __init__(self, rows: Sequence[Row], stages: Mapping[int, Tensor]) -> None:
        self.rows, self._stages = tuple(rows), dict(stages)

    def __getitem__(self, stage: int) -> Tensor:
        return self._stages[stage]

    def __iter__(self) -> Iterator[int]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def __repr__(self) -> str:
        return f"Features({len(self.rows)} rows; {', '.join(f'{n}: {t.shape[1]}' for n, t in self.items())} channels)"


class Model:
    """An encoder of any architecture, trained in any way. May be shared between threads: images take turns.

    Args:
        source: A name of `stunet_models list`, a model folder, or a file of weights.
        fold: Of a model folder; None: the lowest that was trained.
        checkpoint: Name of the checkpoint in the fold.
        device: cpu, cuda or mps.
        precision: The network's precision: auto, fp32, bf16 or fp16.
        step_size: Step between windows as a fraction of the window, above 0 and at most 1. Windows overlap less and
            are fewer with a larger one: 1 is up to 8 times faster than 0.5.
        orientation: That of the training images, such as LPS, if the model does not state it.

    Attributes:
        path: The file of the weights.
        weights: What is known about them.
        trained: Until where the network was trained: ENCODER, DECODER or HEADS of architectures/base.py.
        name: What the network is, such as STU-Net-B.
        parameters: Of the whole network.
        batch_size: That the plan trains with.
        transpose: The order of axes in which the plan wants images.

    Examples:
        >>> model = Model(folder)
        >>> features = model.features(array, spacing=(1.8, 1.2, 1.5))  # or features("ct.nii.gz")
        >>> {stage: tuple(values.shape) for stage, values in features.items()}
        {0: (1, 4), 1: (1, 8), 2: (1, 16)}
        >>> regions = model.features(array, labels=array > 0, spacing=(1.8, 1.2, 1.5))
        >>> [(row.pool, row.name) for row in regions.rows]
        [('class', '1')]

    Raises:
        DataError: The fold does not exist.
        UsageError: A precision that the device lacks, an orientation that is invalid or contradicts the model.
        WeightsError: There is no such model, its weights cannot be read, or its plan is incomplete.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        fold: int | str | None = None,
        checkpoint: str = FINAL,
        device: str = "cpu",
        precision: str = "auto",
        step_size: float = 0.5,
        orientation: str | None = None,
    ) -> None:
        from stunet.models.store import find_model

        if not 0 < step_size <= 1:
            raise UsageError(f"step_size {step_size:g} is not above 0 and at most 1", "0.5")
        encoder = open_encoder(find_model(str(source)), fold, checkpoint)
        self.path, self.model, self.name = encoder.path, encoder.model, encoder.name
        self.weights, self.trained = encoder.weights, encoder.trained
        self.transpose: Sequence[int] = encoder.plans.transpose_forward
        self._preparation = Preparation(self.model, encoder.plans, encoder.configuration, orientation)
        self.orientation = self._preparation.orientation
        network = ReadyNetwork(encoder.network, (), torch.device(device), precision)
        self._windows = SlidingWindow(network, tuple(encoder.configuration.patch_size), 0, step_size)
        self._lock = threading.Lock()
        self.parameters = sum(each.numel() for each in encoder.network.parameters())
        self.batch_size = int(encoder.configuration.configuration.get("batch_size") or 2)

    @property
    def stages(self) -> int:
        """The number of encoder stages."""
        return len(self._windows.network.blocks())

    @property
    def precision(self) -> str:
        """The precision that the network computes in: fp32, bf16 or fp16."""
        return self._windows.network.precision

    @cached_property
    def preprocessing(self) -> str:
        """SHA-256 of what determines a preprocessed image, besides its files."""
        settings = settings_of(self.model.plan, str(self.weights.configuration), {})
        return sha256_of_json([settings, self.orientation, self.model.channels])

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """What determines features, besides the image: SHA-256 of plan and weights, and options."""
        stated = {} if self._preparation.orientation_source is None else {"orientation": self.orientation}
        return {
            "definition": DEFINITION,
            "plans": sha256_of_json(self.model.plan.content),
            "weights": sha256_of(self.path),
            "step_size": self._windows.step_size,
            "precision": self.precision,
            **stated,
        }

    def seconds_per_window(self) -> float:
        """Return how long the whole network, decoder and head included, takes for a window here, in s.

        On the CPU, as if nobody else used it.
        """
        network = self._windows.network
        is_cpu = network.device.type == "cpu"
        clock, parallel = (time.process_time, torch.get_num_threads()) if is_cpu else (time.perf_counter, 1)
        taken: list[float] = []
        window = torch.zeros(1, self.weights.network.channels, *self._windows.patch, device=network.device)
        with self._lock, torch.inference_mode():
            while len(taken) < 3 or sum(taken) < 0.5:  # the first one also prepares
                start = clock()
                float(network.features(window, HEADS)[-1].float().sum())
                taken.append((clock() - start) / parallel)
        return min(taken)

    def cases(self, source: Path, series: str | None = None) -> list[InputCase]:
        """Return the cases in a folder; see cases.find_cases()."""
        return find_cases(source, self.model, series)

    def features(
        self,
        image: Any,
        *,
        labels: Any = None,
        points: Any = None,
        pools: Sequence[str] | None = None,
        classes: Values | None = None,
        names: Sequence[str] | None = None,
        world: str = "RAS",
        stages: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        affine: Any = None,
        series: str | None = None,
        on_window: Callable[[int, int], None] = lambda done, total: None,
    ) -> Features:
        """Return an image's features by stage: of the case, of its classes, or at points.

        A row is the mean over the voxels of the case or class, and a point the voxel that it lies in; see
        engine/pooling.py for what that means at coarse stages and where windows overlap.

        Args:
            image: As in Predictor.predict(): a file or DICOM folder, an image, a list of one per channel, an array; or
                an InputCase of cases().
            labels: Label map on the image's grid: a file, or an array (D, H, W).
            points: (N, 3): x, y, z in mm; of an array without an affine, in voxels (W, H, D) times their spacing.
            pools: What rows are of: "case", "class", "point"; None: class and point if their input is given, else case.
            classes: Label values of each class; None: each value above 0 is a class, called like it.
            names: Of the points; None: their numbers, from 1.
            world: Of the points: "RAS" as in NIfTI, or "LPS" as in DICOM and ITK.
            stages: Which stages are kept; None: all.
            spacing, affine, series: As in Predictor.predict().
            on_window: Called for each window with how many are done, and of how many.

        Raises:
            DataError: The image, labels or points cannot be used.
            OutOfMemoryError: The image does not fit into memory.
            UsageError: Options contradict each other, or the image is of another type.
        """
        chosen = chosen_pools(pools, labels is not None, points is not None)
        kept = self.checked_stages(stages)
        if world not in WORLDS:
            raise UsageError(f"world {world!r} is not {' or '.join(WORLDS)}", "--world RAS, as in NIfTI")
        if isinstance(image, InputCase):
            raw = self._preparation.read(image)
        else:
            raw = self._preparation.load(image, spacing, affine, series)
        turned = self._labels(labels, raw) if CLASS in chosen else None
        at = _place(points, raw, world, affine is None and spacing is not None) if POINT in chosen else None
        prepared = self._preparation.preprocess(raw)
        grid = NetworkGrid.of(prepared.properties, self.transpose, prepared.image_CDHW.shape[1:])
        rows: list[Row] = []
        made: list[Pool] = []
        if CASE in chosen:
            made.append(whole := Whole(grid.shape))
            rows.append(Row(CASE, CASE, whole.voxels))
        if turned is not None:
            found = Labelled(grid.cropped(turned), grid.places(), classes or _values_of(turned))
            if found.voxels:
                made.append(found)
                rows += [Row(CLASS, name, count) for name, count in found.voxels.items()]
        if at is not None:
            called = [str(name) for name in (names or range(1, len(at) + 1))]
            made.append(Points(_inside(grid, at, called, raw.files)))
            rows += [Row(POINT, name, 1) for name in called]
        if not rows:
            raise DataError(f"{raw.files}: none of the classes has a voxel in its label map", "another label map")
        means = self.pooled(prepared.image_CDHW, made, on_window)
        return Features(rows, {stage: torch.cat([of_pool[stage] for of_pool in means]) for stage in kept})

    def checked_stages(self, stages: Sequence[int] | None) -> list[int]:
        """Return the stages that are kept.

        Raises:
            UsageError: There is no such stage.
        """
        known = list(range(self.stages))
        if unknown := [stage for stage in stages or () if stage not in known]:
            raise UsageError(f"{self.name} has no stage {unknown[0]}: it has 0 to {known[-1]}", "--stages 0 1 2")
        return known if stages is None else sorted({*stages})

    def prepare(self, case: InputCase, kind: str | None = None, channels: Sequence[str] | None = None) -> NetworkInput:
        """Return a case as the network takes it.

        Args:
            case: With its files.
            kind: nnU-Net's reader of these, which turns nothing itself; None: the model's.
            channels: Names of their channels. If the model's have the same names in another order, it is brought to
                that; None: they are the model's.

        Raises:
            DataError: The images cannot be read, or not be preprocessed.
        """
        raw = self._preparation.read(case, kind)
        order = channel_order(channels, self.weights.channels) or []
        if order != sorted(order):
            raw = raw._replace(image_CDHW=raw.image_CDHW[order])
        return self._preparation.preprocess(raw)

    def pooled(
        self,
        image_CDHW: Tensor,
        pools: Sequence[Pool],
        on_window: Callable[[int, int], None] = lambda done, total: None,
        until: str = ENCODER,
    ) -> list[list[Tensor]]:
        """Return, per pool, the means (rows, C) of all stages, of an image that is preprocessed as the plan says.

        Args:
            image_CDHW: From prepare().
            pools: What is averaged.
            on_window: As of features().
            until: ENCODER, DECODER or HEADS, and not beyond `trained`: what ReadyNetwork.features() computes.

        Raises:
            DataError: Features are NaN or infinite.
            OutOfMemoryError: The image does not fit into memory.
        """
        total = self._windows.count(image_CDHW.shape[1:])
        done = iter(range(1, total + 1))
        with self._lock:
            try:
                pool(self._windows, image_CDHW, pools, lambda: on_window(next(done), total), until)
            # torch reports a lack of the machine's memory as an ordinary RuntimeError.
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemoryError(
                    f"out of memory: {last_line(error)}", "-device cpu, or a machine with more memory"
                ) from error
        return [each.means() for each in pools]

    def _labels(self, labels: Any, raw: InputImage) -> np.ndarray:
        """Return labels (D, H, W) with the axes of the image in the model's orientation."""
        if isinstance(labels, str | Path):
            kind = self.model.plan.reader
            # An array without an affine was not turned, and its labels have the same axes.
            reader = Reader(kind, self.orientation) if orientation_of(raw.properties) else file_reader(kind)
            hint = "resample the label map onto the image's grid with nearest neighbours, or give that of this image"
            return as_labels(read_labels(raw, Path(labels), reader, "the labels", hint)[0], repr(str(labels)))
        if not isinstance(labels, np.ndarray | Tensor):
            raise UsageError(f"labels of type {type(labels).__name__}", "a file, or an array (D, H, W)")
        array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        turned = way_back(raw.properties).back(array) if array.ndim == 3 else array
        if turned.shape != raw.image_CDHW.shape[1:]:
            shape = raw.on_file_grid.shape[1:]
            raise DataError(f"labels of shape {array.shape}, and the image has {shape}", "labels on the image's grid")
        return as_labels(turned, "labels")


def chosen_pools(pools: Sequence[str] | None, labels: bool, points: bool) -> list[str]:
    """Return what rows are of.

    Raises:
        UsageError: What a choice needs is not given.
    """
    given = [name for name, there in ((CLASS, labels), (POINT, points)) if there]
    chosen = [*(given or [CASE])] if pools is None else [name for name in POOLS if name in pools]
    if unknown := [name for name in pools or () if name not in POOLS]:
        raise UsageError(f"unknown pool {unknown[0]!r}", f"one of {', '.join(POOLS)}")
    for name, there, needed in ((CLASS, labels, "--labels"), (POINT, points, "--points")):
        if name in chosen and not there:
            raise UsageError(f"--pool {name} needs {needed}", f"add {needed}")
        if there and name not in chosen:
            raise UsageError(f"{needed} is for --pool {name}", f"add it: --pool {' '.join([*chosen, name])}")
    if not chosen:
        raise UsageError("no pool is chosen", f"one of {', '.join(POOLS)}")
    return chosen


def _values_of(labels: np.ndarray) -> dict[str, list[int]]:
    found = np.unique(labels)
    return {str(value): [int(value)] for value in found if value}


def _place(points: Any, raw: InputImage, world: str, in_spacing: bool) -> np.ndarray:
    """Return where points are in the image, (D, H, W) in voxels."""
    array = np.asarray(points, np.float64)
    if array.ndim != 2 or array.shape[1] != 3 or not len(array) or not np.isfinite(array).all():
        raise DataError(f"points of shape {array.shape} are not x, y, z of one or more points in mm", "an array (N, 3)")
    if in_spacing:
        return array[:, ::-1] / raw.properties["spacing"]
    if not header_has_orientation(raw.properties.get("nifti")):
        raise DataError(f"{raw.files} does not say where its voxels lie in mm", "set its sform or qform")
    return to_voxels(array, raw, world)


def _inside(grid: NetworkGrid, at: np.ndarray, names: Sequence[str], files: str) -> np.ndarray:
    """Return the voxels of the preprocessed image in which points are.

    Raises:
        DataError: One is outside of it, or two share a name.
    """
    if len(names) != len(at) or len({*names}) != len(names):
        raise DataError(
            f"{len(names)} names, {len({*names})} different ones, for {len(at)} points", "one name per point"
        )
    voxels, inside = grid.voxels(at)
    if not inside.all():
        outside = np.flatnonzero(~inside)
        first = ", ".join(f"{n:.1f}" for n in at[outside[0]])
        raise DataError(
            f"{len(outside)} of {len(at)} points are outside of {files}, or in its empty border, such as "
            f"{names[outside[0]]!r} at voxel ({first}) of (D, H, W)",
            "coordinates are in mm, RAS unless --world LPS is given",
        )
    return voxels
