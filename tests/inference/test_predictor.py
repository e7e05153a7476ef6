"""Tests of inference/predictor.py: every result equals nnU-Net's own, voxel by voxel."""

import json
import pickle
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import tifffile

from stunet.inference.cases import InputCase, read_geometry
from stunet.inference.model import open_model
from stunet.inference.pipeline import Pipeline
from stunet.inference.predictor import Options, Predictor
from stunet.inference.products import Products
from tests.predictor_models import (
    SHAPE,
    SPACING,
    make_model,
    reference,
    run,
    same,
    write_dicom,
    write_image,
    write_png,
)


def test_an_ensemble_with_mirroring_equals_nnunet_voxel_by_voxel(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "STUNetTrainer__STUNetPlans__3d_fullres", folds=(0, 1))
    shapes = {1: (13, 25, 14), 2: (12, 14, 21)}  # two windows each, along different axes
    files = [[write_image(tmp_path / f"in/case{n}_0000.nii.gz", n, shape)] for n, shape in shapes.items()]
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
    run(folder, tmp_path / "in", tmp_path / "out", products=Products(probabilities=True), step_size=0.75)
    same(tmp_path / "out/c.nii.gz", stock / "c.nii.gz")
    ours, theirs = (np.load(path / "c.npz")["probabilities"] for path in (tmp_path / "out", stock))
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
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
    predictor = Predictor(open_model(folder), Options(precision="fp32"))
    assert predictor.previous_stage == "3d_lowres"
    (tmp_path / "out").mkdir()
    [outcome] = Pipeline(predictor, tmp_path / "out").run([InputCase("c", (image,), previous)])
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


def test_a_4d_file_gives_what_its_channels_in_files_of_their_own_give(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", channels=2, mirror=None)
    files = [write_image(tmp_path / f"in/c_000{n}.nii.gz", n) for n in (0, 1)]
    (tmp_path / "4d").mkdir()
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(str(file)) for file in files]), str(tmp_path / "4d/c_0000.nii.gz"))
    run(folder, tmp_path / "in", tmp_path / "out")
    [outcome] = run(folder, tmp_path / "4d", tmp_path / "out_4d")
    assert outcome.error is None
    same(outcome.file, tmp_path / "out/c.nii.gz")
    assert read_geometry(outcome.case) == read_geometry(InputCase("c", tuple(files)))


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
    pipeline = Pipeline(Predictor(open_model(folder)), out)
    assert pipeline.is_done(outcome.case)
    before = outcome.case.fingerprint()
    (tmp_path / "in/c.json").write_text(json.dumps({"spacing": [9.5, 1.0, 1.0]}))
    assert outcome.case.fingerprint() != before  # a result with the other spacing is stale
    (out / "c.json").rename(out / ".part-1-c.json")
    assert not pipeline.is_done(outcome.case)
    pipeline.remove_leftovers([outcome.case])
    assert [path.name for path in out.iterdir()] == ["c.tif"]


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
