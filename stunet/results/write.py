"""Write segmentations to files that viewers show with names and colours.

NIfTI: the label table is stored in header extensions, in Caret's XML, as TotalSegmentator also writes it, twice: first
with code 0, which TotalSegmentator's load_multilabel_nifti reads through nibabel's get_content (it rejects code 30),
then with Caret's code 30, the only one that Connectome Workbench reads (VolumeFile::parseExtensions). Other programs
skip both.
seg.nrrd: 3D Slicer's format (its developer guide, Segmentations). ITK-SNAP opens both without names, which it takes
from a label description file (itksnap -l FILE; its ColorLabelTable::LoadFromFile).

Every file is written whole or not at all; a full disk is an OSError here, whereas ITK's writers do not report it.
"""

import gzip
from pathlib import Path
from typing import IO
from xml.sax.saxutils import escape

import nibabel
import numpy as np

from stunet.errors import DataError
from stunet.files import atomic_folder, atomic_write
from stunet.names import to_file_name
from stunet.nifti_header import apply_forms
from stunet.results.colours import colour, unit_colour
from stunet.results.segmentation import Segmentation

LEVEL, MASK_LEVEL = 6, 3  # of gzip: 6 makes masks half as large as 3 does, but takes three times as long for each
EXTENSION_CODES = 0, 30
SCANNER = 1  # qform and sform code, as written by ITK


def write_nifti(segmentation: Segmentation, path: Path) -> None:
    """Write one .nii or .nii.gz file with the names and colours of its values in a header extension.

    Raises:
        OSError: The file cannot be written, or the disk is full.
    """
    xml = _caret_xml(segmentation).encode()
    extensions = [nibabel.nifti1.Nifti1Extension(code, xml) for code in EXTENSION_CODES]
    _write_nifti(segmentation, segmentation.labels_DHW, path, LEVEL, *extensions)


def write_masks(segmentation: Segmentation, folder: Path) -> list[Path]:
    """Write a new folder with a binary CLASS.nii.gz for every class, empty or not, as TotalSegmentator does.

    Masks of regions overlap where the regions do.

    Raises:
        DataError: The folder exists, or two classes would have the same file.
        OSError: The folder cannot be written, or the disk is full.
    """
    names = {name: f"{to_file_name(name)}.nii.gz" for name in segmentation.names}
    if len({file.casefold() for file in names.values()}) < len(names):
        raise DataError(f"two classes of {folder.name!r} would share a file: {', '.join(names)}", "rename one of them")
    labels = segmentation.labels_DHW
    with atomic_folder(folder) as part:
        for name, file in names.items():
            mask = np.zeros(labels.shape, bool)
            for value in segmentation.values(name):
                mask |= labels == value
            _write_nifti(segmentation, mask.view(np.uint8), part / file, MASK_LEVEL)
    return [folder / file for file in names.values()]


def write_seg_nrrd(segmentation: Segmentation, path: Path) -> None:
    """Write 3D Slicer's segmentation format; the name should end with .seg.nrrd, by which Slicer recognises it.

    Raises:
        OSError: The file cannot be written, or the disk is full.
    """
    with atomic_write(path) as part, part.open("wb") as file:
        file.write("\n".join([*_nrrd_header(segmentation), "", ""]).encode())
        with _packed(file, LEVEL) as packed:
            for plane in segmentation.labels_DHW:
                packed.write(plane.astype(plane.dtype.newbyteorder("<")).tobytes())


def write_itksnap_labels(segmentation: Segmentation, path: Path) -> None:
    """Write ITK-SNAP's label description file, which serves all cases with the same classes.

    Raises:
        OSError: The file cannot be written, or the disk is full.
    """
    rows = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    rows.append('    0     0    0    0        0  0  0    "Clear Label"')
    for name, value in segmentation.names.items():
        red, green, blue = colour(name)
        text = _line(segmentation.value_names[value]).replace('"', "'")
        rows.append(f'{value:5} {red:5} {green:4} {blue:4}        1  1  1    "{text}"')
    with atomic_write(path) as part:
        part.write_text("\n".join([*rows, ""]), encoding="utf-8")


def _write_nifti(
    segmentation: Segmentation,
    labels_DHW: np.ndarray,
    path: Path,
    level: int,
    *extensions: nibabel.nifti1.Nifti1Extension,
) -> None:
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
    image.header.extensions.extend(extensions)
    with atomic_write(path) as part, part.open("wb") as file:
        if path.suffix.lower() == ".gz":
            with _packed(file, level) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def _packed(file: IO[bytes], level: int) -> gzip.GzipFile:
    """Return a gzip stream into a file whose bytes depend only on the content."""
    return gzip.GzipFile(filename="", mode="wb", compresslevel=level, fileobj=file, mtime=0)


def _caret_xml(segmentation: Segmentation) -> str:
    rows = []
    for name, value in segmentation.names.items():
        red, green, blue = (f"{part:.6f}" for part in unit_colour(name))
        text = escape(_line(segmentation.value_names[value]))
        rows.append(f'<Label Key="{value}" Red="{red}" Green="{green}" Blue="{blue}" Alpha="1">{text}</Label>')
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension><VolumeInformation Index="0"><LabelTable>\n'
        + "\n".join(rows)
        + "\n</LabelTable><StudyMetaDataLinkSet></StudyMetaDataLinkSet><VolumeType>Label</VolumeType>"
        "</VolumeInformation></CaretExtension>\n"
    )


def _nrrd_header(segmentation: Segmentation) -> list[str]:
    """Return the lines of an NRRD header (teem.sourceforge.net/nrrd/format.html) with Slicer's fields."""
    labels = segmentation.labels_DHW
    affine = np.diag([-1, -1, 1, 1]) @ segmentation.affine_ras
    depth, height, width = labels.shape
    axes = " ".join(_vector(column) for column in affine[:3, :3].T)
    lines = ["NRRD0004", f"type: uint{8 * labels.dtype.itemsize}", "dimension: 3", "space: left-posterior-superior"]
    lines += [f"sizes: {width} {height} {depth}", f"space directions: {axes}", "kinds: domain domain domain"]
    lines += ["endian: little", "encoding: gzip", f"space origin: {_vector(affine[:3, 3])}"]
    lines += ["Segmentation_ContainedRepresentationNames:=Binary labelmap|"]
    lines += ["Segmentation_MasterRepresentation:=Binary labelmap", "Segmentation_ReferenceImageExtentOffset:=0 0 0"]
    # Slicer crops all segments of a layer to the extent of the first, so each gets that of the image.
    extent = f"0 {width - 1} 0 {height - 1} 0 {depth - 1}"
    for index, (name, value) in enumerate(segmentation.names.items()):
        fields = {
            "ID": f"Segment_{value}",
            "Name": _line(segmentation.value_names[value]).replace("\\", "\\\\"),
            "Color": " ".join(f"{part:.6g}" for part in unit_colour(name)),
            "LabelValue": value,
            "Layer": 0,
            "Extent": extent,
            "NameAutoGenerated": 0,
            "ColorAutoGenerated": 0,
        }
        lines += [f"Segment{index}_{key}:={content}" for key, content in fields.items()]
    return lines


def _vector(values: np.ndarray) -> str:
    return "(" + ",".join(f"{value + 0.0:.17g}" for value in values) + ")"


def _line(name: str) -> str:
    """Return a name on one line and without control characters, which no header can hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())
