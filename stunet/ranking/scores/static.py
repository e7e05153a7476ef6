"""What every score has to beat: a list that does not look at the target, and always taking the same kind of weights.

    static             mean of three ranks in the pool: results on known targets, number of parameters, images of
                       pre-training; a candidate of which one is unknown is in the middle of that rank
    always MAE         masked autoencoders first, in the order of `static`
    always supervised  supervised pre-training first, in the order of `static`

Known results stand in presets/known_results.toml with their source. How the three ranks are put together is ours; that
lists of this kind are hard to beat is Singh et al.'s finding (ICLR 2026, arXiv:2510.06448). Cases do not matter, so all
draws of a bootstrap are equal.
"""

import tomllib
from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files
from typing import Any

import numpy as np

from stunet.ranking.sample import Facts, Sample
from stunet.ranking.scores.base import Array, Counts, Prepared

SUPERVISED, MAE = "supervised", "mae"


def static(sample: Sample, first: str = "") -> Prepared:
    """Prepare the terms that `fuse` ranks: known results, parameters, images, and whether the method comes first."""
    facts = sample.facts
    known = known_result(facts, (facts.target,) if facts.target else ())
    comes_first = bool(first) and facts.method is not None and _stem(facts.method) == first
    row = [known, facts.parameters, facts.cases, float(comes_first)]
    values = np.array([np.nan if value is None else float(value) for value in row])
    names = ("known results", "parameters", "images")
    parts = {name: float(value) for name, value in zip(names, values, strict=False) if np.isfinite(value)}

    def terms(counts: Counts) -> Array:
        return np.broadcast_to(values, (len(counts), len(values)))

    return Prepared(sample.cases, terms, parts)


always_mae: Callable[[Sample], Prepared] = partial(static, first=MAE)
always_supervised: Callable[[Sample], Prepared] = partial(static, first=SUPERVISED)


def fuse(terms: Array) -> Array:
    """Rank candidates (M, B, 4) by their facts: scores (M, B), which are from 0 to 1, and above 1 for those first."""
    facts = terms[:, 0]  # equal in all draws
    ranks = np.stack([_ranks(facts[:, column]) for column in range(3)]).mean(0)
    return np.repeat((ranks + 2 * facts[:, 3])[:, None], terms.shape[1], axis=1)


def known_result(facts: Facts, leave_out: tuple[str, ...] = ()) -> float | None:
    """Return the mean z-score of Dice on known targets, of the network and method, or of the method on all networks.

    Args:
        facts: Of the candidate.
        leave_out: Targets that must not count, such as the one that is ranked for.
    """
    tables = _known_results()
    targets = [k for k, target in enumerate(tables["targets"]) if target not in leave_out]
    if facts.method is None or not targets:
        return None
    found = {}
    for network, rows in tables["networks"].items():
        method = facts.method if facts.method in rows else _stem(facts.method)
        if method in rows:
            values = np.array([list(row) for row in rows.values()])[:, targets]
            z = (values - values.mean(0)) / values.std(0)
            found[network] = float(z[list(rows).index(method)].mean())
    if not found:
        return None
    return found.get(facts.network or "", sum(found.values()) / len(found))


@cache
def _known_results() -> dict[str, Any]:
    return tomllib.loads((files("stunet.presets") / "known_results.toml").read_text())


def _stem(method: str) -> str:
    """The method without its variant: mae of mae-no-skips."""
    return method.split("-")[0]


def _ranks(values: Array) -> Array:
    """Return the share of the known others that each is above, ties counting half; 0.5 where unknown or alone."""
    known = np.isfinite(values)
    result = np.full(len(values), 0.5)
    own = values[known]
    if len(own) > 1:
        above = (own[:, None] > own).sum(1) + 0.5 * ((own[:, None] == own).sum(1) - 1)
        result[known] = above / (len(own) - 1)
    return result
