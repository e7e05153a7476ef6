"""Joining other processes, deciding for them, and what is made of one that ends; here in a group of one."""

import pickle
import signal
import socket
from collections.abc import Iterator

import pytest
import torch

from stunet.errors import DataError, Interrupted, OutOfMemoryError
from stunet.trainers.distributed import sharding
from stunet.trainers.distributed.group import (
    Member,
    ProcessError,
    _of_exit_code,
    broadcast_decision,
    join_group,
    read_member,
    was_restarted,
)


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Iterator[Member]:
    """The only process that torchrun has started, for the second time."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in (given | {"TORCHELASTIC_RESTART_COUNT": 1}).items():
        monkeypatch.setenv(name, str(value))
    return read_member()


def test_a_group_decides_and_knows_that_it_was_started_anew(member: Member) -> None:
    assert member == Member(rank=0, local_rank=0, size=1, restarts=1)
    assert member.leads
    with join_group(member, "cpu"):
        assert was_restarted(member, "cpu")
        assert broadcast_decision(lambda: ("run", 3), member) == ("run", 3)
        assert sharding.world_size() == 1
    assert not torch.distributed.is_initialized()


def test_an_error_of_the_first_process_comes_out_as_it_is(member: Member) -> None:
    def refuse() -> None:
        raise DataError("no dataset", "make one")

    with pytest.raises(DataError, match="no dataset"), join_group(member, "cpu"):
        broadcast_decision(refuse, member)
    assert not torch.distributed.is_initialized()


def test_a_process_that_loses_another_can_be_resumed_and_other_errors_stay(member: Member) -> None:
    with pytest.raises(Interrupted, match="process 0 of 1 lost another one") as caught, join_group(member, "cpu"):
        raise RuntimeError("[../gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:29400")
    assert caught.value.exit_code == 75
    with pytest.raises(RuntimeError, match="shapes differ"), join_group(member, "cpu"):
        raise RuntimeError("shapes differ")


def test_the_error_of_a_child_keeps_its_exit_code() -> None:
    assert isinstance(_of_exit_code(75), Interrupted)
    assert isinstance(_of_exit_code(-signal.SIGTERM), Interrupted)
    assert isinstance(_of_exit_code(-signal.SIGKILL), OutOfMemoryError)
    crashed = _of_exit_code(-signal.SIGABRT)
    assert crashed.exit_code == 1
    assert "SIGABRT" in crashed.message
    other = _of_exit_code(3)
    assert isinstance(other, ProcessError)
    assert other.exit_code == 3
    assert pickle.loads(pickle.dumps(DataError("what", "next"))).hint == "next"


def test_alone_there_is_nothing_to_share() -> None:
    value = torch.tensor(3.0)
    assert sharding.mean(value) is value
    assert sharding.any_rank(True, value.device)
    assert not sharding.any_rank(False, value.device)
