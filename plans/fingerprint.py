"""The dataset's fingerprint (spacings, shapes, intensities): extracted by nnU-Net, anew when the data changed."""

from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

from stunet.datasets import find_reader, tiff, training_files
from stunet.errors import DataError
from stunet.files import read_json, write_json
from stunet.workspace import preprocessed_dataset, raw_dataset

SOURCE = "stunet_source"  # our key in the fingerprint, which nnU-Net ignores


def extract_fingerprint(dataset: str, workers: int, clean: bool = False, show_bar: bool = False) -> Path:
    """Writes dataset_fingerprint.json unless an up-to-date one exists.

    Args:
        dataset: Full name.
        workers: Processes.
        clean: Extract even if the existing one is up to date.
        show_bar: Show nnU-Net's progress bar on stderr: large datasets take minutes.

    Raises:
        DataError: nnU-Net could not extract it (a worker process died, say), no case has foreground, or a 3D TIFF has
            no spacing.
    """
    path = preprocessed_dataset(dataset) / "dataset_fingerprint.json"
    source = _source(dataset)
    if clean or not path.is_file() or read_json(path).get(SOURCE) != source:
        path.parent.mkdir(parents=True, exist_ok=True)
        extractor = DatasetFingerprintExtractor(dataset, workers, verbose=False)
        extractor.show_progress_bar = show_bar
        extractor.dataset = training_files(raw_dataset(dataset), extractor.dataset_json)  # no hidden files
        extractor.dataset_json = with_reader(extractor.dataset_json, extractor.dataset)
        if extractor.dataset_json["overwrite_image_reader_writer"] == tiff.READER:
            for case in extractor.dataset.values():  # of which nnU-Net takes 1 mm where there is none
                tiff.read_spacing(Path(case["images"][0]), is_image=True)
        try:
            extractor.run(overwrite_existing=True)
        except IndexError:  # of numpy's percentiles of nothing
            hint = "look at the files in labelsTr, or leave out --no_check"
            raise DataError(f"no case of {dataset} has any foreground", hint) from None
        except RuntimeError as error:
            raise DataError(f"nnU-Net could not extract the fingerprint of {dataset}: {error}", "-npfp 1") from error
        write_json(path, {**read_json(path), SOURCE: source})
    return path


def with_reader(description: dict[str, Any], cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """dataset.json with the reader that nnU-Net takes: it finds out by trial, and prints a traceback for each error."""
    first = next(iter(cases.values()))["images"][0]
    return {**description, "overwrite_image_reader_writer": find_reader(description, Path(first)).__name__}


def _source(dataset: str) -> list[list[str | int]]:
    """Name, size in bytes and time of change of the files that the fingerprint is made from."""
    folder = raw_dataset(dataset)
    cases = training_files(folder, read_json(folder / "dataset.json"))
    files = [Path(name) for case in cases.values() for name in (*case["images"], case["label"])]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
