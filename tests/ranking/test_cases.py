"""Which cases a ranking looks at: those that span the dataset, and some that have rare classes."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from stunet.datasets import RawCase
from stunet.labels.annotations import AnnotatedCase, Annotations, CaseSource
from stunet.ranking.bank import Bank
from stunet.ranking.cases import Target, choose, cover


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


def test_an_image_that_cannot_be_read_stops_no_choice(tmp_path: Path) -> None:
    cases = [write(tmp_path, f"c{n}", (9, 9, 9), 1.0) for n in range(3)]
    cases[1].images[0].write_bytes(b"broken")
    assert {case.name for case in choose(cases, "SimpleITKIO", 2)} == {"c0", "c1", "c2"}


def test_points_are_drawn_again_if_values_mean_other_classes_and_a_full_disk_is_no_bad_case(tmp_path: Path) -> None:
    case = write(tmp_path, "c", (9, 9, 9), 1.0)
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[2:4], labels[5:7] = 1, 2
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), case.needed_label)
    description = {"labels": {"background": 0, "a": 1, "b": 2}, "channel_names": {"1": "y", "0": "x"}}
    found = []
    ab = ("a", "b")
    for numbers in (None, {"a": 2, "b": 1}):
        annotations = Annotations(ab, {}, {"s": CaseSource(ab)}, {"c": AnnotatedCase("s", ab)}, numbers=numbers)
        target = Target("SimpleITKIO", description, annotations, number=9)
        found.append(target.draw(case, Bank(tmp_path / "bank")))
    one, other = ({tuple(v) for v in drawn.voxels[drawn.labels == 1].tolist()} for drawn in found)
    assert not one & other
    assert target.channels == ("x", "y")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|exists"):
        target.draw(case, Bank(tmp_path / "file"))
