"""stunet: all commands under one name. `stunet train 3` is `stunet_train 3`; only the chosen command is imported."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from stunet import __version__, console
from stunet.errors import UsageError, closest

# In the order in which they are used; a test compares them with what is installed.
COMMANDS = {
    "convert": "datasets of other layouts to nnU-Net's raw format",
    "merge": "many datasets to one",
    "plan_and_preprocess": "fingerprint, plan and preprocess a dataset",
    "pretrain": "pre-train without labels",
    "train": "train and fine-tune",
    "predict": "segment images",
    "evaluate": "measure predictions: Dice, NSD, HD95",
    "report": "a training as one page to read and to send",
    "view": "look at images and segmentations in a browser",
    "pseudo_label": "let a model label what a dataset lacks",
    "models": "list, download, import, export and check models",
    "rank": "which pre-trained model to fine-tune",
    "features": "features of images, and probes on them",
    "experiment": "compare many trainings",
    "info": "what is installed, set and there",
    "demo": "the whole loop on an example",
}
COMPLETION = "_ARGCOMPLETE"  # set by the shell that asks argcomplete what could come next


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names, and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if COMPLETION in os.environ:
        words = _words_before_cursor()
        if not words:
            _complete()
            return 0
        os.environ[COMPLETION] = "2"  # for argcomplete, the command begins at the second word
    if not words or words[0] in ("-h", "--help", "help"):
        console.result(_help())
        return 0 if words else UsageError.exit_code
    if words[0] == "--version":
        console.result(f"stunet {__version__}")
        return 0
    name = words[0].removeprefix("stunet_").replace("-", "_")
    if name not in COMMANDS:
        kind = "flag" if name.startswith("_") or words[0].startswith("-") else "command"
        meant = closest(name, list(COMMANDS)) if kind == "command" else ""
        console.error("stunet", f"unknown {kind} {words[0]!r}{meant}", "stunet --help")
        return UsageError.exit_code
    code: int = import_module(f"stunet.cli.{name}").main(words[1:])
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name.ljust(width)}  {what}" for name, what in COMMANDS.items())
    return "\n".join([
        "usage: stunet COMMAND ...", "", "commands, each also installed as stunet_COMMAND:", *lines, "",
        "stunet COMMAND --help says more; stunet --version.",
    ])  # fmt: skip


def _words_before_cursor() -> list[str]:
    """Return the command in the line that a shell wants to complete, if it is complete itself."""
    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT") or 0)]
    words = line.split()[1:]
    done = len(words) > 1 or (words and line[-1:].isspace())
    return words[:1] if done else []


def _complete() -> None:
    """Tell the shell the names of the commands."""
    import argparse

    import argcomplete

    parser = argparse.ArgumentParser("stunet", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("command", choices=list(COMMANDS))
    argcomplete.autocomplete(parser)
