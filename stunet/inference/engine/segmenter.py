"""Turn a preprocessed case into labels on the image's grid: network, interpolation, and back into the whole image.

The network's logits become labels as they are computed (engine/), so the logits of the whole scan never
exist at once. If the plans resample logits differently from nnU-Net's default, the function that they name is used.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from torch import Tensor

from stunet.errors import DataError
from stunet.inference.engine import export
from stunet.inference.engine.confidence import Confidence
from stunet.inference.engine.probabilities import plain_array, put
from stunet.inference.engine.windows import SlidingWindow
from stunet.orientation import way_back


class OutputGrid(NamedTuple):
    """A grid to be filled.

    Args:
        labels_DHW: Filled with labels.
        spacing: In mm; determines only whether nnU-Net takes the nearest plane on an axis.
        probabilities_KDHW: Filled with the probabilities of all classes or regions, if given.
        confidence: How sure the network is, if requested, with the part of its values to be filled.
    """

    labels_DHW: np.ndarray
    spacing: Sequence[float]
    probabilities_KDHW: np.ndarray | None = None
    confidence: tuple[Confidence, np.ndarray] | None = None


@dataclass
class Segmenter:
    """A network with what nnU-Net's plans specify about its inputs and outputs.

    Args:
        windows: The network.
        plans: nnU-Net's PlansManager.
        configuration: nnU-Net's ConfigurationManager.
        dataset: dataset.json.
        lookup: The final value of each label, applied after the argmax; None: the labels themselves.
        on_device: Add logits on the network's device; otherwise in the machine's memory.
    """

    windows: SlidingWindow
    plans: Any
    configuration: Any
    dataset: dict[str, Any]
    lookup: np.ndarray | None = None
    on_device: bool = True

    def __post_init__(self) -> None:
        self.seconds = {"network": 0.0, "export": 0.0}  # of the last segment()
        labels = self.plans.get_label_manager(self.dataset)
        self._regions = list(labels.regions_class_order) if labels.has_regions else None
        self.dtype = np.dtype(np.uint8 if len(labels.foreground_labels) < 255 else np.uint16)  # as in nnU-Net
        if self.lookup is not None:
            self.dtype = self.lookup.dtype

    def segment(
        self,
        image_CDHW: Tensor,
        properties: dict[str, Any],
        probabilities: Path | Confidence | None = None,
        also: Sequence[np.ndarray] = (),
        half: bool = False,
        on_window: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """Return the segmentation on the grid of the file that the image was read from, uint8 or uint16.

        Args:
            image_CDHW: Preprocessed, with the previous stage's segmentation for a cascade.
            properties: nnU-Net's, of this case.
            probabilities: Where to write the probabilities of all classes or regions, an .npy; or a Confidence to be
                filled in with how sure the network is of its labels.
            also: Grids over the volume of the preprocessed image that are also filled with labels, as nnU-Net does
                for the next stage of a cascade.
            half: Add logits in half precision.
            on_window: Called for each finished window.
        """

        def fill(grids: Sequence[OutputGrid]) -> None:
            self._fill([*grids, *others], image_CDHW, network_spacing, half, on_window)

        self.seconds = dict.fromkeys(self.seconds, 0.0)
        spacing = [properties["spacing"][axis] for axis in self.plans.transpose_forward]
        network_spacing = self._network_spacing(spacing)
        back, forward, backward = way_back(properties), self.plans.transpose_forward, self.plans.transpose_backward
        labels = np.zeros(properties["shape_before_cropping"], self.dtype)
        box = tuple(slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
        others = [OutputGrid(each, network_spacing) for each in also]
        if probabilities is None:
            fill([OutputGrid(labels[box], spacing)])
        elif isinstance(probabilities, Confidence):
            sure = np.ones(labels.shape, np.float32)  # outside the box everything is certainly background
            fill([OutputGrid(labels[box], spacing, confidence=(probabilities, sure[box]))])
            probabilities.values_DHW = back.contiguous(sure.transpose(backward))
        else:
            shape = back(labels.transpose(backward)).shape
            with plain_array(probabilities, (self.windows.classes, *shape)) as of_file:
                here = back.back(of_file).transpose(0, *(1 + axis for axis in forward))
                if self._regions is None:
                    put(here[0], np.broadcast_to(np.float32(1), here[0].shape))  # outside the box all is background
                fill([OutputGrid(labels[box], spacing, here[(slice(None), *box)])])
        return back.contiguous(labels.transpose(backward))

    def _fill(
        self,
        grids: Sequence[OutputGrid],
        image_CDHW: Tensor,
        spacing: Sequence[float],
        half: bool,
        on_window: Callable[[], None],
    ) -> None:
        """Fill the grids, which cover the same volume as the image, in one pass over it.

        If the device runs out of memory for the logits of a row of windows, they are kept in the machine's memory.
        """
        try:
            self._fill_from(self.windows.slabs(image_CDHW, half, self.on_device, on_window), grids, image_CDHW, spacing)
        except torch.OutOfMemoryError:
            if not self.on_device or self.windows.network.device.type == "cpu":
                raise
            torch.cuda.empty_cache()  # the first attempt's blocks, for the windows of the second
            self._fill_from(self.windows.slabs(image_CDHW, half, False, on_window), grids, image_CDHW, spacing)

    def _timed(self, slabs: Iterator[export.Slab]) -> Iterator[export.Slab]:
        """Yield the slabs; time between a slab and the request for the next is the export's, the rest the network's.

        Raises:
            DataError: Logits are NaN or infinite; argmax would silently turn them into labels.
        """
        seconds, last = self.seconds, time.perf_counter()
        for slab in slabs:
            sums = [plane.sum(dtype=torch.float32) for plane in slab.logits_DHWK]  # by plane: torch copies to float32
            if not bool(torch.stack(sums).isfinite().all()):  # which also waits for a GPU
                raise DataError("the network's logits are NaN or infinite", "--precision fp32")
            now = time.perf_counter()
            seconds["network"] += now - last
            yield slab
            last = time.perf_counter()
            seconds["export"] += last - now

    def _fill_from(
        self, slabs: Iterator[export.Slab], targets: Sequence[OutputGrid], image: Tensor, spacing: Sequence[float]
    ) -> None:
        order = self.windows.order(image.shape[1:])
        slabs = self._timed(slabs)
        grids = [self._axes(image.shape[1:], each.labels_DHW.shape, spacing, each.spacing) for each in targets]
        if any(axes is None for axes in grids):
            logits = _gather(slabs, order)
            for target in targets:
                self._resample(logits, target, spacing)
            return
        for slab in slabs:
            for target, axes in zip(targets, grids, strict=True):
                self._export(slab, target, axes, order)  # type: ignore[arg-type]

    def _export(self, slab: export.Slab, target: OutputGrid, axes: export.Axes, order: Sequence[int]) -> None:
        """Fill the part of a target that a slab determines; `order` is that of the target's axes in the slab."""
        one, two, three = (axes[axis] for axis in order)
        labels = target.labels_DHW.transpose(order)

        def write_labels(start: int, values: Tensor) -> None:
            labels[start : start + len(values)] = self._final(values)

        if target.confidence is None and target.probabilities_KDHW is None:
            export.label([slab], (one, two, three), self._regions, write_labels)
            return

        def write(start: int, values: Tensor, likely_KDHW: Tensor) -> None:
            write_labels(start, values)
            planes = slice(start, start + len(values))
            if target.confidence is not None:
                confidence, sure_DHW = target.confidence
                sure_DHW.transpose(order)[planes] = confidence.of_labels(values, likely_KDHW).cpu().numpy()
            if target.probabilities_KDHW is not None:
                whole_KDHW = target.probabilities_KDHW.transpose(0, *(1 + axis for axis in order))
                put(whole_KDHW[:, planes], likely_KDHW.cpu().numpy())

        export.probabilities([slab], (one, two, three), self._regions, write)

    def _resample(self, logits_KDHW: Tensor, target: OutputGrid, spacing: Sequence[float]) -> None:
        """Fill a target from logits resampled by the function that the plans name."""
        shape = target.labels_DHW.shape
        resampled = self.configuration.resampling_fn_probabilities(logits_KDHW, shape, spacing, target.spacing)
        # On the target's grid already: axes that map it to itself only take the labels.
        slab = export.Slab(0, torch.as_tensor(resampled).float().movedim(0, -1))
        self._export(slab, target, export.axes_between(shape, shape, None, 1), (0, 1, 2))

    def _network_spacing(self, spacing: Sequence[float]) -> list[float]:
        """Return the network's spacing in mm; a 2D network keeps the distance between slices."""
        planned = list(self.configuration.spacing)
        return [*spacing[: len(spacing) - len(planned)], *planned]

    def _final(self, labels: Tensor) -> np.ndarray:
        values = labels.cpu().numpy()
        return values if self.lookup is None else self.lookup[values]

    def _axes(
        self, source: Sequence[int], target: Sequence[int], spacing: Sequence[float], target_spacing: Sequence[float]
    ) -> export.Axes | None:
        """Return what nnU-Net's resampling of probabilities does, as axes; None if axes cannot express it."""
        # Options that plans leave out have the defaults of nnU-Net's resample_data_or_seg_to_shape().
        options = dict(self.configuration.configuration["resampling_fn_probabilities_kwargs"])
        separate = {
            "force_separate_z": options.get("force_separate_z", False),
            "separate_z_anisotropy_threshold": options.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD),
        }
        if self.configuration.configuration["resampling_fn_probabilities"] != "resample_data_or_seg_to_shape":
            return None
        order = options.get("order", 3)
        is_separate, axis = determine_do_sep_z_and_axis(current_spacing=spacing, new_spacing=target_spacing, **separate)
        # Splines of higher order overshoot: the largest logit at all corners need not be the largest between them.
        if order not in (0, 1) or (is_separate and options.get("order_z", 0) != 0):
            return None
        return export.axes_between(source, target, axis if is_separate else None, order)


def _gather(slabs: Iterator[export.Slab], order: Sequence[int]) -> Tensor:
    """Return all logits (K, D, H, W), in the machine's memory, with the image's axes."""
    parts: list[Tensor] = []
    for start, logits in slabs:
        # Slabs overlap by a plane. Counted, not assumed: the first slab may have one plane only.
        parts.append(logits[sum(map(len, parts)) - start :].cpu().clone())
    return torch.cat(parts).permute(3, *(order.index(axis) for axis in range(3)))
