"""Fine-tune the best models of a ranking: an experiment with them, and training from scratch beside."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stunet import workspace
from stunet.experiment.arms import SCRATCH, Experiment
from stunet.experiment.checks import check_experiment
from stunet.files import atomic_write
from stunet.plans.files import plan_path, read_dataset_plan
from stunet.runs.listener import Listener
from stunet.runs.ranking import RankingResult

STRATEGY = "ramp"  # as stunet_train fine-tunes by default


def check_finetuning(
    dataset: int | str,
    fold: int | None,
    configuration: str | None,
    plans: str | None,
    settings: Mapping[str, Any],
    listener: Listener,
) -> str:
    """Check, before hours of ranking, that the dataset is planned and preprocessed; return the configuration.

    Args:
        dataset: Number or name.
        fold, configuration, plans, settings: As of stunet_train; without a configuration, 3d_fullres or else 2d.
        listener: Is warned.

    Raises:
        DataError: It is not.
    """
    known = read_dataset_plan(plan_path(workspace.dataset_name(dataset), plans)).configurations
    chosen = configuration or ("2d" if "2d" in known and "3d_fullres" not in known else "3d_fullres")
    arms = Experiment(
        dataset=dataset,
        weights={SCRATCH: ()},
        strategies=(STRATEGY,),
        cases=("all",),
        seeds=(0,),
        configuration=chosen,
        fold=fold or 0,
        plans=plans,
        set=settings,
    )
    check_experiment(arms, {}, listener)
    return chosen


def write_finetuning(
    result: RankingResult,
    number: int,
    configuration: str,
    plans: str | None,
    settings: Mapping[str, Any],
) -> Path:
    """Write the experiment that fine-tunes the best candidates, and return its file: finetune.toml beside rank.json.

    Written again with other candidates, it keeps what is done: its folder knows trainings by their commands.

    Args:
        result: The ranking.
        number: How many of the best.
        configuration, plans, settings: As of stunet_train.
    """
    outcome = result.outcome
    weights = {name: outcome.candidates[name].weights for name in outcome.order[:number]}
    scratch = "scratch"
    while scratch in weights:
        scratch += "_"
    lines = [
        f"# stunet_rank --finetune {number}: the best by {outcome.first}, and training from scratch.",
        f"dataset = {_text(result.dataset)}",
        f"fold = {result.fold}",
        f'strategies = ["{STRATEGY}"]',
        'cases = ["all"]',
        "seeds = [0]",
        f"configuration = {_text(configuration)}",
        *([f"plans = {_text(plans)}"] if plans else []),
        "",
        "[weights]",
        f"{_text(scratch)} = {_text(SCRATCH)}",
        *(f"{_text(name)} = {_text(text)}" for name, text in weights.items()),
        "",
        "[set]",
        *(f"{name} = {json.dumps(value)}" for name, value in settings.items()),
    ]
    path = result.folder / "finetune.toml"
    with atomic_write(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _text(value: str) -> str:
    """Return a string of TOML: JSON's, but for DEL and for letters beyond 16 bits, which JSON escapes as two."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
