"""Which cases a ranking looks at: those that span the dataset, and some that have rare classes."""

from pathlib import Path

import nibabel
import numpy as np

from stunet.datasets import RawCase
from stunet.ranking.cases import choose, cover


def write(folder: Path, name: str, shape: tuple[int, int, int], spacing: float) -> RawCase:
    path = folder / f"{name}_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.diag([spacing] * 3 + [1])), path)
    return RawCase(name, (path,), folder / f"{name}.nii.gz")


def test_few_cases_span_sizes_and_spacings_whatever_their_order(tmp_path: Path) -> None:
    alike = [write(tmp_path, f"alike{n}", (9, 9, 9), 1.0) for n in range(12)]
    large = write(tmp_path, "large", (40, 9, 9), 1.0)
    coarse = write(tmp_path, "coarse", (9, 9, 9), 4.0)
    cases = [*alike, large, coarse]
    order = choose(cases, "SimpleITKIO", 3)
    assert {case.name for case in order[:3]} >= {"large", "coarse"}
    assert sorted(case.name for case in order) == sorted(case.name for case in cases)
    assert [case.name for case in choose(cases[::-1], "NibabelIO", 3)] == [case.name for case in order]


def test_a_rare_class_replaces_cases_that_no_class_needs() -> None:
    cases = [RawCase(f"c{n:02}", (), None) for n in range(30)]
    having = {case.name: {1} | ({2} if n in (3, 15, 20, 21, 29) else set()) for n, case in enumerate(cases)}
    asked: list[str] = []

    def classes_in(case: RawCase) -> set[int]:
        asked.append(case.name)
        return having[case.name]

    chosen = cover(cases, 10, (1, 2), classes_in)
    assert len(chosen) == len({case.name for case in chosen}) == 10
    assert sum(2 in having[case.name] for case in chosen) == 5
    assert len(asked) == 30
    asked.clear()
    assert cover(cases, 10, (1,), classes_in) == cases[:10]
    assert len(asked) == 10  # nothing else is read


def test_a_class_that_is_nowhere_changes_nothing() -> None:
    cases = [RawCase(f"c{n}", (), None) for n in range(8)]
    assert cover(cases, 4, (1, 2), lambda case: {1}) == cases[:4]
