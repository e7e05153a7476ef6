"""Compute and write the features of one case after the other: with the model of the command, or of a cluster's worker.

A worker loads the model once, which has to be the one that the command has. features.py decides what is computed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.errors import StunetError, last_line
from stunet.files import json_differences
from stunet.runs.devices import choose_device, set_threads

if TYPE_CHECKING:
    from stunet.inference.cases import InputCase
    from stunet.inference.features.model import Model
    from stunet.probing.tables import CasePoints


@dataclass(frozen=True)
class Task:
    """A case with what belongs to it: its subject, label map and points; or why it cannot be done."""

    case: "InputCase"
    subject: str
    label: Path | None
    points: "CasePoints | None"
    error: StunetError | None

    def made_from(self) -> dict[str, Any]:
        """Return the files and points that the case's features are made from, as JSON holds them."""
        found: dict[str, Any] = {"image": self.case.fingerprint()}
        if self.label:
            stat = self.label.stat()
            found["labels"] = [self.label.name, stat.st_size, stat.st_mtime_ns]
        if self.points:
            found["points"] = [[name, *at] for name, at in zip(self.points.names, self.points.at, strict=True)]
        return found

    def file(self, folder: Path) -> Path:
        """Return the file of the case's features in a folder."""
        from stunet.inference.features.stored import ENDING

        return folder / f"{self.case.name}{ENDING}"


def write_case(
    model: "Model",
    task: Task,
    folder: Path,
    options: Mapping[str, Any],
    world: str,
    on_window: Callable[[int, int], None] = lambda done, total: None,
) -> StunetError | None:
    """Compute and write the features of a case; return why there are none, if that is so.

    Args:
        model: The encoder.
        task: The case.
        folder: Where the features go.
        options: What determines them besides the case: pools, stages, classes, and the model's made_by.
        world: Of the points, RAS or LPS.
        on_window: Called with the number of windows that are done, and of all.
    """
    from stunet.inference.failures import reason
    from stunet.inference.features.stored import StoredFeatures, write_features
    from stunet.inference.reading import UNREADABLE

    try:
        found = model.features(
            task.case,
            labels=task.label,
            points=task.points.at if task.points else None,
            names=task.points.names if task.points else None,
            pools=options["pools"],
            classes=options["classes"],
            world=world,
            stages=options["stages"],
            on_window=on_window,
        )
        write_features(task.file(folder), StoredFeatures(task.case.name, found, {**options, **task.made_from()}))
    except (StunetError, MemoryError, *UNREADABLE) as error:
        return reason(error, "computing features")
    return None


@dataclass(frozen=True, kw_only=True)
class FeatureWriter:
    """Writes features of single cases in a worker, with a model that the first of them loads.

    Args:
        path: Where the model is.
        folder: Where the features go.
        options: As for write_case().
        world: As for write_case().
        arguments: Of Model, but for the device.
        device: As asked for; None: what the worker has.
        threads: Threads on the CPU; None: those of the worker.
    """

    path: Path
    folder: Path
    options: Mapping[str, Any]
    world: str
    arguments: Mapping[str, Any]
    device: str | None
    threads: int | None

    def __call__(self, task: Task) -> StunetError | None:
        """Do what write_case() does.

        Raises:
            Unsuitable: The worker cannot load the model, or has another one.
        """
        return write_case(self._model, task, self.folder, self.options, self.world)

    @cached_property
    def _model(self) -> "Model":
        from stunet.cluster.serving import Unsuitable, own_threads
        from stunet.inference.features.model import Model

        set_threads(self.threads or own_threads())
        try:
            model = Model(self.path, **self.arguments, device=choose_device(self.device))
        except Exception as error:  # such as that of a broken GPU: others may have a sound one
            hint = error.hint if isinstance(error, StunetError) else ""
            raise Unsuitable(f"it cannot load the model: {last_line(error)}", hint) from error
        if other := json_differences(self.options["model"], model.made_by):
            raise Unsuitable(f"it would compute otherwise ({other[0]}); the same model there, a --precision of both")
        return model
