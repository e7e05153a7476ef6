"""Install models in the store, by download or from a file, and find them by name.

The store is a folder ($STUNET_MODELS). Each model in it is an nnU-Net v2 model folder under its name; weights that
were published without plans are kept there as the original file. Checksums of first downloads stay in checksums.json.
Only reading weights needs torch. registry.py has the entries, folder.py the folders.
"""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet.errors import DataError, WeightsError, closest
from stunet.files import atomic_folder, exclusive_lock, is_held, sha256_of, write_json
from stunet.kinds import CLASSES, read
from stunet.models import registry
from stunet.models.record import CHECKSUMS, RECORD, read_checksums, read_record
from stunet.models.registry import Entry

if TYPE_CHECKING:
    from stunet.models.download import Progress
    from stunet.weights.reading import Weights

V1_NAME = "model_final_checkpoint.model"  # file name of every nnU-Net v1 model; it does not identify the model
log = logging.getLogger("stunet")


@dataclass(frozen=True)
class Installed:
    """A model in the store; `record` is its model.json."""

    name: str
    folder: Path
    record: dict[str, Any]

    @property
    def path(self) -> Path:
        """Path for read_weights: the model folder, or the file of weights without plans."""
        weights = self.record.get("weights")
        return self.folder / weights if weights else self.folder


def installed() -> list[Installed]:
    """Return the models of the store, sorted by name; skip those whose record is broken, with a warning."""
    found = []
    for path in sorted(registry.store().glob(f"*/{RECORD}")):
        # Hidden folders are unfinished, or hold downloads.
        if not path.parent.name.startswith("."):
            try:
                found.append(Installed(path.parent.name, path.parent, read_record(path.parent)))
            except DataError as error:
                log.warning("%s: %s", error.message, error.hint)
    return found


def find_installed(name: str) -> Installed | None:
    """Return the installed model of this name, in upper or lower case, with or without the default tag, or None."""
    known = {model.name.lower(): model for model in installed()}
    return known.get(name.lower()) or known.get(f"{name.lower()}.{registry.DEFAULT_TAG}")


def find_model(text: str, offline: bool = False, on_bytes: "Progress | None" = None) -> Path:
    """Return the path for read_weights that `text` names: an installed model, one to be downloaded first, or a path.

    `offline` forbids the download; `on_bytes` is called with its progress.

    Raises:
        WeightsError: Nothing has this name, or it needs a download that fails or is forbidden.
    """
    if model := find_installed(text):
        return model.path
    # Before paths: a folder that happens to be called STU-Net-B does not hide the model.
    entry = registry.look_up(text)
    if entry is None:
        with suppress(RuntimeError):  # an unknown user, as in ~nobody
            path = Path(text).expanduser()
            if text and _exists(path):
                return path
        names = [entry.name for entry in registry.entries()] + [model.name for model in installed()]
        raise WeightsError(f"no model or file {text[:200]!r}{closest(text[:200], names)}", "stunet_models list")
    if offline:
        raise WeightsError(
            f"{entry.name} is not installed in {str(registry.store())!r}, and nothing may be downloaded",
            f"stunet_models download {entry.name} where there is a network, then copy its folder to this store",
        )
    return download(entry, on_bytes=on_bytes).path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def download(entry: Entry, keep: bool = False, on_bytes: "Progress | None" = None, wait_s: float = 1.0) -> Installed:
    """Install an entry of the registry; a second process that asks for the same one waits, and finds it installed.

    Args:
        entry: From registry.find().
        keep: Keep the file as published in the model's folder as well.
        on_bytes: Called with bytes so far and in total.
        wait_s: Seconds before a second attempt.

    Raises:
        WeightsError: No URL is known, none works, or the file differs from the one published or downloaded before.
        DataError: The disk is full, or the store is not writable.
    """
    from stunet.models.download import fetch

    if not entry.sources:
        raise WeightsError(
            f"{entry.name} cannot be downloaded automatically: {', '.join(entry.pages) or 'no address is known'}",
            f"download {entry.filename} and its .pkl with a browser, then: "
            f"stunet_models import {entry.filename} --name {entry.name}",
        )
    with _locked(entry.name):
        if model := find_installed(entry.name):  # by a process that this one waited for
            return model
        folder = registry.store() / ".downloads" / entry.name
        folder.mkdir(parents=True, exist_ok=True)
        file, known = folder / entry.filename, entry.sha256 or recorded_sha256(entry)

        def install(source: str | None) -> None:
            digest = known or sha256_of(file)
            _install(entry.name, entry, file, {"source": source, "sha256": digest})
            if not entry.sha256:
                _remember(entry, digest)

        if file.is_file() and known in (None, sha256_of(file)):  # left by an interrupted run
            with suppress(WeightsError):
                install(None)
        try:
            if not find_installed(entry.name):
                fetch(
                    entry.sources,
                    file,
                    sha256=known,
                    size=entry.bytes,
                    on_bytes=on_bytes,
                    accept=install,
                    wait_s=wait_s,
                )
        except WeightsError as error:
            if known is None or entry.sha256:
                raise
            what = f"{error.message} (its sha256 was recorded at the first download)"
            raise WeightsError(
                what, f"if the new file is right, remove {str(registry.store() / CHECKSUMS)!r}"
            ) from None
        target = registry.store() / entry.name
        if keep:
            shutil.move(file, target / file.name)
        shutil.rmtree(folder, ignore_errors=True)
        return Installed(entry.name, target, read_record(target))


def recorded_sha256(entry: Entry) -> str | None:
    """Return the checksum recorded at an entry's first download, or None; it is recorded if none was published."""
    return read_checksums(registry.store()).get(entry.name, {}).get("sha256")


