"""Write plots, always in matplotlib's own style: nnU-Net's progress.png leaves its fonts to the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stunet.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


@contextmanager
def own_style() -> Iterator[None]:
    """Draw in matplotlib's own style within the block; that of the process comes back at its end."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False  # names may have dollars
        yield


@contextmanager
def plotted(path: Path, width: float, height: float, dpi: int = DPI) -> "Iterator[Figure]":
    """Yield a figure of this size, in inches, which is written at the end of the block; it appears whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with own_style():
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_write(path) as part:
            figure.savefig(part, dpi=dpi)
