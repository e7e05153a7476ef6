"""Look up names in installed Python packages by reading their source, without importing anything.

Importing nnU-Net takes ten seconds; parsing its files takes a fraction of one, and also shows the attributes that a
class sets in its methods. nnunet.py checks with this that nnU-Net still has the names that it relies on.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def parse(module: str) -> ast.Module | None:
    """Return the syntax tree of a module given by its dotted name; None if it is not installed.

    Only the top-level package is looked up by Python: find_spec of a submodule imports all packages above it.
    """
    package, *names = module.split(".")
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        stem = Path(folder, *names)
        for path in (stem / "__init__.py", stem.parent / f"{stem.name}.py"):
            if path.is_file():
                return ast.parse(path.read_text(encoding="utf-8"))
    return None


def has_name(module: str, name: str) -> bool:
    """Return whether a module defines or imports a name; a name imported from the same package must exist there too."""
    return _definition(module, name) is not None


def has_string(module: str, text: str) -> bool:
    """Return whether a module has a string of exactly this text, such as a key or the name of a file."""
    return text in _strings(module)


@cache
def _strings(module: str) -> frozenset[str]:
    tree = parse(module)
    nodes = () if tree is None else ast.walk(tree)
    return frozenset(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))


@cache
def class_members(module: str, name: str) -> frozenset[str]:
    """Return the methods and attributes of a class and its bases, including those that its methods set on `self`."""
    home, definition = _definition(module, name) or (module, None)
    if not isinstance(definition, ast.ClassDef):
        return frozenset()
    members = {name for statement in definition.body for name in _names(statement)}
    # In any method, also under conditions: whether an attribute is set at run time cannot be told from the source.
    for node in ast.walk(definition):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            members.add(node.attr)
    for base in definition.bases:
        members |= class_members(home, ast.unparse(base))
    return frozenset(members)


def _definition(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """Return the statement that defines a name, and its module; follow imports within installed packages."""
    tree = parse(module)
    for statement in () if tree is None else _statements(tree.body):
        if name not in _names(statement):
            continue
        # nnU-Net's trainer module re-exports most of what is used of it: look at the origin, for members of classes.
        if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            original = next(alias.name for alias in statement.names if name in (alias.asname, alias.name))
            # Not if the source is missing (compiled modules), nor if the name is itself a module.
            if parse(statement.module) is not None and parse(f"{statement.module}.{original}") is None:
                return _definition(statement.module, original)
        return module, statement
    return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, also those under `if` and `try`."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements([*statement.body, *statement.orelse])
        if isinstance(statement, ast.Try):
            yield from _statements([inner for handler in statement.handlers for inner in handler.body])


def _names(statement: ast.stmt) -> list[str]:
    """Return the names that a statement binds."""
    match statement:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return [statement.name]
        case ast.Assign(targets=targets):
            return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [alias.asname or alias.name.split(".")[0] for alias in aliases]
    return []
