"""Merge many datasets, each of which annotates some classes, into one.

    recipe.py    the content of merge.yaml
    space.py     which label of the union each value of a source is
    scan.py      what the files of a case hold, read once
    findings.py  what is wrong with the sources when taken together
    splits.py    the folds of the union
    check.py     all of the above, before anything is written
    provenance.py  what a union was made from, and whether it is there already
    build.py     the union as a raw dataset of nnU-Net with annotations.json (labels/annotations.py)
    pseudo.py    which missing classes of a dataset a teacher can annotate
    completing.py  the dataset with what the teacher annotated

Read them in this order.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A problem that a check found: what and where, and the next step. If it is fatal, nothing is built."""

    message: str
    hint: str
    fatal: bool = True
