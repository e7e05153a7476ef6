"""Makes a pool of candidates and targets for rankings: other labels, other contrast, nnU-Net's networks of like size.

    python benchmarks/pool.py datasets 4               # 7: posterior hippocampi; 8 and 9: organs in MR and CT
    python benchmarks/pool.py plans 4 5                # nnU-Net's networks for planned datasets: Plain, ResEnc
    python benchmarks/pool.py random mae random.pth    # an untrained network, as a candidate
    python benchmarks/pool.py results FOLDER...        # what fine-tuning reached, for stunet_rank evaluate

Datasets 4, 5 and 50, and what pre-trains on them, are those of benchmarks/selfsupervised.md. benchmarks/ranking.md has
the commands around this file, and what came out.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from stunet import workspace
from stunet.console import result
from stunet.datasets import read_dataset, write_dataset_json
from stunet.datasets.phantom import LABELS, make_case
from stunet.files import atomic_folder, read_json, write_json
from stunet.folds import FILE as SPLITS

RESULTS = Path(__file__).parent / "results" / "pool.json"
POSTERIOR = 2  # of the Decathlon's hippocampus
ORGANS = 40  # cases
SHAPE, SPACING = (32, 48, 40), 2.0  # of organs, in voxels and mm
PATCH, STRIDES = [24, 40, 24], [[1, 1, 1], [2, 2, 2], [2, 2, 2], [1, 2, 1]]
WIDTHS = {"Plain": [14, 28, 56, 88], "ResEnc": [16, 32, 64, 96]}  # about as many parameters as an STU-Net T
BLOCKS = {"Plain": [2, 2, 2, 2], "ResEnc": [1, 1, 1, 1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    making = actions.add_parser("datasets")
    making.add_argument("source", help="number of the planned hippocampus")
    planning = actions.add_parser("plans")
    planning.add_argument("datasets", nargs="+")
    untrained = actions.add_parser("random")
    untrained.add_argument("like", type=Path, help="pre-trained STU-Net, whose plan it has")
    untrained.add_argument("file", type=Path)
    collecting = actions.add_parser("results")
    collecting.add_argument("folders", nargs="+", type=Path, help="of stunet_experiment or arms.py, with pool/*.toml")
    args = parser.parse_args()
    if args.action == "results":
        collect(args.folders)
    elif args.action == "datasets":
        make_posterior(args.source, 7)
        make_organs(8, "OrgansMR", 1, is_mr=True)
        make_organs(9, "OrgansCT", 2, is_mr=False)
    elif args.action == "plans":
        for dataset in args.datasets:
            write_plans(workspace.dataset_name(dataset))
    else:
        write_random(args.like, args.file)


def make_posterior(source: str, number: int) -> None:
    """Writes the same cases with the posterior part as their only class, and the same folds."""
    name = workspace.dataset_name(source)
    raw = workspace.raw_dataset(name)
    cases = read_dataset(raw)[0]
    target = raw.with_name(f"Dataset{number:03d}_Posterior")
    with atomic_folder(target) as folder:
        for kind in ("imagesTr", "labelsTr"):
            (folder / kind).mkdir()
        for case in cases:
            shutil.copy(case.images[0], folder / "imagesTr")
            labels = sitk.ReadImage(str(case.label)) == POSTERIOR
            sitk.WriteImage(labels, str(folder / "labelsTr" / f"{case.name}.nii.gz"))
        write_dataset_json(folder, target.name, {0: "MRI"}, {"background": 0, "Posterior": 1}, len(cases))
    splits = workspace.preprocessed_dataset(target.name) / SPLITS
    splits.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(workspace.preprocessed_dataset(name) / SPLITS, splits)
    result(str(target))


def make_organs(number: int, name: str, seed: int, is_mr: bool) -> None:
    """Writes organs of the demo's phantom: as CT; or as MR, where fat-free tissue is bright and a field is uneven."""
    target = workspace.folder("nnUNet_raw") / f"Dataset{number:03d}_{name}"
    with atomic_folder(target) as folder:
        for kind in ("imagesTr", "labelsTr"):
            (folder / kind).mkdir()
        for index in range(ORGANS):
            random = np.random.default_rng((seed, index))
            image, labels = make_case(random, SHAPE)
            if is_mr:
                image = as_mr(image.astype(np.float32), random).astype(np.int16)
            for array, path in ((image, f"imagesTr/organs_{index:03d}_0000"), (labels, f"labelsTr/organs_{index:03d}")):
                made = sitk.GetImageFromArray(array)
                made.SetSpacing([SPACING] * 3)
                sitk.WriteImage(made, str(folder / f"{path}.nii.gz"))
        write_dataset_json(folder, target.name, {0: "MRI" if is_mr else "CT"}, LABELS, ORGANS)
    result(str(target))


