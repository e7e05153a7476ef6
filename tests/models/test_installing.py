"""What weights come in: folders of Hugging Face and of tasks, archives, several models at once."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from stunet.cli.models import main
from stunet.errors import WeightsError
from stunet.files import write_json
from stunet.models import registry, store
from stunet.models.folder import check
from stunet.models.installing import import_file, import_models
from stunet.networks import build
from stunet.weights.checkpoints import save_checkpoint, save_weights
from stunet.weights.nnssl import ADAPTATION, write_nnssl
from stunet.weights.reading import read_weights
from tests.loops import for_each
from tests.tiny_model import STRIDES, TINY

pytestmark = pytest.mark.usefixtures("environment")
TRAINER = "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres"
PARTS = """
[Whole]
network = "stunet-t"
title = "parts"
data = "noise"
modality = "CT"
has_plans = true
[Whole.part1]
whole = "Whole"
filename = "Dataset001_One.zip"
[Whole.part2]
whole = "Whole"
filename = "Dataset002_Two.zip"
"""
PRETRAINED = """
[Pre-Tiny]
network = "stunet-t"
title = "pre-trained"
data = "noise"
modality = "MR"
pretext = "mae"
filename = "checkpoint_final.pth"
companions = ["adaptation_plan.json"]
sources = ["URL/owner/Repo-MAE/resolve/main/checkpoint_final.pth"]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The user's own entries: the tiny model, and a whole of two parts."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "models.toml").write_text(TINY + PARTS)
    return tmp_path / "store" / "models.toml"


def write_model(folder: Path, seed: int = 0) -> Path:
    """Write a model folder as nnU-Net does."""
    torch.manual_seed(seed)
    entry = registry.find("STU-Net-T.tiny")
    (folder / "fold_0").mkdir(parents=True)
    write_json(folder / "plans.json", registry.plan_of(entry).to_json())
    write_json(folder / "dataset.json", registry.dataset_of(entry))
    content = {
        "network_weights": build("T", STRIDES, 1, 3).state_dict(),
        "init_args": {
            "configuration": "3d_fullres", "plans": registry.plan_of(entry).to_json(),
            "dataset_json": registry.dataset_of(entry),
        },
        "trainer_name": "nnUNetTrainerNoMirroring",
        "inference_allowed_mirroring_axes": None,
    }  # fmt: skip
    save_checkpoint(content, folder / "fold_0" / "checkpoint_final.pth")
    return folder


def write_repository(folder: Path, inside: bool, safetensors: bool = False) -> dict[str, torch.Tensor]:
    """Write what Hugging Face has of a network pre-trained by nnssl: the plan inside the checkpoint, or beside it."""
    folder.mkdir(parents=True)
    weights = build("T", STRIDES, 1, 1).state_dict()
    plan = registry.plan_of(registry.find("STU-Net-T.tiny"))
    file = folder / "checkpoint_final.pth"
    write_nnssl(file, weights, plan, "3d_fullres", ["CT"], "mae", transfers="all")
    content = torch.load(file, weights_only=True)
    (folder / "adaptation_plan.json").write_text(json.dumps(content[ADAPTATION]))
    (folder / "config.json").write_text('{"description": "Dummy config to allow tracking HF downloads."}')
    if safetensors:
        file.unlink()
        save_weights(folder / "model.safetensors", weights, {})
    elif not inside:
        torch.save({"network_weights": weights}, file)
    return weights


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as target:
        for path in folder.rglob("*"):
            if path.is_file():
                target.write(path, path.relative_to(folder.parent))
    return archive


@for_each(("inside", "safetensors"), [(True, False), (False, False), (False, True)])
def test_a_folder_of_hugging_face_is_read_with_its_adaptation_plan(
    own: Path, tmp_path: Path, inside: bool, safetensors: bool
) -> None:
    folder = tmp_path / "Repo-MAE"
    weights = write_repository(folder, inside, safetensors)
    for path in (folder, *folder.glob("checkpoint_final.pth"), *folder.glob("*.safetensors")):
        read = read_weights(path)
        assert (read.kind, read.spacing, read.strides) == ("nnssl", [2, 1, 1], STRIDES)
        assert read.pretext == ("mae" if inside else "nnssl")
        assert read.tensors.keys() == weights.keys()
    model = import_file(folder, "mine")
    assert {path.name for path in model.folder.iterdir()} == {
        "model.json", "adaptation_plan.json", "model.safetensors" if safetensors else "checkpoint_final.pth",
    }  # fmt: skip
    assert read_weights(model.path).spacing == [2, 1, 1]
    assert "for fine-tuning only" in check(model.path)[-1]


def test_a_repository_is_downloaded_with_its_plan_and_recognised_when_it_is_here(
    website: Path, tmp_path: Path, asked: list[str]
) -> None:
    own = tmp_path / "store" / "models.toml"
    url = own.read_text().partition('sources = ["')[2].partition("/tiny.model")[0]
    own.write_text(TINY + PRETRAINED.replace("URL", url))
    served = website / "owner" / "Repo-MAE" / "resolve" / "main"
    write_repository(served, inside=False)
    path = store.find_model("pre-tiny")
    assert path == tmp_path / "store" / "Pre-Tiny" / "checkpoint_final.pth"
    assert asked == [f"/owner/Repo-MAE/resolve/main/{name}" for name in ("adaptation_plan.json", path.name)]
    assert read_weights(path).spacing == [2, 1, 1]
    shutil.rmtree(path.parent)
    shutil.copytree(served, tmp_path / "cache" / "Repo-MAE")
    assert import_file(tmp_path / "cache" / "Repo-MAE").name == "Pre-Tiny"
    shutil.rmtree(path.parent)
    (served / "adaptation_plan.json").unlink()
    asked.clear()
    with pytest.raises(WeightsError, match=r"could not download 'adaptation_plan.json': .*404"):
        store.find_model("pre-tiny")
    assert not any(path.name in address for address in asked)  # what is large did not come in vain


