"""Tell whether two plans do the same to images, and find plans of a dataset that do. plans/like.py makes such plans."""

from stunet.errors import DataError, first_few
from stunet.files import json_differences
from stunet.plans.files import list_plans, plan_path, read_plan
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import settings_of, without_version
from stunet.workspace import dataset_number

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
        settings.append({**kept, "orientation": plan.orientation})
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
