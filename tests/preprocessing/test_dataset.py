"""Does preprocessing make nnU-Net's files, only complete ones, and exactly those that are missing or out of date?

A raw image that is a named pipe stops a worker for as long as a test needs. Read next: stunet/preprocessing/dataset.py.
"""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.errors import DataError, OutOfMemoryError, UsageError
from stunet.files import exclusive_lock, shared_lock
from stunet.machine import SHARE, memory_limit
from stunet.parts import Part
from stunet.plans.plan import Plan
from stunet.preprocessing.dataset import (
    merge_parts,
    pending_cases,
    preprocess,
    preprocessed_cases,
    read_manifest,
    settings_of,
)
from stunet.preprocessing.worker import PER_VOXEL, fitting_workers
from stunet.workspace import VARIABLES, preprocessed_dataset
from tests.processes import forked_from_the_server, in_two_processes

DATASET = "Dataset901_Tiny"
CASES = ["case_1", "case_2", "case_3"]
RUN = """
import json, sys
from stunet.parts import Part
from stunet.plans.plan import Plan
from stunet.preprocessing import dataset

if __name__ == "__main__":
    dataset.SAVE_INTERVAL_S = 0.0
    plan = Plan(json.loads(sys.argv[1]))
    dataset.preprocess("Dataset901_Tiny", plan, ["3d_fullres"], 1, lambda name: print(name, flush=True))
"""


@pytest.fixture(autouse=True)
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A raw dataset of three cases of two channels, about 14^3 voxels of 1 x 1 x 1.5 mm."""
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    root = tmp_path / "nnUNet_raw" / DATASET
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    for seed, case in enumerate(CASES):
        rng = np.random.default_rng(seed)
        shape = (14, 15, 12 + seed)
        for channel in range(2):
            image = rng.normal(size=shape).astype(np.float32)
            image[:2] = 0  # to be cropped
            _write(root / "imagesTr" / f"{case}_000{channel}.nii.gz", image)
        label = np.zeros(shape, np.uint8)
        label[4:8, 4:9, 3:7], label[9:12, 5:8, 3:9] = 1, 2
        _write(root / "labelsTr" / f"{case}.nii.gz", label)
    meaning = {"channel_names": {"0": "CT", "1": "MR"}, "labels": {"background": 0, "a": 1, "b": 2}}
    (root / "dataset.json").write_text(json.dumps({**meaning, "numTraining": 3, "file_ending": ".nii.gz"}))
    return root


@pytest.fixture
def unblock(raw: Path) -> Callable[[], None]:
    """Puts a pipe in the place of an image of the last case, so that reading it never ends; call it to undo that."""
    path = raw / "imagesTr" / "case_3_0000.nii.gz"
    image = path.read_bytes()
    path.unlink()
    os.mkfifo(path)

    def undo() -> None:
        path.unlink()
        path.write_bytes(image)

    return undo


@pytest.fixture
def plans() -> dict:
    """The part of a plans file that preprocessing reads."""
    statistics = {"mean": 0.1, "std": 0.9, "percentile_00_5": -2.0, "percentile_99_5": 2.0}
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    values = {
        **{"preprocessor_name": "DefaultPreprocessor", "architecture": {}},
        **{"normalization_schemes": ["CTNormalization", "ZScoreNormalization"], "use_mask_for_norm": [False, True]},
        **{"resampling_fn_data": function, "resampling_fn_data_kwargs": resampling},
        **{"resampling_fn_seg": function, "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1}},
    }
    volume = {"data_identifier": "P_3d_fullres", "spacing": [1.2, 1.0, 1.0], "patch_size": [16, 16, 16], **values}
    slices = {"data_identifier": "P_2d", "spacing": [0.8, 0.9], "patch_size": [16, 16], **values}
    return {
        **{"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager", "transpose_forward": [1, 0, 2]},
        "foreground_intensity_properties_per_channel": {"0": statistics, "1": statistics},
        "configurations": {"2d": slices, "3d_fullres": volume, "3d_cascade_fullres": {"inherits_from": "3d_fullres"}},
    }


def _write(path: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 1.5))
    sitk.WriteImage(image, str(path))


def _data(folder: str = "P_3d_fullres") -> Path:
    return preprocessed_dataset(DATASET) / folder


def _content(folder: Path) -> dict[str, Any]:
    """All cases as nnU-Net's dataset class reads them."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    dataset = infer_dataset_class(str(folder))(str(folder))
    content = {}
    for case in dataset.identifiers:
        data, seg, _, properties = dataset.load_case(case)
        content[case] = (data[:], data.chunks, data.blocks, seg[:], properties)
    return content


