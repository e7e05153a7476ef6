"""Rules about the code itself: who may import whom, what is packaged, and what files look like."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"stunet": ROOT / "stunet", **{f"stunet.{name}": ROOT / name for name in ("plans", "presets", "trainers")}}
# The parts of the package: its folders, and the modules beside them. A part imports only parts that stand above it, so
# nothing leads back up. Each may import those of BASE that stand above it; the others import what their line lists.
BASE = (
    "errors", "sizes", "machine", "source_lookup", "files", "schema", "names", "kinds", "presets", "nifti_header",
    "nifti", "orientation", "images", "workspace", "plots", "parts",
)  # fmt: skip
# fmt: off
MAY_IMPORT: dict[str, set[str]] = {
    "console": set(),
    "workers": set(),
    "cluster": {"workers"},
    "resampling": set(),
    "networks": set(),
    "architectures": {"networks"},
    "losses": set(),
    "nnunet": set(),
    "folds": set(),
    "probing": set(),
    "labels": set(),
    "datasets": {"labels", "resampling", "workers"},
    "evaluation": {"datasets", "labels", "workers"},
    "results": {"datasets", "evaluation", "labels"},
    "viewer": {"datasets", "results"},
    "plans": {"architectures", "datasets", "folds", "labels", "losses", "nnunet", "workers"},
    "weights": {"architectures", "labels", "plans"},
    "report": {"datasets", "evaluation", "labels", "plans", "results", "weights"},
    "models": {"labels", "plans", "weights"},
    "preprocessing": {"datasets", "folds", "labels", "nnunet", "plans", "resampling", "weights", "workers"},
    "provenance": {"folds", "labels", "plans", "preprocessing"},
    "inference": {"architectures", "datasets", "labels", "models", "plans", "preprocessing", "provenance", "results",
                  "weights"},
    "merging": {"datasets", "inference", "labels", "report", "workers"},
    "trainers": {"architectures", "datasets", "evaluation", "folds", "inference", "labels", "losses", "nnunet", "plans",
                 "preprocessing", "provenance", "report", "weights", "workers"},
    "nnunet_ext": {"trainers"},
    "ranking": {"architectures", "datasets", "evaluation", "inference", "labels", "models", "plans", "report",
                "weights"},
    "runs": {"cluster", "datasets", "evaluation", "folds", "inference", "labels", "models", "nnunet", "plans",
             "preprocessing", "probing", "provenance", "ranking", "report", "results", "trainers", "viewer", "workers"},
    "experiment": {"evaluation", "folds", "models", "plans", "provenance", "ranking", "report", "runs", "trainers"},
}
# fmt: on
TOP = {"cli", "stunet"}  # the commands and the Python API: they may import everything, and nothing imports them
# Parts whose files import none of HEAVY at the top, so that --help and usage errors stay instant, and the exceptions.
HEAVY = {"torch", "nnunetv2", "SimpleITK", "scipy", "sklearn"}
LIGHT = {
    "architectures", "errors", "files", "folds", "kinds", "machine", "names", "nnunet", "provenance", "schema", "sizes",
    "source_lookup", "workspace", "presets", "console", "preprocessing", "cli", "cluster", "labels", "models", "parts",
    "runs",
    "workers",
}  # fmt: skip
HEAVY_FILES = {
    "stunet.models.folder", "stunet.models.onnx_export", "stunet.preprocessing.case",
    "stunet.preprocessing.stored", "stunet.runs.launch", "stunet.runs.memory_check",
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
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


@cache
def imports(path: Path, top_only: bool) -> set[str]:
    """What a module imports; those for type checking only are left out, with `top_only` also those inside functions."""
    tree = tree_of(path)
    nodes: list[ast.AST] = list(tree.body) if top_only else nodes_of(path)
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


@cache
def parts_used() -> dict[str, set[str]]:
    """What each part imports of the others, anywhere in its files; the version may be imported from the package."""
    used: dict[str, set[str]] = {part(name): set() for name, _ in modules()}
    for name, path in modules():
        ours = {i for i in imports(path, top_only=False) if i.startswith("stunet.") and i != "stunet.__version__"}
        used[part(name)] |= {part(i) if part(i) in used else "stunet" for i in ours} - {part(name)}
    return used


def test_parts_import_exactly_what_the_table_lists() -> None:
    found = {name: used - set(BASE) for name, used in parts_used().items() if name not in {*BASE, *TOP}}
    assert found == MAY_IMPORT


def test_imports_lead_down_and_never_back_up() -> None:
    order = [*BASE, *MAY_IMPORT, *TOP]
    for name in (*BASE, *MAY_IMPORT):
        assert parts_used()[name] <= set(order[: order.index(name)]), name
    list(TopologicalSorter({name: used for name, used in parts_used().items() if name != "stunet"}).static_order())


def test_heavy_packages_and_the_console_are_imported_where_they_belong() -> None:
    for name, path in modules():
        if part(name) in LIGHT and name not in HEAVY_FILES:
            assert not {i.split(".")[0] for i in imports(path, top_only=True)} & HEAVY, name
        if part(name) != "cli":  # the command line is a way to use the package, and no part of it
            assert not [i for i in imports(path, top_only=False) if re.match(r"argparse|stunet\.console", i)], name


def test_pyplot_with_its_global_state_is_not_imported() -> None:
    for name, path in modules():
        assert not [i for i in imports(path, top_only=False) if i.startswith("matplotlib.pyplot")], name


# Keys of nnU-Net's plans and of our block in them. plans/ alone knows them: elsewhere a Plan has a property for each.
PLAN_KEYS = {
    "stunet", "configurations", "architecture", "arch_kwargs", "plans_name", "inherits_from", "network_class_name",
    "data_identifier", "normalization_schemes", "previous_stage", "next_stage", "derived_from", "mirror_axes",
    "image_reader_writer", "foreground_intensity_properties_per_channel",
}  # fmt: skip
MAY_NAME_KEYS = {  # what else they are the keys of
    "stunet/inference/features/stored.py": "the metadata of a file of features, with a block of ours",
    "stunet/inference/records.py": "the record of a prediction, with a block of ours",
    "stunet/preprocessing/dataset.py": "the settings in a manifest",
    "stunet/ranking/bank.py": "the metadata of a file of features, with a block of ours",
    "stunet/ranking/formats.py": "what is known of a candidate",
    "stunet/weights/checkpoints.py": "the metadata of a safetensors file, with a block of ours",
    "stunet/weights/nnssl.py": "the metadata of nnssl's files",
    "stunet/weights/reading.py": "the metadata of files of weights",
    "stunet/weights/v1.py": "plans of nnU-Net v1",
    "trainers/trainer.py": "a checkpoint, with a block of ours",
    "trainers/finetune/peft_export.py": "a checkpoint, with a block of ours",
}


def test_only_plans_name_the_keys_of_a_plan() -> None:
    found = set()
    for name, path in modules():
        for node in nodes_of(path):
            keys: list[ast.expr] = [node.slice] if isinstance(node, ast.Subscript) else []
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("get", "pop", "setdefault")
            ):
                keys = node.args[:1]
            if part(name) != "plans" and any(isinstance(k, ast.Constant) and k.value in PLAN_KEYS for k in keys):
                found.add(str(path.relative_to(ROOT)))
    assert found == set(MAY_NAME_KEYS)


def test_files_open_with_a_docstring_and_stay_short() -> None:
    for name, path in modules():
        assert ast.get_docstring(tree_of(path)), f"{name} has no docstring"
        assert len(path.read_text().splitlines()) <= 500, name


def test_the_packaged_packages_are_the_folders() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name for name, path in modules() if path.name == "__init__.py"}
    assert set(table["packages"]) == folders
    assert {k: v for k, v in table["package-dir"].items() if k != "stunet"} == {
        name: str(folder.relative_to(ROOT)) for name, folder in FOLDERS.items() if name != "stunet"
    }


def test_every_package_imported_is_a_dependency_and_the_other_way_round() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # torch.utils imports tensorboard.
    optional = [name for extra in extras.keys() - {"dev", "tensorboard"} for name in extras[extra]]
    declared = project["dependencies"] + optional
    used = {i.split(".")[0] for _, path in modules() for i in imports(path, top_only=False)}
    imported_as = {
        "PyYAML": "yaml",
        "scikit-learn": "sklearn",
        "mlflow-skinny": "mlflow",
        "dask-jobqueue": "dask_jobqueue",
    }
    names = (re.split(r"[^\w-]", name)[0] for name in declared)
    assert used - sys.stdlib_module_names - {"stunet"} == {imported_as.get(name, name) for name in names}


def test_nothing_committed_names_a_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    suspicious = re.compile(r"/(root|work|home|tmp)/\w")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".txt", ""} and path.is_file() and path != Path(__file__):
            assert not suspicious.search(path.read_text()), name
