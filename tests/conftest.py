"""What all tests share: one thread per process, and the path of the reference data."""

import gc
import locale
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest

from tests.once import made_once

# A run in the background (nohup, CI) ignores Ctrl-C, and so would everything that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; pytest-xdist brings the parallelism
os.environ["MATPLOTLIBRC"] = str(Path(__file__).with_name("matplotlibrc"))

gc.disable()  # while modules are imported and tests are collected


def pytest_collection_finish() -> None:
    """Leave the million objects of modules and tests, which stay, out of all later rounds: half a second each."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def locale_as_it_was() -> Iterator[None]:
    """GDCM changes the process's locale when a test writes DICOM files with it, and later tests read text files."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """`with room_for(1024):` is a disk that is full as soon as a file has more bytes."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of reference data: $STUNET_TEST_DATA, or ../shared/data beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("STUNET_TEST_DATA", default))
    if not path.is_dir():
        pytest.skip(f"no reference data in {path}; set STUNET_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def peft() -> Any:
    """The package. It imports torchvision, which of another build than torch lacks two operators, not called here."""
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import peft

    return peft


@pytest.fixture(scope="session", autouse=True)
def names_are_matched_by_threads() -> Iterator[None]:
    """nnU-Net lists a dataset's files with twelve forks, a second of CPU for a process of this size."""
    from nnunetv2.utilities import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "Pool", ThreadPool)
        yield


@pytest.fixture(scope="session")
def few_samples() -> Iterator[None]:
    """Fingerprints of thousands of intensities, not of nnU-Net's 100 million: drawing them takes seconds."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    stock = DatasetFingerprintExtractor.__init__

    def start(self: Any, *args: Any, **options: Any) -> None:
        stock(self, *args, **options)
        self.num_foreground_voxels_for_intensitystats = 1e5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatasetFingerprintExtractor, "__init__", start)
        yield


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory, few_samples: None) -> Iterator[str]:
    """A phantom dataset of six small cases, planned for size T and preprocessed; nnU-Net's variables are set to it."""
    from stunet.datasets.phantom import make_phantom
    from stunet.plans.fingerprint import extract_fingerprint
    from stunet.plans.plan import Plan
    from stunet.plans.planner import STUNetPlanner
    from stunet.preprocessing.dataset import preprocess

    name = "Dataset998_Phantom"

    def make(folder: Path) -> None:
        set_folders(patch, folder)
        (folder / "nnUNet_raw").mkdir()
        make_phantom(folder / "nnUNet_raw" / name, cases=6, seed=0, held_out=1, shape=(16, 24, 24))
        extract_fingerprint(name, workers=1)
        patch.setenv("nnUNet_n_proc_DA", "1")  # 0 breaks nnU-Net's planning
        plans = STUNetPlanner(name, size="T").plan_experiment()
        preprocess(name, Plan(plans), ["3d_fullres", "2d"], workers=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_def_n_proc", "1")
        set_folders(patch, made_once(tmp_path_factory, "planned", make))
        patch.setenv("nnUNet_n_proc_DA", "0")
        yield name


def set_folders(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Set nnU-Net's variables to its three folders below this one."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        patch.setenv(variable, str(root / variable))


@pytest.fixture
def pre(planned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the preprocessed phantom that a test may change; one of the raw phantom is there, too."""
    from stunet import workspace
    from stunet.files import write_json
    from tests.phantom_copy import FOLDS

    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        shutil.copytree(workspace.folder(variable) / planned, tmp_path / variable / planned)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    folder = tmp_path / "nnUNet_preprocessed" / planned
    write_json(folder / "splits_final.json", FOLDS)
    return folder


@pytest.fixture
def raw(pre: Path) -> Path:
    """The copy of the raw phantom."""
    from stunet import workspace

    return workspace.raw_dataset(pre.name)
