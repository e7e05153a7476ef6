"""Looking up datasets, plans and results in nnU-Net's folders."""

import json
from pathlib import Path

import pytest

from stunet import workspace
from stunet.errors import DataError
from stunet.files import atomic_write, read_json, write_json
from stunet.plans.files import read_plan


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in workspace.VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / "nnUNet_raw" / "Dataset003_Liver").mkdir(parents=True)
    (tmp_path / "nnUNet_preprocessed" / "Dataset004_Hippocampus").mkdir(parents=True)
    return tmp_path


def test_datasets_are_found_by_number_and_name_in_any_folder(folders: Path) -> None:
    assert workspace.dataset_name(3) == workspace.dataset_name("003") == "Dataset003_Liver"
    assert workspace.dataset_name("Dataset004_Hippocampus") == workspace.dataset_name("4") == "Dataset004_Hippocampus"


def test_unknown_and_ambiguous_datasets_are_named(folders: Path) -> None:
    with pytest.raises(DataError, match="no dataset 'Dataset003_Livr'; did you mean 'Dataset003_Liver'"):
        workspace.dataset_name("Dataset003_Livr")
    (folders / "nnUNet_raw" / "Dataset003_Other").mkdir()
    with pytest.raises(DataError, match="number 3 belongs to 2 datasets"):
        workspace.dataset_name(3)


def test_a_folder_without_a_number_is_no_dataset(folders: Path) -> None:
    (folders / "nnUNet_raw" / "DatasetABC_x").mkdir()
    assert workspace.dataset_name(3) == "Dataset003_Liver"
    with pytest.raises(DataError, match="no dataset 'DatasetABC_x'"):
        workspace.dataset_name("DatasetABC_x")


def test_missing_variables_and_folders_say_what_to_set(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(folders / "nothing"))
    with pytest.raises(DataError, match="nnUNet_raw is not a folder"):
        workspace.folder("nnUNet_raw")
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.delenv("nnUNet_results")
    with pytest.raises(DataError, match="the variable nnUNet_raw is not set") as caught:
        workspace.folder("nnUNet_raw")
    assert caught.value.hint == "export nnUNet_raw=/path/to/nnUNet_raw nnUNet_results=/path/to/nnUNet_results"
    (folders / "file").write_text("")
    monkeypatch.setenv("nnUNet_results", str(folders / "file" / "results"))
    with pytest.raises(DataError, match="cannot be created"):
        workspace.folder("nnUNet_results")


def test_results_are_found_where_one_plan_was_trained(folders: Path) -> None:
    name = "Dataset004_Hippocampus"
    with pytest.raises(DataError, match="no trained model") as caught:
        workspace.find_result(name, "3d_fullres")
    assert caught.value.hint == "stunet_train 4 3d_fullres 0"
    for plans in ("STUNetPlans_B", "STUNetPlans_S"):
        folder = workspace.result_folder(name, plans, "3d_fullres")
        (folder / "fold_0").mkdir(parents=True)
        (folder / "plans.json").write_text("{}")
    with pytest.raises(DataError, match="has 2 models for 3d_fullres"):
        workspace.find_result(name, "3d_fullres")
    found = workspace.find_result(name, "3d_fullres", "STUNetPlans_S")
    assert workspace.trained_folds(found) == []
    for fold in ("fold_0", "fold_all", "fold_x", "fold_2"):
        (found / fold).mkdir(exist_ok=True)
        (found / fold / "checkpoint_final.pth").touch()
    assert workspace.trained_folds(found) == [0, 2, "all"]
    assert workspace.find_result(name, "3d_fullres") == found  # the other one has no training that came to its end
    with pytest.raises(DataError, match="has 2 models for 3d_fullres"):
        workspace.find_result(name, "3d_fullres", checkpoint="checkpoint_best.pth")


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(KeyError):
        _write_half(path)
    assert read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def _write_half(path: Path) -> None:
    with atomic_write(path) as part:
        part.write_text("half")
        raise KeyError


def test_bad_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(DataError, match="no file"):
        read_json(path)
    path.write_text('{"x": 1,\n "y" 2}')
    with pytest.raises(DataError, match=r"not valid JSON.*line 2"):
        read_json(path)
    path.write_text(json.dumps([1]))
    with pytest.raises(DataError, match="expected a table"):
        read_plan(path)


def test_names_are_not_patterns(folders: Path) -> None:
    model = folders / "nnUNet_results" / "Dataset004_Hippocampus" / "STUNetTrainer__a[1]__3d_fullres"
    model.mkdir(parents=True)
    write_json(model / "plans.json", {})
    assert workspace.find_result("Dataset004_Hippocampus", "3d_fullres", "a[1]") == model
    for wrong in ({"trainer": "/x"}, {"plans_name": "../x"}):
        with pytest.raises(DataError, match="is a path, not a name"):
            workspace.find_result("Dataset004_Hippocampus", "3d_fullres", **wrong)
    with pytest.raises(DataError, match="no trained model"):
        workspace.find_result("Dataset004_Hippocampus", "**a")
    with pytest.raises(DataError, match="no dataset '²'"):
        workspace.dataset_name("²")