def as_mr(hu: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Maps HU to another contrast, in which organs change their order, under a smooth field."""
    values = np.interp(hu, [-1000, -200, 0, 130, 230, 330, 550, 900], [20, 30, 300, 620, 420, 760, 90, 60])
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in hu.shape), indexing="ij")
    field = 1 + sum(c * g for c, g in zip(random.uniform(-0.25, 0.25, 3), grid, strict=True))
    return np.asarray(values * field + random.normal(0, 25, hu.shape)).clip(0)


def architecture(kind: str) -> dict[str, Any]:
    """A network of nnU-Net as its plans hold it."""
    widths, blocks = WIDTHS[kind], BLOCKS[kind]
    plain = kind == "Plain"
    name = "PlainConvUNet" if plain else "ResidualEncoderUNet"
    return {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
        "arch_kwargs": {
            "n_stages": len(widths),
            "features_per_stage": widths,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * len(widths),
            "strides": STRIDES,
            "n_conv_per_stage" if plain else "n_blocks_per_stage": blocks,
            "n_conv_per_stage_decoder": blocks[:-1] if plain else [1] * (len(widths) - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def write_plans(dataset: str) -> None:
    """Writes plans of both networks, otherwise those of STUNetPlans_T, whose preprocessed cases they use."""
    folder = workspace.preprocessed_dataset(dataset)
    plan = read_json(folder / "STUNetPlans_T.json")
    del plan["stunet"]
    full = {key: value for key, value in plan["configurations"]["3d_fullres"].items() if key != "stunet"}
    for kind in WIDTHS:
        configuration = {**full, "patch_size": PATCH, "batch_size": 2, "architecture": architecture(kind)}
        content = {
            **plan,
            "plans_name": f"{kind}Plans",
            "experiment_planner_used": "ExperimentPlanner",
            "configurations": {"3d_fullres": configuration},
        }
        write_json(folder / f"{kind}Plans.json", content)
        result(str(folder / f"{kind}Plans.json"))


def write_random(like: Path, file: Path) -> None:
    """Writes a network as it is before a training, with the plan of pre-trained weights."""
    import torch

    from stunet.plans.plan import WHOLE
    from stunet.weights.nnssl import write_nnssl
    from stunet.weights.reading import read_weights

    weights = read_weights(like)
    assert weights.plan
    assert weights.configuration
    torch.manual_seed(0)
    network = weights.network.build(weights.strides)
    network.apply(network.initialize)  # type: ignore[arg-type]
    write_nnssl(
        file, network.state_dict(), weights.plan, weights.configuration, weights.channels or ["MRI"], "random",
        transfers=WHOLE,
    )  # fmt: skip
    result(str(file))


def collect(folders: list[Path]) -> None:
    """Adds the arms of the pool to the results; those with both parts and 8 cases are selfsupervised_arms.json's."""
    from stunet.experiment.arms import arms, command, read_experiment, request
    from stunet.experiment.runs import Record, results

    found = read_json(RESULTS) if RESULTS.is_file() else {"targets": {}}
    for line, by_cases in read_json(RESULTS.with_name("selfsupervised_arms.json")).items():
        if line.startswith("few_cases:") and (seeds := by_cases.get("8")):
            dice = {seed: run["dice"] for seed, run in seeds.items()}
            name = line.removeprefix("few_cases:").removesuffix(" full")
            found["targets"].setdefault("Dataset004_Hippocampus", {})[name] = {"dice": dice}
    for folder in folders:
        for file in sorted(folder.glob("*.toml")):
            experiment = read_experiment(file)
            todo = {arm: command(request(experiment, arm)) for arm in arms(experiment)}
            target = found["targets"].setdefault(workspace.dataset_name(experiment.dataset), {})
            for arm, dice in results(todo, Record(folder)).items():
                rounded = {case: {name: round(value, 4) for name, value in each.items()} for case, each in dice.items()}
                target.setdefault(arm.title, {"dice": {}})["dice"][str(arm.seed)] = rounded
    write_json(RESULTS, found)
    result(", ".join(f"{target}: {len(each)} candidates" for target, each in found["targets"].items()))


if __name__ == "__main__":
    main()
