"""Report: write the report of a result folder, of ours or of stock nnU-Net. report/ says what is in it."""

from pathlib import Path
from typing import TYPE_CHECKING

from stunet.errors import StunetError, UsageError
from stunet.runs.listener import Listener
from stunet.runs.viewing import write_view

if TYPE_CHECKING:
    from stunet.report.runs import Fold


def write_reports(
    folder: Path,
    output: Path | None = None,
    with_slices: bool = True,
    with_views: bool = False,
    listener: Listener | None = None,
) -> list[Path]:
    """Write the report of a model with those of its folds, or that of a fold, and return the files.

    Args:
        folder: Of a model, TRAINER__PLANS__CONFIGURATION, or of a fold in it.
        output: Write the report of this folder alone into this file; None: report.html in each folder.
        with_slices: Whether slices of the worst cases are drawn, for which their images are read.
        with_views: Whether each fold's worst cases get a page of the viewer, FOLD/views/CASE.html, which reports link.
        listener: Told of the files.

    Raises:
        UsageError: `output` does not end with .html, or is given with `with_views`.
        DataError: There is no training in the folder.
        OSError: A folder is not writable, or the disk is full.
    """
    if output and output.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"-o {str(output)!r} does not end with .html", f"-o {output / 'report.html'}")
    if with_views and (output or not with_slices):
        other = "-o" if output else "--no_slices"
        raise UsageError(f"--views with {other}: the pages would have no link", f"leave {other} out, or --views")
    from stunet.report import runs, training

    listener = listener or Listener()
    found = runs.find(folder)
    if with_views:
        for fold in found.folds() if isinstance(found, runs.Model) else [found]:
            _write_views(fold, listener)
    write = training.write_model if isinstance(found, runs.Model) else training.write_fold
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        written = [write(found.folder, with_slices, output)]
    else:
        folds = [fold for fold in found.folds() if fold.is_begun] if isinstance(found, runs.Model) else []
        written = [training.write_fold(fold.folder, with_slices) for fold in folds]
        written.append(write(found.folder, with_slices))
    for path in written:
        listener.note(f"wrote {path}")
    return written


def _write_views(fold: "Fold", listener: Listener) -> None:
    """Write a page of the viewer for each of a fold's worst cases; those that cannot be shown are told of."""
    from stunet.report.comparison import WORST, worst_cases
    from stunet.viewer.cases import ViewCase
    from stunet.viewer.classes import names_of

    if (compared := fold.compared) is None:
        return
    if not fold.model.dataset:
        return listener.warn(f"no pages of the viewer: no dataset.json in {fold.model.folder} names the classes")
    for position in worst_cases(compared)[:WORST]:
        case = compared.cases[position]
        prediction, reference = fold.pair(*compared.files[position])
        channels = tuple((fold.model.dataset.get("channel_names") or {}).values())
        shown = ViewCase(case, tuple(fold.images(case)), prediction, reference, channels)
        try:
            write_view(shown, names_of(fold.model.dataset), fold.view(case), listener)
        except (StunetError, OSError, RuntimeError) as error:
            listener.warn(f"no page of the viewer for {case!r}: {error}")