def _times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


def _complete(folder: Path, cases: list[str]) -> bool:
    expected = {f"{case}{ending}" for case in cases for ending in (".b2nd", "_seg.b2nd", ".pkl")}
    return set(_times(folder)) == expected and not (folder / ".stunet" / "part").exists()


def test_the_data_of_one_and_two_workers_equal_those_of_nnunets_own_run(plans: dict) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    one_worker = _content(_data())
    shutil.rmtree(_data())
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 2)
    two_workers = _content(_data())
    (_data().parent / "P.json").write_text(json.dumps(plans))
    stock = DefaultPreprocessor(verbose=False)
    stock.show_progress_bar = False
    with forked_from_the_server():
        stock.run(DATASET, "3d_fullres", "P", num_processes=1)  # removes our folder and fills its own
    np.testing.assert_equal(one_worker, _content(_data()))
    np.testing.assert_equal(two_workers, one_worker)
    assert list(one_worker) == CASES


def test_2d_data_and_the_dataset_entry_equal_nnunets_case_by_case(raw: Path, plans: dict, tmp_path: Path) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    description = json.loads((raw / "dataset.json").read_text())
    images, label = [f"imagesTr/case_2_000{channel}.nii.gz" for channel in range(2)], "labelsTr/case_2.nii.gz"
    description["dataset"] = {"other": {"images": images, "label": str(raw / label)}}
    (raw / "dataset.json").write_text(json.dumps(description))
    preprocess(DATASET, Plan(plans), ["2d"], 1)

    (tmp_path / "stock").mkdir()
    files = ([str(raw / image) for image in images], str(raw / label))
    manager = PlansManager(plans)
    arguments = (*files, manager, manager.get_configuration("2d"), description)
    DefaultPreprocessor(verbose=False).run_case_save(str(tmp_path / "stock" / "other"), *arguments)
    np.testing.assert_equal(_content(_data("P_2d")), _content(tmp_path / "stock"))


def test_labels_are_copied_and_a_second_run_changes_nothing(raw: Path, plans: dict) -> None:
    seen: list[str] = []
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1, seen.append)
    copies = _data().parent / "gt_segmentations"
    before = _times(_data()), _times(copies)
    assert [(copies / n).read_bytes() for n in before[1]] == [(raw / "labelsTr" / n).read_bytes() for n in before[1]]
    assert (copies.parent / "dataset.json").read_bytes() == (raw / "dataset.json").read_bytes()
    assert pending_cases(DATASET, Plan(plans), ["3d_fullres"]) == []
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1, seen.append)
    assert (_times(_data()), _times(copies)) == before
    assert seen == preprocessed_cases(DATASET, Plan(plans), "3d_fullres") == CASES


def test_configurations_that_share_a_folder_are_done_once(plans: dict) -> None:
    pending = pending_cases(DATASET, Plan(plans), ["3d_cascade_fullres", "3d_fullres", "2d"])
    assert pending == [(name, case) for name in ("3d_cascade_fullres", "2d") for case in CASES]


def test_other_settings_make_all_cases_anew_and_another_patch_does_not(plans: dict) -> None:
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    shape = _content(_data())["case_1"][0].shape
    plans["configurations"]["3d_fullres"]["patch_size"] = [8, 8, 8]
    assert pending_cases(DATASET, Plan(plans), ["3d_fullres"]) == []
    plans["configurations"]["3d_fullres"]["spacing"] = [0.5, 1.0, 1.0]
    assert len(pending_cases(DATASET, Plan(plans), ["3d_fullres"])) == 3
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    assert _content(_data())["case_1"][0].shape[1] > 2 * shape[1]


