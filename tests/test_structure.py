"""Rules about the code itself: packages, who may import whom, which flags commands have, how they answer."""

import ast
import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"stunet": ROOT / "stunet", **{f"stunet.{name}": ROOT / name for name in ("plans", "presets", "trainers")}}
COMMANDS = ("convert", "demo", "evaluate", "info", "plan_and_preprocess", "predict", "train")

# What each part may import of ours, besides itself; every part may use FREE.
FREE = {"errors", "files", "nifti", "workspace", "presets", "stunet"}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "workspace": set(),
    "presets": set(),
    "networks": set(),
    "nifti": set(),
    "console": set(),
    "nnunet": set(),
    "metrics": set(),
    "checkpoints": {"networks"},
    "evaluation": {"metrics", "datasets"},
    "datasets": {"nnunet"},
    "preprocessing": {"nnunet", "preprocessing_workers", "datasets"},
    "preprocessing_workers": {"nnunet", "datasets"},
    "inference": {"nnunet", "checkpoints", "networks", "datasets"},
    "plans": {"nnunet", "networks", "datasets"},
    "trainers": {"nnunet", "networks", "checkpoints", "plans"},
    "nnunet_ext": {"trainers"},
}
HOST = {"nnunet", "preprocessing_workers", "inference", "datasets", "plans", "trainers"}  # may import nnunetv2
WITHOUT_TORCH = {"errors", "files", "workspace", "presets", "console", "preprocessing", "cli"}  # at the top of a file


def modules() -> list[tuple[str, Path]]:
    """All modules of the package with their dotted name, each file once."""
    found = []
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents):
                parts = path.relative_to(folder).with_suffix("").parts
                found.append((".".join((package, *(p for p in parts if p != "__init__"))), path))
    return found


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


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_modules_import_only_what_they_may(name: str, path: Path) -> None:
    own = part(name)
    if own in ("cli", "stunet"):
        return
    known = {part(other) for other, _ in modules()}
    used = {part(i) for i in imports(path, top_only=False) if i.startswith("stunet.")} & known
    assert used <= MAY_IMPORT[own] | FREE | {own}, f"{name} imports {used - MAY_IMPORT[own] - FREE}"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_nnunet_and_torch_are_imported_where_they_belong(name: str, path: Path) -> None:
    everything, top = imports(path, top_only=False), imports(path, top_only=True)
    if part(name) not in HOST | {"cli"}:
        assert not [i for i in everything if i.startswith("nnunetv2")]
    if part(name) in WITHOUT_TORCH:
        assert not [i for i in top if i.split(".")[0] in ("torch", "nnunetv2", "SimpleITK", "scipy")]
    if part(name) != "cli":
        assert "stunet.console" not in everything


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_files_open_with_a_docstring_and_stay_short(name: str, path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path.name} has no docstring"
    assert len(text.splitlines()) <= 320


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
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    used = {i.split(".")[0] for _, path in modules() for i in imports(path, top_only=False)}
    assert used - sys.stdlib_module_names - {"stunet"} == {re.split(r"[^\w-]", name)[0] for name in declared}


def flags(command: str, capsys: pytest.CaptureFixture[str], *subcommand: str) -> set[str]:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"stunet.cli.{command}").main([*subcommand, "--help"])
    assert ended.value.code == 0
    return set(
        re.findall(r"(?<![\w-])(--?[A-Za-z]\w*)", re.sub(r"(?s)(examples?|exit codes):.*", "", capsys.readouterr().out))
    )


NNUNET_FLAGS = {
    "plan_and_preprocess": "-d -fpe -npfp --verify_dataset_integrity --no_pp --clean -pl -gpu_memory_target "
    "-preprocessor_name -overwrite_target_spacing -overwrite_plans_name -c -np --verbose --no_pbar",
    "train": "-tr -p -pretrained_weights -num_gpus --npz --c --val --val_best --disable_checkpointing -device",
    "predict": "-i -o -d -p -tr -c -f -step_size --disable_tta --verbose --save_probabilities --continue_prediction "
    "-chk -npp -nps -prev_stage_predictions -num_parts -part_id -device --disable_progress_bar",
    "evaluate": "-djfile -pfile -o -np --chill",
}
# Ours. A new flag is added here, to the docs and to the changelog in one commit.
OUR_FLAGS = {
    "plan_and_preprocess": "--size --preset --stages --checkpointing --probe --dry_run --no_check",
    "train": "-d -c -f --size --stages -gpu_memory_target --preset --set --dry_run --overwrite",
    "predict": "--model --dry_run --not_on_device",
    "evaluate": "-d --tolerance --csv --json",
    "info": "--json",
    "demo": "-o -device",
}


@pytest.mark.parametrize("command", sorted(OUR_FLAGS))
def test_commands_have_nnunets_flags_and_ours_and_no_others(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    common = {"-h", "--help", "--verbose", "--debug", "--version"}
    expected = set(f"{NNUNET_FLAGS.get(command, '')} {OUR_FLAGS[command]}".split()) | common
    assert flags(command, capsys) == expected


@pytest.mark.parametrize("command", [*(f"{name} --help" for name in COMMANDS), "info --json"])
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


def test_nothing_committed_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    suspicious = re.compile(r"/(root|work|home|tmp)/\w")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ""} and path.is_file() and path != Path(__file__):
            assert not suspicious.search(path.read_text()), name
