"""Rank pre-trained models for a labelled dataset: which models, which cases, their features, their scores.

ranking/ has all that; a candidate that fails does not stop the others. torch is imported once the dataset is known to
be usable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stunet import workspace
from stunet.datasets import RawCase, list_cases, require_labels
from stunet.errors import DataError, StunetError, UsageError, first_few
from stunet.folds import FILE as SPLITS
from stunet.folds import check_fold, read_folds
from stunet.kinds import read_dataset_json
from stunet.ranking.sample import DECODER, ENCODER
from stunet.runs.devices import choose_device, set_threads
from stunet.runs.fetching import fetch_model
from stunet.runs.listener import Listener

if TYPE_CHECKING:
    from stunet.ranking.bank import Bank
    from stunet.ranking.cases import Target
    from stunet.ranking.outcome import Candidate, Outcome, Result
    from stunet.ranking.reading import Place
    from stunet.ranking.sample import Sample
    from stunet.ranking.scores import Prepared, Score

ALL_INSTALLED = "all-installed"
AUTO = "auto"
LAYERS = (AUTO, ENCODER, DECODER)
FOLDER = "ranking"  # beside the dataset's models


@dataclass(frozen=True, kw_only=True)
class RankingRequest:
    """A ranking: the options of stunet_rank, with their defaults.

    Args:
        dataset: Number or name of a raw dataset with labels.
        models: Names of `stunet_models list`, files of weights, model folders, TITLE=PATH, or "all-installed".
        scores: Names of ranking/scores; the first one decides. Empty: ccfv and static.
        cases: How many labelled cases are looked at; they are chosen to span the dataset.
        fold: Only training cases of this fold of the dataset's splits; None: all.
        points: Of each class in a case; None: 1000, or fewer where classes are many.
        layers: "encoder" or "decoder": where features are read; "auto": the decoder, if all candidates have one.
        seed: Of the points and of the draws of cases.
        output: Folder of the bank and of rank.json; None: DATASET/ranking in nnUNet_results.
        step_size: Step from window to window over their size, above 0 and at most 1.
        precision: Of the networks, as in prediction.
        device: "cuda", "cpu" or "mps"; None: cuda where there is one, else cpu.
        threads: Threads on the CPU; None: one per physical core.
        accept_licence: Accept licences of weights that have to be downloaded and may not be used commercially.
    """

    dataset: int | str
    models: Sequence[str | Path]
    scores: Sequence[str] = ()
    cases: int = 20
    fold: int | None = None
    points: int | None = None
    layers: str = AUTO
    seed: int = 0
    output: Path | None = None
    step_size: float = 0.5
    precision: str = "auto"
    device: str | None = None
    threads: int | None = None
    accept_licence: bool = False


@dataclass(frozen=True, kw_only=True)
class RankingResult:
    """A ranking that is written.

    Attributes:
        dataset: Full name.
        folder: With rank.json, rank.csv, rank.png and the feature bank.
        files: The first three.
        outcome: What was found.
        errors: The errors of candidates that could not be read, by name.
        configuration: That would be fine-tuned: 3d_fullres, or 2d of images of one slice.
        fold: That would be, whose validation cases were not looked at if it was asked for.
    """

    dataset: str
    folder: Path
    files: Sequence[Path]
    outcome: "Outcome"
    errors: Mapping[str, StunetError]
    configuration: str = "3d_fullres"
    fold: int = 0

    @property
    def best(self) -> str:
        """What `pretrained` of a training takes: the weights of the best candidate."""
        return self.outcome.best.weights


@dataclass(frozen=True)
class _Read:
    """A candidate whose features are in the bank."""

    candidate: "Candidate"
    folder: Path
    made_from: Mapping[str, Mapping[str, Any]]


def rank(request: RankingRequest, listener: Listener | None = None) -> RankingResult:
    """Rank candidates. One that fails does not stop the others, whose ranking is written without it.

    Raises:
        UsageError: Options are out of range, or there is no such score.
        DataError: The dataset has no labels, too few cases, or no class in two of them; or no candidate has a score.
        StunetError: All candidates failed; it is the first one's error.
    """
    listener = listener or Listener()
    _check(request)
    from stunet.ranking.scores import DEFAULT, find
    from stunet.ranking.scores.base import FACTS

    scores = [find(name) for name in dict.fromkeys(request.scores or (DEFAULT, "static"))]
    named = _named(request.models)
    dataset = workspace.dataset_name(request.dataset)
    target, cases = _target(dataset, request)
    folder = request.output or workspace.folder("nnUNet_results") / dataset / FOLDER
    if folder.is_file():
        raise UsageError(f"-o {str(folder)!r} is a file", "a folder")
    from stunet.ranking.bank import Bank

    bank = Bank(folder / "bank")
    places, notes = _places(target, cases, bank, request, listener)
    set_threads(request.threads)
    candidates, read, errors = _read(
        named, places, target, bank, request, listener, any(score.needs != FACTS for score in scores)
    )
    if not read:
        raise next(iter(errors.values()))
    outcome = _score(scores, candidates, read, places, target, dataset, request, listener)
    outcome = replace(outcome, notes=(*notes, *outcome.notes))
    _ = outcome.best  # nothing is written if no candidate has a score
    from stunet.ranking import tables

    flat = all((place.drawn.voxels[:, 0] == 0).all() for place in places)
    result = RankingResult(
        dataset=dataset,
        folder=folder,
        files=tables.write(outcome, folder),
        outcome=outcome,
        errors=errors,
        configuration="2d" if flat else "3d_fullres",
        fold=request.fold or 0,
    )
    listener.ranked(result)
    return result


def _check(request: RankingRequest) -> None:
    if not request.models:
        raise UsageError("no candidate is named", f"--models STU-Net-S STU-Net-B, or --models {ALL_INSTALLED}")
    if request.cases < 2:
        raise UsageError(f"--cases {request.cases}: a ranking compares cases", "--cases 20")
    if request.points is not None and request.points < 2:
        raise UsageError(f"--points {request.points} is fewer than 2", "--points 1000")
    if request.layers not in LAYERS:
        raise UsageError(f"--layers {request.layers!r} is not {', '.join(LAYERS)}", "--layers auto")
    if not 0 < request.step_size <= 1:
        raise UsageError(f"-step_size {request.step_size:g} is not above 0 and at most 1", "-step_size 0.5")
    if request.seed < 0:
        raise UsageError(f"--seed {request.seed} is negative", "--seed 0")


def _named(models: Sequence[str | Path]) -> dict[str, str]:
    """Return what each candidate is, by a name for tables that no two share.

    Raises:
        UsageError: Two have the same title, or none is installed.
    """
    from stunet.models import store
    from stunet.models.registry import look_up

    given: list[str] = []
    for model in map(str, models):
        given += [each.name for each in store.installed()] if model == ALL_INSTALLED else [model]
    if not given:
        raise UsageError("no model is installed", "stunet_models download STU-Net-B, or name files and folders")
    found: dict[str, str] = {}
    for text in dict.fromkeys(given):
        title, equals, path = text.partition("=")
        name, weights = (title, path) if equals and title and path and not Path(text).exists() else ("", text)
        if name in found:
            raise UsageError(f"two candidates are called {name!r}", "another title: TITLE=PATH")
        # rank.json may be read from another folder. As in store.find_model(), a name comes before a path.
        is_path = not store.find_installed(weights) and not look_up(weights) and Path(weights).expanduser().exists()
        place = str(Path(weights).expanduser().absolute()) if is_path else weights
        found[name or _title(weights, found)] = place
    return found


def _title(weights: str, taken: Mapping[str, str]) -> str:
    """Return a short name: the last parts of a path, as many as are needed to tell it from the others.

    Of TRAINER__PLANS__CONFIGURATION it is the plans.
    """
    *parents, last = Path(weights).parts or (weights,)
    trainer_plans = last.split("__")
    parts = [*parents, trainer_plans[1] if len(trainer_plans) == 3 else last]
    for count in range(1, len(parts) + 1):
        name = "/".join(parts[-count:])
        if name not in taken:
            return name
    return f"{weights} {len(taken)}"


def _target(dataset: str, request: RankingRequest) -> tuple["Target", list[RawCase]]:
    """Return the dataset, and the labelled cases that may be looked at."""
    from stunet.datasets import find_reader
    from stunet.labels.annotations import load_annotations
    from stunet.ranking.cases import Target

    folder = workspace.raw_dataset(dataset)
    description = read_dataset_json(folder / "dataset.json")
    cases = list_cases(folder, description)
    require_labels(dataset, cases)
    if request.fold is not None:
        path = workspace.preprocessed_dataset(dataset) / SPLITS
        if not path.is_file():
            raise DataError(f"-f {request.fold} needs the folds of the dataset, {str(path)!r}", "leave out -f")
        train = check_fold(read_folds(path), request.fold, [case.name for case in cases], path).train
        cases = [case for case in cases if case.name in train]
    kind = find_reader(description, cases[0].images[0]).__name__
    return Target(kind, description, load_annotations(folder), request.seed, request.points), cases


def _places(
    target: "Target", cases: Sequence[RawCase], bank: "Bank", request: RankingRequest, listener: Listener
) -> tuple[list["Place"], list[str]]:
    """Return the cases that are looked at, with their points, and what limits the ranking."""
    from stunet.ranking.cases import check_classes, choose, cover
    from stunet.ranking.points import DrawnPoints
    from stunet.ranking.reading import Place

    notes: list[str] = []
    points: dict[str, DrawnPoints] = {}
    order = choose(cases, target.kind, min(request.cases, len(cases)))
    with listener.progress("draw points", min(request.cases, len(cases))) as progress:

        def classes_in(case: RawCase) -> set[int]:
            try:
                points[case.name] = target.draw(case, bank)
            except StunetError as error:
                notes.append(f"case {case.name!r} is left out: {error.message}")
                listener.warn(notes[-1])
                return set()
            progress.step(case.name)
            return set(points[case.name].labels.tolist()) - {0}

        chosen = cover(order, request.cases, range(1, len(target.classes)), classes_in)
    places = [Place(case, points[case.name], target.kind, target.channels) for case in chosen if case.name in points]
    limits = check_classes({place.case.name: place.drawn for place in places}, target.classes)
    for limit in limits:
        listener.warn(limit)
    return places, notes + limits


def _read(
    named: Mapping[str, str],
    places: Sequence["Place"],
    target: "Target",
    bank: "Bank",
    request: RankingRequest,
    listener: Listener,
    features: bool,
) -> tuple[dict[str, "Candidate"], dict[str, _Read], dict[str, StunetError]]:
    """Read all candidates, and return what is known of them, those that could be read, and the others' errors."""
    from stunet.inference.failures import reason
    from stunet.inference.features.model import Model
    from stunet.inference.reading import UNREADABLE
    from stunet.ranking.candidates import describe, hours_of
    from stunet.ranking.outcome import Candidate
    from stunet.ranking.reading import made_of, prepared_images, read_candidate

    candidates: dict[str, Candidate] = {}
    read: dict[str, _Read] = {}
    errors: dict[str, StunetError] = {}
    device = choose_device(request.device)
    with prepared_images(bank, len(named) > 1) as prepared:
        for name, weights in named.items():
            try:
                path = fetch_model(weights, listener, accept_licence=request.accept_licence)
                model = Model(path, device=device, precision=request.precision, step_size=request.step_size)
                candidates[name] = candidate = describe(name, weights, model, places, target)
                if features:
                    with listener.progress(f"features of {name}", len(places)) as progress:
                        folder = read_candidate(
                            model, name, places, bank, prepared, listener.note,
                            lambda case, share: progress.step(case) if share == 1 else progress.part(share, case),
                        )  # fmt: skip
                    made_from = {place.case.name: made_of(model, place) for place in places}
                    candidates[name] = candidate = replace(candidate, hours=hours_of(model))
                else:
                    folder, made_from = bank.folder, {}
                read[name] = _Read(candidate, folder, made_from)
            except (StunetError, MemoryError, *UNREADABLE) as error:
                errors[name] = reason(error, "reading it")
                candidates[name] = replace(candidates.get(name) or Candidate(name, weights), error=errors[name].message)
                listener.failed(name, errors[name])
    return candidates, read, errors


