"""A folder grows over several runs: what is done stays, what has changed is done again, what is foreign is kept."""

from contextlib import suppress
from pathlib import Path

import pytest

from stunet.datasets.growing import GrowingFolder, hidden_until_complete, signature
from stunet.errors import DataError


def write(folder: GrowingFolder, case: str, source: str = "1", subset: str = "Tr") -> Path:
    path = folder.path / f"labels{subset}" / f"{case}.nii.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_text(case)
    folder.save(case, source, [path], {"voxels": 3})
    return path


def test_a_case_is_done_if_its_source_and_its_files_are_the_same(tmp_path: Path) -> None:
    folder = GrowingFolder(tmp_path / "set")
    assert not folder.is_own
    folder.begin({"a": 1})
    assert folder.is_own
    path = write(folder, "x")
    assert folder.is_done("x", "1")
    assert folder.record("x")["facts"] == {"voxels": 3}
    assert not folder.is_done("x", "2")
    path.write_text("y")
    assert not folder.is_done("x", "1")
    path.unlink()
    assert not folder.is_done("x", "1")
    assert not folder.is_done("y", "1")


def test_options_count_from_the_first_finished_case_on(tmp_path: Path) -> None:
    folder = GrowingFolder(tmp_path / "set")
    folder.begin({"a": 1})
    assert folder.changes({"a": 2}) == []
    folder.begin({"a": 2})
    write(folder, "x")
    folder.begin({"a": 2})
    assert folder.changes({"a": 2}) == []
    assert folder.changes({"a": 3}) == ["a: 2 -> 3"]


def test_only_files_of_records_are_removed(tmp_path: Path) -> None:
    folder = GrowingFolder(tmp_path / "set")
    folder.begin({})
    first, second = write(folder, "x"), write(folder, "y")
    other = first.with_name("other.nii.gz")
    other.touch()
    assert write(folder, "x", subset="Ts").is_file()
    assert not first.exists()  # the case has moved to another subset
    folder.prune({"y"}, {"labelsTr/y.nii.gz"})
    assert folder.recorded() == ["y"]
    assert not (folder.path / "labelsTs/x.nii.gz").exists()
    assert second.is_file()
    assert other.is_file()


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    folder = GrowingFolder(tmp_path / "set")
    folder.begin({})
    write(folder, "x")
    unfinished = [folder.path / "labelsTr/.part-1-y.nii.gz", folder.path / ".part-77-annotations.json"]
    for path in unfinished:
        path.touch()
    folder.begin({})
    assert not any(path.exists() for path in unfinished)
    assert folder.is_done("x", "1")


def test_a_hidden_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "Dataset900_A"
    with suppress(KeyboardInterrupt), hidden_until_complete(target, {"a": 1}) as folder:
        write(folder, "x")
        raise KeyboardInterrupt
    assert not target.exists()
    with pytest.raises(DataError, match="since then changed a: 1 -> 2"), hidden_until_complete(target, {"a": 2}):
        pass
    with hidden_until_complete(target, {"a": 1}) as folder:
        assert folder.is_done("x", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset900_A"]
    assert [path.name for path in target.iterdir()] == ["labelsTr"]
    with pytest.raises(DataError, match="was made by another run"), hidden_until_complete(target, {"a": 1}):
        pass


def test_a_hidden_folder_keeps_its_options_before_the_first_case_is_finished(tmp_path: Path) -> None:
    target = tmp_path / "Dataset900_A"
    with suppress(KeyboardInterrupt), hidden_until_complete(target, {"a": 1}) as folder:
        (folder.path / "labelsTr").mkdir()
        (folder.path / "labelsTr/x.nii.gz").touch()  # written, but killed before it was recorded
        raise KeyboardInterrupt
    with pytest.raises(DataError, match="since then changed a: 1 -> 2"), hidden_until_complete(target, {"a": 2}):
        pass
    with hidden_until_complete(target, {"a": 1}):
        pass
    assert target.is_dir()


def test_a_hidden_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    target, part = tmp_path / "Dataset900_A", tmp_path / ".part-Dataset900_A"
    part.mkdir()
    (part / "provenance.json").write_text('{"state": {"a": 1}}')
    with (
        pytest.raises(DataError, match="was begun by an earlier version") as caught,
        hidden_until_complete(target, {"a": 1}),
    ):
        pass
    assert f"rm -r {part}" in caught.value.hint
    assert [path.name for path in part.iterdir()] == ["provenance.json"]
    (part / "provenance.json").unlink()
    with hidden_until_complete(target, {"a": 1}):  # nothing had been written yet
        pass


def test_the_signature_follows_name_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a"
    seen = {signature([path])}
    for text in ("1", "22"):
        path.write_text(text)
        seen.add(signature([path]))
    assert len(seen) == 3
    assert signature([path]) != signature([path], "Tr")
