"""Images without labels: listed, checked, planned and preprocessed like others; losses leave out what masks say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.cli.plan_and_preprocess import main as plan_and_preprocess
from stunet.cli.train import main as train
from stunet.datasets import list_cases, read_dataset, require_labels
from stunet.datasets.check import check_dataset
from stunet.errors import DataError
from stunet.files import read_json, write_json
from stunet.plans.files import read_plan
from stunet.plans.fingerprint import extract_fingerprint
from stunet.preprocessing.case import preprocessor_of
from stunet.preprocessing.checks import check_data
from stunet.preprocessing.dataset import pending_cases, preprocess
from stunet.preprocessing.stored import StoredCases
from stunet.workspace import VARIABLES
from tests.loops import for_each

DATASET = "Dataset050_Unlabelled"
SHAPE = (20, 22, 24)
PLAN = ["-d", "50", "--size", "T", "-c", "3d_fullres", "-np", "1", "-npfp", "1", "--no_pbar"]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_samples: None) -> Path:
    """Three images by reference, of which `a` has a mask that leaves out a box, and a rim of zeros."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    folder = tmp_path / "nnUNet_raw" / DATASET
    entries: dict[str, Any] = {}
    for seed, name in enumerate("abc"):
        image = np.random.default_rng(seed).normal(100, 50, SHAPE).astype(np.float32)
        image[:, :3] = 0
        entries[name] = {"images": [str(write(tmp_path / "data" / f"{name}.nii.gz", image))]}
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:9, 8:12, 2:10] = 7
    entries["a"]["mask"] = str(write(tmp_path / "data" / "a_mask.nii.gz", mask))
    folder.mkdir()
    describe(folder, dataset=entries)
    return folder


def write(path: Path, array: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.5)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, path)
    return path


def describe(folder: Path, **changes: Any) -> None:
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "numTraining": 3, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", {**content, **changes})


def entry(folder: Path, name: str, **changes: Any) -> None:
    """Change the entry of a case; None removes a key."""
    content = read_json(folder / "dataset.json")
    values = {**content["dataset"][name], **changes}
    content["dataset"][name] = {key: value for key, value in values.items() if value is not None}
    write_json(folder / "dataset.json", content)


