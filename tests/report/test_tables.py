"""Tables of texts: which columns are numbers, and how unknown cells are sorted."""

from stunet.report.tables import of_texts


def test_columns_of_numbers_are_sorted_as_numbers() -> None:
    table = of_texts("t", ["name", "n", "mixed", "none"], [["b", "1,000", "1", "-"], ["a", "-", "x", ""]])
    assert table.numeric == {1}
    assert [cell.key for cell in table.rows[0]] == ["b", 1000.0, 1.0, None]
    assert [cell.text for cell in table.rows[1]] == ["a", "-", "x", "-"]
