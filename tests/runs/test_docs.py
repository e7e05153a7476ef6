"""The examples of docs/python.md and of the docstrings: their calls fit the functions, and the whole page runs."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import stunet
from stunet.workspace import VARIABLES

NAMES = {"plan", "train", "pretrain", "predict", "evaluate", "features", "rank"}
PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def docstring_calls() -> list[str]:
    documents = [stunet.__doc__, *(getattr(stunet, name).__doc__ for name in NAMES)]
    return re.findall(r"\bstunet\.\w+\(.*\)$", "\n".join(map(str, documents)), re.MULTILINE)


def test_the_calls_of_the_examples_fit_the_functions() -> None:
    for source in (examples(), docstring_calls()):
        found = set()
        for call in (node for node in ast.walk(ast.parse("\n".join(source))) if isinstance(node, ast.Call)):
            if isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "stunet":
                signature = inspect.signature(getattr(stunet, call.func.attr))
                signature.bind(*call.args, **{word.arg: word.value for word in call.keywords if word.arg})
                found.add(call.func.attr)
        assert found - {"Model"} == NAMES


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # what the page sets is undone
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    space = {"__name__": "example"}
    for example in examples():
        exec(compile(example, str(PAGE), "exec"), space)
    out = capsys.readouterr().out
    assert "STUNetPlans_T" in out
    assert "this fold is trained and validated; nothing to do" in out
    assert "DataError\nthis fold was trained to the end" in out
    assert space["measured"].output.is_file()


def test_the_notebook_shows_a_segmentation_in_its_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipyniivue", reason="the widget is not installed: pip install ipyniivue")
    import nibabel
    import numpy as np

    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for name in ("scan.nii.gz", "out/scan.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), name)
    (example,) = re.findall(
        r"^```python\n(.*?)^```$", (PAGE.parent / "viewing.md").read_text(), re.MULTILINE | re.DOTALL
    )
    space: dict[str, Any] = {}
    exec(compile(example, "viewing.md", "exec"), space)
    assert space["viewer"].volumes[1].colormap_label.labels == ["background", "liver", "spleen"]
