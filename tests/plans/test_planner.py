"""The planner on fingerprints of known kinds of data, with real nnU-Net and real image headers."""

import json
from typing import Any

import numpy as np
import pytest

from stunet import workspace
from stunet.errors import DataError, OutOfMemoryError
from stunet.files import read_json
from stunet.plans.check import check_plan
from stunet.plans.derive import derive
from stunet.plans.files import list_plans, plan_path
from stunet.plans.plan import Plan
from stunet.plans.planner import STUNetPlanner
from stunet.runs.planning import warnings_of
from tests.loops import for_each
from tests.plans.conftest import DATASET


def strides(plans: dict[str, Any], configuration: str) -> list[list[int]]:
    return plans["configurations"][configuration]["architecture"]["arch_kwargs"]["strides"]


def test_a_large_ct_gets_a_cascade_whose_spacing_does_not_depend_on_the_size(fingerprint: Any) -> None:
    fingerprint([1.0, 0.8, 0.8], [400, 512, 512], ["liver", "spleen"])
    base = STUNetPlanner(DATASET, size="B").plan_experiment()
    assert list(base["configurations"]) == ["2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres"]
    for name in base["configurations"]:
        check_plan(Plan(base), name)
    assert base["plans_name"] == "STUNetPlans_B"
    fullres = base["configurations"]["3d_fullres"]
    assert fullres["spacing"] == [1.0, 0.8, 0.8]
    assert fullres["data_identifier"] == "STUNetPlans_3d_fullres"
    assert fullres["stunet"]["memory_gb"] <= 10
    assert base["configurations"]["3d_lowres"]["spacing"][0] > 1.5

    small = STUNetPlanner(DATASET, size="S").plan_experiment()
    derived = derive(Plan(base), read_json(workspace.raw_dataset(DATASET) / "dataset.json"), size="S").content
    assert derived["configurations"] == small["configurations"]
    assert plan_path(DATASET, "STUNetPlans_S").is_file()
    assert [p.name for p in workspace.preprocessed_dataset(DATASET).glob(".part-*")] == []


def test_anisotropic_data_keep_their_coarse_axis(fingerprint: Any) -> None:
    fingerprint([5.0, 1.56, 1.56], [10, 256, 224], ["ventricle"])
    plans = STUNetPlanner(DATASET, size="S").plan_experiment()
    patch = plans["configurations"]["3d_fullres"]["patch_size"]
    assert patch[0] in (10, 12)
    assert strides(plans, "3d_fullres")[:2] == [[1, 1, 1], [1, 2, 2]]
    assert np.prod(strides(plans, "3d_fullres"), axis=0).tolist() == [
        2,
        16,
        16,
    ]  # a fifth halving would be at 25 mm to 10
    assert plans["transpose_forward"] == [0, 1, 2]


def test_flat_images_get_two_dimensions_only(fingerprint: Any) -> None:
    fingerprint([999.0, 1.0, 1.0], [1, 512, 512], ["vessel"])
    plans = STUNetPlanner(DATASET, size="S").plan_experiment()
    assert list(plans["configurations"]) == ["2d"]
    assert strides(plans, "2d")[0] == [1, 1]


@for_each(
    ("labels", "direction", "expected"),
    [
        (["kidney_left", "kidney_right"], "LPS", [0, 1]),
        (["kidney_left", "kidney_right"], "PSR", [1, 2]),  # stored sagittally: left-right is the first array axis
        (["kidney_left", "liver"], "LPS", [0, 1]),  # mirrored it is a right one
        (["LAG", "RAG"], "LPS", [0, 1]),
        (["LV", "RV", "MYO"], "LPS", [0, 1]),
        (["liver", "river"], "LPS", [0, 1, 2]),
        (["liver", "cleft"], "LPS", [0, 1, 2]),
    ],
)
def test_classes_of_one_side_forbid_mirroring_left_and_right(
    fingerprint: Any, labels: list[str], direction: str, expected: list[int]
) -> None:
    fingerprint([1.0, 1.0, 1.0], [64, 64, 64], labels, direction)
    assert STUNetPlanner(DATASET, size="T").plan_experiment()["stunet"]["mirror_axes"] == expected


