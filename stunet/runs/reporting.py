"""Report: write the report of a result folder, of ours or of stock nnU-Net. report/ says what is in it."""

from pathlib import Path

from stunet.errors import UsageError
from stunet.runs.listener import Listener


def write_reports(
    folder: Path, output: Path | None = None, with_slices: bool = True, listener: Listener | None = None
) -> list[Path]:
    """Write the report of a model with those of its folds, or that of a fold, and return the files.

    Args:
        folder: Of a model, TRAINER__PLANS__CONFIGURATION, or of a fold in it.
        output: Write the report of this folder alone into this file; None: report.html in each folder.
        with_slices: Whether slices of the worst cases are drawn, for which their images are read.
        listener: Told of the files.

    Raises:
        UsageError: `output` does not end with .html.
        DataError: There is no training in the folder.
        OSError: A folder is not writable, or the disk is full.
    """
    if output and output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o {str(output)!r} does not end with .html", f"-o {output / 'report.html'}")
    from stunet.report import runs, training

    found = runs.find(folder)
    write = training.write_model if isinstance(found, runs.Model) else training.write_fold
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        written = [write(found.folder, with_slices, output)]
    else:
        folds = [fold for fold in found.folds() if fold.is_begun] if isinstance(found, runs.Model) else []
        written = [training.write_fold(fold.folder, with_slices) for fold in folds]
        written.append(write(found.folder, with_slices))
    for path in written:
        (listener or Listener()).note(f"wrote {path}")
    return written
