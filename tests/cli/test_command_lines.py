"""All commands: which flags they have, and that help and errors come at once, before torch is loaded."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.loops import for_each
from tests.test_structure import ROOT

COMMANDS = (
    "convert",
    "demo",
    "evaluate",
    "experiment",
    "features",
    "rank",
    "info",
    "merge",
    "models",
    "plan_and_preprocess",
    "predict",
    "pretrain",
    "pseudo_label",
    "rank",
    "report",
    "train",
    "view",
)


def test_every_command_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"stunet", *(f"stunet_{name}" for name in COMMANDS)}
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def flags(command: str, capsys: pytest.CaptureFixture[str], *subcommand: str) -> set[str]:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"stunet.cli.{command}").main([*subcommand, "--help"])
    assert ended.value.code == 0
    return set(
        re.findall(r"(?<![\w-])(--?[A-Za-z]\w*)", re.sub(r"(?s)(examples?|exit codes):.*", "", capsys.readouterr().out))
    )


def nnunet_flags(file: str, *functions: str) -> set[str]:
    """The flags that these functions of one of nnU-Net's files add to their parsers, read from its source."""
    folder = Path(*importlib.util.find_spec("nnunetv2").submodule_search_locations)
    parsers = [n for n in ast.walk(ast.parse((folder / file).read_text())) if getattr(n, "name", "") in functions]
    assert len(parsers) == len(functions)
    calls = [n for parser in parsers for n in ast.walk(parser) if isinstance(n, ast.Call)]
    added = [c.args for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "add_argument"]
    return {arg.value for args in added for arg in args if isinstance(arg, ast.Constant) and arg.value.startswith("-")}


# nnU-Net's command beside each of ours: its source file, and the functions in it that make the parser.
NNUNET = {
    "plan_and_preprocess": (
        "experiment_planning/plan_and_preprocess_entrypoints.py",
        "plan_and_preprocess_entry",
        "_add_logging_args",
    ),
    "train": ("run/run_training.py", "run_training_entry"),
    "predict": ("inference/predict_from_raw_data.py", "predict_entry_point"),
    "evaluate": ("evaluation/evaluate_predictions.py", "evaluate_folder_entry_point"),
}
# Ours. A new flag is added here, to the docs and to the changelog in one commit.
OUR_FLAGS = {
    "plan_and_preprocess": "-p --size --network --preset --stages --spacing --pretrained --accept_licence --like "
    "--checkpointing --probe --dry_run --no_check --no_report --cluster -num_parts -part_id --merge",
    "train": "-d -c -f --size --network --stages -gpu_memory_target --preset --set --dry_run --overwrite --pretrained "
    "--finetune --head --list --fsdp --transfer --inflate --accept_licence --name --last --log",
    "pretrain": "-d --method --list -c -p --like --size --network --stages -gpu_memory_target --preset --set --augment "
    "--skip_bad --dry_run --overwrite -num_gpus --fsdp -device --c --disable_checkpointing --pretrained --transfer "
    "--inflate --accept_licence --name --log",
    "predict": "--model --series --labels --v1_preprocessing --orientation --precision --max_memory --threads --fast "
    "--roi_subset --format --statistics --preview --report --cluster --dry_run --accept_licence --last --merge "
    "--index --shard",
    "evaluate": "-d --tolerance --labels --csv --json --report --cluster -num_parts -part_id --merge",
    "experiment": "-o --dry_run --summary_only -j -device --json --accept_licence",
    "rank": "-d --models --scores --cases -f --points --layers --seed -o -step_size -device --precision --threads "
    "--finetune --set -c -p -j --json --disable_progress_bar --accept_licence",
    "features": "-i -o --model -d -c -p -tr -f -chk --pool --labels --points --world --stages --probe --target --task "
    "--seed --series --orientation -step_size -device --precision --threads --cluster --overwrite "
    "--disable_progress_bar --accept_licence -num_parts -part_id --merge",
    "info": "--json",
    "report": "-o --no_slices --views",
    "pseudo_label": "-d --teacher --name --classes --min_confidence --confidence --orientation -f -chk -step_size "
    "--disable_tta -device --precision --dry_run --accept_licence -num_parts -part_id --merge",
    "demo": "-o -device",
    "view": "-d -djfile --reference --case --html --port --no_browser --last",
}


