"""Rules about the code itself: packages, who may import whom, which flags commands have, how they answer."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tests.loops import for_each

ROOT = Path(__file__).parents[1]
FOLDERS = {"stunet": ROOT / "stunet", **{f"stunet.{name}": ROOT / name for name in ("plans", "presets", "trainers")}}
COMMANDS = (
    "convert",
    "demo",
    "evaluate",
    "experiment",
    "info",
    "merge",
    "models",
    "plan_and_preprocess",
    "predict",
    "pseudo_label",
    "train",
)

# What each part imports of ours, besides itself; every part may use FREE.
FREE = {
    "errors", "files", "images", "kinds", "machine", "names", "nifti", "nifti_header", "orientation", "schema", "sizes",
    "source_lookup", "workspace", "presets", "stunet",
}  # fmt: skip
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "machine": set(),
    "files": set(),
    "kinds": set(),
    "names": set(),
    "schema": set(),
    "workspace": set(),
    "presets": set(),
    "networks": set(),
    "sizes": set(),
    "nifti": set(),
    "nifti_header": set(),
    "orientation": set(),
    "images": set(),
    "resampling": set(),
    "source_lookup": set(),
    "console": set(),
    "workers": set(),
    "folds": set(),
    "labels": set(),
    "nnunet": set(),
    "losses": set(),
    "weights": {"labels", "networks", "plans"},
    "models": {"labels", "networks", "plans", "weights"},
    "datasets": {"labels", "resampling", "workers"},
    "preprocessing": {"datasets", "labels", "nnunet", "plans", "resampling", "weights", "workers"},
    "provenance": {"folds", "labels", "plans", "preprocessing"},
    "plans": {"datasets", "folds", "labels", "losses", "networks", "nnunet", "workers"},
    "evaluation": {"datasets", "labels", "workers"},
    "results": {"datasets", "evaluation", "labels"},
    "inference": {
        "datasets",
        "labels",
        "models",
        "plans",
        "preprocessing",
        "provenance",
        "results",
        "weights",
    },
    "merging": {"datasets", "inference", "labels", "workers"},
    "trainers": {
        "datasets",
        "evaluation",
        "folds",
        "inference",
        "labels",
        "losses",
        "networks",
        "nnunet",
        "plans",
        "preprocessing",
        "provenance",
        "weights",
        "workers",
    },
    "nnunet_ext": {"trainers"},
    "runs": {"folds", "labels", "plans", "preprocessing", "provenance", "trainers"},
    "experiment": {"plans", "trainers"},
}
HOST = {  # may import nnunetv2
    "datasets", "images", "inference", "merging", "plans", "preprocessing", "trainers",
}  # fmt: skip
WITHOUT_TORCH = {
    "errors", "files", "folds", "kinds", "machine", "names", "provenance", "schema", "sizes", "workspace", "presets",
    "console", "preprocessing", "cli", "labels", "models", "workers",
}  # fmt: skip  # at the top of a file
WITH_TORCH = {  # though the other files of their parts have none
    "stunet.models.folder", "stunet.preprocessing.case", "stunet.preprocessing.stored",
}  # fmt: skip


@cache
def modules() -> list[tuple[str, Path]]:
    """All modules of the package with their dotted name, each file once."""
    found = []
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                parts = path.relative_to(folder).with_suffix("").parts
                found.append((".".join((package, *(p for p in parts if p != "__init__"))), path))
    return found


@cache
def imports(path: Path, top_only: bool) -> set[str]:
    """What a module imports; those for type checking only are left out, with `top_only` also those inside functions."""
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = list(tree.body) if top_only else list(ast.walk(tree))
    guarded = {
        id(n) for b in tree.body if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.dump(b.test) for n in ast.walk(b)
    }
    names: set[str] = set()
    for node in nodes:
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(dotted: str) -> str:
    """`stunet.plans.fit` belongs to the part `plans`, the package itself is the part `stunet`."""
    names = dotted.split(".")
    return names[1] if len(names) > 1 else names[0]


def parts_used(name: str, path: Path) -> set[str]:
    """The parts that a module imports besides its own and those that are FREE."""
    known = {part(other) for other, _ in modules()}
    return ({part(i) for i in imports(path, top_only=False) if i.startswith("stunet.")} & known) - FREE - {part(name)}


def test_modules_import_only_what_they_may() -> None:
    for name, path in modules():
        if part(name) not in ("cli", "stunet"):
            assert parts_used(name, path) <= MAY_IMPORT[part(name)], name


def test_every_import_that_is_allowed_is_needed() -> None:
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    host = set()
    for name, path in modules():
        used.setdefault(part(name), set()).update(parts_used(name, path))
        host |= {part(name) for i in imports(path, top_only=False) if i.startswith("nnunetv2")}
    assert {name: may - used[name] for name, may in MAY_IMPORT.items() if may - used[name]} == {}
    assert host - {"cli"} == HOST


def test_nnunet_and_torch_are_imported_where_they_belong() -> None:
    for name, path in modules():
        everything, top = imports(path, top_only=False), imports(path, top_only=True)
        if part(name) not in HOST | {"cli"}:
            assert not [i for i in everything if i.startswith("nnunetv2")], name
        if part(name) in WITHOUT_TORCH and name not in WITH_TORCH:
            assert not [i for i in top if i.split(".")[0] in ("torch", "nnunetv2", "SimpleITK", "scipy")], name
        if part(name) != "cli":
            assert "stunet.console" not in everything, name


def test_files_open_with_a_docstring_and_stay_short() -> None:
    for name, path in modules():
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{name} has no docstring"
        assert len(text.splitlines()) <= 500, name


def test_the_packaged_packages_are_the_folders() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name for name, path in modules() if path.name == "__init__.py"}
    assert set(table["packages"]) == folders
    assert {k: v for k, v in table["package-dir"].items() if k != "stunet"} == {
        name: str(folder.relative_to(ROOT)) for name, folder in FOLDERS.items() if name != "stunet"
    }


def test_every_command_is_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {f"stunet_{name}" for name in COMMANDS}
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_every_package_imported_is_a_dependency_and_the_other_way_round() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = project["dependencies"] + extras["dicomseg"] + extras["peft"]
    used = {i.split(".")[0] for _, path in modules() for i in imports(path, top_only=False)}
    imported_as = {"PyYAML": "yaml"}
    names = (re.split(r"[^\w-]", name)[0] for name in declared)
    assert used - sys.stdlib_module_names - {"stunet"} == {imported_as.get(name, name) for name in names}


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
    "plan_and_preprocess": "-p --size --preset --stages --checkpointing --probe --dry_run --no_check",
    "train": "-d -c -f --size --stages -gpu_memory_target --preset --set --dry_run --overwrite --pretrained --finetune "
    "--head --list --fsdp",
    "predict": "--model --series --labels --v1_preprocessing --orientation --precision --max_memory --threads --fast "
    "--roi_subset --format --statistics --preview --report --dry_run",
    "evaluate": "-d --tolerance --labels --csv --json",
    "experiment": "-o --dry_run --summary_only -j -device --json",
    "info": "--json",
    "pseudo_label": "-d --teacher --name --classes --min_confidence --confidence --orientation -f -chk -step_size "
    "--disable_tta -device --precision --dry_run",
    "demo": "-o -device",
}


@for_each("command", sorted(OUR_FLAGS))
def test_commands_have_nnunets_flags_and_ours_and_no_others(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"-h", "--help", "--verbose", "--debug", "--version"}
    stock = nnunet_flags(*NNUNET[command]) if command in NNUNET else set()
    assert flags(command, capsys) == stock | set(OUR_FLAGS[command].split()) | common


@for_each("command", [*(f"{name} --help" for name in COMMANDS), "info --json", "models list", "train --list"])
def test_commands_answer_without_loading_torch(command: str) -> None:
    name, *arguments = command.split()
    code = (
        f"import sys\nfrom stunet.cli.{name} import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "loaded = {'torch', 'nnunetv2', 'SimpleITK', 'scipy', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "raise SystemExit(f'loaded {loaded}' if loaded else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


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


def test_nothing_committed_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    suspicious = re.compile(r"/(root|work|home|tmp)/\w")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ""} and path.is_file() and path != Path(__file__):
            assert not suspicious.search(path.read_text()), name
