"""Real CT in, segmentations on exactly its grid out: a DICOM folder, one file, and a folder of files.

The model is one of the phantom with voxels of 6 x 5 x 5 mm, so that a CT becomes small.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.files import read_json

if TYPE_CHECKING:
    from tests.slow.conftest import Place

pytestmark = pytest.mark.slow

QUICK = ("-f", 0, "--disable_tta", "-step_size", 0.9, "-device", "cpu", "--disable_progress_bar")


@pytest.fixture(scope="module")
def series(data: Path) -> sitk.Image:
    """The DICOM series as ITK reads it."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(data / "ct" / "abdomen_dicom")))
    return reader.Execute()


@pytest.fixture(scope="module")
def predicted(trained: "Place", data: Path, series: sitk.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the same two images: dicom/abdomen_dicom, thorax (a file), and folder/abdomen, folder/thorax."""
    root = tmp_path_factory.mktemp("ct")
    (root / "in").mkdir()
    sitk.WriteImage(series, str(root / "in" / "abdomen_0000.nii.gz"))
    (root / "in" / "thorax_0000.nii.gz").symlink_to(data / "ct" / "thorax_1.5mm.nii.gz")
    command = ("stunet_predict", "--model", trained.model("3d_fullres"), *QUICK)
    one_file = root / "thorax.nii.gz"
    printed = trained.run(*command, "-i", data / "ct" / "thorax_1.5mm.nii.gz", "-o", one_file)
    assert printed.splitlines() == [str(one_file)]
    trained.run(*command, "-i", data / "ct" / "abdomen_dicom", "-o", root / "dicom")
    trained.run(*command, "-i", root / "in", "-o", root / "folder")
    return root


def test_results_have_the_grid_of_their_images_and_labels_of_the_dataset(
    predicted: Path, data: Path, series: sitk.Image, trained: "Place"
) -> None:
    thorax = sitk.ReadImage(str(data / "ct" / "thorax_1.5mm.nii.gz"))
    labels = set(read_json(trained.model("3d_fullres") / "dataset.json")["labels"].values())
    for name, image in {
        "dicom/abdomen_dicom": series,
        "thorax": thorax,
        "folder/abdomen": series,
        "folder/thorax": thorax,
    }.items():
        result = sitk.ReadImage(str(predicted / f"{name}.nii.gz"))
        assert result.GetSize() == image.GetSize()
        for value, expected in (
            (result.GetSpacing(), image.GetSpacing()),
            (result.GetOrigin(), image.GetOrigin()),
            (result.GetDirection(), image.GetDirection()),
        ):
            assert value == pytest.approx(expected, abs=1e-4)
        assert set(np.unique(sitk.GetArrayFromImage(result))) <= labels


def test_dicom_nifti_one_file_and_a_folder_give_the_same(predicted: Path, trained: "Place") -> None:
    folder = trained.read(predicted / "folder")
    np.testing.assert_array_equal(trained.read(predicted / "dicom")["abdomen_dicom.nii.gz"], folder["abdomen.nii.gz"])
    np.testing.assert_array_equal(trained.read(predicted)["thorax.nii.gz"], folder["thorax.nii.gz"])
    assert all(len(np.unique(array)) > 1 for array in folder.values())


def test_a_prediction_agrees_with_itself(predicted: Path, trained: "Place") -> None:
    summary = predicted / "itself.json"
    trained.run("stunet_evaluate", predicted / "folder", predicted / "folder", "-o", summary)
    present = set().union(*(np.unique(array) for array in trained.read(predicted / "folder").values())) - {0}
    means = read_json(summary)["mean"]
    assert {int(label) for label, mean in means.items() if mean["n_cases"]} == present
    for label in present:
        assert means[str(label)]["Dice"] == means[str(label)]["NSD"] == 1
        assert means[str(label)]["HD95_mm"] == 0
