"""The viewer in a real browser: what is drawn, named and asked for. Skipped where there is no Chromium."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.image import imread

from stunet.files import write_json
from stunet.results.colours import colour
from stunet.runs.viewing import ViewingRequest, write_page
from stunet.workspace import VARIABLES
from tests.loops import for_each
from tests.viewer.files import CLASSES, image_of, intensities, labels, value_at, write
from tests.viewer.test_server import running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = os.environ.get("STUNET_TEST_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not BROWSER, reason="no Chromium: apt-get install chromium, or STUNET_TEST_BROWSER=PATH"),
]
WIDTH, HEIGHT = 900, 600
MISSED = (255, 70, 70)  # view.js
UNTIL_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser."""
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=BROWSER)
        yield made
        made.close()


class Viewer:
    """A page of the viewer, and what a person would do and see there."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.asked, self.said = page, [], []
        page.set_default_timeout(UNTIL_MS)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: message.type == "error" and self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: self.said.append(f"a dialog: {dialog.message}"))
        page.goto(address)
        page.wait_for_selector("body[data-drawn], #notes:not([hidden])")

    def names(self) -> list[str]:
        """The names in the list of classes that are shown."""
        return self.page.locator("#classes tr:not([hidden]) .name").all_text_contents()

    def drawn(self, act: Callable[[], Any]) -> None:
        """Do something, and wait until the page has drawn again."""
        before = self.page.get_attribute("body", "data-drawn")
        act()
        self.page.wait_for_selector(f'body[data-drawn]:not([data-drawn="{before}"])')

    def press(self, key: str) -> None:
        """Press a key that makes the page draw again."""
        self.drawn(lambda: self.page.keyboard.press(key))

    def look(self, view: str) -> None:
        """Choose 2D + 3D, or one of the views."""
        self.page.click(f'.view[data-view="{view}"]')
        self.page.wait_for_timeout(200)

    def picture(self) -> np.ndarray:
        """The canvas, (rows, columns, 3), 0 to 255."""
        picture = imread(io.BytesIO(self.page.locator("#canvas").screenshot()))
        return np.rint(picture[..., :3] * 255).astype(int)

    def share(self, rgb: tuple[int, int, int]) -> float:
        """The share of the canvas that has a colour, up to rounding."""
        return float((np.abs(self.picture() - rgb).max(axis=2) <= 3).mean())

    def click(self, x: int, y: int) -> tuple[list[float], str, str]:
        """Click there, and return mm in RAS and the names in prediction and reference."""
        self.page.locator("#canvas").click(position={"x": x, "y": y})
        status = self.page.locator("#status")
        mm = json.loads(status.get_attribute("data-mm"))
        return mm, status.get_attribute("data-prediction"), status.get_attribute("data-reference")

    def choose(self, case: str) -> None:
        """Choose a case in the list."""
        texts = self.page.locator("#case option").all_text_contents()
        self.page.select_option("#case", index=[text.split(" ")[0] for text in texts].index(case))

    def jump(self, name: str) -> None:
        """Click the name of a class, and wait until the crosshair is there."""
        self.page.locator("#classes .name").get_by_text(name, exact=True).click()
        self.page.wait_for_selector(f'#status[data-prediction="{name}"]')

    def opaque(self) -> None:
        """Show classes in their own colours, without the image shining through."""
        self.drawn(lambda: self.page.fill("#opacity", "100"))


@pytest.fixture
def view(browser: Any) -> Iterator[Callable[[str], Viewer]]:
    """`view(address)` opens a page."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    yield lambda address: Viewer(context.new_page(), address)
    context.close()


def dataset(folder: Path) -> tuple[Path, Path]:
    """A raw dataset of three cases, and predictions that miss more and more."""
    raw, out = folder / "Dataset998_X", folder / "out"
    for name, shift in (("fine", 0), ("poor", 2), ("fair", 1)):
        write(image_of(intensities()), raw / "imagesTr" / f"{name}_0000.nii.gz")
        write(image_of(labels()), raw / "labelsTr" / f"{name}.nii.gz")
        write(image_of(labels(shift)), out / f"{name}.nii.gz")
    description = {"channel_names": {"0": "MR"}, "labels": {"background": 0, **CLASSES}, "numTraining": 3}
    write_json(raw / "dataset.json", {**description, "file_ending": ".nii.gz"})
    return raw, out


