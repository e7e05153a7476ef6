"""How are preprocessed cases read without running anything that stands in their files?

nnU-Net unpickles CASE.pkl and opens CASE.b2nd with blosc2, both of which can run code. From here on its classes read
properties with the reader of weights/pickles.py, and arrays must be plain ones. preprocessing.py writes the files.
"""

from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from blosc2.exceptions import UnsafeDeserializationError
from nnunetv2.training.dataloading import nnunet_dataset as datasets

from stunet.errors import DataError
from stunet.weights.pickles import again, load_properties

datasets.load_pickle = load_properties  # for good: loaders read in processes and threads of their own
PLAIN = (blosc2.NDArray, np.ndarray, type(None))


class _Plain(datasets.nnUNetBaseDataset):
    """Nothing but arrays of numbers."""

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image (C, D, H, W), labels (1, D, H, W), those of the previous stage or None, and properties.

        Raises:
            DataError: A file holds something else, which was not executed.
        """
        try:
            *arrays, properties = super().load_case(identifier)
            kinds = {type(array).__name__ for array in arrays if not isinstance(array, PLAIN)}
        except UnsafeDeserializationError as error:
            kinds = {str(error).partition(" while ")[0]}
        if kinds:
            path = Path(self.source_folder) / identifier
            what = f"case {str(path)!r} has other arrays than plain ones ({', '.join(sorted(kinds))})"
            raise DataError(f"{what}; nothing was executed", again(path))
        return (*arrays, properties)


class Blosc2(_Plain, datasets.nnUNetDatasetBlosc2):
    """nnU-Net's class for .b2nd."""


class Numpy(_Plain, datasets.nnUNetDatasetNumpy):
    """nnU-Net's class for .npz."""


def cases_in(folder: str) -> type[datasets.nnUNetBaseDataset]:
    """The class for the preprocessed cases in a folder, as nnU-Net's infer_dataset_class has it."""
    known = {datasets.nnUNetDatasetBlosc2: Blosc2, datasets.nnUNetDatasetNumpy: Numpy}
    found = datasets.infer_dataset_class(folder)
    return known.get(found, found)
