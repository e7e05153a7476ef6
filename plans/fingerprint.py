"""The dataset's fingerprint (spacings, shapes, intensities): extracted by nnU-Net, anew when the data changed.

Images are read as preprocessing reads them: where a dataset mixes orientations, turned to the most frequent one.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.datasets import find_reader
from stunet.errors import DataError
from stunet.files import read_json, write_json
from stunet.images import REORIENTED, REORIENTS, Reader, count_orientations
from stunet.nifti_header import oddities
from stunet.nnunet import exchanged
from stunet.workspace import preprocessed_dataset, raw_dataset

log = logging.getLogger("stunet")
# Our keys in the fingerprint, which nnU-Net ignores: what it was made from, and how many images have which orientation.
SOURCE, ORIENTATIONS = "stunet_source", "stunet_orientations"


def extract_fingerprint(dataset: str, workers: int, clean: bool = False, show_bar: bool = False) -> Path:
    """Writes dataset_fingerprint.json unless an up-to-date one exists.

    Args:
        dataset: Full name.
        workers: Processes.
        clean: Extract even if the existing one is up to date.
        show_bar: Show nnU-Net's progress bar on stderr: large datasets take minutes.

    Raises:
        DataError: nnU-Net could not extract it; a worker process died, say.
    """
    path = preprocessed_dataset(dataset) / "dataset_fingerprint.json"
    source = _source(dataset)
    before = read_json(path) if path.is_file() and not clean else {}
    if before.get(SOURCE) == source and ORIENTATIONS in before:
        return path
    kind, found = orientations(dataset)
    if before.get(SOURCE) != source or len(found) > 1:
        path.parent.mkdir(parents=True, exist_ok=True)
        extractor = DatasetFingerprintExtractor(dataset, workers, verbose=False)
        extractor.show_progress_bar = show_bar
        reader = partial(Reader, kind, chosen(kind, found))
        try:
            with exchanged(fingerprint_extractor, determine_reader_writer_from_dataset_json=lambda *_, **__: reader):
                extractor.run(overwrite_existing=True)
        except RuntimeError as error:
            raise DataError(f"nnU-Net could not extract the fingerprint of {dataset}: {error}", "-npfp 1") from error
        before = read_json(path)
    write_json(path, {**before, SOURCE: source, ORIENTATIONS: found})
    return path


def orientations(dataset: str) -> tuple[str, dict[str, int]]:
    """The reader of a raw dataset, and how many of its images have which orientation, from the headers of all.

    Raises:
        DataError: A header cannot be read.
    """
    folder = raw_dataset(dataset)
    description = read_json(folder / "dataset.json")
    cases = get_filenames_of_train_images_and_targets(str(folder), description)
    images = [Path(case["images"][0]) for case in cases.values()]
    kind = find_reader(description, images[0]).__name__
    try:
        odd = [text for path in images if (text := oddities(path, kind.startswith("SimpleITK")))]
        if odd:
            log.warning("%d of %d images have a header that is odd: %s", len(odd), len(images), odd[0])
        return kind, count_orientations(images, kind)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot read an image of {dataset}: {error}", "copy the file again") from error


def chosen(kind: str, found: Any) -> str | None:
    """The orientation that all images are turned to: the reader's own, or the most frequent one; None without any."""
    return REORIENTED if kind.endswith(REORIENTS) else next(iter(found), None)


def _source(dataset: str) -> list[list[str | int]]:
    """Name, size in bytes and time of change of the files that the fingerprint is made from."""
    folder = raw_dataset(dataset)
    cases = get_filenames_of_train_images_and_targets(str(folder), read_json(folder / "dataset.json"))
    files = [Path(name) for case in cases.values() for name in (*case["images"], case["label"])]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
