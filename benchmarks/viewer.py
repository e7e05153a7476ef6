"""Seconds to the first picture of stunet_view in Chromium, and the memory of browser and server.

    python benchmarks/viewer.py 35x51x35 122x101x30 244x202x224

The image, its prediction and its reference are phantoms of five organs. The time runs from the request for the page to
the first picture that has been drawn; the server has not read the files before. Memory is that of all processes of the
browser together, and of this process, which serves.
"""

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import SimpleITK as sitk
from playwright.sync_api import sync_playwright

from stunet.datasets.phantom import make_case
from stunet.runs.viewing import ViewingRequest, open_viewer, write_page

BROWSER = "/usr/bin/chromium"
UNTIL_MS = 900_000
MB = 1e6


def make_files(folder: Path, shape: tuple[int, ...]) -> list[Path]:
    """Write image, prediction and reference of a shape (x, y, z)."""
    image, label = make_case(np.random.default_rng(1), shape[::-1])
    paths = []
    for name, array in (("image", image), ("prediction", np.roll(label, 1, axis=2)), ("reference", label)):
        paths.append(folder / f"{name}.nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(array), paths[-1], useCompression=True)
    return paths


def open_page(address: str) -> dict[str, float]:
    """Return seconds to the first picture, to that of the reference after it, and MB."""
    with sync_playwright() as started:
        before = {process.pid for process in psutil.process_iter()}
        browser = started.chromium.launch(executable_path=BROWSER)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(UNTIL_MS)
        start = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("body[data-drawn]")
        page.screenshot()  # waits for the graphics
        first = time.perf_counter() - start
        start = time.perf_counter()
        page.keyboard.press("2")
        page.wait_for_selector('body[data-drawn="2"]')
        page.screenshot()
        other = time.perf_counter() - start
        processes = [p for p in psutil.process_iter() if p.pid not in before and "chrom" in p.name()]
        memory = sum(process.memory_full_info().pss for process in processes)
        heap = page.evaluate("performance.memory.usedJSHeapSize")
        browser.close()
    return {"first_s": first, "layer_s": other, "browser_mb": memory / MB, "heap_mb": heap / MB}


def main() -> None:
    """Measure each shape, served and as a page of its own."""
    for text in sys.argv[1:]:
        shape = tuple(map(int, text.split("x")))
        with tempfile.TemporaryDirectory() as folder:
            image, prediction, reference = make_files(Path(folder), shape)
            request = ViewingRequest(paths=[image, prediction], reference=reference)
            server = open_viewer(request)
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            measured = open_page(server.address)
            server.shutdown()
            server.server_close()
            measured["server_mb"] = psutil.Process().memory_info().rss / MB
            page = Path(folder) / "page.html"
            start = time.perf_counter()
            write_page(ViewingRequest(paths=[image, prediction], reference=reference, html=page))
            measured["write_html_s"] = time.perf_counter() - start
            measured["html_mb"] = page.stat().st_size / MB
            measured["html_first_s"] = open_page(page.as_uri())["first_s"]
        print(json.dumps({"shape": text, **{key: round(value, 1) for key, value in measured.items()}}), flush=True)


if __name__ == "__main__":
    main()
