"""Parts of a run: which cases each has, what Slurm's variables say, and who merges what they hand over."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from stunet.errors import DataError, UsageError
from stunet.files import lock_across_machines
from stunet.parts import Part, Records, part_of, refuse_other_count, to_merge
from tests.loops import for_each

CASES = [f"case_{number}" for number in range(10)]


def array(**values: int) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_every_case_is_in_one_part_and_parts_are_those_of_nnunet() -> None:
    parts = [Part(number, 4).take(CASES) for number in range(4)]
    assert parts[1] == ["case_1", "case_5", "case_9"] == Part(0, 4).of(1, CASES)
    assert sorted(case for part in parts for case in part) == CASES
    assert Part(11, 12).take(CASES) == []


@for_each(
    ("count", "number", "variables", "part"),
    [
        (None, None, {}, Part(0, 1)),
        (4, None, {}, Part(0, 4)),  # as nnU-Net's
        (4, 3, array(COUNT=8, ID=1, MIN=0, MAX=7), Part(3, 4)),
        (None, None, array(COUNT=4, ID=2), Part(2, 4)),
        (None, None, array(COUNT=4, ID=3, MIN=1, MAX=4, STEP=1), Part(2, 4)),
        (None, None, array(COUNT=4, ID=8, MIN=0, MAX=12, STEP=4), Part(2, 4)),
        (4, None, array(COUNT=4, ID=3, MIN=0, MAX=3), Part(3, 4)),
        (1, None, array(COUNT=4, ID=3, MIN=0, MAX=3), Part(0, 1)),
        (None, 2, array(COUNT=4, ID=3, MIN=0, MAX=3), Part(2, 4)),
    ],
)
def test_flags_count_more_than_the_array(
    count: int | None, number: int | None, variables: dict[str, str], part: Part
) -> None:
    assert part_of(count, number, variables) == part


@for_each(
    ("count", "number", "variables", "message"),
    [
        (4, 4, {}, "-part_id 4 with -num_parts 4"),
        (4, -1, {}, "-part_id -1"),
        (0, 0, {}, "-num_parts 0"),
        (None, 1, {}, "-part_id 1 with -num_parts 1"),
        (4, None, array(COUNT=1, ID=2, MIN=2, MAX=2), "-num_parts is 4, and this Slurm array has 1 tasks"),
        (None, None, array(COUNT=3, ID=7, MIN=1, MAX=7), "have gaps"),
    ],
)
def test_parts_that_do_not_exist_are_refused(
    count: int | None, number: int | None, variables: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        part_of(count, number, variables)
    assert caught.value.hint


def test_the_last_part_merges_and_each_may_run_again(tmp_path: Path) -> None:
    folder, merged = tmp_path / "parts", list[list[Any]]()

    def finish(number: int, content: str, agreed: int = 1) -> str:
        return Records(folder, Part(number, 3), {"tolerance": agreed}).finish({"has": content}, merged.append)

    assert finish(2, "c") == "0 (not run yet), 1 (not run yet)"
    Records(folder, Part(1, 3), {"tolerance": 1}).save({})
    assert finish(0, "a") == "1 (not finished)"
    with pytest.raises(DataError, match=r"of 3 parts, 1 are missing: 1 \(not finished\)") as caught:
        Records(folder, to_merge(folder, 1), {"tolerance": 1}).merge(merged.append)
    assert caught.value.hint.endswith("-num_parts 3 -part_id 1")
    assert not merged
    assert finish(1, "b") == ""
    assert finish(0, "A") == ""
    Records(folder, to_merge(folder, 3), {"tolerance": 1}).merge(merged.append)
    assert [[each["has"] for each in content] for content in merged] == [
        ["a", "b", "c"],
        ["A", "b", "c"],
        ["A", "b", "c"],
    ]
    assert finish(0, "a", agreed=2).startswith("1 (of another run: tolerance: 1 -> 2)")
    (folder / "part-1-of-3.json").write_text("{")
    assert "not valid JSON" in finish(0, "a")
    Records(folder, Part(0, 2), {}).save({})
    with pytest.raises(DataError, match="of runs of 2 and 3 parts"):
        to_merge(folder, 1)
    with pytest.raises(DataError, match="no part has left a record"):
        to_merge(tmp_path / "nothing", 1)


def hold(lock: Path, held: Any) -> None:
    with lock_across_machines(lock):
        held.set()
        multiprocessing.Event().wait()


@pytest.mark.process
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", held))
    process.start()
    held.wait()
    process.kill()
    with lock_across_machines(tmp_path / "lock"):  # waits until the system has ended it
        process.join()
    assert (tmp_path / "lock").exists()


def test_some_tasks_of_an_array_do_not_divide_the_cases_again(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    Records(out / ".stunet/parts", Part(7, 32), {}).save({})
    refuse_other_count(Part(3, 32), [out, other])
    for part in (Part(0, 2), Part(0, 1)):
        with pytest.raises(UsageError, match="records of a run of 32 parts") as caught:
            refuse_other_count(part, [other, out])
        assert "-num_parts 32" in caught.value.hint
    refuse_other_count(Part(0, 2), [other])
