"""Hold out subjects of unlabelled datasets, to measure how well a pretext is solved on images never seen."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError

SHARE = 0.05  # of the subjects; nnssl holds out 1 %, of a hundred times as many
MOST = 50


def subjects_of(description: Mapping[str, Any], cases: Collection[str], path: Path) -> dict[str, str]:
    """Return the subject of each of these cases; a case whose subject is not known is a subject of its own.

    In a labelled dataset `subjects` may be a key of somebody else: only the entries of these cases count.

    Args:
        description: The dataset.json.
        cases: Names.
        path: Of the file, for messages.

    Raises:
        DataError: The subject of a case is neither a text nor a number.
    """
    given = description.get("subjects")
    known = {case: given.get(case, case) if isinstance(given, Mapping) else case for case in sorted(cases)}
    for case, subject in known.items():
        if type(subject) not in (str, int) or subject == "":
            what = f"{str(path)!r}: subjects.{case} is {subject!r}, which names no subject"
            raise DataError(what, f'"subjects": {{"{case}": "NAME"}}')
    return {case: str(subject) for case, subject in known.items()}


def held_out_subjects(datasets: Mapping[str, Mapping[str, str]], seed: int, hint: str) -> set[str]:
    """Return the subjects that the seed holds out, in each dataset about the same share.

    A subject of several datasets is the same in all of them, and counts in all.

    Args:
        datasets: Subject by case, by full name of the dataset.
        seed: Chooses.
        hint: How subjects are corrected, for messages.

    Raises:
        DataError: A dataset has no case or a single subject, or is left without one to train on.
    """
    chosen: set[str] = set()
    everyone = {dataset: sorted(set(of.values())) for dataset, of in datasets.items()}
    for dataset, subjects in everyone.items():
        if len(subjects) < 2:
            scans = len(datasets[dataset])
            what = f"{dataset} has {scans} preprocessed scans of {len(subjects)} subject(s): one has to be held out"
            raise DataError(what, f"add scans of other subjects, or {hint}")
        count = min(MOST, max(1, round(SHARE * len(subjects))))
        order = np.random.default_rng(seed).permutation(subjects).tolist()
        lacking = max(0, count - len(chosen & set(subjects)))
        chosen |= set([subject for subject in order if subject not in chosen][:lacking])
    for dataset, subjects in everyone.items():
        if chosen >= set(subjects):
            what = f"all subjects of {dataset} are held out, as they are of other datasets, too"
            raise DataError(what, f"another seed, fewer datasets, or {hint}")
    return chosen
