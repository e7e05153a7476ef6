"""Extract a dataset's fingerprint (spacings, shapes, intensities) with nnU-Net, and again whenever its data change.

Images are read as in preprocessing: if a dataset mixes orientations, they are reoriented to the most frequent one.

nnU-Net takes the intensities of CT normalisation from what is labelled. Where nothing is labelled, they are those of
the voxels that are brighter than the mean of their image: the body in a CT, the head in an MR image of it.
"""

import json
import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor as host
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from stunet.datasets import find_reader, list_cases, tiff, training_files
from stunet.datasets.check import UNREADABLE
from stunet.errors import DataError, is_out_of_memory, last_line
from stunet.files import atomic_write, read_json, write_json
from stunet.images import Reader, count_orientations, is_flat, read_header
from stunet.kinds import FINGERPRINT, read, read_dataset_json
from stunet.nifti_header import oddities
from stunet.nnunet import patched, write_atomically
from stunet.orientation import REORIENTED, REORIENTS, turn
from stunet.parts import WHOLE, Part
from stunet.workers import map_cases
from stunet.workspace import dataset_number, preprocessed_dataset, raw_dataset

write_atomically(host)
log = logging.getLogger("stunet")
FILE = "dataset_fingerprint.json"
# Our keys in the fingerprint, which nnU-Net ignores: what it was made from, and how many images have each orientation.
SOURCE, ORIENTATIONS = "stunet_source", "stunet_orientations"


def extract_fingerprint(
    dataset: str,
    workers: int,
    clean: bool = False,
    on_case: Callable[[str, int], None] = lambda name, cases: None,
) -> Path:
    """Write dataset_fingerprint.json unless an up-to-date one exists, and return its path.

    Args:
        dataset: Full name.
        workers: Number of processes.
        clean: Extract even if the existing one is up to date.
        on_case: Called with the name of each finished case's last file, and the number of cases.

    Raises:
        DataError: A case cannot be read, no case has foreground, or a 3D TIFF has no spacing.
        OutOfMemoryError: A case does not fit into memory.
    """
    path = preprocessed_dataset(dataset) / FILE
    source = source_of(dataset)
    hint = f"stunet_plan_and_preprocess -d {dataset_number(dataset)} --clean"
    before = read(path, FINGERPRINT, hint) if path.is_file() and not clean else {}
    if before.get(SOURCE) == source and ORIENTATIONS in before:
        return path
    kind, found = orientations(dataset)
    # Earlier versions recorded no orientations. Such a fingerprint stays valid if all images have the same.
    if before.get(SOURCE) != source or len(found) > 1:
        _run_extractor(dataset, _Pool(workers, on_case), workers, kind, found)
        before = read_json(path)
    write_json(path, {**before, SOURCE: source, ORIENTATIONS: found})
    return path


def is_up_to_date(dataset: str) -> bool:
    """Return whether extract_fingerprint() would leave the fingerprint as it is."""
    path = preprocessed_dataset(dataset) / FILE
    before = read(path, FINGERPRINT) if path.is_file() else {}
    return before.get(SOURCE) == source_of(dataset) and ORIENTATIONS in before


def analyze_part(
    dataset: str, part: Part, workers: int, on_case: Callable[[str, int], None] = lambda name, cases: None
) -> list[tuple[Any, ...]]:
    """Return nnU-Net's analysis of each case of a part: shape, spacing, intensities by channel, statistics, share.

    Raises:
        DataError: As for extract_fingerprint().
        OutOfMemoryError: A case does not fit into memory.
    """
    pool = _Pool(workers, on_case, part)
    with suppress(_Analyzed):
        _run_extractor(dataset, pool, workers, *orientations(dataset))
    return part.take([job.result for job in pool.jobs])


def save_analyses(path: Path, analyses: Sequence[tuple[Any, ...]]) -> None:
    """Write what analyze_part() returned, without the statistics, which nnU-Net does not use."""
    rest = [[list(map(int, shape)), list(map(float, spacing)), float(share), len(intensities)]
            for shape, spacing, intensities, _, share in analyses]  # fmt: skip
    arrays = {f"{i}_{c}": values for i, each in enumerate(analyses) for c, values in enumerate(each[2])}
    with atomic_write(path) as part, part.open("wb") as file:
        np.savez(file, rest=np.array(json.dumps(rest)), **arrays)


