"""What a run reports to whoever started it. Imports no torch.

Subclass `Listener` and override what you want to see:

    class Show(stunet.Listener):
        def note(self, text):
            print(text)

    stunet.train(3, listener=Show())

With several training processes the listener is pickled, because the leading child process calls it.
"""

from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from pathlib import Path

    from stunet.errors import StunetError
    from stunet.runs.evaluation import EvaluationResult
    from stunet.runs.features import FeaturesResult
    from stunet.runs.planning import PlanningResult
    from stunet.runs.prediction import PredictedCase, PredictionOutline
    from stunet.runs.pretraining import PretrainingResult
    from stunet.runs.training import TrainingResult
    from stunet.trainers.progress import TrainingListener


class Progress(Protocol):
    """Shows a loop: `with listener.progress("preprocess", 200) as progress: progress.step("case_1")`."""

    total: int  # steps; may be set later, when it is known

    def step(self, name: str = "") -> None:
        """Handle that one more step is done; `name` identifies it."""

    def part(self, share: float, name: str = "") -> None:
        """Handle that a share (0 to 1) of the next step is done."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NullProgress:
    """Shows nothing."""

    def __init__(self, total: int = 0) -> None:
        self.total = total

    def step(self, name: str = "") -> None:
        return

    def part(self, share: float, name: str = "") -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return


class Listener:
    """Receives what a run reports; shows nothing unless a method is overridden."""

    def note(self, text: str) -> None:
        """Handle a message about what is done, of one or more lines."""

    def warn(self, text: str) -> None:
        """Handle a warning; the run continues."""

    def progress(self, title: str, total: int) -> Progress:
        """Return what shows a loop of `total` steps."""
        return NullProgress(total)

    def training(self) -> "TrainingListener":
        """Return what shows the steps and epochs of a training; called in the process that leads it."""
        from stunet.trainers.progress import NullListener

        return NullListener()

    def planned(self, result: "PlanningResult") -> None:
        """Handle that a dataset is planned; it is preprocessed next."""

    def trained(self, result: "TrainingResult") -> None:
        """Handle that a training is done and validated."""

    def pretrained(self, result: "PretrainingResult") -> None:
        """Handle that a pre-training is done."""

    def evaluated(self, result: "EvaluationResult") -> None:
        """Handle that predictions are measured; the summary is written next."""

    def would_predict(self, outline: "PredictionOutline") -> None:
        """Handle what a dry run would predict."""

    def predicted(self, case: "PredictedCase") -> None:
        """Handle that a case is done; those that failed are told of after all others."""

    def featured(self, case: str, file: "Path | None", error: "StunetError | None") -> None:
        """Handle that a case's features are written, or why there are none; errors are told of after all others."""

    def probed(self, result: "FeaturesResult") -> None:
        """Handle that features were probed."""
