"""Translate nnU-Net v1's plans (X.model.pkl) into nnU-Net v2's plans.json and dataset.json.

The rules come from nnU-Net's two code bases (1.7.1 and 2.8.1). Two things differ numerically although they have the
same names: v1 normalised after resampling, v2 does so before it, and v1 averaged probabilities over windows, v2 logits.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stunet.errors import WeightsError
from stunet.plans.plan import Plan
from stunet.weights.v2 import make_dataset, make_plan

# v1 falls back to normalising each image by itself for schemes it does not know.
_SCHEMES = {"CT": "CTNormalization", "noNorm": "NoNormalization", "nonCT": "ZScoreNormalization"}
_INTENSITIES = {
    "mean": "mean", "sd": "std", "median": "median", "mn": "min", "mx": "max",
    "percentile_00_5": "percentile_00_5", "percentile_99_5": "percentile_99_5",
}  # fmt: skip
MIRROR_AXES = (0, 1, 2)  # v1's default, which STU-Net's trainers did not change


class Converted(NamedTuple):
    """v2's files; `dataset` is None if the names of the classes are unknown: v1's plans only count them."""

    plan: Plan
    dataset: dict[str, Any] | None
    configuration: str
    mirror_axes: tuple[int, ...]


def convert_plans(
    pkl: Mapping[str, Any],
    path: Path,
    size: str | None,
    stages: int = 6,
    names: Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    dataset_name: str = "Dataset000_nnUNet_v1",
) -> Converted:
    """Return nnU-Net v2's plans and dataset for the content of X.model.pkl.

    Args:
        pkl: The content, as returned by `pickles.load_pickle`.
        path: Where it comes from, for messages.
        size: Size of the network, from its weights: v1's plans do not contain it.
        stages: Stages of the network; v1's STU-Net truncates the plan's poolings to 5 or pads them with ones.
        names: Names of the classes, in the order of the head, background first.
        channels: Names of the input channels; None: v1's name for their modality.
        dataset_name: Any name; v1's plans do not name their dataset.

    Raises:
        WeightsError: The plans are stripped, damaged, 2D, use a normalisation that v2 lacks, or count other numbers of
            classes or channels than are named.
    """
    plans = pkl.get("plans", pkl) if isinstance(pkl, Mapping) else None
    if not isinstance(plans, Mapping) or "num_modalities" not in plans:
        raise WeightsError(f"{str(path)!r} holds no plans of nnU-Net v1", "give the X.model.pkl beside X.model")
    if not plans.get("plans_per_stage"):
        raise WeightsError(
            f"{str(path)!r} is stripped: it has no plans_per_stage, so neither spacing nor strides",
            "use the X.model.pkl that belongs to X.model instead of plans.pkl",
        )
    try:
        modalities = plans.get("modalities") or {}
        channels = channels or [str(modalities.get(i, i)) for i in range(int(plans["num_modalities"]))]
        _agree(path, "channels", int(plans["num_modalities"]), channels)
        if names is not None:
            # v1 counts classes without the background.
            _agree(path, "classes", int(plans["num_classes"]) + 1, names)
        # init: plans file, fold, output folder, dataset folder, batch_dice, stage, ...
        *_, batch_dice, index = (*pkl.get("init", ()), *[None] * 6)[:6]
        last = max(plans["plans_per_stage"])
        # Without a stage, or with one that is not there, v1's full resolution, which has the highest number.
        index = index if index in plans["plans_per_stage"] else last
        configuration = "3d_fullres" if index == last else "3d_lowres"
        stage = plans["plans_per_stage"][index]
        converted = _plans(plans, path, size, stages, stage, configuration, dataset_name, bool(batch_dice))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise WeightsError(
            f"{str(path)!r} holds damaged plans: {type(error).__name__} {str(error)[:100]}",
            "copy it again from its source",
        ) from None
    dataset = None if names is None else make_dataset(dataset_name, channels, names)
    return Converted(converted, dataset, configuration, MIRROR_AXES)


def _plans(
    plans: Mapping[str, Any],
    path: Path,
    size: str | None,
    stages: int,
    stage: Mapping[str, Any],
    configuration: str,
    dataset_name: str,
    batch_dice: bool,
) -> Plan:
    """Return the plan; spacings and shapes need no reordering, as v1 also computes them after transposing the axes."""
    channels = range(int(plans["num_modalities"]))
    converted = make_plan(
        dataset_name,
        configuration,
        size,
        strides=_strides(stage["pool_op_kernel_sizes"], stages, path),
        spacing=[float(x) for x in stage["current_spacing"]],
        patch_size=[int(n) for n in stage["patch_size"]],
        # The median of an even number of cases can end in a half.
        median_shape=[round(n) for n in stage["median_patient_size_in_voxels"]],
        normalization=[_scheme(plans["normalization_schemes"][i], path) for i in channels],
        mirror_axes=MIRROR_AXES,
    )
    if "original_spacing" in stage:
        converted = converted.with_values(
            original_median_spacing_after_transp=[float(x) for x in stage["original_spacing"]]
        )
    return converted.with_values(
        transpose_forward=[int(axis) for axis in plans["transpose_forward"]],
        transpose_backward=[int(axis) for axis in plans["transpose_backward"]],
        experiment_planner_used="nnU-Net v1",
        foreground_intensity_properties_per_channel=_intensities(plans, channels, path),
    ).with_configuration(
        configuration,
        batch_size=int(stage["batch_size"]),
        batch_dice=batch_dice,
        use_mask_for_norm=[bool(plans["use_mask_for_norm"][i]) for i in channels],
    )


def _strides(pools: Sequence[Sequence[int]], stages: int, path: Path) -> list[list[int]]:
    strides = [[int(s) for s in pool] for pool in pools]
    if any(len(pool) != 3 for pool in strides):
        raise WeightsError(f"{str(path)!r} holds plans of a 2D network", "STU-Net of nnU-Net v1 is 3D: use 3d_fullres")
    return fit_strides([[1, 1, 1], *strides], stages)


def fit_strides(strides: Sequence[Sequence[int]], stages: int) -> list[list[int]]:
    """Return a plan's strides as the published STU-Net uses them: truncated, or padded with ones, to its stages."""
    ones = [[1] * len(strides[0])] * stages
    return [list(stride) for stride in [*strides[:stages], *ones[len(strides) :]]]


