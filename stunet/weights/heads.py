"""Choose which rows of the weights' heads go into which rows of the network's, by the names of the classes.

A head is a 1x1x1 convolution with one row, weights and a bias, per class. labels/names.py matches the names,
transfer.py moves the rows found here in the heads of all levels.

The rows of a softmax compete. Slicing removes competitors, and until training has taught the background to take their
voxels, those of a dropped class fall to whichever class is left. A background bias that compensates for this can only
be estimated on data, so none is guessed here. Reusing keeps all rows: the dataset annotates only some of the classes
(trainers/partial/), and before the first step the network computes what it was trained to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from stunet.errors import UsageError, closest
from stunet.labels.names import ClassMatch, match_classes
from stunet.plans.plan import ENCODER_ALONE
from stunet.weights.reading import Weights

BACKGROUND = "background"
MODES = ("reuse", "slice", "reset")
NEW_CLASS = math.log(0.05)  # for a class new to a reused head: it starts at 5 % of the background's probability


@dataclass(frozen=True)
class Heads:
    """How the heads of a network are filled.

    Attributes:
        mode: "slice"; "reuse": all rows of the weights are kept; "reset": all keep their random initialisation.
        rows: What became of each class of the dataset, without the background; empty after a reset.
        moves: For each row of the network's heads, the rows of the weights whose mean it becomes; empty: unchanged.
        unused: Classes of the weights that went into no row.
        reason: Why the heads are reset; empty otherwise.
        warnings: What users who requested another mode need to know.
        added: What is added to the bias of each row; empty: nothing.
    """

    mode: str
    rows: tuple[ClassMatch, ...] = ()
    moves: tuple[tuple[int, ...], ...] = ()
    unused: tuple[str, ...] = ()
    reason: str = ""
    warnings: tuple[str, ...] = ()
    added: tuple[float, ...] = ()

    def lines(self) -> list[str]:
        """Describe for the console how many rows there are of each kind, then what was merged and what is new."""
        if self.mode == "reset":
            return [f"heads: initialised at random, {self.reason}"]
        merged = [f"{row.target} = mean of {', '.join(row.sources)}" for row in self.rows if len(row.sources) > 1]
        new = [
            row.target + (f" (closest: {', '.join(row.closest)})" if row.closest else "")
            for row in self.rows
            if not row.sources
        ]
        copied = len(self.rows) - len(merged) - len(new)
        if self.mode == "reuse":
            lines = [f"heads: all {copied} classes of the weights kept, {len(new)} new"]
            return lines + ([f"  new, as a part of the background: {'; '.join(new)}"] if new else [])
        lines = [
            f"heads: {copied} classes copied, {len(merged)} merged, {len(new)} new; "
            f"{len(self.unused)} of the weights' unused"
        ]
        return lines + [f"  {kind}: {'; '.join(found)}" for kind, found in (("merged", merged), ("new", new)) if found]


def plan_heads(
    requested: str | None, weights: Weights, classes: Sequence[str] | None, transfer: str | None = None
) -> Heads:
    """Decide what `transfer` does with the heads.

    Args:
        requested: One of MODES, or None: slice if any class matches.
        classes: Name of each row of the network's heads; with a softmax, the background is first. To reuse a head, it
            must contain all of its classes. None: unknown; empty: the rows are those of a pre-training without labels.
        transfer: What of the weights is taken, one of TRANSFERS; None: what they say.

    Raises:
        UsageError: `requested` is not one of MODES, the head to reuse does not fit the network, or there are no rows of
            classes to slice or reuse.
    """
    if requested is not None and requested not in MODES:
        raise UsageError(f"--head {requested!r} is unknown{closest(requested, list(MODES))}", ", ".join(MODES))
    if why := _without_rows(weights, classes, transfer or weights.transfers):
        if requested not in (None, "reset"):
            raise UsageError(f"--head {requested}, but {why}", "leave it out: the heads are new")
        return Heads("reset", reason=f"as {why}")
    if requested == "reset":
        return Heads("reset", reason="as asked for")
    rows, reason = _match(weights, classes)
    if reason:
        warning = f"--head {requested} is not possible: {reason}; the heads are initialised at random"
        return Heads("reset", reason=reason, warnings=(warning,) if requested else ())
    given, wanted = list(weights.classes or ()), list(classes or ())
    taken = {row.target: row.sources for row in rows}
    if BACKGROUND in given:
        # Only classes are matched by name; the background is the same in both.
        taken[BACKGROUND] = (BACKGROUND,)
    moves = tuple(tuple(given.index(source) for source in taken.get(name, ())) for name in wanted)
    used = {BACKGROUND}.union(*(row.sources for row in rows))
    if requested == "reuse":
        return _whole(rows, moves, given, wanted)
    return Heads(
        "slice",
        tuple(rows),
        moves,
        tuple(name for name in given if name not in used),
        warnings=tuple(_doubts(wanted)),
    )


def _without_rows(weights: Weights, classes: Sequence[str] | None, transfer: str) -> str | None:
    """Return why no row is taken, whatever the names; None if rows may be."""
    if classes is not None and not classes:
        return "those of a pre-training are of no classes"
    if weights.pretext:
        return f"the heads of {weights.pretext!r}, which trained the weights without labels, are of no classes"
    return "only the encoder is transferred" if transfer == ENCODER_ALONE else None


def _whole(rows: list[ClassMatch], moves: tuple[tuple[int, ...], ...], given: list[str], wanted: list[str]) -> Heads:
    """Keep every row of the weights; new rows start as a small part of the background, so they win no voxel yet."""
    if not set(given) <= set(wanted) or BACKGROUND not in given:
        raise UsageError(
            "--head reuse needs a network with all classes of the weights and a background", "--head slice"
        )
    background = (given.index(BACKGROUND),)
    added = tuple(0.0 if name in given else NEW_CLASS for name in wanted)
    filled = tuple(move if name in given else background for name, move in zip(wanted, moves, strict=True))
    kept = tuple(row if row.target in given else ClassMatch(row.target, (), row.closest) for row in rows)
    return Heads("reuse", kept, filled, added=added)


def choose_head(requested: str | None, weights: Weights, classes: Sequence[str] | None) -> str:
    """Return the mode that plan_heads() chooses."""
    return plan_heads(requested, weights, classes).mode


def take_rows(drawn_K: Tensor, given_K: Tensor, moves: Sequence[Sequence[int]]) -> Tensor:
    """Return a new tensor: `drawn_K`, (K, ...), with the rows of `given_K`, (K', ...), that `moves` names.

    A class that is the union of several starts from the mean of their rows. No single row can represent the union
    itself, whose probability is the sum of theirs.
    """
    # A copy: otherwise verify() would compare the network with itself.
    result = drawn_K.clone()
    for k, sources in enumerate(moves):
        if sources:
            result[k] = given_K[list(sources)].to(result).mean(0)
    return result


def _match(weights: Weights, classes: Sequence[str] | None) -> tuple[list[ClassMatch], str]:
    """Return the matched classes, or the reason why there are none."""
    count = weights.network.classes
    if not count:
        return [], "the weights have no heads"
    if classes is None:
        return [], "the names of the dataset's classes are not known"
    if weights.classes is None or len(weights.classes) != count:
        return [], f"the weights do not say which classes their {count} rows are"
    rows = match_classes(_foreground(classes), _foreground(weights.classes))
    if not any(row.sources for row in rows):
        return [], "no class of the dataset is one of the weights'"
    return rows, ""


def _doubts(wanted: list[str]) -> list[str]:
    doubts = []
    if BACKGROUND not in wanted:
        doubts.append(
            "the rows of a softmax go into heads of regions, which are sigmoids: a start, not the same function"
        )
    return doubts


def _foreground(classes: Sequence[str]) -> list[str]:
    return [name for name in classes if name != BACKGROUND]
