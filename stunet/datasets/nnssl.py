"""Make a raw dataset without labels of the images that nnssl's pretrain_data.json lists.

The file holds, in tables by name, datasets, their subjects and sessions, and of each session a list of images with
`image_path`, `modality` and `associated_masks`: the anonymisation mask is above 0 where a face was removed, the anatomy
mask where the patient is. Paths may begin with a variable, $nnssl_raw/...; others that are relative are taken from the
file's folder. See nnssl's documentation/nnssl_dataset_format.md and data/raw_dataset.py. Read next: unlabelled.py.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stunet.datasets.conversion import Conversion, dataset_folder
from stunet.datasets.listing import ending_of
from stunet.datasets.scan_names import Names
from stunet.datasets.scans import BY_ITK, BY_NIBABEL, REFERRED, Found, Scan
from stunet.datasets.unlabelled import UNKNOWN, prepare_scans
from stunet.errors import DataError, closest
from stunet.kinds import NNSSL, read

FILE = "pretrain_data.json"
MASKS = ("both", "anonymization", "anatomy", "none")
HINT = "see nnssl's documentation/nnssl_dataset_format.md"


@dataclass(frozen=True)
class Listed:
    """An image of the file: by whose keys it is found, and its entry."""

    dataset: str
    subject: str
    session: str
    entry: Mapping[str, Any]

    @property
    def modality(self) -> str:
        return str(self.entry.get("modality") or "")


def prepare_nnssl(
    source: Path,
    raw: Path,
    dataset_id: int,
    name: str,
    modalities: Sequence[str] = (),
    masks: str = "both",
    channel: str | None = None,
    skip_bad: bool = False,
) -> Conversion:
    """Prepare the conversion of nnssl's file.

    Args:
        source: pretrain_data.json, or its folder.
        raw: The folder nnUNet_raw.
        dataset_id: 1 to 999.
        name: Name of the dataset.
        modalities: Those of the images to take; empty: all.
        masks: One of MASKS: which of the masks losses respect.
        channel: Name of the channel; None: the modality, if all images have the same.
        skip_bad: Leave out scans that are bad, instead of ending with an error.

    Raises:
        DataError: The file is missing or of another form, lists no such image, a variable is not set, or the number is
            taken.
        UsageError: The number or name is not allowed.
    """
    target = dataset_folder(raw, dataset_id, name)
    path = source / FILE if source.is_dir() else source
    content = read(path, NNSSL, HINT)
    listed = list(_images(content))
    there = sorted({image.modality for image in listed})
    for modality in modalities:
        if modality not in there:
            what = f"{str(path)!r} has no image of modality {modality!r}{closest(modality, there)}"
            raise DataError(what, f"one of {', '.join(filter(None, there))}")
    taken = [image for image in listed if not modalities or image.modality in modalities]
    if not taken:
        raise DataError(f"{str(path)!r} lists no images", HINT)
    found, names, files = Found(), Names(), set[str]()
    several = len(content["datasets"]) > 1
    for image in taken:
        file = _path(image.entry["image_path"], path)
        ending = ending_of(file.name)
        if ending not in (*REFERRED, *BY_ITK, *BY_NIBABEL):
            found.leave_out(f"files of a format that is not read ({ending or file.suffix or 'no ending'})", file)
            continue
        if os.path.realpath(file) in files:
            found.leave_out("images that are listed twice", file)
            continue
        files.add(os.path.realpath(file))
        parts = [image.dataset] if several else []
        stem = file.name[: len(file.name) - len(ending)]
        parts += [part for part in (image.subject, image.session) if part not in stem]
        anonymised, anatomy = (_mask(image, f"{kind}_mask", path) for kind in ("anonymization", "anatomy"))
        found.kinds[image.modality] += 1
        found.scans.append(
            Scan(
                names.give(iter(["_".join([*parts, stem])])),
                (file,),
                subject=f"{image.dataset}/{image.subject}",
                mask=anonymised if masks in ("both", "anonymization") else None,
                roi=anatomy if masks in ("both", "anatomy") else None,
            )
        )
    if not found.scans:
        raise DataError(f"no image of {str(path)!r} can be read: {found.warnings()[0]}", "files as NIfTI, NRRD or MHA")
    kinds = list(found.kinds)
    own = channel or (kinds[0] if len(kinds) == 1 and kinds[0] else UNKNOWN)
    return prepare_scans(target, found, (own,), "nnssl", skip_bad, _variable(taken))


def _images(content: Mapping[str, Any]) -> Iterator[Listed]:
    for dataset, of_dataset in content["datasets"].items():
        for subject, of_subject in of_dataset["subjects"].items():
            for session, of_session in of_subject["sessions"].items():
                for entry in of_session["images"]:
                    yield Listed(dataset, subject, session, entry)


def _mask(image: Listed, key: str, file: Path) -> Path | None:
    text = (image.entry.get("associated_masks") or {}).get(key)
    return _path(text, file) if text else None


def _path(text: str, file: Path) -> Path:
    """Return a path of the file, with its variable replaced."""
    whole = os.path.expandvars(text)
    if unset := re.match(r"\$\{?(\w+)", whole):
        raise DataError(
            f"{text!r} in {str(file)!r} begins with a variable that is not set", f"export {unset[1]}=FOLDER"
        )
    return file.absolute().parent / whole


def _variable(images: Sequence[Listed]) -> tuple[str, Path] | None:
    """Return the variable with which all paths begin, and its folder: dataset.json refers to images by it, too."""
    found = {match[1] if (match := re.match(r"\$(\w+)/", one.entry["image_path"])) else None for one in images}
    name = found.pop()
    return (name, Path(os.environ[name])) if name and not found else None
