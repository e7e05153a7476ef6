"""A conversion can be killed and repeated: finished cases are verified, not done again; nothing is mixed."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from stunet.cli import convert as command
from stunet.datasets.conversion import Conversion
from stunet.datasets.totalsegmentator import Options, prepare_totalsegmentator
from stunet.errors import DataError
from tests.processes import forked_from_the_server, kill_while_it_waits, run_tasks, start_task
from tests.totalsegmentator_layout import RELEASES, box, write_release

SPLIT = {"s0001": "train", "s0002": "val", "s0003": "test"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three subjects with the masks of organs and of one rib."""
    masks = {"spleen": [box(0, 2)], "rib_left_1": [box(2, 3)]}
    return write_release(tmp_path / "v2", "v2", SPLIT, masks, [*RELEASES["v2"].part("organs"), "rib_left_1"])


def prepare(source: Path, **options: Any) -> Conversion:
    options.setdefault("classes", "organs")
    return prepare_totalsegmentator(source, source.parent / "raw", 101, "TS", Options(**options))


def names(conversion: Conversion) -> list[str]:
    return [case.name for case in conversion.pending()]


def run(conversion: Conversion, workers: int = 1) -> dict[str, bytes]:
    """Runs it and returns the bytes of all visible files of the dataset."""
    conversion.run(conversion.pending(), workers)
    return all_files(conversion.target)


def all_files(target: Path) -> dict[str, bytes]:
    files = [path for path in target.rglob("*.*") if path.is_file() and ".stunet" not in path.parts]
    return {str(path.relative_to(target)): path.read_bytes() for path in files}


