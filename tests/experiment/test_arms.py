"""Experiments: what a TOML file says, the arms and commands it means, and the statistics of what they gave."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stunet.errors import DataError
from stunet.evaluation.bootstrap import mean_dice
from stunet.experiment.arms import Arm, arms, command, from_scratch, read_experiment, request
from stunet.experiment.summary import COLOURS, MARKERS, Row, bootstrap, plot, summarise, to_json, write
from stunet.files import read_json
from tests.html_pages import check_page
from tests.loops import for_each

REQUIRED = """
dataset = 4
weights = ["none", "STU-Net-B"]
strategies = ["full", "linear"]
cases = [4, "all"]
seeds = [0, 1]
"""
ARM = Arm(weights=("STU-Net-B",), title="STU-Net-B", strategy="ramp", head=None, cases=4, seed=0)
SCRATCH = replace(ARM, weights=(), title="scratch")


def written(folder: Path, text: str) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text)
    return path


def test_the_arms_are_the_product_with_each_schedule_once_from_scratch(tmp_path: Path) -> None:
    experiment = read_experiment(written(tmp_path, REQUIRED + 'heads = ["slice", "reset"]'))
    found = arms(experiment)
    pretrained = [(w, h) for w in ("STU-Net-B full", "STU-Net-B linear") for h in ("slice", "reset")]
    lines = ["scratch full", "scratch ramp", *(" ".join(words) for words in pretrained)]
    assert [(a.seed, a.cases, a.line) for a in found] == [
        (seed, cases, line) for seed in (0, 1) for cases in (4, "all") for line in lines
    ]
    assert len({arm.name for arm in found}) == len(found)
    assert all(re.fullmatch(r"[\w.-]+", arm.name) for arm in found)


def test_what_is_transferred_is_a_dimension_but_from_scratch(tmp_path: Path) -> None:
    text = REQUIRED.replace('["full", "linear"]', '["full"]') + 'transfers = ["encoder", "all"]'
    experiment = read_experiment(written(tmp_path, text))
    found = [arm for arm in arms(experiment) if (arm.cases, arm.seed) == (4, 0)]
    assert [arm.line for arm in found] == ["scratch full", "STU-Net-B full encoder", "STU-Net-B full all"]
    assert command(request(experiment, found[1]))[-5:-3] == ["--transfer", "encoder"]
    assert "--transfer" not in command(request(experiment, found[0]))
    with pytest.raises(DataError, match="'slice' takes pre-trained rows"):
        read_experiment(written(tmp_path, text + '\nheads = ["reset", "slice"]'))


def test_several_weights_are_one_arm_whatever_of_single_ones_is_taken(tmp_path: Path) -> None:
    weights = 'weights = { mae = "a.pth", both = ["a.pth", "b.pth"] }'
    text = REQUIRED.replace('weights = ["none", "STU-Net-B"]', weights).replace('["full", "linear"]', '["full"]')
    experiment = read_experiment(written(tmp_path, text + 'heads = ["reset"]\ntransfers = ["encoder", "all"]'))
    found = [arm for arm in arms(experiment) if (arm.cases, arm.seed) == (4, 0)]
    assert [arm.line for arm in found] == ["mae full reset encoder", "mae full reset all", "both full"]
    words = command(request(experiment, found[-1]))
    assert words[4:10] == ["--pretrained", "a.pth", "--pretrained", "b.pth", "--finetune", "full"]
    assert "--head" not in words
    assert "--transfer" not in words


def test_from_scratch_a_strategy_is_its_schedule() -> None:
    assert [from_scratch(name) for name in ("full", "ramp", "sawtooth", "warmup", "linear", "quarter-4", "lora")] == [
        *("full", "ramp", "sawtooth", "warmup", "ramp", "ramp", "ramp")
    ]


def test_from_scratch_a_shallower_network_is_another_training_and_slower_layers_are_not() -> None:
    assert [from_scratch(name) for name in ("shallow", "layerwise")] == ["shallow", "ramp"]


def test_an_arm_is_a_command_of_stunet_train(tmp_path: Path) -> None:
    text = """
