"""All scores by name. Each file has the formula of one, with its source; base.py says what a score is.

ccfv.py         consistency of classes between cases and variety of features, on wasserstein.py
logme.py  transrate.py  gbc.py  hscore.py      from moments.py: features of all points together
leep.py         LEEP, NCE and N-LEEP
topology.py     minimum spanning trees
zero_shot.py    Dice before any training
probe.py        Dice of a linear classifier
static.py       what all of them have to beat
"""

from stunet.errors import UsageError, closest
from stunet.ranking.scores import ccfv, gbc, hscore, leep, logme, probe, static, topology, transrate, zero_shot
from stunet.ranking.scores.base import FACTS, PREDICTIONS, Prepared, Score, Value

SCORES = {
    score.name: score
    for score in (
        Score("ccfv", "CC-FV as in the paper, Yang et al. 2023", ccfv.paper),
        Score("ccfv-official", "CC-FV as in the public code", ccfv.official),
        Score("ccfv-debiased", "CC-FV without the noise of few points", ccfv.debiased),
        Score("logme", "LogME, You et al. 2021", logme.logme),
        Score("transrate", "TransRate, Huang et al. 2022", transrate.transrate),
        Score("transrate-normalised", "TransRate of features of norm 1", transrate.normalised),
        Score("gbc", "GBC, spherical, Pandy et al. 2022", gbc.gbc),
        Score("gbc-diagonal", "GBC, diagonal", gbc.diagonal),
        Score("gbc-published", "GBC, spherical, as in the public code", gbc.published),
        Score("hscore", "H-score, regularised, Ibrahim et al. 2021", hscore.hscore),
        Score("leep", "LEEP, Nguyen et al. 2020", leep.leep, PREDICTIONS),
        Score("nce", "NCE, Tran et al. 2019", leep.nce, PREDICTIONS),
        Score("nleep", "N-LEEP, Li et al. 2021", leep.nleep, fixed="clusters"),
        Score("topology", "topology score, Tang et al. 2026", topology.topology, fuse=topology.fuse),
        Score(
            "topology-corrected",
            "its global term reversed",
            topology.topology,
            fuse=topology.fuse_corrected,
        ),
        Score("zero-shot", "Dice before training, classes matched", zero_shot.zero_shot, PREDICTIONS),
        Score("probe", "Dice of a linear probe on unseen cases", probe.probe, fixed="classifiers"),
        Score("static", "known results, size, amount of data", static.static, FACTS, static.fuse),
        Score("always-mae", "MAE first", static.always_mae, FACTS, static.fuse),
        Score("always-supervised", "supervised pre-training first", static.always_supervised, FACTS, static.fuse),
    )
}
DEFAULT = "ccfv"

__all__ = ["DEFAULT", "SCORES", "Prepared", "Score", "Value", "find"]


def find(name: str) -> Score:
    """Return a score by name.

    Raises:
        UsageError: There is no such score.
    """
    if name not in SCORES:
        raise UsageError(f"no score {name!r}{closest(name, list(SCORES))}", f"one of: {', '.join(SCORES)}")
    return SCORES[name]
