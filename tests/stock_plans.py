"""Plans as nnU-Net's own planners write them, with tiny networks, for the phantom that tests share."""

import copy
from typing import Any

from stunet.architectures.nnunet_unet import NNUNet
from stunet.files import write_json
from stunet.plans import topology
from stunet.plans.files import plan_path, read_plan
from stunet.workspace import preprocessed_dataset

PLANNERS = {"plain U-Net": "ExperimentPlanner", "ResEnc U-Net": "nnUNetPlannerResEncM"}


def stock_plans(dataset: str, architecture: NNUNet, width: int = 4) -> dict[str, Any]:
    """The plans of a dataset without anything of ours, and with one of nnU-Net's networks of this width."""
    content = copy.deepcopy(read_plan(plan_path(dataset, "STUNetPlans_T")).to_json())
    del content["stunet"]
    content |= {"plans_name": "nnUNetPlans", "experiment_planner_used": PLANNERS[architecture.title]}
    for configuration in content["configurations"].values():
        configuration.pop("stunet", None)
        if "architecture" not in configuration:
            continue
        patch, spacing = configuration["patch_size"], configuration["spacing"]
        strides = topology.strides_by_patch(patch, spacing)
        usual = {**architecture.usual(len(patch)), "features_per_stage": [width]}
        configuration["batch_size"] = 2
        configuration["architecture"] = {
            "network_class_name": architecture.class_name,
            "arch_kwargs": architecture.laid_out(usual, strides, topology.kernels_for(strides, spacing)),
            "_kw_requires_import": [key for key in architecture.imports if key in usual],
        }
    return content


def write_stock_plans(dataset: str, architecture: NNUNet, name: str = "nnUNetPlans", width: int = 4) -> str:
    """Write such plans beside the others of the dataset, and return their name."""
    content = stock_plans(dataset, architecture, width) | {"plans_name": name}
    write_json(preprocessed_dataset(dataset) / f"{name}.json", content)
    return name
