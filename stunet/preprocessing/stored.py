"""Check that the files of a preprocessed case are intact and consistent; if not, report the case and how to remake it.

Training, validation and bn-recollect read preprocessed cases through StoredCases; nnU-Net's own datasets react to
damage with whatever blosc2, numpy or pickle raise, or not at all. nnU-Net unpickles CASE.pkl, which executes what it
contains: once this module is imported, nnU-Net's classes read properties with the reader of weights/pickles.py, in this
process and those that it forks.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from blosc2.exceptions import UnsafeDeserializationError
from nnunetv2.training.dataloading import nnunet_dataset

from stunet.errors import DataError, OutOfMemoryError, StunetError, is_out_of_memory, last_line
from stunet.nnunet import patch
from stunet.weights.pickles import load_properties

patch(nnunet_dataset, load_pickle=load_properties)
PLAIN = (blosc2.NDArray, np.ndarray, type(None))  # what an array of a case may be


class StoredCases:
    """A dataset of nnU-Net (nnUNetDatasetBlosc2, nnUNetDatasetNumpy) that names the case whose files are damaged.

    The first time a case is opened, shapes and class locations are checked; check() reads all of it.

    Args:
        dataset: nnU-Net's dataset; its other attributes are available as well.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def load_case(self, case: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Return image (C, D, H, W), labels (1, D, H, W), previous stage's labels (D, H, W) or None, and properties.

        The arrays are read when they are sliced.

        Raises:
            DataError: A file is missing or damaged, or they are inconsistent.
            OutOfMemoryError: They do not fit into memory.
        """
        with self.reading(case):
            data, labels, previous, properties = self.dataset.load_case(case)
            for array in (data, labels, previous):
                if not isinstance(array, PLAIN):
                    raise ValueError(f"{type(array).__name__} in place of a plain array; nothing was executed")
            # Once: a training draws every case many times.
            if case not in self._seen:
                _check(data, labels, previous, properties)
                self._seen.add(case)
        return data, labels, previous, properties

    def check(self, case: str) -> None:
        """Read every voxel of a case.

        Raises:
            DataError: As for load_case().
        """
        with self.reading(case):
            for array in self.load_case(case)[:3]:
                if array is not None:
                    array[:]

    @contextmanager
    def reading(self, case: str) -> Iterator[None]:
        """Name the case in any error that the block raises."""
        try:
            yield
        # It names the case already: check() calls load_case() inside this block.
        except StunetError:
            raise
        except UnsafeDeserializationError as error:  # blosc2's text goes on to explain how to execute it anyway
            what = str(error).partition(" while ")[0]
            raise self._damaged(case, f"{what} in place of a plain array; nothing was executed") from None
        except Exception as error:
            if is_out_of_memory(error):
                what = f"case {case!r} does not fit into memory: {last_line(error)}"
                raise OutOfMemoryError(what, "fewer processes at a time: nnUNet_n_proc_DA=1") from error
            raise self._damaged(case, last_line(error) or type(error).__name__) from error

    def _damaged(self, case: str, why: str) -> DataError:
        folder = Path(self.dataset.source_folder)
        before = self.dataset.folder_with_segs_from_previous_stage
        where = " or ".join(map(repr, filter(None, (str(folder), before and str(before)))))
        number = int(name[7:10]) if (name := folder.parent.name)[7:10].isdigit() else name
        files = f"{shlex.quote(str(folder))}/{shlex.quote(case)}"
        again = f"stunet_plan_and_preprocess -d {number}, with the options of then, makes it again"
        hint = f"rm {files}.* {files}_seg.*; {again}"
        if before:
            hint += "; the previous stage's labels: stunet_train with --val in its folds"
        return DataError(f"cannot read the preprocessed files of case {case!r} in {where}: {why}", hint)


def _check(data: Any, labels: Any, previous: Any, properties: Any) -> None:
    """Raise a ValueError that states what is inconsistent."""
    shape = tuple(data.shape[1:])
    if len(shape) != 3 or tuple(labels.shape[1:]) != shape or (previous is not None and tuple(previous.shape) != shape):
        others = [tuple(array.shape) for array in (labels, previous) if array is not None]
        raise ValueError(f"an image of shape {tuple(data.shape)} and labels of shape {', '.join(map(str, others))}")
    if not isinstance(properties, dict) or not {"spacing", "class_locations"} <= properties.keys():
        raise ValueError("the .pkl file lacks spacing or class_locations")
    for places in properties["class_locations"].values():
        if len(places) and not (np.min(places) >= 0 and (np.max(places, axis=0)[1:] < shape).all()):
            raise ValueError("the .pkl file has places of classes outside of the image")
