"""The one real TotalSegmentator subject from its masks to Dice: convert, plan, preprocess, train 117 classes, predict.

The data set is one subject; here its image and masks stand for two more, by links, so that there is a split to carry.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np
import pytest

from stunet.files import read_json
from stunet.labels import systems

if TYPE_CHECKING:
    from tests.slow.conftest import Place

pytestmark = pytest.mark.slow

DATASET = "Dataset995_TotalSegmentator"
VALUES = ["num_epochs=1", "num_iterations_per_epoch=4", "num_val_iterations_per_epoch=1", "batch_size=2"]
PATCH = "patch_size=[32,64,64]"
PLANS = "STUNetPlans_T-epochs1-its4-valits1-bs2-patch32x64x64"


@pytest.fixture(scope="module")
def site(data: Path, tmp_path_factory: pytest.TempPathFactory) -> "Place":
    """A place with the subject three times, to train, validate and test, converted with two processes."""
    from tests.slow.conftest import Place

    place = Place(tmp_path_factory.mktemp("totalsegmentator"), DATASET, PLANS)
    (place.root / "nnUNet_raw").mkdir()
    source = place.root / "Totalsegmentator_dataset"
    source.mkdir()
    for subject in ("s0001", "s0002", "s0003"):
        (source / subject).symlink_to(data / "TotalSegmentator_v2" / "s0001")
    lines = ["image_id;age;gender;institute;study_type;split", "s0001;;;;;train", "s0002;;;;;val", "s0003;;;;;test"]
    (source / "meta.csv").write_text("\n".join(lines))
    command = ["stunet_convert", "totalsegmentator", "-i", source, "-d", 995, "--name", "TotalSegmentator", "-np", 2]
    assert place.run(*command).strip() == str(place.raw)
    return place


@pytest.fixture(scope="module")
def model(site: "Place") -> "Place":
    """The place with the dataset planned and preprocessed, and 117 classes trained for four steps of size T."""
    site.run("stunet_plan_and_preprocess", "-d", 995, "--size", "T", "-c", "3d_fullres")
    site.run("stunet_train", 995, "3d_fullres", 0, "-device", "cpu", "--set", *VALUES, PATCH)
    return site


def test_the_official_fold_reaches_training(model: "Place") -> None:
    folds = [{"train": ["s0001"], "val": ["s0002"]}]
    assert read_json(model.preprocessed / "splits_final.json") == folds
    assert [path.name for path in (model.model("3d_fullres") / "fold_0" / "validation").glob("*.nii.gz")] == [
        "s0002.nii.gz"
    ]


def test_the_network_has_117_classes_and_no_mirroring_of_sides(model: "Place") -> None:
    plans = read_json(model.model("3d_fullres") / "plans.json")
    dataset = read_json(model.model("3d_fullres") / "dataset.json")
    assert dataset["labels"] == systems.load("totalsegmentator-v2").dataset_labels
    assert "dataset" not in dataset  # where the images lie on this machine
    assert plans["stunet"]["mirror_axes"] == [0, 1]
    assert plans["image_reader_writer"] == "NibabelIOWithReorient"


def test_the_test_subject_is_predicted_and_evaluated_from_its_links(model: "Place") -> None:
    out, summary = model.root / "out", model.root / "summary.json"
    command = ["stunet_predict", "-i", model.raw / "imagesTs", "-o", out, "-d", 995, "-c", "3d_fullres", "-f", 0]
    model.run(*command, "-p", PLANS, "-device", "cpu", "--disable_tta")
    image = nibabel.load(model.root / "Totalsegmentator_dataset" / "s0003" / "ct.nii.gz")
    result = nibabel.load(out / "s0003.nii.gz")
    assert result.shape == image.shape
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-3)
    assert np.asanyarray(result.dataobj).max() <= 117
    model.run("stunet_evaluate", model.raw / "labelsTs", out, "-o", summary)
    means = read_json(summary)["mean"]
    assert len(means) == 117
    assert sum(mean["n_cases"] for mean in means.values()) >= 40  # classes that the subject has


def test_stock_nnunet_plans_and_preprocesses_the_same_dataset(site: "Place") -> None:
    site.run("nnUNetv2_plan_and_preprocess", "-d", 995, "-c", "3d_fullres", "-np", 1, "--verify_dataset_integrity")
    data = site.preprocessed / "nnUNetPlans_3d_fullres"
    assert {path.name for path in data.glob("*.pkl")} == {"s0001.pkl", "s0002.pkl"}
    assert read_json(site.preprocessed / "splits_final.json") == [{"train": ["s0001"], "val": ["s0002"]}]


def test_converting_again_does_nothing_and_a_killed_run_goes_on(site: "Place") -> None:
    source, raw = site.root / "Totalsegmentator_dataset", site.root / "again"
    raw.mkdir()
    command = ["stunet_convert", "totalsegmentator", "-i", source, "-o", raw, "-d", 996, "--name", "Again", "-np", 1]
    labels_folder = raw / "Dataset996_Again" / "labelsTr"
    with site.start(*command) as process:
        while process.poll() is None and not list(labels_folder.glob("s*.nii.gz")):
            pass
        process.kill()
    done = {path: path.stat().st_mtime_ns for path in labels_folder.glob("s*.nii.gz")}
    assert done
    site.run(*command)
    written = read_json(raw / "Dataset996_Again" / ".stunet" / "cases" / "s0001.json")
    again = {path: path.stat().st_mtime_ns for path in labels_folder.glob("s*.nii.gz")}
    assert set(written["files"]) == {"labelsTr/s0001.nii.gz"}
    assert len(again) == 2
    site.run(*command)
    assert {path: path.stat().st_mtime_ns for path in again} == again
    assert (raw / "Dataset996_Again" / "dataset.json").is_file()
