"""What goes to stdout and what to stderr, and how errors end a command."""

import argparse
import errno
import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

from stunet import console
from stunet.cli import common
from stunet.errors import DataError
from tests.loops import for_each


def run(command: object, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = common.run(common.new_parser("stunet_x", "A command."), command, list(argv))  # type: ignore[arg-type]
    return code, *capsys.readouterr()


def raising(error: BaseException) -> object:
    def command(args: argparse.Namespace) -> None:
        raise error

    return command


def test_an_error_of_ours_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(raising(DataError("no plans\nfor it", "stunet_plan -d 3")), capsys)
    assert (code, out) == (3, "")
    assert err == "stunet_x: no plans for it\n  try: stunet_plan -d 3\n"


@for_each(
    ("error", "code", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 3, "the disk is full: /x/y"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 3, "Permission denied: '/x'"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 3, "Read-only file system: '/x'"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), 3, "a shorter name"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "/x"), 3, "form a loop"),
        (OSError(errno.EMFILE, "Too many open files"), 3, "ulimit -n"),
        (FileExistsError(errno.EEXIST, "File exists", "/x"), 3, "File exists: '/x'"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), 3, "the disk is full"),
        (RuntimeError("PytorchStreamWriter: Read-only file system"), 3, "mounted read-only"),
        (RuntimeError("can't start new thread"), 3, "ulimit -u"),
        (MemoryError("x"), 5, "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), 5, "out of memory"),
        (RuntimeError("CUDA error: out of memory"), 5, "out of memory"),
        (np._core._exceptions._ArrayMemoryError((10**6,), np.dtype("f8")), 5, "Unable to allocate"),
        (RuntimeError("shapes differ"), 1, "unexpected RuntimeError: shapes differ"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
        (ValueError("odd"), 1, "unexpected ValueError: odd"),
    ],
)
def test_other_errors_have_an_exit_code_too(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, out, err = run(raising(error), capsys)
    assert (got, out) == (code, "")
    assert text in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Traceback" in run(raising(ValueError("odd")), capsys, "--debug")[2]


def test_abbreviated_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(raising(ValueError()), capsys, "--verb")
    assert ended.value.code == 2


@for_each(
    ("command", "given", "meant"),
    [
        ("train", "--continue", "--c"),
        ("train", "--resume", "--c"),
        ("train", "--epochs 5", "--set num_epochs=250"),
        ("train", "--learning_rate=0.1", "--set initial_lr=0.001"),
        ("train", "--device cpu", "-device"),
        ("train", "-dev cpu", "-device"),
        ("train", "-devce cpu", "-device"),
        ("train", "--overwrit", "--overwrite"),
        ("predict", "--input a --output b", "-i"),
        ("predict", "-i a -o b --folds 0", "-f"),
        ("predict", "-i a -o b --gpu 0", "-device"),
        ("evaluate", "a b --workers 4", "-np"),
        ("plan_and_preprocess", "-d 3 --resolution 1 1 1", "-overwrite_target_spacing"),
        ("models", "download X --kep", "--keep"),
        ("convert", "pairs --input a", "-i"),
    ],
)
def test_an_unknown_flag_gives_the_one_that_is_meant(
    command: str, given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"stunet.cli.{command}").main(given.split())
    assert ended.value.code == 2
    what, hint = capsys.readouterr().err.splitlines()
    assert f"; did you mean {meant!r}?" in what
    assert hint.startswith(f"  try: {meant}, or stunet_{command}")


def test_short_flags_may_stand_before_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    parser = common.new_parser("stunet_x", "A command.")
    parser.add_argument("-d")
    parser.add_argument("-f", type=int)
    assert vars(parser.parse_args(["-d3", "-f0"])) | {"d": "3", "f": 0} == vars(parser.parse_args(["-d3", "-f0"]))
    with pytest.raises(SystemExit):
        parser.parse_args(["--unheard_of"])
    assert capsys.readouterr().err == "stunet_x: unknown flag '--unheard_of'\n  try: stunet_x --help\n"


PRINTS_EVERYWHERE = """
import os, subprocess, sys
from stunet import console
with console.reserve_stdout(verbose={verbose}):
    print("printed by a library")
    os.write(1, b"written to the descriptor\\n")
    subprocess.run([sys.executable, "-c", "print('printed by a child')"])
    console.result("the result")
    console.note("a message")
print("afterwards")
"""


@pytest.mark.process
@for_each("verbose", [False, True])
def test_stdout_holds_results_only_whoever_prints(verbose: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTS_EVERYWHERE.format(verbose=verbose)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "the result\nafterwards\n"
    elsewhere = ["printed by a library", "written to the descriptor", "printed by a child"]
    assert sorted(done.stderr.splitlines()) == sorted(["a message", *(elsewhere if verbose else [])])


@pytest.mark.process
@for_each("argv", [["list"], ["list", "--debug", "--verbose"]])
def test_a_reader_that_is_gone_ends_a_command_quietly(argv: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)  # as head does after its lines
    code = f"from stunet.cli.models import main\nraise SystemExit(main({argv}))"
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["class", "Dice"], [["liver", "0.9"], ["a", "0.95"]])
    assert capsys.readouterr().out == "class  Dice\n-----  ----\nliver   0.9\na      0.95\n"


def test_a_name_that_is_not_utf8_is_printed_with_its_bytes_escaped(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(1, "w", encoding="utf-8", errors="strict", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        console.result("out/M\udcfcller.nii.gz")
    assert capfd.readouterr().out == "out/M\\udcfcller.nii.gz\n"