def _scheme(name: str, path: Path) -> str:
    if name == "CT2":
        raise WeightsError(
            f"{str(path)!r} normalises by 'CT2', which nnU-Net v2 does not have", "predict it with nnU-Net v1"
        )
    return _SCHEMES.get(name, "ZScoreNormalization")


def _intensities(plans: Mapping[str, Any], channels: Iterable[int], path: Path) -> dict[str, dict[str, float]]:
    """Return intensities per channel, as a dictionary even if empty, because v2 requires one."""
    known = (plans.get("dataset_properties") or {}).get("intensityproperties") or {}
    for i in channels:
        lacking = [
            name for name in ("mean", "sd", "percentile_00_5", "percentile_99_5") if name not in known.get(i, {})
        ]
        if plans["normalization_schemes"][i] == "CT" and lacking:
            raise WeightsError(
                f"{str(path)!r} normalises channel {i} by 'CT' without saying its intensities' {', '.join(lacking)}",
                "use the X.model.pkl of the training",
            )
    return {
        str(i): {new: float(known[i][old]) for old, new in _INTENSITIES.items() if old in known.get(i, {})}
        for i in channels
    }


def _agree(path: Path, what: str, count: int, names: Sequence[str]) -> None:
    if len(names) != count or len(set(names)) != count:
        raise WeightsError(
            f"{str(path)!r} is for {count} {what}, but {len(names)} names are given",
            "give one name for each, all different",
        )