def load_analyses(path: Path) -> list[tuple[Any, ...]]:
    """Return what save_analyses() wrote.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        with np.load(path) as found:
            return [
                (tuple(shape), spacing, [found[f"{i}_{c}"] for c in range(channels)], None, share)
                for i, (shape, spacing, share, channels) in enumerate(json.loads(str(found["rest"])))
            ]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {str(path)!r}: {last_line(error)}", "run its part again") from None


def write_fingerprint(dataset: str, analyses: Sequence[tuple[Any, ...]], source: Any) -> None:
    """Write the fingerprint from what analyze_part() returned, in the order of all cases; `source` as it was before.

    Raises:
        DataError: As for extract_fingerprint().
    """
    path, (kind, found) = preprocessed_dataset(dataset) / FILE, orientations(dataset)
    _run_extractor(dataset, _Pool(1, lambda name, cases: None, known=analyses), 1, kind, found)
    write_json(path, {**read_json(path), SOURCE: source, ORIENTATIONS: found})


def _run_extractor(dataset: str, pool: "_Pool", workers: int, kind: str, found: Mapping[str, int]) -> None:
    """Write nnU-Net's fingerprint of images that are read by `kind`, and of which so many have each orientation."""
    preprocessed_dataset(dataset).mkdir(parents=True, exist_ok=True)
    # Of our listing: without hidden files, and also of images without labels.
    with patched(host, get_filenames_of_train_images_and_targets=nnunets_listing):
        extractor = DatasetFingerprintExtractor(dataset, workers, verbose=False)
    extractor.show_progress_bar = False
    labelled = all(case["label"] for case in extractor.dataset.values())
    if not labelled:  # in its place stands the mask, which nnU-Net passes to the reader
        for case in list_cases(raw_dataset(dataset), extractor.dataset_json):
            extractor.dataset[case.name]["label"] = case.mask and str(case.mask)
    if kind == tiff.READER:
        for files in extractor.dataset.values():  # nnU-Net assumes 1 mm where the spacing is missing
            tiff.read_spacing(Path(files["images"][0]), is_image=True)
    reader = partial(_OfCase if labelled else _WithoutLabels, kind, target_orientation(kind, found))
    try:
        with patched(host, multiprocessing=pool, determine_reader_writer_from_dataset_json=lambda *_, **__: reader):
            extractor.run(overwrite_existing=True)
    except IndexError:  # numpy's percentiles of an empty array
        what = "has any foreground" if labelled else "has a voxel that is brighter than the image's mean"
        hint = f"check the {'files in labelsTr' if labelled else 'images'}, or leave out --no_check"
        raise DataError(f"no case of {dataset} {what}", hint) from None


