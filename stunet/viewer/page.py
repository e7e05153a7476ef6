"""The page, as it is served, and as one file that has everything inside."""

import base64
import gzip
import html
import json
from importlib.resources import files

from stunet.viewer.loading import LoadedCase

SCRIPTS = ("niivue.umd.js", "view.js")
STYLES = ("view.css",)
# NiiVue keeps its font as data:, and unpacks files in blob: workers; nothing comes from anywhere else.
SOURCES = (
    "img-src {own}data: blob:; connect-src {own}data: blob:; worker-src blob:; font-src data:; base-uri 'none'; "
    "form-action 'none'"
)
SERVED_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; frame-ancestors 'none'; " + SOURCES.format(
    own="'self' "
)
FILE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; " + SOURCES.format(own="")


def asset(name: str) -> bytes:
    """Return one of the files in assets/."""
    return (files("stunet.viewer") / "assets" / name).read_bytes()


def served_page() -> bytes:
    """Return the page that loads its scripts and data from where it came from."""
    styles = "".join(f'<link rel="stylesheet" href="{name}">\n' for name in STYLES)
    scripts = "".join(f'<script src="{name}"></script>\n' for name in SCRIPTS)
    return _page("stunet_view", "", styles, scripts)


def single_page(case: LoadedCase) -> bytes:
    """Return a page with scripts, classes and volumes of a case inside."""
    volumes = [f"image{i}" for i in range(len(case.image.array))] + ["prediction"]
    volumes += ["reference"] if case.reference else []
    inside = {"detail": case.described(), "volumes": {name: _packed(case.nifti(name)) for name in volumes}}
    # In a script element, only "</script" and "<!--" end or change what follows.
    data = json.dumps(inside).replace("<", "\\u003c")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{FILE_POLICY}">\n'
    styles = "".join(f"<style>\n{asset(name).decode()}</style>\n" for name in STYLES)
    scripts = f'<script type="application/json" id="embedded">{data}</script>\n' + "".join(
        f"<script>\n{_inline(asset(name).decode())}\n</script>\n" for name in SCRIPTS
    )
    return _page(f"{case.name} - stunet_view", policy, styles, _licences() + scripts)


def _page(title: str, policy: str, styles: str, scripts: str) -> bytes:
    page = asset("page.html").decode()
    parts = {"@TITLE@": html.escape(title), "@CSP@": policy, "@STYLE@": styles, "@SCRIPTS@": scripts}
    for mark, text in parts.items():  # scripts last: marks are not looked for in what they contain
        page = page.replace(mark, text, 1)
    return page.encode()


def _packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def _inline(script: str) -> str:
    return script.replace("</script", "<\\/script")


def _licences() -> str:
    """Return the licences of NiiVue and what it contains as a comment: whoever passes the page on passes them on."""
    text = asset("niivue.LICENSES.txt").decode().replace("--", "- -")
    return f"<!--\n{text}\n-->\n"