@for_each("command", sorted(OUR_FLAGS))
def test_commands_have_nnunets_flags_and_ours_and_no_others(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"-h", "--help", "--verbose", "--debug", "--version"}
    stock = nnunet_flags(*NNUNET[command]) if command in NNUNET else set()
    assert flags(command, capsys) == stock | set(OUR_FLAGS[command].split()) | common


ANSWERS = """
import contextlib, importlib, io, sys
for line in sys.stdin.read().splitlines():
    name, *argv = line.split()
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module("stunet.cli." + name).main(argv)
    loaded = {'torch', 'nnunetv2', 'SimpleITK', 'scipy', 'matplotlib', 'rich', 'distributed'} & set(sys.modules)
    if loaded or not said.getvalue():
        sys.exit(f"{line}: loaded {loaded}, said {said.getvalue()!r}")
"""


@pytest.mark.process
def test_commands_answer_without_loading_torch() -> None:
    lines = [*(f"{name} --help" for name in COMMANDS), "info --json", "models list", "train --list"]
    lines.append("pretrain --list")
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


WRONG = """
import contextlib, importlib, io, json, os, sys
for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ[variable] = os.path.abspath(variable)
os.environ["STUNET_MODELS"] = os.path.abspath("models")
os.makedirs("nnUNet_raw/Dataset998_Toy"), os.makedirs("nnUNet_preprocessed/Dataset998_Toy"), os.makedirs("in")
plans = {"plans_name": "P", "configurations": {"3d_fullres": {}}, "stunet": {"train": {}, "plan": {}}}
description = {
    "channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "numTraining": 1, "file_ending": ".nii.gz",
}
for path in ("nnUNet_raw", "nnUNet_preprocessed"):
    json.dump(description, open(path + "/Dataset998_Toy/dataset.json", "w"))
json.dump(plans, open("nnUNet_preprocessed/Dataset998_Toy/P.json", "w"))
wrong = []
for line in sys.stdin.read().splitlines():
    code, name, *argv = line.split()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            ended = importlib.import_module("stunet.cli." + name).main(argv)
        except SystemExit as error:
            ended = error.code
    if ended != int(code) or len(said.getvalue().splitlines()) != 2 or "torch" in sys.modules:
        wrong.append((line, ended, said.getvalue(), "torch" in sys.modules))
        sys.modules.pop("torch", None)
sys.exit(repr(wrong) if wrong else 0)
"""


@pytest.mark.process
def test_wrong_command_lines_are_refused_in_two_lines_before_torch_is_loaded(tmp_path: Path) -> None:
    lines = """3 train 77
3 train 998 3d_ful --set num_epochs=3
2 train 998 3d_fullres x
3 train 998 -p X
2 train 998 -tr STUNetTrainr
2 train 998 --set learning_rate=3
3 train 998 --preset x
2 train 998 --c --val
2 train 998 --finetune rmp
2 train 998 --stages x
4 train 998 --pretrained NoSuch
2 train --continue
3 predict -i in -o out -d 77 -c 3d_fullres
3 predict -i in -o out -d 998 -c 3d_fullres
4 predict -i in -o out --model NoSuch
3 predict -i in -o out -d 998 -c 3d_fullres --labels nosuch
2 predict --input in --output out
3 evaluate nowhere elsewhere
3 evaluate -d 77 in
2 evaluate in in -np 0
3 evaluate in in --labels nosuch
2 view
3 view nowhere
3 view -d 77
2 view -d 998 in in
2 view in --html page
2 view in --port 70000
3 plan_and_preprocess -d 77
3 plan_and_preprocess -d 998 --preset x
2 plan_and_preprocess -d 998 --stages x
2 plan_and_preprocess -d 998 -c 3d_ful
2 plan_and_preprocess -d 998 -np 0
3 convert msd -i nowhere
3 convert totalsegmentator -i nowhere -d 3 --name X
2 convert pairs -i in -d 0 --name X --channels CT --labels a
3 merge check nowhere.yaml
3 pseudo_label -d 77 --teacher X --name Dataset901_X
4 pseudo_label -d 998 --teacher NoSuch --name Dataset901_X
3 experiment nowhere.toml
4 models check NoSuch
4 models export NoSuch -o x
4 models bn-recollect NoSuch -d 998"""
    done = subprocess.run(
        [sys.executable, "-c", WRONG], input=lines, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
