"""Commands killed with SIGKILL in the middle of writing, and run again: nothing is half, nothing is missing."""

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest

from stunet.datasets.phantom import make_phantom

if TYPE_CHECKING:
    from tests.slow.conftest import Place

pytestmark = pytest.mark.slow

CASES = 6
SHAPE, SPACING = (40, 72, 72), (3.0, 2.5, 2.5)  # large enough that writing takes a while
ENDINGS = (".nii.gz", ".npz", ".pkl")


def kill_when(place: "Place", command: Sequence[Any], reached: Callable[[], bool]) -> None:
    """Starts the command and kills it when `reached()` holds; it is held meanwhile, so that this is still so."""
    with place.start(*command) as process:
        while process.poll() is None:
            if reached():
                process.send_signal(signal.SIGSTOP)
                if reached():
                    process.kill()
                process.send_signal(signal.SIGCONT)
            time.sleep(0.0005)
        _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw dataset of cases that take a moment each."""
    folder = tmp_path_factory.mktemp("killed") / "nnUNet_raw" / "Dataset996_Killed"
    folder.parent.mkdir()
    return make_phantom(folder, CASES, seed=1, shape=SHAPE, spacing=SPACING)


def test_a_killed_prediction_goes_on_where_it_was(trained: "Place", images: Path, tmp_path: Path) -> None:
    def command(name: str, *options: str) -> list[Any]:
        model = ["--model", trained.model("3d_fullres"), "-f", 0, "--disable_tta", "-device", "cpu"]
        return ["stunet_predict", "-i", images / "imagesTr", "-o", tmp_path / name, *model, *options]

    def written(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for end in ENDINGS for path in folder.glob(f"[!.]*{end}")}

    def writing(done: int) -> Callable[[], bool]:
        """Whether `done` cases have all their files, and something of the next one is being written."""
        return lambda: len(list(out.glob("[!.]*.nii.gz"))) == done and any(out.glob(".part-*-phantom_*"))

    out = tmp_path / "killed"
    trained.run(*command("whole", "--save_probabilities"))
    expected = written(tmp_path / "whole")
    assert len(expected) == CASES * len(ENDINGS)
    for done in (0, 2):
        kill_when(trained, command("killed", "--save_probabilities", "--continue_prediction"), writing(done))
        assert any(out.glob(".part-*-phantom_*"))
        there = written(out)
        assert len(there) < len(expected)
        assert there.items() <= expected.items()
    trained.run(*command("killed", "--save_probabilities", "--continue_prediction"))
    assert written(out) == expected
    assert not list(out.glob(".part-*"))


def test_killed_preprocessing_goes_on_where_it_was(place: "Place", images: Path) -> None:
    killed, whole = (type(place)(images.parents[1] / name, images.name) for name in ("killed", "whole"))
    for each in (killed, whole):
        each.root.mkdir()
        (each.root / "nnUNet_raw").symlink_to(images.parent)
    command = ("stunet_plan_and_preprocess", "-d", 996, "--size", "T", "-c", "3d_fullres", "-np", 1)
    whole.run(*command)
    expected = arrays(whole)
    assert len(expected) == 2 * CASES

    folder = killed.preprocessed / "STUNetPlans_3d_fullres"
    kill_when(killed, command, lambda: any(folder.glob("*.pkl")) and any(folder.glob(".stunet/part/*/*")))
    there = arrays(killed)
    assert len(there) < len(expected)
    for name, array in there.items():
        np.testing.assert_array_equal(array, expected[name])
    killed.run(*command)
    np.testing.assert_equal(arrays(killed), expected)
    assert not (folder / ".stunet" / "part").exists()


def arrays(place: "Place") -> dict[str, np.ndarray]:
    """All preprocessed arrays of the cases that nnU-Net sees; each case has its segmentation and properties."""
    folder = place.preprocessed / "STUNetPlans_3d_fullres"
    cases = [path.stem for path in folder.glob("*.b2nd") if not path.stem.endswith("_seg")]
    assert all((folder / f"{case}.pkl").is_file() for case in cases)
    names = [f"{case}{ending}" for case in cases for ending in (".b2nd", "_seg.b2nd")]
    return {name: blosc2.open(str(folder / name), mode="r")[:] for name in names}
