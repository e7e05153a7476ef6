"""The preprocessor: a case comes out as of nnU-Net's own, from real files too, and in much less memory."""

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.preprocessing.case import PLACES, Plans, Preprocessor, places_of, preprocessor_of
from tests.loops import for_each

LABELS = {"background": 0, "a": 1, "b": 2, "c": 3}
CT = {"mean": 20.0, "std": 90.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
GIVEN = {"spacing": [2.0, 0.9, 1.1]}


def plans(channels: int = 1, ndim: int = 3, **changes: Any) -> dict:
    """A plans file with one configuration, as nnU-Net's planner writes it where `changes` says nothing else."""
    function, options = "resample_data_or_seg_to_shape", {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "P_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [16] * ndim,
        "spacing": [1.5, 1.2, 1.2][-ndim:],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"][:channels],
        "use_mask_for_norm": [False, True][:channels],
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **options},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **options},
        "architecture": {},
    }
    return {
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [1, 0, 2],
        "foreground_intensity_properties_per_channel": {str(channel): CT for channel in range(channels)},
        "configurations": {"3d_fullres": configuration | changes},
    }


def case(channels: int = 1, shape: tuple[int, ...] = (14, 20, 17)) -> tuple[np.ndarray, np.ndarray]:
    """An image with a rim, a corner and a hole of zeros, and labels that reach into them."""
    generator = np.random.default_rng(0)
    image = generator.normal(0, 200, (channels, *shape)).astype(np.float32)
    image[:, :2], image[:, :, -3:], image[:, 4:6, 5:8, 6:8], image[:, :7, :9, :7] = 0, 0, 0, 0
    coarse = generator.integers(0, 4, (1, *(n // 3 + 1 for n in shape)))
    labels = coarse.repeat(3, 1).repeat(3, 2).repeat(3, 3)[:, : shape[0], : shape[1], : shape[2]]
    labels[:, :7, :5] = 0
    return image, labels.astype(np.float32)


def both(plan: dict, labels: np.ndarray | None, image: np.ndarray, meaning: dict | None = None) -> list[tuple]:
    """What stock and ours make of it: (image, labels, properties) each."""
    manager = PlansManager(plan)
    rest = (manager, manager.get_configuration("3d_fullres"), meaning or {"labels": LABELS})
    return [
        kind(verbose=False).run_case_npy(image.copy(), None if labels is None else labels.copy(), dict(GIVEN), *rest)
        for kind in (DefaultPreprocessor, Preprocessor)
    ]


def assert_same(theirs: tuple, ours: tuple) -> None:
    assert ours[0].dtype == theirs[0].dtype == np.float32
    limit = max(1e-6 * theirs[0].std(), 1.01 * np.spacing(np.abs(theirs[0]).max()))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=limit)
    assert ours[1].dtype == theirs[1].dtype
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_equal(ours[2], theirs[2])


@for_each("spacing", [[1.5, 1.2, 1.2], [0.8, 2.0, 0.7], [5.0, 0.9, 0.9], [0.9, 2.0, 1.1]])
@for_each("channels", [1, 2])
def test_image_labels_and_properties_equal_nnunets(spacing: list[float], channels: int) -> None:
    image, labels = case(channels)
    theirs, ours = both(plans(channels, spacing=spacing), labels, image)
    assert_same(theirs, ours)
    assert len(ours[2]["class_locations"][3]) > 50
    assert (ours[1] == -1).any()


def test_two_dimensional_plans_keep_the_slices() -> None:
    image, labels = case()
    theirs, ours = both(plans(ndim=2), labels, image)
    assert_same(theirs, ours)
    assert ours[0].shape[1] == image.shape[2] - 3


@for_each(
    "meaning",
    [
        {"labels": {**LABELS, "ignore": 4}},
        {"labels": {"background": 0, "all": [1, 2, 3], "b": 2}, "regions_class_order": [1, 2]},
        {"labels": {"background": 0, "all": [1, 2], "b": 2, "ignore": 3}, "regions_class_order": [1, 2]},
        {"labels": {**LABELS, "absent": 4}},
    ],
)
def test_places_of_classes_regions_and_an_ignore_label_equal_nnunets(meaning: dict) -> None:
    image, labels = case()
    theirs, ours = both(plans(), labels, image, meaning)
    assert_same(theirs, ours)


@for_each("highest", [126, 255, 300, 40000])
def test_many_labels_come_out_in_nnunets_type(highest: int) -> None:
    image, labels = case()
    labels[labels == 3] = highest
    theirs, ours = both(plans(), labels, image, {"labels": {**LABELS, "c": highest}})
    assert_same(theirs, ours)


@for_each("masked", [False, True])
def test_without_labels_there_is_nnunets_mask_or_none(masked: bool) -> None:
    image, _ = case(2)
    plan = plans(2, use_mask_for_norm=[masked, masked])
    theirs, ours = both(plan, None, image)
    assert_same(theirs, ours)
    manager = PlansManager(plan)
    configuration = manager.get_configuration("3d_fullres")
    lean = preprocessor_of(configuration, needs_mask=False)
    rest = (dict(GIVEN), manager, configuration, {"labels": LABELS})
    alone = lean.run_case_npy(image.copy(), None, *rest)
    np.testing.assert_array_equal(alone[0], ours[0])
    assert alone[1] is None


@for_each(
    "changes",
    [
        {"resampling_fn_data": "resample_torch_fornnunet", "resampling_fn_data_kwargs": {"is_seg": False}},
        {"resampling_fn_data_kwargs": {"is_seg": False, "order": 2}},
        {"resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 1, "force_separate_z": True}},
        {"resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 1, "force_separate_z": True}},
        {"resampling_fn_seg_kwargs": {"is_seg": True, "order": 0, "order_z": 0}},
        {"resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "force_separate_z": True}},
        {"resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "separate_z_anisotropy_threshold": 1.1}},
        {"resampling_fn_data_kwargs": {}},
    ],
)
def test_whatever_the_plans_ask_for_is_done_as_in_nnunet(changes: dict) -> None:
    image, labels = case()
    theirs, ours = both(plans(**changes), labels, image)
    assert_same(theirs, ours)


def test_a_preprocessor_of_another_name_is_nnunets_own() -> None:
    configuration = PlansManager(plans()).get_configuration("3d_fullres")
    assert type(preprocessor_of(configuration)) is Preprocessor
    configuration.configuration["preprocessor_name"] = "SomeoneElses"
    configuration.__class__ = type("Known", (type(configuration),), {"preprocessor_class": DefaultPreprocessor})
    assert type(preprocessor_of(configuration)) is DefaultPreprocessor


def test_image_and_labels_of_different_shapes_are_refused() -> None:
    image, labels = case()
    manager = PlansManager(plans())
    rest = (dict(GIVEN), manager, manager.get_configuration("3d_fullres"), {"labels": LABELS})
    with pytest.raises(ValueError, match=r"Shape mismatch: .*\(14, 20, 17\) voxels, its labels \(14, 20, 16\)"):
        Preprocessor(False).run_case_npy(image, labels[..., 1:], *rest)


def test_real_hippocampi_equal_nnunets(data: Path) -> None:
    plan = plans(spacing=[1.3, 0.8, 0.9], normalization_schemes=["ZScoreNormalization"])
    manager = PlansManager(plan)
    rest = (manager, manager.get_configuration("3d_fullres"), {"labels": {"background": 0, "a": 1, "b": 2}})
    root = data / "Task04_Hippocampus"
    for label in sorted((root / "labelsTr").glob("hippocampus_0*.nii.gz"))[:4]:
        files = ([str(root / "imagesTr" / label.name)], str(label))
        assert_same(*(kind(verbose=False).run_case(*files, *rest) for kind in (DefaultPreprocessor, Preprocessor)))


@for_each("forward", [[0, 1, 2], [2, 0, 1]])
def test_a_real_ct_equals_nnunets_and_needs_little_memory(data: Path, forward: list[int]) -> None:
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(data / "ct" / "thorax_1.5mm.nii.gz")))[None].astype(np.float32)
    manager = PlansManager(plans(spacing=[2.0, 1.6, 1.8]) | {"transpose_forward": forward})
    rest = (manager, manager.get_configuration("3d_fullres"), {"labels": LABELS})
    results, copies = [], []
    for preprocessor in (DefaultPreprocessor(verbose=False), Preprocessor(False), Preprocessor(False, False)):
        given = image.copy()
        tracemalloc.start()
        results.append(preprocessor.run_case_npy(given, None, {"spacing": [1.5, 1.5, 1.5]}, *rest))
        copies.append(1 + tracemalloc.get_traced_memory()[1] / image.nbytes)
        tracemalloc.stop()
    assert_same(results[0], results[1])
    np.testing.assert_array_equal(results[2][0], results[1][0])
    assert results[2][1:] == (None, results[1][2])
    assert copies[2] < copies[1] < 3 < 5 < copies[0]  # in a volume so small the window of planes counts much


def test_of_large_classes_the_first_of_nnunets_places_are_listed() -> None:
    labels = np.zeros((1, 40, 50, 60), np.float32)
    labels[:, 2:38, 2:48, 2:30], labels[:, 5:9, 5:9, 40:44] = 1, 2
    image = np.ones_like(labels)
    theirs, ours = (made[2]["class_locations"] for made in both(plans(), labels, image))
    assert len(theirs[1]) == 10000
    assert ours[1].shape == (PLACES, 4)
    assert ours[1].dtype == np.int16
    np.testing.assert_array_equal(ours[1], theirs[1][:PLACES])
    np.testing.assert_array_equal(ours[2], theirs[2])


def test_of_all_that_is_annotated_as_many_places_are_listed_as_nnunet_lists() -> None:
    labels = np.zeros((1, 102, 100, 100), np.int8)
    labels[:, 101:], labels[0, 0, 0] = 2, 1  # 2 is ignored
    found = places_of(labels, [1, [-1, 0, 1]])
    assert found[-1, 0, 1].shape == (10_100, 4)  # 1 %
    assert labels[tuple(found[-1, 0, 1].T)].max() < 2
    assert len(found[1]) == 100


@for_each("patch", [(16, 16, 16), np.array([64, 64, 64])])
def test_nnunets_loader_finds_the_places_also_near_the_edges(patch: Sequence[int]) -> None:
    labels = np.zeros((1, 30, 30, 30), np.float32)
    labels[:, 2:5, 1:3, 26:29] = 1
    image = np.ones_like(labels)
    manager = PlansManager(plans())
    loader = object.__new__(nnUNetDataLoader)
    loader.patch_size, loader.need_to_pad, loader.has_ignore = patch, np.zeros(3, int), False
    loader.annotated_classes_key = (-1, 0, 1)
    boxes = []
    for kind in (DefaultPreprocessor, Preprocessor):
        rest = (dict(GIVEN), manager, manager.get_configuration("3d_fullres"), {"labels": {"background": 0, "a": 1}})
        made = kind(verbose=False).run_case_npy(image.copy(), labels.copy(), *rest)
        np.random.seed(0)
        boxes.append([loader.get_bbox(made[0].shape[1:], True, made[2]["class_locations"]) for _ in range(20)])
    np.testing.assert_array_equal(*boxes)


def test_an_image_in_another_orientation_than_the_plans_becomes_the_same(tmp_path: Path) -> None:
    """As a dataset that mixes orientations is preprocessed; nnU-Net's writer puts its labels to the right place."""
    image, labels = case()
    plan = {**plans(), "stunet": {"orientation": "LPS", "orientations": {"LPS": 2, "PIR": 1}}}
    manager, made = Plans(plan), {}
    for code in ("LPS", "PIR"):
        files = []
        for name, array in (("image", image), ("labels", labels)):
            stored = sitk.GetImageFromArray(array[0])
            stored.SetSpacing(GIVEN["spacing"][::-1])
            files.append(str(tmp_path / f"{code}_{name}.nii.gz"))
            sitk.WriteImage(sitk.DICOMOrient(stored, code), files[-1])
        rest = (manager, manager.get_configuration("3d_fullres"), {"labels": LABELS})
        made[code] = Preprocessor(verbose=False).run_case(files[:1], files[1], *rest)
    for ours, theirs in zip(made["PIR"][:2], made["LPS"][:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert made["LPS"][2]["sitk_stuff"].keys() == {"spacing", "origin", "direction"}
    np.testing.assert_equal(
        {key: value for key, value in made["PIR"][2].items() if key != "sitk_stuff"},
        {key: value for key, value in made["LPS"][2].items() if key != "sitk_stuff"},
    )
    SimpleITKIO().write_seg(labels[0], str(tmp_path / "stock.nii.gz"), made["PIR"][2])
    written = sitk.DICOMOrient(sitk.ReadImage(tmp_path / "stock.nii.gz"), "PIR")
    expected = sitk.ReadImage(tmp_path / "PIR_labels.nii.gz")
    np.testing.assert_allclose(written.GetOrigin(), expected.GetOrigin(), atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(expected))


def test_images_that_keep_their_spacing_are_not_resampled() -> None:
    kept = {f"resampling_fn_{kind}": "no_resampling_hack" for kind in ("data", "seg")}
    kept |= {f"resampling_fn_{kind}_kwargs": {} for kind in ("data", "seg")}
    image, labels = case()
    plan = plans(spacing=[90.0, 90.0, 90.0], **kept)  # at which nothing would be left
    theirs, ours = both(plan, labels, image)
    assert_same(theirs, ours)
    assert ours[0].shape[1:] == tuple(ours[2]["shape_after_cropping_and_before_resampling"])
