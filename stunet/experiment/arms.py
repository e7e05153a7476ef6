"""The trainings (arms) of a comparison of pre-trained weights: read them from a TOML file, turn each into a command.

cli/experiment.py shows such a file, runs.py runs the arms, summary.py compares them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from stunet import names, schema
from stunet.errors import DataError, UsageError
from stunet.plans import settings
from stunet.plans.plan import ENCODER_ALONE, TRANSFERS
from stunet.runs.training import TrainingRequest
from stunet.schema import Check, Wrong, anything, check, dict_of, either, integer, list_of, one_of, read_toml
from stunet.sizes import SIZES
from stunet.trainers.finetune import strategies

SCRATCH = "none"
HEAD_MODES = ("slice", "reset")  # models with a reused head have other labels, but arms are compared label by label


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The content of the file; every list is one dimension of the comparison.

    Args:
        dataset: Number or name.
        weights: What trainings start from, by title: nothing, one, or one for each encoder of the network.
        strategies: Names from trainers/finetune/strategies.py; from scratch, those with the same schedule and depth are
            merged.
        cases: Numbers of labelled training cases, or "all".
        seeds: Seeds for the choice of cases, the initial weights and the batches.
        heads: What happens to the pre-trained head; if empty, stunet_train chooses.
        transfers: What of the weights is taken; if empty, stunet_train chooses. Of several weights only the encoders
            are taken, whatever heads and transfers say.
        configuration: Key of the plans' configurations.
        fold: The fold whose validation cases are held out.
        plans: Name of the plans; None: those of the dataset.
        size: Key of SIZES; None: that of the weights, and from scratch that of the plans.
        set: Values for every arm (plans/settings.py).
        set_scratch: Values for the arms without weights; they override `set`.
        set_pretrained: Values for the arms with weights; they override `set`.
    """

    dataset: int | str
    weights: Mapping[str, tuple[str, ...]]
    strategies: tuple[str, ...]
    cases: tuple[int | str, ...]
    seeds: tuple[int, ...]
    heads: tuple[str, ...] = ()
    transfers: tuple[str, ...] = ()
    configuration: str = "3d_fullres"
    fold: int = 0
    plans: str | None = None
    size: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    set_scratch: Mapping[str, Any] = field(default_factory=dict)
    set_pretrained: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training. `title` names its weights in tables; `head` and `transfer` are None if stunet_train chooses.

    `weights` is empty from scratch, and has one entry for each encoder of the network otherwise.
    """

    title: str
    weights: tuple[str, ...]
    strategy: str
    head: str | None
    cases: int | str
    seed: int
    transfer: str | None = None

    @property
    def line(self) -> str:
        """What is compared across the numbers of cases: weights, strategy, head, and what is transferred."""
        return " ".join(filter(None, (self.title, self.strategy, self.head, self.transfer)))

    @property
    def name(self) -> str:
        """The full name, for messages and file names."""
        return re.sub(r"[^\w.-]+", "-", f"{self.line} {self.cases} cases seed {self.seed}")


def read_experiment(path: Path) -> Experiment:
    """Read the experiment from a TOML file; weights that are files are relative to that file's folder.

    Raises:
        DataError: The file is missing or not TOML, or a key is unknown, missing or has an invalid value.
    """
    where = f"experiment {str(path)!r}"
    content = read_toml(path)
    check(content, schema.table({key: _KEYS[key] for key in _REQUIRED}, _KEYS), where, "see stunet_experiment --help")
    try:
        return _checked(content, path.parent)
    except UsageError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from None


def _checked(content: Mapping[str, Any], folder: Path) -> Experiment:
    """Build the experiment, with lists as tuples, values converted to their types, and located weights."""
    for name in content["strategies"]:
        strategies.find(name)
    if ENCODER_ALONE in content.get("transfers", ()) and "slice" in content.get("heads", ()):
        raise UsageError("heads 'slice' takes pre-trained rows, and transfers 'encoder' none", "leave heads out")
    found: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    found["weights"] = _located(content["weights"], folder)
    for table in ("set", "set_scratch", "set_pretrained"):
        found[table] = {key: settings.check_value(key, value) for key, value in content.get(table, {}).items()}
        for key, owner in (("seed", "seeds"), ("num_cases", "cases")):
            if key in found[table]:
                raise UsageError(f"{key} in [{table}] would be the same for all arms", f"{owner} = [...]")
    return Experiment(**found)


def _located(weights: Sequence[str] | Mapping[str, str | Sequence[str]], folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the weights by title, with files located in the folder; the title of a list's item is its file name."""
    pairs = weights.items() if isinstance(weights, Mapping) else [(Path(text).name, text) for text in weights]
    found: dict[str, tuple[str, ...]] = {}
    for title, given in pairs:
        title = "scratch" if title == given == SCRATCH else title
        if title in found:
            raise UsageError(f"two weights are called {title!r}", 'weights = { one = "...", other = "..." }')
        texts = (given,) if isinstance(given, str) else given
        if SCRATCH in texts and given != SCRATCH:
            raise UsageError(f"{title!r} has {SCRATCH!r} among its weights", f'{title} = "{SCRATCH}", or leave it out')
        places = tuple(_place(text, folder) for text in texts if text != SCRATCH)
        if len(set(places)) < len(places):
            raise UsageError(f"{title!r} names the same weights twice", "other weights for each encoder")
        for other, same in found.items():
            if set(same) == set(places):  # in another order they are those of other encoders, which changes nothing
                raise UsageError(f"{other!r} and {title!r} are the same weights {given!r}", "leave one of them out")
        found[title] = places
    return found