def test_two_files_of_weights_in_a_folder_are_named(tmp_path: Path) -> None:
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"has 2 files of weights: a\.pth, b\.safetensors"):
        read_weights(tmp_path)


def test_the_folder_of_a_task_stands_for_the_model_in_it(own: Path, tmp_path: Path) -> None:
    inner = write_model(tmp_path / "Dataset001_One" / TRAINER)
    assert read_weights(inner.parent).path == inner / "fold_0" / "checkpoint_final.pth"
    assert store.find_model(str(inner.parent)) == inner
    for path in (inner, inner.parent):
        model = import_file(path)
        assert model.name == "Whole-part1"
        assert read_weights(model.path).classes == ["background", "left", "right"]
        shutil.rmtree(model.folder)


def test_several_models_in_one_folder_are_installed_as_the_parts_that_they_are(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = tmp_path / "results"
    for i, name in enumerate(("Dataset001_One", "Dataset002_Two", "Dataset003_Unknown")):
        write_model(results / name / TRAINER, seed=i)
    for _ in range(2):  # the second time they are there
        assert [model.name for model in import_models(results)] == ["Whole-part1", "Whole-part2"]
        assert "Dataset003_Unknown" in caplog.messages[-1]
    one, two = (read_weights(store.find_model(f"Whole-part{i}")).tensors for i in (1, 2))
    assert not torch.equal(one["seg_outputs.0.weight"], two["seg_outputs.0.weight"])
    with pytest.raises(WeightsError, match=r"holds 3 models: Dataset001_One/nnUNetTrainer.*, .*"):
        store.find_model(str(results))
    with pytest.raises(WeightsError, match="holds 3 models"):
        import_models(results, "mine")


def test_half_of_the_parts_are_refused_by_name(own: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_model(results / "Dataset001_One" / TRAINER)
    write_model(results / "Dataset003_Unknown" / TRAINER)
    with pytest.raises(WeightsError, match="has only some parts of Whole: Whole-part2 missing") as refused:
        import_models(results)
    assert "stunet_models download Whole-part2" in refused.value.hint
    assert store.installed() == []
    assert [model.name for model in import_models(results / "Dataset001_One")] == ["Whole-part1"]


def test_a_zip_is_downloaded_and_becomes_a_model_folder(website: Path, tmp_path: Path) -> None:
    own = tmp_path / "store" / "models.toml"
    url = own.read_text().partition('sources = ["')[2].partition("/tiny.model")[0]
    own.write_text(TINY)
    parts = PARTS
    for name in ("Dataset001_One", "Dataset002_Two"):
        parts = parts.replace(f'"{name}.zip"', f'"{name}.zip"\nsources = ["{url}/{name}.zip"]')
        pack(write_model(website / name / TRAINER).parent, website / f"{name}.zip")
    own.write_text(TINY + parts)
    assert main(["download", "whole"]) == 0
    for part in ("Whole-part1", "Whole-part2"):
        folder = store.find_model(part, offline=True)
        assert read_weights(folder).classes == ["background", "left", "right"]
        record = json.loads((folder / "model.json").read_text())
        assert record["source"].startswith(url)
        assert record["sha256"] == store.recorded_sha256(registry.find(part))
    assert not [*(tmp_path / "store" / ".downloads").iterdir()]


def test_a_zip_of_a_task_is_recognised_by_its_name_whatever_the_trainer(own: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "Dataset002_Two" / "SomebodysTrainer__Plans_X__3d_lowres").parent
    model = import_file(pack(folder, tmp_path / "Dataset002_Two.zip"))
    assert (model.name, model.record["entry"]) == ("Whole-part2", "Whole-part2")
    assert read_weights(model.path).mirror_axes == ()


def test_one_of_several_models_in_an_archive_is_taken_by_the_name_of_its_folder(own: Path, tmp_path: Path) -> None:
    """As in MultiTalent's archive, whose folders lack plans.json: the checkpoints say what they are."""
    own.write_text(own.read_text() + PARTS.replace("Whole", "Other").replace("part1]", 'part1]\nfolder = "two"'))
    for i, name in enumerate(("one", "two")):
        folder = write_model(tmp_path / "models" / "Dataset9" / name, seed=i)
        (folder / "plans.json").unlink()
        (folder / "dataset.json").unlink()
    archive = pack(tmp_path / "models", tmp_path / "Dataset001_One.zip")
    with pytest.raises(WeightsError, match=r"holds 2 model folders \(models/Dataset9/one, models/Dataset9/two\)$"):
        import_file(archive)
    model = import_file(archive, "Other-part1")
    there = read_weights(tmp_path / "models" / "Dataset9" / "two")
    read = read_weights(model.path)
    assert torch.equal(read.tensors["seg_outputs.0.weight"], there.tensors["seg_outputs.0.weight"])
    assert read.classes == ["background", "left", "right"]
    own.write_text(own.read_text().replace('"two"', '"three"'))
    with pytest.raises(WeightsError, match="none of them named three"):
        import_file(archive, "Other-part1")


def test_a_model_of_another_network_than_its_entry_is_refused(own: Path, tmp_path: Path) -> None:
    own.write_text(own.read_text().replace('network = "stunet-t"', 'network = "plain"'))
    folder = write_model(tmp_path / "Dataset001_One" / TRAINER)
    with pytest.raises(WeightsError, match="is not Whole-part1: network STUNet instead of PlainConvUNet"):
        import_file(folder, "Whole-part1")
    with pytest.raises(WeightsError, match="not a model that the registry knows"):
        import_file(folder)
