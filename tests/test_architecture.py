"""docs/architecture.md and CONTRIBUTING.md are true: the parts, the imports between them, files and names exist."""

import re

from stunet.source_lookup import has_name
from tests.test_structure import BASE, MAY_IMPORT, ROOT, parts_used

PAGE = (ROOT / "docs" / "architecture.md").read_text()
FLOW, CALLS = re.findall(r"```mermaid\n(.*?)```", PAGE, flags=re.DOTALL)


def nodes(picture: str) -> set[str]:
    """The boxes of a picture: `name["text"]`."""
    return set(re.findall(r'^ +(\w+)\["', picture, flags=re.MULTILINE))


def arrows(picture: str) -> list[tuple[str, str, str]]:
    """Start, label and end of each arrow: `a -->|label| b`."""
    return re.findall(r"^ +(\w+) -->(?:\|(\w+)\|)? (\w+)$", picture, flags=re.MULTILINE)


def test_the_flow_of_data_goes_through_parts_that_exist() -> None:
    assert len(arrows(FLOW)) == FLOW.count("-->")
    assert {label for _, label, _ in arrows(FLOW)} <= MAY_IMPORT.keys()
    assert {end for start, _, last in arrows(FLOW) for end in (start, last)} == nodes(FLOW)


def test_every_part_is_in_the_picture_or_the_list_below_it() -> None:
    assert nodes(CALLS) == {*MAY_IMPORT, "cli"}
    below = PAGE.split("modules that every part may use:")[1].split("\n\n")[0]
    assert tuple(re.findall(r"`(\w+)`", below)) == BASE


def test_arrows_are_imports() -> None:
    assert len(arrows(CALLS)) == CALLS.count("-->")
    for start, _, end in arrows(CALLS):
        assert end in parts_used()[start], (start, end)
    assert {end for start, _, last in arrows(CALLS) for end in (start, last)} == nodes(CALLS)


def test_every_file_and_name_in_the_tables_exists() -> None:
    for page in (PAGE, (ROOT / "CONTRIBUTING.md").read_text()):
        for line in page.splitlines():
            paths = [ROOT / path for path in re.findall(r"`((?:[\w.]+/)+[\w.]*)`", line)]
            assert [path for path in paths if not path.exists()] == []
            text = "".join(path.read_text() for path in paths if path.suffix == ".py")
            if line.startswith("| ") and text:
                names = re.findall(r"`(\w+)(?:\(\))?`", line)
                assert [name for name in names if not re.search(rf"\b{name}\b", text)] == [], line


def test_code_and_files_that_the_documentation_mentions_exist() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")):
        text = page.read_text()
        if page.name != "CHANGELOG.md":  # which also has the names of before
            for module, names in re.findall(r"^ *from (stunet[\w.]*) import (.*)", text, flags=re.MULTILINE):
                assert [name for name in names.split(", ") if not has_name(module, name)] == [], page
        folders = "stunet|plans|trainers|presets|tests|benchmarks"
        for path in re.findall(rf"`((?:{folders})/[\w./]+)`", text):
            assert (ROOT / path).exists(), (page, path)


def test_readme_contributing_and_guide_link_to_the_page() -> None:
    for file in ("README.md", "CONTRIBUTING.md", "docs/guide.md"):
        assert "architecture.md" in (ROOT / file).read_text(), file