@pytest.mark.process
def test_an_array_of_parts_writes_what_one_run_writes(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run(prepare(source))
    target = prepare(source).target
    shutil.rmtree(target)
    arguments = ["totalsegmentator", "-i", source, "-d", 101, "--name", "TS", "--classes", "organs", "-np", 1]
    arguments += ["-o", target.parent]
    kill_while_it_waits(target.with_name(f".parts-{target.name}"), lambda: start_task(command.main, arguments, 0))
    run_tasks(command.main, arguments, [1, 2, 3])  # all begin at once; there are three cases for four parts
    assert not (target / "dataset.json").exists()
    merge = [*map(str, arguments), "--merge"]
    assert command.main(merge) == 3
    assert "of 4 parts, 1 are missing: 0 (not run yet)" in capsys.readouterr().err
    run_tasks(command.main, arguments, [0])
    assert run(prepare(source)) == one == all_files(target)
    assert not target.with_name(f".parts-{target.name}").exists()  # one run has taken all cases as they were
    run_tasks(command.main, arguments, [0, 1, 2, 3])
    (target / "dataset.json").unlink()
    assert command.main(merge) == 0
    assert all_files(target) == one
    os.utime(source / "s0002" / "ct.nii.gz", ns=(1, 1))
    assert command.main(merge) == 3
    assert "the files of case 's0002' have changed since its part converted it" in capsys.readouterr().err


def test_two_processes_write_what_one_writes(source: Path) -> None:
    one = run(prepare(source))
    conversion = prepare(source)
    for path in (conversion.target / ".stunet" / "cases").iterdir():
        path.unlink()
    assert names(conversion) == ["s0001", "s0002", "s0003"]
    with forked_from_the_server():
        assert run(conversion, workers=2) == one
    assert set(one) == {
        *(f"labels{subset}.nii.gz" for subset in ("Tr/s0001", "Tr/s0002", "Ts/s0003")),
        *("imagesTs/s0003_0000.nii.gz", "overlaps.csv", "splits_final.json", "dataset.json"),
    }


def test_an_interrupted_run_keeps_what_is_done_and_shows_no_dataset(source: Path) -> None:
    whole = run(prepare(source))
    conversion = prepare(source)
    for path in (conversion.target / ".stunet" / "cases").iterdir():
        path.unlink()

    def stop(case: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversion.run(conversion.pending(), 1, stop)
    assert not (conversion.target / "dataset.json").exists()
    assert names(conversion) == ["s0002", "s0003"]
    assert run(conversion) == whole


def test_finished_cases_are_verified(source: Path) -> None:
    conversion = prepare(source)
    whole = run(conversion)
    assert names(conversion) == []
    label = conversion.target / "labelsTr" / "s0001.nii.gz"
    label.write_bytes(label.read_bytes()[:-1])
    assert names(conversion) == ["s0001"]
    (conversion.target / ".stunet" / "cases" / "s0002.json").write_text("{")
    assert names(conversion) == ["s0001", "s0002"]
    assert run(conversion) == whole
    os.utime(source / "s0003" / "segmentations" / "spleen.nii.gz", (1, 1))
    assert names(conversion) == ["s0003"]


def test_subjects_that_are_taken_out_disappear_and_change_their_split(source: Path) -> None:
    run(prepare(source))
    conversion = prepare(source, skip=("s0003",))
    assert "labelsTs/s0003.nii.gz" not in run(conversion)
    assert not list(conversion.target.glob("imagesTs/*"))
    (source / "meta.csv").write_text("image_id;split\ns0001;train\ns0002;train\ns0003;train\n")
    files = run(prepare(source))
    assert json.loads(files["dataset.json"])["numTraining"] == 3
    assert "splits_final.json" not in files


def test_folds_that_somebody_else_wrote_are_kept(source: Path) -> None:
    conversion = prepare(source)
    run(conversion)
    splits = conversion.target / "splits_final.json"
    splits.write_text('[{"train": ["s0002"], "val": ["s0001"]}]')
    warnings = prepare(source).run([], 1)
    assert any("splits_final.json' is not what this command wrote" in warning for warning in warnings)
    assert json.loads(splits.read_text()) == [{"train": ["s0002"], "val": ["s0001"]}]


def test_other_options_are_refused_with_the_difference(source: Path) -> None:
    run(prepare(source))
    with pytest.raises(
        DataError, match=r"Dataset101_TS' was converted with other options: overlap: \"last\" "
    ) as caught:
        prepare(source, overlap="first").pending()
    assert "-d" in caught.value.hint
    fewer = source.parent / "names.txt"
    fewer.write_text("spleen\n")
    with pytest.raises(DataError, match="was converted with other options: classes"):
        prepare(source, classes=str(fewer)).pending()


def test_a_folder_of_somebody_else_and_a_taken_number_are_refused(source: Path) -> None:
    raw = source.parent / "raw"
    (raw / "Dataset101_TS").mkdir(parents=True)
    with pytest.raises(DataError, match="was not made by this command"):
        prepare(source).pending()
    (raw / "Dataset101_TS").rename(raw / "Dataset101_Other")
    with pytest.raises(DataError, match="number 101 is taken by"):
        prepare(source)


def test_two_runs_at_a_time_are_refused(source: Path) -> None:
    conversion = prepare(source)

    def again(case: str) -> None:
        prepare(source).run([], 1)

    with pytest.raises(DataError, match=r"another process writes .*Dataset101_TS"):
        conversion.run(conversion.pending(), 1, again)


def test_a_full_disk_names_the_case_and_keeps_the_finished(
    source: Path, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    whole = run(prepare(source))
    conversion = prepare(source)
    (conversion.target / "labelsTr" / "s0002.nii.gz").unlink()
    with room_for(100), pytest.raises(DataError, match=r"no space for case 's0002' at .*Dataset101_TS/") as caught:
        conversion.run(conversion.pending(), 1)
    assert "finished cases are kept" in caught.value.hint
    assert names(conversion) == ["s0002"]
    assert run(conversion) == whole


def test_the_command_converts_reports_and_says_what_is_next(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [
        "totalsegmentator",
        "-i",
        str(source),
        "-o",
        str(source.parent / "raw"),
        "-d",
        "7",
        "--name",
        "TS",
        "-np",
        "1",
        "--classes",
        "organs",
    ]
    assert command.main(argv) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{source.parent / 'raw' / 'Dataset007_TS'}\n"
    assert "convert: 3 of 3" in printed.err
    assert "next: stunet_plan_and_preprocess -d 7" in printed.err
    assert command.main(argv) == 0
    assert "3 of 3 cases are there already" in capsys.readouterr().err
    for more, code, message in (
        (["--overlap", "first"], 3, 'overlap: "last" -> "first"'),
        (["--spacing", "0"], 2, "mm must be positive"),
        (["-np", "0"], 2, "-np 0 must be 1 or more"),
        (["--variable", "TS_DATA"], 2, "export TS_DATA="),
    ):
        assert command.main([*argv, *more]) == code
        assert message in capsys.readouterr().err
    monkeypatch.setenv("TS_DATA", str(source))
    assert command.main([*argv, "--variable", "TS_DATA"]) == 0


def test_files_of_others_in_the_dataset_are_kept_and_named(source: Path) -> None:
    conversion = prepare(source)
    run(conversion)
    own = conversion.target / "imagesTs" / "own_0000.nii.gz"
    label = conversion.target / "labelsTr" / "mine.nii.gz"
    folder = conversion.target / "labelsTr" / "notes"
    link = conversion.target / "imagesTs" / "linked_0000.nii.gz"
    own.touch()
    label.touch()
    folder.mkdir()
    link.symlink_to(own)
    again = prepare(source, skip=("s0003",))
    [warning] = [w for w in again.run(again.pending(), 1) if "not of this conversion" in w]
    assert warning.startswith("2 in ")
    assert all(path.exists() for path in (own, label, folder, link))
    assert not list(conversion.target.glob("*Ts/s0003*"))


def test_a_record_removes_no_file_of_others(source: Path) -> None:
    run(prepare(source))
    conversion = prepare(source, skip=("s0003",))
    outside = source / "meta.csv"
    record = conversion.target / ".stunet" / "cases" / "s0003.json"
    content = json.loads(record.read_text())
    content["files"] = {"../../v2/meta.csv": "x", str(outside): "x", "labelsTs/../dataset.json": "x"}
    record.write_text(json.dumps(content))
    run(conversion)
    assert outside.is_file()
    assert (conversion.target / "dataset.json").is_file()
