"""The feature bank: only files that are whole and made from the same count."""

from pathlib import Path

import numpy as np
import pytest

from stunet.ranking import bank
from stunet.ranking.bank import Bank, read_arrays, write_arrays

ARRAYS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4).T, "b": np.array([1, 2], np.int64)}


def test_arrays_come_back_as_they_were_if_they_were_made_from_the_same(tmp_path: Path) -> None:
    path = tmp_path / "new" / "case.safetensors"
    write_arrays(path, ARRAYS, {"seed": 1, "shape": (1, 2)})
    found = read_arrays(path, {"seed": 1, "shape": [1, 2]})
    assert found is not None
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert read_arrays(path, {"seed": 2, "shape": [1, 2]}) is None
    assert read_arrays(tmp_path / "none.safetensors", {}) is None


def test_a_damaged_file_and_one_of_another_version_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "case.safetensors"
    write_arrays(path, ARRAYS, {})
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]):
        path.write_bytes(damaged)
        assert read_arrays(path, {}) is None
    path.write_bytes(whole)
    assert read_arrays(path, {}) is not None
    monkeypatch.setattr(bank, "VERSION", bank.VERSION + 1)
    assert read_arrays(path, {}) is None


def test_candidates_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    one, other = (Bank(tmp_path).of("a/b c", {"weights": text}) for text in "xy")
    assert one != other
    assert one.parent == other.parent == tmp_path
    assert len(Bank(tmp_path).of("x" * 300, {}).name) < 80
