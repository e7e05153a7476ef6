"""A report in a real browser: nothing of it is refused, and its tables are sorted by their headings."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stunet.report.blocks import Page, Section, Table, number, text
from stunet.report.page import render
from stunet.report.plots import curves

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CLICKS = "<script>{}</script></body>"


def opened(path: Path) -> tuple[str, str]:
    """Return the elements of a page after its scripts have run, and what the browser said."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([program, *options, path.as_uri()], capture_output=True, text=True, check=True, timeout=200)
    return done.stdout, "\n".join(re.findall(r".*CONSOLE.*", done.stderr))


def page() -> str:
    rows = [[text(name), number(value, ".1f")] for name, value in (("b", 10.0), ("c", 9.0), ("a", None))]
    blocks = [Table("t", ["name", "n"], rows), curves("t", [1, 2], {"a": [1, 2]}, "u", "c")]
    return render(Page("title", "", [Section("s", blocks)]))


def order(html: str) -> list[str]:
    return re.findall(r'<th scope="row"[^>]*><bdi>(\w)', html)


@pytest.mark.process
def test_a_browser_refuses_nothing_of_a_page_and_everything_else(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page())
    html, said = opened(tmp_path / "page.html")
    assert order(html) == ["b", "c", "a"]
    assert said == ""
    evil = '<script>document.title="evil"</script><img src="https://stunet.invalid/a.png"></body>'
    (tmp_path / "evil.html").write_text(page().replace("</body>", evil))
    html, said = opened(tmp_path / "evil.html")
    assert "<title>title</title>" in html
    assert said.count("Content Security Policy") == 2


@pytest.mark.process
def test_headings_sort_a_table(tmp_path: Path) -> None:
    # Only here, where the page itself allows it, may another script click.
    allowing = re.sub(r"script-src 'sha256-[^']*'", "script-src 'unsafe-inline'", page())
    for clicks, expected in (
        ("b[1].click()", ["c", "b", "a"]),
        ("b[1].click(); b[1].click()", ["b", "c", "a"]),  # unknown ones stay last
        ("b[1].click(); b[0].click()", ["a", "b", "c"]),
    ):
        click = f"const b = document.querySelectorAll('thead button'); {clicks}"
        (tmp_path / "page.html").write_text(allowing.replace("</body>", CLICKS.format(click)))
        html, _ = opened(tmp_path / "page.html")
        assert order(html) == expected
        assert len(re.findall(r'<th [^>]*aria-sort="', html)) == 1
