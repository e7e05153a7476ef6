"""Find the orientation of the images that a model was trained on; predictor.py turns every image to it."""

import os
from pathlib import Path

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.errors import StunetError
from stunet.files import read_json
from stunet.images import REORIENTED, REORIENTS, count_orientations
from stunet.inference.model import ModelFolder

LOOKED_AT = 20  # training images at most


def known_orientation(model: ModelFolder) -> tuple[str | None, str | None]:
    """Return the orientation (None if unknown) and its source (None if that is the model's own plans)."""
    plans = model.plans
    if own := plans.get("stunet", {}).get("orientation"):
        return str(own), None
    if plans["image_reader_writer"].endswith(REORIENTS):
        return REORIENTED, None
    if code := _of_registry(model):
        return code, "the registry"
    code = _of_training_images(model)
    return code, code and "the training images"


def _of_registry(model: ModelFolder) -> str | None:
    """Return what the registry states for the entry that an installed model was made from."""
    from stunet.models.record import RECORD, read_record
    from stunet.models.registry import look_up

    if not (model.folder / RECORD).is_file():
        return None
    try:
        entry = look_up(str(read_record(model.folder).get("entry")))
    except StunetError:
        return None
    return entry.orientation if entry else None


def _of_training_images(model: ModelFolder) -> str | None:
    """Return that of the raw dataset, if it is on this machine, has the same labels, and its images agree."""
    raw = os.environ.get("nnUNet_raw")
    folder = Path(raw or "") / str(model.plans.get("dataset_name"))
    try:
        if not raw or not (folder / "dataset.json").is_file():
            return None
        description = read_json(folder / "dataset.json")
        if description.get("labels") != model.dataset["labels"]:
            return None
        if "dataset" in description:
            cases = get_filenames_of_train_images_and_targets(str(folder), description)
            images = sorted(Path(case["images"][0]) for case in cases.values())
        else:
            images = sorted((folder / "imagesTr").glob(f"*_0000{model.ending}"))
        some = images[:: -(-len(images) // LOOKED_AT) or 1]
        found = count_orientations(some, model.plans["image_reader_writer"])
    except (StunetError, OSError, RuntimeError, ValueError, AttributeError, LookupError, TypeError):
        return None
    return next(iter(found)) if len(found) == 1 else None
