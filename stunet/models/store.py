"""Find models by name, and download them into the store.

The store is a folder ($STUNET_MODELS). Each model in it is an nnU-Net v2 model folder under its name; weights that
cannot predict, for want of plans or a head, are kept there as the original file. Checksums of first downloads stay in
checksums.json. Only reading weights needs torch. registry.py has the entries, installing.py makes the folders.
"""

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

from stunet.errors import DataError, WeightsError, closest
from stunet.files import sha256_of, write_json
from stunet.models import registry
from stunet.models.entry import Entry
from stunet.models.locks import locked
from stunet.models.record import CHECKSUMS, RECORD, read_checksums, read_record
from stunet.weights.folders import model_folder

if TYPE_CHECKING:
    from stunet.models.download import Progress

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


def find_model(
    text: str, offline: bool = False, on_bytes: "Progress | None" = None, accept_licence: bool = False
) -> Path:
    """Return the path for read_weights that `text` names: an installed model, one to be downloaded first, or a path.

    Args:
        text: Name of a model, or a path; the folder of a dataset with one model stands for that model.
        offline: Forbid the download.
        on_bytes: Called with its progress.
        accept_licence: As in download().

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
            if text and exists(path):
                return model_folder(path)
        if parts := registry.parts_of(text):
            raise registry.several(parts)
        names = [entry.name for entry in registry.entries()] + [model.name for model in installed()]
        raise WeightsError(f"no model or file {text[:200]!r}{closest(text[:200], names)}", "stunet_models list")
    if offline:
        raise WeightsError(
            f"{entry.name} is not installed in {str(registry.store())!r}, and nothing may be downloaded",
            f"stunet_models download {entry.name} where there is a network, then copy its folder to this store",
        )
    return download(entry, on_bytes=on_bytes, accept_licence=accept_licence).path


def exists(path: Path) -> bool:
    """Return whether there is such a file or folder; False for what cannot be a path."""
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False


def download(
    entry: Entry,
    keep: bool = False,
    on_bytes: "Progress | None" = None,
    wait_s: float = 1.0,
    accept_licence: bool = False,
) -> Installed:
    """Install an entry of the registry; a second process that asks for the same one waits, and finds it installed.

    Args:
        entry: From registry.find().
        keep: Keep the file as published in the model's folder as well.
        on_bytes: Called with bytes so far and in total.
        wait_s: Seconds before a second attempt.
        accept_licence: The user accepts the licence, where it asks for that (licences.py).

    Raises:
        WeightsError: No URL is known, none works, the file differs from the one published or downloaded before, or its
            licence was not accepted.
        DataError: The disk is full, or the store is not writable.
    """
    from stunet.models.download import fetch
    from stunet.models.installing import install
    from stunet.models.licences import check_licence

    if not entry.sources:
        raise _by_hand(entry)
    with locked(entry.name):
        if model := find_installed(entry.name):  # by a process that this one waited for
            return model
        check_licence(entry, accept_licence)
        folder = registry.store() / ".downloads" / entry.name
        folder.mkdir(parents=True, exist_ok=True)
        file, known = folder / str(entry.filename), entry.sha256 or recorded_sha256(entry)

        def get_companions(source: str) -> None:
            # First, as they are small: without them what is large would have come in vain.
            for name in entry.companions:
                fetch([urljoin(source, name)], folder / name, wait_s=wait_s)

        def accept(source: str | None) -> None:
            digest = known or sha256_of(file)
            install(entry.name, entry, file, {"source": source, "sha256": digest})
            if not entry.sha256:
                _remember(entry, digest)

        companions = [folder / name for name in entry.companions]
        # Left by an interrupted run.
        if all(path.is_file() for path in (file, *companions)) and known in (None, sha256_of(file)):
            with suppress(WeightsError):
                accept(None)
        try:
            if not find_installed(entry.name):
                fetch(
                    entry.sources,
                    file,
                    sha256=known,
                    size=entry.bytes,
                    on_bytes=on_bytes,
                    before=get_companions,
                    accept=accept,
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
        if keep and not (target / file.name).exists():
            shutil.move(file, target / file.name)
        shutil.rmtree(folder, ignore_errors=True)
        return Installed(entry.name, target, read_record(target))


def _by_hand(entry: Entry) -> WeightsError:
    """Return the error for what only a person can download."""
    file = entry.filename or "the weights"
    if entry.size:
        file += " and its .pkl"
    elif entry.companions:
        file += f" and {' and '.join(entry.companions)}, into one folder,"
    return WeightsError(
        f"{entry.name} cannot be downloaded automatically: {', '.join(entry.pages) or 'no address is known'}",
        f"download {file} with a browser, then: stunet_models import {entry.filename or 'FOLDER'} --name {entry.name}",
    )


def recorded_sha256(entry: Entry) -> str | None:
    """Return the checksum recorded at an entry's first download, or None; it is recorded if none was published."""
    return read_checksums(registry.store()).get(entry.name, {}).get("sha256")


def _remember(entry: Entry, digest: str) -> None:
    with locked("checksums"):
        known, today = read_checksums(registry.store()), datetime.now(UTC).date().isoformat()
        write_json(registry.store() / CHECKSUMS, known | {entry.name: {"sha256": digest, "date": today}})
