"""Predict many cases into files: reading, network and writing run in parallel, one case each, within a memory limit.

While the network works on a case, one thread reads and preprocesses the next case and another writes the previous one;
nothing more is in flight, so neither disk nor memory fills up. A broken case becomes an Outcome with an error, and the
others go on. predictor.py has the steps, products.py the files, engine/memory.py the limit.
"""

import errno
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stunet.errors import DataError, StunetError
from stunet.files import remove_staging
from stunet.inference import products
from stunet.inference.cases import InputCase, read_geometry
from stunet.inference.engine import memory
from stunet.inference.failures import reason
from stunet.inference.predictor import Predictor
from stunet.inference.preparation import NetworkInput
from stunet.inference.products import Products
from stunet.inference.staging import staging_endings
from stunet.machine import GB, SHARE, memory_limit, resident
from stunet.orientation import file_properties
from stunet.results.itksnap import write_itksnap_labels
from stunet.results.run_report import CaseReport
from stunet.results.segmentation import Segmentation, class_names
from stunet.results.statistics import Measurement, measure, volumes

FAILURES = (*products.FAILURES, OSError)  # of a single case, whatever a library raises about it
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # end the run: every further case would fail too
ABSURD = 100  # times the memory: no real scan needs that much, only one with a wrong spacing
log = logging.getLogger("stunet")


@dataclass
class Outcome:
    """The outcome of a case.

    Attributes:
        case: The case.
        file: The segmentation, which exists if there is no error.
        report: Time by stage, memory, and files.
        error: Why the segmentation is missing, or something else that was asked for.
        statistics: By class, if requested.
        volumes: In mm3 by class, if requested.
    """

    case: InputCase
    file: Path
    report: CaseReport
    error: StunetError | None = None
    statistics: dict[str, Measurement] = field(default_factory=dict)
    volumes: dict[str, float | None] = field(default_factory=dict)


