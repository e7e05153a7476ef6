"""Resolve a configuration of a plan with all it inherits (nnU-Net's `inherits_from`). Does not import torch."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from stunet.errors import DataError, closest


def lineage(plans: Mapping[str, Any], configuration: str) -> list[str]:
    """Return the configuration and those that it inherits from, nearest first.

    Raises:
        DataError: One of them does not exist, or the inheritance is circular.
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
    """Return a configuration with everything that it inherits; raises the same errors as lineage()."""
    resolved: dict[str, Any] = {}
    for name in reversed(lineage(plans, configuration)):
        resolved |= plans["configurations"][name]
    resolved.pop("inherits_from", None)
    return resolved


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """Return the hash that a plan stores of its dataset_fingerprint.json; our own keys in that are left out."""
    own = {key: value for key, value in content.items() if not key.startswith("stunet")}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]
