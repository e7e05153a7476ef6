"""Tests of trainers/data/batches.py: the order of the data, and what becomes of a worker that dies."""

import os
import random
import signal
from typing import Any

import numpy as np
import pytest
import torch

from stunet.errors import OutOfMemoryError
from stunet.trainers.data.batches import SeededBatches, join_batches, split_batch
from tests.loops import for_each


class Numbers:
    """Draws with all three generators."""

    def sample(self, position: int, number: int) -> dict[str, Any]:
        drawn = torch.tensor([[np.random.random(), torch.rand(1).item(), random.random()]], dtype=torch.float64)
        return {"data": drawn, "target": [drawn[:, :1], drawn[:, 1:]], "keys": [f"case_{position}"]}

    def case(self, position: int, number: int) -> str:
        return f"case_{position}"


ALL = range(3)  # positions of a batch


def drawn(batch: dict[str, Any]) -> list[Any]:
    assert torch.equal(torch.cat(batch["target"], dim=1), batch["data"])
    return [*zip(batch["keys"], batch["data"].tolist(), strict=True)]


@for_each("workers", [0, 2])
def test_a_sample_is_a_function_of_seed_batch_and_position(workers: int) -> None:
    all_of_them = SeededBatches(Numbers(), (1, 2), ALL, 0, 0, 0, False)
    expected = [drawn(next(all_of_them)) for _ in range(6)]
    later = SeededBatches(Numbers(), (1, 2), ALL[1:], 2, 1, workers, False)
    assert next(later) is None
    assert [drawn(next(later)) for _ in range(3)] == [batch[1:] for batch in expected[3:6]]
    later.close()
    other = drawn(next(SeededBatches(Numbers(), (1, 3), ALL, 0, 0, 0, False)))
    assert len({str(numbers) for batch in [*expected, other] for _, numbers in batch}) == 7 * len(ALL)


def test_drawing_a_batch_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = (torch.rand(1).item(), np.random.random())
    torch.manual_seed(0)
    np.random.seed(0)
    next(SeededBatches(Numbers(), (0,), ALL, 0, 0, 0, False))
    assert (torch.rand(1).item(), np.random.random()) == expected


def test_parts_of_a_batch_are_those_that_it_is_joined_of() -> None:
    batch = next(SeededBatches(Numbers(), (0,), range(5), 0, 0, 0, False))
    parts = split_batch(batch, 2)
    assert [part["keys"] for part in parts] == [["case_0", "case_1", "case_2"], ["case_3", "case_4"]]
    assert drawn(join_batches(parts)) == drawn(batch)
    assert parts[0]["data"].data_ptr() == batch["data"].data_ptr()


class Killed:
    """A worker process that is killed, as by the kernel when memory runs out."""

    def sample(self, position: int, number: int) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def case(self, position: int, number: int) -> str:
        return f"case_{position}_{np.random.randint(100)}"


@pytest.mark.process
def test_a_killed_worker_is_reported_with_its_case_and_the_next_step() -> None:
    with pytest.raises(
        OutOfMemoryError, match="data loading process was killed while it loaded case 'case_1_"
    ) as caught:
        next(SeededBatches(Killed(), (0,), range(1, 5), 0, 0, 1, False))
    assert "nnUNet_n_proc_DA=1" in caught.value.hint
    assert "--set batch_size=2" in caught.value.hint


class Group:
    """Says to which group a process belongs, which is what a terminal and torchrun send signals to."""

    def sample(self, position: int, number: int) -> dict[str, Any]:
        group = torch.tensor([os.getpgrp()])
        return {"data": group, "target": group, "keys": [""]}

    def case(self, position: int, number: int) -> str:
        return ""


def test_a_signal_to_the_group_of_the_trainer_leaves_its_data_loading_alone() -> None:
    batches = SeededBatches(Group(), (0,), range(1), 0, 0, 1, False)
    assert next(batches)["data"].item() != os.getpgrp()
    batches.close()


class Broken:
    """A case that cannot be read."""

    def sample(self, position: int, number: int) -> dict[str, Any]:
        raise RuntimeError("case_7.b2nd is damaged")

    def case(self, position: int, number: int) -> str:
        return "case_7"


def test_an_error_in_a_worker_keeps_its_own_text() -> None:
    with pytest.raises(RuntimeError, match=r"case_7.b2nd is damaged"):
        next(SeededBatches(Broken(), (0,), ALL, 0, 0, 1, False))