def _place(text: str, folder: Path) -> str:
    # A file takes precedence over a model of the same name.
    return str((folder / text).resolve()) if (folder / text).exists() else text


def arms(experiment: Experiment) -> list[Arm]:
    """Return all arms, the first seed of each before the second of any: halfway through there is a comparison."""
    scratch = tuple(dict.fromkeys(map(from_scratch, experiment.strategies)))
    found = []
    for seed, cases, (title, weights) in product(experiment.seeds, experiment.cases, experiment.weights.items()):
        one = len(weights) == 1
        ways = experiment.strategies if weights else scratch
        heads, parts = ((one and given) or (None,) for given in (experiment.heads, experiment.transfers))
        for way, head, part in product(ways, heads, parts):
            found.append(
                Arm(title=title, weights=weights, strategy=way, head=head, transfer=part, cases=cases, seed=seed)
            )
    return found


def from_scratch(strategy: str) -> str:
    """Return the first strategy that is equivalent from scratch, where everything trains: same schedule and depth."""

    def training(name: str) -> tuple[float, float, list[tuple[float, float, float]]]:
        found = strategies.find(name)
        return found.depth, found.scratch_lr, [(phase.end, phase.ramp, phase.power) for phase in found.phases]

    return next(name for name in strategies.STRATEGIES if training(name) == training(strategy))


def request(experiment: Experiment, arm: Arm) -> TrainingRequest:
    """Return the training of an arm, without what depends on the machine."""
    given = {**experiment.set, **(experiment.set_pretrained if arm.weights else experiment.set_scratch)}
    if arm.cases != "all":
        given["num_cases"] = arm.cases
    # The same seed chooses the same cases in every arm; those of 4 are among those of 8 (folds.choose_cases).
    given["seed"] = arm.seed
    return TrainingRequest(
        dataset=experiment.dataset,
        configuration=experiment.configuration,
        fold=experiment.fold,
        plans=experiment.plans,
        size=experiment.size,
        pretrained=arm.weights or None,
        finetune=arm.strategy,
        head=arm.head,
        transfer=arm.transfer,
        set=given,
    )


def command(request: TrainingRequest) -> list[str]:
    """Return the command that trains the same: the key of an arm in arms.json, and what a user can run alone."""
    options = [
        ("-p", request.plans),
        ("--size", request.size),
        *(("--pretrained", weights) for weights in request.sources),
        ("--finetune", request.finetune),
        ("--head", request.head),
        ("--transfer", request.transfer),
    ]
    return [
        *("stunet_train", str(request.dataset), request.configuration, str(request.fold)),
        *(word for option, value in options if value is not None for word in (option, str(value))),
        # As JSON in one word of a command line: true for True, and lists without spaces.
        *("--set", *(f"{key}={str(value).lower().replace(' ', '')}" for key, value in request.set.items())),
    ]


def _once(kind: Check) -> Check:
    """Return a check for a list that is not empty and has no value twice."""

    def found(value: Any, where: str) -> None:
        list_of(kind, least=1)(value, where)
        if len(set(value)) < len(value):
            raise Wrong(where, f"{value!r} has a value twice")

    return found


_WEIGHTS = either(
    f'a list like ["{SCRATCH}", "STU-Net-B"], or a table',
    _once(schema.text),
    dict_of(either("text, or a list of it", schema.text, _once(schema.text)), least=1),
)
_KEYS: dict[str, Check] = {
    "dataset": either("a number or a name", integer(0), names.name),
    "weights": _WEIGHTS,
    "strategies": _once(schema.text),
    "cases": _once(either('a number or "all"', integer(1), one_of("all"))),
    "seeds": _once(integer(0, settings.LARGEST)),
    "heads": _once(one_of(*HEAD_MODES)),
    "transfers": _once(one_of(*TRANSFERS)),
    "configuration": names.name,
    "fold": integer(0),  # with "all", no case would be held out
    "plans": names.name,
    "size": one_of(*SIZES),
    **dict.fromkeys(("set", "set_scratch", "set_pretrained"), dict_of(anything)),
}
_REQUIRED = [f.name for f in fields(Experiment) if f.default is MISSING and f.default_factory is MISSING]
