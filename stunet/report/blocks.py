"""What a page is made of: facts, text, commands, tables, figures and links, in sections. page.py renders them.

All text is escaped when it is rendered, so that names from files may hold anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar

Key = float | str


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it shows.
        key: What its column is sorted by; None: unknown, and last in either direction.
        bar: From 0 to 1: drawn as a line of that length below the text; None: no line.
    """

    text: str
    key: Key | None = None
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """A table that readers can sort by any column.

    Attributes:
        title: Its caption.
        columns: Headings.
        rows: A cell for each column.
        note: What the columns mean.
        numeric: Positions of the columns that are aligned to the right.
        narrow: Few columns and many rows: shown in several columns side by side, on paper as well.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    numeric: frozenset[int] = frozenset()
    narrow: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Facts:
    """Names and values, such as settings."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning is marked as such."""

    text: str
    is_warning: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Command:
    """A command to copy, and what it is for."""

    text: str
    command: str
    kind: ClassVar[str] = "command"


@dataclass(frozen=True)
class Links:
    """Links to files beside the page, by relative path."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "links"


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption.

    Attributes:
        svg: An element that figures.py made.
        caption: What it shows, and how to read it.
        alt: The same for those who do not see it: what is drawn, with the main numbers.
    """

    svg: str
    caption: str
    alt: str
    kind: ClassVar[str] = "figure"


Block = Table | Facts | Text | Command | Links | Figure


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading, which the contents list."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: Heading, and title of the browser's tab.
        subtitle: One line below it.
        sections: In order; those without blocks are left out.
        footer: What wrote the report.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    footer: str = ""
    headline: Sequence[tuple[str, str]] = field(default=())  # a few numbers at the top, each with its name


def number(value: float | None, form: str = ".3f", unit: str = "") -> Cell:
    """Return a cell with a number; a dash if there is none, or if it is not finite.

    Examples:
        >>> number(0.81234).text, number(float("nan")).text, number(12.0, ".1f", " ml").text
        ('0.812', '-', '12.0 ml')
    """
    if value is None or not isfinite(value):
        return Cell("-")
    return Cell(f"{value:{form}}{unit}", float(value))


def text(value: object) -> Cell:
    """Return a cell with a text, which is sorted without regard to case."""
    return Cell(str(value), str(value).casefold())
