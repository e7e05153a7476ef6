"""The table of nnU-Net's names describes this package and the installed version; what nnU-Net writes appears whole."""

import ast
import errno
import importlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from batchgenerators.utilities.file_and_folder_operations import save_json

from stunet.cli import info
from stunet.cli.common import explain
from stunet.errors import DataError
from stunet.files import write_json
from stunet.nnunet import NAMES, TESTED, Names, Patched, Strings, check_nnunet, patched, write_atomically
from stunet.source_lookup import class_members, has_name, has_string, parse
from tests.loops import for_each
from tests.test_structure import ROOT, modules, nodes_of, part

Room = Callable[[int], AbstractContextManager[None]]
CONTENT = {"b": [1, 2.5, None], "a": {"x": "y" * 5000}}


@pytest.fixture
def module() -> Any:
    found: Any = ModuleType("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    found.save_json, found.shutil = save_json, shutil
    write_atomically(found)
    return found


def test_json_and_copies_are_the_same_bytes(tmp_path: Path, module: Any) -> None:
    for options in ({}, {"sort_keys": False}):
        save_json(CONTENT, str(tmp_path / "a.json"), **options)
        module.save_json(CONTENT, str(tmp_path / "b.json"), **options)
        assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    module.shutil.copy(str(tmp_path / "a.json"), str(tmp_path / "c.json"))
    module.shutil.copyfile(str(tmp_path / "a.json"), str(tmp_path / "d.json"))
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_later_version_may_import_more_than_we_replace() -> None:
    found: Any = ModuleType("nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor")
    found.save_json, found.shutil = save_json, shutil
    write_atomically(found)
    assert found.save_json is not save_json
    assert found.shutil is shutil  # NAMES does not list it there


def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path: Path, module: Any, room_for: Room) -> None:
    (tmp_path / "old.json").write_text("{}")
    save_json(CONTENT, str(tmp_path / "source.json"))
    for write in (
        lambda path: module.save_json(CONTENT, path),
        lambda path: module.shutil.copy(str(tmp_path / "source.json"), path),
        lambda path: write_json(Path(path), CONTENT),
    ):
        for name in ("old.json", "new.json"):
            with room_for(100), pytest.raises(OSError, match="File too large") as caught:
                write(str(tmp_path / name))
            shown = explain(caught.value)
            assert shown.exit_code == 3
            assert shown.message.startswith("the disk is full: ")
            assert name in shown.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.json", "source.json"]
    assert json.loads((tmp_path / "old.json").read_text()) == {}


def test_nnunets_modules_that_write_are_among_them() -> None:
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    import stunet.plans.fingerprint
    import stunet.plans.planner
    import stunet.trainers.trainer  # noqa: F401

    for module in (fingerprint_extractor, default_experiment_planner, nnUNetTrainer):
        assert module.save_json.__module__ == "stunet.nnunet"
    assert default_experiment_planner.shutil is nnUNetTrainer.shutil is not shutil


@for_each("number", [errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EACCES])
def test_what_the_file_system_refuses_ends_with_3_and_the_path(number: int) -> None:
    shown = explain(OSError(number, "why", "some/path"))
    assert shown.exit_code == 3
    assert "some/path" in shown.message


MANAGERS = {  # attributes of a trainer, and what they are
    "plans_manager": "PlansManager",
    "configuration_manager": "ConfigurationManager",
    "label_manager": "LabelManager",
}


@cache
def files() -> dict[str, Path]:
    """The modules of the package by dotted name."""
    return dict(modules())


@cache
def nodes(name: str, kind: type[ast.AST]) -> list[Any]:
    """Every node of a kind in one of our modules."""
    return [node for node in nodes_of(files()[name]) if isinstance(node, kind)]


def reads(attributes: Iterable[ast.Attribute]) -> Iterator[tuple[str, str]]:
    """Of `a.b.c` the last name before the last dot, and that after it: b and c."""
    for node in attributes:
        match node.value:
            case ast.Name(id=owner) | ast.Attribute(attr=owner) | ast.Call(func=ast.Name(id=owner)):
                yield owner, node.attr


