"""Are the files of a preprocessed case whole, and do they fit together? If not: which case, and what makes it again.

Training, validation and bn-recollect read preprocessed cases through Checked; nnU-Net's own datasets meet damage with
whatever blosc2, numpy or pickle raise, or not at all.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError, OutOfMemoryError, StunetError, is_out_of_memory, last_line


class Checked:
    """A dataset of nnU-Net (nnUNetDatasetBlosc2, nnUNetDatasetNumpy) that names the case whose files are damaged.

    Opening a case looks at shapes and at the places of classes, once; check() reads all of it.

    Args:
        dataset: nnU-Net's; what it has besides load_case() is there, too.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def load_case(self, case: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image (C, D, H, W), labels (1, D, H, W), the previous stage's labels (D, H, W) or None, and properties.

        The arrays are read when they are sliced.

        Raises:
            DataError: A file is missing or damaged, or they do not fit together.
            OutOfMemoryError: They do not fit into memory.
        """
        with self.reading(case):
            data, labels, previous, properties = self.dataset.load_case(case)
            if case not in self._seen:
                _check(data, labels, previous, properties)
                self._seen.add(case)
        return data, labels, previous, properties

    def check(self, case: str) -> None:
        """Reads every voxel of a case.

        Raises:
            DataError: As of load_case().
        """
        with self.reading(case):
            for array in self.load_case(case)[:3]:
                if array is not None:
                    array[:]

    @contextmanager
    def reading(self, case: str) -> Iterator[None]:
        """Names the case in the error that the block raises."""
        try:
            yield
        except StunetError:
            raise
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
        hint = f"rm {files}.* {files}_seg.*; stunet_plan_and_preprocess -d {number}, with the options of then, makes it again"
        if before:
            hint += "; the previous stage's labels: stunet_train with --val in its folds"
        return DataError(f"cannot read the preprocessed files of case {case!r} in {where}: {why}", hint)


def _check(data: Any, labels: Any, previous: Any, properties: Any) -> None:
    """Raises a ValueError that says what does not fit."""
    shape = tuple(data.shape[1:])
    if len(shape) != 3 or tuple(labels.shape[1:]) != shape or (previous is not None and tuple(previous.shape) != shape):
        others = [tuple(array.shape) for array in (labels, previous) if array is not None]
        raise ValueError(f"an image of shape {tuple(data.shape)} and labels of shape {', '.join(map(str, others))}")
    if not isinstance(properties, dict) or not {"spacing", "class_locations"} <= properties.keys():
        raise ValueError("the .pkl file lacks spacing or class_locations")
    for places in properties["class_locations"].values():
        if len(places) and not (np.min(places) >= 0 and (np.max(places, axis=0)[1:] < shape).all()):
            raise ValueError("the .pkl file has places of classes outside of the image")
