"""Nothing in the files of a preprocessed case is executed; otherwise they are read as nnU-Net reads them."""

import os
import pickle
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import (
    infer_dataset_class,
    nnUNetDatasetBlosc2,
    nnUNetDatasetNumpy,
)

from stunet.errors import DataError
from stunet.preprocessing.stored import StoredCases
from stunet.weights import pickles
from stunet.weights.pickles import load_properties
from tests.loops import for_each

PROPERTIES = {
    "spacing": [np.float64(1.5), 1.0, 1],
    "sitk_stuff": {"origin": (0.0, 1.0), "direction": np.eye(3)},
    "bbox_used_for_cropping": [[0, np.int64(3)], (1, 2)],
    "class_locations": {
        1: np.zeros((2, 4), np.int16),
        (1, 2): np.zeros((0, 4), np.int64),
        3: np.asfortranarray(np.arange(12, dtype=np.int32).reshape(3, 4) % 4),
    },
}


def cases_in(folder: Path) -> StoredCases:
    return StoredCases(infer_dataset_class(str(folder))(str(folder)))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "Dataset007_Toy" / "data"
    path.mkdir(parents=True)
    image, labels = np.random.default_rng(0).random((2, 1, 4, 5, 6), np.float32)
    blocks = {"chunks": (1, 4, 5, 6), "blocks": (1, 4, 5, 6)}
    nnUNetDatasetBlosc2.save_case(image, labels.astype(np.int8), PROPERTIES, str(path / "case"), **blocks)
    return path


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return type(other) is np.ndarray and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@for_each("protocol", [3, 4, 5])
def test_properties_are_what_pickle_makes_of_them(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "case.pkl"
    path.write_bytes(pickle.dumps(PROPERTIES, protocol))
    for _ in range(2):  # counted, and not counted again
        found = load_properties(path)
        assert same(PROPERTIES, found)
    assert found["class_locations"][1].flags.writeable


def test_cases_are_what_nnunet_reads(folder: Path) -> None:
    read, expected = cases_in(folder), nnUNetDatasetBlosc2(str(folder))
    assert read.identifiers == ["case"]
    for ours, theirs in zip(read.load_case("case")[:2], expected.load_case("case")[:2], strict=True):
        assert np.array_equal(ours[:], theirs[:])
    assert same(PROPERTIES, read.load_case("case")[3])


def test_cases_of_older_versions_are_read(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    image = np.ones((1, 2, 3, 4), np.float32)
    nnUNetDatasetNumpy.save_case(image, image.astype(np.int8), PROPERTIES, str(folder / "case"))
    data, labels, previous, properties = cases_in(folder).load_case("case")
    assert np.array_equal(data, image)
    assert labels.dtype == np.int8
    assert previous is None
    assert same(PROPERTIES, properties)


@for_each("known", [False, True])
def test_properties_that_ask_for_code_are_refused_and_nothing_is_executed(folder: Path, known: bool) -> None:
    cases = cases_in(folder)
    if known:
        cases.load_case("case")
    (folder / "case.pkl").write_bytes(pickle.dumps({**PROPERTIES, "note": Evil()}))
    with pytest.raises(DataError, match=r"case.pkl' wants to import posix.system; .* nothing was executed") as caught:
        cases.load_case("case")
    assert "stunet_plan_and_preprocess -d 7" in caught.value.hint
    with pytest.raises(pickle.UnpicklingError, match="wants to import"):  # nnU-Net's own class, in this process
        nnUNetDatasetBlosc2(str(folder)).load_case("case")
    assert not Path("executed").exists()


@for_each(
    ("content", "what"),
    [
        (b"", "exhausted"),
        (pickle.dumps(PROPERTIES)[:-20], "ValueError"),
        (pickle.dumps({"a": np.array([{}])}), "not a number"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "memo with gaps"),
        (pickle.dumps(PROPERTIES).replace(b"K\x02K\x04\x86", b"K\x02K\x05\x86"), "ValueError"),
    ],
    fresh="folder",
)
def test_damaged_properties_are_refused(folder: Path, content: bytes, what: str) -> None:
    (folder / "case.pkl").write_bytes(content)
    with pytest.raises(pickle.UnpicklingError, match=rf"case.pkl' .*{what}"):
        load_properties(folder / "case.pkl")


def test_lists_in_lists_in_lists_are_refused_at_once(folder: Path) -> None:
    value: Any = []
    for _ in range(60):
        value = [value, value]
    (folder / "case.pkl").write_bytes(pickle.dumps({"spacing": value}))
    with pytest.raises(pickle.UnpicklingError, match=r"makes more than \d+ values"):
        load_properties(folder / "case.pkl")


def _lazy(path: str) -> None:
    (blosc2.asarray(np.ones((1, 2, 3, 4)), urlpath="operand.b2nd", mode="w") + 1).save(urlpath=path, mode="w")


def _function(inputs: Any, output: Any, offset: Any) -> None:
    Path("executed").touch()
    output[:] = 1


def _user_function(path: str) -> None:
    array = blosc2.asarray(np.ones((1, 2, 3, 4)), urlpath="operand.b2nd", mode="w")
    blosc2.lazyudf(_function, (array,), dtype=np.float64).save(urlpath=path, mode="w")


def _objects(path: str) -> None:
    blosc2.ObjectArray(urlpath=path, mode="w").append({"a": 1})


@for_each("write", [_lazy, _user_function, _objects], fresh="folder")
@for_each("name", ["case.b2nd", "case_seg.b2nd"], fresh="folder")
def test_arrays_that_are_recipes_are_refused_and_nothing_is_executed(folder: Path, write: Any, name: str) -> None:
    (folder / name).unlink()
    write(str(folder / name))
    with pytest.raises(DataError, match=r"case 'case' in .* in place of a plain array; nothing was executed"):
        cases_in(folder).load_case("case")
    assert not Path("executed").exists()


def test_the_same_file_is_counted_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(pickles, "count", calls.append)
    monkeypatch.setattr(pickles, "_counted", set())
    for _ in range(3):
        load_properties(folder / "case.pkl")
    assert len(calls) == 1
