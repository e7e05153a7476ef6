"""Read what a candidate computes at the points of cases: encoder stages, decoder levels, and predictions of its head.

Each candidate gets the images as its own plan preprocesses them, so spacing and normalisation are what its weights
know. Features are interpolated linearly between the voxels of a stage (engine/pooling.py), window by window: their maps
are never enlarged, and those of a whole image never exist. bank.py keeps them.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stunet.architectures.base import HEADS
from stunet.datasets import RawCase
from stunet.errors import DataError, StunetError
from stunet.files import exclusive_lock, is_held, remove, remove_staging
from stunet.inference.cases import InputCase
from stunet.inference.engine.pooling import Interpolated
from stunet.inference.failures import reason
from stunet.inference.features.model import Model
from stunet.inference.reading import UNREADABLE
from stunet.orientation import REORIENTS
from stunet.ranking.bank import ENDING, Bank, read_arrays, write_arrays
from stunet.ranking.grid import to_grid
from stunet.ranking.points import DrawnPoints
from stunet.ranking.sample import DECODER, ENCODER, Facts, Layer, Sample, distribution

PREPARED = ".prepared"
LOCK = ".lock"


@dataclass(frozen=True)
class Place:
    """A case with its points, the dataset's reader, and the names of its channels.

    Candidates get the image from that reader as well: readers differ in where a NIfTI image lies whose qform is not its
    sform, and in the spacing of a TIFF.
    """

    case: RawCase
    drawn: DrawnPoints
    kind: str
    channels: tuple[str, ...]

    @property
    def input(self) -> InputCase:
        """The case as the network's input, without labels."""
        return InputCase(self.case.name, self.case.images)


class Prepared:
    """Images that a plan has preprocessed, for other candidates with the same preprocessing: files, until the end.

    Args:
        folder: Of this process.
        keep: Whether there are other candidates.
    """

    def __init__(self, folder: Path, keep: bool) -> None:
        self._folder, self._keep = folder, keep

    def get(self, model: Model, place: Place) -> tuple[torch.Tensor, np.ndarray]:
        """Return the image (C, D, H, W) and where the points are in its voxels, (P, 3).

        Raises:
            DataError: The image cannot be read or preprocessed, or shows another part than the points are in.
        """
        path = self._folder / model.preprocessing[:16] / f"{place.case.name}{ENDING}"
        if (found := read_arrays(path, {})) is None:
            image, properties = model.prepare(place.input, place.kind.removesuffix(REORIENTS), place.channels)
            at = to_grid(place.drawn.world, properties, model.transpose, image.shape[1:])
            if ((at < -0.51) | (at > np.array(image.shape[1:]) - 0.49)).any():
                what = f"points of {place.case.name!r} lie outside of what its plan preprocesses"
                raise DataError(what, "weights with the default preprocessor of nnU-Net")
            found = {"image": image.numpy(), "at": at}
            if self._keep:
                write_arrays(path, found, {})
        return torch.from_numpy(found["image"]), found["at"]


@contextmanager
def prepared_images(bank: Bank, keep: bool) -> Iterator[Prepared]:
    """Yield Prepared, in a folder that is removed at the end; those of processes that were killed are as well."""
    parent = bank.folder / PREPARED
    with ExitStack() as stack:
        # One process at a time: between a folder and its lock, another one would take it for one of the dead.
        with exclusive_lock(parent / LOCK, "another process begins", "", lambda text: None):
            for other in parent.glob("[!.]*"):
                if not is_held(other / LOCK):
                    with suppress(OSError):  # another user's
                        remove(other)
            folder = parent / f"{time.time_ns():x}"
            stack.enter_context(exclusive_lock(folder / LOCK, "", ""))
            stack.callback(remove, folder)
        yield Prepared(folder, keep)


