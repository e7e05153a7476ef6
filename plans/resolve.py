"""What a configuration of a plan is, with what it inherits from others (nnU-Net's `inherits_from`). Without torch."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from stunet.errors import DataError, closest


def lineage(plans: Mapping[str, Any], configuration: str) -> list[str]:
    """The configuration and those that it inherits from, nearest first.

    Raises:
        DataError: One of them does not exist, or they inherit in a circle.
    """
    configurations = plans["configurations"]
    names: list[str] = []
    name: str | None = configuration
    while name is not None:
        if name not in configurations:
            raise DataError(
                f"no configuration {name!r} in plans {plans.get('plans_name')!r}{closest(name, list(configurations))}",
                f"one of {', '.join(configurations)}",
            )
        if name in names:
            raise DataError(
                f"configurations {' -> '.join([*names, name])} inherit in a circle", "correct the plans file"
            )
        names.append(name)
        name = configurations[name].get("inherits_from")
    return names


def resolve(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """A configuration with everything that it inherits; errors as of lineage()."""
    resolved: dict[str, Any] = {}
    for name in reversed(lineage(plans, configuration)):
        resolved |= plans["configurations"][name]
    resolved.pop("inherits_from", None)
    return resolved


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """What stands in a plan for the dataset_fingerprint.json that it was made from, whatever files that is of."""
    own = {key: value for key, value in content.items() if not key.startswith("stunet")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
