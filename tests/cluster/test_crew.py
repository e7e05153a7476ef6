"""Cases on Dask workers, which are real processes: lost ones, refused ones, and a scheduler that goes away."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from stunet.cluster import Shared, check_cluster, crew, workers_on
from stunet.errors import DataError, UsageError, WorkerCrashed
from stunet.workers import map_cases
from tests.cluster.dask_processes import run, scheduler, two_workers, wait_until, worker
from tests.cluster.functions import Case, tries, work
from tests.loops import for_each
from tests.test_structure import ROOT


@for_each("cluster", ["local", "local:0", "host:8786", "http://host:8786", "tcp://host", "slurm:0", "slurm:x", ""])
def test_what_is_not_a_cluster_is_refused_before_anything_is_read(cluster: str) -> None:
    with pytest.raises(UsageError, match="is not a cluster") as caught:
        check_cluster(cluster)
    assert "tcp://host:8786" in caught.value.hint


@for_each("cluster", [None, "local:2", "tcp://10.0.0.1:8786", "tls://host.org:8786", "slurm", "slurm:20"])
def test_what_is_a_cluster_is_accepted(cluster: str | None) -> None:
    check_cluster(cluster)


@pytest.mark.process
def test_a_scheduler_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stunet.cluster.opening.CONNECT_S", 1)
    with pytest.raises(DataError, match=r"^no Dask scheduler answers at tcp://127.0.0.1:9: ") as caught:
        run("tcp://127.0.0.1:9", tmp_path, ["fine"])
    assert "dask scheduler" in caught.value.hint


@pytest.mark.process
def test_cases_of_lost_workers_are_done_again_and_poisonous_ones_reported_after_two_tries(tmp_path: Path) -> None:
    kinds, warnings = ["fine", "kills once", "fails", "kills", "fine", "fine"], list[str]()
    outcomes = run("local:2", tmp_path, kinds, warnings)
    assert [outcome.value for outcome in outcomes] == ["case_0", "case_1", None, None, "case_4", "case_5"]
    assert [len(tries(tmp_path / f"case_{number}")) for number in range(6)] == [1, 2, 1, 2, 1, 1]
    failed, poisonous = (outcome.error for outcome in outcomes[2:4])
    assert isinstance(failed, DataError)
    assert failed.message == "case_2 is damaged"
    assert isinstance(poisonous, WorkerCrashed)
    assert poisonous.exit_code == 3
    assert poisonous.message == "case 'case_3': its worker died, 2 times"
    assert sorted(warnings) == ["case 'case_3': its worker died, 2 times", "case_2 is damaged"]
    assert not list(tmp_path.glob(".part-*"))
    for process in {process for number in range(6) for process in tries(tmp_path / f"case_{number}")}:
        assert not Path(f"/proc/{process}").exists()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with two_workers(tmp_path_factory.mktemp("dask")) as address:
        yield address


@pytest.mark.slow
def test_workers_that_the_user_started_do_the_cases_and_stay(cluster: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        kinds = ["fine", "kills once", "fails", "kills", *["fine"] * 6]
        outcomes = run(cluster, tmp_path / name, kinds)
        assert [outcome.position for outcome in outcomes if outcome.error] == [2, 3]
        assert [len(tries(tmp_path / name / f"case_{number}")) for number in range(10)] == [1, 2, 1, 2, *[1] * 6]


@pytest.mark.slow
def test_a_full_disk_of_a_worker_and_bugs_end_the_run_and_say_where(cluster: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no space for case 'case_1' at '\S+/case_1'") as full:
        run(cluster, tmp_path / "full", ["fine", "full", "fine"])
    assert "finished cases are kept" in full.value.hint
    with pytest.raises(ValueError, match=r"^a bug") as bug:
        run(cluster, tmp_path / "bug", ["wrong"])
    assert any(note.startswith("on worker tcp://127.0.0.") for note in bug.value.__notes__)
    assert any("raise ValueError" in note for note in bug.value.__notes__)  # with --debug


@pytest.mark.slow
@for_each("how", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_stopped_leaves_no_case_to_go_on(cluster: str, tmp_path: Path, how: signal.Signals) -> None:
    folder = tmp_path / how.name
    folder.mkdir()
    code = (
        "from pathlib import Path; from tests.cluster.dask_processes import run\n"
        f"if __name__ == '__main__': run({cluster!r}, Path({str(folder)!r}), ['waits'] * 2)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE) as command:
        files = [folder / f"case_{number}" for number in range(2)]
        wait_until(lambda: all(tries(file) for file in files))
        command.send_signal(how)
        command.communicate()
    workers = [tries(file)[0] for file in files]
    wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in workers))
    # Nannies have started others, which are free.
    assert [outcome.value for outcome in run(cluster, folder, ["fine"] * 2)] == ["case_0", "case_1"]


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_of_local_workers(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.cluster.dask_processes import run\n"
        f"if __name__ == '__main__': run('local:2', Path({str(tmp_path)!r}), ['waits'] * 2)"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    with subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as command:
        wait_until(lambda: all(tries(tmp_path / f"case_{number}") for number in range(2)))
        os.killpg(command.pid, signal.SIGINT)  # as a terminal does: to the command and its workers
        _, said = command.communicate(timeout=60)
    assert said.count("Traceback") == 1, said  # that of the command itself
    assert said.strip().endswith("KeyboardInterrupt"), said
    wait_until(lambda: not running(command.pid))


def running(group: int) -> list[str]:
    """Return the processes of a group that have not ended; those that nobody has waited for yet have."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of = status.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                found.append((status.parent / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.slow
