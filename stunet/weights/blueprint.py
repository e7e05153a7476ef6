"""Say which network weights are of, for plans that take it."""

from dataclasses import replace

from stunet.plans.blueprints import Blueprint, of_weights
from stunet.weights.reading import Weights


def blueprint_of(weights: Weights) -> Blueprint:
    """Return the network of weights; with their strides, unless it is one whose weights do not depend on them."""
    found = weights.network
    if "size" in found.architecture.required:
        return of_weights(replace(found, strides=None))
    known = dict(found.arguments)
    if weights.plan and weights.configuration:  # it knows more of the network than the tensors tell
        known = weights.plan.configuration(weights.configuration).network_arguments
    strides = known.pop("strides", None) or found.strides
    return of_weights(replace(found, arguments=known, strides=strides))
