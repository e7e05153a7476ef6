"""Where a NIfTI header places its image, and what is inconsistent in it.

It can do so twice: the qform is a rotation, the sform any matrix, and each has a code for the space it refers to, 0 for
none. ITK uses the qform, but the sform if that is the only one or its code is 1; nibabel, FSL and SPM use the sform.
Results therefore carry both, as their image does.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

NIFTI = (".nii", ".nii.gz")
FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
LARGEST_FORM_DISTANCE = 0.1  # between qform and sform, anywhere in the image, in edges of a voxel
LARGEST_PIXDIM_ERROR = 0.01  # relative, of pixdim from the lengths of the matrix columns
# The fields by which headers of other formats define how the axes run; without them, ITK assumes LPS.
_NRRD, _META = (b"\nspace:", b"\nspace dimension:"), (b"\ntransformmatrix", b"\norientation", b"\nrotation")
ORIENTATION_KEYS = {".nrrd": _NRRD, ".nhdr": _NRRD, ".mha": _META, ".mhd": _META}
SEARCHED_BYTES = 4096  # at the start of a file
SCANNER, LABEL = 1, 1002  # codes of nifti1.h


def is_nifti(path: str | Path) -> bool:
    """Return whether a file has the name of a NIfTI file, in any case."""
    return str(path).lower().endswith(NIFTI)


def open_nifti(path: str | Path) -> Any:
    """Open a NIfTI file, unpacking by content, not by name: browsers unpack downloads, and ITK reads both."""
    with Path(path).open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # gzip's magic number
    return gzip.open(path) if packed else Path(path).open("rb")


def read_fields(path: str | Path) -> Any:
    """Return the raw header of a NIfTI file; None for other formats and invalid NIfTI.

    Raises:
        OSError: It cannot be read.
    """
    if not is_nifti(path):
        return None
    try:
        with open_nifti(path) as file:
            for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
                file.seek(0)
                try:
                    return kind.from_fileobj(file, check=False)
                except (nibabel.spatialimages.HeaderDataError, nibabel.wrapstruct.WrapStructError):
                    continue
    except (EOFError, zlib.error) as error:
        raise OSError(f"{str(path)!r} is damaged: {error}") from error
    return None


def file_has_orientation(path: str | Path) -> bool:
    """Return whether a file defines how its axes run; formats that are not examined are assumed to."""
    if (keys := ORIENTATION_KEYS.get(Path(path).suffix.lower())) is not None:
        with Path(path).open("rb") as file:
            text = file.read(SEARCHED_BYTES).lower()
        return any(key in text.partition(b"\n\n")[0] for key in keys)
    return header_has_orientation(read_fields(path))


def header_has_orientation(header: Any) -> bool:
    """Return whether a header, or the result of read_forms(), defines how axes run; None (other formats) does."""
    return header is None or int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0


def read_forms(path: str | Path) -> dict[str, Any] | None:
    """Return the fields that a result copies, so that every reader places it like its image; None for other formats."""
    header = read_fields(path)
    return None if header is None else header_forms(header)


def header_forms(header: Any) -> dict[str, Any]:
    """Return the fields of read_forms() from a nibabel header."""
    return {**{key: header[key].tolist() for key in FIELDS}, "pixdim": header["pixdim"][:4].tolist()}


def apply_forms(header: Any, values: Mapping[str, Any]) -> None:
    """Write the result of read_forms() into the header of a result."""
    for key in FIELDS:
        header[key] = values[key]
    header["pixdim"][:4] = values["pixdim"]


def oddities(path: str | Path, by_itk: bool) -> str | None:
    """Describe in a sentence what in a header is contradictory, and what is used; None if nothing is.

    Args:
        path: A file of any format; only NIfTI is examined.
        by_itk: Whether ITK reads it; nibabel does so differently.
    """
    header = read_fields(path)
    found = [] if header is None else list(_oddities(header, by_itk))
    return f"{str(path)!r}: {'; '.join(found)}" if found else None


def _oddities(header: Any, by_itk: bool) -> Iterator[str]:
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    takes_sform = sform is not None and (qform is None or not by_itk or int(header["sform_code"]) == SCANNER)
    used, name = (sform, "sform") if takes_sform else (qform, "qform")
    if used is None:
        yield "neither qform nor sform (both codes are 0), so the orientation is unknown: axes are taken as stored"
        return
    edges = np.abs(header["pixdim"][1:4].astype(float))
    if qform is not None and sform is not None:
        corners = np.array(np.meshgrid(*([0, n - 1] for n in (*header["dim"][1:4],)), [1])).reshape(4, -1)
        apart = np.linalg.norm(((qform - sform) @ corners)[:3], axis=0).max()
        if apart > LARGEST_FORM_DISTANCE * edges.min():
            yield f"qform and sform differ by {apart:.3g} mm: the {name} is used, results carry both"
    lengths = np.linalg.norm(used[:3, :3], axis=0)
    if not np.allclose(edges, lengths, rtol=LARGEST_PIXDIM_ERROR):
        yield f"voxels are {_mm(edges)} by pixdim and {_mm(lengths)} by the {name}: pixdim is used"
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or not np.isfinite(intercept) or (slope == 0 and intercept != 0):
        slope = slope if np.isfinite(slope) and slope else 1.0
        shift = intercept if np.isfinite(intercept) and by_itk else 0.0
        stored = f"scl_slope {float(header['scl_slope']):g} and scl_inter {intercept:g}"
        yield f"{stored}: values are read as stored times {slope:g} plus {shift:g}"
    if int(header["intent_code"]) == LABEL:
        yield "its intent is a label map: its values are taken as intensities"


def _mm(edges: np.ndarray) -> str:
    return " x ".join(f"{edge:.4g}" for edge in edges) + " mm"
