"""Features are read where the points are, however files and plans turn, crop and resample images."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from stunet.architectures.base import DECODER, ENCODER, HEADS
from stunet.datasets import RawCase
from stunet.files import exclusive_lock
from stunet.inference.features.model import Model
from stunet.ranking.bank import Bank
from stunet.ranking.cases import Target
from stunet.ranking.points import DrawnPoints
from stunet.ranking.reading import LOCK, Place, load_sample, made_of, prepared_images, read_candidate
from stunet.ranking.sample import Facts
from tests.loops import for_each
from tests.predictor_models import make_model

DESCRIPTION = {"labels": {"background": 0, "a": 1}, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
WAYS = {"as it is": ((0, 1, 2), (1, 1, 1)), "turned": ((2, 0, 1), (1, -1, 1)), "mirrored": ((1, 0, 2), (-1, 1, -1))}


def write(folder: Path, order: tuple[int, ...], flips: tuple[int, ...]) -> tuple[RawCase, Callable]:
    """A case whose intensity is linear in mm, with empty planes around it, and that function."""
    shape = (26, 21, 18)
    labels = np.zeros(shape, np.uint8)
    labels[7:16, 6:15, 5:13] = 1
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.1, -0.05, 0.08]).as_matrix() @ np.diag([1.1, 1.4, 1.7])
    affine[:3, 3] = 5, -30, 12
    world = nibabel.affines.apply_affine(affine, np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))

    def intensity(points: np.ndarray) -> np.ndarray:
        return points @ [1.0, 0.7, -0.4] + 200

    image = intensity(world)
    image[:2] = image[:, :1] = image[..., -3:] = 0
    ways = np.array([[order.index(axis), flip] for axis, flip in enumerate(flips)])
    paths = folder / "c_0000.nii.gz", folder / "c.nii.gz"
    for array, path in zip((image.astype(np.float32), labels), paths, strict=True):
        nibabel.save(nibabel.Nifti1Image(array, affine).as_reoriented(ways), path)
    return RawCase("c", (paths[0],), paths[1]), intensity


def blind(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """Let the only stage be the preprocessed image itself, which is not normalised."""
    ready = model._windows.network
    monkeypatch.setattr(type(ready), "features", lambda self, windows, until: [windows])
    monkeypatch.setattr(type(ready), "blocks", lambda self, until=ENCODER: [(1, 1, 1)])
    monkeypatch.setitem(model._preparation._configuration.configuration, "normalization_schemes", ["NoNormalization"])
    model.trained = ENCODER
    return model


@for_each("way", list(WAYS))
def test_what_is_read_at_a_point_is_the_image_there(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, intensity = write(tmp_path, *WAYS[way])
    bank = Bank(tmp_path / "bank")
    drawn = Target("SimpleITKIO", DESCRIPTION, number=60).draw(case, bank)
    place = Place(case, drawn, "SimpleITKIO", ("MR",))
    for forward in ((0, 1, 2), (2, 0, 1)):
        folder = make_model(tmp_path / f"{forward[0]}" / "T__P__3d_fullres", forward=forward)
        model = blind(Model(folder, precision="fp32", orientation="LPS"), monkeypatch)
        with prepared_images(bank, True) as prepared:
            found = read_candidate(model, "x", [place], bank, prepared, lambda text: None)
        sample = load_sample(found, {"c": made_of(model, place)}, [place], Facts())
        values = sample.layers[0].features["c"][:, 0]
        # Interpolation is linear but near the edges of what preprocessing keeps.
        box = drawn.voxels.min(0), drawn.voxels.max(0)
        inner = ((drawn.voxels >= box[0] + 3) & (drawn.voxels <= box[1] - 3)).all(1)
        assert inner.sum() > 40
        np.testing.assert_allclose(values[inner], intensity(drawn.world[inner]), atol=0.05)
        np.testing.assert_allclose(values, intensity(drawn.world), atol=3)


def test_a_candidate_that_another_process_reads_is_waited_for(tmp_path: Path) -> None:
    case, _ = write(tmp_path, *WAYS["turned"])
    bank = Bank(tmp_path / "bank")
    place = Place(case, Target("SimpleITKIO", DESCRIPTION, number=20).draw(case, bank), "SimpleITKIO", ("MR",))
    model = Model(make_model(tmp_path / "m" / "T__P__3d_fullres"), precision="fp32", orientation="LPS")
    said: list[str] = []
    with prepared_images(bank, False) as prepared:
        lock = exclusive_lock(bank.of("x", model.made_by) / LOCK, "", "")
        lock.__enter__()

        def wait(text: str) -> None:
            said.append(text)
            lock.__exit__(None, None, None)

        found = read_candidate(model, "x", [place], bank, prepared, wait)
    assert said[0].startswith("another process reads x (")
    sample = load_sample(found, {"c": made_of(model, place)}, [place], Facts())
    assert [layer.features["c"].shape[1] for layer in sample.layers] == [16, 8, 4, 8, 4]
    assert sample.predictions is not None
    torch.testing.assert_close(torch.from_numpy(sample.predictions["c"].sum(1)), torch.ones(len(place.drawn.labels)))


def test_images_of_processes_that_were_killed_are_removed_and_those_of_others_are_not(tmp_path: Path) -> None:
    bank = Bank(tmp_path)
    dead, alive = tmp_path / ".prepared/dead", tmp_path / ".prepared/alive"
    dead.mkdir(parents=True)
    (dead / LOCK).touch()
    with exclusive_lock(alive / LOCK, "", ""), prepared_images(bank, True):
        assert not dead.exists()
        assert alive.exists()
        assert len(list((tmp_path / ".prepared").iterdir())) == 2
    assert not list((tmp_path / ".prepared").glob("[!a]*"))


def test_candidates_with_other_readers_see_the_same_anatomy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ITK takes the qform, nibabel the sform, and these are mirror images of each other."""
    labels = np.zeros((20, 17, 14), np.uint8)
    labels[3:9, 4:11, 5:10] = 1
    paths = tmp_path / "c_0000.nii.gz", tmp_path / "c.nii.gz"
    for array, path in zip((labels + 1.0, labels), paths, strict=True):
        image = nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1]))
        image.set_qform(np.array([[-1.5, 0, 0, 28.5], [0, 1.5, 0, 0], [0, 0, 1.5, 0], [0, 0, 0, 1]]), 1)
        image.header["sform_code"] = 2
        nibabel.save(image, path)
    case, bank = RawCase("c", (paths[0],), paths[1]), Bank(tmp_path / "bank")
    place = Place(case, Target("SimpleITKIO", DESCRIPTION, number=60).draw(case, bank), "SimpleITKIO", ("MR",))
    for reader in ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "Tiff3DIO"):
        folder = make_model(tmp_path / reader / "T__P__3d_fullres", reader=reader)
        model = blind(Model(folder, precision="fp32"), monkeypatch)
        with prepared_images(bank, True) as prepared:
            found = read_candidate(model, reader, [place], bank, prepared, lambda text: None)
        sample = load_sample(found, {"c": made_of(model, place)}, [place], Facts())
        np.testing.assert_allclose(sample.layers[0].features["c"][:, 0], place.drawn.labels + 1, atol=1e-3)


