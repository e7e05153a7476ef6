"""Tests of stunet.inference: cases are found and named, and every result equals nnU-Net's own, voxel by voxel."""

import json
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch

from stunet.errors import DataError, WeightsError
from stunet.inference.cases import Case, Model, find_cases, geometry, open_model
from stunet.inference.predictor import Options, Outcome, Predictor, whole_case
from stunet.networks import STUNet
from stunet.weights.checkpoints import save_checkpoint

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
SEED = 3  # gives networks that find every class
SHAPE = (18, 25, 21)  # voxels (D, H, W)
SPACING = (1.8, 1.2, 1.5)  # mm in array order


def make_model(
    folder: Path,
    folds: Sequence[int | str] = (0,),
    channels: int = 1,
    mirror: tuple[int, ...] | None = (0, 1, 2),
    reader: str = "SimpleITKIO",
    ending: str = ".nii.gz",
) -> Path:
    """A model folder called TRAINER__PLANS__CONFIGURATION as training leaves it, with random weights."""
    name = folder.name.split("__")[2]
    ndim = 2 if name == "2d" else 3
    strides = [stride[:ndim] for stride in STRIDES]
    resampling = {
        f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg", "probabilities")
    } | {
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    }
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * ndim,
        "spacing": [1.5] * ndim,
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        **resampling,
        "architecture": {
            "network_class_name": "stunet.networks.STUNet",
            "arch_kwargs": {"size": "T", "strides": strides},
            "_kw_requires_import": [],
        },
        "batch_dice": False,
    }
    plans = {
        "dataset_name": "Dataset001_Test",
        "plans_name": "STUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": [1, 2, 0] if ndim == 3 else [0, 1, 2],
        "transpose_backward": [2, 0, 1] if ndim == 3 else [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): {} for i in range(channels)},
        "configurations": {
            "2d": full,
            "3d_fullres": full,
            "3d_lowres": {"inherits_from": "3d_fullres", "spacing": [2.5, 2.5, 2.5]},
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }
    dataset = {
        "channel_names": {str(i): f"MR{i}" for i in range(channels)},
        "labels": {"background": 0, "a": 1, "b": 2},
        "file_ending": ending,
        "numTraining": 1,
    }
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    inputs = channels + (2 if "cascade" in name else 0)
    for fold in folds:
        torch.manual_seed(SEED + (fold if isinstance(fold, int) else 99))
        network = STUNet(inputs, 3, "T", strides)
        network.apply(network.initialize)
        content = {
            "network_weights": network.state_dict(),
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": name, "plans": {}, "fold": fold},
            "inference_allowed_mirroring_axes": mirror,
        }
        (folder / f"fold_{fold}").mkdir()
        save_checkpoint(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def write_image(path: Path, seed: int = 0, shape: tuple[int, ...] = SHAPE, values: np.ndarray | None = None) -> Path:
    """Smoothed noise with a rim of zeros, which nnU-Net crops, and with an origin and axes of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 1.5) if values is None else None
    array = sitk.GetArrayFromImage(image) if image is not None else values
    assert array is not None
    array[:2] = 0
    result = sitk.GetImageFromArray(array, isVector=False)
    if array.ndim == 3:
        result.SetSpacing(SPACING[::-1])
        result.SetOrigin((3.0, -7.0, 11.0))
        result.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    sitk.WriteImage(result, str(path))
    return path


def write_png(path: Path, shape: tuple[int, ...]) -> None:
    """Noise of (H, W) or (H, W, channels)."""
    values = np.random.default_rng(4).integers(0, 255, shape, np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=len(shape) == 3), str(path))


def reference(folder: Path, inputs: list[list[Path]], out: Path, **options: Any) -> Path:
    """nnU-Net's own prediction of the same model, in this process."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir()
    folds, previous = options.pop("folds", (0,)), options.pop("previous", None)
    probabilities = options.pop("probabilities", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its search for the trainer imports all of them
        stock = nnUNetPredictor(
            device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False, **options
        )
        stock.initialize_from_trained_model_folder(str(folder), folds)
        files = [[str(path) for path in case] for case in inputs]
        stock.predict_from_files_sequential(
            files, str(out), probabilities, True, None if previous is None else str(previous)
        )
    return out


def run(
    folder: Path, source: Path, out: Path, folds: Sequence[int | str] | None = None, **options: Any
) -> list[Outcome]:
    model = open_model(folder, folds)
    out.mkdir(exist_ok=True)
    return list(Predictor(model, Options(**options)).predict(find_cases(source, model), out))


def same(a: Path, b: Path) -> None:
    """Equal voxels, and not a constant image, which would prove nothing; equal geometry."""
    first, second = sitk.ReadImage(str(a)), sitk.ReadImage(str(b))
    voxels = sitk.GetArrayFromImage(first)
    assert len(np.unique(voxels)) == 3
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(second))
    for geometry_of in ("GetSpacing", "GetOrigin", "GetDirection", "GetPixelID"):
        assert getattr(first, geometry_of)() == getattr(second, geometry_of)()


def test_an_ensemble_with_mirroring_equals_nnunet_voxel_by_voxel(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "STUNetTrainer__STUNetPlans__3d_fullres", folds=(0, 1))
    files = [[write_image(tmp_path / f"in/case{n}_0000.nii.gz", n)] for n in (1, 2)]
    stock = reference(folder, files, tmp_path / "stock", folds=(0, 1))
    outcomes = run(folder, tmp_path / "in", tmp_path / "out")
    assert [outcome.case.name for outcome in outcomes] == ["case1", "case2"]
    for outcome in outcomes:
        assert outcome.error is None
        same(outcome.file, stock / outcome.file.name)


def test_step_size_two_channels_and_probabilities_equal_nnunet(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", channels=2, mirror=None)
    files = [write_image(tmp_path / f"in/c_000{n}.nii.gz", n) for n in (0, 1)]
    stock = reference(folder, [files], tmp_path / "stock", tile_step_size=0.75, probabilities=True)
    run(folder, tmp_path / "in", tmp_path / "out", step_size=0.75, save_probabilities=True)
    same(tmp_path / "out/c.nii.gz", stock / "c.nii.gz")
    ours, theirs = (np.load(path / "c.npz")["probabilities"] for path in (tmp_path / "out", stock))
    np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (pickle.loads((path / "c.pkl").read_bytes()) for path in (tmp_path / "out", stock))
    assert ours == theirs
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c.nii.gz", "c.npz", "c.pkl"]


def test_without_mirroring_fewer_numbers_are_averaged_as_in_nnunet(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    image = write_image(tmp_path / "in/c_0000.nii.gz")
    stock = reference(folder, [[image]], tmp_path / "stock", use_mirroring=False)
    run(folder, image, tmp_path / "out", mirroring=False)
    same(tmp_path / "out/c.nii.gz", stock / "c.nii.gz")


def test_a_cascade_takes_the_previous_segmentation_as_nnunet_does(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_cascade_fullres", mirror=(0,))
    image = write_image(tmp_path / "in/c_0000.nii.gz")
    labels = np.random.default_rng(5).integers(0, 3, SHAPE).astype(np.float32)
    previous = write_image(tmp_path / "previous/c.nii.gz", values=labels)
    stock = reference(folder, [[image]], tmp_path / "stock", previous=previous.parent)
    predictor = Predictor(open_model(folder), Options())
    assert predictor.previous_stage == "3d_lowres"
    (tmp_path / "out").mkdir()
    [outcome] = predictor.predict([Case("c", (image,), previous)], tmp_path / "out")
    same(outcome.file, stock / "c.nii.gz")


def test_an_rgb_image_is_one_file_of_three_channels_as_in_nnunet(tmp_path: Path) -> None:
    png = {"reader": "NaturalImage2DIO", "ending": ".png"}
    folder = make_model(tmp_path / "T__P__2d", channels=3, mirror=(0, 1), **png)
    image = tmp_path / "in/c_0000.png"
    image.parent.mkdir()
    write_png(image, (31, 27, 3))
    stock = reference(folder, [[image]], tmp_path / "stock")
    [outcome] = run(folder, image.parent, tmp_path / "out")
    assert outcome.error is None
    ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(str(path / "c.png"))) for path in (tmp_path / "out", stock))
    assert len(np.unique(ours)) > 1
    np.testing.assert_array_equal(ours, theirs)
    predictor = Predictor(open_model(folder), Options())
    assert predictor.peak_gb(*geometry(outcome.case)) == pytest.approx(3 * (21 * 18 * 10 + 31 * 27 * 2) / 1e9)


def test_a_4d_file_gives_what_its_channels_in_files_of_their_own_give(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", channels=2, mirror=None)
    files = [write_image(tmp_path / f"in/c_000{n}.nii.gz", n) for n in (0, 1)]
    (tmp_path / "4d").mkdir()
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(file)) for file in files]), str(tmp_path / "4d/c_0000.nii.gz"))
    run(folder, tmp_path / "in", tmp_path / "out")
    [outcome] = run(folder, tmp_path / "4d", tmp_path / "out_4d")
    assert outcome.error is None
    same(outcome.file, tmp_path / "out/c.nii.gz")
    assert geometry(outcome.case) == geometry(Case("c", tuple(files)))


