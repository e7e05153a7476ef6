"""stunet_info: show what is installed and set, which data exist, and how far trainings are. Imports nothing heavy."""

import argparse
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stunet import __version__, console, nnunet, presets, workspace
from stunet.cli import common
from stunet.errors import DataError, first_few
from stunet.runs.overview import trained_folds

RUNS, LISTED = 20, 12  # how many runs, and how many names, are shown
PACKAGES = ("torch", "nnunetv2", "numpy", "scipy", "SimpleITK", "batchgeneratorsv2", "dynamic_network_architectures")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = common.new_parser("stunet_info", "Shows versions, folders, GPUs, datasets, and how far each training is.")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    return common.run(parser, _command, argv)


def _command(args: argparse.Namespace) -> None:
    document = collect()
    if document["packages"]["nnunetv2"] is not None:
        _warn_of_nnunet()
    if args.json:
        console.result_json(document)
        return
    runs = document.pop("runs")
    for section, content in document.items():
        if isinstance(content, dict):
            console.result(f"{section}:")
            for key, value in content.items():
                console.result(
                    f"  {key}: {value if value is not None else 'not set' if section == 'folders' else 'not installed'}"
                )
        else:
            console.result(f"{section}: {first_few(content, LISTED, ', ') if isinstance(content, list) else content}")
    if runs:
        console.table(("run, latest first", "epoch", "state", "changed", "reached"), map(_run_cells, runs[:RUNS]))
    if len(runs) > RUNS:
        console.note(f"{len(runs) - RUNS} older ones: stunet_info --json")
    missing = [name for name, path in document["folders"].items() if path is None]
    if missing:
        console.warn(f"not set: {', '.join(missing)}")
        console.note("  try: export " + " ".join(f"{name}=/path/to/{name}" for name in missing))


def _run_cells(run: dict[str, Any]) -> list[str]:
    reached = "-" if run["value"] is None else f"{run['measure']} {run['value']:.3f}"
    return [
        run["name"],
        f"{run['epoch']}/{run['epochs']}",
        run["state"],
        run["changed"][:16].replace("T", " "),
        reached,
    ]


def _warn_of_nnunet() -> None:
    try:
        nnunet.check_nnunet()
    except DataError as error:
        console.warn(error.message)
        console.note(f"  try: {error.hint}")


def collect() -> dict[str, Any]:
    """Return what stunet_info shows, as a JSON document."""
    return {
        "stunet": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": gpus(),
        "packages": {name: _version(name) for name in PACKAGES},
        "folders": {name: os.environ.get(name) for name in workspace.VARIABLES},
        "presets": presets.names(),
        "datasets": _names("nnUNet_raw", workspace.DATASETS),
        "planned": _names("nnUNet_preprocessed", f"{workspace.DATASETS}/STUNetPlans*.json"),
        "nnUNet_extTrainer for nnUNetv2_train": str(Path(__file__).parents[1] / "nnunet_ext"),
        "runs": [fold.to_json() for fold in trained_folds()],
    }


def gpus() -> list[str]:
    """Return name and memory of each GPU as the driver reports them, without loading torch."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        # A driver in a bad state makes nvidia-smi wait for ever.
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ["nvidia-smi does not answer"]
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _names(variable: str, pattern: str) -> list[str]:
    folder = os.environ.get(variable)
    return (
        sorted(str(p.relative_to(folder)).removesuffix(".json") for p in Path(folder).glob(pattern)) if folder else []
    )
