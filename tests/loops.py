"""One test that goes through many values: to set up a case of its own for each takes longer than most checks."""

import inspect
import shutil
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest


def for_each(
    names: str | Sequence[str], values: Iterable[Any], fresh: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call a test with each of the values, as `pytest.mark.parametrize` would, but as one test that stops at the first.

    The error says with which values it happened. Each call finds `tmp_path` as the test's fixtures have left it, a
    `monkeypatch` that is undone after it, and `capsys`, `capfd` and `caplog` without earlier output; other fixtures are
    shared, so what they hold in memory must not be changed.

    Args:
        names: Of the test's arguments.
        values: One, or for several names a tuple, for each call.
        fresh: A fixture of plain data, of which each call has a copy of its own.
    """
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    calls = [dict(zip(keys, value if len(keys) > 1 else (value,), strict=True)) for value in values]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @wraps(test)
        def looped(tmp_path: Path, **fixtures: Any) -> None:
            with TemporaryDirectory() as folder:
                before = shutil.copytree(tmp_path, Path(folder) / "before", symlinks=True)
                for number, call in enumerate(calls):
                    if number:
                        _restore(tmp_path, before)
                    own = {**fixtures, "tmp_path": tmp_path}
                    if fresh is not None:
                        own[fresh] = deepcopy(own[fresh])
                    for name in ("capsys", "capfd"):
                        if name in own:
                            own[name].readouterr()
                    if "caplog" in own:
                        own["caplog"].clear()
                    with pytest.MonkeyPatch.context() as own["monkeypatch"]:
                        try:
                            test(**{name: own[name] for name in signature.parameters if name not in keys}, **call)
                        except BaseException as error:
                            error.add_note(f"with {call}")
                            raise

        fixtures = [value for name, value in signature.parameters.items() if name not in (*keys, "tmp_path")]
        folder = inspect.Parameter("tmp_path", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        looped.__signature__ = signature.replace(parameters=[folder, *fixtures])  # type: ignore[attr-defined]
        return looped

    return decorate


def _restore(folder: Path, before: Path) -> None:
    """Bring a folder back to what a copy of it holds; the folder itself, maybe the working directory, stays."""
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    shutil.copytree(before, folder, symlinks=True, dirs_exist_ok=True)