def test_cases_classes_and_layers_are_shown_and_asked_for_here_only(
    view: Callable[[str], Viewer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = dataset(tmp_path)
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(raw.parent) if variable == "nnUNet_raw" else "")
    with running(ViewingRequest(dataset=998, paths=[out])) as server:
        server.gallery.measure()
        page = view(server.address)
        # The poorest case comes first.
        assert page.page.title() == "poor - stunet_view"
        assert page.names() == ["liver", "spleen", "tumour"]
        cells = page.page.locator("#classes tr:not([hidden])").first.locator("td").all_text_contents()
        dice = 2 * (labels(2) * labels() == 1).sum() / (2 * (labels() == 1).sum())
        assert [float(cell) for cell in cells[1:]] == pytest.approx([0.3, 0.3, round(dice, 3)])
        page.opaque()
        colours = {name: colour(name) for name in CLASSES}
        for name, rgb in colours.items():
            page.jump(name)
            assert page.share(rgb) > 0.01
        assert len(np.unique(page.picture().reshape(-1, 3), axis=0)) > 50
        page.drawn(lambda: page.page.get_by_label("Show tumour").click())
        assert page.share(colours["tumour"]) == 0
        page.press("o")
        assert page.share(colours["tumour"]) == 0
        page.press("o")
        page.page.click("text=spleen")
        assert page.share(colours["spleen"]) > 0.01
        page.press("3")  # the difference, of the classes that are shown
        assert page.page.get_attribute('.layer[data-layer="difference"]', "aria-pressed") == "true"
        assert page.names()[:3] == [
            "missed: only in the reference", "added: only in the prediction", "another class in the reference",
        ]  # fmt: skip
        kinds = page.page.locator("#classes tr[data-kind] td:nth-child(2)").all_text_contents()
        ours, theirs = (np.where(array == 3, 0, array) for array in (labels(2), labels()))
        missed = ((ours == 0) & (theirs > 0)).sum() * 3.75 / 1000
        assert float(kinds[0]) == pytest.approx(missed, rel=0.05)
        assert page.share(MISSED) > 0.001
        page.press("4")
        assert page.share(MISSED) == 0
        page.press("x")
        page.press("a")
        page.jump("tumour")
        assert page.share(colours["tumour"]) > 0.01
        page.page.keyboard.press("f")
        page.page.keyboard.type("SPL")
        assert page.names() == ["spleen"]
        page.page.keyboard.press("Escape")
        page.jump("liver")
        page.press("n")
        assert page.page.title() == "fair - stunet_view"
        page.press("p")
        page.press("p")
        assert page.page.title() == "fine - stunet_view"
        page.look("3d")
        assert len(np.unique(page.picture().reshape(-1, 3), axis=0)) > 50
        here = server.address
        page.page.screenshot(path=str(tmp_path / "page.png"))
    assert page.said == []
    assert len(page.asked) > 10
    assert all(url.startswith((here, "blob:", "data:")) for url in page.asked)


@for_each(("degrees", "orientation"), [(0.0, "RAS"), (-23.0, "SAR")])
def test_a_click_names_what_itk_finds_there(
    view: Callable[[str], Viewer], tmp_path: Path, degrees: float, orientation: str
) -> None:
    paths = [
        write(image_of(array, degrees, orientation), tmp_path / f"{name}.nrrd")
        for name, array in (("image", intensities()), ("ours", labels(1)), ("theirs", labels()))
    ]
    names = {0: "background", **{value: f"label {value}" for value in CLASSES.values()}}
    found = set()
    with running(ViewingRequest(paths=paths[:2], reference=paths[2])) as server:
        page = view(server.address)
        page.opaque()
        for plane in ("axial", "coronal", "sagittal"):
            page.look(plane)
            page.jump("label 1")
            picture = page.picture()
            height, width = picture.shape[:2]
            for x in range(width // 8, width, width // 4):
                for y in range(height // 8, height, height // 4):
                    mm, ours, theirs = page.click(x, y)
                    assert ours == names[value_at(paths[1], mm)], (plane, x, y, mm)
                    assert theirs == names[value_at(paths[2], mm)], (plane, x, y, mm)
                    # The plane has stayed, so the picture from before shows what was clicked on.
                    around = picture[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3)
                    if (around == around[0]).all() and around[0].any():
                        expected = colour(ours.replace(" ", "_"))
                        same = bool((np.abs(around[0] - expected) <= 3).all())
                        assert same == (ours != "background"), (plane, x, y, ours, around[0])
                        found.add((plane, ours))
    assert len(found) >= 5  # of three planes, with and without a class
    assert page.said == []


def test_the_patients_right_is_on_the_left(view: Callable[[str], Viewer], tmp_path: Path) -> None:
    array = labels() * 0
    array[3:9, 4:10, 1:4] = 1  # at low x of LPS: the right
    with running(ViewingRequest(paths=[write(image_of(array, 0, "RAS"), tmp_path / "x.nii")])) as server:
        page = view(server.address)
        page.opaque()
        for plane in ("axial", "coronal", "3d"):
            page.look(plane)
            shown = np.abs(page.picture() - colour("label_1")).max(axis=2) <= 60
            assert shown.any()
            assert np.argwhere(shown)[:, 1].mean() < shown.shape[1] / 2, plane
        assert "there is no image" in page.page.inner_text("#notes")


def test_a_page_of_its_own_needs_no_server_and_no_network(view: Callable[[str], Viewer], tmp_path: Path) -> None:
    hostile = {
        '<script>alert("x")</script>': 1, "</script><img src=x onerror=alert(1)>": 2, "=cmd|' /C calc'!A0": 3,
        "line\nbreak": 4, "\u05d0\u05d5\u05e8\u05d2\u05df \u202e rtl": 5, '"quoted\' & <b>': 6,
    }  # fmt: skip
    many = {f"class {i}": i for i in range(7, 301)}
    write_json(tmp_path / "dataset.json", {"labels": {"background": 0, **hostile, **many}})
    array = labels()
    array.ravel()[::9] = 6
    prediction = array.astype(np.uint16)
    prediction[11] = 290
    one = [write(image_of(intensities(i).astype(np.float32) * 0.3), tmp_path / f"im_{i:04d}.nii.gz") for i in range(2)]
    files = [write(image_of(a), tmp_path / f"{i}.nii.gz") for i, a in enumerate((prediction, array))]
    page = tmp_path / "page.html"
    write_page(ViewingRequest(paths=[*one, files[0]], reference=files[1], html=page))
    seen = view(page.as_uri())
    names = seen.names()
    assert len(names) == 300
    # Those that the files have come first.
    expected = [" ".join(name.split()) for name, value in hostile.items() if value in (1, 2, 3, 6)]
    assert names[:5] == [*expected, "class 290"]
    assert {" ".join(name.split()) for name in hostile} < set(names)
    seen.opaque()
    assert seen.share(colour("class 290")) > 0.001  # indices above 255
    seen.press("c")  # the other channel
    assert seen.page.input_value("#channel") == "1"
    seen.press("3")
    assert seen.share(MISSED) == 0
    seen.jump("class 290")
    assert seen.said == []
    assert seen.asked[0] == page.as_uri()
    assert all(re.match("file:|data:|blob:", url) for url in seen.asked)
    assert len([url for url in seen.asked if url.startswith("file:")]) == 1


def test_what_cannot_be_shown_is_said_and_the_others_can(view: Callable[[str], Viewer], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(image_of(labels()), out / "whole.nii.gz")
    (out / "torn.nii.gz").write_bytes((out / "whole.nii.gz").read_bytes()[:-40])
    write(sitk.Cast(image_of(intensities()), sitk.sitkInt16), out / "image.nii.gz")
    with running(ViewingRequest(paths=[out], case="torn")) as server:
        page = view(server.address)
        assert "damaged or truncated" in page.page.inner_text("#notes")
        page.choose("image")
        page.page.wait_for_selector("#notes:has-text('is not a segmentation')")
        page.choose("whole")
        page.page.wait_for_selector("body[data-drawn]")
        assert page.names() == ["label 1", "label 2", "label 3"]
        page.jump("label 3")
        before = json.loads(page.page.get_attribute("#status", "data-mm"))
        write(image_of(labels(1)), out / "whole.nii.gz")  # made again while it is looked at
        page.page.keyboard.press("n")
        page.drawn(lambda: page.page.keyboard.press("p"))
        page.jump("label 3")
        after = json.loads(page.page.get_attribute("#status", "data-mm"))
        assert np.subtract(after, before) == pytest.approx([-1.5, 0, 0], abs=1e-4)  # one voxel to the left of LPS
