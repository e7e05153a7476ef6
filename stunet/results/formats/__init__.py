"""Formats in which a segmentation is written, one file each.

To add a format, write a file with a FORMAT, and give it a line here: the choices of --format, the file endings that -o
takes for it, the checks before a run and the names of the results follow. `stunet_predict --help` lists the formats, so
these files import numpy at most; libraries of single formats are imported when they write.
"""

from stunet.results.formats import dicom_seg, image, masks, seg_nrrd
from stunet.results.formats.output_format import OutputFormat

FORMATS: dict[str, OutputFormat] = {
    made.name: made for made in (image.FORMAT, seg_nrrd.FORMAT, masks.FORMAT, dicom_seg.FORMAT)
}
DEFAULT = image.FORMAT.name
