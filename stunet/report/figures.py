"""Make drawings for a page: SVG whose ink follows the page, light or dark, and whose text can be selected.

A drawing is made by a function that gets a matplotlib figure. Lines and letters in INK take the colour of the page's
text. COLOURS stand out from white and from the dark page alike (3:1 and more). Equal drawings are equal texts.
Read next: plots.py, which has the drawings themselves.
"""

import base64
import io
import re
import struct
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stunet.plots import own_style
from stunet.report.blocks import Figure
from stunet.report.page import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

WIDTH = 9.6  # inches of a drawing as wide as the page
RASTER_ABOVE = 2000  # dots of a drawing: beyond this they are pixels, and no longer elements
DPI = 110  # of such pixels, and of slices
INK = "#010203"  # becomes the colour of the page's text
COLOURS = (
    "#3574c4", "#c8641a", "#2f8f4e", "#8f63c9", "#d1434b", "#1f8a99", "#c4569b", "#8a8420", "#a0683f", "#7d7d7d",
)  # fmt: skip

_STYLE: Any = {
    "svg.hashsalt": "stunet",
    "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9.0,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "grid.color": INK, "grid.alpha": 0.15, "axes.grid": True, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.labelcolor": INK,
    "axes.titlesize": 10.0, "axes.titlelocation": "left", "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "lines.linewidth": 1.5, "axes.formatter.useoffset": False, "path.simplify": True,
}  # fmt: skip


def drawn(draw: "Callable[[Canvas], None]", height: float, caption: str, alt: str, width: float = WIDTH) -> Figure:
    """Return the figure that a function draws.

    Args:
        draw: Draws on an empty matplotlib figure.
        height: In inches.
        caption: See blocks.Figure.
        alt: See blocks.Figure.
        width: In inches; WIDTH is as wide as the page.
    """
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    svg = _saved(draw, (width, height), format="svg", metadata=nothing)
    return Figure(_inline(svg.decode()), caption, alt)


def png(draw: "Callable[[Canvas], None]", height: float, width: float = WIDTH) -> bytes:
    """Return what a function draws as a PNG, on white; arguments are those of drawn()."""
    return _saved(draw, (width, height), format="png", facecolor="white")


def _saved(draw: "Callable[[Canvas], None]", inches: tuple[float, float], **options: Any) -> bytes:
    """Return the file of a drawing."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    with own_style():
        matplotlib.rcParams.update(_STYLE)
        canvas = MatplotlibFigure(figsize=inches, layout="constrained")
        FigureCanvasAgg(canvas)
        draw(canvas)
        stream = io.BytesIO()
        with warnings.catch_warnings():
            # Letters that matplotlib's font lacks are measured as boxes; the browser has its own fonts. A drawing that
            # is too small for all its labels is better than none.
            warnings.filterwarnings("ignore", "Glyph .* missing")
            warnings.filterwarnings("ignore", "constrained_layout not applied")
            canvas.savefig(stream, dpi=DPI, **options)
    return stream.getvalue()


def embedded(png: bytes, caption: str, alt: str) -> Figure | None:
    """Return a figure that shows a PNG as it is; None if it is none."""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        return None
    width, height = struct.unpack(">II", png[16:24])  # of the IHDR chunk
    data = base64.b64encode(png).decode()
    picture = f'<image width="{width}" height="{height}" xlink:href="data:image/png;base64,{data}"/>'
    svg = f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" focusable="false">{picture}</svg>'
    return Figure(svg, caption, alt)


def is_many(dots: int) -> bool:
    """Return whether so many dots are drawn as pixels."""
    return dots > RASTER_ABOVE


def label(text: str, longest: int = 40) -> str:
    """Return the name of a class or case for a drawing: on one line, and not too long.

    Examples:
        >>> label("a" * 50, longest=10)
        'aaaaaaaaa…'
    """
    text = one_line(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def say(axes: "Axes", text: str) -> None:
    """Write a text into the middle of empty axes."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center")


def _inline(svg: str) -> str:
    """Return the svg element of a file in a form that can stand in HTML, in the ink of the page."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    head, _, rest = element.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    # Groups have names such as axes_1, and equal images have the same; nothing refers to them.
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', rest))
    rest = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", rest)
    rest = rest.replace(INK, "currentColor").replace("'DejaVu Sans'", "sans-serif")
    rest = re.sub(r"\n\s*", "\n", rest)
    return f'<svg {box[0] if box else ""} focusable="false">{rest.strip()}'