def nnunets_listing(folder: str, description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Replaces nnU-Net's function of this purpose: training_files() of a folder given as text."""
    return training_files(Path(folder), description)


def orientations(dataset: str) -> tuple[str, dict[str, int]]:
    """Read all image headers of a raw dataset; return its reader's name and the number of images per orientation.

    Raises:
        DataError: A header cannot be read.
    """
    folder = raw_dataset(dataset)
    description = read_dataset_json(folder / "dataset.json")
    images = [case.images[0] for case in list_cases(folder, description)]
    kind = find_reader(description, images[0]).__name__
    try:
        odd = [text for path in images if (text := oddities(path, kind.startswith("SimpleITK")))]
        if odd:
            log.warning("%d of %d images have an odd header: %s", len(odd), len(images), odd[0])
        if len(ways := {read_header(path).direction for path in images if is_flat(path)}) > 1:
            log.warning("the 2D images have %d different orientations, and 2D images are not turned", len(ways))
        return kind, count_orientations(images, kind)
    except UNREADABLE as error:
        raise DataError(f"cannot read an image of {dataset}: {last_line(error)}", "copy the file again") from error


def target_orientation(kind: str, found: Any) -> str | None:
    """Return the orientation that all images are turned to: the reader's, or else the most frequent, if any."""
    return REORIENTED if kind.endswith(REORIENTS) else next(iter(found), None)


def turned(found: Mapping[str, Any], own: str | None, wanted: str | None) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return a fingerprint as of images that are turned, and the axis of their arrays before for each one after."""
    order = turn(own, wanted).order if own and wanted else (0, 1, 2)
    axes = {key: [[each[axis] for axis in order] for each in found[key]] for key in ("spacings", "shapes_after_crop")}
    return {**found, **axes}, order


class _OfCase(Reader):
    """A reader of one case: of its image, then of its labels in the same orientation."""

    def read_images(self, files: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        self._image = files[0]
        return super().read_images(files)

    def read_seg(self, file: str, like: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return super().read_seg(file, like or self._image)


class _WithoutLabels(_OfCase):
    """A reader for one case without labels, whose label map is 1 where a voxel is brighter than its channel's mean.

    Of several channels, one is enough. What the case's mask leaves out neither counts for the mean nor is taken.
    """

    def read_images(self, files: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        self._channels, self._properties = super().read_images(files)
        return self._channels, self._properties

    def read_seg(self, file: str | None, like: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        counted = np.ones(self._channels.shape[1:], bool)
        if file is not None:
            counted = super().read_seg(file, like)[0][0] <= 0
        bright = np.zeros_like(counted)
        for channel in self._channels if counted.any() else ():
            bright |= channel > channel[counted].mean(dtype=np.float64)
        return (bright & counted)[None].astype(np.int8), self._properties


class _Pool:
    """Replaces multiprocessing in nnU-Net's extractor, whose pool hangs or names no case if a process is killed.

    nnU-Net submits all cases before it looks at the pool's processes; at that point map_cases() runs them all.

    Args:
        workers: Number of processes.
        on_case: Called with the name of each finished case's last file, and the number of cases.
        part: Of which the cases are run; if there are others, _Analyzed ends the extraction then.
        known: The results of all cases, if there are any.
    """

    def __init__(
        self,
        workers: int,
        on_case: Callable[[str, int], None],
        part: Part = WHOLE,
        known: Sequence[tuple[Any, ...]] | None = None,
    ) -> None:
        self._workers, self._on_case, self._part, self._known = workers, on_case, part, known
        self.jobs: list[_Job] = []

    def get_context(self, method: str) -> "_Pool":
        return self

    def Pool(self, processes: int) -> "_Pool":
        return self

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def starmap_async(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> "_Job":
        self.jobs.append(_Job(arguments[0]))
        return self.jobs[-1]

    @property
    def _pool(self) -> list[Any]:
        if self._known is not None:
            for job, result in zip(self.jobs, self._known, strict=True):
                job.result = result
            return []
        own = self._part.take(self.jobs)
        for outcome in map_cases(_analyze, [job.arguments for job in own], self._workers, _name):
            own[outcome.position].result = outcome.result  # ends at the first failure: all cases are needed
            self._on_case(_name(outcome.case), len(own))
        if not self._part.is_whole:
            raise _Analyzed
        return []  # no processes for nnU-Net to watch


class _Analyzed(Exception):
    """The cases of a part are analysed, which is all that can be done."""


class _Job:
    """The part of AsyncResult's interface through which nnU-Net gets the result of a case."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.result: Any = None

    def ready(self) -> bool:
        return True

    def get(self) -> list[Any]:
        # nnU-Net submits one tuple of arguments per call, and takes the first item.
        return [self.result]


def _name(arguments: tuple[Any, ...]) -> str:
    images, label, *_ = arguments
    return Path(label or images[-1]).name


def _analyze(arguments: tuple[Any, ...]) -> Any:
    """Compute nnU-Net's statistics of a case, in a worker."""
    try:
        return DatasetFingerprintExtractor.analyze_case(*arguments)
    except UNREADABLE as error:
        # Not a damaged file: map_cases() tries such a case again on its own.
        if is_out_of_memory(error):
            raise
        files = ", ".join(map(repr, filter(None, (*arguments[0], arguments[1]))))
        raise DataError(
            f"cannot analyse {files}: {last_line(error)}", "leave out --no_check, to have these files checked first"
        ) from error


def source_of(dataset: str) -> list[list[str | int]]:
    """Return name, size in bytes and modification time of the source files, and the reader named in dataset.json."""
    folder = raw_dataset(dataset)
    description = read_dataset_json(folder / "dataset.json")
    files = [file for case in list_cases(folder, description) for file in case.files]
    reader = description.get("overwrite_image_reader_writer")
    # Another reader gives another fingerprint for the same files.
    named: list[list[str | int]] = [[reader]] if reader else []
    return named + [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
