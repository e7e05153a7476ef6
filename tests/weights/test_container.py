"""Damage and hostile structures are found before anything in a file of weights is used."""

import pickle
import random
import time
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stunet.errors import WeightsError
from stunet.weights import container, opcodes
from stunet.weights.checkpoints import load_checkpoint, load_safetensors, save_checkpoint, save_weights
from stunet.weights.reading import read_weights
from tests.loops import for_each

TENSORS = {"a": torch.arange(600.0), "b": torch.ones(3, 5)}


def write_checkpoint(path: Path) -> None:
    save_checkpoint({"network_weights": TENSORS, "epoch": 3}, path)


def write_safetensors(path: Path) -> None:
    save_weights(path, TENSORS, {"entry": "tiny", "configuration": "3d_fullres"})


def content(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    found = load_checkpoint(path)
    return found.pop("network_weights"), found


def same(path: Path, expected: tuple[dict[str, torch.Tensor], Any]) -> bool:
    tensors, more = content(path)
    equal = all(torch.equal(tensors[name], value) for name, value in expected[0].items())
    return equal and list(tensors) == list(expected[0]) and more == expected[1]


@for_each(("name", "write"), [("c.pth", write_checkpoint), ("c.safetensors", write_safetensors)])
def test_a_flipped_bit_is_an_error_and_never_another_number(
    tmp_path: Path, name: str, write: Callable[[Path], None]
) -> None:
    path, flipped = tmp_path / name, tmp_path / f"flipped-{name}"
    write(path)
    raw, expected = path.read_bytes(), content(path)
    assert same(path, expected)
    generator, refused = random.Random(0), 0
    for number in range(100):
        damaged, place = bytearray(raw), generator.randrange(len(raw))
        damaged[place] ^= 1 << generator.randrange(8)
        flipped = tmp_path / f"{number}-{name}"
        flipped.write_bytes(damaged)
        try:
            assert same(flipped, expected), place
        except WeightsError:
            refused += 1
            with pytest.raises(WeightsError):  # the second time, too
                content(flipped)
    assert refused > 30


def test_a_file_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "c.pth")
    calls = []
    monkeypatch.setattr(container, "_check_members", lambda *args: calls.append(args))
    for _ in range(3):
        load_checkpoint(tmp_path / "c.pth")
    assert len(calls) == 1
    write_checkpoint(tmp_path / "c.pth")
    load_checkpoint(tmp_path / "c.pth")
    assert len(calls) == 2


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        write_checkpoint(tmp_path / "c.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert load_checkpoint(tmp_path / "c.pth")["epoch"] == 3
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "c.safetensors")
    assert torch.equal(load_safetensors(tmp_path / "c.safetensors")[0]["a"], TENSORS["a"])


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


def filled_last(levels: int) -> list:
    """The same, but the outer lists are filled while the inner ones are empty yet."""
    lists: list[list] = [[] for _ in range(levels)]
    for outer, inner in pairwise(lists):
        outer += [inner, inner]
    return lists


@for_each("value", [nested(60), {"key": tuple(nested(40))}, filled_last(60)])
@for_each("legacy", [False, True])
def test_lists_in_lists_in_lists_do_not_hang_the_reader(tmp_path: Path, value: Any, legacy: bool) -> None:
    torch.save({"network_weights": {}, "x": value}, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    begin = time.perf_counter()
    with pytest.raises(WeightsError, match=r"c.pth' makes more than \d+ values; it was not read"):
        load_checkpoint(tmp_path / "c.pth")
    assert time.perf_counter() - begin < 5  # on a busy machine


@for_each(
    ("raw", "what"),
    [
        (b"(" * 10 + b"N" + b"t" * 10 + b".", None),
        (b"(" * 200 + b"N" + b"t" * 200 + b".", "values in each other"),
        (b"]q\x00h\x00a.", "holds itself"),
        (b"\x80\x04]\x94]\x94h\x00h\x00ee.", "APPENDS without"),
        (b"a.", "APPEND without"),
        (b"h\x05.", "BINGET without"),
        (b"(.", "STOP without"),
        (b"Nr\xff\xff\xff\x3f.", "memo with gaps"),
        (b"]", "exhausted"),
    ],
)
def test_what_a_pickle_makes_is_counted(raw: bytes, what: str | None) -> None:
    if what is None:
        opcodes.count(raw)
        return
    with pytest.raises((opcodes.Excessive, ValueError), match=what):
        opcodes.count(raw)


def test_a_long_log_of_numpy_scalars_is_not_too_much_and_lists_in_lists_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcodes, "MAX_VALUES", 1000)  # 25 values for each scalar
    opcodes.count(pickle.dumps({"dice": [[np.float64(i) for i in range(10)] for _ in range(50)]}, protocol=2))
    nested: list = []
    for _ in range(12):
        nested = [nested, nested]
    with pytest.raises(opcodes.Excessive, match=r"more than \d+ values"):
        opcodes.count(pickle.dumps(nested, protocol=2))


def test_values_that_are_shared_are_no_harm(tmp_path: Path) -> None:
    shared = list(range(100))
    value = {"a": [shared] * 50, "b": shared}
    save_checkpoint({"network_weights": {}, "x": value}, tmp_path / "c.pth")
    assert load_checkpoint(tmp_path / "c.pth")["x"] == value


def test_a_member_whose_header_is_damaged_is_damage(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c.pth")
    with zipfile.ZipFile(tmp_path / "c.pth") as archive:
        place = archive.getinfo("c/data.pkl" if "c/data.pkl" in archive.namelist() else archive.namelist()[0])
    raw = bytearray((tmp_path / "c.pth").read_bytes())
    raw[place.header_offset] ^= 1
    (tmp_path / "d.pth").write_bytes(raw)
    with pytest.raises(WeightsError, match="is damaged"):
        load_checkpoint(tmp_path / "d.pth")


@for_each("place", ["zip", "content", "keys"])  # of a legacy file, the fourth and the fifth pickle
def test_a_small_pickle_does_not_get_gigabytes(tmp_path: Path, place: str) -> None:
    huge = b"\x80\x02c__builtin__\nbytearray\n\x8a\x08" + (6 << 30).to_bytes(8, "little") + b"\x85R."
    if place != "zip":
        torch.save({}, tmp_path / "empty.pth", _use_new_zipfile_serialization=False)
        start = (tmp_path / "empty.pth").read_bytes()
        (tmp_path / "bad.pth").write_bytes(
            start[: start.rindex(b"\x80\x02" + {"content": b"}", "keys": b"]"}[place])] + huge
        )
    else:
        with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
            archive.writestr("x/data.pkl", huge)
            archive.writestr("x/version", "3\n")
    with pytest.raises(WeightsError, match="asks for a bytearray, which no weights have; it was not read"):
        read_weights(tmp_path / "bad.pth")


def test_what_torch_says_of_a_damaged_pickle_comes_without_its_advice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02\xff.")
        archive.writestr("x/version", "3\n")
    with pytest.raises(WeightsError, match="is damaged: ") as refused:
        read_weights(tmp_path / "bad.pth")
    assert "PyTorch" not in refused.value.message
    assert "Weights only" not in refused.value.message
