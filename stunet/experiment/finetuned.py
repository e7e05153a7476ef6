"""What the candidates of a ranking reached in an experiment, for ranking/judging.py.

A candidate is an arm's weights: its name is the arm's title, or leads to the same weights.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stunet.errors import DataError, UsageError, first_few
from stunet.experiment.arms import Arm, arm_of, arms, command, from_scratch, read_experiment, request
from stunet.experiment.runs import DONE, Record, read_dice
from stunet.kinds import ARMS, read
from stunet.ranking.formats import BySeed

HINT = "the experiment's .toml file in place of its folder"


def read_finetuned(
    path: Path, known: Mapping[str, str], way: str | None = None, cases: str | None = None
) -> tuple[dict[str, dict[str, BySeed]], list[str]]:
    """Return the Dice of an experiment's finished arms by target, candidate, seed, case and class, and notes.

    Args:
        path: The folder of stunet_experiment, or its .toml file with the folder beside it.
        known: Names of candidates by what an arm may be called: title, path or name of the weights.
        way: Strategy, head and transfer of the arms that count, such as "full slice"; needed if there are several.
        cases: Number of labelled cases of these, or "all"; needed if there are several.

    Raises:
        DataError: There is no finished arm, or two for the same candidate and seed.
        UsageError: `way` or `cases` is needed, or none of those that are there.
    """
    folder = path.with_suffix("") if path.suffix == ".toml" else path
    todo = _commands(path, folder, known)
    record = Record(folder)
    done = {arm: words for arm, words in todo.items() if record.state(words) == DONE}
    if not done:
        raise DataError(f"no arm is done in {str(folder)!r}", "stunet_experiment, which goes on where it stopped")
    notes = [f"{folder.name}: {len(done)} of {len(todo)} arms are done"] if len(done) < len(todo) else []
    number = _chosen("--cases", cases, [str(arm.cases) for arm in done], folder)
    done = {arm: words for arm, words in done.items() if str(arm.cases) == number}
    chosen = _chosen("--arms", way, [_way(arm) for arm in done if arm.weights], folder)
    found: dict[str, dict[str, dict[str, Mapping[str, Mapping[str, float]]]]] = {}
    for arm, words in done.items():
        # From scratch there is nothing to transfer, and strategies with the same schedule are one.
        if (_way(arm) == chosen) if arm.weights else (not chosen or arm.strategy == from_scratch(chosen.split()[0])):
            summary = record.summary(words)
            by_seed = found.setdefault(summary.absolute().parents[3].name, {}).setdefault(arm.title, {})
            if str(arm.seed) in by_seed:
                raise DataError(f"{str(folder)!r} has two trainings of {arm.title!r} with seed {arm.seed}", HINT)
            by_seed[str(arm.seed)] = read_dice(summary)
    return {target: dict(values) for target, values in found.items()}, notes


def _commands(path: Path, folder: Path, known: Mapping[str, str]) -> dict[Arm, Sequence[str]]:
    """Return the command of each arm, whose title is the name of the candidate."""
    if path.suffix == ".toml":
        experiment = read_experiment(path)
        listed = [(arm, arm.name, command(request(experiment, arm))) for arm in arms(experiment)]
    else:
        listed = []
        for text, about in read(folder / "arms.json", ARMS).items():
            try:
                words = shlex.split(text)
                listed.append((arm_of(words, about["arm"]), about["arm"], words))
            except (ValueError, KeyError) as error:
                what = f"{str(folder / 'arms.json')!r}: {text[:60]!r} is not a command of stunet_experiment: {error}"
                raise DataError(what, HINT) from None
    found: dict[Arm, Sequence[str]] = {}
    for arm, name, words in listed:
        # Titles in names of arms have lost what cannot be in a file name.
        same = [given for text, given in known.items() if replace(arm, title=text).name == name]
        same += [known[weights] for weights in arm.weights if weights in known and len(arm.weights) == 1]
        candidate = replace(arm, title=same[0]) if same else arm
        if candidate in found:
            raise DataError(f"{str(folder)!r} has two trainings of {name}", HINT)
        found[candidate] = words
    return found


def _way(arm: Arm) -> str:
    return " ".join(filter(None, (arm.strategy, arm.head, arm.transfer)))


def _chosen(option: str, given: str | None, there: Sequence[str], folder: Path) -> str:
    """Return the value that counts: the given one, or the only one there is."""
    values = list(dict.fromkeys(there))
    listed = first_few([repr(value) for value in values], 6, ", ")
    if given is not None and given not in values:
        raise UsageError(f"{option} {given}: arms of {str(folder)!r} have {listed}", f"{option} {values[0]}")
    if given is None and len(values) > 1:
        raise UsageError(f"arms of {str(folder)!r} differ: {listed}", f"{option} {shlex.quote(values[0])}")
    return given or (values[0] if values else "")
