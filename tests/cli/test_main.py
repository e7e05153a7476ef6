"""`stunet COMMAND` is `stunet_COMMAND`, and starts as fast."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from stunet import __version__
from stunet.cli import train
from stunet.cli.main import COMMANDS, main
from tests.loops import for_each
from tests.test_structure import ROOT


def test_every_command_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert {f"stunet_{name}" for name in COMMANDS} | {"stunet"} == set(scripts)
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    main(["--version"])
    assert capsys.readouterr().out.strip() == f"stunet {__version__}"


def test_a_command_gets_the_other_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--list"]) == 0
    expected = capsys.readouterr().out
    for word in ("train", "stunet_train"):
        assert main([word, "--list"]) == 0
        assert capsys.readouterr().out == expected


@for_each(
    ("words", "says"),
    [
        (["trian", "3"], "unknown command 'trian'; did you mean 'train'"),
        (["plan-and-preproces"], "did you mean 'plan_and_preprocess'"),
        (["xyzzy"], "unknown command 'xyzzy'\n"),
        (["--dataset"], "unknown flag '--dataset'\n"),
    ],
)
def test_an_unknown_command_names_the_nearest(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.splitlines()[1] == "  try: stunet --help"
    assert main([]) == 2
    assert "plan_and_preprocess" in capsys.readouterr().out


def completions(line: str, folder: Path, program: str = "stunet.cli.main") -> set[str]:
    """What a shell is told that could come next."""
    told = folder / "told"
    environment = {
        "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(told), "ARGCOMPLETE_USE_TEMPFILES": "1",
    }  # fmt: skip
    code = f"import sys; from {program} import main; sys.exit(main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in told.read_text().split("\n")}


@pytest.mark.process
def test_a_shell_completes_commands_and_their_flags(tmp_path: Path) -> None:
    assert completions("stunet pre", tmp_path) == {"predict", "pretrain"}
    assert {"--pretrained", "--preset"} <= completions("stunet train --pre", tmp_path)
    assert completions("stunet train 3 --transfer ", tmp_path) >= {"encoder", "all"}
    assert completions("stunet_view --no", tmp_path, "stunet.cli.view") == {"--no_browser"}


@pytest.mark.process
def test_only_the_chosen_command_is_imported() -> None:
    code = "import sys; from stunet.cli.main import main; main(['info', '--json']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1]
    assert "'stunet.cli.info'" in loaded
    assert not [name for name in COMMANDS if name != "info" and f"'stunet.cli.{name}'" in loaded]
    assert "'torch'" not in loaded
