"""How often each case of a union of datasets is drawn, and how often training sees each class.

A source of n cases is drawn in proportion to weight * n^(1 - alpha): with alpha = 0 all cases are equally likely, with
alpha = 1 all sources are; MultiTalent used 0.5 (Ulrich et al. 2023, arXiv:2303.14444). Within a source, all cases are
equally likely. trainer.py passes these probabilities to nnU-Net's loader.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from stunet.labels.annotations import Annotations

FEW = 5.0  # samples per epoch; a class with fewer will hardly be learned


def case_probabilities(annotations: Annotations, cases: Sequence[str]) -> np.ndarray:
    """Return the probability of each of these cases; they sum to 1."""
    sources = [annotations.cases[case].source for case in cases]
    sizes = Counter(sources)
    # Per case: a source's n^(1 - alpha) is shared by its n cases.
    shares = {name: annotations.sources[name].weight * n**-annotations.alpha for name, n in sizes.items()}
    drawn = np.array([shares[name] for name in sources])
    return drawn / drawn.sum()


def expected_samples(annotations: Annotations, cases: Sequence[str], samples: int) -> dict[str, float]:
    """Return, per label, the expected number of samples whose case annotates it without resolving it into leaves."""
    found = dict.fromkeys(annotations.values, 0.0)
    del found["background"]
    for case, probability in zip(cases, case_probabilities(annotations, cases), strict=True):
        for label in annotations.cases[case].labels:
            found[label] += samples * float(probability)
    return found