def test_the_orientation_is_a_setting_only_where_images_are_turned_to_it(plans: dict) -> None:
    for reader, orientation, known, expected in (
        ("SimpleITKIO", "LPS", {"LPS": 3}, None),
        ("SimpleITKIO", "LPS", {"LPS": 2, "RAS": 1}, "LPS"),
        ("SimpleITKIO", "RAS", {"LPS": 3}, "RAS"),  # that of another dataset's plan
        ("NibabelIOWithReorient", "RAS", {"LPS": 3}, None),  # by the reader, as ever
    ):
        block = {"orientation": orientation, "orientations": known}
        plan = Plan({**plans, "image_reader_writer": reader, "stunet": block})
        assert settings_of(plan, "3d_fullres", {}).get("orientation") == expected, (reader, known)


def test_a_changed_raw_file_makes_its_case_anew_and_only_that(raw: Path, plans: dict) -> None:
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    before, content = _times(_data()), _content(_data())
    _write(raw / "imagesTr" / "case_2_0001.nii.gz", np.random.default_rng(9).normal(size=(14, 15, 13)))
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    changed = {name for name, time in _times(_data()).items() if time != before[name]}
    assert changed == {name for name in before if name.startswith("case_2")}
    assert not np.array_equal(_content(_data())["case_2"][0], content["case_2"][0])


def test_removed_cases_and_foreign_files_go_and_lost_files_come_back(raw: Path, plans: dict) -> None:
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    (_data() / "case_2_seg.b2nd").unlink()
    assert preprocessed_cases(DATASET, Plan(plans), "3d_fullres") == ["case_1", "case_3"]
    for path in (*raw.glob("imagesTr/case_1_*"), raw / "labelsTr" / "case_1.nii.gz"):
        path.unlink()
    (_data() / "old.b2nd").touch()
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    assert _complete(_data(), CASES[1:])
    assert sorted(_times(_data().parent / "gt_segmentations")) == ["case_2.nii.gz", "case_3.nii.gz"]