def test_orientations_are_on_record_and_a_mix_is_turned_to_the_most_frequent(fingerprint: Any) -> None:
    fingerprint([1.0, 1.0, 1.0], [64, 64, 64], ["kidney_left", "kidney_right"], "LAS")
    plans = STUNetPlanner(DATASET, size="T").plan_experiment()
    assert (plans["stunet"]["orientation"], plans["stunet"]["orientations"]) == ("LAS", {"LAS": 1})
    assert not any("orientation" in line or "axes of" in line for line in warnings_of(Plan(plans)))
    dataset = read_json(workspace.raw_dataset(DATASET) / "dataset.json")
    assert derive(Plan(plans), dataset, overrides={"batch_size": 2}).orientation == "LAS"
    path = workspace.preprocessed_dataset(DATASET) / "dataset_fingerprint.json"
    path.write_text(json.dumps({**read_json(path), "stunet_orientations": {"PSR": 3, "LAS": 1}}))
    plans = STUNetPlanner(DATASET, size="T").plan_experiment()
    check_plan(Plan(plans), "3d_fullres")
    assert plans["stunet"]["orientation"] == "PSR"
    assert plans["stunet"]["mirror_axes"] == [1, 2]
    assert "run in 2 ways (3 PSR, 1 LAS): 1 are turned to PSR" in warnings_of(Plan(plans))[0]
    plans["stunet"]["orientation"] = "LLL"
    with pytest.raises(DataError, match=r"stunet.orientation: expected an orientation such as LPS or RAS, got 'LLL'"):
        check_plan(Plan(plans), "3d_fullres")


def test_mirror_axes_follow_the_transposition(fingerprint: Any) -> None:
    fingerprint([1.0, 1.0, 3.0], [128, 128, 40], ["kidney_left", "kidney_right"])
    plans = STUNetPlanner(DATASET, size="T").plan_experiment()
    assert plans["transpose_forward"] == [2, 0, 1]
    assert plans["stunet"]["mirror_axes"] == [1, 2]


def test_another_spacing_gets_other_data_and_another_name(fingerprint: Any) -> None:
    fingerprint([1.0, 1.0, 1.0], [64, 64, 64], ["liver"])
    plans = STUNetPlanner(DATASET, size="S", overwrite_target_spacing=[1.5, 1.5, 1.5]).plan_experiment()
    assert plans["plans_name"] == "STUNetPlans_S_1.5x1.5x1.5mm"
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "STUNetPlans_1.5x1.5x1.5mm_3d_fullres"
    named = STUNetPlanner(DATASET, size="S", plans_name="Mine").plan_experiment()
    assert named["configurations"]["2d"]["data_identifier"] == "Mine_2d"


def test_another_normalization_gets_other_data_and_another_name(fingerprint: Any) -> None:
    fingerprint([1.5, 1.5, 1.5], [64, 64, 64], ["liver"])
    own = STUNetPlanner(DATASET, size="S").plan_experiment()
    plans = STUNetPlanner(DATASET, size="S", normalization="ZScoreNormalization").plan_experiment()
    assert plans["plans_name"] == "STUNetPlans_S_z"
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "STUNetPlans_z_3d_fullres"
    assert plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["ZScoreNormalization"]
    assert plans["configurations"]["3d_fullres"]["use_mask_for_norm"] == [False]
    assert own["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization"]


