"""View: look at segmentations in a browser. viewer/ does the work."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import files, workspace
from stunet.errors import DataError, UsageError, closest
from stunet.kinds import DATASET, read, read_dataset_json
from stunet.runs.listener import Listener

if TYPE_CHECKING:
    from stunet.viewer.cases import ViewCase
    from stunet.viewer.classes import Names
    from stunet.viewer.server import ViewServer

MOST_VOXELS = 12_000_000  # of a page of --html: a browser has to unpack it from text
ENDING = ".nii.gz"


@dataclass(frozen=True, kw_only=True)
class ViewingRequest:
    """What to look at: the options of stunet_view, with their defaults.

    Args:
        paths: Without a dataset: image files (one per channel) and then the segmentation; or a folder of images, if
            there are any, and then the folder of segmentations. With a dataset: the segmentations, or nothing, to look
            at its labels.
        reference: File or folder to compare with; None: with a dataset its labels, otherwise nothing.
        dataset: Number or name (`-d`): images, labels and names of classes are those of this raw dataset.
        djfile: The dataset.json that names the classes; None: the dataset's, or the one beside the files.
        case: Name of the case to begin with, or to write as a page.
        html: Write one page with everything inside instead of serving.
        port: Port of the server; 0: any that is free.
    """

    paths: Sequence[Path] = ()
    reference: Path | None = None
    dataset: int | str | None = None
    djfile: Path | None = None
    case: str | None = None
    html: Path | None = None
    port: int = 0


def open_viewer(request: ViewingRequest) -> "ViewServer":
    """Return a server that shows what is asked for; call its run().

    Raises:
        UsageError: Paths are missing, too many, or contradict each other.
        DataError: Files are missing, there is nothing to show, or the port is in use.
    """
    _check(request)
    cases, names = _find(request)

    from stunet.viewer.gallery import Gallery
    from stunet.viewer.server import ViewServer

    return ViewServer(Gallery(cases, names, request.case), request.port)


def write_page(request: ViewingRequest, listener: Listener | None = None) -> Path:
    """Write one case as a page that needs no server, and return its path.

    Raises:
        UsageError: As for open_viewer(), or there are several cases and none is named.
        DataError: Files are missing, or cannot be shown.
        OSError: The page cannot be written.
    """
    listener = listener or Listener()
    _check(request)
    assert request.html is not None  # the caller's choice
    cases, names = _find(request)
    if request.case:
        cases = [case for case in cases if case.name == request.case]
    if len(cases) > 1:
        raise UsageError(
            f"a page shows one case, and there are {len(cases)}", f"--case {cases[0].name} --html {request.html}"
        )

    write_view(cases[0], names, request.html, listener)
    return request.html


def write_view(case: "ViewCase", names: "Names", path: Path, listener: Listener) -> None:
    """Write a case as a page that needs no server; its folder is made.

    Raises:
        DataError: Files are missing, or cannot be shown.
        OSError: The page cannot be written.
    """
    from stunet.viewer.loading import load
    from stunet.viewer.page import single_page

    loaded = load(case, names, MOST_VOXELS)
    for note in loaded.notes:
        listener.warn(note)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(path) as part:
        part.write_bytes(single_page(loaded))


def _check(request: ViewingRequest) -> None:
    if not request.paths and request.dataset is None:
        raise UsageError("nothing to look at", "stunet_view IMAGE SEGMENTATION, or stunet_view -d ID PREDICTIONS")
    if len(request.paths) > 1 and request.dataset is not None:
        raise UsageError(
            f"-d takes images from the dataset, and {len(request.paths)} paths are given",
            f"stunet_view -d {request.dataset} {request.paths[-1]}",
        )
    if not 0 <= request.port <= 65535:
        raise UsageError(f"--port {request.port} is not a port", "--port 8000, or none: any that is free")
    if request.html and request.html.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--html {str(request.html)!r} does not end with .html", f"--html {request.html}.html")
    given = [*request.paths, *(path for path in (request.reference, request.djfile) if path)]
    for path in given:
        if not path.exists():
            raise DataError(f"no file or folder {str(path)!r}", "check the path")
    folders = [path for path in request.paths if path.is_dir()]
    if len(request.paths) > 1 and request.paths[-1].is_dir() and len(folders) < len(request.paths):
        raise UsageError(
            f"{str(request.paths[0])!r} is a file, and {str(request.paths[-1])!r} a folder",
            "stunet_view IMAGES SEGMENTATIONS with two folders, or IMAGE SEGMENTATION with files",
        )
    if len(request.paths) > 2 and folders:
        raise UsageError(f"{len(request.paths)} paths are given", "stunet_view IMAGES SEGMENTATIONS with two folders")


def _find(request: ViewingRequest) -> "tuple[list[ViewCase], Names]":
    """Return the cases, and what their label values mean."""
    from stunet.viewer import cases as viewer_cases
    from stunet.viewer.classes import names_in, names_of, read_names

    if request.dataset is not None:
        raw = workspace.raw_dataset(workspace.dataset_name(request.dataset))
        description = read_dataset_json(raw / "dataset.json")
        predictions = request.paths[0] if request.paths else None
        found = viewer_cases.cases_of_dataset(raw, description, predictions, request.reference)
        names = read_names(request.djfile) if request.djfile else names_of(description)
    else:
        *images, segmentation = request.paths
        file = request.djfile or _dataset_beside([segmentation, request.reference])
        if segmentation.is_dir():
            ending = _ending(file)
            found = viewer_cases.cases_of_folders(
                images[0] if images else None, segmentation, request.reference, ending
            )
        else:
            partner = request.reference
            if partner and partner.is_dir():
                named = viewer_cases.cases_of_folders(None, segmentation, partner, ENDING)
                partner = named[0].reference
            found = [viewer_cases.case_of_files(tuple(images), segmentation, partner)]
        labels = [path for case in found[:1] for path in (case.prediction, case.reference) if path]
        names = read_names(file) if file else names_in(labels)
    if request.case and request.case not in (known := [case.name for case in found]):
        raise DataError(f"no case {request.case!r}{closest(request.case, known)}", f"--case {known[0]}")
    return found, names


def _dataset_beside(paths: Sequence[Path | None]) -> Path | None:
    """Return the dataset.json beside the files, or above them, as in a raw dataset; None if there is none."""
    for path in filter(None, paths):
        folder = path if path.is_dir() else path.parent
        for place in (folder, folder.resolve().parent):
            if (place / "dataset.json").is_file():
                return place / "dataset.json"
    return None


def _ending(file: Path | None) -> str:
    description: dict[str, Any] = read(file, DATASET) if file else {}
    return str(description.get("file_ending", ENDING))