def test_a_failing_case_is_named_with_its_files_and_the_others_stay(raw: Path, plans: dict) -> None:
    _write(raw / "labelsTr" / "case_3.nii.gz", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(DataError, match=r"case 'case_3' cannot be preprocessed: .*Shape .*labelsTr/case_3"):
        preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    assert _complete(_data(), CASES[:2])
    path = raw / "imagesTr" / "case_3_0001.nii.gz"
    path.write_bytes(path.read_bytes()[:-500])  # SimpleITK reads this without a word
    with pytest.raises(DataError, match=r"case 'case_3': .*case_3_0001.nii.gz', it is damaged"):
        preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    assert preprocessed_cases(DATASET, Plan(plans), "3d_fullres") == CASES[:2]


def _assert_the_rest_is_done(unblock: Callable[[], None], plans: dict) -> None:
    unblock()
    before = _times(_data())
    assert preprocessed_cases(DATASET, Plan(plans), "3d_fullres") == CASES[:2]
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    assert _complete(_data(), CASES)
    assert before.items() <= _times(_data()).items()


@pytest.mark.process
def test_a_case_whose_worker_is_killed_is_named_and_the_next_run_completes(
    unblock: Callable[[], None], plans: dict
) -> None:
    def kill_twice() -> None:
        killed: set[int | None] = set()
        while len(killed) < 2:
            for process in multiprocessing.active_children():
                if process.pid not in killed:
                    process.kill()
                    killed.add(process.pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill_twice)
    with pytest.raises(OutOfMemoryError, match="case 'case_3': its process was killed, also when it was alone"):
        preprocess(DATASET, Plan(plans), ["3d_fullres"], 1, lambda name: thread.start() if name == "case_2" else None)
    thread.join()
    _assert_the_rest_is_done(unblock, plans)


@pytest.mark.process
@pytest.mark.slow  # a process of its own has another server, too: ten seconds. test_workers.py has it without a server
def test_a_killed_run_leaves_no_process_and_the_next_run_completes(unblock: Callable[[], None], plans: dict) -> None:
    command = [sys.executable, "-c", RUN, json.dumps(plans)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert [process.stdout.readline().strip() for _ in CASES[:2]] == CASES[:2]
    process.kill()
    process.communicate(timeout=20)  # ends when the last process that holds the pipe is gone: no worker is left
    (_data() / ".stunet" / "part" / "case_3").mkdir(parents=True)  # as if it had been killed while writing
    _assert_the_rest_is_done(unblock, plans)


@pytest.mark.process
def test_ctrl_c_stops_a_blocked_worker_at_once_and_the_next_run_completes(
    unblock: Callable[[], None], plans: dict
) -> None:
    def interrupt(name: str) -> None:
        if name == "case_2":  # a little later, when the last case is waited for
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        preprocess(DATASET, Plan(plans), ["3d_fullres"], 1, interrupt)
    assert not multiprocessing.active_children()
    assert _complete(_data(), CASES[:2])
    (_data() / ".stunet" / "part" / "case_3").mkdir(parents=True)  # as if it had been killed while writing
    _assert_the_rest_is_done(unblock, plans)


def _parent(_: int) -> int:
    return os.getppid()


@pytest.mark.process
def test_a_full_disk_is_said_and_leaves_nothing_half_written(plans: dict) -> None:
    resource = pytest.importorskip("resource")
    server, size = in_two_processes(_parent)[0], resource.RLIMIT_FSIZE
    before = resource.prlimit(server, size)
    resource.prlimit(server, size, (8192, before[1]))  # bytes that a file of a worker may have: less than an image
    try:
        with pytest.raises(DataError, match=f"no space for case 'case_1' at '{_data()}'"):
            preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    finally:
        resource.prlimit(server, size, before)
    assert _complete(_data(), [])
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    assert _complete(_data(), CASES)


def test_so_many_workers_as_the_memory_holds_of_the_largest_case() -> None:
    one = {"shapes_after_crop": [[10, 10, 10]], "spacings": [[1.0, 1.0, 1.0]]}
    assert fitting_workers(2, one, [1.0, 1.0, 1.0], 1) == 2
    assert fitting_workers(8, one, [1e-3, 1e-3, 1e-3], 1) == 1
    voxels = SHARE * memory_limit() / PER_VOXEL / 3.5
    large = {"shapes_after_crop": [[5, 5, 5], [voxels, 1, 1]], "spacings": [[5.0, 1.0, 1.0], [5.0, 1.0, 1.0]]}
    assert 1 <= fitting_workers(8, large, [5.0, 1.0, 1.0], 1) <= 3
    assert fitting_workers(8, large, [1.0, 1.0], 1) == fitting_workers(8, large, [5.0, 1.0, 1.0], 1)
    assert fitting_workers(8, large, [2.5, 1.0, 1.0], 1) < 3


def test_two_runs_on_one_folder_are_refused(plans: dict) -> None:
    (_data() / ".stunet").mkdir(parents=True)
    with open(_data() / ".stunet" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another run"):
            preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)


def test_bad_input_is_named(raw: Path, plans: dict) -> None:
    with pytest.raises(UsageError, match="not 0"):
        preprocess(DATASET, Plan(plans), ["3d_fullres"], 0)
    with pytest.raises(DataError, match=r"no configuration '3d_fulres'.*'3d_fullres'"):
        pending_cases(DATASET, Plan(plans), ["3d_fulres"])
    (raw / "labelsTr" / "case_2.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case 'case_2' has no readable file .*labelsTr/case_2.nii.gz"):
        pending_cases(DATASET, Plan(plans), ["3d_fullres"])
    (raw / "imagesTr" / "stray.nii.gz").touch()
    with pytest.raises(DataError, match=r"stray.nii.gz' does not end in _0000.nii.gz"):
        pending_cases(DATASET, Plan(plans), ["3d_fullres"])


def test_the_annotations_of_a_raw_dataset_come_along_and_go_with_it(raw: Path, plans: dict) -> None:
    copy = preprocessed_dataset(DATASET) / "annotations.json"
    (raw / copy.name).write_text("{}")
    preprocess(DATASET, Plan(plans), ["3d_fullres"], workers=1)
    assert copy.read_text() == "{}"
    (raw / copy.name).unlink()
    preprocess(DATASET, Plan(plans), ["3d_fullres"], workers=1)
    assert not copy.exists()


def test_a_manifest_that_cannot_be_read_is_named_and_a_missing_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_manifest(tmp_path) is None
    assert not caplog.text
    (tmp_path / ".stunet").mkdir()
    (tmp_path / ".stunet" / "manifest.json").write_text("{")
    assert read_manifest(tmp_path) is None
    assert "manifest.json' is not valid JSON" in caplog.text


def _part(number: int, plans: dict, count: int = 2) -> str:
    return preprocess(DATASET, Plan(plans), ["3d_fullres"], 1, part=Part(number, count))


def test_parts_make_what_one_run_makes_and_the_last_writes_the_manifest(plans: dict, raw: Path) -> None:
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    folder, whole = _data(), raw.parents[1] / "whole"
    whole_manifest = (folder / ".stunet/manifest.json").read_bytes()
    folder.rename(whole)
    assert _part(1, plans) == "0 (not run yet)"
    assert not (folder / ".stunet/manifest.json").exists()
    assert {path.name for path in folder.glob("case_*")} == {"case_2.b2nd", "case_2.pkl", "case_2_seg.b2nd"}
    (folder / "removed.pkl").touch()
    with pytest.raises(DataError, match=r"of 2 parts, 1 are missing: 0"):
        merge_parts(DATASET, Plan(plans), ["3d_fullres"], 1)
    assert _part(0, plans) == ""
    assert (folder / ".stunet/manifest.json").read_bytes() == whole_manifest
    # The arrays: the files of two equal runs in one process differ, too.
    np.testing.assert_equal(_content(folder), _content(whole))
    assert _complete(folder, CASES)
    times = _times(folder)
    assert _part(1, plans) == ""
    assert _times(folder) == times
    # A part that has to do a case again withdraws its record until it is done; the case is its own alone.
    (folder / "case_2.pkl").unlink()
    assert pending_cases(DATASET, Plan(plans), ["3d_fullres"], Part(0, 2)) == []
    assert pending_cases(DATASET, Plan(plans), ["3d_fullres"], Part(1, 2)) == [("3d_fullres", "case_2")]
    assert _part(1, plans) == ""
    assert {name for name, time in _times(folder).items() if times[name] != time} >= {"case_2.pkl"}
    assert _complete(folder, CASES)


def test_what_parts_have_done_counts_for_other_numbers_of_parts_and_for_one_run(plans: dict, raw: Path) -> None:
    assert _part(0, plans).startswith("1")
    times = _times(_data())
    assert _part(0, plans, count=3).startswith("1")
    assert not times.items() - _times(_data()).items()  # case_1 is the first of both; case_3 is of another part now
    preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    assert not {n: t for n, t in times.items() if n.startswith("case_")}.items() - _times(_data()).items()
    assert _complete(_data(), CASES)
    assert not (_data() / ".stunet/parts").exists()


def test_parts_share_a_folder_that_one_run_has_alone(plans: dict) -> None:
    with shared_lock(_data() / ".stunet/lock", "", ""):
        assert _part(0, plans).startswith("1")
        with pytest.raises(DataError, match="another run is preprocessing"):
            preprocess(DATASET, Plan(plans), ["3d_fullres"], 1)
    with exclusive_lock(_data() / ".stunet/lock-part-1", "", ""), pytest.raises(DataError, match="another run is"):
        _part(1, plans)
