"""Pages of what other commands compare, arms of an experiment or models of a ranking: a table, and a picture."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from stunet.report.blocks import Block, Cell, Page, Section, Table, text
from stunet.report.figures import embedded
from stunet.report.page import write
from stunet.report.training import FOOTER


def write_page(
    path: Path, title: str, subtitle: str, table: Table, picture: Path, blocks: Sequence[Block] = ()
) -> None:
    """Write a page with a table and a picture.

    Args:
        path: The file.
        title: Of the page.
        subtitle: Below it.
        table: What is compared.
        picture: A PNG that shows the same.
        blocks: What follows the table.
    """
    figure = embedded(picture.read_bytes(), f"The same as a picture, {picture.name}.", f"{table.title} as a picture.")
    sections = [Section(table.title, [table, *blocks]), Section("Picture", [figure] if figure else [])]
    write(Page(title, subtitle, sections, FOOTER), path)


def of_texts(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> Table:
    """Return a table of cells that are texts already; those that are numbers are sorted as numbers.

    Examples:
        >>> table = of_texts("Models", ["model", "score"], [["a", "0.5"], ["b", "-"]])
        >>> table.rows[0][1].key, table.rows[1][1].key, table.numeric
        (0.5, None, frozenset({1}))
    """
    cells = [[_cell(value) for value in row] for row in rows]
    # A column is one of numbers if all that is known in it are numbers.
    known = [[row[position].key for row in cells if row[position].key is not None] for position in range(len(columns))]
    numeric = frozenset(
        position for position, keys in enumerate(known) if keys and all(isinstance(key, float) for key in keys)
    )
    return Table(title, columns, cells, note, numeric)


def _cell(value: str) -> Cell:
    if value in ("", "-"):
        return Cell("-")
    try:
        return Cell(value, float(value.replace(",", "")))
    except ValueError:
        return text(value)
