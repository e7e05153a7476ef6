"""Convert the stored numbers of DICOM pixels to values, with the slope and intercept of their own frame.

Uncompressed pixels are taken directly from the file. GDCM, in SimpleITK, decodes compressed ones from a temporary file
that holds nothing but pixels: given the whole file, it would apply the first frame's slope to all frames.
"""

import math
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import DeflatedExplicitVRLittleEndian

from stunet.datasets.dicom_headers import COPY_AGAIN, OF_PIXELS, Frame, Header, quietly
from stunet.errors import DataError

UNDEFINED = 0xFFFFFFFF  # length of compressed pixels, which are stored in fragments
TYPES = (np.int16, np.uint16, np.int32)
IMAGES_OF_WORDS = "1.2.840.10008.5.1.4.1.1.7.3"  # Multi-frame Grayscale Word Secondary Capture; needs only pixels


def volume(frames: Sequence[Frame], rescale: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return the values of frames, (D, H, W).

    Args:
        frames: All of one size.
        rescale: Slope and intercept of each frame.

    Raises:
        DataError: Pixels are missing, damaged or of a kind that is not supported.
    """
    content = frames[0].header.content
    values = np.empty((len(frames), content.Rows, content.Columns), _type(frames, rescale))
    places: dict[Path, list[int]] = {}
    for place, frame in enumerate(frames):
        places.setdefault(frame.header.file, []).append(place)
    for own in places.values():
        stored = _stored(frames[own[0]].header)
        for place in own:
            slope, intercept = rescale[place]
            # float64 holds all 32-bit integers exactly.
            values[place] = stored[frames[place].number].astype(np.float64) * slope + intercept
    return values


def _type(frames: Sequence[Frame], rescale: Sequence[tuple[float, float]]) -> type:
    """Return the smallest type that holds every value that the frames may have."""
    low = high = 0.0
    exact = all(slope.is_integer() and intercept.is_integer() for slope, intercept in rescale)
    bits = 0
    for frame, (slope, intercept) in zip(frames, rescale, strict=True):
        stored, signed = _bits(frame.header)
        bits = max(bits, stored)
        ends = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
        found = [end * slope + intercept for end in ends]
        low, high = min(low, *found), max(high, *found)
    for kind in TYPES if exact else ():
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return kind
    # The 24 bits of float32's significand are enough for 16 stored ones.
    return np.float32 if bits <= 16 else np.float64


def _bits(header: Header) -> tuple[int, bool]:
    """Return the number of bits stored, and whether they are signed."""
    allocated = _number(header, "BitsAllocated")
    return int(header.content.get("BitsStored") or allocated), bool(_number(header, "PixelRepresentation"))


@quietly()
def _stored(header: Header) -> np.ndarray:
    """Return the stored numbers of a file, (frames, H, W)."""
    allocated, (stored, signed) = _number(header, "BitsAllocated"), _bits(header)
    shape = (header.frames, _number(header, "Rows"), _number(header, "Columns"))
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated:
        raise _error(header, f"it stores {stored} of {allocated} bits per pixel, which is not supported")
    pixels, little = _bytes(header)
    if pixels is None:
        return _decode(header, shape)
    dtype = np.dtype(f"{'<' if little else '>'}{'i' if signed else 'u'}{allocated // 8}")
    needed = math.prod(shape) * dtype.itemsize
    if len(pixels) < needed:
        raise _error(header, f"it holds {len(pixels)} of {needed} bytes of pixels")
    values = np.frombuffer(pixels, dtype, math.prod(shape)).reshape(shape)
    above = allocated - 1 - int(header.content.get("HighBit") or stored - 1)
    if stored < allocated:  # the unused bits may hold anything, such as old overlays
        values = values.astype(dtype.newbyteorder("="))
        # To the left over what lies above the stored bits, to the right over what lies below; this also extends the
        # sign.
        values <<= above
        values >>= allocated - stored
    return values


def _bytes(header: Header) -> tuple[bytes | None, bool]:
    """Return the pixels as in the file, or None if they are compressed, and whether the file is little-endian."""
    implicit, little = header.content.original_encoding
    if header.content.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:  # compresses the whole file
        return _whole(header).get("PixelData", b""), True
    with header.file.open("rb") as stream:
        stream.seek(header.end)
        head = stream.read(8 if implicit else 12)
        if len(head) < (8 if implicit else 12):
            raise _error(header, "it ends before its pixels")
        # With explicit VR, two letters and two reserved bytes come before the length (DICOM PS3.5, 7.1.2).
        *tag, length = struct.unpack(f"{'<' if little else '>'}HH{'' if implicit else '4x'}I", head)
        if tag != [0x7FE0, 0x0010]:
            raise _error(header, "it has no PixelData")
        return (None if length == UNDEFINED else stream.read(length)), little


def _whole(header: Header) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(header.file, force=True, specific_tags=["PixelData", *OF_PIXELS])
    except Exception as error:  # noqa: BLE001  # pydicom raises all kinds for a damaged file
        raise _error(header, str(error)) from None


def _decode(header: Header, shape: tuple[int, int, int]) -> np.ndarray:
    content = _whole(header)
    if not content.get("PixelData"):
        raise _error(header, "it ends within its pixels")
    bare = pydicom.Dataset()
    for name in OF_PIXELS:
        if name in content:
            bare[name] = content[name]
    bare.NumberOfFrames = shape[0]
    bare["PixelData"] = content["PixelData"]
    # As DICOM requires of compressed pixels (PS3.5, A.4).
    bare["PixelData"].is_undefined_length = True
    bare.SOPClassUID, bare.SOPInstanceUID = IMAGES_OF_WORDS, "1.2.3"
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = content.file_meta.TransferSyntaxUID
    with tempfile.TemporaryDirectory(prefix="stunet-") as folder:
        path = Path(folder) / "pixels.dcm"
        try:
            bare.save_as(path, enforce_file_format=True)
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        except (RuntimeError, ValueError) as error:  # SimpleITK raises RuntimeError for anything, pydicom ValueError
            reason = str(error).strip().splitlines()[-1]
            raise _error(header, f"its pixels cannot be decoded: {reason}") from None
    if values.size != math.prod(shape):
        raise _error(header, f"it holds {values.shape} of {shape} pixels")
    return values.reshape(shape)


def _number(header: Header, name: str) -> int:
    found = header.content.get(name)
    if found in (None, ""):
        raise _error(header, f"it has no {name}")
    return int(found)


def _error(header: Header, reason: str) -> DataError:
    return DataError(f"{header.file.name!r} in {str(header.file.parent)!r} is damaged: {reason}", COPY_AGAIN)
