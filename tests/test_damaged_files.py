"""Whatever stands in a file, reading it is right or ends in an error of ours; sound files of all kinds pass."""

import copy
import json
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from stunet import kinds, presets
from stunet.datasets import read_dataset
from stunet.datasets.growing import CASE_RECORD, read
from stunet.datasets.label_lists import read_labels
from stunet.datasets.msd import _labels_by_name, msd_images
from stunet.errors import StunetError
from stunet.evaluation.folders import labels_of
from stunet.evaluation.segmentations import read_segmentation
from stunet.experiment.arms import arms, command, read_experiment, request
from stunet.experiment.runs import Record, read_dice
from stunet.inference.model import open_model
from stunet.inference.records import SETTINGS, check_run_record
from stunet.kinds import mean_dice
from stunet.labels import systems
from stunet.labels.annotations import load_annotations
from stunet.merging.provenance import is_there
from stunet.merging.recipe import load_recipe
from stunet.merging.scan import tidy
from stunet.models import registry
from stunet.models.record import read_checksums, read_record
from stunet.parts import Part, Records
from stunet.plans.check import check_plan, training_part
from stunet.plans.derive import derive
from stunet.plans.files import read_plan
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import _valid_records
from stunet.ranking.formats import read_results, read_scores
from stunet.ranking.judging import judge
from stunet.results.statistics import read_statistics
from stunet.weights.v2 import make_dataset, make_plan
from tests.labels.test_annotations import KIDNEYS
from tests.loops import for_each
from tests.merge_sources import make_source
from tests.merging.test_recipe import COMPLETE
from tests.mutations import damaged, dump
from tests.tiny_model import TINY

EACH = 19  # damaged files of each kind: over 500 in all
LABELS = {"title": "a", "classes": {"liver": {"labels": [1, 2], "from": ["liver"]}, "spleen": 3}, "other": {"skin": 4}}
PRESET = {"title": "a", "size": "T", "spacing": [1, 1.5, 2], "set": {"num_epochs": 3}, "normalization": "ct"}
EXPERIMENT = {
    "dataset": 4,
    "weights": ["none", "STU-Net-B"],
    "strategies": ["full", "ramp"],
    "cases": [4, "all"],
    "seeds": [0, 1],
    "set": {"num_epochs": 3, "patch_size": [16, 16, 16]},
}
METRICS = {"1": {"Dice": 0.5, "IoU": 0.4}}
SUMMARY = {
    "foreground_mean": {"Dice": 0.5},
    "mean": METRICS,
    "metric_per_case": [{"metrics": METRICS, "reference_file": "a.nii.gz", "prediction_file": "a.nii.gz"}],
}
STATISTICS = {
    "a": {
        "liver": {
            "voxels": 1,
            "volume_mm3": 2.0,
            "touches_border": False,
            "intensity": {"CT": {"mean": 1.0, "std": 2.0}},
        }
    }
}
RANKED: dict[str, Any] = {
    "targets": {
        "A": {
            "scores": {
                "x": {"a": {"score": 1, "draws": [1, 3]}, "b": {"score": 2, "draws": [1, 2]}, "c": None},
                "static": {"a": 1, "b": 0},
            }
        }
    },
    "candidates": {"a": {"architecture": "STU-Net", "weights": "a.pth"}, "b": {}},
}
REACHED = {"targets": {"A": {"a": {"dice": {"0": {"p": {"l": 0.5}}}}, "b": {"dice": {"0": {"p": {"l": 1}}}}}}}
TASK = {
    "name": "Heart",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "left atrium"},
    "numTraining": 1,
    "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    "test": ["./imagesTs/b.nii.gz"],
}
MANIFEST = {"settings": {"a": 1}, "cases": {"a": {"raw": [["a.nii.gz", 1, 2]], "files": {"a.b2nd": 3}}}}


@dataclass(frozen=True)
class Sound:
    """A sound file, and what the commands do with it first."""

    path: Path
    content: Any
    use: Callable[[Path], Any]


