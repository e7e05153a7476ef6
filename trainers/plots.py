"""nnU-Net's logger, with a progress.png that appears whole and is not drawn after every epoch."""

import os
import time
from pathlib import Path
from typing import Any

from nnunetv2.training.logging.nnunet_logger import MetaLogger

from stunet.files import remove, staging_name

INTERVAL_S = 60.0  # drawing takes seconds, as long as a short epoch


class Logger(MetaLogger):
    """Logs as nnU-Net does, and plots at most once in INTERVAL_S."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plotted = time.monotonic()

    def plot_progress_png(self, output_folder: str) -> None:
        """Plot if it is time; nnU-Net calls this after every epoch."""
        if time.monotonic() - self._plotted > INTERVAL_S:
            self.plot(output_folder)

    def plot(self, output_folder: str) -> None:
        """Plot now; an error leaves the earlier plot as it was."""
        self._plotted = time.monotonic()
        folder = Path(output_folder)
        # Drawn in a folder aside: whoever opens the file in between would see half a picture.
        part = folder / staging_name("plot")
        part.mkdir()
        try:
            super().plot_progress_png(str(part))
            for file in part.iterdir():
                os.replace(file, folder / file.name)
        finally:
            remove(part)
