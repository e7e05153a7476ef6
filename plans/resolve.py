"""Resolve a configuration of a plan in nnU-Net's form; plan.py has the typed one."""

from collections.abc import Mapping
from typing import Any

from stunet.plans.plan import Plan


def lineage(plans: Mapping[str, Any], configuration: str) -> list[str]:
    """Return the configuration and those that it inherits from, nearest first; raises as Plan.configuration()."""
    return Plan(plans).lineage(configuration)


def resolve(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Return a configuration with everything that it inherits; raises as Plan.configuration()."""
    return dict(Plan(plans).configuration(configuration).content)