def rows(kind: type[Names]) -> set[tuple[str, str, str]]:
    """Module, name and user of everything that a kind of row lists, other than members of classes."""
    found = [row for row in NAMES if type(row) is kind and not row.owner]
    return {(row.module, name, user) for row in found for name in row.names.split() for user in row.used_by.split()}


def imports_of_nnunet(name: str) -> Iterator[tuple[str, str, str]]:
    """Local name, module and name of each import in a module of ours; the name is empty if it is a module itself."""
    for node in nodes(name, ast.Import):
        yield from ((a.asname or a.name, a.name, "") for a in node.names if a.name.startswith("nnunetv2"))
    for node in nodes(name, ast.ImportFrom):
        for alias in node.names if (node.module or "").startswith("nnunetv2") else ():
            inner = f"{node.module}.{alias.name}"
            yield alias.asname or alias.name, *((inner, "") if parse(inner) else (node.module, alias.name))


def test_every_import_from_nnunet_is_in_the_table_and_the_other_way_round() -> None:
    used = set()
    for name in files():
        for local, module, imported in imports_of_nnunet(name):
            attributes = [attr for owner, attr in reads(nodes(name, ast.Attribute)) if owner == local]
            used |= {(module, found, part(name)) for found in ([imported] if imported else attributes)}
    classes = {(row.module, row.owner, user) for row in NAMES if row.owner for user in row.used_by.split()}
    assert used - (classes - rows(Names)) == rows(Names)


def transforms_by_name(user: str) -> set[str]:
    """The keys of dictionaries in a part that are names of transforms."""
    found = [node for name in files() if part(name) == user for node in nodes(name, ast.Dict)]
    keys = {key.value for node in found for key in node.keys if isinstance(key, ast.Constant)}
    return {key for key in keys if str(key).endswith("Transform")}


def test_every_patched_name_is_in_the_table_and_the_other_way_round() -> None:
    used = set()
    for name in files().keys() - {"stunet.nnunet"}:
        aliases = {local: module for local, module, imported in imports_of_nnunet(name) if not imported}
        for call in nodes(name, ast.Call):
            function = ast.unparse(call.func) if isinstance(call.func, ast.Name) else ""
            if function in ("patch", "patched"):
                keys = [key.arg for key in call.keywords if key.arg] or transforms_by_name(part(name))
                used |= {(aliases[ast.unparse(call.args[0])], key, part(name)) for key in keys}
            elif function == "write_atomically":
                module = aliases[ast.unparse(call.args[0])]
                used |= {(module, key, part(name)) for key in ("save_json", "shutil") if has_name(module, key)}
    assert used == rows(Patched)


def subclasses(owner: str) -> Iterator[ast.ClassDef]:
    """Our classes that derive from one of nnU-Net's, over any number of steps."""
    for node in (node for name in files() for node in nodes(name, ast.ClassDef)):
        if owner in [base.id for base in node.bases if isinstance(base, ast.Name)]:
            yield node
            yield from subclasses(node.name)


def test_members_of_nnunets_classes_that_we_override_or_read_are_in_the_table() -> None:
    for row in {row.owner: row for row in NAMES if row.owner}.values():
        used = set()
        for ours in subclasses(row.owner):
            inside = [node for node in ast.walk(ours) if isinstance(node, ast.Attribute)]
            used |= {node.name for node in ours.body if isinstance(node, ast.FunctionDef)}
            used |= {attr for owner, attr in reads(inside) if owner in ("self", "super")}
        receivers = {key for key, kind in MANAGERS.items() if kind == row.owner}
        for name in files():
            known = receivers | ({"trainer"} if (row.owner, part(name)) == ("nnUNetTrainer", "trainers") else set())
            used |= {attr for owner, attr in reads(nodes(name, ast.Attribute)) if owner in known}
        stock = {name for name in class_members(row.module, row.owner) if not name.startswith("__")}
        listed = {name for other in NAMES if other.owner == row.owner for name in other.names.split()}
        assert used & stock <= listed, row.owner