def test_channels_of_the_same_names_are_taken_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((9, 8, 7), np.uint8)
    labels[3:6, 2:6, 2:5] = 1
    paths = [tmp_path / name for name in ("c_0000.nii.gz", "c_0001.nii.gz", "c.nii.gz")]
    for array, path in zip((labels + 1.0, labels + 7.0, labels), paths, strict=True):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.5, 1.5, 1.5, 1])), path)
    case, bank = RawCase("c", tuple(paths[:2]), paths[2]), Bank(tmp_path / "bank")
    drawn = Target("SimpleITKIO", DESCRIPTION, number=9).draw(case, bank)
    folder = make_model(tmp_path / "T__P__3d_fullres", channels=2)  # MR0, MR1
    model = blind(Model(folder, precision="fp32", orientation="LPS"), monkeypatch)
    monkeypatch.setitem(
        model._preparation._configuration.configuration, "normalization_schemes", ["NoNormalization"] * 2
    )
    for channels, added in ((("MR1", "mr0"), [7, 1]), (("MR0", "MR1"), [1, 7]), (("x", "y"), [1, 7])):
        place = Place(case, drawn, "SimpleITKIO", channels)
        with prepared_images(bank, False) as prepared:
            found = read_candidate(model, "x", [place], bank, prepared, lambda text: None)
        values = load_sample(found, {"c": made_of(model, place)}, [place], Facts()).layers[0].features["c"]
        np.testing.assert_allclose(values, drawn.labels[:, None] + added, atol=1e-3)


def test_features_are_those_of_what_the_network_was_trained_for_and_of_its_head(tmp_path: Path) -> None:
    drawn = DrawnPoints(*[np.zeros(1)] * 3, np.zeros((1, 3)), np.zeros((1, 3)))
    place = Place(RawCase("c", (tmp_path / "c_0000.nii.gz",), None), drawn, "SimpleITKIO", ("MR",))

    def made(trained: str, value: object, at: Place = place) -> str:
        model = SimpleNamespace(made_by={}, trained=trained, model=SimpleNamespace(dataset={"labels": {"a": value}}))
        return json.dumps(made_of(model, at))

    others = [replace(place, kind="NibabelIO"), replace(place, channels=("CT",))]
    found = [made(HEADS, 1), made(HEADS, [1, 2]), made(DECODER, 1), *(made(HEADS, 1, other) for other in others)]
    assert len({*found}) == len(found)


def test_processes_that_begin_wait_for_each_other(tmp_path: Path) -> None:
    """A folder whose lock is not taken yet is like that of a process that was killed."""
    began, bank = Event(), Bank(tmp_path)

    def begin() -> None:
        with prepared_images(bank, True):
            began.set()

    with exclusive_lock(tmp_path / ".prepared" / LOCK, "", ""):
        young = tmp_path / ".prepared/young"
        young.mkdir()
        thread = Thread(target=begin)
        thread.start()
        assert not began.wait(0.2)
        assert young.exists()
        lock = exclusive_lock(young / LOCK, "", "")
        lock.__enter__()
    thread.join()
    assert began.is_set()
    assert young.exists()
    lock.__exit__(None, None, None)
