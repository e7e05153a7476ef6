"""Make models in the store of what was downloaded or is on this machine: files, folders, zips, several at once.

store.py finds and downloads models, folder.py writes their folders.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.errors import DataError, WeightsError
from stunet.files import atomic_folder, is_held, sha256_of, write_json
from stunet.kinds import CLASSES, read
from stunet.models import registry
from stunet.models.entry import Entry, check_name
from stunet.models.locks import lock_of, locked
from stunet.models.record import RECORD, read_record
from stunet.models.store import Installed, exists, find_installed, recorded_sha256
from stunet.weights.folders import ADAPTATION_FILE, models_below

if TYPE_CHECKING:
    from stunet.weights.reading import Weights

# File names that many models have; they do not identify one.
COMMON = {"model_final_checkpoint.model", "checkpoint_final.pth", "checkpoint_best.pth"}
log = logging.getLogger("stunet")


def import_models(
    path: Path, name: str | None = None, pkl: Path | None = None, dataset: Path | None = None
) -> list[Installed]:
    """Install what exists on this machine: as import_file(), or all known models in a folder of several.

    Raises:
        WeightsError: As import_file(); a folder of several has none that the registry knows, or only some parts of a
            whole.
        DataError: As import_file().
    """
    models = models_below(path) if exists(path) else []
    if len(models) < 2:
        return [import_file(models[0] if models else path, name, pkl, dataset)]
    found = {model: entries[0] for model in models if (entries := _named(model))}
    listed = ", ".join(str(model.relative_to(path)) for model in models[:3]) + (", ..." if models[3:] else "")
    if name or not found:
        raise WeightsError(
            f"{str(path)!r} holds {len(models)} models: {listed}", "give the folder of one of them, with a --name"
        )
    _check_whole(path, [*found.values()])
    for model in models:
        if model not in found:
            log.warning("%s is left out: the registry does not know it; import it with a --name", str(model))
    there = {entry.name: find_installed(entry.name) for entry in found.values()}
    return [there[entry.name] or import_file(model, entry.name) for model, entry in found.items()]


def _check_whole(path: Path, found: Sequence[Entry]) -> None:
    """Check that no whole of several models has only some of its parts in a folder and the store.

    Raises:
        WeightsError: One has; the message names the parts that are missing.
    """
    here = [entry.name for entry in found]
    for whole in {entry.whole for entry in found if entry.whole}:
        lacking = [
            part.name for part in registry.parts_of(whole) if part.name not in here and not find_installed(part.name)
        ]
        if lacking:
            raise WeightsError(
                f"{str(path)!r} has only some parts of {whole}: {', '.join(lacking)} missing",
                f"stunet_models download {' '.join(lacking)}, or import the folder of one part",
            )


def import_file(path: Path, name: str | None = None, pkl: Path | None = None, dataset: Path | None = None) -> Installed:
    """Install weights that exist on this machine: a file, a folder, or a zip of a model folder.

    Args:
        path: The weights; they are not changed.
        name: Name to install them under; by default that of the entry that they are recognised as.
        pkl: nnU-Net v1's plans, if they are not next to the file.
        dataset: The dataset.json of their training, for files without class names.

    Raises:
        WeightsError: They are not recognised and no name was given; what prediction needs is unknown; or they are
            damaged.
        DataError: The name is taken.
    """
    if not exists(path):
        raise WeightsError(f"no file {str(path)[:200]!r}", "check the path")
    entry = registry.look_up(name) if name else None
    with opened(path, entry) as weights:
        return _import(weights, path, name, entry, pkl, dataset)


@contextmanager
def opened(path: Path, entry: Entry | None = None) -> Iterator[Path]:
    """Yield the path that read_weights() takes: the same, or the model folder in a zip, unpacked meanwhile.

    Raises:
        WeightsError: As unpack().
    """
    from stunet.models.archive import is_packed_model, unpack

    if path.is_dir() or not is_packed_model(path):
        yield path
        return
    folder = registry.store() / ".downloads" / f"import-{os.getpid()}"
    with locked(folder.name):
        _remove_dead_imports(folder.parent)
        try:
            yield unpack(path, folder, entry.folder if entry else None)
        except (WeightsError, DataError) as error:
            # The user knows the archive, not the folder that it was unpacked to.
            raise type(error)(error.message.replace(str(folder), str(path)), error.hint) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_dead_imports(downloads: Path) -> None:
    """Remove what killed imports unpacked; a running one holds a lock with the folder's name."""
    for part in (*downloads.glob("import-*"), *downloads.glob(".part-import-*")):
        if not is_held(lock_of(part.name.removeprefix(".part-"))):
            shutil.rmtree(part, ignore_errors=True)


def _import(
    path: Path, origin: Path, name: str | None, entry: Entry | None, pkl: Path | None, dataset: Path | None
) -> Installed:
    from stunet.weights.reading import read_weights

    digest = sha256_of(origin) if origin.is_file() else None
    if name is None:
        entry = _recognised(read_weights(path), origin, digest)
    chosen = entry.name if entry else name
    if not chosen:
        raise WeightsError(f"{str(origin)!r} is not a model that the registry knows", "give it a name: --name NAME")
    check_name(chosen)
    with locked(chosen):
        if model := find_installed(chosen):
            hint = f"remove {str(model.folder)!r}, or give another --name"
            raise DataError(f"{model.name} is already installed", hint)
        return _make(chosen, entry, path, {"source": str(origin.resolve()), "sha256": digest}, pkl, dataset)