fold = 2
plans = "STUNetPlans_B"
set = { num_epochs = 3, patch_size = [16, 16, 16], initial_lr = 1 }
set_scratch = { initial_lr = 0.01 }
set_pretrained = { checkpointing = true }
"""
    experiment = read_experiment(written(tmp_path, REQUIRED + text))
    commands = [" ".join(command(request(experiment, arm))) for arm in arms(experiment)]
    start = "stunet_train 4 3d_fullres 2 -p STUNetPlans_B"
    values = "--set num_epochs=3 patch_size=[16,16,16]"
    assert commands[0] == f"{start} --finetune full {values} initial_lr=0.01 num_cases=4 seed=0"
    assert commands[-1] == (
        f"{start} --pretrained STU-Net-B --finetune linear {values} initial_lr=1.0 checkpointing=true seed=1"
    )


@for_each(
    ("weights", "expected"),
    [
        (
            '["none", "a/model.pth", "STU-Net-B"]',
            {"scratch": "", "model.pth": "{}/a/model.pth", "STU-Net-B": "STU-Net-B"},
        ),
        ('{ ours = "a/model.pth", a = "./a", base = "none" }', {"ours": "{}/a/model.pth", "a": "{}/a", "base": ""}),
        ('{ none = "a/model.pth", base = "none" }', {"none": "{}/a/model.pth", "base": ""}),
        ('{ both = ["a/model.pth", "STU-Net-B"], a = ["a"] }', {"both": "{}/a/model.pth STU-Net-B", "a": "{}/a"}),
    ],
)
def test_weights_have_titles_and_files_are_found_beside_the_experiment(
    tmp_path: Path, weights: str, expected: dict[str, str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.pth").touch()
    experiment = read_experiment(written(tmp_path, REQUIRED.replace('["none", "STU-Net-B"]', weights)))
    assert experiment.weights == {title: tuple(text.format(tmp_path).split()) for title, text in expected.items()}
    assert list(dict.fromkeys(arm.title for arm in arms(experiment))) == list(expected)


@for_each(
    ("old", "new", "message", "hint"),
    [
        ("dataset = 4", "dataset =", "is not valid TOML", "correct the line"),
        ("seeds", "seed", "unknown key 'seed'; did you mean 'seeds'", "stunet_experiment --help"),
        ("seeds = [0, 1]", "", "missing 'seeds'", "stunet_experiment --help"),
        ("[0, 1]", "[0, 0]", "seeds: [0, 0] has a value twice", "--help"),
        ("[0, 1]", "[-1]", "seeds[0]: expected an integer from 0", "--help"),
        ("[0, 1]", "[true]", "seeds[0]: expected an integer from 0", "--help"),
        ("[0, 1]", "0", "seeds: expected a list that is not empty, got 0", "--help"),
        ("[0, 1]", "[]", "seeds: expected a list that is not empty, got []", "--help"),
        ('[4, "all"]', '[4, "al"]', "cases[1]: expected a number or \"all\", got 'al'", "--help"),
        ('"all"', "0", 'cases[1]: expected a number or "all", got 0', "--help"),
        ('"STU-Net-B"', '"a/x.pth", "b/x.pth"', "two weights are called 'x.pth'", "weights = { one = "),
        ('"STU-Net-B"', "1", "weights[1]: expected text, got 1", "--help"),
        ('["none", "STU-Net-B"]', "{ a = 1 }", "weights.a: expected text, or a list of it, got 1", "--help"),
        ('["none", "STU-Net-B"]', "{ a = ['b', 1] }", "weights.a[1]: expected text, got 1", "--help"),
        ('["none", "STU-Net-B"]', "{ a = [] }", "weights.a: expected text, or a list of it, got []", "--help"),
        ('["none", "STU-Net-B"]', "{ a = ['b', 'b'] }", "weights.a: ['b', 'b'] has a value twice", "--help"),
        ('["none", "STU-Net-B"]', "{ a = ['.', './'] }", "'a' names the same weights twice", "other weights"),
        ('["none", "STU-Net-B"]', "{ a = ['b', 'none'] }", "'a' has 'none' among its weights", 'a = "none", or'),
        (
            '["none", "STU-Net-B"]',
            "{ a = ['b', 'c'], d = ['c', 'b'] }",
            "'a' and 'd' are the same weights",
            "leave one",
        ),
        ('["none", "STU-Net-B"]', "{}", "weights: expected a list like", "--help"),
        ('"linear"', '"linaer"', "unknown fine-tuning strategy 'linaer'; did you mean 'linear'", "--finetune takes"),
        ("dataset = 4", "dataset = 4\nfold = 'all'", "fold: expected an integer of at least 0, got 'all'", "--help"),
        (
            "dataset = 4",
            "dataset = 4\nsize = 'XL'",
            "size: expected one of 'T', 'S',",
            "--help",
        ),
        (
            "dataset = 4",
            "dataset = 4\nheads = ['cut']",
            "heads[0]: expected one of 'slice'",
            "--help",
        ),
        (
            "dataset = 4",
            "dataset = 4\nheads = ['reuse']",
            "heads[0]: expected one of 'slice'",
            "--help",
        ),
        ("dataset = 4", "dataset = 4\ntransfers = ['decoder']", "transfers[0]: expected one of 'encoder'", "--help"),
        ('["none", "STU-Net-B"]', '{ a = "none", b = "none" }', "'a' and 'b' are the same weights 'none'", "leave one"),
        ("dataset = 4", "dataset = 4\nset = {num_epoch = 1}", "did you mean 'num_epochs'", "--set takes"),
        ("dataset = 4", "dataset = 4\nset_scratch = {momentum = 2}", "momentum=2 is not a valid", "momentum=0.9"),
        ("dataset = 4", "dataset = 4\nset = {seed = 1}", "seed in [set] would be the same", "seeds = [...]"),
        ("dataset = 4", "dataset = 4\nset = {num_cases = 1}", "num_cases in [set] would be", "cases = [...]"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    path = written(tmp_path, REQUIRED.replace(old, new))
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        read_experiment(path)
    assert str(path) in raised.value.message
    assert "\n" not in raised.value.message
    assert hint in raised.value.hint


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*no\.toml"):
        read_experiment(tmp_path / "no.toml")


def test_the_mean_is_over_classes_of_means_over_cases_where_they_occur() -> None:
    dice_CK = np.array([[0.5, math.nan, math.nan], [1.0, 0.2, math.nan]])
    assert mean_dice(dice_CK) == pytest.approx((0.75 + 0.2) / 2)


def slow_bootstrap(ours: np.ndarray, theirs: np.ndarray, draws: int, seed: int) -> list[float]:
    """The bootstrap with loops: tables are stacked as often as seeds and cases are drawn."""
    random = np.random.default_rng(seed)
    counts = [random.multinomial(n - 1, np.full(n, 1 / n), size=draws) for n in ours.shape[:2]]
    found = []
    for draw in range(draws):
        seeds, cases = (np.repeat(np.arange(len(c[draw])), c[draw]) for c in counts)
        per_seed = [np.nanmean(np.nanmean(t[s][cases], axis=0)) for s in seeds for t in (ours, theirs)]
        found.append(float(np.mean(per_seed[::2]) - np.mean(per_seed[1::2])))
    return found


def test_the_bootstrap_equals_a_slow_reference() -> None:
    random = np.random.default_rng(1)
    ours, theirs = random.random((2, 3, 6, 2))
    ours[1, 2, 0] = theirs[0, 4, 1] = math.nan
    fast = bootstrap(ours, theirs, 50, np.random.default_rng(7))
    np.testing.assert_allclose(fast, slow_bootstrap(ours, theirs, 50, 7), rtol=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    truth, covered, repeats = 0.05, 0, 300
    for _ in range(repeats):
        seeds, cases = random.normal(0, 0.02, (3, 1, 1)), random.normal(0, 0.03, (1, 20, 1))
        case_level, noise = random.normal(0.7, 0.1, (1, 20, 1)), random.normal(0, 0.02, (2, 3, 20, 1))
        ours, theirs = case_level + truth + seeds + cases + noise[0], case_level + noise[1]
        low, high = np.quantile(bootstrap(ours, theirs, 300, random), [0.025, 0.975])
        covered += low <= truth <= high
    assert 0.89 < covered / repeats < 0.98  # 0.87 with as many draws as there are seeds


def table(values: np.ndarray) -> dict[str, dict[str, float]]:
    return {f"case_{c}": {"liver": float(liver), "spleen": float(spleen)} for c, (liver, spleen) in enumerate(values)}


def test_rows_pair_the_seeds_that_both_arms_have() -> None:
    random = np.random.default_rng(2)
    ours, theirs = random.random((2, 3, 5, 2))
    results = {replace(SCRATCH, seed=s): table(theirs[s]) for s in (0, 2)}
    results |= {replace(ARM, seed=s): table(ours[s]) for s in (2, 0, 1)}
    scratch, row = summarise(results)
    assert (scratch.line, scratch.baseline, scratch.pairs) == ("scratch ramp", "", 0)
    assert math.isnan(scratch.difference)
    assert (row.line, row.baseline, row.pairs) == ("STU-Net-B ramp", "scratch ramp", 2)
    assert row.dice == pytest.approx(ours.mean())
    assert row.sd == pytest.approx(ours.mean(axis=(1, 2)).std(ddof=1))
    assert row.seeds == pytest.approx({s: ours[s].mean() for s in (0, 1, 2)})
    assert row.classes == pytest.approx({"liver": ours[..., 0].mean(), "spleen": ours[..., 1].mean()})
    assert row.difference == pytest.approx(ours[[0, 2]].mean() - theirs[[0, 2]].mean())
    draws = bootstrap(ours[[0, 2]], theirs[[0, 2]])
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_the_baseline_has_the_same_schedule_and_cases() -> None:
    values = np.full((3, 2), 0.5)
    others = [replace(SCRATCH, strategy="full"), replace(SCRATCH, cases=8), SCRATCH]
    ours = [replace(ARM, strategy="linear"), replace(ARM, strategy="full"), replace(ARM, strategy="warmup")]
    rows = {(row.line, row.cases): row.baseline for row in summarise({arm: table(values) for arm in (*others, *ours)})}
    assert rows["STU-Net-B linear", 4] == "scratch ramp"
    assert rows["STU-Net-B full", 4] == "scratch full"
    assert rows["STU-Net-B warmup", 4] == ""


def test_without_any_class_there_is_no_difference_and_no_warning() -> None:
    nothing = table(np.full((3, 2), math.nan))
    row = summarise({SCRATCH: nothing, ARM: nothing})[1]
    assert (row.baseline, row.pairs) == ("scratch ramp", 1)
    assert all(map(math.isnan, (row.dice, row.difference, row.low, row.high, row.classes["liver"])))


@for_each("order", [("a", "b", "c"), ("c", "b", "a")])
def test_classes_are_those_of_all_cases_where_each_annotates_some(order: tuple[str, ...]) -> None:
    cases: dict[str, dict[str, float]] = {"a": {"liver": 0.6}, "b": {}, "c": {"spleen": 0.9, "liver": 0.8}}
    dice = {case: cases[case] for case in order}
    better = {case: {name: value + 0.05 for name, value in classes.items()} for case, classes in dice.items()}
    scratch, row = summarise({SCRATCH: dice, ARM: better})
    assert scratch.classes == pytest.approx({"liver": 0.7, "spleen": 0.9})
    assert scratch.dice == pytest.approx(0.8)
    assert row.difference == pytest.approx(0.05)
    with pytest.raises(DataError, match="different cases or classes"):
        summarise({SCRATCH: dice, ARM: {**better, "b": {"liver": 0.5}}})


def test_arms_with_other_held_out_cases_are_not_compared() -> None:
    results = {SCRATCH: table(np.ones((3, 2))), ARM: table(np.ones((4, 2)))}
    with pytest.raises(DataError, match="validated on different cases"):
        summarise(results)


def rows() -> list[Row]:
    seeds, classes = {0: 0.6}, {"liver": 0.6}
    one = Row(line="scratch ramp", weights="none", cases=4, dice=0.6, sd=math.nan, seeds=seeds, classes=classes)
    ours = replace(one, line="ours ramp", weights="a.pth", cases="all", sd=0.1)
    return [one, replace(one, cases="all", sd=0.05), replace(ours, baseline=one.line, pairs=1, difference=0.1)]


def test_the_summary_is_written_as_a_table_json_and_a_picture(tmp_path: Path) -> None:
    paths = write(rows(), tmp_path)
    assert [path.name for path in paths] == ["summary.json", "summary.csv", "summary.png", "summary.html"]
    assert read_json(paths[0]) == json.loads(json.dumps(to_json(rows())))
    assert read_json(paths[0])[0]["sd"] is None
    page = check_page(paths[3])
    assert "ours ramp all 1 0.6000 0.1000 +0.1000" in page.text
    assert len(page.of("table")) == 2
    assert len(page.of("image")) == 1
    with paths[1].open(newline="") as file:
        first, *_, last = csv.DictReader(file)
    assert (first["sd"], first["dice_seed_0"], first["dice_liver"]) == ("", "0.6", "0.6")
    assert (last["cases"], last["baseline"], last["difference"]) == ("all", "scratch ramp", "0.1")
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_lines_of_one_colour_have_different_markers() -> None:
    assert math.gcd(len(COLOURS), len(MARKERS)) == 1


@for_each(("lines", "bands"), [(5, 5), (6, 0)])
def test_bands_are_drawn_where_there_are_few_lines(tmp_path: Path, lines: int, bands: int) -> None:
    found = [replace(row, line=f"arm {n}", sd=0.1) for n in range(lines) for row in rows()[:2]]
    plot(found, tmp_path / "plot.svg")
    assert len(re.findall(r'id="\w*PolyCollection_\d+"', (tmp_path / "plot.svg").read_text())) == bands
