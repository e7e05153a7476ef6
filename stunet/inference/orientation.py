"""Find the orientation of the images that a model was trained on; predictor.py turns every image to it."""

import os
from pathlib import Path

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from stunet.errors import StunetError, UsageError
from stunet.files import read_json
from stunet.images import count_orientations
from stunet.inference.model import ModelFolder
from stunet.orientation import REORIENTED, REORIENTS, parse_orientation

MAX_IMAGES = 20  # training images whose headers are read


def choose_orientation(model: ModelFolder, option: str | None) -> tuple[str | None, str | None]:
    """Return the orientation of the training images, and what states it if the plans do not.

    Args:
        model: The model.
        option: What the user states, such as LPS; it counts more than anything but the plans.

    Raises:
        UsageError: `option` is not an orientation, or the plans state another one.
    """
    known, source = known_orientation(model)
    stated = None if option is None else parse_orientation(option)
    # No source: the plans state it, and preprocessing turned the training images to it. It cannot be another one.
    if stated and known and source is None and stated != known:
        raise UsageError(f"orientation {stated}: the plans say that the training images are {known}", "leave it out")
    return (stated, "the user") if stated and (source or not known) else (known, source)


def known_orientation(model: ModelFolder) -> tuple[str | None, str | None]:
    """Return the orientation (None if unknown) and what states it (None: the model's own plans)."""
    if recorded := model.plan.orientation:
        return recorded, None
    if model.plan.reader.endswith(REORIENTS):
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
    folder = Path(raw or "") / model.plan.dataset_name
    try:
        if not raw or not model.plan.dataset_name or not (folder / "dataset.json").is_file():
            return None
        description = read_json(folder / "dataset.json")
        # The name alone may be that of another dataset.
        if description.get("labels") != model.dataset["labels"]:
            return None
        # nnU-Net lets dataset.json list its files; without a list, they lie in imagesTr.
        if "dataset" in description:
            cases = get_filenames_of_train_images_and_targets(str(folder), description)
            images = sorted(Path(case["images"][0]) for case in cases.values())
        else:
            images = sorted((folder / "imagesTr").glob(f"*_0000{model.ending}"))
        sample = images[:: -(-len(images) // MAX_IMAGES) or 1]
        found = count_orientations(sample, model.plan.reader)
    # Whatever is wrong with a dataset that prediction does not need: the orientation stays unknown, with a warning.
    except (StunetError, OSError, RuntimeError, ValueError, AttributeError, LookupError, TypeError):
        return None
    return next(iter(found)) if len(found) == 1 else None
