"""Where does the spacing of a 3D TIFF stand? In CASE.json beside it, {"spacing": [z, y, x]} in mm.

Where there is none nnU-Net takes 1 x 1 x 1 mm, prints a line and goes on; that is refused here.
"""

from pathlib import Path

from stunet.errors import DataError
from stunet.kinds import SPACING, read

READER = "Tiff3DIO"  # of nnU-Net
ENDINGS = (".tif", ".tiff")
CHANNEL = len("_0000")


def spacing_file(path: Path, is_image: bool) -> Path:
    """Where nnU-Net looks for the spacing of a file: CASE.json for the image CASE_0000.tif and the label CASE.tif."""
    stem = path.name[: -len(path.suffix)]
    return path.with_name(f"{stem[:-CHANNEL] if is_image else stem}.json")


def read_spacing(path: Path, is_image: bool) -> tuple[float, float, float]:
    """The spacing of a 3D TIFF in mm, (D, H, W).

    Args:
        path: Of the TIFF.
        is_image: Whether its name ends with the number of a channel.

    Raises:
        DataError: There is no such file, or no three positive numbers in it.
    """
    beside = spacing_file(path, is_image)
    hint = f'{{"spacing": [z, y, x]}} in mm in {beside.name!r}'
    if not beside.is_file():
        raise DataError(f"{str(path)!r} has no spacing: no file {str(beside)!r}", hint)
    spacing = read(beside, SPACING, hint)["spacing"]
    if len(spacing) != 3:
        raise DataError(f"'spacing' in {str(beside)!r} is {spacing!r}, not three numbers", hint)
    depth, height, width = map(float, spacing)
    return depth, height, width
