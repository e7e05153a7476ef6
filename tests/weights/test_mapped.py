"""Tests of stunet.weights.mapped: pages of a file are let go of, and memory that is no file keeps what is in it."""

import sys
from pathlib import Path

import pytest
import torch

from stunet.weights.checkpoints import load_checkpoint, load_safetensors, save_weights
from stunet.weights.mapped import release
from tests.loops import for_each


def resident() -> int:
    """MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024


@pytest.mark.skipif(sys.platform != "linux", reason="pages are let go of on Linux")
@for_each("kind", ["torch", "safetensors"])
def test_a_mapped_tensor_leaves_the_memory_and_comes_back(tmp_path: Path, kind: str) -> None:
    content = {"a": torch.randn(8 << 20), "b": torch.randn(100)}
    if kind == "torch":
        torch.save(content, tmp_path / "x")
        mapped = load_checkpoint(tmp_path / "x")
    else:
        save_weights(tmp_path / "x", content, {})
        mapped = load_safetensors(tmp_path / "x")[0]
    before = resident()
    mapped["a"].sum()
    assert resident() - before > 24
    release(mapped["a"])
    release(mapped["b"])
    assert resident() - before < 8
    assert all(torch.equal(mapped[name], content[name]) for name in content)


def test_memory_that_is_no_file_keeps_its_content() -> None:
    for tensor in (torch.ones(1 << 20), torch.ones(1 << 20)[5:], torch.ones(3), torch.ones(0)):
        release(tensor)
        assert (tensor == 1).all()
