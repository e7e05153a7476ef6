"""The maps of inference/ and of the folders in it are true, and arrows between them point one way."""

import ast
from pathlib import Path

import stunet.inference
import stunet.inference.engine
import stunet.inference.features

PACKAGES = (stunet.inference, stunet.inference.engine, stunet.inference.features)
FOLDERS = {package: Path(package.__file__).parent for package in PACKAGES}


def test_the_maps_name_every_file_and_no_other() -> None:
    for package, folder in FOLDERS.items():
        named = {line.split()[0] for line in package.__doc__.splitlines() if line.startswith("    ")}
        assert named == {file.name for file in folder.glob("*.py")} - {"__init__.py"}


def test_the_engine_imports_none_of_the_files_around_it() -> None:
    for file in FOLDERS[stunet.inference.engine].glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        inner = [node.module for node in nodes if node.module and node.module.startswith("stunet.inference")]
        assert all(module.startswith("stunet.inference.engine") for module in inner), file.name
