"""The dataset's fingerprint (spacings, shapes, intensities): extracted by nnU-Net, anew when the data changed."""

from pathlib import Path

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.errors import DataError
from stunet.files import read_json
from stunet.workspace import preprocessed_dataset, raw_dataset


def extract_fingerprint(dataset: str, workers: int, clean: bool = False) -> Path:
    """Writes dataset_fingerprint.json unless an up-to-date one exists.

    Args:
        dataset: Full name.
        workers: Processes.
        clean: Extract even if the existing one is up to date.

    Raises:
        DataError: A worker process died.
    """
    path = preprocessed_dataset(dataset) / "dataset_fingerprint.json"
    if clean or not path.is_file() or _older_than_data(path, dataset):
        path.parent.mkdir(parents=True, exist_ok=True)
        extractor = DatasetFingerprintExtractor(dataset, workers, verbose=False)
        extractor.show_progress_bar = False
        try:
            extractor.run(overwrite_existing=True)
        except RuntimeError as error:
            raise DataError(
                f"a process died while reading {dataset}, perhaps for lack of memory: {error}",
                "fewer processes: -npfp 1",
            ) from error
    return path


def _older_than_data(path: Path, dataset: str) -> bool:
    folder = raw_dataset(dataset)
    cases = get_filenames_of_train_images_and_targets(str(folder), read_json(folder / "dataset.json"))
    files = [Path(name) for case in cases.values() for name in (*case["images"], case["label"])]
    extracted = path.stat().st_mtime
    return len(read_json(path)["spacings"]) != len(cases) or any(file.stat().st_mtime > extracted for file in files)
