"""A case's features in a file, with what they were made from: CASE.safetensors; and all cases in one table.

The tensors stage_0, stage_1, ... are (rows, C) in float32; the metadata, JSON under the key "stunet", say what rows are
of. numpy reads the files as well: `safetensors.numpy.load_file`.
"""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.numpy import save_file
from safetensors.torch import load_file

from stunet.errors import DataError
from stunet.files import atomic_write
from stunet.inference.features.model import Features, Row
from stunet.names import csv_cells

ENDING = ".safetensors"
VERSION = 1


@dataclass(frozen=True)
class StoredFeatures:
    """The features of a case.

    Attributes:
        case: Its name.
        features: By stage.
        made_from: What determines them: the model, the options and the files.
    """

    case: str
    features: Features
    made_from: Mapping[str, Any]


def write_features(path: Path, stored: StoredFeatures) -> None:
    """Write a case's features; the file appears whole or not at all."""
    content = {
        "version": VERSION,
        "case": stored.case,
        "rows": [asdict(row) for row in stored.features.rows],
        "made_from": stored.made_from,
    }
    tensors = {f"stage_{stage}": values.numpy() for stage, values in stored.features.items()}
    with atomic_write(path) as part:
        save_file(tensors, part, {"stunet": json.dumps(content)})


def read_features(path: Path) -> StoredFeatures:
    """Read what write_features() wrote.

    Raises:
        DataError: It is another kind of file, or damaged.
    """
    try:
        with safetensors.safe_open(path, "np") as file:
            content = json.loads((file.metadata() or {})["stunet"])
        rows = [Row(**row) for row in content["rows"]]
        stages = {int(name.removeprefix("stage_")): values for name, values in sorted(load_file(path).items())}
        if content["version"] != VERSION or any(len(values) != len(rows) for values in stages.values()):
            raise ValueError("rows and tensors of different lengths, or another version")
        features = Features(rows, dict(sorted(stages.items())))
        return StoredFeatures(content["case"], features, content["made_from"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        what = f"{str(path)!r} does not hold features of stunet, or is damaged: {type(error).__name__} {error}"
        raise DataError(what, "remove it, and run stunet_features again") from None


def write_table(path: Path, cases: Iterable[StoredFeatures], subjects: Mapping[str, str]) -> None:
    """Write one line per row of every case: what it is of, its subject, and a column per stage and channel."""
    columns: list[str] = []
    with atomic_write(path) as part, part.open("w", newline="") as stream:
        table = csv.writer(stream)
        for stored in cases:
            features = stored.features
            if not columns:
                widths = {stage: values.shape[1] for stage, values in features.items()}
                columns = [f"stage{stage}_{channel}" for stage, width in widths.items() for channel in range(width)]
                table.writerow(["case", "subject", "pool", "name", "voxels", *columns])
            for number, row in enumerate(features.rows):
                values = [f"{value:.7g}" for stage in features.values() for value in stage[number].tolist()]
                of = csv_cells([stored.case, subjects[stored.case], row.pool, row.name])
                table.writerow([*of, row.voxels, *values])
