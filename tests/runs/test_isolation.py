"""A call of the Python API leaves the process as it was, and prints nothing of nnU-Net's."""

import logging
import os
import random
import sys
import threading

import numpy as np
import pytest
import torch

from stunet.runs.isolation import isolated, quiet


def nnunet_print() -> None:
    exec("print('chatter')", {"__name__": "nnunetv2.training.anything"})


def test_what_a_run_sets_for_itself_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    monkeypatch.setenv("nnUNet_def_n_proc", "3")
    threads, stdout = torch.get_num_threads(), sys.stdout
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = (float(torch.rand(())), np.random.rand(), random.random())
    torch.manual_seed(5), np.random.seed(5), random.seed(5)

    def change_and_fail() -> None:
        torch.set_num_threads(threads + 1)
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0), np.random.rand(), random.random()
        os.environ["MASTER_PORT"], os.environ["nnUNet_def_n_proc"] = "1", "1"
        raise KeyError

    with pytest.raises(KeyError), isolated():
        change_and_fail()
    assert torch.get_num_threads() == threads
    assert not torch.backends.cudnn.benchmark
    assert (float(torch.rand(())), np.random.rand(), random.random()) == expected
    assert "MASTER_PORT" not in os.environ
    assert os.environ["nnUNet_def_n_proc"] == "3"
    assert sys.stdout is stdout


def test_a_second_thread_waits_for_the_first() -> None:
    stdout, order, inside = sys.stdout, list[str](), threading.Event()

    def first() -> None:
        with isolated(), quiet():  # again in the same thread, as from a listener
            inside.set()
            waiting.join(0.2)
            order.append("first")

    def second() -> None:
        inside.wait()
        with quiet():
            order.append("second")

    waiting, other = threading.Thread(target=second), threading.Thread(target=first)
    waiting.start(), other.start()
    other.join(), waiting.join()
    assert order == ["first", "second"]
    assert sys.stdout is stdout


def test_nnunet_is_silent_and_everybody_else_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        nnunet_print()
        print("mine")  # noqa: T201
        other = threading.Thread(target=lambda: print("a thread's"))  # noqa: T201
        other.start()
        other.join()
        logging.getLogger("stunet").warning("unheard")
    nnunet_print()
    out, err = capsys.readouterr()
    assert out == "mine\na thread's\nchatter\n"
    assert err == ""
