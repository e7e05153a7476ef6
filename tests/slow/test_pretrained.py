"""Released weights from the file to a segmentation, with real commands: v1 file in, stock and our prediction out.

The weights are random, everything around them is as published: the layout of the file, its plans, size S, 105 classes.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from stunet.files import read_json
from stunet.networks import build
from tests.slow.conftest import Place

pytestmark = pytest.mark.slow

MODEL = "STU-Net-S.totalseg"
STRIDES = [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]]
SYSTEM = "totalsegmentator-v1"  # all classes of these weights, with other numbers
QUICK = ("--disable_tta", "-device", "cpu", "--disable_progress_bar")


def write_v1(file: Path, pkl: Path) -> None:
    """A checkpoint as nnU-Net v1 saves it, with momentum and statistics of training, and its plans beside it."""
    torch.manual_seed(0)
    network = build("S", STRIDES, 1, 105)
    network.apply(network.initialize)
    weights = network.state_dict()
    momentum = {number: {"momentum_buffer": torch.zeros_like(value)} for number, value in enumerate(weights.values())}
    content = {
        "epoch": 4000,
        "state_dict": weights,
        "optimizer_state_dict": {"state": momentum, "param_groups": [{"lr": 1e-6, "params": [*momentum]}]},
        "lr_scheduler_state_dict": None,
        "plot_stuff": ([np.float64(-0.5)], [np.float32(-0.4)], [], [np.float64(0.9)]),
        "best_stuff": (np.float64(0.9), None, np.float64(0.9)),
        "amp_grad_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
    }
    torch.save(content, file)
    shutil.copy(pkl, file.with_name(f"{file.name}.pkl"))


@pytest.fixture(scope="module")
def there(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The model imported into `store`, and its prediction of part of a CT, every second slice of it, in `ours`."""
    place = Place(tmp_path_factory.mktemp("pretrained"))
    ct = sitk.ReadImage(str(data / "ct" / "thorax_1.5mm.nii.gz"))
    (place.root / "in").mkdir()
    part = sitk.DICOMOrient(ct, "RAS")[20:80, 20:76, 20:84:2]  # as TotalSegmentator's images lie: stock turns none
    sitk.WriteImage(part, str(place.root / "in" / "thorax_0000.nii.gz"))
    file = place.root / "small_ep4k.model"
    write_v1(file, data / "stunet_official" / f"{file.name}.pkl")
    named = ("--name", MODEL)  # though its sha256 is not that of the released file
    printed = place.run("stunet_models", "import", file, *named, STUNET_MODELS=place.root / "store")
    assert printed == f"{place.root / 'store' / MODEL}\n"
    predict(place, "ours")
    return place


def predict(place: Place, out: str, *options: str, store: str = "store") -> None:
    command = ("stunet_predict", "-i", place.root / "in", "-o", place.root / out, "--model", "STU-Net-S")
    options = (*options, "--precision", "fp32")
    place.run(*command, *QUICK, *options, STUNET_MODELS=place.root / store)


def voxels(place: Place, out: str) -> np.ndarray:
    """The only result in a folder."""
    (array,) = place.read(place.root / out).values()
    return array


def test_stock_nnunet_predicts_the_same_with_the_folder(there: Place) -> None:
    folders = ("-i", there.root / "in", "-o", there.root / "stock", "-m", there.root / "store" / MODEL)
    there.run("nnUNetv2_predict_from_modelfolder", *folders, "-f", 0, "-npp", 1, "-nps", 1, *QUICK)
    ours, stock = (voxels(there, out) for out in ("ours", "stock"))
    assert len(np.unique(ours)) > 10
    # With random weights many of the 105 logits are close, and nnU-Net's half precision decides between those.
    assert (ours == stock).mean() > 0.99


def test_elsewhere_and_in_other_labels_the_same_classes_come_out_and_score_as_such(there: Place) -> None:
    archive = there.root / "model.zip"
    there.run("stunet_models", "export", "STU-Net-S", "-o", archive, STUNET_MODELS=there.root / "store")
    there.run("stunet_models", "import", archive, STUNET_MODELS=there.root / "elsewhere")
    predict(there, "labels", "--labels", SYSTEM, store="elsewhere")
    ours, theirs = (read_json(there.root / out / "dataset.json")["labels"] for out in ("ours", "labels"))
    assert sorted(ours) == sorted(theirs)
    numbers = np.array([theirs[name] for name in sorted(ours, key=ours.get)])
    assert (numbers != np.arange(105)).any()
    np.testing.assert_array_equal(voxels(there, "labels"), numbers[voxels(there, "ours")])
    for predictions in ("ours", "labels"):
        command = ("stunet_evaluate", there.root / "labels", there.root / predictions, "--labels", SYSTEM, "-np", 1)
        there.run(*command, "-o", there.root / "summary.json")
        means = read_json(there.root / "summary.json")["mean"]
        scored = {int(label) for label, mean in means.items() if mean["n_cases"]}
        assert scored == set(np.unique(voxels(there, "labels"))) - {0}
        assert all(means[str(label)]["Dice"] == 1 for label in scored)
