"""Render a page as one HTML file: styles, script and drawings are inside, and the browser may fetch nothing.

The file forbids requests and foreign scripts by its own content security policy; only the script that sorts tables
runs. Equal pages give equal bytes. templates/ has the markup; blocks.py what a page consists of.
"""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stunet.files import atomic_write
from stunet.report.blocks import Page

_REPLACED = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # what HTML cannot hold, and carriage returns


def render(page: Page) -> str:
    """Return the HTML of a page."""
    template, style, script = _parts()
    sections = [section for section in page.sections if section.blocks]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    numbers = count(1)
    html: str = template.render(
        page=page,
        sections=sections,
        style=style,
        script=script,
        allowed=allowed,
        own_ids=lambda svg: own_ids(svg, next(numbers)),
    )
    return html


def write(page: Page, path: Path) -> None:
    """Write the HTML file of a page; it appears whole.

    Raises:
        OSError: The folder is not writable, or the disk is full.
    """
    html = render(page)
    with atomic_write(path) as part:
        part.write_text(html, encoding="utf-8", newline="\n")


def own_ids(svg: str, number: int) -> str:
    """Return a drawing whose identifiers are its own in a page: equal parts of two drawings have equal ones."""
    return re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>d{number}-", svg)


def one_line(text: str) -> str:
    """Return a text without line breaks and what HTML cannot hold, which file names and class names may have.

    Examples:
        >>> one_line("left\\nkidney")
        'left kidney'
    """
    return " ".join(_REPLACED.sub("\N{REPLACEMENT CHARACTER}", text).split())


@cache
def _parts() -> tuple[Any, str, str]:
    """Return the template, the style and the script."""
    from jinja2 import Environment, StrictUndefined

    folder = files("stunet.report") / "templates"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "style.css", "sort.js")}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["line"] = lambda value: one_line(str(value))
    environment.filters["verbatim"] = lambda value: _REPLACED.sub("\N{REPLACEMENT CHARACTER}", str(value))
    environment.filters["address"] = lambda value: quote(str(value), safe="/")
    return environment.from_string(texts["page.html"]), texts["style.css"], texts["sort.js"].strip()
