"""Draw from several preprocessed datasets in a pre-training, each in a folder of its own and made by its own plan.

A plan names further datasets; their images are preprocessed like its own (preprocessing/like.py). A case is then called
DATASET.CASE. A dataset of n scans is drawn in proportion to n^(1 - alpha), as in a merged dataset (partial/drawing.py).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stunet.folds import Fold
from stunet.kinds import FINGERPRINT, read, read_dataset_json
from stunet.plans.plan import Plan
from stunet.preprocessing.checks import FINGERPRINT as FILE
from stunet.preprocessing.checks import repair_commands
from stunet.preprocessing.dataset import preprocessed_cases
from stunet.preprocessing.like import channel_warning, find_like
from stunet.provenance import training_record
from stunet.trainers.data.held_out import held_out_subjects, subjects_of
from stunet.workspace import preprocessed_dataset


@dataclass(frozen=True)
class Source:
    """A dataset that is drawn from.

    Attributes:
        dataset: Full name.
        plan: That its scans were preprocessed with.
        prefix: What the names of its cases begin with: "" if it is the only one.
    """

    dataset: str
    plan: Plan
    prefix: str

    def folder(self, configuration: str) -> Path:
        """Return the folder with its preprocessed scans."""
        return preprocessed_dataset(self.dataset) / self.plan.configuration(configuration).data_identifier


def sources_of(plan: Plan, configuration: str) -> list[Source]:
    """Return the datasets that a plan draws from, its own first.

    Raises:
        DataError: A dataset is not preprocessed like the plan's own.
    """
    if not plan.more_datasets:
        return [Source(plan.dataset_name, plan, "")]
    plans = {plan.dataset_name: plan} | {name: find_like(name, plan, configuration) for name in plan.more_datasets}
    return [Source(name, own, f"{name}.") for name, own in plans.items()]


def acquired_spacings(sources: Sequence[Source], ndim: int) -> list[list[float]]:
    """Return the spacings of all scans before they were resampled, of the last axes, in mm."""
    found = []
    for source in sources:
        fingerprint = read(preprocessed_dataset(source.dataset) / FILE, FINGERPRINT)
        order = source.plan.transpose_forward[-ndim:]
        found += [[spacing[axis] for axis in order] for spacing in fingerprint["spacings"]]
    return found


def channel_warnings(sources: Sequence[Source]) -> list[str]:
    """Return what is doubtful about the channels of several datasets, which are drawn as if they were the same.

    Raises:
        DataError: The channels of one have another order than those of the first.
    """
    named = [
        (source.dataset, read_dataset_json(preprocessed_dataset(source.dataset) / "dataset.json")) for source in sources
    ]
    warnings = (channel_warning(*other, *named[0]) for other in named[1:])
    return [warning for warning in warnings if warning]


def split(
    sources: Sequence[Source], configuration: str, seed: int, left_out: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return the cases to train on, and those of the subjects that the seed holds out, in all datasets.

    Raises:
        DataError: A dataset has a single subject.
    """
    of: dict[str, dict[str, str]] = {}
    for source in sources:
        cases = preprocessed_cases(source.dataset, source.plan, configuration)
        kept = [case for case in cases if f"{source.prefix}{case}" not in left_out]
        path = preprocessed_dataset(source.dataset) / "dataset.json"
        of[source.dataset] = subjects_of(read_dataset_json(path), kept, path)
    commands = [repair_commands(source.dataset, source.plan, configuration)[1] for source in sources]
    files = " and ".join(f"nnUNet_raw/{source.dataset}/dataset.json" for source in sources)
    chosen = held_out_subjects(of, seed, f"correct `subjects` in {files}, then {'; '.join(commands)}")
    cases_of = [(source.prefix, case, subject) for source in sources for case, subject in of[source.dataset].items()]
    train = [f"{prefix}{case}" for prefix, case, subject in cases_of if subject not in chosen]
    return train, [f"{prefix}{case}" for prefix, case, subject in cases_of if subject in chosen]


def frequencies(sources: Sequence[Source], cases: Sequence[str], alpha: float) -> np.ndarray | None:
    """Return how often each of these cases is drawn relative to the others; None: all equally often."""
    if len(sources) == 1:
        return None
    of = [next(source.dataset for source in sources if case.startswith(source.prefix)) for case in cases]
    counts = Counter(of)
    return np.array([counts[dataset] ** -alpha for dataset in of])


def record_of(sources: Sequence[Source], configuration: str, fold: int | str, cases: Fold) -> dict[str, Any]:
    """Return the record of a run (provenance.py), with the cases of all datasets under their names with prefixes."""
    records = []
    for source in sources:
        parts = [
            tuple(name.removeprefix(source.prefix) for name in names if name.startswith(source.prefix))
            for names in (cases.train, cases.val)
        ]
        records.append(training_record(source.dataset, source.plan, configuration, fold, Fold(*parts)))
    if len(sources) == 1:
        return records[0]
    made_from = {
        f"{source.prefix}{name}": files
        for source, record in zip(sources, records, strict=True)
        for name, files in record["made_from"].items()
    }
    names = {"train": list(cases.train), "val": list(cases.val), "datasets": [source.dataset for source in sources]}
    return {**records[0], **names, "made_from": made_from}


class UnionOfCases:
    """The cases of several datasets, with what is asked of StoredCases (preprocessing/stored.py).

    Args:
        parts: StoredCases by the prefix of their cases' names.
        names: Of the cases, with prefixes.
    """

    def __init__(self, parts: Mapping[str, Any], names: Sequence[str]) -> None:
        self.parts, self.identifiers = parts, list(names)

    def load_case(self, case: str) -> Any:
        """Return what StoredCases.load_case() does."""
        part, name = self._find(case)
        return part.load_case(name)

    def check(self, case: str) -> None:
        """Read every voxel of a case."""
        part, name = self._find(case)
        part.check(name)

    @contextmanager
    def reading(self, case: str) -> Iterator[None]:
        """Name the case in any error that the block raises."""
        part, name = self._find(case)
        with part.reading(name):
            yield

    def _find(self, case: str) -> tuple[Any, str]:
        prefix = next(prefix for prefix in self.parts if case.startswith(prefix))
        return self.parts[prefix], case.removeprefix(prefix)


def union(sources: Sequence[Source], configuration: str, names: Sequence[str]) -> UnionOfCases:
    """Return the cases of these names, with prefixes."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    from stunet.preprocessing.stored import StoredCases

    parts = {}
    for source in sources:
        folder = str(source.folder(configuration))
        own = [name.removeprefix(source.prefix) for name in names if name.startswith(source.prefix)]
        parts[source.prefix] = StoredCases(infer_dataset_class(folder)(folder, own))
    return UnionOfCases(parts, names)