def test_a_scheduler_that_is_killed_ends_the_run_which_goes_on_with_another(tmp_path: Path) -> None:
    folder = tmp_path / "cases"
    folder.mkdir()
    cases = [Case("waits once", f"case_{number}", folder / f"case_{number}") for number in range(2)]
    with scheduler(tmp_path) as (address, process), worker(tmp_path, address):

        def kill() -> None:
            wait_until(lambda: tries(folder / "case_0"))
            process.kill()

        threading.Thread(target=kill).start()
        with (
            pytest.raises(DataError, match=r"^the Dask scheduler of tcp://\S+ is gone$") as caught,
            workers_on(address, 1, Shared(written=[folder]), print, print) as workers,
        ):
            list(map_cases(work, cases, workers, lambda case: case.name))
    assert "run the same command again; finished cases are kept" in caught.value.hint
    first = tries(folder / "case_0")[0]
    wait_until(lambda: not Path(f"/proc/{first}").exists())
    with scheduler(tmp_path) as (address, _), worker(tmp_path, address):
        outcomes = run(address, folder, ["waits once", "fine"])
    assert [outcome.value for outcome in outcomes] == ["case_0", "case_1"]


@pytest.mark.slow
def test_workers_of_another_version_or_without_a_nanny_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "NOTE_S", 8.0)
    metadata = tmp_path / "other" / "torch-1.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    with scheduler(tmp_path) as (address, _), ExitStack() as stack:
        stack.enter_context(worker(tmp_path, address, path=[metadata.parents[1]]))
        with pytest.raises(DataError, match=r"no worker of \S+ can be used: it has torch 1\.0 instead of 2\.\d+"):
            run(address, tmp_path / "none", ["fine"])
        stack.enter_context(worker(tmp_path, address, "--no-nanny"))
        stack.enter_context(worker(tmp_path, address))
        warnings: list[str] = []
        while len(warnings) < 2:  # the two others may start later than the good one
            warnings.clear()
            outcomes = run(address, tmp_path / "some", ["fine"] * 3, warnings)
            assert [outcome.value for outcome in outcomes] == ["case_0", "case_1", "case_2"]
        assert any("has torch 1.0" in text for text in warnings)
        assert any("it has no nanny" in text for text in warnings)


@pytest.mark.slow
def test_workers_that_do_not_see_the_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "NOTE_S", 2.0)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "model.pth").write_bytes(b"weights")
    apart = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    with scheduler(tmp_path) as (address, _), worker(tmp_path, address, start=apart):
        with pytest.raises(DataError, match=r"it has no '\S+/model.pth' \(No such file or directory\)"):
            run(address, tmp_path / "cases", ["fine"], shared=Shared(read=[hidden / "model.pth"]))
        with pytest.raises(DataError, match=r"it does not share '\S+/hidden' with this machine"):
            run(address, tmp_path / "cases", ["fine"], shared=Shared(written=[hidden]))


@pytest.mark.slow
def test_a_scheduler_without_workers_is_waited_for_and_not_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "PATIENCE_S", 2.0)
    with scheduler(tmp_path) as (address, _), pytest.raises(DataError, match="has had no worker for 2 s") as caught:
        run(address, tmp_path / "cases", ["fine"])
    assert "dask worker" in caught.value.hint


@pytest.mark.slow
def test_a_worker_that_leaves_in_the_middle_of_a_case_ends_with_it(tmp_path: Path) -> None:
    """Dask would let its thread go on for half a minute, while another worker does the case."""
    folder, first = tmp_path / "cases", tmp_path / "cases" / "case_0"
    with scheduler(tmp_path) as (address, _), ExitStack() as stack:
        stack.enter_context(worker(tmp_path, address, "--lifetime", "10s", host="127.0.0.1"))
        found: list[bool] = []

        def watch() -> None:
            wait_until(lambda: tries(first))
            stack.enter_context(worker(tmp_path, address, host="127.0.0.2"))
            wait_until(lambda: len(tries(first)) == 2)
            found.append(Path(f"/proc/{tries(first)[0]}").exists())

        watching = threading.Thread(target=watch)
        watching.start()
        (outcome,) = run(address, folder, ["waits once"])
        watching.join()
    assert outcome.value == "case_0"
    assert found == [False]
