"""The format of the model's images; if that is NIfTI, with names and colours in the header."""

from pathlib import Path
from typing import TYPE_CHECKING

from stunet.results.formats.output_format import Origin, OutputFormat

if TYPE_CHECKING:
    from stunet.results.segmentation import Segmentation


def _write(segmentation: "Segmentation", path: Path, origin: Origin) -> None:
    from stunet.nifti_header import is_nifti
    from stunet.results.nifti_labels import write_nifti

    if is_nifti(path):
        write_nifti(segmentation, path)
    else:
        origin.write_like_image(segmentation.labels_DHW, path)


FORMAT = OutputFormat("image", None, "the model's images", _write)
