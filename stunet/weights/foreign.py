"""Identify files that hold no weights of ours: people mix up files, and naming them helps more than "cannot read".

Files are identified by their first bytes, whatever their names; networks by the names of their parameters.
"""

import gzip
import pickle
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

# What reading damaged or malicious bytes can raise.
UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, pickle.UnpicklingError, struct.error,
)  # fmt: skip
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, as written by torch before 1.6
LFS_POINTER = "a pointer of Git LFS, not the file itself"
_STARTS = (
    (b"<!doctype", "an HTML page: the download page, not the file"),
    (b"<html", "an HTML page: the download page, not the file"),
    (b"version https://git-lfs", LFS_POINTER),
    (b"\x89hdf", "an HDF5 file"),
    (b"%pdf", "a PDF document"),
    (b"rar!", "a RAR archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it first"),
    (b"\x80", "a pickle: metadata, as in X.model.pkl, without weights"),
    (b"pk", "the beginning of a checkpoint or zip archive; the rest is missing"),
    (b"{", "a JSON file"),
)
# Networks whose weights are published and asked for: parameter names that identify them, and what is there instead. The
# names are those of MONAI (networks/nets/swin_unetr.py, segresnet.py, segresnet_ds.py) and of Models Genesis
# (unet3d.py); under `net`, `backbone.` or `encoder.` in the files of SuPreM (MrGiovanni/SuPreM), VoCo (Luffy503/VoCo)
# and CT-FM (project-lighter/ct_fm_feature_extractor, ct_fm_segresnet).
_PUBLISHED = (
    (
        r"swinViT\.",
        "SwinUNETR, as VoCo and SuPreM publish it",
        "VoComni-nnUNet is VoCo's nnU-Net, STU-Net-B.abdomenatlas was trained on AbdomenAtlas, too",
    ),
    (
        r"(^|\.)convInit\.conv\.weight$",
        "MONAI's SegResNet, as SuPreM publishes it",
        "STU-Net-B.abdomenatlas was trained on AbdomenAtlas, too",
    ),
    (
        r"(^|\.)conv_init\.weight$",
        "MONAI's SegResEncoder, as CT-FM and VISTA3D publish it",
        "STU-Net-B and TotalSegmentator-total-part1 are networks for CT",
    ),
    (
        r"(^|\.)down_tr64\.ops\.0\.conv1\.weight$",
        "the U-Net of Models Genesis, as SuPreM publishes it, too",
        "OpenMind-ResEncL-MG was trained by that method, STU-Net-B.abdomenatlas on AbdomenAtlas, as SuPreM",
    ),
)
# Parameter names that identify other networks; the first pattern that matches decides.
_NETWORKS = (
    (r"conv_blocks_context\.0\.blocks\.0\.conv\.weight$", "nnU-Net v1's own network, Generic_UNet"),
    (r"decoder\.stages\.\d+\.blocks\.\d+\.conv1\.conv\.weight$", "nnU-Net's ResidualUNet"),
    (r"encoder\.stages\.\d+\.blocks\.\d+\.conv1\.conv\.weight$", "a part of nnU-Net's ResidualEncoderUNet"),
    (r"encoder\.stages\.\d+\.0\.convs\.\d+\.conv\.weight$", "a part of nnU-Net's PlainConvUNet"),
    (r"(enc_block_0|dec_block_0)\.\d+\.conv1\.weight$", "MedNeXt"),
    (r"eva\.blocks\.\d+\.", "Primus, a transformer"),
    (r"vit\.(blocks|patch_embedding)\.", "UNETR"),
    (r"image_encoder\.", "Segment Anything, or a network like it"),
    (r"exp_avg|momentum_buffer", "the state of an optimizer"),
)
_LIST = "stunet_models list shows what can be downloaded"
_ROWS = (*_PUBLISHED, *((*row, _LIST) for row in _NETWORKS))


def describe_file(path: Path) -> str:
    """Return what a file is, by its first bytes, in words such as "an HTML page"."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    if start.startswith(b"\x1f\x8b"):
        unpacked = _unpacked(path)
        return "a NIfTI image" if _is_nifti(unpacked) else "a gzip archive; unpack it first"
    if _is_nifti(start):
        return "a NIfTI image"
    # HTML may begin with blanks and capitals, so all beginnings in the table are in small letters.
    text = start.lstrip().lower()
    return next((what for prefix, what in _STARTS if text.startswith(prefix)), "of an unknown kind")


def describe_network(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """Return which network tensors belong to, by names and shapes, and what can be done instead."""
    for pattern, what, instead in _ROWS:
        found = [shapes[name] for name in shapes if re.search(pattern, name)]
        if found:
            return f"{what}, in 2D" if len(found[0]) == 4 else what, instead
    names = ", ".join(map(repr, list(shapes)[:3]))
    return f"a network with {len(shapes)} tensors of other names ({names})", _LIST


def _is_nifti(start: bytes) -> bool:
    # NIfTI-1 has its magic at the end of 348 bytes, NIfTI-2 behind the size of its header.
    return start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] == b"n+2\0"


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(348)
    except (OSError, EOFError, zlib.error):
        return b""