def plans_of_ours() -> dict[str, Any]:
    plans = make_plan(
        "Dataset001_A", "3d_fullres", "T", strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]], spacing=[2, 1, 1.5],
        patch_size=[16, 16, 32], median_shape=[20, 30, 40], normalization=["CTNormalization"], mirror_axes=[0, 1],
    ).to_json()  # fmt: skip
    intensities = {"mean": 40.0, "std": 90.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
    plans["foreground_intensity_properties_per_channel"] = {"0": intensities}
    full = plans["configurations"]["3d_fullres"]
    plans["configurations"] |= {
        "3d_lowres": {**copy.deepcopy(full), "spacing": [3, 3, 3], "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    plans["stunet"] |= {"memory_gb": 8.0, "train": {"num_epochs": 5}, "plan": {"batch_size": 2}, "stages": 3}
    return plans


DESCRIPTION = make_dataset("A", ["CT"], ["background", "liver", "spleen"], 2)


def train(path: Path) -> None:
    plan = read_plan(path)
    derive(plan, DESCRIPTION, overrides={"num_epochs": 3, "batch_size": 4})
    for configuration in plan.configurations:
        check_plan(plan, configuration)
        training_part(plan, configuration)


def sound_files(folder: Path) -> Iterator[Sound]:
    """A file of every kind in a folder of its own."""

    def at(name: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    model, raw = folder / "model", make_source(folder, "Dataset001_A", {"liver": ["liver"], "spleen": ["spleen"]})
    (model / "fold_0").mkdir(parents=True)
    (model / "fold_0" / "checkpoint_final.pth").touch()
    (model / "plans.json").write_bytes(dump(plans_of_ours(), ".json"))
    (model / "dataset.json").write_bytes(dump(DESCRIPTION, ".json"))
    listed = {
        f"case_{i}": {"images": [f"imagesTr/case_{i}_0000.nii.gz"], "label": f"labelsTr/case_{i}.nii.gz"}
        for i in range(2)
    }
    yield Sound(at("plans.json"), plans_of_ours(), train)
    yield Sound(model / "plans.json", plans_of_ours(), lambda path: open_model(path.parent))
    yield Sound(model / "dataset.json", DESCRIPTION, lambda path: open_model(path.parent).channels)
    yield Sound(raw / "dataset.json", {**DESCRIPTION, "dataset": listed}, lambda path: read_dataset(path.parent))
    regions = {"background": 0, "organ": [1, 2], "tumour": 2}
    yield Sound(
        at("regions/dataset.json"),
        {**DESCRIPTION, "labels": regions, "regions_class_order": [1, 2]},
        lambda path: labels_of(kinds.read(path, kinds.DATASET), path),
    )
    fingerprint = {
        "spacings": [[1.0, 1, 2]],
        "shapes_after_crop": [[10, 20, 30]],
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
        "median_relative_size_after_cropping": 1.0,
    }
    yield Sound(at("dataset_fingerprint.json"), fingerprint, lambda path: kinds.read(path, kinds.FINGERPRINT))
    folds = [{"train": ["case_0"], "val": ["case_1"]}]
    yield Sound(at("splits_final.json"), folds, lambda path: kinds.read(path, kinds.SPLITS))
    yield Sound(at("annotations.json"), KIDNEYS.to_json(), annotate)
    (folder / "task" / "imagesTr").mkdir(parents=True)
    (folder / "task" / "imagesTr" / "a.nii.gz").touch()
    yield Sound(at("task/dataset.json"), TASK, convert)
    yield Sound(at("names.txt").with_name("merge.yaml"), yaml.safe_load(COMPLETE), merge)
    (folder / "names.txt").write_text("liver\ninferior_vena_cava\n")
    yield Sound(at("scan.jsonl"), ['[[["a", 1, 2]]]', {"shape": [1, 2, 3]}], tidy)
    yield Sound(at("union/provenance.json"), {"state": {"a": 1}}, lambda path: is_there(path.parent, {"a": 1}))
    yield Sound(at("compare.toml"), EXPERIMENT, compare)
    yield Sound(at("preset.toml"), PRESET, lambda path: presets.load(str(path)).unlike(Plan(plans_of_ours())))
    yield Sound(at("labels.toml"), LABELS, lambda path: systems.load(str(path)).from_model(DESCRIPTION["labels"]))
    yield Sound(at("models/models.toml"), tomllib.loads(TINY), lambda path: list(map(describe, registry._read(path))))
    record = {"entry": "a", "source": "x", "date": "2026-01-01", "files": {"plans.json": "0"}}
    yield Sound(at("models/a/model.json"), record, lambda path: read_record(path.parent))
    yield Sound(at("models/checksums.json"), {"a": {"sha256": "0"}}, lambda path: read_checksums(path.parent))
    case = {"source": "0", "files": {"labelsTr/a.nii.gz": "0"}, "facts": {"left_out": True}}
    yield Sound(at("case.json"), case, lambda path: read(path, CASE_RECORD))
    part = {"agreed": {"a": 1}, "done": True, "content": {"measured": {}}}
    of_one = Records(folder, Part(), part["agreed"])
    yield Sound(at("part-0-of-1.json"), part, lambda path: of_one.merge(lambda contents: None))
    yield Sound(at("summary.json"), SUMMARY, lambda path: mean_dice(kinds.read(path, kinds.SUMMARY)))
    (folder / "results").mkdir()
    (folder / "results" / "dataset.json").write_bytes(dump(DESCRIPTION, ".json"))
    yield Sound(at("results/fold_0/validation/summary.json"), SUMMARY, read_dice)
    known = {"stunet_train 1": {"state": "done", "folder": "x", "message": "y"}}
    yield Sound(at("arms.json"), known, lambda path: Record(path.parent).summary(["stunet_train", "1"]).is_file())
    reached = at("results.json")
    reached.write_bytes(dump(REACHED, ".json"))
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.uint8))
    sitk.WriteImage(image, at("tiff/a.tif"))
    yield Sound(at("tiff/a.json"), {"spacing": [1, 2, 3.5]}, lambda path: segmentation(path.with_suffix(".tif")))
    yield Sound(at("statistics.json"), STATISTICS, read_statistics)
    yield Sound(at(f"out/{SETTINGS}"), {"stunet": {"a": 1}}, lambda path: check_run_record(path.parent, {"a": 1}, True))
    yield Sound(at("list.json"), {"liver": 1, "spleen": 2}, lambda path: read_labels([str(path)]))
    yield Sound(at("rank.json"), RANKED, lambda path: judge(read_scores(path), read_results(reached), permutations=9))
    yield Sound(reached, REACHED, lambda path: judge(read_scores(at("rank.json")), read_results(path), permutations=9))
    yield Sound(at("data/.stunet/manifest.json"), MANIFEST, lambda path: _valid_records(path.parents[1], {"a": 1}, []))
    record = {"agreed": {"settings": {"a": 1}}, "done": True, "content": {"cases": MANIFEST["cases"]}}
    part_of_data = at("parts/.stunet/parts/part-0-of-2.json")
    yield Sound(part_of_data, record, lambda path: _valid_records(path.parents[2], {"a": 1}, []))


def annotate(path: Path) -> None:
    annotations = load_annotations(path.parent)
    assert annotations
    for case in annotations.cases:
        if annotations.head == "softmax":
            annotations.groups(case)
        annotations.regions(case)
    annotations.model_description(DESCRIPTION)


def convert(path: Path) -> None:
    msd_images(path.parent)
    _labels_by_name(json.loads(path.read_text()), path.parent)


def merge(path: Path) -> None:
    recipe = load_recipe(path)
    json.dumps(recipe.content, default=str)


def compare(path: Path) -> None:
    experiment = read_experiment(path)
    for arm in arms(experiment):
        assert "/" not in arm.name
        command(request(experiment, arm))


def describe(entry: registry.Entry) -> None:
    if not entry.missing:
        registry.plan_of(entry)
        registry.dataset_of(entry)


def segmentation(path: Path) -> None:
    read_segmentation(path, frozenset({0}))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sound]:
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "models"))
    return list(sound_files(tmp_path))


