"""Write NIfTI files of labels that viewers show with names and colours.

The label table is stored in header extensions, in Caret's XML, as TotalSegmentator also writes it, twice: first with
code 0, which TotalSegmentator's load_multilabel_nifti reads through nibabel's get_content (it rejects code 30), then
with Caret's code 30, the only one that Connectome Workbench reads (VolumeFile::parseExtensions). Other programs skip
both.

Every file is written whole or not at all; a full disk is an OSError here, whereas ITK's writers do not report it.
"""

import gzip
from pathlib import Path
from xml.sax.saxutils import escape

import nibabel
import numpy as np

from stunet.files import atomic_write
from stunet.nifti_header import LABEL, apply_forms
from stunet.results.colours import unit_colour
from stunet.results.segmentation import Segmentation

LEVEL = 6  # of gzip
EXTENSION_CODES = 0, 30
SCANNER = 1  # qform and sform code, as written by ITK


def write_nifti(segmentation: Segmentation, path: Path) -> None:
    """Write one .nii or .nii.gz file with the names and colours of its values in a header extension.

    Raises:
        OSError: The file cannot be written, or the disk is full.
    """
    xml = _caret_xml(segmentation).encode()
    extensions = [nibabel.nifti1.Nifti1Extension(code, xml) for code in EXTENSION_CODES]
    write_volume(segmentation, segmentation.labels_DHW, path, LEVEL, *extensions)


def write_volume(
    segmentation: Segmentation,
    labels_DHW: np.ndarray,
    path: Path,
    level: int,
    *extensions: nibabel.nifti1.Nifti1Extension,
) -> None:
    """Write an array on the grid of a segmentation as .nii or .nii.gz.

    Args:
        segmentation: Determines the place, and what the header states about it.
        labels_DHW: The array; its type becomes that of the file.
        path: The file.
        level: gzip's, for .nii.gz.
        extensions: Header extensions.

    Raises:
        OSError: The file cannot be written, or the disk is full.
    """
    image = nibabel_image(segmentation, labels_DHW)
    image.header.extensions.extend(extensions)
    with atomic_write(path) as part, part.open("wb") as file:
        if path.suffix.lower() == ".gz":
            # Without a name and a time in it, so that the bytes depend only on the content.
            with gzip.GzipFile("", "wb", level, file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def nibabel_image(segmentation: Segmentation, labels_DHW: np.ndarray) -> nibabel.Nifti1Image:
    """Return an array (D, H, W) as nibabel's image, with the axes (x, y, z), on the grid of a segmentation."""
    array = (labels_DHW[0] if segmentation.is_2d else labels_DHW).T
    image = nibabel.Nifti1Image(array, None, dtype=labels_DHW.dtype)
    affine = segmentation.affine_ras
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    straight = np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    image.header.set_zooms(segmentation.spacing[::-1][: array.ndim])
    if segmentation.forms:
        apply_forms(image.header, segmentation.forms)
    else:
        image.header.set_qform(affine, SCANNER if straight else 0)  # a quaternion cannot represent shear
        image.header.set_sform(affine, SCANNER)
        image.header.set_xyzt_units("mm")
    image.header["intent_code"] = LABEL
    return image


def _caret_xml(segmentation: Segmentation) -> str:
    rows = []
    for name, value in segmentation.names.items():
        red, green, blue = (f"{part:.6f}" for part in unit_colour(name))
        text = escape(segmentation.header_name(value))
        rows.append(f'<Label Key="{value}" Red="{red}" Green="{green}" Blue="{blue}" Alpha="1">{text}</Label>')
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension><VolumeInformation Index="0"><LabelTable>\n'
        + "\n".join(rows)
        + "\n</LabelTable><StudyMetaDataLinkSet></StudyMetaDataLinkSet><VolumeType>Label</VolumeType>"
        "</VolumeInformation></CaretExtension>\n"
    )