@pytest.mark.parametrize(("shape", "count"), [((31, 27), 1), ((31, 27, 4), 4)])
def test_a_file_with_other_channels_than_the_model_is_an_error_of_that_case(
    tmp_path: Path, shape: tuple[int, ...], count: int
) -> None:
    folder = make_model(tmp_path / "T__P__2d", channels=3, mirror=None, reader="NaturalImage2DIO", ending=".png")
    write_png(tmp_path / "c_0000.png", shape)
    [outcome] = run(folder, tmp_path / "c_0000.png", tmp_path / "out")
    assert outcome.error is not None
    assert f"holds {count} channel(s), but the model takes 3 (MR0, MR1, MR2)" in outcome.error.message


def test_tiff_volumes_keep_the_spacing_that_stands_beside_them(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None, reader="Tiff3DIO", ending=".tif")
    image = tmp_path / "in/c_0000.tif"
    image.parent.mkdir()
    tifffile.imwrite(image, sitk.GetArrayFromImage(sitk.ReadImage(str(write_image(tmp_path / "c.nii.gz")))))
    (tmp_path / "in/c.json").write_text(json.dumps({"spacing": SPACING}))
    stock = reference(folder, [[image]], tmp_path / "stock")
    out = tmp_path / "out"
    [outcome] = run(folder, image.parent, out)
    assert outcome.error is None
    assert sorted(path.name for path in out.iterdir()) == ["c.json", "c.tif"]
    assert json.loads((out / "c.json").read_text()) == {"spacing": list(SPACING)}
    ours, theirs = (tifffile.imread(path / "c.tif") for path in (out, stock))
    assert len(np.unique(ours)) == 3
    np.testing.assert_array_equal(ours, theirs)
    predictor = Predictor(open_model(folder), Options())
    assert predictor.is_done(outcome.case, out)
    (out / "c.json").rename(out / ".part-1-c.json")
    predictor.remove_leftovers(out, [outcome.case])
    assert [path.name for path in out.iterdir()] == ["c.tif"]