class Pipeline:
    """Predict cases into a folder.

    Args:
        predictor: The model.
        folder: Where results are written.
        products: What is written for each case.
        max_memory_gb: What this process may take, in 10^9 bytes; None: the fraction SHARE of the available memory.
        on_case: Called with a case and its number of windows when the network starts on it.
        on_window: Called for each window.
        shared: Whether the folder also holds other files, which are kept.
    """

    def __init__(
        self,
        predictor: Predictor,
        folder: Path,
        products: Products | None = None,
        max_memory_gb: float | None = None,
        on_case: Callable[[InputCase, int], None] = lambda case, windows: None,
        on_window: Callable[[], None] = lambda: None,
        shared: bool = False,
    ) -> None:
        self._shared = shared
        self.predictor, self.folder, self.products = predictor, folder, products or Products()
        self._limit = SHARE * memory_limit() if max_memory_gb is None else max_memory_gb * GB
        self._limit_name = f"{SHARE:.0%} of what there is" if max_memory_gb is None else "--max_memory"
        self._on_case, self._on_window = on_case, on_window
        self._base = resident()

    def run(self, cases: Sequence[InputCase]) -> Iterator[Outcome]:
        """Yield the outcomes in the order of the cases.

        Raises:
            OSError: The disk is full, or the folder is not writable; finished cases are kept.
        """
        following: Outcome | None = None  # made when its reading begins: of 100,000 cases, few are in memory
        unwritten: deque[Future[Outcome]] = deque()
        ahead: dict[int, Future[NetworkInput]] = {}
        # Threads, not workers.map_cases(): volumes and labels of gigabytes pass between them, and all use one network.
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            for number, case in enumerate(cases):
                outcome, following = following or self._new(case), None
                prepared = segmentation = None
                try:
                    plan = self._plan(cases, number)
                    # Not enough memory for two: the case before is written first, and freed.
                    if not plan.ahead:
                        yield from _written(unwritten, keep=0)
                    prepared = (ahead.pop(number, None) or reader.submit(self._prepare, outcome)).result()
                    if plan.ahead and number + 1 < len(cases):
                        following = self._new(cases[number + 1])
                        ahead[number + 1] = reader.submit(self._prepare, following)
                    segmentation = self._segment(outcome, prepared, plan.half)
                    unwritten.append(writer.submit(self._write, outcome, segmentation, prepared.properties))
                except FAILURES as error:
                    unwritten.append(_failed_at_once(outcome, error))
                # Freed before the next case is read: the limit on memory does not count an earlier image.
                del prepared, segmentation
                yield from _written(unwritten, keep=1)
            yield from _written(unwritten, keep=0)

    def failed(self, case: InputCase, error: StunetError) -> Outcome:
        """Return the outcome of a case that failed elsewhere."""
        return _failed(self._new(case), error)

    def write_label_table(self) -> None:
        """Write names and colours of the labels for ITK-SNAP, which reads them from a separate file (-l FILE)."""
        names, regions = class_names(self.predictor.result_dataset)
        place = ((1.0,) * 3, (0.0,) * 3, tuple(np.eye(3).ravel()))
        empty = Segmentation(np.zeros((1, 1, 1), np.uint8), names, *place, regions)
        write_itksnap_labels(empty, self.folder / "itksnap_labels.txt")

    def is_done(self, case: InputCase) -> bool:
        """Return whether all files of a case exist and the segmentation is whole."""
        return self.products.is_done(case, self.folder, self.predictor.model)

    def remove(self, cases: Sequence[InputCase]) -> None:
        """Remove the files of cases, so that a run that ends early leaves none that something else has made."""
        model = self.predictor.model
        classes = {**class_names(model.dataset)[0], **class_names(self.predictor.result_dataset)[0]}
        self.products.remove(cases, self.folder, model, classes, self._shared)

    def remove_leftovers(self, cases: Sequence[InputCase] | None = None) -> None:
        """Remove temporary files of killed runs; only those of `cases` if other runs share the folder."""
        endings = products.endings_of_parts(self.predictor.model)
        names = None if cases is None else {end for case in cases for end in staging_endings(case.name, endings)}
        for folder in {case.place(self.folder) for case in cases or ()} | {self.folder}:
            remove_staging(folder, names)

    @property
    def ending(self) -> str:
        """The ending of a finished segmentation."""
        return self.products.endings(self.predictor.model)[-1]

    def _new(self, case: InputCase) -> Outcome:
        return Outcome(case, case.place(self.folder) / f"{case.name}{self.ending}", CaseReport(case.name))

    def _plan(self, cases: Sequence[InputCase], number: int) -> memory.Schedule:
        """Return how the case is scheduled together with its neighbours."""
        needs = [self._need(case) for case in cases[max(0, number - 1) : number + 2]]
        known = [need for need in needs if need is not None]
        need = needs[min(number, 1)]  # the first case has none before it
        if need is None:
            return memory.Schedule(ahead=False, half=False)
        if need.prepare > ABSURD * max(self._limit, memory_limit()):
            return memory.Schedule(ahead=False, half=False)  # reading.check_grid() will report the wrong spacing
        plan = memory.schedule(need, known, self._base, self._limit, self._limit_name)
        if plan.half:
            log.warning("%s: logits are added in half precision, to keep within the memory", cases[number].name)
        # Nothing is read ahead next to a case of unknown size: the limit could not be kept.
        return replace(plan, ahead=plan.ahead and len(known) == len(needs))

    def _need(self, case: InputCase) -> memory.Need | None:
        """Return a case's memory need; None if its header cannot be read, which reading the case will report."""
        try:
            return self.predictor.memory_need(*read_geometry(case, self.predictor.orientation))
        except DataError:
            return None

    def _prepare(self, outcome: Outcome) -> NetworkInput:
        with outcome.report.stage("read"):
            raw = self.predictor.read(outcome.case)
        with outcome.report.stage("preprocess"):
            return self.predictor.preprocess(raw)

    def _segment(self, outcome: Outcome, prepared: NetworkInput, half: bool) -> Segmentation:
        case, file = outcome.case, None
        if self.products.probabilities:
            file = products.probabilities_part(case, self.folder)
        self._on_case(case, self.predictor.count_windows(prepared))
        try:
            labels = self.predictor.segment(prepared, self._on_window, file, half, outcome.report.seconds)
        # Also after an interruption: the file has a float per class and voxel.
        except BaseException:
            if file is not None:
                file.unlink(missing_ok=True)
            raise
        return self.predictor.to_segmentation(labels, prepared)

    def _write(self, outcome: Outcome, segmentation: Segmentation, properties: dict[str, Any]) -> Outcome:
        case, model, wanted = outcome.case, self.predictor.model, self.products
        # Of the statistics: whatever happens to them, the segmentation is still written.
        problem: Exception | None = None
        try:
            with outcome.report.stage("write"):
                image = None
                try:
                    if wanted.statistics or wanted.preview:  # read again: keeping it would cost two copies per image
                        image = self.predictor.read(case).on_file_grid
                    if wanted.volumes:
                        outcome.volumes = volumes(segmentation)
                    if wanted.statistics and image is not None:
                        outcome.statistics = measure(segmentation, image, model.channels)
                except FAILURES as error:
                    problem = error
                place = file_properties(properties, segmentation.labels_DHW.shape)
                files, missing = products.write(
                    segmentation, place, None if image is None else image[0], case, self.folder, wanted, model,
                    self.predictor.writer, self._shared,
                )  # fmt: skip
            outcome.report.files = [file.name for file in files]
            problem = problem or missing
            if problem:
                return _failed(outcome, problem)
        except FAILURES as error:
            return _failed(outcome, error)
        finally:
            if wanted.probabilities:  # left over if they did not get their final name
                products.probabilities_part(case, self.folder).unlink(missing_ok=True)
        return outcome


def _failed_at_once(outcome: Outcome, error: Exception) -> Future[Outcome]:
    """Return a finished future of _failed().

    The error does not wait for the writer like the other outcomes: until it is handled, its traceback holds the image.
    """
    future: Future[Outcome] = Future()
    try:
        future.set_result(_failed(outcome, error))
    except OSError as of_the_disk:  # raised when its turn comes, after the cases before it
        future.set_exception(of_the_disk)
    return future


def _failed(outcome: Outcome, error: Exception) -> Outcome:
    """Return the outcome with the error, but without its traceback, which would keep images of its frames alive.

    Raises:
        OSError: The disk is full or broken, which concerns all cases.
    """
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        raise error
    outcome.error = reason(error).with_traceback(None)
    outcome.error.__cause__ = outcome.error.__context__ = None
    outcome.report.fail(outcome.error)
    return outcome


def _written(unwritten: deque[Future[Outcome]], keep: int) -> Iterator[Outcome]:
    """Yield finished outcomes, waiting for all but the last `keep`."""
    while len(unwritten) > keep:
        yield unwritten.popleft().result()
