"""Tests of inference/: what is wrong with a case or a model is said, and never becomes a result."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stunet.architectures.plain_unet import PLAIN_UNET
from stunet.errors import DataError, WeightsError
from stunet.inference.model import open_model
from stunet.inference.network import build
from stunet.inference.predictor import Options, Predictor
from stunet.inference.staging import atomic_case
from stunet.plans.plan import Plan
from stunet.weights.checkpoints import load_checkpoint, save_checkpoint
from tests.loops import for_each
from tests.nnunet_networks import arguments, network
from tests.predictor_models import SHAPE, make_model, run, write_image, write_png


@for_each(("shape", "count"), [((31, 27), 1), ((31, 27, 4), 4)])
def test_a_file_with_other_channels_than_the_model_is_an_error_of_that_case(
    tmp_path: Path, shape: tuple[int, ...], count: int
) -> None:
    folder = make_model(tmp_path / "T__P__2d", channels=3, mirror=None, reader="NaturalImage2DIO", ending=".png")
    write_png(tmp_path / "c_0000.png", shape)
    [outcome] = run(folder, tmp_path / "c_0000.png", tmp_path / "out")
    assert outcome.error is not None
    assert f"holds {count} channel(s), but the model takes 3 (MR0, MR1, MR2)" in outcome.error.message


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


@for_each("value", [np.nan, np.inf])
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


def test_a_result_that_itk_truncated_in_silence_never_gets_its_name(tmp_path: Path) -> None:
    data = write_image(tmp_path / "in/image.nii.gz").read_bytes()
    out = tmp_path / "out"
    out.mkdir()

    def write(size: int) -> None:
        with atomic_case(out, "c", [".npz", ".nii.gz"]) as part:
            Path(f"{part}.npz").touch()
            Path(f"{part}.nii.gz").write_bytes(data[:size])

    with pytest.raises(OSError, match="No space left"):
        write(500)
    assert list(out.iterdir()) == []
    write(len(data))
    assert sorted(path.name for path in out.iterdir()) == ["c.nii.gz", "c.npz"]


def test_weights_of_another_size_are_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    text = (folder / "plans.json").read_text()
    (folder / "plans.json").write_text(text.replace('"size": "T"', '"size": "S"'))
    with pytest.raises(WeightsError, match=r"of another shape .*\(4, 1, 3, 3, 3\) instead of \(16, 1, 3, 3, 3\)"):
        Predictor(open_model(folder), Options())
    (folder / "plans.json").write_text(text.replace('"size": "T"', '"size": "X"'))
    with pytest.raises(DataError, match="does not describe the network"):
        Predictor(open_model(folder), Options())


def edit(file: Path, change: dict[str, Any]) -> None:
    """Changes the architecture in a plans.json."""
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["architecture"] |= change
    file.write_text(json.dumps(plans))


UNET = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2, "features_per_stage": [4, 8], "conv_op": "torch.nn.modules.conv.Conv3d", "kernel_sizes": 3,
        "strides": [[1, 1, 1], [2, 2, 2]], "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "nonlin"],
}  # fmt: skip


def test_networks_of_nnunets_own_library_are_built(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    edit(folder / "plans.json", UNET)
    network = build(open_model(folder), "3d_fullres")[2]
    assert type(network).__name__ == "PlainConvUNet"


@for_each(
    ("change", "wanted"),
    [
        ({"network_class_name": "payload.Network"}, "payload.Network"),
        ({"network_class_name": "stunet.networks.build"}, "stunet.networks.build"),
        ({"network_class_name": f"{UNET['network_class_name'].rpartition('.')[0]}.torch.save"}, "unet.torch.save"),
        ({"arch_kwargs": {**UNET["arch_kwargs"], "nonlin": "payload.Network"}}, "payload.Network"),
        ({"arch_kwargs": {**UNET["arch_kwargs"], "nonlin": "os.system"}}, "os.system"),
        (
            {"arch_kwargs": {**UNET["arch_kwargs"], "nonlin": "torch.nn.functional.importlib.import_module"}},
            "import_module",
        ),
        ({"arch_kwargs": {**UNET["arch_kwargs"], "nonlin": "torch.nn.modules.module.warnings.warn"}}, "warnings.warn"),
    ],
)
def test_plans_cannot_have_anything_else_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], wanted: str
) -> None:
    (tmp_path / "payload.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nNetwork = dict\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = make_model(tmp_path / "T__P__3d_fullres")
    edit(folder / "plans.json", UNET | change)
    with pytest.raises(DataError, match=rf"wants '[\w.]*{wanted}' imported for its network") as caught:
        Predictor(open_model(folder), Options())
    assert "nnUNetv2_predict" in caught.value.hint
    assert not (tmp_path / "executed").exists()
    assert "payload" not in sys.modules


def test_weights_trained_with_other_strides_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    file = folder / "fold_0/checkpoint_final.pth"
    content = load_checkpoint(file)
    content["init_args"]["plans"] = json.loads((folder / "plans.json").read_text())
    save_checkpoint(content, tmp_path / "with_plans.pth")
    (tmp_path / "with_plans.pth").replace(file)
    Predictor(open_model(folder), Options())
    edit(folder / "plans.json", {"arch_kwargs": {"size": "T", "strides": [[1, 1, 1], [2, 2, 2], [1, 2, 2]]}})
    with pytest.raises(WeightsError, match=r"trained with strides .*2, 2\]\], and plans.json says .*1, 2, 2\]\]"):
        Predictor(open_model(folder), Options())


def test_a_pretext_segments_nothing(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    plans = json.loads((folder / "plans.json").read_text())
    (folder / "plans.json").write_text(json.dumps({**plans, "stunet": {"pretext": "mae"}}))
    with pytest.raises(WeightsError, match="pre-trained by 'mae' without labels: it has no head for classes") as caught:
        open_model(folder)
    assert "stunet_train DATASET --pretrained" in caught.value.hint


@for_each(
    ("change", "message"),
    [
        ({"nonlin": "torch.nn.ReLU"}, "with activation LeakyReLU negative_slope=0.01, and plans.json says ReLU"),
        ({"nonlin_kwargs": {"negative_slope": 0.2}}, "and plans.json says LeakyReLU negative_slope=0.2"),
        (
            {"norm_op_kwargs": {"eps": 0.1, "affine": True}},
            "trained with eps of the norm 1e-05, and plans.json says 0.1",
        ),
    ],
)
def test_weights_of_a_network_that_computes_something_else_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    given = arguments(PLAIN_UNET)
    described = {"network_class_name": PLAIN_UNET.class_name, "_kw_requires_import": list(PLAIN_UNET.imports)}
    edit(folder / "plans.json", {**described, "arch_kwargs": given})
    plans = json.loads((folder / "plans.json").read_text())
    spelt = {**given, "nonlin": "torch.nn.modules.activation.LeakyReLU", "nonlin_kwargs": None}
    trained = Plan(plans).with_network("3d_fullres", **spelt).to_json()
    file = folder / "fold_0/checkpoint_final.pth"
    content = load_checkpoint(file)
    content["init_args"]["plans"] = trained
    content["network_weights"] = network(PLAIN_UNET, classes=3).state_dict()
    save_checkpoint(content, tmp_path / "other.pth")
    (tmp_path / "other.pth").replace(file)
    Predictor(open_model(folder), Options())
    edit(folder / "plans.json", {"arch_kwargs": given | change})
    with pytest.raises(WeightsError, match=re.escape(message)):
        Predictor(open_model(folder), Options())
