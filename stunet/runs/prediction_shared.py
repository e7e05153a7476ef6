"""Write what belongs to all cases of a prediction: records, statistics, the report; in one run, or by parts of it.

prediction_stages.py predicts the cases, and tells Whole or OfPart of each.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.errors import DataError, StunetError, first_few
from stunet.files import sha256_of_json
from stunet.parts import Part, Records, to_merge, unfinished
from stunet.results.formats import DEFAULT
from stunet.runs.listener import Listener
from stunet.runs.prediction import PredictionRequest

if TYPE_CHECKING:
    from stunet.inference.index import Index
    from stunet.inference.pipeline import Outcome, Pipeline
    from stunet.inference.predictor import Predictor
    from stunet.inference.products import Products
    from stunet.results.run_report import RunReport
    from stunet.results.statistics import Measurement

# Files with all cases are written whole: at most every second, and in a twentieth of the time.
SAVE_INTERVAL_S, SHARE_OF_TIME = 1.0, 20


@dataclass(frozen=True)
class StageRun:
    """A stage of a model, as it is run.

    Attributes:
        request: What is asked for.
        stage: The model.
        target: Where the results go.
        names: Of all cases in their order, also those of other parts.
        last: Whether its results are what is asked for.
        report: What is recorded of the run, if it is asked for.
        errors: Of the cases that failed, by name; filled.
        listener: Told of what happens.
    """

    request: PredictionRequest
    stage: "Predictor"
    target: Path
    names: Sequence[str]
    last: bool
    report: "RunReport | None"
    errors: dict[str, StunetError]
    listener: Listener

    @property
    def products(self) -> "Products":
        """What is written for each case."""
        from stunet.inference.products import Products

        asked = self.request
        if not self.last:
            return Products()
        form = asked.format or DEFAULT
        return Products(form, asked.save_probabilities, asked.preview, asked.statistics, volumes=asked.index)

    @property
    def index(self) -> "Index | None":
        """The index of the results, if it is asked for."""
        from stunet.inference.index import Index

        part = Part(self.request.part_id, self.request.num_parts)
        return Index(self.target, part) if self.request.index and self.last else None

    def write_index(self) -> None:
        """Write the tables of the index, if it is asked for."""
        if self.index and (failed := self.index.write_tables(self.names)):
            from stunet.inference.index import FAILED

            self.listener.note(f"{failed} of {len(self.names)} cases failed: {self.target / FAILED}, a list for -i")


class Whole:
    """What one run for all cases writes.

    Attributes:
        known: The cases whose statistics are there, if these are wanted.
    """

    def __init__(self, run: StageRun, pipeline: "Pipeline", recorded: bool) -> None:
        self._run, self._pipeline, self._recorded = run, pipeline, recorded
        self.known = {*known_statistics(pipeline)}
        self._measured: dict[str, Mapping[str, Measurement]] = {}
        self._new: set[str] = set()
        self._clock = _Clock()

    def begin(self, new: set[str]) -> None:
        """Record what makes the results, of which these are new."""
        from stunet.inference.records import PARTS

        self._new = new
        if self._recorded:
            shutil.rmtree(self._run.target / PARTS, ignore_errors=True)  # of an earlier run in parts
            write_records(self._run, self._pipeline)

    def add(self, outcome: "Outcome") -> None:
        """Take in a case that is done or has failed."""
        if self._run.report:
            self._run.report.cases.append(outcome.report)
        if outcome.statistics:  # they may exist even if another requested result failed
            self._measured[outcome.case.name] = outcome.statistics
            self._clock.every(self._write_statistics)

    def save(self) -> None:
        """Write what there is, also if the run ends early."""
        self._write_statistics()
        if self._run.report:
            write_report(self._run.report, self._run.request, self._run.target, self._pipeline.predictor.model.folder)

    def finish(self) -> None:
        """Write the tables of an index."""
        self._run.write_index()

    def _write_statistics(self) -> None:
        from stunet.results.statistics import add_statistics

        if self._measured:  # in the order of the cases, in whatever order they are done
            ordered = {name: self._measured[name] for name in self._run.names if name in self._measured}
            add_statistics(self._run.target, ordered, self._new)


class OfPart:
    """What a part hands over, and the last one, or a run with --merge, writes.

    Attributes:
        known: As of Whole.

    Raises:
        DataError: There is nothing to merge.
    """

    def __init__(self, run: StageRun, pipeline: "Pipeline") -> None:
        from stunet.inference.records import PARTS

        self._run, self._pipeline = run, pipeline
        request, folder, wanted = run.request, run.target / PARTS, run.products
        part = to_merge(folder, request.num_parts) if request.merge else Part(request.part_id, request.num_parts)
        agreed = {"made_by": run.stage.made_by, "cases": sha256_of_json(list(run.names)), "products": asdict(wanted)}
        self._part, self._records = part, Records(folder, part, agreed)
        before = self._records.own() or {}
        self._failed: dict[str, list[str]] = before.get("failed", {})
        self._reports: dict[str, Any] = {each["name"]: each for each in before.get("report", [])}
        own = set(part.take(run.names))
        of_all = {name: _rows(rows) for name, rows in known_statistics(pipeline).items() if name in own}
        self._statistics: dict[str, Any] = {**of_all, **before.get("statistics", {})}
        self.known = {*self._statistics}
        self._clock = _Clock()
        if before and not request.merge:  # not done any more, before results are removed
            self.save()

    def begin(self, new: set[str]) -> None:
        """Say what makes the results, of which these are new.

        Raises:
            DataError: Other parts predict into the folder with another model or other options.
        """
        from stunet.inference.records import check_run_record

        for known in (self._failed, self._reports, self._statistics):
            for name in new & known.keys():
                del known[name]
        with self._records.locked():
            check_run_record(self._run.target, self._run.stage.made_by, kept=False)
            self._records.save(self._content())

    def add(self, outcome: "Outcome") -> None:
        """Take in a case that is done or has failed."""
        name = outcome.case.name
        if self._run.report:
            self._reports[name] = asdict(outcome.report)
        if outcome.error:
            self._failed[name] = [outcome.error.message, outcome.error.hint]
        if outcome.statistics:
            self._statistics[name] = _rows(outcome.statistics)
        self._clock.every(self.save)

    def save(self) -> None:
        """Record what there is, also if the run ends early."""
        self._records.save(self._content())

    def finish(self) -> None:
        """Hand over what there is; write what belongs to all cases if all other parts have done so."""
        if missing := self._records.finish(self._content(), self._write):
            self._run.listener.note(unfinished(self._part, missing))

    def merge(self) -> None:
        """Write what belongs to all cases.

        Raises:
            DataError: Parts are missing.
        """
        self._records.merge(self._write)

    def _content(self) -> dict[str, Any]:
        return {"failed": self._failed, "report": [*self._reports.values()], "statistics": self._statistics}

    def _write(self, contents: list[Any]) -> None:
        from stunet.results.run_report import CaseReport
        from stunet.results.statistics import measurements, write_statistics

        run = self._run
        write_records(run, self._pipeline)
        if self._pipeline.products.statistics:
            rows = {name: found for content in contents for name, found in content["statistics"].items()}
            write_statistics(run.target, {name: measurements(rows[name]) for name in run.names if name in rows})
        run.write_index()
        if run.report:
            reports = {each["name"]: each for content in contents for each in content["report"]}
            run.report.cases = [CaseReport(**reports[name]) for name in run.names if name in reports]
            write_report(run.report, run.request, run.target, self._pipeline.predictor.model.folder)
        failed = {name: error for content in contents for name, error in content["failed"].items()}
        if run.request.merge:
            run.errors.update({name: DataError(*failed[name]) for name in run.names if name in failed})
        elif others := [f"{name!r}: {message}" for name, (message, _) in failed.items() if name not in run.errors]:
            run.listener.warn(f"{len(others)} cases failed in other parts: {first_few(others)}")


def gathered_by(run: StageRun, pipeline: "Pipeline", whole_folder: bool) -> Whole | OfPart:
    """Return who writes what belongs to all cases; beside a single requested file there are no records."""
    return OfPart(run, pipeline) if run.request.num_parts > 1 and whole_folder else Whole(run, pipeline, whole_folder)


def write_records(run: StageRun, pipeline: "Pipeline") -> None:
    """Write what is beside the results: what made them, dataset.json, plans.json, the table of labels."""
    from stunet.inference.records import write_run_record

    stage = run.stage
    write_run_record(run.target, _settings(run), stage.made_by, stage.result_dataset, stage.model.plan)
    pipeline.write_label_table()


def known_statistics(pipeline: "Pipeline") -> "dict[str, Mapping[str, Measurement]]":
    """Return the statistics of cases that were done before, if statistics are wanted."""
    from stunet.results.statistics import JSON_FILE, read_statistics

    path = pipeline.folder / JSON_FILE
    return dict(read_statistics(path)) if pipeline.products.statistics and path.is_file() else {}


def write_report(report: "RunReport", request: PredictionRequest, folder: Path, model: Path | None) -> None:
    """Write what has been recorded so far: as a page for readers if its file ends with .html, else as JSON."""
    assert request.report is not None
    if request.report.suffix.lower() != ".html":
        report.write(request.report)
        return
    from stunet.inference.products import PREVIEW
    from stunet.report import page, prediction

    try:
        page.write(prediction.page(report.to_json(), folder, model, PREVIEW), request.report)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        what = f"cannot write the report {str(request.report)!r}: {error.strerror}"
        raise DataError(what, "name another file") from None


def _settings(run: StageRun) -> dict[str, Any]:
    """Return what nnU-Net records about a prediction in the folder of its results; of parts, as of all cases."""
    request = run.request
    previous = request.prev_stage_predictions
    return {
        "list_of_lists_or_source_folder": str(request.input),
        "output_folder_or_list_of_truncated_output_files": str(run.target),
        "save_probabilities": request.save_probabilities,
        "overwrite": not request.continue_prediction,
        "num_processes_preprocessing": request.npp,
        "num_processes_segmentation_export": request.nps,
        "folder_with_segs_from_prev_stage": previous and str(previous),
        "num_parts": 1,
        "part_id": 0,
    }


def _rows(measured: "Mapping[str, Measurement]") -> dict[str, Any]:
    return {name: asdict(row) for name, row in measured.items()}


class _Clock:
    """Calls a function now and then, so that it takes a small share of the time."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SAVE_INTERVAL_S

    def every(self, function: Any) -> None:
        start = time.monotonic()
        if start < self._next:
            return
        function()
        end = time.monotonic()
        self._next = end + max(SAVE_INTERVAL_S, SHARE_OF_TIME * (end - start))
