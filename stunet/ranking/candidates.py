"""What is known of a candidate before it is scored: facts, licence, what speaks against it, hours of fine-tuning."""

from collections.abc import Sequence

import numpy as np

from stunet.errors import DataError
from stunet.inference.features.model import Model
from stunet.models.registry import look_up
from stunet.plans.settings import TrainSettings
from stunet.ranking.cases import Target, spacing_and_size
from stunet.ranking.outcome import Candidate
from stunet.ranking.reading import Place
from stunet.ranking.sample import Facts
from stunet.weights.differences import SPACING_FACTOR
from stunet.workspace import FINAL

FORWARDS = 3  # that a training step takes, about: forward, and backward of inputs and weights


def describe(name: str, weights: str, model: Model, places: Sequence[Place], target: Target) -> Candidate:
    """Return what is known of a candidate, and what speaks against it for this dataset.

    Raises:
        DataError: It takes other channels than the dataset has.
    """
    entry = look_up(model.weights.entry) if model.weights.entry else None
    channels = target.channels
    if len(channels) != model.weights.network.channels:
        what = f"takes {model.weights.network.channels} channel(s), and the dataset has {len(channels)}"
        raise DataError(what, "weights for as many channels: only fine-tuning can add some or leave some out")
    cases = entry.cases if entry else (model.weights.dataset or {}).get("numTraining")
    facts = Facts(
        network=model.name,
        method=model.weights.pretext or "supervised",
        parameters=model.parameters,
        cases=cases if isinstance(cases, int) else None,
    )
    licence = entry.licence if entry else None
    return Candidate(
        name,
        weights,
        facts,
        str(model.path.absolute()),
        model.made_by["weights"],
        licence,
        tuple(_against(model, places, channels, bool(entry and entry.non_commercial))),
        model.trained,
    )


def _against(model: Model, places: Sequence[Place], channels: Sequence[str], non_commercial: bool) -> list[str]:
    found = []
    schemes, names = model.weights.normalization or (), model.weights.channels or ()
    # By name first: TotalSegmentator's weights for CT normalise each image by itself.
    of_ct, is_ct = (any(name.casefold() == "ct" for name in each) for each in (names, channels))
    if (of_ct or "CTNormalization" in schemes) != is_ct:
        found.append("trained on CT" if not is_ct else "not trained on CT")
    if len(channels) > 1 and {name.casefold() for name in names} != {name.casefold() for name in channels}:
        found.append(f"trained on channels {', '.join(names)}, in this order")
    if model.path.parent.name.startswith("fold_") and model.path.name != FINAL:
        found.append("its training is not finished")
    if model.orientation is None:
        found.append("how the axes of its images ran is unknown")
    spacing, here = model.weights.spacing, _spacing(places)
    if spacing and here and len(spacing) == len(here):
        factors = [max(a, b) / min(a, b) for a, b in zip(sorted(spacing), sorted(here), strict=True)]
        if max(factors) > SPACING_FACTOR:
            given = (" x ".join(f"{pitch:.2g}" for pitch in sorted(each)) for each in (spacing, here))
            found.append("trained at {} mm, these have {}".format(*given))
    if non_commercial:
        found.append("not for commercial use")
    return found


def _spacing(places: Sequence[Place]) -> list[float] | None:
    """Return the median spacing in mm, its axes in no order that plans know."""
    found = [spacing_and_size(place.case, place.kind) for place in places]
    known = [each[0] for each in found if each is not None]
    return [float(pitch) for pitch in np.median(known, axis=0)] if known else None


def hours_of(model: Model) -> float:
    """Return about how long fine-tuning with the default schedule and the weights' own patch takes here."""
    defaults = TrainSettings()
    steps = defaults.num_epochs * defaults.num_iterations_per_epoch
    return FORWARDS * model.seconds_per_window() * model.batch_size * steps / 3600
