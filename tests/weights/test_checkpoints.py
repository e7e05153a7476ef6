"""Tests of weights/checkpoints.py: nothing in a file is executed; nnU-Net's files load, ours without an allow-list."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from stunet.errors import DataError, WeightsError
from stunet.networks import build
from stunet.weights.checkpoints import (
    check_finite,
    check_weights,
    load_checkpoint,
    load_trained,
    save_checkpoint,
    save_weights,
)

STRIDES = [[1, 1, 1], [2, 2, 2]]


def state() -> dict[str, torch.Tensor]:
    return build("T", STRIDES, 1, 3).state_dict()


class Payload:
    """Unpickled the ordinary way, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def nnunet_content() -> dict:
    """What nnUNetTrainer.save_checkpoint of 2.8.1 writes, with numpy scalars of the kinds that its log holds."""
    network = build("T", STRIDES, 1, 3)
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": torch.optim.SGD(network.parameters(), 0.01, 0.99, nesterov=True).state_dict(),
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5)], "mean_fg_dice": [np.float64(0.1)], "epoch": [np.int64(3)]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 3,
        "init_args": {"plans": {}, "configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def test_a_checkpoint_of_nnunet_is_read_with_its_numpy_scalars(tmp_path: Path) -> None:
    content = nnunet_content()
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "c.pth", weights_only=True)
    read = load_trained(tmp_path / "c.pth")
    assert read["logging"] == content["logging"]
    assert read["_best_ema"] == 0.7
    assert read["init_args"]["device"] == torch.device("cpu")
    for name, value in content["network_weights"].items():
        assert torch.equal(read["network_weights"][name], value)


def test_numpy_scalars_under_the_module_name_of_numpy_1_are_read(tmp_path: Path) -> None:
    torch.save({"x": np.float64(0.25)}, tmp_path / "new.pth")
    data = (tmp_path / "new.pth").read_bytes()
    old_name, new_name = b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"
    assert new_name in data
    with zipfile.ZipFile(tmp_path / "new.pth") as source, zipfile.ZipFile(tmp_path / "old.pth", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(new_name, old_name))
    assert load_checkpoint(tmp_path / "old.pth") == {"x": 0.25}


def test_a_malicious_checkpoint_is_refused_by_name_and_not_executed(tmp_path: Path) -> None:
    torch.save({"network_weights": {}, "extra": Payload(tmp_path / "pwned")}, tmp_path / "bad.pth")
    with pytest.raises(
        WeightsError, match=r"wants to import (posix|nt)\.mkdir; it was refused and nothing was executed"
    ):
        load_checkpoint(tmp_path / "bad.pth")
    assert not (tmp_path / "pwned").exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert (tmp_path / "pwned").exists()  # the payload does work where pickles are executed


def test_truncated_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:2000])
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (("half", "not a whole checkpoint"), ("none", "no checkpoint"), ("list", "holds a list")):
        with pytest.raises(WeightsError, match=message):
            load_checkpoint(tmp_path / f"{name}.pth")
    with pytest.raises(WeightsError, match="not a checkpoint of nnU-Net v2"):
        load_trained(tmp_path / "whole.pth")


def test_damaged_bytes_inside_a_checkpoint_are_an_error_of_ours(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(10)}, tmp_path / "c.pth")
    data = bytearray((tmp_path / "c.pth").read_bytes())
    start = data.index(b"torch._utils")
    data[start : start + 5] = b"\xff" * 5
    (tmp_path / "c.pth").write_bytes(data)
    with pytest.raises(WeightsError):
        load_checkpoint(tmp_path / "c.pth")


def test_a_saved_checkpoint_loads_without_any_allow_list(tmp_path: Path) -> None:
    content = nnunet_content() | {"array": np.arange(3), "nested": [(np.float32(0.5), {np.int64(2): np.bool_(True)})]}
    save_checkpoint(content, tmp_path / "c.pth")
    read = torch.load(tmp_path / "c.pth", weights_only=True)
    assert type(read["_best_ema"]) is float
    assert read["array"] == [0, 1, 2]
    assert read["nested"] == [(0.5, {2: True})]
    network = build("T", STRIDES, 1, 3)
    network.load_state_dict(read["network_weights"])
    torch.optim.SGD(network.parameters(), 0.5).load_state_dict(read["optimizer_state"])


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    save_checkpoint({"x": 1}, tmp_path / "c.pth")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # a disk with room for 1 MiB
    try:
        with pytest.raises(DataError, match="could not write"):
            save_checkpoint({"x": torch.zeros(1 << 20)}, tmp_path / "c.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(tmp_path / "c.pth") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c.pth"]


def test_weights_of_another_network_are_counted_with_an_example(tmp_path: Path) -> None:
    network = build("T", STRIDES, 1, 3)
    check_weights(tmp_path, network, network.state_dict())
    other = build("T", [*STRIDES, [2, 2, 2]], 2, 3).state_dict()
    del other["conv_blocks_context.0.0.conv1.bias"]
    with pytest.raises(WeightsError) as caught:
        check_weights(tmp_path, network, other)
    assert "1 missing (e.g. 'conv_blocks_context.0.0.conv1.bias')" in caught.value.message
    assert "unexpected (e.g. 'conv_blocks_context.2" in caught.value.message
    assert "(4, 2, 3, 3, 3) instead of (4, 1, 3, 3, 3)" in caught.value.message


def test_nan_and_infinite_weights_are_found(tmp_path: Path) -> None:
    tensors = state()
    check_finite(tensors, tmp_path)
    for bad in (torch.nan, torch.inf, -torch.inf):
        tensors["seg_outputs.0.bias"][1] = bad
        with pytest.raises(WeightsError, match=r"in 1 of \d+ tensors \(e.g. 'seg_outputs.0.bias'\)"):
            check_finite(tensors, tmp_path)
        with pytest.raises(WeightsError, match="NaN or infinite"):
            save_weights(tmp_path / "x", tensors, {})


def test_an_encoder_with_a_hole_of_zeros_is_found(tmp_path: Path) -> None:
    tensors = state()
    tensors["conv_blocks_context.1.0.conv2.weight"].zero_()
    with pytest.raises(WeightsError, match=r"nothing but zeros in 1 convolutions .*'conv_blocks_context\.1\.0\.conv2"):
        check_finite(tensors, tmp_path)


def test_what_float16_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    tensors = state()
    tensors["seg_outputs.0.bias"][1] = 70_000
    with pytest.raises(WeightsError, match=r"1 tensors \(e.g. 'seg_outputs.0.bias'\) have values above 65504"):
        save_weights(tmp_path / "x", tensors, {}, half=True)
    assert not list(tmp_path.iterdir())
