"""Read a report as a browser would, and check what every report promises."""

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Parsed(HTMLParser):
    """A page: its elements with their attributes, and its text without style and script."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not (self.open and self.open[-1] == "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All that a reader sees, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def of(self, tag: str) -> list[dict[str, str]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(path: Path) -> Parsed:
    """Raise AssertionError unless a file is a whole page that loads nothing; return what is in it."""
    html = path.read_text(encoding="utf-8")
    page = Parsed(html)
    assert page.unbalanced == []
    assert page.open == []
    assert page.of("html") == [{"lang": "en"}]
    for landmark in ("header", "main", "footer", "title", "h1"):
        assert len(page.of(landmark)) == 1, landmark
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    (policy,) = (meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert len(page.scripts) == 1
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href"):
                # Within the page, a picture inside it, or a file beside it.
                assert re.match(r"#|data:image/png;base64,|(?!//)(?!\w+:)[\w.%/ -]+$", value), (tag, value[:80])
                assert not value.startswith("#") or value[1:] in ids, value
            for target in re.findall(r"url\(([^)]*)\)", value):
                assert target.startswith("#"), value
            assert name not in ("src", "srcset", "action", "formaction", "poster", "background")
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    for drawing in (attributes for _, attributes in page.elements if attributes.get("role") == "img"):
        assert drawing["aria-label"]
    return page