def read_candidate(
    model: Model,
    name: str,
    places: Sequence[Place],
    bank: Bank,
    prepared: Prepared,
    wait: Callable[[str], None],
    on_case: Callable[[str, float], None] = lambda case, share: None,
) -> Path:
    """Put the features of a candidate at the points of all cases into the bank, and return their folder.

    Several processes may share a bank: each candidate is read by one of them, for which the others wait.

    Args:
        model: The candidate.
        name: Its name.
        places: The cases.
        bank: Files that are there and were made from the same are kept.
        prepared: Images for other candidates.
        wait: Called with a message if another process reads this candidate.
        on_case: Called with the case and the share of it that is done, at the end 1.

    Raises:
        StunetError: A case fails; the message names it.
    """
    folder = bank.of(name, model.made_by)
    with exclusive_lock(folder / LOCK, f"another process reads {name}", "wait until it is done", wait):
        remove_staging(folder)
        for place in places:
            case = place.case.name
            path, made_from = folder / f"{case}{ENDING}", made_of(model, place)
            if read_arrays(path, made_from) is None:
                try:
                    write_arrays(path, _read(model, place, prepared, on_case), made_from)
                except (StunetError, MemoryError, *UNREADABLE) as error:
                    found = reason(error, "computing features")
                    raise type(found)(f"case {case!r}: {found.message}", found.hint) from None
            on_case(case, 1.0)
    return folder


def made_of(model: Model, place: Place) -> dict[str, Any]:
    """Return what determines the features of a case."""
    points = hashlib.sha256(place.drawn.world.tobytes() + place.drawn.labels.tobytes()).hexdigest()
    return {
        "by": model.made_by,
        "until": model.trained,
        "regions": _has_regions(model),
        "image": place.input.fingerprint(),
        "reader": place.kind,
        "channels": place.channels,
        "points": points,
    }


def _read(
    model: Model, place: Place, prepared: Prepared, on_case: Callable[[str, float], None]
) -> dict[str, np.ndarray]:
    image, at = prepared.get(model, place)

    def on_window(done: int, total: int) -> None:
        on_case(place.case.name, 0.999 * done / total)

    (means,) = model.pooled(image, [Interpolated(at)], on_window, model.trained)
    found = {f"{ENCODER}_{index}": values.numpy() for index, values in enumerate(means[: model.stages])}
    levels = means[model.stages :]
    if model.trained == HEADS:
        *levels, logits = levels
        found["predictions"] = _probabilities(model, logits).astype(np.float32)
    return found | {f"{DECODER}_{index}": values.numpy() for index, values in enumerate(levels)}


def _probabilities(model: Model, logits: torch.Tensor) -> np.ndarray:
    """Return the distribution over the head's classes at each point, background first."""
    if _has_regions(model):
        return distribution(logits.double().sigmoid().numpy())
    return logits.double().softmax(1).numpy()


def _has_regions(model: Model) -> bool:
    classes = model.model.dataset.get("labels") or {}
    return any(isinstance(value, list | tuple) and len(value) > 1 for value in classes.values())


def load_sample(
    folder: Path, made_from: Mapping[str, Mapping[str, Any]], places: Sequence[Place], facts: Facts
) -> Sample:
    """Return a candidate's sample from the bank.

    Raises:
        DataError: A file is not there any more, or was replaced.
    """
    layers: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    predictions: dict[str, np.ndarray] = {}
    for place in places:
        case = place.case.name
        found = read_arrays(folder / f"{case}{ENDING}", made_from[case])
        if found is None:
            what = f"features of {case!r} in {str(folder)!r} have gone or changed"
            raise DataError(what, "the same command again, which computes them")
        for key, values in found.items():
            if key == "predictions":
                predictions[case] = values
            else:
                part, _, _ = key.partition("_")
                layers.setdefault((part, key), {})[case] = values
    # From coarse to fine: encoder stages count from the finest, decoder levels from the coarsest.
    order = sorted(layers, key=lambda key: (key[0] == DECODER, _number(key[1]) * (1 if key[0] == DECODER else -1)))
    return Sample(
        {place.case.name: place.drawn.points for place in places},
        [Layer(key, part, layers[part, key]) for part, key in order],
        predictions or None,
        facts,
    )


def _number(key: str) -> int:
    return int(key.rpartition("_")[2])