def test_what_the_table_lists_is_used() -> None:
    words: dict[str, set[str]] = defaultdict(set)
    for name in files():
        for node in nodes_of(files()[name]):
            if name != "stunet.nnunet" or not isinstance(node, ast.Constant) or str(node.value).startswith("nnUNet_"):
                found = [getattr(node, key, None) for key in ("attr", "id", "name", "value", "arg")]
                words[part(name)] |= {word for text in found if isinstance(text, str) for word in text.split()}
    for row in NAMES:
        if not isinstance(row, Patched):
            names, users = set(row.names.split()), row.used_by.split()
            assert names - set().union(*(words[user] for user in users)) == set(), row.place
            assert [user for user in users if not names & words[user]] == [], row.place


def test_keys_of_plans_that_nnunet_knows_are_in_the_table() -> None:
    (row,) = (row for row in NAMES if isinstance(row, Strings) and row.reason == "keys of plans")
    keys = {str(node.value) for node in nodes("stunet.plans.plan", ast.Constant)}
    assert {key for key in keys if has_string(row.module, key)} <= set(row.names.split())


def test_the_installed_version_has_everything_and_python_agrees() -> None:
    assert f"nnunetv2=={TESTED}\n" in (ROOT / "constraints.txt").read_text()
    check_nnunet()
    for row in NAMES:
        module = importlib.import_module(row.module)
        if not row.owner and not isinstance(row, Strings):
            assert [name for name in row.names.split() if not hasattr(module, name)] == []
        elif row.owner:
            assert isinstance(getattr(module, row.owner), type)


def test_a_missing_name_is_reported_with_its_user_the_reason_and_the_next_step() -> None:
    trainer = next(row for row in NAMES if row.owner == "nnUNetTrainer")
    texts = next(row for row in NAMES if isinstance(row, Strings))
    for row in (
        Patched("training.nnUNetTrainer.nnUNetTrainer", "no_such_name", "trainers", "why"),
        Names("no.such.module", "no_such_name", "trainers", "why"),
        Names("training.nnUNetTrainer.nnUNetTrainer:NoSuchClass", "no_such_name", "trainers", "why"),
        replace(trainer, names=f"{trainer.names} no_such_name", reason="why"),
        replace(texts, names=f"{texts.names} no_such_name", used_by="trainers", reason="why"),
    ):
        with pytest.raises(
            DataError, match=r"lacks names that stunet uses: no_such_name in .*\(trainers: why\)$"
        ) as caught:
            check_nnunet([*NAMES, row])
        assert caught.value.hint.startswith(f"pip install 'nnunetv2=={TESTED}'")


def test_many_missing_names_are_counted() -> None:
    with pytest.raises(DataError, match=r"a in .*; b in .*; c in .*; and 2 more$"):
        check_nnunet([Names("paths", "a b c d e", "plans", "why")])


def test_versions_out_of_range_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("2.7.9", "1.7.1", "3.0.0"):
        monkeypatch.setattr("stunet.nnunet.version", lambda package, number=number: number)
        with pytest.raises(DataError, match=f"nnunetv2 {number} is installed; stunet needs 2.8 or a later 2.x"):
            check_nnunet()


def test_stunet_info_warns_of_missing_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Names, "absent", lambda self: self.names.split()[:1])
    assert info.main(["--json"]) == 0
    shown = capsys.readouterr()
    assert "lacks names that stunet uses" in shown.err
    assert f"try: pip install 'nnunetv2=={TESTED}'" in shown.err
    assert "lacks" not in shown.out


def test_names_that_are_not_in_the_table_are_not_patched() -> None:
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host

    before = host.DDP
    with (
        pytest.raises(ValueError, match=r"does not list \['join'\] of nnunetv2.*nnUNetTrainer as patched"),
        patched(host, DDP=None, join=None),
    ):
        pass
    assert host.DDP is before
    with patched(host, DDP=None):
        assert host.DDP is None
    assert host.DDP is before
