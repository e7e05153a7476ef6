"""Convert a BIDS folder to a raw dataset: images from sub-*/, label maps from derivatives/PIPELINE/sub-*/.

A label map belongs to the images with the same entities: sub-01_ses-2_space-orig_desc-manual_dseg.nii.gz belongs to
sub-01_ses-2_T1w.nii.gz. Entities that only derivatives have (space, desc, ...) are ignored. See "Segmentations" in the
specification, bids-specification.readthedocs.io. Read next: pairs.py, which converts the files found here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stunet.datasets.conversion import Conversion, dataset_folder
from stunet.datasets.label_lists import read_labels
from stunet.datasets.listing import ending_of, same_case, visible
from stunet.datasets.pairs import Files, prepare
from stunet.errors import DataError

ENDING = ".nii.gz"
ENDINGS = (ENDING, ".nii")  # of BIDS images; accepted in upper case, too
DERIVED = {"space", "desc", "label", "seg", "atlas", "res", "den"}  # entities that only derivatives have


@dataclass(frozen=True)
class BidsName:
    """A parsed file name: its entities in order, and its suffix."""

    entities: tuple[tuple[str, str], ...]
    suffix: str

    def without(self, keys: set[str]) -> frozenset[tuple[str, str]]:
        return frozenset(entity for entity in self.entities if entity[0] not in keys)


def parse(name: str) -> BidsName:
    """Parse a name such as `sub-01_ce-GAD_T1w`, or the end of one: `ce-GAD_T1w`.

    Words that are not entities, as in `T1w_dseg`, are dropped.
    """
    *words, suffix = name[: len(name) - len(ending_of(name))].split("_")
    pairs = [word.partition("-") for word in words]
    return BidsName(tuple((key, value) for key, dash, value in pairs if dash), suffix)


def find_bids(source: Path, channels: Sequence[str], label: str, pipeline: Path) -> Files:
    """Return the cases of a BIDS folder.

    Args:
        source: The folder that holds sub-*.
        channels: What image names end with, one entry per channel: T1w, ce-GAD_T1w.
        label: What names of label maps end with: dseg, desc-manual_dseg.
        pipeline: The folder with the label maps, which holds sub-* as well.

    Raises:
        DataError: Two label maps belong to the same images, an image occurs twice, or a case lacks a channel.
    """
    wanted = parse(label)
    ends = [parse(channel) for channel in channels]
    images: dict[tuple[frozenset[tuple[str, str]], str], Path] = {}
    for path in _images(source):
        name = parse(path.name)
        key = frozenset(name.entities), name.suffix
        if not any(name.suffix == end.suffix and set(end.entities) <= key[0] for end in ends):
            continue
        if key in images:
            raise same_case(images[key], path)
        images[key] = path
    found: dict[frozenset[tuple[str, str]], tuple[BidsName, Path]] = {}
    cases: dict[str, tuple[tuple[Path, ...], Path]] = {}
    unmatched = []
    for path in _images(pipeline):
        name = parse(path.name)
        if name.suffix != wanted.suffix or not set(wanted.entities) <= set(name.entities):
            continue
        subject = name.without(DERIVED)
        if subject in found:
            other, there = found[subject]
            # The same entities: one label map in two formats or folders. Others differ in desc, label, ...
            if other == name:
                raise same_case(there, path)
            hint = "say which: --label desc-manual_dseg"
            raise DataError(f"{str(there)!r} and {str(path)!r} are labels of the same images", hint)
        found[subject] = name, path
        matching = [images.get((subject | frozenset(end.entities), end.suffix)) for end in ends]
        files = tuple(image for image in matching if image)
        if files and len(files) < len(ends):
            lacking = channels[matching.index(None)]
            what = f"{str(path)!r} has {files[0].name!r}, but no image that ends with _{lacking}{ENDING}"
            raise DataError(what, "add the image, or take the label away")
        if files:
            cases["_".join("-".join(entity) for entity in name.entities if entity in subject)] = (files, path)
        else:
            unmatched.append(path)
    used = {image for files, _ in cases.values() for image in files}
    unmatched += [path for path in images.values() if path not in used]
    return Files(cases, tuple(unmatched))


def prepare_bids(
    source: Path,
    raw: Path,
    dataset_id: int,
    name: str,
    channels: Mapping[str, str],
    label: str = "dseg",
    derivatives: str | None = None,
    names: Mapping[int, str] | None = None,
    unmatched: str = "error",
    variable: str | None = None,
) -> Conversion:
    """Prepare the conversion of a BIDS folder.

    Args:
        channels: What image names end with, by channel name.
        derivatives: Name of the pipeline; may be omitted if there is only one.
        names: Class names by value; None: those in the pipeline's dseg.tsv.

    Other arguments and errors: see find_bids, pairs.prepare, conversion.dataset_folder.
    """
    target = dataset_folder(raw, dataset_id, name)
    pipeline = _pipeline(source, derivatives)
    names = names or read_labels([str(_table(pipeline))])
    files = find_bids(source, list(channels.values()), label, pipeline)
    return prepare(files, target, list(channels), names, unmatched, (variable, source) if variable else None)


def _images(folder: Path) -> list[Path]:
    files = (path for path in visible(folder.glob("sub-*/**/*")) if ending_of(path.name) in ENDINGS)
    return [path for path in files if not path.is_dir()]


def _pipeline(source: Path, chosen: str | None) -> Path:
    """Return the folder with the label maps."""
    if not any(source.glob("sub-*")):
        raise DataError(
            f"{str(source)!r} is not a BIDS folder: it has no sub-*", "give the folder with dataset_description.json"
        )
    derivatives = source / "derivatives"
    # Label maps directly in derivatives/, without a folder of a pipeline.
    if any(derivatives.glob("sub-*")) and not chosen:
        return derivatives
    there = sorted(path.name for path in derivatives.glob("*") if any(path.glob("sub-*")))
    if chosen and chosen not in there:
        raise DataError(f"no sub-* in {str(derivatives / chosen)!r}", f"--derivatives {there[0] if there else 'NAME'}")
    if len(there) != 1 and not chosen:
        listed = ", ".join(there) or "none"
        raise DataError(f"{len(there)} folders of labels in {str(derivatives)!r}: {listed}", "--derivatives NAME")
    return derivatives / (chosen or there[0])


def _table(pipeline: Path) -> Path:
    tables = sorted(pipeline.glob("*dseg.tsv"))
    if len(tables) != 1:
        hint = "name the labels: --labels liver spleen, or a file"
        raise DataError(f"{len(tables)} tables of labels (*dseg.tsv) in {str(pipeline)!r}", hint)
    return tables[0]
