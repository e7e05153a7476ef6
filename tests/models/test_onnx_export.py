"""Networks as ONNX: ONNX Runtime computes what torch does, and the file says what it is; needs stunet[onnx]."""

import json
from pathlib import Path

import pytest
import torch

from stunet.architectures.nnunet_unet import NNUNet
from stunet.errors import DataError, UsageError, WeightsError
from stunet.files import write_json
from stunet.models import onnx_export
from stunet.models.exporting import ONNX, export
from stunet.networks import STUNet
from stunet.weights.checkpoints import load_checkpoint
from tests.loops import for_each
from tests.nnunet_models import model, trained
from tests.nnunet_networks import BOTH
from tests.predictor_models import STRIDES, make_model

NAME = "nnUNetTrainer__nnUNetPlans__3d_fullres"


def made(folder: Path, architecture: NNUNet | None) -> tuple[Path, torch.nn.Module]:
    """A model folder, and its network."""
    if architecture:
        return model(folder, architecture), trained(architecture)
    make_model(folder)
    network = STUNet(1, 3, "T", STRIDES, deep_supervision=False).eval()
    network.load_state_dict(load_checkpoint(folder / "fold_0/checkpoint_final.pth")["network_weights"])
    return folder, network


@for_each("architecture", [None, *BOTH])
def test_onnx_runtime_computes_the_logits_of_a_window(tmp_path: Path, architecture: NNUNet | None) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    folder, network = made(tmp_path / NAME, architecture)
    notes = export(folder, tmp_path / "x.onnx", form=ONNX)
    assert "1 x 1 x 16 x 16 x 16 in float32" in notes[0]
    image = torch.randn(1, 1, 16, 16, 16)
    session = runtime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": image.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(logits), network(image), rtol=1e-3, atol=1e-3)
    (meta,) = onnx.load(str(tmp_path / "x.onnx")).metadata_props
    content = json.loads(meta.value)
    assert (meta.key, content["configuration"], content["mirror_axes"]) == ("stunet", "3d_fullres", [0, 1, 2])
    assert content["dataset"]["labels"] == {"background": 0, "a": 1, "b": 2}
    assert content["plans"]["configurations"]["3d_fullres"]["patch_size"] == [16, 16, 16]
    with pytest.raises(DataError, match="exists already"):
        export(folder, tmp_path / "x.onnx", form=ONNX)
    assert notes[0].endswith("before the softmax")
    regions = content["dataset"] | {"labels": {"background": 0, "a": [1, 2], "b": 2, "c": 3}}
    write_json(folder / "dataset.json", regions | {"regions_class_order": [1, 2, 3]})
    assert export(folder, tmp_path / "y.onnx", form=ONNX)[0].endswith("before the sigmoid of each region")


def test_a_file_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_export, "SAME", 0.0)
    with pytest.raises(WeightsError, match="ONNX Runtime computes something else"):
        export(make_model(tmp_path / NAME), tmp_path / "x.onnx", form=ONNX)
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 1000)
    with pytest.raises(WeightsError, match="ONNX file holds 2 GB"):
        export(tmp_path / NAME, tmp_path / "x.onnx", form=ONNX)
    assert not list(tmp_path.glob("*onnx*"))


def test_what_is_missing_and_half_precision_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / NAME)
    with pytest.raises(UsageError, match="float32"):
        export(folder, tmp_path / "x.onnx", half=True, form=ONNX)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UsageError, match="needs onnx, which is not installed"):
        export(folder, tmp_path / "x.onnx", form=ONNX)
