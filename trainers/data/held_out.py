"""Hold out subjects of an unlabelled dataset, to measure how well a pretext is solved on images never seen."""

from collections.abc import Mapping, Sequence

import numpy as np

from stunet.errors import DataError

SHARE = 0.05  # of the subjects; nnssl holds out 1 %, of a hundred times as many
MOST = 50


def hold_out(cases: Sequence[str], subjects: Mapping[str, str], seed: int, dataset: str) -> tuple[list[str], list[str]]:
    """Return the cases to train on, and those of the subjects that the seed holds out; all of a subject on one side.

    Args:
        cases: Names.
        subjects: Of which subject each case is; one that is missing is a subject of its own.
        seed: Chooses.
        dataset: Full name, for messages.

    Raises:
        DataError: There is no case, or a single subject.
    """
    of = {case: subjects.get(case, case) for case in sorted(cases)}
    everyone = sorted(set(of.values()))
    if len(everyone) < 2:
        what = f"{dataset} has {len(of)} preprocessed scans of {len(everyone)} subject(s): one has to be held out"
        raise DataError(what, "add scans of other subjects, or correct `subjects` in dataset.json")
    count = min(MOST, max(1, round(SHARE * len(everyone))))
    chosen = set(np.random.default_rng(seed).permutation(everyone)[:count].tolist())
    return [case for case in of if of[case] not in chosen], [case for case in of if of[case] in chosen]
