"""Fine-tune the best models of a ranking: an experiment with them, and training from scratch beside."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stunet.experiment.arms import SCRATCH
from stunet.files import atomic_write
from stunet.runs.ranking import RankingResult

STRATEGY = "ramp"  # as stunet_train fine-tunes by default


def write_finetuning(
    result: RankingResult,
    number: int,
    fold: int,
    configuration: str | None,
    plans: str | None,
    settings: Mapping[str, Any],
) -> Path:
    """Write the experiment that fine-tunes the best candidates, and return its file: finetune.toml beside rank.json.

    Written again with other candidates, it keeps what is done: its folder knows trainings by their commands.

    Args:
        result: The ranking.
        number: How many of the best.
        fold: Whose validation cases compare them.
        configuration, plans, settings: As of stunet_train.
    """
    outcome = result.outcome
    weights = {name: outcome.candidates[name].weights for name in outcome.order[:number]}
    lines = [
        f"# stunet_rank --finetune {number}: the best by {outcome.first}, and training from scratch.",
        f"dataset = {json.dumps(result.dataset)}",
        f"fold = {fold}",
        f'strategies = ["{STRATEGY}"]',
        'cases = ["all"]',
        "seeds = [0]",
        *([f"configuration = {json.dumps(configuration)}"] if configuration else []),
        *([f"plans = {json.dumps(plans)}"] if plans else []),
        "",
        "[weights]",
        f'{SCRATCH} = "{SCRATCH}"',
        *(f"{json.dumps(name)} = {json.dumps(text)}" for name, text in weights.items()),
        "",
        "[set]",
        *(f"{name} = {json.dumps(value)}" for name, value in settings.items()),
    ]
    path = result.folder / "finetune.toml"
    with atomic_write(path) as part:
        part.write_text("\n".join(lines) + "\n")
    return path
