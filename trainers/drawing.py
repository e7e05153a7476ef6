"""How often is each case of a union of datasets drawn, and how often does training see each of its classes?

A source of n cases is drawn in proportion to weight * n^(1 - alpha): with alpha 0 every case is as likely as every
other, with 1 every source, and 0.5 is what MultiTalent took (Ulrich et al. 2023, arXiv:2303.14444). Within a source all
cases are alike. partial.py gives nnU-Net's loader these probabilities.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from stunet.annotations import Annotations

FEW = 5.0  # samples per epoch; with fewer a class will hardly be learned


def probabilities(annotations: Annotations, cases: Sequence[str]) -> np.ndarray:
    """The probability of each of these cases; they sum to 1."""
    sources = [annotations.cases[case].source for case in cases]
    sizes = Counter(sources)
    shares = {name: annotations.sources[name].weight * n**-annotations.alpha for name, n in sizes.items()}
    drawn = np.array([shares[name] for name in sources])
    return drawn / drawn.sum()


def expected(annotations: Annotations, cases: Sequence[str], samples: int) -> dict[str, float]:
    """How many of so many samples are of cases that annotate each label, its leaves not being told apart."""
    found = dict.fromkeys(annotations.values, 0.0)
    del found["background"]
    for case, probability in zip(cases, probabilities(annotations, cases), strict=True):
        for label in annotations.cases[case].labels:
            found[label] += samples * float(probability)
    return found
