"""One test that goes through many values: to set up a case of its own for each takes longer than most checks."""

import inspect
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
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

    The error says with which values it happened. Each call has an empty `tmp_path` of its own, a `monkeypatch` that is
    undone after it, and a `capsys` without earlier output; other fixtures are shared, so they must not be changed.

    Args:
        names: Of the test's arguments.
        values: One, or for several names a tuple, for each call.
        fresh: A fixture, a folder or plain data, of which each call has a copy of its own.
    """
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    calls = [dict(zip(keys, value if len(keys) > 1 else (value,), strict=True)) for value in values]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @wraps(test)
        def looped(**fixtures: Any) -> None:
            for number, call in enumerate(calls):
                with ExitStack() as stack:
                    try:
                        test(**{**fixtures, **_own(fixtures, number, fresh, stack)}, **call)
                    except BaseException as error:
                        error.add_note(f"with {call}")
                        raise

        fixtures = [parameter for name, parameter in signature.parameters.items() if name not in keys]
        looped.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        return looped

    return decorate


def _own(fixtures: dict[str, Any], number: int, fresh: str | None, stack: ExitStack) -> dict[str, Any]:
    """The fixtures that each call has for itself."""
    own: dict[str, Any] = {}
    if fresh is not None and isinstance(before := fixtures[fresh], Path):
        own[fresh] = Path(stack.enter_context(TemporaryDirectory())) / before.name
        shutil.copytree(before, own[fresh], symlinks=True)
    elif fresh is not None:
        own[fresh] = deepcopy(before)
    if "tmp_path" in fixtures:
        own["tmp_path"] = fixtures["tmp_path"] / str(number)
        own["tmp_path"].mkdir()
    if "monkeypatch" in fixtures:
        own["monkeypatch"] = stack.enter_context(pytest.MonkeyPatch.context())
    if "capsys" in fixtures:
        fixtures["capsys"].readouterr()
    return own
