"""stunet_merge reports, names all problems at once, builds, and sees what has changed since it was checked."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from stunet.cli.merge import main
from stunet.merging.recipe import load_recipe
from stunet.workspace import VARIABLES
from tests.html_pages import check_page
from tests.merge_sources import describe, make_source, read, save, write_recipe

SOURCES = [{"id": "a", "dataset": "Dataset001_A"}, {"id": "b", "dataset": 2}]
CLASSES = ["liver", "spleen", "kidney_left", "kidney_right"]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_raw"
    kidneys = {"kidney_left": ["kidney_left"], "kidney_right": ["kidney_right"]}
    make_source(folder, "Dataset001_A", {"spleen": ["spleen"], "liver": ["liver"]}, cases=3, seed=1)
    make_source(folder, "Dataset002_B", {**kidneys, "spleen": ["spleen"]}, seed=2)
    return folder


@pytest.fixture
def recipe(raw: Path, tmp_path: Path) -> Path:
    return write_recipe(
        tmp_path / "merge.yaml", SOURCES, classes=CLASSES, geometry={"spacing": [3, 2, 2]}, mirror="swap"
    )


def test_a_check_reports_sources_labels_and_size_and_writes_no_dataset(
    recipe: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe), "-np", "1"]) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert ["a", "3", "CT", "2", "CC-BY-4.0", "1", "55.1%"] in lines
    assert ["spleen", "2", "5", "135", "a", "3,", "b", "2"] in lines
    assert "folds: 5/0, 5/0, 5/0, 5/0, 5/0 (training/validation)" in out
    assert "preprocessed at 3 x 2 x 2 mm: up to 0.0 MB" in out
    assert "warning: only source 'a' annotates 'liver'" in err
    page = check_page(recipe.with_suffix(".checked.html"))
    for told in ("sources 2", "cases 5", "problems 0", "only source 'a' annotates 'liver'", "a 3, b 2", "CC-BY-4.0"):
        assert told in page.text
    assert f"wrote {recipe.with_suffix('.checked.html')}" in err
    assert not (raw / "Dataset900_Union").exists()


def test_a_draft_has_the_classes_of_all_labels_once_and_can_be_checked(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_source(raw, "Dataset003_C", {"Liver": ["liver"], "kidney": ["kidney_left", "kidney_right"]}, seed=3)
    path = tmp_path / "draft.yaml"
    assert main(["init", str(path), "-d", "1", "Dataset002_B", "3", "--name", "Dataset901_Body"]) == 0
    draft = load_recipe(path)
    assert draft.classes == ("spleen", "kidney_left", "kidney_right", "Liver")
    assert [(source.id, source.dataset, source.licence) for source in draft.sources] == [
        ("a", "Dataset001_A", "CC-BY-4.0"),
        ("b", "Dataset002_B", "CC-BY-4.0"),
        ("c", "Dataset003_C", "CC-BY-4.0"),
    ]
    assert '# "kidney" is kidney_left, kidney_right' in path.read_text()
    assert main(["check", str(path), "-np", "1"]) == 0
    make_source(raw, "Dataset103_A", {"kidney": ["kidney_left"], "Niere \U0001f600": ["spleen"]}, seed=4)
    make_source(raw, "Dataset104_My Kidney", {"kidney_left": ["kidney_left"]}, seed=5)
    other = tmp_path / "twice.yaml"
    assert main(["init", str(other), "-d", "1", "103", "104"]) == 0
    assert [source.id for source in load_recipe(other).sources] == ["a", "a_103", "my_kidney"]
    assert "Niere \U0001f600" in load_recipe(other).classes
    assert 'is "kidney" also "kidney_left"?' in other.read_text()
    capsys.readouterr()
    assert main(["init", str(path), "-d", "1"]) == 3
    assert "exists" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "other.yaml"), "-d", "1", "1"]) == 2
    assert not (tmp_path / "other.yaml").exists()


def test_all_problems_are_listed_with_what_to_do_and_the_exit_code_is_3(
    recipe: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(raw / "Dataset001_A", labels={"background": 0, "spleen": 1, "lever": 2})
    describe(raw / "Dataset002_B", licence="CC BY-NC 4.0")
    path = raw / "Dataset001_A/labelsTr/case_1.nii.gz"
    save(path, read(path)[1:])
    assert main(["check", str(recipe), "-np", "1"]) == 3
    err = capsys.readouterr().err
    for text in (
        "'lever' is not a class",
        "is under CC BY-NC 4.0",
        f"shape of {str(path)!r}",
        "no source annotates 'liver'",
    ):
        assert f"{text}" in err
    assert err.count("problem: ") == err.count("  try: ") - err.count("warning: ") - 1 == 4
    assert "stunet_merge: 4 problems in" in err
    page = check_page(recipe.with_suffix(".checked.html"))
    assert page.text.count("problem ") >= 4
    assert "problems 4" in page.text


def test_a_build_says_how_to_go_on_and_is_done_once(
    recipe: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(recipe), "-np", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(raw / "Dataset900_Union")
    assert "next: stunet_plan_and_preprocess -d 900 -overwrite_target_spacing 3 2 2" in err
    assert "next: stunet_train 900 3d_fullres 0 -tr STUNetPartialTrainer --set mirror=swap" in err
    assert main(["build", str(recipe), "-np", "1"]) == 0
    assert "it is there already" in capsys.readouterr().err


def test_a_source_that_changed_after_the_check_is_refused(
    recipe: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe), "-np", "1"]) == 0
    describe(raw / "Dataset001_A", description="new")
    assert main(["build", str(recipe), "-np", "1"]) == 3
    err = capsys.readouterr().err
    assert "since" in err
    assert "sources.a.dataset.json: " in err
    assert main(["check", str(recipe), "-np", "1"]) == 0
    assert main(["build", str(recipe), "-np", "1"]) == 0


def test_a_source_that_is_gone_after_the_check_is_named(
    recipe: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(recipe), "-np", "1"]) == 0
    shutil.rmtree(raw / "Dataset002_B")
    assert main(["build", str(recipe), "-np", "1"]) == 3
    assert "problem: source 'b': no dataset '2'" in capsys.readouterr().err


def test_a_sigmoid_head_shows_which_outputs_overlap(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_source(raw, "Dataset003_C", {"kidney": ["kidney_left", "kidney_right"]}, seed=3)
    sources = [*SOURCES, {"id": "c", "dataset": 3}]
    recipe = write_recipe(tmp_path / "merge.yaml", sources, classes=CLASSES, head="sigmoid")
    assert main(["check", str(recipe), "-np", "1"]) == 0
    assert "kidney        kidney_left, kidney_right" in capsys.readouterr().out


def test_an_unknown_number_of_processes_is_a_usage_error(recipe: Path) -> None:
    assert main(["check", str(recipe), "-np", "0"]) == 2


def test_an_image_of_nothing_but_air_is_taken(recipe: Path, raw: Path) -> None:
    path = raw / "Dataset001_A/imagesTr/case_1_0000.nii.gz"
    save(path, np.zeros_like(read(path)))
    assert main(["check", str(recipe), "-np", "1"]) == 0