def test_damaged_files_end_in_an_error_of_ours(files: list[Sound]) -> None:
    assert EACH * len(files) > 500
    refused, unexpected = 0, list[Any]()
    for number, file in enumerate(files):
        sound = dump(file.content, file.path.suffix)
        file.path.write_bytes(sound)
        file.use(file.path)
        for seed in range(EACH):
            text = damaged(file.content, file.path.suffix, 1000 * number + seed)
            file.path.write_bytes(text)
            try:
                file.use(file.path)
            except StunetError as error:
                refused += 1
                unexpected += [] if "\n" not in error.message else [(file.path.name, error.message)]
            except Exception as error:  # noqa: BLE001
                unexpected.append((file.path.name, 1000 * number + seed, repr(error), text[:300]))
        file.path.write_bytes(sound)
    assert unexpected == []
    assert refused > 0.6 * EACH * len(files)


@for_each(
    ("name", "text"),
    [
        ("a.csv", b"index,name\n1," + b"x" * 200_000),
        ("a.csv", b"index,name\n" + b"9" * 5000 + b",x\n"),
        ("a.tsv", b"index\tname\n1\t\x00\n"),
        ("a.txt", b"\xff\xfe"),
        ("a.txt", b"9" * 5000 + b" liver"),
    ],
)
def test_damaged_lists_of_labels_end_in_an_error_of_ours(tmp_path: Path, name: str, text: bytes) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(StunetError):
        read_labels([str(tmp_path / name)])