def test_tiff_volumes_need_a_channel_number_because_their_spacing_is_found_by_it(tmp_path: Path) -> None:
    dataset = {"file_ending": ".tif", "channel_names": {"0": "MR0"}}
    model = Model(tmp_path, {"image_reader_writer": "Tiff3DIO"}, dataset, (0,), "")
    (tmp_path / "c.tif").touch()
    with pytest.raises(DataError, match=r"'c\.tif' has no channel number") as caught:
        find_cases(tmp_path, model)
    assert "CASE_0000.tif" in caught.value.hint


def test_broken_cases_are_reported_and_the_others_are_done(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    source = tmp_path / "in"
    good = write_image(source / "good.nii.gz")
    (source / "half.nii.gz").write_bytes(good.read_bytes()[:9000])
    (source / "text.nii.gz").write_bytes(b"no image at all")
    write_image(source / "series.nii.gz", values=np.ones((2, *SHAPE), np.float32))
    errors = {outcome.case.name: outcome.error for outcome in run(folder, source, tmp_path / "out")}
    assert list(errors) == ["good", "half", "series", "text"]
    messages = {name: error.message for name, error in errors.items() if error}
    assert "Compressed file ended" in messages["half"]
    assert "holds 2 channel(s), but the model takes 1 (MR0)" in messages["series"]
    assert "cannot read" in messages["text"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_without_a_finite_value_are_an_error(tmp_path: Path, value: float) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    voxels = np.ones(SHAPE, np.float32)
    voxels[9, 9, 9] = value
    [outcome] = run(folder, write_image(tmp_path / "holes.nii.gz", values=voxels), tmp_path / "out")
    assert outcome.error is not None
    assert "holds NaN or infinity" in outcome.error.message


def test_channels_of_different_shapes_are_an_error_of_that_case(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", channels=2)
    write_image(tmp_path / "in/c_0000.nii.gz")
    write_image(tmp_path / "in/c_0001.nii.gz", shape=(18, 20, 20))
    [outcome] = run(folder, tmp_path / "in", tmp_path / "out")
    assert outcome.error is not None
    assert "differ in shape or spacing" in outcome.error.message


def test_a_dicom_folder_is_one_case_named_after_the_folder(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    slices = write_dicom(tmp_path / "patient_7")
    image = tmp_path / "ct_0000.nii.gz"
    sitk.WriteImage(sitk.ReadImage([str(path) for path in slices]), str(image))
    run(folder, image, tmp_path / "nifti")
    [outcome] = run(folder, tmp_path / "patient_7", tmp_path / "out")
    assert outcome.error is None
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["patient_7.nii.gz"]
    ours, expected = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (outcome.file, tmp_path / "nifti/ct.nii.gz")
    )
    np.testing.assert_array_equal(ours, expected)


def test_weights_of_another_size_are_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    text = (folder / "plans.json").read_text()
    (folder / "plans.json").write_text(text.replace('"size": "T"', '"size": "S"'))
    with pytest.raises(WeightsError, match=r"of another shape .*\(4, 1, 3, 3, 3\) instead of \(16, 1, 3, 3, 3\)"):
        Predictor(open_model(folder), Options())
    (folder / "plans.json").write_text(text.replace('"size": "T"', '"size": "X"'))
    with pytest.raises(DataError, match="does not describe the network"):
        Predictor(open_model(folder), Options())


@pytest.mark.parametrize(
    ("names", "channels", "cases"),
    [
        (["b_0000", "a_0000", ".part-1-x"], 1, {"a": ["a_0000"], "b": ["b_0000"]}),
        (["a", "b_1", "c_0007"], 1, {"a": ["a"], "b_1": ["b_1"], "c_0007": ["c_0007"]}),
        (["a_0001", "a_0000", "b_0000", "b_0001"], 2, {"a": ["a_0000", "a_0001"], "b": ["b_0000", "b_0001"]}),
        (["b_0000", "a_0000"], 2, {"a": ["a_0000"], "b": ["b_0000"]}),
        (["a_0000", "b_0000", "b_0001"], 2, "lacks channel 1 (MR1): no 'a_0001.nii.gz'"),
        (["a_0001"], 2, "lacks channel 0 (MR0): no 'a_0000.nii.gz'"),
        (["a_0000", "a_0001"], 1, "has channel 1, but the model takes 1"),
        (["a_0000", "a_0001", "a_0002"], 2, "has channel 2, but the model takes 2"),
        (["a", "a_0000"], 1, "are the same case"),
        (["a"], 2, "has no channel number"),
        ([], 1, "no files ending with '.nii.gz'"),
    ],
)
def test_cases_are_grouped_by_name_and_channel(
    tmp_path: Path, names: list[str], channels: int, cases: dict[str, list[str]] | str
) -> None:
    dataset = {"file_ending": ".nii.gz", "channel_names": {str(i): f"MR{i}" for i in range(channels)}}
    model = Model(tmp_path, {}, dataset, (0,), "")
    source = tmp_path / "in"
    source.mkdir()
    for name in names:
        (source / f"{name}.nii.gz").touch()
    if isinstance(cases, str):
        with pytest.raises(DataError) as caught:
            find_cases(source, model)
        assert cases in caught.value.message
    else:
        found = {
            case.name: [path.name.removesuffix(".nii.gz") for path in case.files] for case in find_cases(source, model)
        }
        assert found == cases
        assert list(found) == sorted(found)


def test_a_single_file_brings_the_other_channels_of_its_case(tmp_path: Path) -> None:
    dataset = {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}}
    for name in ("a_0000", "a_0001", "ab_0000", "b_0000"):
        (tmp_path / f"{name}.nii.gz").touch()
    [case] = find_cases(tmp_path / "a_0001.nii.gz", Model(tmp_path, {}, dataset, (0,), ""))
    assert case == Case("a", (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"))


def test_the_folds_found_are_the_default_and_missing_ones_are_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", folds=(0, 2, "all"))
    assert open_model(folder).folds == (0, 2)
    assert open_model(folder, ["all"]).folds == ("all",)
    with pytest.raises(DataError, match=r"fold 1 has no checkpoint_final\.pth"):
        open_model(folder, [0, 1])
    with pytest.raises(DataError) as caught:
        open_model(folder, checkpoint="checkpoint_best.pth")
    assert caught.value.hint == "-chk checkpoint_final.pth"


def test_a_result_that_itk_truncated_in_silence_never_gets_its_name(tmp_path: Path) -> None:
    data = write_image(tmp_path / "in/image.nii.gz").read_bytes()
    out = tmp_path / "out"
    out.mkdir()

    def write(size: int) -> None:
        with whole_case(out, "c", [".npz", ".nii.gz"]) as part:
            Path(f"{part}.npz").touch()
            Path(f"{part}.nii.gz").write_bytes(data[:size])

    with pytest.raises(OSError, match="No space left"):
        write(500)
    assert list(out.iterdir()) == []
    write(len(data))
    assert sorted(path.name for path in out.iterdir()) == ["c.nii.gz", "c.npz"]


def test_the_memory_of_the_logits_follows_from_shape_spacing_and_classes(tmp_path: Path) -> None:
    predictor = Predictor(open_model(make_model(tmp_path / "T__P__3d_fullres")), Options())
    assert predictor.peak_gb((300, 100, 100), (1.5, 1.5, 1.5)) == pytest.approx(3 * 3e6 * (10 + 2) / 1e9)
    assert predictor.peak_gb((100, 100, 300), (3.0, 3.0, 0.75)) == pytest.approx(3 * (6e6 * 10 + 3e6 * 2) / 1e9)
    image = write_image(tmp_path / "a.nii.gz")
    shape, spacing = geometry(Case("a", (image,)))
    assert shape == SHAPE
    assert spacing == pytest.approx(SPACING)


def write_dicom(folder: Path) -> list[Path]:
    """A CT of 10 slices, 2 mm apart."""
    folder.mkdir()
    paths = []
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    voxels = np.random.default_rng(3).integers(-500, 500, (10, 20, 20)).astype(np.int16)
    for n, plane in enumerate(voxels):
        image = sitk.GetImageFromArray(plane)
        image.SetSpacing((1.5, 1.5))
        tags = {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.1.{n + 1}",
            "0020|0032": f"0\\0\\{2 * n}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(n),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        paths.append(folder / f"slice{n:02d}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths
