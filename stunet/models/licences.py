"""Say under which licence weights are, before they are downloaded, and have licences accepted that forbid some use."""

import logging
from datetime import UTC, datetime

from stunet import kinds
from stunet.errors import WeightsError
from stunet.files import write_json
from stunet.models import registry
from stunet.models.entry import Entry
from stunet.models.locks import locked
from stunet.models.record import LICENCES

log = logging.getLogger("stunet")


def check_licence(entry: Entry, accepted: bool = False) -> None:
    """Show the licence of an entry and what to cite; one that forbids commercial use has to be accepted, once.

    Args:
        entry: What is about to be downloaded.
        accepted: The user accepts its licence now; the store remembers it.

    Raises:
        WeightsError: It forbids commercial use, and was accepted neither now nor before.
        DataError: The store cannot be written, or its record of licences is broken.
    """
    cited = f"; please cite {entry.citation}" if entry.citation else ""
    log.warning("%s: licence %s%s", entry.name, entry.licence or "not stated by its publisher", cited)
    if not entry.non_commercial or is_accepted(entry):
        return
    if not accepted:
        raise WeightsError(
            f"{entry.name} may not be used commercially ({entry.licence}), and nobody accepted this licence here",
            f"stunet_models download {entry.name} --accept_licence, if you accept it",
        )
    with locked("licences"):
        today = datetime.now(UTC).date().isoformat()
        known = _accepted() | {entry.name: {"licence": entry.licence, "date": today}}
        write_json(registry.store() / LICENCES, known)


def is_accepted(entry: Entry) -> bool:
    """Return whether the licence of an entry was accepted in this store, in its present words."""
    return _accepted().get(entry.name, {}).get("licence") == entry.licence


def _accepted() -> dict[str, dict[str, str]]:
    file = registry.store() / LICENCES
    known: dict[str, dict[str, str]] = {}
    if file.is_file():
        known = kinds.read(file, kinds.LICENCES, "remove it: licences are asked for again")
    return known
