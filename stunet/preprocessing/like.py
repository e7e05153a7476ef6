"""Tell whether two plans do the same to images, and find plans of a dataset that do. plans/like.py makes such plans."""

from collections.abc import Mapping
from typing import Any

from stunet.errors import DataError, first_few
from stunet.files import json_differences
from stunet.kinds import FINGERPRINT, read, read_dataset_json
from stunet.plans.files import list_plans, plan_path, read_plan
from stunet.plans.known_input import UNNAMED
from stunet.plans.plan import Plan
from stunet.preprocessing.checks import FINGERPRINT as FINGERPRINT_FILE
from stunet.preprocessing.checks import repair_commands
from stunet.preprocessing.dataset import settings_of, without_version
from stunet.workspace import dataset_number, preprocessed_dataset

# Settings that say how files are read, or what labels are, and nothing about images as the network sees them.
OF_FILES = ("labels", "image_reader_writer", "label_manager", "orientation")


def input_differences(one: Plan, other: Plan, configuration: str) -> list[str]:
    """Return how the images that two plans make differ; empty if networks of both see the same.

    Raises:
        DataError: A plan lacks the configuration.
    """
    settings = []
    for plan in (one, other):
        found = without_version(settings_of(plan, configuration, {}))
        kept = {key: value for key, value in found.items() if key not in OF_FILES}
        settings.append({**kept, "orientation": _with_orientation(plan.dataset_name, plan).orientation})
    return json_differences(settings[0], settings[1])


def find_like(dataset: str, plan: Plan, configuration: str) -> Plan:
    """Return the plan of a dataset that does the same to images as a plan of another one.

    Raises:
        DataError: There is none; the hint has the command that makes it.
    """
    number = dataset_number(plan.dataset_name)
    reasons = []
    for name in list_plans(dataset):
        found = read_plan(plan_path(dataset, name))
        if configuration not in found.configurations:
            continue
        changed = input_differences(plan, found, configuration)
        if not changed:
            return found
        reasons.append(f"{name}: {first_few(changed)}")
    why = f" ({first_few(reasons)})" if reasons else ""
    raise DataError(
        f"{dataset} is not preprocessed like {plan.root} of {plan.dataset_name}{why}",
        f"stunet_plan_and_preprocess -d {dataset_number(dataset)} --like {number}:{plan.root} -c {configuration}",
    )


def channel_warning(one: str, first: Mapping[str, Any], other: str, second: Mapping[str, Any]) -> str | None:
    """Return a warning if the channels of two datasets have other names; None if they have the same or none.

    Args:
        one: Full name of a dataset.
        first: Its dataset.json.
        other: Full name of another dataset.
        second: Its dataset.json.

    Raises:
        DataError: They have the same names in another order.
    """
    names = [
        [str(name) for name in (each.get("channel_names") or each["modality"]).values()] for each in (first, second)
    ]
    plain = [[name.casefold() for name in given] for given in names]
    if all(a == b or UNNAMED in (a, b) for a, b in zip(*plain, strict=False)):
        return None
    what = f"the channels of {one} are {', '.join(names[0])}, those of {other} {', '.join(names[1])}"
    if sorted(plain[0]) == sorted(plain[1]):
        raise DataError(what, "the same order in both: channel_names in dataset.json, and the files of each case")
    return f"{what}: they are taken for the same"


def model_to_follow(dataset: str, plan: Plan) -> tuple[Plan, dict[str, Any]]:
    """Return a plan with the orientation of its images, which earlier versions did not record, and its dataset.json.

    Args:
        dataset: Full name of the plan's dataset.
        plan: The plan.

    Raises:
        DataError: Nothing says which way the axes of its images run.
    """
    known = _recorded_orientations(dataset)
    # Where images have several, a plan that does not know it did not turn them either.
    if plan.orientation is None and (known is None or len(known) > 1):
        again, _ = repair_commands(dataset, plan, plan.configurations[0])
        what = f"plans {plan.name!r} of {dataset} do not say which way the axes of its images run"
        raise DataError(what, f"{again}, which plans it again, and then this command")
    return _with_orientation(dataset, plan), read_dataset_json(preprocessed_dataset(dataset) / "dataset.json")


def _with_orientation(dataset: str, plan: Plan) -> Plan:
    """Return the plan with the orientation of its images, if it or the fingerprint of its dataset tells."""
    known = None if plan.orientation else _recorded_orientations(dataset)
    if known is None or len(known) > 1:
        return plan
    from stunet.plans.fingerprint import target_orientation

    return plan.with_ours(orientation=target_orientation(plan.reader, known))


def _recorded_orientations(dataset: str) -> dict[str, int] | None:
    """Return how many images of a dataset have each orientation; None if its fingerprint does not tell."""
    path = preprocessed_dataset(dataset) / FINGERPRINT_FILE
    return read(path, FINGERPRINT).get("stunet_orientations") if path.is_file() else None
