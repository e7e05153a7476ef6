"""Pages: whole, without anything from outside, whatever names and texts they are given."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from stunet.report.blocks import Facts, Links, Page, Section, Table, Text, number, text
from stunet.report.figures import COLOURS, drawn, label
from stunet.report.page import render, write
from stunet.report.plots import bars, curves, histograms, reliability
from tests.html_pages import Parsed, check_page
from tests.loops import for_each

NAMES = [
    "<script>alert(1)</script>",
    "a\"b'c",
    "=1+1",
    "left\nkidney",
    "\u0643\u0628\u062f",
    "\u202eabc",
    "x\x00\x0c",
    "$\\frac{1}{2}$",
]


def page_of(name: str) -> Page:
    return Page(
        title=name,
        subtitle=name,
        headline=[(name, name)],
        footer=name,
        sections=[
            Section(name, [Text(name), Text(name, is_warning=True), Facts([(name, name)])]),
            Section("table", [Table(name, [name, "n"], [[text(name), number(1.5)], [text(name), number(None)]], name)]),
            Section(
                "figures",
                [curves(name, [1, 2], {name: [0.1, float("nan")]}, name, name), bars(name, {name: 1.0}, name, name)],
            ),
            Section("links", [Links([(name, "fold_0/report.html")])]),
            Section("left out", []),
        ],
    )


@for_each("name", NAMES)
def test_names_are_text_wherever_they_stand(name: str, tmp_path: Path) -> None:
    write(page_of(name), tmp_path / "page.html")
    page = check_page(tmp_path / "page.html")
    shown = re.sub("[\x00\x0c]", "\N{REPLACEMENT CHARACTER}", " ".join(name.split("\n")))
    assert page.text.count(shown) > 10
    assert "left out" not in page.text
    assert len(page.of("table")) == 1
    assert len(page.of("svg")) == 2


def test_equal_pages_are_equal_bytes() -> None:
    assert render(page_of("a")) == render(page_of("a"))
    assert render(page_of("a")) != render(page_of("b"))


def test_only_the_script_that_sorts_may_run() -> None:
    html = render(page_of("a"))
    (script,) = Parsed(html).scripts
    assert "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in html
    assert "addEventListener" in script


def test_numbers_are_sorted_by_value_and_unknown_ones_have_none() -> None:
    rows = [[text("b"), number(1e-7, ".3f")], [text("a"), number(float("inf"))]]
    page = Parsed(render(Page("t", "s", [Section("a", [Table("t", ["name", "n"], rows)])])))
    cells = [attributes for tag, attributes in page.elements if tag == "td"]
    assert [cell["data-n"] for cell in cells] == ["1e-07", ""]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_from_light_and_dark_pages() -> None:
    """WCAG 2.2, 1.4.11: graphics have a contrast of 3:1; text 4.5:1 (1.4.3)."""
    style = re.findall(r"--(\w+): (#\w{6})", render(page_of("a")))
    for paper in (value for name, value in style if name in ("paper", "panel")):
        for colour in COLOURS:
            one, other = sorted((luminance(paper), luminance(colour)))
            assert (other + 0.05) / (one + 0.05) >= 3, (paper, colour)
    light, dark = dict(style[:8]), dict(style[8:])
    for theme in (light, dark):
        for paper in ("paper", "panel"):
            for ink in ("ink", "quiet", "link"):
                one, other = sorted((luminance(theme[paper]), luminance(theme[ink])))
                assert (other + 0.05) / (one + 0.05) >= 4.5, (paper, ink)


def test_drawings_take_the_ink_of_the_page_and_leave_the_style_of_the_process() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = curves("title", [1, 2, 3], {"a": [1, 2, 3]}, "unit", "caption")
    assert dict(matplotlib.rcParams) == before
    assert "currentColor" in figure.svg
    assert "#010203" not in figure.svg
    assert ">title<" in figure.svg  # text, not outlines
    assert "At the end: a 3." in figure.alt


@pytest.mark.parametrize("values", [[], [float("nan")], [5.0], [0.0, 0.0], [1.0, 1e9]])
def test_drawings_of_few_and_odd_numbers(values: list[float]) -> None:
    finite = [value for value in values if value == value]
    for figure in (
        curves("t", range(len(values)), {"a": values}, "u", "c", log=True),
        histograms({"a": finite}, {"a": "mm"}, "c"),
        bars("t", {str(i): value for i, value in enumerate(values)}, "u", "c"),
        reliability({"a": (finite, finite)}, "c"),
        drawn(lambda canvas: None, 1, "c", "a"),
    ):
        assert figure.svg.startswith("<svg viewBox=")
        assert figure.svg.endswith("</svg>")


def test_long_names_are_shortened() -> None:
    assert label("x" * 100, 20) == "x" * 19 + "…"
