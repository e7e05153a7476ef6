"""Preprocessed cases that are damaged are named, with what makes them again, whoever reads them."""

import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from stunet.errors import DataError
from stunet.preprocessing.stored import StoredCases
from stunet.trainers.data.batches import SeededBatches
from stunet.trainers.data.loader import SampleLoader
from tests.loops import for_each

SHAPE = (12, 13, 14)
Damage = Callable[[Path, Any], None]


def save(kind: Any, folder: Path, **changes: Any) -> None:
    random = np.random.default_rng(0)
    labels = changes.get("labels", random.integers(0, 2, (1, *SHAPE), np.int8))
    properties = {"spacing": [1.0, 1.0, 1.0], "class_locations": {1: np.argwhere(labels == 1)[:50]}}
    properties |= changes.get("properties", {})
    for key in changes.get("lacks", ()):
        del properties[key]
    options = {}
    if kind is nnUNetDatasetBlosc2:
        options = {"chunks": (1, *SHAPE), "blocks": (1, *SHAPE), "chunks_seg": labels.shape, "blocks_seg": labels.shape}
    images = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(1, *SHAPE) ** 1.5
    kind.save_case(images, labels, properties, str(folder / "case_1"), **options)


@pytest.fixture(params=[nnUNetDatasetBlosc2, nnUNetDatasetNumpy])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def folder(tmp_path: Path, kind: Any) -> Path:
    place = tmp_path / "Dataset007_Toy" / "STUNetPlans_3d_fullres"
    place.mkdir(parents=True)
    save(kind, place)
    return place


def loader(kind: Any, folder: Path) -> SampleLoader:
    labels = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    patch: Any = (8, 8, 8)
    return SampleLoader(kind(str(folder), ["case_1"]), 2, patch, patch, labels, 1.0)


def cut(ending: str, length: int = 100) -> Damage:
    def damage(folder: Path, kind: Any) -> None:
        for file in folder.glob(f"case_1{ending}"):
            file.write_bytes(file.read_bytes()[:-length])

    return damage


def flip(folder: Path, kind: Any) -> None:
    """Bytes in the middle of the voxels."""
    for file in (*folder.glob("case_1.b2nd"), *folder.glob("case_1.npz")):
        content = bytearray(file.read_bytes())
        first, last = len(content) // 4, len(content) // 2
        content[first:last] = b"\x55" * (last - first)
        file.write_bytes(content)


def changed(**changes: Any) -> Damage:
    def damage(folder: Path, kind: Any) -> None:
        for file in folder.iterdir():
            file.unlink()
        save(kind, folder, **changes)

    return damage


def remove(folder: Path, kind: Any) -> None:
    (folder / "case_1.pkl").unlink()


def replace(folder: Path, kind: Any) -> None:
    (folder / "case_1.pkl").write_bytes(pickle.dumps(["spacing"]))


OUTSIDE = {"class_locations": {1: np.array([[0, 20, 3, 3]])}}


# numpy leaves a damaged archive open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@for_each(
    "damage",
    [
        cut(".[bn]*"),
        cut("_seg.b2nd"),
        cut(".pkl", 30),
        flip,
        remove,
        replace,
        changed(labels=np.zeros((1, 12, 13, 15), np.int8)),
        changed(properties=OUTSIDE),
        changed(lacks=["class_locations"]),
    ],
)
def test_a_damaged_case_is_named_with_what_makes_it_again(folder: Path, kind: Any, damage: Damage) -> None:
    StoredCases(kind(str(folder), ["case_1"])).check("case_1")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    damage(folder, kind)
    if before == {file.name: file.read_bytes() for file in folder.iterdir()}:
        return  # this format has no such file
    with pytest.raises(DataError, match=r"preprocessed files of case 'case_1' in '.*Plans_3d_fullres'") as caught:
        StoredCases(kind(str(folder), ["case_1"])).check("case_1")
    assert f"rm {folder}/case_1.* {folder}/case_1_seg.*; stunet_plan_and_preprocess -d 7" in caught.value.hint
    with pytest.raises(DataError, match="files of case 'case_1'"):
        next(SeededBatches(loader(kind, folder), (0,), range(2), 0, 0, 0, False))
    gc.collect()  # while the warnings are ignored


def test_whole_cases_are_read_as_nnunet_reads_them(folder: Path, kind: Any) -> None:
    theirs, checked = kind(str(folder), ["case_1"]), StoredCases(kind(str(folder), ["case_1"]))
    for _ in range(2):
        for one, other in zip(theirs.load_case("case_1")[:2], checked.load_case("case_1")[:2], strict=True):
            np.testing.assert_array_equal(one[:], other[:])
    assert checked.identifiers == ["case_1"]
    assert pickle.loads(pickle.dumps(checked)).identifiers == ["case_1"]