def _score(
    scores: Sequence["Score"],
    candidates: Mapping[str, "Candidate"],
    read: Mapping[str, _Read],
    places: Sequence["Place"],
    target: "Target",
    dataset: str,
    request: RankingRequest,
    listener: Listener,
) -> "Outcome":
    from stunet.ranking.outcome import Outcome, results_of
    from stunet.ranking.pool import draw_cases, score_pool
    from stunet.ranking.scores.base import FACTS

    notes = []
    part = request.layers
    reads = any(score.needs != FACTS for score in scores)
    without = [name for name, each in read.items() if each.candidate.layers == ENCODER]
    if reads and part == AUTO:
        part = ENCODER if without else DECODER
        if without and len(without) < len(read):
            named = first_few(without, separator=", ")
            what = f"all candidates are compared by their encoders; without a trained decoder: {named}"
            notes.append(f"{what} (--layers decoder compares the others)")
            listener.note(notes[-1])
    prepared: dict[str, dict[str, Prepared]] = {score.name: {} for score in scores}
    found: dict[str, dict[str, Result | str]] = {score.name: {} for score in scores}
    with listener.progress("score", len(read)) as progress:
        for name, each in read.items():
            sample = _sample(each, places, part if reads else None)
            for score in scores:
                try:
                    if isinstance(sample, StunetError) and score.needs != FACTS:
                        raise sample
                    usable = _facts_only(each, places) if isinstance(sample, StunetError) else sample
                    prepared[score.name][name] = score.prepare(usable)
                except StunetError as error:
                    found[score.name][name] = error.message
            progress.step(name)
    counts = draw_cases(len(places), seed=request.seed)
    for score in scores:
        pool = prepared[score.name]
        if pool:
            try:
                found[score.name] |= results_of(list(pool), score_pool(score, list(pool.values()), counts))
            except DataError as error:
                found[score.name] |= dict.fromkeys(pool, error.message)
    failed = {name: candidate.error for name, candidate in candidates.items() if candidate.error}
    for values in found.values():
        values |= {name: str(error) for name, error in failed.items() if name not in values}
    names = tuple(place.case.name for place in places)
    return Outcome(dataset, names, target.classes, part if reads else None, candidates, found, tuple(notes))


def _sample(read: _Read, places: Sequence["Place"], part: str | None) -> "Sample | StunetError":
    """Return what scores are computed from, without the decoder if it is not to be read; without a part, the facts."""
    from stunet.ranking.reading import load_sample

    if part is None:
        return _facts_only(read, places)
    if part == DECODER and read.candidate.layers == ENCODER:
        return DataError("no trained decoder", "--layers encoder")
    try:
        sample = load_sample(read.folder, read.made_from, places, read.candidate.facts)
    except DataError as error:  # such as another process with other points, in the same bank
        return error
    # With a decoder, scores take that of it, and what they need of the encoder.
    return replace(sample, layers=sample.of(part)) if part == ENCODER else sample


def _facts_only(read: _Read, places: Sequence["Place"]) -> "Sample":
    from stunet.ranking.sample import Sample

    return Sample({place.case.name: place.drawn.points for place in places}, facts=read.candidate.facts)
