"""stunet_predict over lists of images: results in folders, an index, a table of failures, and going on by records."""

import csv
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import SimpleITK as sitk

from stunet.cli.predict import main
from stunet.files import sha256_of
from tests.predictor_models import SMALL, SPACING, make_model, write_image


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and a list of three images in two folders, of which one is damaged."""
    make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    for seed, name in enumerate(("p1/ct", "p2/ct")):
        write_image(tmp_path / f"data/{name}.nii.gz", seed, SMALL)
    (tmp_path / "data/p3").mkdir()
    (tmp_path / "data/p3/ct.nii.gz").write_bytes(b"no image")
    lines = [f"{name}/ct.nii.gz,{name},{output}" for name, output in (("p1", "a"), ("p2", ""), ("p3", "a"))]
    (tmp_path / "data/scans.csv").write_text("\n".join(["image,name,output", *lines, ""]))
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predict(*arguments: Any, source: str = "data/scans.csv", out: str = "out") -> int:
    command = ["-i", source, "-o", out, "--model", "T__P__3d_fullres", "-device", "cpu", "--disable_progress_bar"]
    return main([*command, *map(str, arguments)])


def table(name: str, out: str = "out") -> list[dict[str, str]]:
    with Path(out, name).open(newline="") as file:
        return list(csv.DictReader(file))


def times(folder: str = "out") -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*.nii.gz")}


def test_a_list_gives_an_index_and_a_list_of_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict() == 3
    out, err = capsys.readouterr()
    assert out.splitlines() == ["out/a/p1.nii.gz", "out/p2.nii.gz"]
    assert "1 of 3 cases failed: out/failed.csv, a list for -i" in err
    rows = table("index.csv")
    assert [(row["case"], row["status"], row["file"]) for row in rows] == [
        ("p1", "done", "a/p1.nii.gz"), ("p2", "done", "p2.nii.gz"), ("p3", "failed", "")
    ]  # fmt: skip
    labels = sitk.GetArrayFromImage(sitk.ReadImage("out/a/p1.nii.gz"))
    for value, name in enumerate("ab", start=1):
        assert float(rows[0][f"{name} mm3"]) == pytest.approx((labels == value).sum() * 1.8 * 1.2 * 1.5)
    assert SPACING == (1.8, 1.2, 1.5)
    assert rows[0]["sha256"] == sha256_of("out/a/p1.nii.gz")
    assert int(rows[0]["bytes"]) == Path("out/a/p1.nii.gz").stat().st_size
    assert float(rows[0]["seconds"]) > 0
    assert "it is damaged" in rows[2]["error"]
    # The list of failures is one to go on with, once the image is there.
    (bad,) = table("failed.csv")
    assert (bad["name"], bad["output"], bad["image"]) == ("p3", "a", str(Path("data/p3/ct.nii.gz").absolute()))
    assert bad["try"]
    shutil.copy("data/p1/ct.nii.gz", "data/p3/ct.nii.gz")
    Path("elsewhere").mkdir()
    shutil.copy("out/failed.csv", "elsewhere/again.csv")
    assert predict(source="elsewhere/again.csv") == 0
    assert Path("out/a/p3.nii.gz").read_bytes() == Path("out/a/p1.nii.gz").read_bytes()
    assert [(row["case"], row["status"]) for row in table("index.csv")] == [(f"p{n}", "done") for n in (1, 2, 3)]
    assert not table("failed.csv")


def test_it_goes_on_by_size_and_time_without_opening_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict() == 3
    before = times()
    whole = Path("out/p2.nii.gz").read_bytes()
    stat = os.stat("out/p2.nii.gz")
    Path("out/p2.nii.gz").write_bytes(bytes(len(whole)))  # nobody looks inside
    os.utime("out/p2.nii.gz", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with Path("out/.stunet/index/part-0-of-1.jsonl").open("a") as log:
        log.write('{"name": "p1", "ti')  # as a run that was killed
    capsys.readouterr()
    assert predict("--continue_prediction") == 3
    assert "2 of 3 cases are done already" in capsys.readouterr().err
    assert times() == before
    os.utime("out/a/p1.nii.gz")  # a copy has another time: its content is compared
    os.utime("out/p2.nii.gz")
    touched = times()
    assert predict("--continue_prediction") == 3
    assert "1 of 3 cases are done already" in capsys.readouterr().err
    assert {path for path, time in times().items() if time != touched[path]} == {"out/p2.nii.gz"}
    assert Path("out/p2.nii.gz").read_bytes() == whole
    write_image(Path("data/p1/ct.nii.gz"), 7, SMALL)
    capsys.readouterr()
    assert predict("--continue_prediction") == 3
    assert "1 of 3 cases are done already" in capsys.readouterr().err
    assert [row["status"] for row in table("index.csv")] == ["done", "done", "failed"]
    assert predict("--continue_prediction", "--disable_tta") == 3
    assert "were made with other mirroring" in capsys.readouterr().err


def test_parts_have_logs_of_their_own_and_one_index(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(out="one") == 3
    assert predict("-num_parts", 2, "-part_id", 1) == 0
    assert not Path("out/index.csv").exists()
    assert predict("-num_parts", 2, "-part_id", 0) == 3
    logs = {path.name: path.read_text().splitlines() for path in Path("out/.stunet/index").iterdir()}
    assert {name: [json.loads(line)["name"] for line in lines] for name, lines in logs.items()} == {
        "part-0-of-2.jsonl": ["p1", "p3"], "part-1-of-2.jsonl": ["p2"]
    }  # fmt: skip
    one, many = ([{**row, "seconds": ""} for row in table("index.csv", out)] for out in ("one", "out"))
    assert many == one
    assert Path("out/failed.csv").read_text() == Path("one/failed.csv").read_text()
    before = times()
    assert predict("--continue_prediction") == 3  # as one run
    assert times() == before
    Path("out/index.csv").unlink()
    assert predict("-num_parts", 2, "--merge") == 3  # one run has taken over
    assert "nothing to merge" in capsys.readouterr().err


def test_what_is_read_is_not_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict() == 3
    before = Path("out/failed.csv").read_bytes()
    assert predict(source="out/failed.csv") == 3
    assert "a copy of it with -i" in capsys.readouterr().err
    assert Path("out/failed.csv").read_bytes() == before
    Path("previous").mkdir()
    for name in ("p1", "p2", "p3"):
        Path(f"previous/{name}.nii.gz").write_bytes(b"of the stage before")
    assert predict("-prev_stage_predictions", "previous", out="previous") == 3
    assert "would share the folder" in capsys.readouterr().err
    assert Path("previous/p1.nii.gz").read_bytes() == b"of the stage before"


def test_results_are_spread_over_folders_by_a_hash_of_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/scans.txt").write_text("p1/ct.nii.gz\n")
    assert predict("--shard", 2, "--preview", source="data/scans.txt") == 0
    (row,) = table("index.csv")
    assert row["file"] == "f8/ct.nii.gz"  # echo -n ct | sha256sum
    assert Path("out/f8/ct_preview.png").is_file()
    assert predict("--shard", 2, "--preview", "--continue_prediction", source="data/scans.txt") == 0
    assert "1 of 1 cases are done already" in capsys.readouterr().err
    Path("out/f8/ct_preview.png").unlink()
    assert predict("--shard", 2, "--preview", "--continue_prediction", source="data/scans.txt") == 0
    assert Path("out/f8/ct_preview.png").is_file()
    assert predict("--shard", 5, source="data/scans.txt") == 2
    assert predict(source="data/scans.txt", out="out.nii.gz") == 2
    assert predict(source="data/scans.txt", out="data/p1") == 3
    assert "would share the folder" in capsys.readouterr().err


def test_a_case_that_the_first_stage_of_a_cascade_lost_is_in_the_index(place: Path) -> None:
    for stage in ("lowres", "cascade_fullres"):
        make_model(place / f"T__P__3d_{stage}", mirror=None)
    Path("out/a").mkdir(parents=True)
    Path("out/a/p3.nii.gz").write_bytes(b"of an earlier run")
    assert predict("--model", "T__P__3d_cascade_fullres") == 3
    assert [row["status"] for row in table("index.csv")] == ["done", "done", "failed"]
    assert "it is damaged" in table("failed.csv")[0]["error"]
    assert not Path("out/a/p3.nii.gz").exists()


def test_a_part_that_began_again_is_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    for number in (0, 1):
        predict("-num_parts", 2, "-part_id", number)
    Path("out/.stunet/index/part-9-of-9.jsonl").mkdir()  # ends the next run, before it predicts
    with suppress(IsADirectoryError):
        assert predict("-num_parts", 2, "-part_id", 1, "--continue_prediction") != 0
    Path("out/.stunet/index/part-9-of-9.jsonl").rmdir()
    capsys.readouterr()
    assert predict("-num_parts", 2, "--merge") == 3
    assert "1 (not finished)" in capsys.readouterr().err
