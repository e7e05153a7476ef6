"""Check and analyse the cases of a dataset in parts, before it is planned; the last part writes the fingerprint.

The plan needs all cases, and preprocessing needs the plan. So the same command runs twice: the first time, a part
checks and analyses its cases; the second time, or if it was the last, it preprocesses them. planning.py calls it.
"""

from typing import Any

from stunet import workspace
from stunet.datasets.check import CheckedCase, examine, judge_cases
from stunet.files import sha256_of_json
from stunet.parts import Part, Records, to_merge, unfinished
from stunet.plans.fingerprint import (
    analyze_part,
    is_up_to_date,
    load_analyses,
    save_analyses,
    source_of,
    write_fingerprint,
)
from stunet.runs.listener import Listener
from stunet.runs.planning_request import PlanningRequest

FOLDER = ".parts"  # in the dataset's folder of preprocessed data


def check_part(dataset: str, request: PlanningRequest, readers: int, listener: Listener) -> None:
    """Check the files of a part's cases.

    Raises:
        DataError: Something is wrong with them.
    """
    folder, part = workspace.raw_dataset(dataset), Part(request.part_id, request.num_parts)
    with listener.progress(f"check {dataset}", len(part.take(_names(dataset)))) as progress:
        examine(folder, readers, progress.step, part)


def analyse(dataset: str, request: PlanningRequest, readers: int, listener: Listener) -> bool:
    """Check and analyse a part's cases unless that is done; return whether the fingerprint of all cases is there.

    Raises:
        DataError: Files are damaged; or, with `merge`, parts are missing.
    """
    place = workspace.preprocessed_dataset(dataset) / FOLDER
    part = to_merge(place, request.num_parts) if request.merge else Part(request.part_id, request.num_parts)
    source = source_of(dataset)
    agreed = {"source": sha256_of_json(source), "checked": not request.no_check}
    records = Records(place, part, agreed)

    def merge(contents: list[Any]) -> None:
        checked = {name: case for content in contents for name, case in content["checked"].items()}
        if checked:
            cases = {name: CheckedCase.from_json(case) for name, case in checked.items()}
            for warning in judge_cases(workspace.raw_dataset(dataset), cases):
                listener.warn(warning)
        if is_up_to_date(dataset):
            return
        found = [load_analyses(place / content["analyses"]) for content in contents]
        # Case i is in part i modulo their number.
        ordered = [found[i % part.count][i // part.count] for i in range(sum(map(len, found)))]
        with workspace.planning(dataset, wait=lambda what: None):
            write_fingerprint(dataset, ordered, source)

    if request.merge or not records.missing():
        records.merge(merge)
        return True
    raw, names = workspace.raw_dataset(dataset), part.take(_names(dataset))
    checked = {}
    if not request.no_check:
        with listener.progress(f"check {dataset}", len(names)) as progress:
            checked = examine(raw, readers, progress.step, part)
    with listener.progress("fingerprint", len(names)) as progress:
        analyses = analyze_part(dataset, part, readers, lambda name, cases: progress.step(name))
    file = f"analyses-{part.number}-of-{part.count}.npz"
    place.mkdir(parents=True, exist_ok=True)
    save_analyses(place / file, analyses)
    content = {"analyses": file, "checked": {name: case.to_json() for name, case in checked.items()}}
    if missing := records.finish(content, merge):
        listener.note(f"{unfinished(part, missing)}; then the same command preprocesses")
    return not missing


def _names(dataset: str) -> list[str]:
    from stunet.datasets import read_dataset

    return [case.name for case in read_dataset(workspace.raw_dataset(dataset))[0]]
