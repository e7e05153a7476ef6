"""Recognise a folder of images and label maps with the same names, which `stunet_convert pairs` can convert."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stunet.datasets.listing import list_images

LABELS = re.compile(r"lab|mask|seg|gt|annot|truth", re.IGNORECASE)  # in the name of a folder or file


def pairs_command(folder: Path, description: Mapping[str, Any] | None = None) -> str | None:
    """Return the command that converts a folder of pairs, as far as it can be inferred; None: there are no pairs in it.

    Args:
        folder: Has two subfolders whose images have the same names, or holds CASE.nii.gz and CASE_seg.nii.gz.
        description: Its dataset.json, if it has one.
    """
    named = {path: {image.name for image in list_images(path).images} for path in _folders(folder)}
    for images, names in named.items():
        for labels, others in named.items():
            if names & others and images != labels and LABELS.search(labels.name) and not LABELS.search(images.name):
                return _command(folder, description, f"-i {_quoted(images)} -l {_quoted(labels)}")
    for place, names in named.items():
        suffixes = {name.removeprefix(image) for image in names for name in names if name.startswith(image)} - {""}
        if suffix := next((suffix for suffix in sorted(suffixes) if LABELS.search(suffix)), None):
            return _command(folder, description, f"-i {_quoted(place)} --label_suffix {suffix}")
    return None


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [folder, *sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))]


def _command(folder: Path, description: Mapping[str, Any] | None, where: str) -> str:
    channels, labels = ["CT"], ["LABEL_1", "LABEL_2"]
    if description:
        channels = (
            list(map(str, description.get("channel_names", description.get("modality", {})).values())) or channels
        )
        entries = description.get("labels")
        values = {name: value for name, value in entries.items() if value} if isinstance(entries, dict) else {}
        labels = list(map(str, values)) or labels
    match = re.fullmatch(r"Dataset(\d{3})_(.+)", folder.name)
    name = match[2] if match else re.sub(r"[^A-Za-z0-9]+", "", folder.name) or "NAME"
    # A folder in nnUNet_raw keeps its number, so what it is converted to needs another one.
    number = _free_number(folder.parent) if match else "ID"
    texts = [" ".join(map(shlex.quote, words)) for words in (channels, labels)]
    return f"stunet_convert pairs {where} -d {number} --name {name} --channels {texts[0]} --labels {texts[1]}"


def _free_number(raw: Path) -> int | str:
    taken = {path.name[7:10] for path in raw.glob("Dataset[0-9][0-9][0-9]_*")}
    return next((number for number in range(1, 1000) if f"{number:03d}" not in taken), "ID")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
