"""Write a segmentation to a file whose ending names the format."""

from pathlib import Path

import SimpleITK

from stunet.errors import UsageError, last_line
from stunet.files import atomic_write
from stunet.nifti_header import is_nifti
from stunet.results.formats.seg_nrrd import write_seg_nrrd
from stunet.results.nifti_labels import write_nifti
from stunet.results.segmentation import Segmentation

SLICER = ".seg.nrrd"
OF_ITK = ".nrrd", ".mha", ".tif", ".tiff"


def save(segmentation: Segmentation, path: Path) -> None:
    """Write it; see Segmentation.save()."""
    if is_nifti(path):
        write_nifti(segmentation, path)
    elif path.name.endswith(SLICER):
        write_seg_nrrd(segmentation, path)
    elif path.name.endswith(OF_ITK):
        with atomic_write(path) as part:
            part.touch()  # raises what is wrong with the place as an OSError, which ITK does not
            try:
                SimpleITK.WriteImage(segmentation.to_sitk(), str(part), useCompression=True)
            except RuntimeError as error:
                raise OSError(f"{str(path)!r} could not be written: {last_line(error)}") from error
    elif path.name.endswith(".dcm"):
        raise UsageError("a DICOM segmentation refers to the slices of a series", "stunet_predict -o seg.dcm")
    else:
        raise UsageError(
            f"{str(path)!r} has no ending of a format", f"one of .nii.gz, .nii, {SLICER}, {', '.join(OF_ITK)}"
        )
