"""Write names and colours of labels for ITK-SNAP, which takes them from a file of its own (itksnap -l FILE).

Source of the columns: its ColorLabelTable::LoadFromFile.
"""

from pathlib import Path

from stunet.files import atomic_write
from stunet.results.colours import colour
from stunet.results.segmentation import Segmentation


def write_itksnap_labels(segmentation: Segmentation, path: Path) -> None:
    """Write ITK-SNAP's label description file, which serves all cases with the same classes.

    Raises:
        OSError: The file cannot be written, or the disk is full.
    """
    rows = ["# ITK-SnAP Label Description File", "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL"]
    rows.append('    0     0    0    0        0  0  0    "Clear Label"')
    for name, value in segmentation.names.items():
        red, green, blue = colour(name)
        # A double quote would end the name.
        text = segmentation.header_name(value).replace('"', "'")
        rows.append(f'{value:5} {red:5} {green:4} {blue:4}        1  1  1    "{text}"')
    with atomic_write(path) as part:
        part.write_text("\n".join([*rows, ""]), encoding="utf-8")
