"""Names of packages are found by reading their source, with what Python finds by importing them as the reference."""

import importlib
import sys
from pathlib import Path

import pytest

from stunet.source_lookup import class_members, has_name, has_string, parse

FIRST = """
try:
    from fast import quick
except ImportError:
    quick = None
if quick:
    sometimes = 1
from .near import near
from lookup_toy.second import Base, gone
from lookup_toy import second
import os.path as paths
A, (B, C) = 1, (2, 3)
D: int = 4
class Ours(Base):
    number: int = 0
    other = "a key"
    def __init__(self):
        self.mine = self.both = 1
        local = self.mine
        local.not_mine = 2
    @property
    def half(self): return f"{self.mine} of a file"
async def waits(): pass
"""
SECOND = """
class Base:
    def inherited(self):
        self.from_base = 1
"""


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of two modules, which nothing imports."""
    folder = tmp_path / "lookup_toy"
    folder.mkdir()
    for name, text in (("__init__", ""), ("first", FIRST), ("second", SECOND)):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_names_are_those_that_the_module_binds_without_being_imported() -> None:
    bound = ("quick", "sometimes", "near", "Base", "second", "paths", "A", "B", "C", "D", "Ours", "waits")
    assert [name for name in bound if not has_name("lookup_toy.first", name)] == []
    assert not any(has_name("lookup_toy.first", name) for name in ("gone", "os", "local", "half", "nothing"))
    assert "lookup_toy" not in sys.modules


def test_members_are_methods_and_attributes_with_those_of_the_bases() -> None:
    found = {"number", "other", "mine", "both", "half", "__init__", "inherited", "from_base"}
    assert class_members("lookup_toy.first", "Ours") == found
    assert class_members("lookup_toy.first", "A") == class_members("lookup_toy.first", "gone") == frozenset()


def test_strings_are_whole_constants_or_parts_of_f_strings() -> None:
    assert has_string("lookup_toy.first", "a key")
    assert has_string("lookup_toy.first", " of a file")
    assert not has_string("lookup_toy.first", "a k")


def test_what_is_not_installed_has_nothing() -> None:
    for module in ("no_such_package", "no_such_package.module", "lookup_toy.third"):
        assert parse(module) is None
        assert not has_name(module, "a")
        assert not has_string(module, "a")


def test_nnunet_s_names_are_those_that_python_finds() -> None:
    for module in ("nnunetv2.configuration", "nnunetv2.paths", "nnunetv2.utilities.plans_handling.plans_handler"):
        names = [name for name in vars(importlib.import_module(module)) if not name.startswith("__")]
        assert [name for name in names if not has_name(module, name)] == []
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels = LabelManager({"background": 0, "a": 1}, None)
    # Python's own names differ from version to version.
    names = [name for name in {**vars(labels), **vars(LabelManager)} if not name.startswith("__")]
    known = class_members("nnunetv2.utilities.label_handling.label_handling", "LabelManager")
    assert [name for name in names if name not in known] == []
