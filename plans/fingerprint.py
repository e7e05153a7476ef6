"""The dataset's fingerprint (spacings, shapes, intensities): extracted by nnU-Net, again when the data changed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor as host
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.datasets.check import UNREADABLE
from stunet.errors import DataError, is_out_of_memory, last_line
from stunet.files import read_json, write_json
from stunet.nnunet import exchanged
from stunet.processes import each
from stunet.workspace import preprocessed_dataset, raw_dataset

SOURCE = "stunet_source"  # our key in the fingerprint, which nnU-Net ignores


def extract_fingerprint(
    dataset: str,
    workers: int,
    clean: bool = False,
    on_case: Callable[[str, int], None] = lambda name, cases: None,
) -> Path:
    """Writes dataset_fingerprint.json unless an up-to-date one exists.

    Args:
        dataset: Full name.
        workers: Processes.
        clean: Extract even if the existing one is up to date.
        on_case: Called with the label file of a case that is done, and how many cases there are.

    Raises:
        DataError: A case cannot be read.
        OutOfMemoryError: A case does not fit into memory.
    """
    path = preprocessed_dataset(dataset) / "dataset_fingerprint.json"
    source = _source(dataset)
    if clean or not path.is_file() or read_json(path).get(SOURCE) != source:
        path.parent.mkdir(parents=True, exist_ok=True)
        extractor = DatasetFingerprintExtractor(dataset, workers, verbose=False)
        extractor.show_progress_bar = False
        with exchanged(host, multiprocessing=_Pool(workers, on_case)):
            extractor.run(overwrite_existing=True)
        write_json(path, {**read_json(path), SOURCE: source})
    return path


class _Pool:
    """Stands for multiprocessing in nnU-Net's extractor, whose pool hangs or names no case when a process is killed.

    nnU-Net submits all cases before it looks at the pool's processes: then all of them are done, by processes.each().
    """

    def __init__(self, workers: int, on_case: Callable[[str, int], None]) -> None:
        self._workers, self._on_case = workers, on_case
        self._jobs: list[_Job] = []

    def get_context(self, method: str) -> "_Pool":
        return self

    def Pool(self, processes: int) -> "_Pool":
        return self

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def starmap_async(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> "_Job":
        self._jobs.append(_Job(arguments[0]))
        return self._jobs[-1]

    @property
    def _pool(self) -> list[Any]:
        arguments = [job.arguments for job in self._jobs]
        for position, result in each(_analyze, arguments, self._workers, _name):
            self._jobs[position].result = result
            self._on_case(_name(arguments[position]), len(arguments))
        return []  # of processes that nnU-Net has to watch


class _Job:
    """What nnU-Net asks for the result of a case."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments, self.result = arguments, None

    def ready(self) -> bool:
        return True

    def get(self) -> list[Any]:
        return [self.result]


def _name(arguments: tuple[Any, ...]) -> str:
    return Path(arguments[1]).name  # of the label file


def _analyze(arguments: tuple[Any, ...]) -> Any:
    """nnU-Net's statistics of a case, in a worker."""
    try:
        return DatasetFingerprintExtractor.analyze_case(*arguments)
    except UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        files = ", ".join(map(repr, (*arguments[0], arguments[1])))
        raise DataError(
            f"no fingerprint of {files}: {last_line(error)}", "look at these files; without --no_check they are checked"
        ) from error


def _source(dataset: str) -> list[list[str | int]]:
    """Name, size in bytes and time of change of the files that the fingerprint is made from."""
    folder = raw_dataset(dataset)
    cases = get_filenames_of_train_images_and_targets(str(folder), read_json(folder / "dataset.json"))
    files = [Path(name) for case in cases.values() for name in (*case["images"], case["label"])]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
