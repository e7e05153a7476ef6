"""Read the spacing of a 3D TIFF from the CASE.json next to it: {"spacing": [z, y, x]} in mm.

Without that file, nnU-Net assumes 1 x 1 x 1 mm, prints a line and continues; here that is an error.
"""

from pathlib import Path

from stunet.errors import DataError
from stunet.kinds import SPACING, read

READER = "Tiff3DIO"  # nnU-Net's reader of these files
ENDINGS = (".tif", ".tiff")
CHANNEL = len("_0000")


def spacing_file(path: Path, is_image: bool) -> Path:
    """Return where nnU-Net looks for a file's spacing: CASE.json for the image CASE_0000.tif and the label CASE.tif."""
    stem = path.name[: -len(path.suffix)]
    return path.with_name(f"{stem[:-CHANNEL] if is_image else stem}.json")


def read_spacing(path: Path, is_image: bool) -> tuple[float, float, float]:
    """Return the spacing of a 3D TIFF in mm, (D, H, W).

    Args:
        path: Path of the TIFF.
        is_image: Whether its name ends with a channel number.

    Raises:
        DataError: There is no such file, or it does not hold three positive numbers.
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
