"""Which values does a segmentation keep when only some of its classes are wanted? Decided after the argmax.

So the classes that are left out still compete for voxels, and those that stay are what they are in the whole result.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stunet.classes import match_classes
from stunet.errors import UsageError
from stunet.results.segmentation import class_names


def choose_classes(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """The classes of a model that these names mean, in the model's order.

    A name is the model's own, another one for the same class, or one for several (`kidney`: left and right).

    Args:
        wanted: Names as users write them.
        names: Of the model, without the background.

    Raises:
        UsageError: The model does not have a class; the hint names the nearest ones.
    """
    rows = match_classes(wanted, names)
    missing = [row for row in rows if not row.sources]
    if missing:
        near = ", ".join(missing[0].closest)
        raise UsageError(
            f"the model has no class {', '.join(repr(row.target) for row in missing)}",
            f"nearest to {missing[0].target!r} it has {near or 'nothing'}",
        )
    chosen = {source for row in rows for source in row.sources}
    return [name for name in names if name in chosen]


def subset_table(wanted: Sequence[str], dataset: Mapping[str, Any]) -> np.ndarray:
    """The new value for each value of the segmentation, to be looked up by labels.apply: itself, or 0.

    With regions a value becomes that of the last region that is wanted among those that it belongs to, as if the model
    had only these.

    Args:
        wanted: As for choose_classes.
        dataset: dataset.json that describes the segmentation.

    Raises:
        UsageError: As choose_classes.
    """
    names, regions = class_names(dataset)
    top = max([*names.values(), *(value for values in regions.values() for value in values)])
    table = np.zeros(top + 1, np.min_scalar_type(top))
    for name in choose_classes(wanted, list(names)):
        table[list(regions.get(name, (names[name],)))] = names[name]
    return table


def subset_dataset(wanted: Sequence[str], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The dataset.json that describes what subset_table leaves.

    Raises:
        UsageError: As choose_classes.
    """
    names, regions = class_names(dataset)
    chosen = choose_classes(wanted, list(names))
    labels = dataset["labels"]
    content = {**dataset, "labels": {"background": 0, **{name: labels[name] for name in chosen}}}
    if regions:
        content["regions_class_order"] = [names[name] for name in chosen]
    return content
