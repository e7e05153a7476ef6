"""Commands on Dask workers, some of which are killed in the middle: every case once, the bytes of a local run."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import stunet
from stunet.cli.convert import main as convert
from stunet.cli.evaluate import main as evaluate
from stunet.cluster import Shared, crew, workers_on
from stunet.errors import DataError
from stunet.files import read_json
from stunet.inference.predictor import Predictor
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import preprocess
from tests.cluster.dask_processes import two_workers, wait_until
from tests.label_files import make_two_cases
from tests.phantom_copy import CASES, plans_of
from tests.predictor_models import SMALL, make_model, write_image

KILLS = int(os.environ.get("STUNET_TEST_KILLS", "2"))  # more at will: each takes seconds
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with two_workers(tmp_path_factory.mktemp("dask")) as address:
        yield address


def kill_a_worker_after(address: str, seconds: float) -> threading.Thread:
    """Kill one of the workers in a thread, so many seconds from now."""
    with Client(address, set_as_default=False) as client:
        wait_until(lambda: len(client.nthreads()) == 2)
        process = next(iter(client.run(os.getpid).values()))

    def kill() -> None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_preprocessing_with_a_worker_killed_at_any_moment_makes_the_bytes_of_a_local_run(
    pre: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, data = Plan(plans_of(pre)), "STUNetPlans_3d_fullres"
    expected = {path.name: path.read_bytes() for path in (pre / data).iterdir() if path.is_file()}
    assert len(expected) == 3 * len(CASES)
    rng = np.random.default_rng(KILLS)
    for number in range(KILLS):
        target = tmp_path / f"run_{number}" / pre.name
        target.mkdir(parents=True)
        monkeypatch.setenv("nnUNet_preprocessed", str(target.parent))
        done: list[str] = []
        # The first run also imports torch in the workers, which takes seconds.
        killing = kill_a_worker_after(cluster, rng.uniform(0, 6.0 if number == 0 else 1.0))
        with workers_on(cluster, 1, Shared(written=[target]), print, print) as workers:
            preprocess(pre.name, plan, ["3d_fullres"], workers, done.append)
        killing.join()
        assert sorted(done) == CASES
        found = {path.name: path.read_bytes() for path in (target / data).iterdir() if path.is_file()}
        assert found == expected
        assert not (target / data / ".stunet" / "part").exists()
        assert sorted(read_json(target / data / ".stunet" / "manifest.json")["cases"]) == CASES


def test_prediction_with_a_worker_killed_makes_the_bytes_of_a_local_run(cluster: str, tmp_path: Path) -> None:
    names, what = [f"case_{number}" for number in range(4)], {"statistics": True, "save_probabilities": True}
    model = make_model(tmp_path / "STUNetTrainer__STUNetPlans__3d_fullres", folds=(0, 1))
    for seed, name in enumerate(names):
        write_image(tmp_path / "in" / f"{name}_0000.nii.gz", seed, SMALL)
    (tmp_path / "in" / "broken_0000.nii.gz").write_bytes(b"no image")
    folders = {name: tmp_path / name for name in ("here", "there")}
    for name, how in (("here", {}), ("there", {"cluster": cluster})):
        killing = kill_a_worker_after(cluster, 4.0) if how else None
        result = stunet.predict(tmp_path / "in", folders[name], model=model, threads=1, **what, **how)
        if killing:
            killing.join()
        assert [case.name for case in result.cases] == ["broken", *names]
        assert list(result.errors) == ["broken"]
    here, there = (
        {str(path.relative_to(folder)): path for folder in [each] for path in folder.rglob("*") if path.is_file()}
        for each in folders.values()
    )
    assert here.keys() == there.keys()
    differ = [name for name in here if here[name].read_bytes() != there[name].read_bytes()]
    assert differ == ["predict_from_raw_data_args.json"]  # it names the folder


def test_features_on_workers_are_the_bytes_of_a_local_run(cluster: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "STUNetTrainer__STUNetPlans__3d_fullres")
    for seed in range(3):
        write_image(tmp_path / "in" / f"case_{seed}_0000.nii.gz", seed, SMALL)
    (tmp_path / "in" / "broken_0000.nii.gz").write_bytes(b"no image")
    written = []
    for name, how in (("here", {}), ("there", {"cluster": cluster})):
        result = stunet.features(tmp_path / "in", tmp_path / name, model=model, threads=1, **how)
        assert list(result.files) == ["case_0", "case_1", "case_2"]
        assert list(result.errors) == ["broken"]
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert len(written[0]) == 4
    assert written[0] == written[1]


def test_conversion_on_workers_writes_the_bytes_of_a_local_run(cluster: str, tmp_path: Path) -> None:
    for seed in range(3):
        write_image(tmp_path / "in" / f"scan_{seed}.nii.gz", seed, SMALL)
    written = []
    for name, how in (("here", ["-np", "1"]), ("there", ["--cluster", cluster])):
        options = ["-d", "7", "--name", "Scans", "--channels", "MR", "-o", str(tmp_path / name), *how]
        assert convert(["images", "-i", str(tmp_path / "in"), *options]) == 0
        folder = tmp_path / name / "Dataset007_Scans"
        files = [path for path in folder.rglob("*") if path.is_file()]
        written.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert "dataset.json" in written[0]
    assert written[0] == written[1]


def test_a_worker_with_another_model_is_refused(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "NOTE_S", 1.0)
    model = make_model(tmp_path / "STUNetTrainer__STUNetPlans__3d_fullres")
    write_image(tmp_path / "in" / "case_0000.nii.gz", 0, SMALL)
    made_by = {"plans": "of another model"}
    monkeypatch.setattr(Predictor, "made_by", made_by)  # in this process alone
    with pytest.raises(DataError, match=r"no worker of \S+ can be used: it would predict otherwise \("):
        stunet.predict(tmp_path / "in", tmp_path / "out", model=model, threads=1, cluster=cluster)


def test_evaluation_on_workers_writes_the_summary_of_a_local_run(cluster: str, tmp_path: Path) -> None:
    references, predictions = make_two_cases(tmp_path)
    written = []
    for name, how in (("here", ["-np", "1"]), ("there", ["--cluster", cluster])):
        assert evaluate([str(references), str(predictions), "-o", str(tmp_path / f"{name}.json"), *how]) == 0
        written.append((tmp_path / f"{name}.json").read_bytes())
    assert written[0] == written[1]


def test_paths_may_be_relative_to_the_folder_of_the_command(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references, predictions = make_two_cases(tmp_path)
    monkeypatch.chdir(tmp_path)
    given = [str(path.relative_to(tmp_path)) for path in (references, predictions)]
    assert evaluate([*given, "--cluster", cluster]) == 0
    assert read_json(predictions / "summary.json")["metric_per_case"][0]["reference_file"].startswith(given[0])


def test_cases_that_fail_on_workers_are_named_as_in_a_local_run(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references, predictions = make_two_cases(tmp_path)
    damaged = min(predictions.glob("*.nii.gz"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    said = []
    for how in (["-np", "1"], ["--cluster", cluster]):
        assert evaluate([str(references), str(predictions), *how]) == 3
        said.append(capsys.readouterr().err)
    assert f"stunet_evaluate: {said[0].partition(': ')[2]}" in said[1]
    assert "warning: " in said[1]  # when it happened, too
