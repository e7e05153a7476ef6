"""Jobs of Slurm, with an sbatch that runs a job at once: what is asked for, refused, and cancelled at the end."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import dask
import pytest

from stunet.cluster.opening import slurm_cluster
from stunet.errors import DataError, UsageError
from tests.cluster.dask_processes import run, wait_until
from tests.test_structure import ROOT

slurm_cluster()  # whose defaults are otherwise added in the middle of dask.config.set()

SBATCH = """#!/bin/sh
if [ "$1" = --test-only ]; then
    if grep -q "SBATCH -p closed"; then echo "sbatch: error: invalid partition specified: closed" >&2; exit 1; fi
    exit 0
fi
cp "$1" "{folder}/job.$$"  # as Slurm does: the script is removed
setsid sh "{folder}/job.$$" >> "{folder}/job.log" 2>&1 < /dev/null &
echo $! >> "{folder}/submitted"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
echo "$@" >> "{folder}/cancelled"
kill -9 -- "-$1"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which sbatch and scancel leave the numbers of jobs, which are groups of processes."""
    for name, script in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(script.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


JOB = {"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "2GB", "jobqueue.slurm.walltime": "04:00:00"}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_jobs_are_submitted_do_the_cases_and_are_cancelled(slurm: Path) -> None:
    with dask.config.set({**JOB, "jobqueue.slurm.interface": "lo"}):
        outcomes = run("slurm:2", slurm / "cases", ["fine", "kills once", "fine"])
    assert [outcome.value for outcome in outcomes] == ["case_0", "case_1", "case_2"]
    jobs = (slurm / "submitted").read_text().split()
    assert len(jobs) == 2
    try:
        assert sorted((slurm / "cancelled").read_text().split()) == sorted(jobs)
    finally:
        for job in jobs:
            with suppress(ProcessLookupError):
                os.killpg(int(job), signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{job}").exists() for job in jobs))


@pytest.mark.process
def test_jobs_that_nobody_described_or_that_slurm_refuses_are_one_line(slurm: Path) -> None:
    with (
        dask.config.set({**JOB, "jobqueue.slurm.cores": None}),
        pytest.raises(UsageError, match=r"nothing says what a job gets \(cores\)"),
    ):
        run("slurm:2", slurm / "cases", ["fine"])
    with (
        dask.config.set({**JOB, "jobqueue.slurm.queue": "closed", "jobqueue.slurm.interface": "lo"}),
        pytest.raises(DataError, match=r"Slurm refuses the job: sbatch: error: invalid partition specified: closed$"),
    ):
        run("slurm:2", slurm / "cases", ["fine"])


@pytest.mark.process
def test_a_machine_without_slurm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="there is no sbatch here"):
        run("slurm", tmp_path, ["fine"])


def test_ctrl_c_is_a_keyboard_interrupt_with_dask_jobqueue_imported() -> None:
    slurm_cluster()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
