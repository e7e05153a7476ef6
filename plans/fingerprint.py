"""The dataset's fingerprint (spacings, shapes, intensities): extracted by nnU-Net, anew when the data changed."""

from pathlib import Path

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.errors import DataError
from stunet.files import read_json, write_json
from stunet.kinds import FINGERPRINT, read, read_dataset_json
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
        DataError: nnU-Net could not extract it; a worker process died, say.
    """
    path = preprocessed_dataset(dataset) / "dataset_fingerprint.json"
    source = _source(dataset)
    hint = f"stunet_plan_and_preprocess -d {int(dataset[7:10])} --clean"
    if clean or not path.is_file() or read(path, FINGERPRINT, hint).get(SOURCE) != source:
        path.parent.mkdir(parents=True, exist_ok=True)
        extractor = DatasetFingerprintExtractor(dataset, workers, verbose=False)
        extractor.show_progress_bar = show_bar
        try:
            extractor.run(overwrite_existing=True)
        except RuntimeError as error:
            raise DataError(f"nnU-Net could not extract the fingerprint of {dataset}: {error}", "-npfp 1") from error
        write_json(path, {**read_json(path), SOURCE: source})
    return path


def _source(dataset: str) -> list[list[str | int]]:
    """Name, size in bytes and time of change of the files that the fingerprint is made from."""
    folder = raw_dataset(dataset)
    cases = get_filenames_of_train_images_and_targets(str(folder), read_dataset_json(folder / "dataset.json"))
    files = [Path(name) for case in cases.values() for name in (*case["images"], case["label"])]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