def description(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def test_cases_have_no_label_and_a_mask_only_without_one(raw: Path) -> None:
    cases, _ = read_dataset(raw)
    assert [(case.name, case.label, case.mask and case.mask.name) for case in cases] == [
        ("a", None, "a_mask.nii.gz"),
        ("b", None, None),
        ("c", None, None),
    ]
    assert [path.name for path in cases[0].files] == ["a.nii.gz", "a_mask.nii.gz"]
    for act in (lambda: cases[1].needed_label, lambda: require_labels(DATASET, cases)):
        with pytest.raises(DataError, match="label"):
            act()
    for name in "abc":
        entry(raw, name, label="labels.nii.gz", mask={"of": "another program"})
    assert [case.mask for case in list_cases(raw, description(raw))] == [None] * 3


def test_a_folder_of_images_without_a_folder_of_labels_is_a_dataset_too(raw: Path) -> None:
    describe(raw, numTraining=2)
    for name in "ab":
        write(raw / "imagesTr" / f"{name}_0000.nii.gz", np.random.default_rng(0).normal(size=SHAPE))
    assert [case.label for case in read_dataset(raw)[0]] == [None, None]
    assert check_dataset(raw) == []
    (raw / "labelsTr").mkdir()
    with pytest.raises(DataError, match="case 'a' has no label"):
        check_dataset(raw)
    (raw / "labelsTr").rmdir()
    describe(raw, numTraining=2, labels={"background": 0, "liver": 1})
    with pytest.raises(DataError, match="case 'a' has no label"):  # as before: somebody forgot them
        check_dataset(raw)


@for_each(
    ("damage", "message"),
    [
        (lambda raw: entry(raw, "b", label="b.nii.gz"), "2 cases .* have no label .e.g. 'a'., and 1 others have one"),
        (
            lambda raw: write_json(raw / "dataset.json", {**description(raw), "labels": {"background": 0, "liver": 1}}),
            "3 cases .* have no label .e.g. 'a'., and dataset.json names 'liver'",
        ),
        (lambda raw: entry(raw, "b", mask="no.nii.gz"), "case 'b' lacks its mask"),
        (lambda raw: entry(raw, "b", mask=5), "dataset.b.mask"),
        (lambda raw: masked(raw, "b", np.zeros(SHAPE), (1.0, 1.0, 2.0)), "spacing of .*m.nii.gz' is"),
        (lambda raw: masked(raw, "b", np.zeros((5, 6, 7))), "shape of .*m.nii.gz' is"),
        (lambda raw: masked(raw, "b", np.ones(SHAPE)), "leaves out every voxel"),
        (lambda raw: masked(raw, "b", np.full(SHAPE, np.nan)), "holds NaN"),
        (lambda raw: image_of(raw, "b").write_bytes(image_of(raw, "b").read_bytes()[:900]), "b.nii.gz"),
        (lambda raw: write(image_of(raw, "b"), np.zeros((2, *SHAPE), np.float32)), "has 2 channels"),
        (lambda raw: [write(image_of(raw, name), np.ones(SHAPE)) for name in "abc"], "all 3 images hold one value"),
        (lambda raw: write_json(raw / "dataset.json", {**description(raw), "dataset": {}}), "no training cases"),
    ],
)
def test_what_is_wrong_with_images_without_labels_is_named(
    raw: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(raw)
    with pytest.raises(DataError, match=message):
        check_dataset(raw)


def masked(raw: Path, name: str, mask: np.ndarray, spacing: tuple[float, ...] = (1.0, 1.0, 1.5)) -> None:
    entry(raw, name, mask=str(write(raw / "m.nii.gz", mask.astype(np.float32), spacing)))


def image_of(raw: Path, name: str) -> Path:
    return Path(description(raw)["dataset"][name]["images"][0])


def test_an_image_without_content_is_a_warning(raw: Path) -> None:
    assert check_dataset(raw) == []
    write(image_of(raw, "b"), np.full(SHAPE, 3.0))
    (said,) = (text for text in check_dataset(raw) if "value only" in text)
    assert "1 images hold one value only, nothing to learn from: 'b' (CT)" in said


def test_intensities_are_those_of_voxels_brighter_than_the_mean_outside_of_the_mask(raw: Path) -> None:
    found = read_json(extract_fingerprint(DATASET, 1))
    low = []
    for case in read_dataset(raw)[0]:
        image = sitk.GetArrayFromImage(sitk.ReadImage(case.images[0]))
        counted = np.ones(SHAPE, bool)
        if case.mask:
            counted = sitk.GetArrayFromImage(sitk.ReadImage(case.mask)) == 0
        low.append(image[counted & (image > image[counted].mean())].min())
    known = found["foreground_intensity_properties_per_channel"]["0"]
    assert known["min"] == pytest.approx(min(low), rel=0.02)
    assert known["min"] >= min(low)
    assert found["shapes_after_crop"] == [[20, 19, 24]] * 3
    before = found["stunet_source"]
    write(raw.parents[1] / "data" / "a_mask.nii.gz", np.eye(20, 22)[..., None].repeat(24, 2).astype(np.uint8))
    assert read_json(extract_fingerprint(DATASET, 1))["stunet_source"] != before  # the mask counts as a source


def planned(raw: Path) -> tuple[Any, Path]:
    assert plan_and_preprocess(PLAN) == 0
    folder = raw.parents[1] / "nnUNet_preprocessed" / DATASET
    return read_plan(folder / "STUNetPlans_T.json"), folder


def test_the_command_plans_and_preprocesses_and_training_says_that_there_are_no_labels(
    raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, folder = planned(raw)
    assert "next: stunet_pretrain -d 50" in capsys.readouterr().err
    assert not (folder / "gt_segmentations").exists()
    assert check_data(DATASET, plan, "3d_fullres") == []
    cases = StoredCases(nnUNetDatasetBlosc2(str(folder / "STUNetPlans_3d_fullres")))
    manager = PlansManager(plan.to_json())
    configuration = manager.get_configuration("3d_fullres")
    for case in read_dataset(raw)[0]:
        cases.check(case.name)
        data, labels, _, properties = cases.load_case(case.name)
        # Stock nnU-Net on an image without labels, which knows of no mask.
        theirs, region, _ = DefaultPreprocessor(verbose=False).run_case(
            [str(case.images[0])], None, manager, configuration, description(raw)
        )
        np.testing.assert_allclose(data[:], theirs, atol=1e-5)
        assert properties["class_locations"] == {}
        if case.mask is None:
            np.testing.assert_array_equal(labels[:], region)
            continue
        # The spacing is that of the images, so that nothing is resampled; three rows of zeros are cropped away.
        mask = sitk.GetArrayFromImage(sitk.ReadImage(case.mask))[None, :, 3:] > 0
        np.testing.assert_array_equal(labels[:], np.where(mask, -1, region))
        assert (labels[:] == -1).sum() == 4 * 4 * 8 + (region == -1).sum()
    assert train(["50", "3d_fullres", "all"]) == 3
    err = capsys.readouterr().err
    assert "Dataset050_Unlabelled has no labels to train with" in err
    assert "stunet_pretrain -d 50" in err


def test_a_mask_is_resampled_as_a_segmentation_and_does_not_change_the_image(raw: Path) -> None:
    plan, _ = planned(raw)
    content = plan.to_json()
    content["configurations"]["3d_fullres"] |= {
        "spacing": [2.0, 2.0, 2.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [True],
    }
    manager = PlansManager(content)
    configuration = manager.get_configuration("3d_fullres")
    case = read_dataset(raw)[0][0]
    run = preprocessor_of(configuration, labelled=False).run_case
    data, labels, _ = run([str(case.images[0])], str(case.mask), manager, configuration, description(raw))
    bare, region, _ = run([str(case.images[0])], None, manager, configuration, description(raw))
    np.testing.assert_array_equal(data, bare)
    # The same box, as a class of a segmentation in the hands of stock nnU-Net.
    theirs = DefaultPreprocessor(verbose=False).run_case(
        [str(case.images[0])], str(case.mask), manager, configuration, {"labels": {"background": 0, "box": 7}}
    )[1]
    assert (theirs == 7).any()
    np.testing.assert_array_equal(labels == -1, (theirs == 7) | (region == -1))


def test_another_mask_makes_its_case_again_and_only_that(raw: Path) -> None:
    plan, _ = planned(raw)
    masked(raw, "b", np.eye(20, 22)[..., None].repeat(24, 2))
    assert pending_cases(DATASET, plan, ["3d_fullres"]) == [("3d_fullres", "b")]
    with pytest.raises(DataError, match=r"raw files of 1 cases .*e.g. 'b'"):
        check_data(DATASET, plan, "3d_fullres")
    preprocess(DATASET, plan, ["3d_fullres"], 1)
    assert pending_cases(DATASET, plan, ["3d_fullres"]) == []
    entry(raw, "a", mask=None)
    assert pending_cases(DATASET, plan, ["3d_fullres"]) == [("3d_fullres", "a")]


def test_one_case_is_planned(raw: Path) -> None:
    describe(raw, numTraining=1, dataset={"b": description(raw)["dataset"]["b"]})
    plan, _ = planned(raw)
    assert pending_cases(DATASET, plan, ["3d_fullres"]) == []


def test_a_preprocessor_of_another_name_is_refused(raw: Path) -> None:
    plan, _ = planned(raw)
    content = plan.to_json()
    content["configurations"]["3d_fullres"]["preprocessor_name"] = "Mine"
    with pytest.raises(DataError, match="preprocessor 'Mine' of the plans needs labels"):
        preprocessor_of(PlansManager(content).get_configuration("3d_fullres"), labelled=False)
