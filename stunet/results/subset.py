"""Reduce a segmentation to some of its classes, after the argmax.

The omitted classes therefore still compete for voxels, and the remaining ones are the same as in the full result.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stunet.errors import UsageError
from stunet.labels.names import match_classes
from stunet.results.segmentation import class_names


def choose_classes(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the classes of a model that these names refer to, in the model's order.

    A name may be the model's own, a synonym of it, or one for several classes (`kidney`: left and right).

    Args:
        wanted: Names as users write them.
        names: The model's, without the background.

    Raises:
        UsageError: The model lacks a class; the hint names the closest ones.
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
    """Return the new value for each value of the segmentation, for lookup by systems.apply_lookup: itself, or 0.

    With regions, a value becomes that of the last wanted region among those that it belongs to, as if the model had
    only the wanted ones.

    Args:
        wanted: As for choose_classes.
        dataset: dataset.json of the segmentation.

    Raises:
        UsageError: As choose_classes.
    """
    names, regions = class_names(dataset)
    top = max([*names.values(), *(value for values in regions.values() for value in values)])
    table = np.zeros(top + 1, np.min_scalar_type(top))
    # In the model's order, in which later regions overwrite earlier ones.
    for name in choose_classes(wanted, list(names)):
        table[list(regions.get(name, (names[name],)))] = names[name]
    return table


def subset_dataset(wanted: Sequence[str], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dataset.json that describes the result of subset_table.

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
