"""The store: models downloaded, imported, found by name, and what happens when two want the same or nothing fits."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from stunet.errors import DataError, WeightsError
from stunet.files import write_json
from stunet.models import installing, registry, store
from stunet.networks import build
from stunet.weights.checkpoints import save_checkpoint, save_weights
from stunet.weights.reading import read_weights
from tests.loops import for_each
from tests.processes import in_two_processes
from tests.tiny_model import STRIDES, TINY

pytestmark = pytest.mark.usefixtures("environment")


def write_v1(path: Path, channels: int = 1, classes: int = 3) -> dict[str, torch.Tensor]:
    """Writes a checkpoint as nnU-Net v1 did, with momentum, and returns its weights."""
    torch.manual_seed(0)
    weights = build("T", STRIDES, channels, classes).state_dict()
    momentum = {i: {"momentum_buffer": torch.zeros_like(value)} for i, value in enumerate(weights.values())}
    torch.save({"epoch": 4000, "state_dict": weights, "optimizer_state_dict": {"state": momentum}}, path)
    return weights


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_is_downloaded_once_and_becomes_a_model_folder_without_momentum(website: Path, tmp_path: Path) -> None:
    weights = write_v1(website / "tiny.model")
    path = store.find_model("stu-net-t.tiny")
    assert path == tmp_path / "store" / "STU-Net-T.tiny"
    assert {file.name for file in path.iterdir()} == {"plans.json", "dataset.json", "model.json", "fold_0"}
    assert (path / "fold_0" / "checkpoint_final.pth").stat().st_size < (website / "tiny.model").stat().st_size / 1.5
    read = read_weights(path)
    assert same(read.tensors, weights)
    assert (read.strides, read.classes, read.mirror_axes) == (STRIDES, ["background", "left", "right"], (0, 1))
    assert read.entry == "STU-Net-T.tiny"
    (website / "tiny.model").unlink()
    assert store.find_model("STU-Net-T.tiny", offline=True) == path
    assert not [*(tmp_path / "store" / ".downloads").iterdir()]


def test_the_record_says_where_a_model_comes_from(website: Path) -> None:
    write_v1(website / "tiny.model")
    digest = hashlib.sha256((website / "tiny.model").read_bytes()).hexdigest()
    entry = registry.find("STU-Net-T.tiny")
    model = store.download(entry, keep=True)
    assert model.record["sha256"] == digest
    assert model.record["source"] == entry.sources[0]
    assert model.record["entry"] == "STU-Net-T.tiny"
    assert (model.folder / "tiny.model").is_file()
    assert store.installed() == [model]


def test_a_file_that_changed_since_its_first_download_is_refused(website: Path) -> None:
    write_v1(website / "tiny.model")
    entry = registry.find("STU-Net-T.tiny")
    shutil.rmtree(store.download(entry).folder)
    assert store.recorded_sha256(entry) == hashlib.sha256((website / "tiny.model").read_bytes()).hexdigest()
    write_v1(website / "tiny.model", classes=4)
    with pytest.raises(WeightsError, match="recorded at the first download") as refused:
        store.download(entry)
    assert "checksums.json" in refused.value.hint
    assert store.installed() == []


def test_a_download_that_was_not_made_a_model_in_time_is_not_repeated(website: Path, asked: list[str]) -> None:
    left = registry.store() / ".downloads" / "STU-Net-T.tiny"
    left.mkdir(parents=True)
    write_v1(left / "tiny.model")
    assert store.find_model("STU-Net-T.tiny").is_dir()
    assert asked == []


def test_weights_without_plans_are_installed_as_the_file_they_are(website: Path) -> None:
    weights = write_v1(website / "tiny.model")
    path = store.find_model("STU-Net-T.bare")
    assert path.name == "tiny.model"
    assert same(read_weights(path).tensors, weights)
    assert store.find_model("STU-Net-T.bare", offline=True) == path


@for_each(("channels", "classes", "message"), [(2, 3, "input channels 2 instead of 1"), (1, 4, "classes 4")])
def test_a_download_that_is_of_another_network_is_refused_and_not_remembered(
    website: Path, channels: int, classes: int, message: str
) -> None:
    write_v1(website / "tiny.model", channels, classes)
    entry = registry.find("STU-Net-T.tiny")
    with pytest.raises(WeightsError, match=message):
        store.download(entry)
    assert store.installed() == []
    assert store.recorded_sha256(entry) is None
    write_v1(website / "tiny.model")
    assert store.download(entry).name == entry.name


def test_nan_weights_are_refused(website: Path) -> None:
    weights = write_v1(website / "tiny.model")
    weights["seg_outputs.0.bias"][0] = float("nan")
    torch.save({"state_dict": weights}, website / "tiny.model")
    with pytest.raises(WeightsError, match="NaN"):
        store.find_model("STU-Net-T.tiny")
    assert store.installed() == []


def _find(_: int, folder: Path) -> Path:
    os.environ |= {"STUNET_MODELS": str(folder), "no_proxy": "127.0.0.1"}  # a server's children have its variables
    return store.find_model("STU-Net-T.tiny")


@pytest.mark.process
def test_two_processes_download_a_model_once(website: Path, tmp_path: Path, asked: list[str]) -> None:
    write_v1(website / "tiny.model")
    found = in_two_processes(partial(_find, folder=tmp_path / "store"))
    assert found == [tmp_path / "store" / "STU-Net-T.tiny"] * 2
    assert asked == ["/tiny.model"]


@pytest.mark.process
def test_who_waits_for_another_process_is_told(website: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_v1(website / "tiny.model")
    lock = registry.store() / ".locks" / "STU-Net-T.tiny.lock"
    lock.parent.mkdir()
    code = f"import filelock\nwith filelock.FileLock({str(lock)!r}):\n    print('held', flush=True)\n    input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    threading.Timer(0.3, partial(other.communicate, "\n")).start()
    with caplog.at_level(logging.WARNING, "stunet"):
        store.find_model("STU-Net-T.tiny")
    assert "another process is busy with STU-Net-T.tiny" in caplog.text


def test_offline_says_what_is_missing_and_where(website: Path) -> None:
    with pytest.raises(WeightsError, match=r"STU-Net-T.tiny is not installed in .*store") as refused:
        store.find_model("STU-Net-T.tiny", offline=True)
    assert "stunet_models download STU-Net-T.tiny" in refused.value.hint


def test_weights_that_only_a_browser_can_fetch_name_their_pages() -> None:
    with pytest.raises(WeightsError, match=r"drive\.google\.com") as refused:
        store.find_model("STU-Net-S.abdomenatlas")
    assert "stunet_models import model_final_checkpoint.model --name STU-Net-S.abdomenatlas" in refused.value.hint


def test_a_path_is_found_as_it_is_and_a_wrong_name_has_its_closest(tmp_path: Path) -> None:
    assert store.find_model(str(tmp_path)) == tmp_path
    with pytest.raises(WeightsError, match=r"no model or file .*; did you mean 'STU-Net-B\.totalseg'"):
        store.find_model("STU-Net-B.totalsegm")


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "file" / "store"))
    with pytest.raises(DataError, match="cannot write into the folder of models") as refused:
        store.find_model("STU-Net-S")
    assert "STUNET_MODELS" in refused.value.hint


def test_a_file_is_imported_as_the_entry_that_it_is_recognised_as(website: Path, tmp_path: Path) -> None:
    weights = write_v1(tmp_path / "tiny.model")
    with pytest.raises(WeightsError, match=r"may be STU-Net-T.tiny or STU-Net-T.bare"):
        installing.import_file(tmp_path / "tiny.model")
    model = installing.import_file(tmp_path / "tiny.model", "stu-net-t.tiny")  # any case, as everywhere
    assert (model.name, model.record["entry"]) == ("STU-Net-T.tiny", "STU-Net-T.tiny")
    assert same(read_weights(model.path).tensors, weights)
    with pytest.raises(DataError, match="already installed"):
        installing.import_file(tmp_path / "tiny.model", "STU-Net-T.tiny")
    assert (tmp_path / "tiny.model").is_file()


def test_a_file_is_recognised_by_its_checksum_under_any_name(website: Path, tmp_path: Path) -> None:
    write_v1(website / "tiny.model")
    shutil.rmtree(store.download(registry.find("STU-Net-T.tiny")).folder)
    shutil.copy(website / "tiny.model", tmp_path / "renamed.model")
    assert installing.import_file(tmp_path / "renamed.model").name == "STU-Net-T.tiny"


def test_a_file_with_an_entrys_name_and_another_checksum_is_not_that_entry(website: Path, tmp_path: Path) -> None:
    write_v1(tmp_path / "tiny.model")
    own = registry.store() / "models.toml"
    own.write_text(own.read_text().partition("[bare]")[0] + f'sha256 = "{"0" * 64}"')
    with pytest.raises(WeightsError, match=r"is named like STU-Net-T.tiny, but its sha256 is [0-9a-f]{64}, not 0"):
        installing.import_file(tmp_path / "tiny.model")
    assert installing.import_file(tmp_path / "tiny.model", "STU-Net-T.tiny").name == "STU-Net-T.tiny"


def test_the_name_of_every_model_of_nnunet_v1_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    own = TINY.replace("tiny.model", "model_final_checkpoint.model")
    (tmp_path / "store" / "models.toml").write_text(own)
    write_v1(tmp_path / "model_final_checkpoint.model")
    with pytest.raises(WeightsError, match="not a model that the registry knows"):
        installing.import_file(tmp_path / "model_final_checkpoint.model")


@for_each(
    ("key", "value", "message"),
    [
        ("labels", {"background": 0, "right": 1, "left": 2}, "labels"),
        ("channel_names", {"0": "T1"}, "channels"),
        ("spacing", [5.0, 5.0, 5.0], "spacing"),
        ("normalization_schemes", ["NoNormalization"], "normalisation"),
    ],
)
def test_a_file_that_says_that_it_is_an_entry_has_to_agree_with_it(
    website: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    entry = registry.find("STU-Net-T.tiny")
    plans, dataset = registry.plan_of(entry).to_json(), registry.dataset_of(entry)
    (dataset if key in dataset else plans["configurations"]["3d_fullres"])[key] = value
    meta = {"plans": plans, "configuration": "3d_fullres", "dataset": dataset, "entry": entry.name}
    save_weights(tmp_path / "x.safetensors", build("T", STRIDES, 1, 3).state_dict(), meta)
    with pytest.raises(WeightsError, match=f"is not STU-Net-T.tiny: {message}"):
        installing.import_file(tmp_path / "x.safetensors")
    assert read_weights(installing.import_file(tmp_path / "x.safetensors", "mine").path).entry is None


def test_class_names_come_from_a_dataset_json_where_the_weights_have_none(data: Path, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": build("T", [[1] * 3, *[[2] * 3] * 4, [1, 1, 2]], 1, 105).state_dict()}, tmp_path / "x.model"
    )
    shutil.copy(data / "stunet_official" / "small_ep4k.model.pkl", tmp_path / "x.model.pkl")
    with pytest.raises(WeightsError, match="unknown class names") as refused:
        installing.import_file(tmp_path / "x.model", "mine")
    assert refused.value.hint.startswith("import it with the --dataset dataset.json of its training")
    names = ["background", *(f"class {i}" for i in range(104))]
    write_json(tmp_path / "d.json", {"labels": {name: i for i, name in enumerate(names)}, "channel_names": {"0": "CT"}})
    model = installing.import_file(tmp_path / "x.model", "mine", dataset=tmp_path / "d.json")
    assert read_weights(model.path).classes == names


def test_the_classes_that_a_file_names_stay_where_its_plans_are_given(data: Path, tmp_path: Path) -> None:
    classes = [f"class {i}" for i in range(1, 105)]
    labels = {name: i for i, name in enumerate(["background", *classes])}
    weights = build("T", [[1] * 3, *[[2] * 3] * 4, [1, 1, 2]], 1, 105).state_dict()
    save_weights(tmp_path / "x.safetensors", weights, {"dataset": {"labels": labels, "channel_names": {"0": "CT"}}})
    pkl = data / "stunet_official" / "small_ep4k.model.pkl"
    assert read_weights(installing.import_file(tmp_path / "x.safetensors", "mine", pkl).path).classes == [*labels]


def test_one_broken_record_does_not_hide_the_other_models(website: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_v1(website / "tiny.model")
    path = store.find_model("STU-Net-T.tiny")
    for content in ("xx", "[]", "[" * 200_000, '{"weights": "../../x"}', '{"source": 5}', '{"files": [1]}'):
        (registry.store() / "bad").mkdir(exist_ok=True)
        (registry.store() / "bad" / "model.json").write_text(content)
        assert [model.name for model in store.installed()] == ["STU-Net-T.tiny"]
        assert store.find_model("STU-Net-T.tiny") == path
    assert "model.json" in caplog.text


@for_each("content", ["[]", "5", '{"STU-Net-L.totalseg": 5}'])
def test_checksums_that_are_none_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "checksums.json").write_text(content)
    with pytest.raises(DataError, match=r"checksums\.json'.*expected a table"):
        store.recorded_sha256(registry.find("STU-Net-L"))


@for_each("text", ["", "~nobody_of_this_name/x", "a" * 5000, "a\0b"])
def test_what_cannot_be_a_path_is_no_model(text: str) -> None:
    with pytest.raises(WeightsError, match="no model or file"):
        store.find_model(text)


def test_a_store_in_nobodys_home_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUNET_MODELS", "~nobody_of_this_name/x")
    with pytest.raises(DataError, match="STUNET_MODELS=~nobody"):
        store.installed()


def test_a_file_that_no_entry_fits_needs_a_name_and_its_meaning(tmp_path: Path) -> None:
    write_v1(tmp_path / "my.model")
    with pytest.raises(WeightsError, match="not a model that the registry knows"):
        installing.import_file(tmp_path / "my.model")
    with pytest.raises(WeightsError, match="unknown strides and spacing and class names"):
        installing.import_file(tmp_path / "my.model", "mine")
    with pytest.raises(WeightsError, match="cannot be a model's name"):
        installing.import_file(tmp_path / "my.model", "../mine")
    with pytest.raises(WeightsError, match="no file"):
        installing.import_file(tmp_path / "other.model")
    assert store.installed() == []


def test_a_file_of_another_network_is_not_imported_under_an_entrys_name(website: Path, tmp_path: Path) -> None:
    write_v1(tmp_path / "tiny.model", classes=5)
    with pytest.raises(WeightsError, match=r"is not STU-Net-T.tiny: classes 5 instead of 3"):
        installing.import_file(tmp_path / "tiny.model", "STU-Net-T.tiny")


@for_each("how", ["beside", "given"])
def test_the_plans_of_nnunet_v1_are_used_where_the_registry_has_none(data: Path, tmp_path: Path, how: str) -> None:
    torch.manual_seed(0)
    strides = [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]]
    torch.save({"state_dict": build("T", strides, 1, 105).state_dict()}, tmp_path / "weights.model")
    own = 'title = "t"\ndata = "d"\nmodality = "CT"\nfilename = "f"\n'
    classes = ["background", *(f"class {i}" for i in range(1, 105))]
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "models.toml").write_text(f"[v1]\n{own}classes = {classes}\n[v1.T]\n")
    official = data / "stunet_official" / "small_ep4k.model.pkl"
    if how == "beside":
        shutil.copy(official, tmp_path / "weights.model.pkl")
    model = installing.import_file(tmp_path / "weights.model", "STU-Net-T.v1", official if how == "given" else None)
    read = read_weights(model.path)
    assert (read.strides, read.spacing, read.normalization) == (strides, [1.5] * 3, ["ZScoreNormalization"])
    assert read.classes == classes


def test_a_model_folder_is_imported_with_all_its_folds(website: Path, tmp_path: Path) -> None:
    entry = registry.find("STU-Net-T.tiny")
    folder = tmp_path / "trained"
    folder.mkdir()
    write_json(folder / "plans.json", registry.plan_of(entry).to_json())
    write_json(folder / "dataset.json", registry.dataset_of(entry))
    for fold in range(2):
        (folder / f"fold_{fold}").mkdir()
        weights = build("T", STRIDES, 1, 3).state_dict()
        content = {"network_weights": weights, "init_args": {"configuration": "3d_fullres"}, "optimizer_state": {}}
        save_checkpoint(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    model = installing.import_file(folder, "mine")
    assert model.path == tmp_path / "store" / "mine"
    for fold in range(2):
        one, other = (read_weights(path / f"fold_{fold}" / "checkpoint_final.pth") for path in (folder, model.path))
        assert same(one.tensors, other.tensors)