def import_file(path: Path, name: str | None = None, pkl: Path | None = None, dataset: Path | None = None) -> Installed:
    """Install weights that exist on this machine: a file, an nnU-Net v2 model folder, or a zip of one.

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
    from stunet.models.archive import is_packed_model, unpack

    if not _exists(path):
        raise WeightsError(f"no file {str(path)[:200]!r}", "check the path")
    if path.is_dir() or not is_packed_model(path):
        return _import(path, path, name, pkl, dataset)
    folder = registry.store() / ".downloads" / f"import-{os.getpid()}"
    with _locked(folder.name):
        _remove_dead_imports(folder.parent)
        try:
            return _import(unpack(path, folder), path, name, pkl, dataset)
        except (WeightsError, DataError) as error:
            # The user knows the archive, not the folder that it was unpacked to.
            raise type(error)(error.message.replace(str(folder), str(path)), error.hint) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_dead_imports(downloads: Path) -> None:
    """Remove what killed imports unpacked; a running one holds a lock with the folder's name."""
    for part in (*downloads.glob("import-*"), *downloads.glob(".part-import-*")):
        if not is_held(_lock_of(part.name.removeprefix(".part-"))):
            shutil.rmtree(part, ignore_errors=True)


def _import(path: Path, origin: Path, name: str | None, pkl: Path | None, dataset: Path | None) -> Installed:
    from stunet.weights.reading import read_weights

    digest = sha256_of(origin) if origin.is_file() else None
    entry = registry.look_up(name) if name else _recognised(read_weights(path), origin, digest)
    chosen = entry.name if entry else name
    if not chosen:
        raise WeightsError(f"{str(origin)!r} is not a model that the registry knows", "give it a name: --name NAME")
    registry.check_name(chosen)
    with _locked(chosen):
        if model := find_installed(chosen):
            hint = f"remove {str(model.folder)!r}, or give another --name"
            raise DataError(f"{model.name} is already installed", hint)
        return _install(chosen, entry, path, {"source": str(origin.resolve()), "sha256": digest}, pkl, dataset)


def _recognised(weights: "Weights", path: Path, digest: str | None) -> Entry | None:
    """Return the entry of unnamed weights, if any: by checksum, by what the file says, or by network and file name."""
    from stunet.models.folder import contradiction

    entries = registry.entries()
    by_digest = [entry for entry in entries if digest and digest in (entry.sha256, recorded_sha256(entry))]
    # What the file itself says; _install() checks that it does not contradict the entry.
    by_file = [entry for entry in entries if entry.name == weights.entry]
    named = [entry for entry in entries if entry.filename == path.name != V1_NAME]
    alike = [entry for entry in named if not contradiction(weights, entry)]
    found = by_digest or by_file or alike
    if len(found) > 1:
        raise WeightsError(f"{str(path)!r} may be {' or '.join(e.name for e in found)}", f"--name {found[0].name}")
    if not found:
        return None
    known = found[0].sha256 or recorded_sha256(found[0])
    # A name alone proves nothing if a checksum is known and differs.
    if found is alike and known not in (None, digest):
        raise WeightsError(
            f"{str(path)!r} is named like {found[0].name}, but its sha256 is {digest}, not {known}",
            f"--name {found[0].name} if it is that model nevertheless, or another --name",
        )
    return found[0]


def _install(
    name: str,
    entry: Entry | None,
    path: Path,
    origin: Mapping[str, Any],
    pkl: Path | None = None,
    dataset: Path | None = None,
) -> Installed:
    """Create a model's folder, with the original file if neither the weights nor their entry have plans."""
    from stunet.models.folder import check_entry, check_segments, describe, read_folds, with_plans, write_model_folder
    from stunet.weights.checkpoints import check_finite

    folds = read_folds(path)
    for weights in folds.values():
        check_segments(weights)
        check_finite(weights.tensors, weights.path)
    if dataset:
        content = read(dataset, CLASSES, "give the dataset.json of the training")
        folds = {fold: replace(weights, dataset=content) for fold, weights in folds.items()}
    if pkl:
        folds = {fold: with_plans(weights, pkl, entry, name) for fold, weights in folds.items()}
    for weights in folds.values():
        check_entry(weights, entry)
    target, record = registry.store() / name, {**origin, "date": datetime.now(UTC).date().isoformat()}
    if entry and entry.missing and not any(weights.strides for weights in folds.values()):
        with atomic_folder(target) as part:
            shutil.copyfile(path, part / path.name)
            more = {"entry": entry.name, "weights": path.name, "files": {path.name: origin["sha256"]}}
            write_json(part / RECORD, record | more)
    else:
        write_model_folder(target, {fold: describe(weights, entry) for fold, weights in folds.items()}, record)
    return Installed(name, target, read_record(target))


def _remember(entry: Entry, digest: str) -> None:
    with _locked("checksums"):
        known, today = read_checksums(registry.store()), datetime.now(UTC).date().isoformat()
        write_json(registry.store() / CHECKSUMS, known | {entry.name: {"sha256": digest, "date": today}})


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Hold a lock of the store; wait, with a message, while another process holds it."""
    lock = exclusive_lock(_lock_of(name), f"another process is busy with {name}", "", wait=_warn_of_waiting)
    # Translate only errors of taking the lock; those of the block pass through.
    with ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except OSError as error:
            raise DataError(
                f"cannot write into the folder of models {str(registry.store())!r}: {error.strerror}",
                "choose another one: export STUNET_MODELS=/path/to/models",
            ) from None
        yield


def _lock_of(name: str) -> Path:
    return registry.store() / ".locks" / f"{name}.lock"


def _warn_of_waiting(what: str) -> None:
    log.warning("%s: waiting for it", what)
