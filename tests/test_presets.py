"""Presets have valid values that fit their memory, say where numbers come from, and mistakes in one's own are named."""

from pathlib import Path
from typing import Any

import pytest

from stunet import presets
from stunet.errors import DataError
from stunet.plans import memory, settings, topology
from stunet.plans.memory import Network
from stunet.plans.plan import Plan
from tests.loops import for_each

RECIPES = ["totalseg-3mm", "totalseg-b", "totalseg-h", "totalseg-l", "totalseg-s", "union-ct"]


def test_the_presets_are_the_sizes_and_the_recipes_of_pre_training() -> None:
    assert presets.names() == sorted([*"bhls", "l-24gb", *RECIPES])


@for_each("name", presets.names())
def test_the_values_of_a_preset_are_valid(name: str) -> None:
    preset = presets.load(name)
    assert preset.size in "SBLH"
    for key, value in preset.set.items():
        assert settings.check_value(key, value) == value


@for_each("name", RECIPES)
def test_recipes_say_what_time_to_expect_and_why(name: str) -> None:
    note = presets.load(name).note
    assert "A100" in note
    assert "arithmetic" in note or "measured" in note


@for_each("size", "SBLH")
def test_pre_training_on_totalsegmentator_is_as_published_and_fits_its_memory(size: str) -> None:
    preset = presets.load(f"totalseg-{size.lower()}")
    assert preset.size == size
    assert preset.spacing == [1.5, 1.5, 1.5]
    assert preset.normalization == "zscore"
    assert preset.set["num_epochs"] == 4000
    _fits(preset, classes=105)
    _fits(preset, classes=118)


def test_the_union_fits_its_memory_as_well() -> None:
    _fits(presets.load("union-ct"), classes=130)


def _fits(preset: presets.Preset, classes: int) -> None:
    patch, strides = topology.round_up(preset.set["patch_size"], [1.5, 1.5, 1.5], topology.DEFAULT_STAGES)
    assert patch == preset.set["patch_size"]
    needed = memory.estimate(Network({"size": preset.size}, 1, classes), patch, preset.set["batch_size"], strides)
    assert preset.memory_gb
    assert needed <= preset.memory_gb


def test_plans_of_another_spacing_or_normalization_are_told_apart() -> None:
    preset = presets.load("totalseg-b")
    configuration: dict[str, Any] = {"spacing": [1.5, 1.5, 1.5], "normalization_schemes": ["ZScoreNormalization"]}
    plans = {"configurations": {"3d_fullres": configuration}}
    assert preset.unlike(Plan(plans)) == ""
    assert presets.load("b").unlike(Plan({"configurations": {}})) == ""
    configuration["normalization_schemes"] = ["CTNormalization"]
    assert preset.unlike(Plan(plans)) == "normalization CTNormalization, not ZScoreNormalization"
    configuration["spacing"] = [3, 1, 1]
    assert preset.unlike(Plan(plans)) == "spacing [3, 1, 1], not [1.5, 1.5, 1.5] mm"
    assert "spacing" in preset.unlike(Plan({"configurations": {"2d": {}}}))


@for_each(
    ("text", "message"),
    [
        ('title = "mine"\nsize = "S"\nfintune = "x"\n', "unknown key 'fintune'"),
        ('title = "mine"\n', "missing 'size'"),
        ("title = \n", "not valid TOML"),
        ('title = "mine"\nsize = "Q"\n', "size: expected one of 'T', .* got 'Q'"),
        ('title = "mine"\nsize = "S"\nspacing = [1, 1]\n', r"spacing: expected three numbers in mm"),
        ('title = "mine"\nsize = "S"\nspacing = [1, 1, 0]\n', r"spacing\[2\]: expected a number above 0"),
        ('title = "mine"\nsize = "S"\nspacing = 1.5\n', "spacing: expected three numbers in mm"),
        (
            'title = "mine"\nsize = "S"\nnormalization = "minmax"\n',
            "normalization: expected one of 'zscore', 'ct'",
        ),
    ],
)
def test_preset_files_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        presets.load(str(file))
    assert caught.value.hint
    with pytest.raises(DataError, match="no preset 'bb'; did you mean 'b'"):
        presets.load("bb")
