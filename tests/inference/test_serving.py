"""The server of docs/prediction.md, as a process, and requests to it."""

import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from stunet.inference.predictor import Predictor
from tests.predictor_models import make_model, write_image

pytestmark = pytest.mark.process
PAGE = Path(__file__).parents[2] / "docs" / "prediction.md"
SHAPE = (13, 25, 15)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "T__P__3d_fullres")


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    program = model.with_name("server.py")
    program.write_text(code)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, str(program), str(model), str(port)], stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def post(address: str, content: bytes) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(address, content), timeout=60) as answer:
        return bytes(answer.read())


def test_it_returns_the_segmentation_of_what_is_posted(model: Path, address: str, tmp_path: Path) -> None:
    image = write_image(tmp_path / "c_0000.nii.gz", 0, SHAPE)
    (tmp_path / "seg.nii.gz").write_bytes(post(address, image.read_bytes()))
    expected = Predictor(model).predict(image)
    assert len(np.unique(expected.labels_DHW)) > 1
    found = nibabel.load(tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj).T, expected.labels_DHW)
    np.testing.assert_allclose(found.affine, nibabel.load(image).affine)


def test_it_says_what_is_wrong_with_a_file_and_goes_on(address: str) -> None:
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(address, b"no image")
        assert caught.value.code == 422
        assert b"image.nii.gz" in caught.value.read()
