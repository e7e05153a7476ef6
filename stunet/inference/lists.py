"""Read which images to predict from a list: a text file with an image per line, or a CSV file with a case per line.

    image,name,output
    /data/p1/ct.nii.gz,p1,site_a
    /data/p2/ct.nii.gz,p2,site_b

Images may lie anywhere; relative paths start from the list's folder. Nothing is opened, so that a hundred thousand
lines take seconds: an image that does not exist fails when its turn comes. Folders of DICOM slices are looked into.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from stunet.datasets.listing import ending_of
from stunet.errors import DataError, closest
from stunet.inference.cases import InputCase, series_cases
from stunet.inference.model import ModelFolder
from stunet.names import check_name

IMAGE, NAME, OUTPUT = "image", "name", "output"
EXAMPLE = "columns image (or image_0, image_1, ... for several channels), and if you like name and output"


def is_list(source: Path) -> bool:
    """Return whether an input is a list of images."""
    return source.suffix.lower() in (".txt", ".csv") and source.is_file()


def listed_cases(source: Path, model: ModelFolder, series: str | None = None) -> list[InputCase]:
    """Return the cases of a list, sorted by name.

    Args:
        source: A .txt file with an image per line (empty lines and lines from `#` on do not count), or a .csv file with
            a column `image`, or one per channel whose names begin with it, in their order; `name`, by default that
            of the first file without its ending and _0000; and `output`, a folder below that of the results.
        model: The model, which knows the endings of images.
        series: Which series of a folder of DICOM slices.

    Raises:
        DataError: A line is not as described, or two cases have the same name.
    """
    cases: list[InputCase] = []
    lines: dict[str, int] = {}
    for number, images, name, output in _lines(source):
        where = f"line {number} of {str(source)!r}"
        paths = tuple(source.parent / image for image in images if image)
        if len(paths) < len(images):
            raise DataError(f"{where} lacks an image", EXAMPLE)
        case = _case(paths, name, output, where, model, series)
        if (before := lines.setdefault(case.name, number)) != number:
            what = f"{where}: case {case.name!r} is in line {before} as well"
            raise DataError(what, "a CSV file with columns image and name, in which each name occurs once")
        cases.append(case)
    if not cases:
        raise DataError(f"no image in {str(source)!r}", EXAMPLE if source.suffix.lower() == ".csv" else "one per line")
    return sorted(cases, key=lambda case: case.name)


def _lines(source: Path) -> Iterator[tuple[int, list[str], str, str]]:
    """Yield number, images, name and folder of each line that is not empty."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            if source.suffix.lower() == ".txt":
                for number, line in enumerate(file, start=1):
                    if (text := line.strip()) and not text.startswith("#"):
                        yield number, [text], "", ""
                return
            reader = csv.DictReader(file)
            columns = _image_columns(source, reader.fieldnames or ())
            for row in reader:
                if any(value for value in row.values() if isinstance(value, str)):
                    images = [(row[column] or "").strip() for column in columns]
                    yield reader.line_num, images, (row.get(NAME) or "").strip(), (row.get(OUTPUT) or "").strip()
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {str(source)!r}: {error}", "save it as UTF-8, with commas") from None


def _image_columns(source: Path, columns: Sequence[str]) -> list[str]:
    found = [column for column in columns if column.startswith(IMAGE)]
    if not found:
        there = f" (there: {', '.join(columns)})" if columns else ""
        raise DataError(f"{str(source)!r} has no column {IMAGE!r}{closest(IMAGE, list(columns))}{there}", EXAMPLE)
    return found


def _case(
    paths: tuple[Path, ...], name: str, output: str, where: str, model: ModelFolder, series: str | None
) -> InputCase:
    ending, subfolder = ending_of(paths[0].name, model.ending), _subfolder(output, where)
    if not ending and paths[0].is_dir():
        return replace(_series(paths[0], name, where, model, series), subfolder=subfolder)
    name = check_name(name or paths[0].name[: len(paths[0].name) - len(ending)].removesuffix("_0000"), "name", where)
    error = None
    if ending not in model.readable_endings:
        known = ", ".join(sorted(model.readable_endings))
        what = f"{str(paths[0])!r} is neither a folder nor an image that this model's reader takes ({known})"
        error = DataError(what, f"convert it to {model.ending}")
    elif len(paths) > 1 and len(paths) != len(model.channels):
        what = f"{where} has {len(paths)} images, and the model takes {len(model.channels)} channels"
        raise DataError(what, f"a column for each of {', '.join(model.channels)}, or one for a file with all of them")
    return InputCase(name, paths, error=error, subfolder=subfolder)


def _series(folder: Path, name: str, where: str, model: ModelFolder, series: str | None) -> InputCase:
    """Return the one series of slices in a folder as a case, which has an error if there are others or none."""
    name = check_name(name or folder.name, "name", where)
    found = series_cases(folder, model, series, set())
    if len(found) == 1:
        return replace(found[0], name=name)
    what = f"{str(folder)!r} holds {len(found)} series of DICOM slices"
    return InputCase(name, (folder,), error=DataError(what, "a line for the folder of each series"))


def _subfolder(output: str, where: str) -> str:
    path = PurePosixPath(output)
    if path.is_absolute() or any(part.startswith(".") for part in path.parts):
        raise DataError(f"{where}: output {output!r} does not lie below the folder of the results", "a folder like a/b")
    return "" if path == PurePosixPath() else str(path)