def _recognised(weights: "Weights", path: Path, digest: str | None) -> Entry | None:
    """Return the entry of unnamed weights, if any: by checksum, by what the file says, or by network and name."""
    from stunet.models.folder import contradiction

    entries = registry.entries()
    digest = digest or (sha256_of(weights.path) if weights.path.parent == path else None)
    by_digest = [entry for entry in entries if digest and digest in (entry.sha256, recorded_sha256(entry))]
    # What the file itself says; install() checks that it does not contradict the entry.
    by_file = [entry for entry in entries if entry.name == weights.entry]
    alike = [entry for entry in _named(path) if not contradiction(weights, entry)]
    found = by_digest or by_file or alike
    if len(found) > 1:
        raise WeightsError(f"{str(path)!r} may be {' or '.join(e.name for e in found)}", f"--name {found[0].name}")
    if not found:
        return None
    known = found[0].sha256 or recorded_sha256(found[0])
    # A name alone proves nothing if a checksum is known and differs.
    if found is alike and digest and known not in (None, digest):
        raise WeightsError(
            f"{str(path)!r} is named like {found[0].name}, but its sha256 is {digest}, not {known}",
            f"--name {found[0].name} if it is that model nevertheless, or another --name",
        )
    return found[0]


def _named(path: Path) -> list[Entry]:
    """Return the entries whose file, or folder as its publisher names it, this may be."""
    # Two levels: DATASET/TRAINER__PLANS__CONFIGURATION, REPOSITORY/checkpoint_final.pth.
    names = {path.resolve().name, path.resolve().parent.name} - COMMON
    return [entry for entry in registry.entries() if names & _published_names(entry)]


def _published_names(entry: Entry) -> set[str]:
    """Return the names under which an entry's file, or the folder of it, can be known."""
    if entry.folder:  # its archive holds others, too
        return {entry.folder}
    if entry.filename in COMMON:  # https://huggingface.co/OWNER/REPOSITORY/resolve/main/FILE
        return {source.split("/")[4] for source in entry.sources if "/resolve/" in source}
    return {entry.filename, entry.filename.removesuffix(".zip")} if entry.filename else set()


def install(name: str, entry: Entry | None, path: Path, origin: Mapping[str, Any]) -> Installed:
    """Make a model of a file, a folder or a zip in the store.

    Args:
        name: Of the model.
        entry: What it is said to be.
        path: Where it is.
        origin: `source` and `sha256` for its record.

    Raises:
        WeightsError: It is not what the entry says, or damaged.
        DataError: The disk is full.
    """
    with opened(path, entry) as weights:
        return _make(name, entry, weights, origin)


def _make(
    name: str,
    entry: Entry | None,
    path: Path,
    origin: Mapping[str, Any],
    pkl: Path | None = None,
    dataset: Path | None = None,
) -> Installed:
    """Make a model folder, or one of the original file if the weights cannot predict and the entry does not help."""
    from stunet.models.folder import check_entry, describe, read_folds, with_plans, write_model_folder
    from stunet.weights.checkpoints import check_finite

    folds = read_folds(path)
    for weights in folds.values():
        check_finite(weights.tensors, weights.path)
    if dataset:
        content = read(dataset, CLASSES, "give the dataset.json of the training")
        folds = {fold: replace(weights, dataset=content) for fold, weights in folds.items()}
    if pkl:
        folds = {fold: with_plans(weights, pkl, entry, name) for fold, weights in folds.items()}
    for weights in folds.values():
        check_entry(weights, entry)
    target, record = registry.store() / name, {**origin, "date": datetime.now(UTC).date().isoformat()}
    if entry and entry.orientation:  # plans of nnU-Net do not say it
        record["orientation"] = entry.orientation
    first = next(iter(folds.values()))
    if first.pretext or (entry and _lacks(first, entry)):
        _keep(target, first, entry, record)
    else:
        write_model_folder(target, {fold: describe(weights, entry) for fold, weights in folds.items()}, record)
    return Installed(name, target, read_record(target))


def _lacks(weights: "Weights", entry: Entry) -> bool:
    """Return whether neither weights nor their entry say enough for prediction."""
    if entry.size:
        return bool(entry.missing) and not weights.strides
    return not weights.strides or not weights.classes or not weights.network.classes


def _keep(target: Path, weights: "Weights", entry: Entry | None, record: Mapping[str, Any]) -> None:
    """Make a folder with a file of weights as it is, and the plan for adapting it: the published one or the entry's."""
    file = weights.path
    with atomic_folder(target) as part:
        shutil.copyfile(file, part / file.name)
        if (plan := file.with_name(ADAPTATION_FILE)).is_file():
            shutil.copyfile(plan, part / plan.name)
        elif entry and not weights.plan and (known := registry.adaptation_of(entry)):
            write_json(part / ADAPTATION_FILE, known)
        files = {each.name: sha256_of(each) for each in sorted(part.iterdir())}
        said = {"entry": entry.name, "pretext": entry.pretext} if entry else {}
        write_json(part / RECORD, {**record, **said, "weights": file.name, "files": files})
