"""Where stunet_demo finds the other commands; the loop itself is in tests/slow/test_demo.py."""

import sys
from pathlib import Path

import pytest

from stunet.cli.common import find_command
from stunet.errors import DataError


def executable(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o755)
    return path


def test_commands_are_found_beside_python_and_else_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "python" / "python3")))
    monkeypatch.setenv("PATH", str(tmp_path / "user"))
    with pytest.raises(DataError, match="no command 'stunet_info'"):
        find_command("stunet_info")
    elsewhere = executable(tmp_path / "user" / "stunet_info")
    assert find_command("stunet_info") == str(elsewhere)
    beside = executable(tmp_path / "python" / "stunet_info")
    assert find_command("stunet_info") == str(beside)
