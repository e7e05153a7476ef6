"""Plan a dataset with one of nnU-Net's own planners (`-pl`): its plans are left as it writes them.

The fingerprint and the reader are found as for our plans. Read next: blueprints.py, which lists the planners.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as host
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from stunet.datasets import find_reader
from stunet.nnunet import patched, write_atomically
from stunet.plans.files import read_plan
from stunet.plans.fingerprint import nnunets_listing
from stunet.plans.plan import Plan
from stunet.workspace import preprocessed_dataset

write_atomically(host)
PLANNERS = {
    each.__name__: each
    for each in (ExperimentPlanner, nnUNetPlannerResEncM, nnUNetPlannerResEncL, nnUNetPlannerResEncXL)
}


DEFAULT = "DefaultPreprocessor"


class _Reader:
    """Finds the reader without the tracebacks of those that nnU-Net tries."""

    dataset: Any
    dataset_json: Any

    def determine_reader_writer(self) -> type:
        return find_reader(self.dataset_json, Path(next(iter(self.dataset.values()))["images"][0]))


def _own_folder(planner: ExperimentPlanner, configuration: str) -> str:
    """Return the folder of other data than nnU-Net's usual, which ResEnc planners would put in that of nnUNetPlans."""
    return f"{planner.plans_identifier}_{configuration}"


def plan_as_stock(
    planner: str,
    dataset: str,
    memory_gb: float | None = None,
    preprocessor: str = DEFAULT,
    name: str | None = None,
    spacing: Sequence[float] | None = None,
) -> Plan:
    """Plan a dataset whose fingerprint has been extracted, and return the plan that nnU-Net wrote.

    Args:
        planner: Key of PLANNERS.
        dataset: Full name.
        memory_gb: Memory target in GiB; None: the planner's.
        preprocessor: Name of nnU-Net's preprocessor class.
        name: Name of the plans; None: the planner's.
        spacing: Of 3d_fullres in mm, in the order of the images' arrays; None: the planner's choice.
    """
    options = {"gpu_memory_target_in_gb": memory_gb, "plans_name": name}
    given = {key: value for key, value in options.items() if value is not None}
    own = {} if spacing is None and preprocessor == DEFAULT else {"generate_data_identifier": _own_folder}
    # nnU-Net records the name of the class.
    kind: Any = type(planner, (_Reader, PLANNERS[planner]), own)
    with patched(host, get_filenames_of_train_images_and_targets=nnunets_listing), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of presets for other memory, which was asked for
        made = kind(
            dataset,
            preprocessor_name=preprocessor,
            overwrite_target_spacing=None if spacing is None else list(map(float, spacing)),
            **given,
        )
        made.plan_experiment()
    return read_plan(preprocessed_dataset(dataset) / f"{made.plans_identifier}.json")