def test_the_users_own_configurations_stay(fingerprint: Any) -> None:
    fingerprint([1.0, 1.0, 1.0], [64, 64, 64], ["liver"])
    STUNetPlanner(DATASET, size="S").plan_experiment()
    path = plan_path(DATASET)
    plans = read_json(path)
    plans["configurations"]["3d_bs8"] = {"inherits_from": "3d_fullres", "batch_size": 8}
    path.write_text(json.dumps(plans))
    STUNetPlanner(DATASET, size="S", stages=None).plan_experiment()
    again = read_json(path)
    assert again["configurations"]["3d_bs8"] == {"inherits_from": "3d_fullres", "batch_size": 8}
    assert again["stunet"]["stages"] == "auto"
    assert len(strides(again, "3d_fullres")) == 5  # 64 voxels can be halved four times


def test_what_does_not_fit_leaves_no_plan(fingerprint: Any) -> None:
    fingerprint([1.0, 1.0, 1.0], [64, 64, 64], ["liver"])
    with pytest.raises(OutOfMemoryError, match="STU-Net-H"):
        STUNetPlanner(DATASET, gpu_memory_target_in_gb=8, size="H").plan_experiment()
    assert list_plans(DATASET) == []


def test_a_probe_decides_and_is_recorded(fingerprint: Any) -> None:
    fingerprint([1.0, 1.0, 1.0], [160, 160, 160], ["liver"])
    estimated = STUNetPlanner(DATASET, size="S").plan_experiment()
    from stunet.plans.memory import estimate

    def measure(network: Any, found: Any) -> float:  # a device that needs a third more than the estimate
        return 1.33 * estimate(network, found.patch, found.batch, found.strides)

    probed = STUNetPlanner(DATASET, size="S", measure=measure).plan_experiment()
    block = probed["configurations"]["3d_fullres"]["stunet"]
    assert block["measured_gb"] <= 6 < 1.33 * estimated["configurations"]["3d_fullres"]["stunet"]["memory_gb"]
    assert block["correction"] > 1


def test_a_dataset_without_labels_is_planned_for_its_pretraining(fingerprint: Any) -> None:
    fingerprint([1.0, 1.0, 1.0], [37, 50, 36], [])
    plan = Plan(STUNetPlanner(DATASET, size="B").plan_experiment())
    planned = plan.configuration("3d_fullres")
    check_plan(plan, "3d_fullres")
    assert plan.contained_shapes == {"2d": [50, 36], "3d_fullres": [37, 50, 36]}
    assert planned.patch_size == [32, 48, 32]  # with labels it is rounded up, beyond the images
    assert planned.batch_size > 2
    whole = derive(plan, {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "numTraining": 100}, size="S")
    assert whole.configuration("3d_fullres").patch_size == [32, 48, 32]


def test_images_may_keep_their_spacing_or_take_its_median(fingerprint: Any) -> None:
    fingerprint([5.0, 0.8, 0.8], [60, 256, 256], [])
    path = workspace.preprocessed_dataset(DATASET) / "dataset_fingerprint.json"
    content = read_json(path)
    content["spacings"][:40] = [[1.0, 0.5, 0.5]] * 40
    path.write_text(json.dumps(content))
    median = Plan(STUNetPlanner(DATASET, spacing="median").plan_experiment())
    assert median.name == "STUNetPlans_B_median"
    assert median.configuration("3d_fullres").spacing == [5.0, 0.8, 0.8]  # nnU-Net's rule would take 1.0 along D
    native = Plan(STUNetPlanner(DATASET, spacing="native", normalization="ZScoreNormalization").plan_experiment())
    assert native.name == "STUNetPlans_B_native_z"
    assert set(native.configurations) == {"2d", "3d_fullres"}
    planned = native.configuration("3d_fullres")
    check_plan(native, "3d_fullres")
    assert planned.median_shape == [60, 256, 256]
    assert not planned.resamples
    assert planned.data_identifier == "STUNetPlans_native_z_3d_fullres"
    assert native.contained_shapes["3d_fullres"] == [60, 256, 256]
    assert planned.get("resampling_fn_seg") == planned.get("resampling_fn_probabilities") == "no_resampling_hack"
