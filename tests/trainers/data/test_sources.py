"""Several datasets in one pre-training: their cases, how often they are drawn, and the record of the run."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from stunet.errors import DataError
from stunet.files import read_json
from stunet.folds import Fold
from stunet.plans.files import plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.trainers.data.sources import (
    acquired_spacings,
    channel_warnings,
    frequencies,
    record_of,
    sources_of,
    split,
    union,
)
from tests.phantom_copy import change

OTHER = "Dataset051_Other"
ALL = [f"phantom_{n:03d}" for n in range(6)]


@pytest.fixture
def two(pre: Path) -> Plan:
    """The phantom's plan, which also draws from a copy with four of its cases."""
    copy = pre.with_name(OTHER)
    shutil.copytree(pre, copy)
    for path in copy.glob("STUNetPlans_3d_fullres/phantom_00[45]*"):
        path.unlink()
    change(copy / "STUNetPlans_T.json", dataset_name=OTHER)
    return read_plan(plan_path(pre.name)).with_ours(pretext="rot", datasets=[OTHER])


def test_one_dataset_keeps_the_names_of_its_cases(pre: Path) -> None:
    sources = sources_of(read_plan(plan_path(pre.name)), "3d_fullres")
    train, held_out = split(sources, "3d_fullres", 0, ["phantom_002"])
    assert sorted([*train, *held_out]) == [case for case in ALL if case != "phantom_002"]
    assert len(held_out) == 1
    assert frequencies(sources, train, 0.5) is None
    record = record_of(sources, "3d_fullres", "all", Fold(tuple(train), tuple(held_out)))
    assert record["made_from"].keys() == {*train, *held_out}


def test_subjects_of_somebody_else_do_not_matter_and_those_of_cases_must_be_names(pre: Path) -> None:
    path, sources = pre / "dataset.json", sources_of(read_plan(plan_path(pre.name)), "3d_fullres")
    for given in (200, None, ["a"], {"count": 200}):
        change(path, subjects=given)
        assert len(split(sources, "3d_fullres", 0, [])[1]) == 1
    change(path, subjects={case: int(case[-1]) // 3 for case in ALL})  # numbers are as good as names
    assert len(split(sources, "3d_fullres", 0, [])[1]) == 3
    change(path, subjects={ALL[1]: ["a"]})
    with pytest.raises(DataError, match=r"dataset.json': subjects.phantom_001 is \['a'\]") as caught:
        split(sources, "3d_fullres", 0, [])
    assert caught.value.hint == '"subjects": {"phantom_001": "NAME"}'


def test_cases_of_several_are_held_out_drawn_and_recorded_per_dataset(two: Plan, pre: Path) -> None:
    sources = sources_of(two, "3d_fullres")
    change(pre.with_name(OTHER) / "dataset.json", subjects={case: f"other-{case}" for case in ALL})
    train, held_out = split(sources, "3d_fullres", 0, [f"{OTHER}.phantom_000"])
    assert sorted(case.split(".")[0] for case in held_out) == [OTHER, pre.name]
    assert len(train) == 5 + 2
    weights = frequencies(sources, train, 0.5)
    assert weights is not None
    drawn = {name: weights[[case.startswith(name) for case in train]].sum() for name in (pre.name, OTHER)}
    assert drawn[pre.name] / drawn[OTHER] == pytest.approx((5 / 2) ** 0.5)
    assert np.allclose(frequencies(sources, train, 0.0), 1)
    record = record_of(sources, "3d_fullres", "all", Fold(tuple(train), tuple(held_out)))
    assert record["datasets"] == [pre.name, OTHER]
    assert record["train"] == train
    assert record["made_from"].keys() == {*train, *held_out}


def test_a_subject_of_several_datasets_is_on_one_side_in_all_of_them(two: Plan, pre: Path) -> None:
    sources = sources_of(two, "3d_fullres")
    for seed in range(8):
        train, held_out = split(sources, "3d_fullres", seed, [])
        sides = [{case.split(".")[1] for case in cases} for cases in (train, held_out)]
        assert not sides[0] & sides[1]
        assert {case.split(".")[0] for case in held_out} == {OTHER, pre.name}
    change(pre.with_name(OTHER) / "dataset.json", subjects=dict.fromkeys(ALL, "one"))
    with pytest.raises(DataError, match=f"{OTHER} has 4 preprocessed scans of 1 subject") as caught:
        split(sources, "3d_fullres", 0, [])
    assert f"nnUNet_raw/{OTHER}/dataset.json" in caught.value.hint
    change(pre.with_name(OTHER) / "dataset.json", subjects=None)
    assert len(split(sources, "3d_fullres", 0, [])[1]) == 2


def test_channels_of_other_names_are_warned_of(two: Plan, pre: Path) -> None:
    sources = sources_of(two, "3d_fullres")
    assert channel_warnings(sources) == channel_warnings(sources[:1]) == []
    change(pre.with_name(OTHER) / "dataset.json", channel_names={"0": "PET"})
    (said,) = channel_warnings(sources)
    assert said.startswith(f"the channels of {OTHER} are PET, those of {pre.name} CT")


def test_spacings_are_those_of_all_scans_in_the_order_of_the_patches(two: Plan, pre: Path) -> None:
    count = len(read_json(pre / "dataset_fingerprint.json")["spacings"])
    change(pre.with_name(OTHER) / "dataset_fingerprint.json", spacings=[[5.0, 1.0, 0.9]] * count)
    change(pre.with_name(OTHER) / "STUNetPlans_T.json", transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0])
    turned = two.with_values(transpose_forward=[2, 0, 1], transpose_backward=[1, 2, 0])
    sources = sources_of(turned, "3d_fullres")
    assert acquired_spacings(sources, 3)[count:] == [[0.9, 5.0, 1.0]] * count
    assert acquired_spacings(sources, 2)[-1] == [5.0, 1.0]


def test_cases_are_loaded_from_their_own_folders_and_named_when_damaged(two: Plan, pre: Path) -> None:
    names = [f"{pre.name}.phantom_001", f"{OTHER}.phantom_001"]
    cases = union(sources_of(two, "3d_fullres"), "3d_fullres", names)
    assert cases.identifiers == names
    images = [cases.load_case(name)[0][:] for name in names]
    assert np.array_equal(*images)
    file = pre.with_name(OTHER) / "STUNetPlans_3d_fullres" / "phantom_001.b2nd"
    file.write_bytes(file.read_bytes()[:-200])
    cases = union(sources_of(two, "3d_fullres"), "3d_fullres", names)
    cases.check(names[0])
    with pytest.raises(DataError, match=f"phantom_001.*{OTHER}"):
        cases.check(names[1])
    with pytest.raises(DataError, match="phantom_001"), cases.reading(names[1]):
        raise ValueError("torn")
    assert read_json(pre / "STUNetPlans_T.json")["dataset_name"] == pre.name
