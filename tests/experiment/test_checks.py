"""What is checked of an experiment's weights before its first arm; what pre-training writes is taken by trainings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from stunet.errors import DataError, StunetError, UsageError, WeightsError
from stunet.experiment.arms import Experiment, arms, request
from stunet.experiment.checks import check_experiment
from stunet.runs.listener import Listener
from stunet.runs.training import train
from stunet.workspace import PRETRAINED, PRETRAINED_TEACHER
from tests.loops import for_each
from tests.pretraining_run import make_pretrainer, write_weights


def compare(dataset: str, weights: Mapping[str, tuple[object, ...]]) -> Experiment:
    """Check an experiment on the phantom with these weights."""
    named = {title: tuple(map(str, texts)) for title, texts in weights.items()}
    experiment = Experiment(dataset=dataset, weights=named, strategies=("full",), cases=(2,), seeds=(0,))
    check_experiment(experiment, named, Listener())
    return experiment


def test_results_of_a_pretraining_are_weights_as_folders_and_as_files(
    planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_pretrainer(planned, tmp_path, monkeypatch, "byol", num_epochs=1, num_iterations_per_epoch=1)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    student, teacher = (folder / name for name in (PRETRAINED, PRETRAINED_TEACHER))
    single = {"result": (folder.parent,), "student": (student,), "teacher": (teacher,)}
    experiment = compare(planned, {**single, "both": (student, teacher)})
    for arm in arms(experiment):
        plan = train(replace(request(experiment, arm), device="cpu", dry_run=True)).plan
        assert [each.pretext for each in plan.weights] == ["byol"] * len(arm.weights)


@for_each(
    ("weights", "error", "message"),
    [
        ({"a": ("a.pth",), "b": ("./a.pth",)}, DataError, "'a' and 'b' are the same weights"),
        ({"ab": ("a.pth", "b.pth"), "ba": ("b.pth", "a.pth")}, DataError, "'ab' and 'ba' are the same weights"),
        ({"both": ("a.pth", "./a.pth")}, DataError, "'both' names the same weights twice"),
        ({"both": ("STU-Net-B", "stu-net-b.totalseg")}, DataError, "'both' names the same weights twice"),
        ({"both": ("a.pth", "copy.pth")}, UsageError, "are the same weights: the encoders would learn the same"),
        ({"both": ("a.pth", "c.pth")}, WeightsError, "no model or file 'c.pth'"),
    ],
)
def test_weights_that_are_not_there_or_not_apart_are_refused(
    planned: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: Mapping[str, tuple[str, ...]],
    error: type[StunetError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "models"))
    write_weights(planned, tmp_path / "a.pth", "mae")
    write_weights(planned, tmp_path / "b.pth", "simclr")
    (tmp_path / "copy.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    with pytest.raises(error, match=message):
        compare(planned, weights)
