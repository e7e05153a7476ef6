"""Predict cases on the workers of a cluster: each loads the model once, and then gets one case after the other.

What is loaded there has to be what the command has loaded here, by the hashes of plans and checkpoints and the
precision: the record in the folder of the results is true for all of them. stunet/cluster says who the workers are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.errors import StunetError, last_line
from stunet.files import json_differences
from stunet.runs.devices import choose_device, set_threads
from stunet.runs.prediction import PredictionRequest
from stunet.workers import Workers, map_cases

if TYPE_CHECKING:
    from stunet.inference.cases import InputCase
    from stunet.inference.model import ModelFolder
    from stunet.inference.pipeline import Outcome, Pipeline
    from stunet.inference.predictor import Options
    from stunet.inference.products import Products


def predict_on(
    workers: Workers,
    request: PredictionRequest,
    pipeline: "Pipeline",
    shared: bool,
    warn: Callable[[str], None],
    cases: "Sequence[InputCase]",
) -> "Iterator[Outcome]":
    """Yield what Pipeline.run() would, in the order in which cases are done.

    Args:
        workers: Of a cluster.
        request: What is asked for.
        pipeline: Of this process, whose model and products those of the workers are.
        shared: Whether the folder of the results also holds other files, which are kept.
        warn: Called with each case that failed, when that happens.
        cases: The cases.
    """
    predictor = pipeline.predictor
    function = CasePredictor(
        model=predictor.model,
        options=predictor.options,
        made_by=predictor.made_by,
        folder=pipeline.folder,
        products=pipeline.products,
        shared=shared,
        device=request.device,
        threads=request.threads,
        max_memory_gb=request.max_memory,
    )
    for done in map_cases(function, cases, workers, lambda case: case.name):
        if done.error:  # of which the workers have told
            yield pipeline.failed(done.case, done.error)
            continue
        if done.result.error:
            warn(f"case {done.case.name!r} failed: {done.result.error.message}")
        yield done.result


@dataclass(frozen=True, kw_only=True)
class CasePredictor:
    """Predicts single cases in a worker, with a model that the first of them loads.

    Args:
        model: The model, whose folder the worker sees.
        options: How to predict, but for the device.
        made_by: Predictor.made_by of the command.
        folder: Where results are written.
        products: What is written for each case.
        shared: Whether the folder also holds other files, which are kept.
        device: As asked for; None: what the worker has.
        threads: Threads on the CPU; None: those of the worker.
        max_memory_gb: Memory that the worker may take; None: its limit, or what its machine has.
    """

    model: "ModelFolder"
    options: "Options"
    made_by: Mapping[str, Any]
    folder: Path
    products: "Products"
    shared: bool
    device: str | None
    threads: int | None
    max_memory_gb: float | None

    def __call__(self, case: "InputCase") -> "Outcome":
        """Predict a case.

        Raises:
            Unsuitable: The worker cannot load the model, or has another one.
            OSError: The disk is full, or the folder is not writable.
        """
        (outcome,) = self._pipeline.run([case])
        return outcome

    @cached_property
    def _pipeline(self) -> "Pipeline":
        from stunet.cluster.serving import Unsuitable, own_memory_gb, own_threads
        from stunet.inference.pipeline import Pipeline
        from stunet.inference.predictor import Predictor

        set_threads(self.threads or own_threads())
        try:
            predictor = Predictor(self.model, replace(self.options, device=choose_device(self.device)))
        except Exception as error:  # such as that of a broken GPU: others may have a sound one
            hint = error.hint if isinstance(error, StunetError) else ""
            raise Unsuitable(f"it cannot load the model: {last_line(error)}", hint) from error
        if other := json_differences(dict(self.made_by), predictor.made_by):
            raise Unsuitable(
                f"it would predict otherwise ({other[0]}); the same model there, and --precision bf16 or fp32"
            )
        memory_gb = self.max_memory_gb or own_memory_gb()
        return Pipeline(predictor, self.folder, self.products, memory_gb, shared=self.shared)
