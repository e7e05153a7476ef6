"""A dataset is planned like another one's plan, and found again by what its plans do to images."""

import shutil
from pathlib import Path

import pytest

from stunet import workspace
from stunet.cli.plan_and_preprocess import main
from stunet.errors import DataError
from stunet.files import read_json, write_json
from stunet.plans.files import plan_path, read_plan
from stunet.plans.like import plan_like
from stunet.preprocessing.dataset import preprocessed_cases
from stunet.preprocessing.like import find_like, input_differences
from tests.phantom_copy import change

OTHER = "Dataset051_Other"


@pytest.fixture
def other(pre: Path, raw: Path) -> Path:
    """A raw dataset with two of the phantom's cases."""
    folder = raw.with_name(OTHER)
    shutil.copytree(raw, folder)
    for path in [*folder.glob("*Tr/*")]:
        if not path.name.startswith(("phantom_000", "phantom_001")):
            path.unlink()
    change(folder / "dataset.json", numTraining=2)
    return folder


def test_a_dataset_is_planned_and_preprocessed_like_another(
    pre: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = read_plan(plan_path(pre.name))
    with pytest.raises(DataError, match=f"{OTHER} is not preprocessed like STUNetPlans_T of {pre.name}") as caught:
        find_like(OTHER, model, "3d_fullres")
    words = caught.value.hint.split()
    assert words == ["stunet_plan_and_preprocess", "-d", "51", "--like", "998:STUNetPlans_T", "-c", "3d_fullres"]
    assert main([*words[1:], "-np", "1", "-npfp", "1"]) == 0
    assert "STUNetPlans_T_like998" in capsys.readouterr().out
    found = find_like(OTHER, model, "3d_fullres")
    assert found.name == "STUNetPlans_T_like998"
    assert preprocessed_cases(OTHER, found, "3d_fullres") == ["phantom_000", "phantom_001"]
    planned, wanted = found.configuration("3d_fullres"), model.configuration("3d_fullres")
    for key in ("spacing", "patch_size", "strides", "normalization"):
        assert getattr(planned, key) == getattr(wanted, key), key
    assert not input_differences(model, found, "3d_fullres")
    folder = workspace.preprocessed_dataset(OTHER)
    ours, theirs = (
        (path / plan.configuration("3d_fullres").data_identifier / "phantom_000.b2nd").read_bytes()
        for path, plan in ((folder, found), (pre, model))
    )
    assert ours == theirs
    # Another spacing is another input.
    moved = found.with_configuration("3d_fullres", spacing=[3.0, 1.5, 1.5])
    write_json(folder / "STUNetPlans_T_like998.json", moved.to_json())
    with pytest.raises(DataError, match="spacing"):
        find_like(OTHER, model, "3d_fullres")


def test_how_thick_slices_were_is_said_of_the_dataset_itself(pre: Path) -> None:
    found = read_json(pre / "dataset_fingerprint.json")
    found["spacings"] = [[5.0, 1.0, 1.0]] * len(found["spacings"])
    plan, _ = plan_like(read_plan(plan_path(pre.name)), OTHER, read_json(pre / "dataset.json"), "SimpleITKIO", found)
    assert (plan.median_spacing(3), plan.median_spacing(2)) == ((5.0, 1.0, 1.0), (1.0, 1.0))


def test_what_cannot_be_planned_alike_is_refused(pre: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code, message in (
        (["--like", "7"], 3, "no dataset '7'"),
        (["--like", "998:X"], 3, "no plans 'X'"),
        (["--like", "998", "--spacing", "1mm"], 2, "--like takes another dataset's plan as it is"),
        (["--spacing", "1", "2"], 2, "--spacing 1 2 is neither three numbers in mm nor"),
        (["--spacing", "1mm", "-overwrite_target_spacing", "1", "1", "1"], 2, "say the same"),
        (["-p", "STUNetPlans_T", "--like", "998"], 2, "takes plans as they are, and --like plans"),
    ):
        assert main(["-d", "51", "--no_check", "-npfp", "1", *argv]) == code, argv
        assert message in capsys.readouterr().err
    description = read_json(other / "dataset.json")
    change(other / "dataset.json", channel_names={**description["channel_names"], "1": "PET"})
    for path in [*(other / "imagesTr").iterdir()]:
        shutil.copy(path, path.with_name(path.name.replace("_0000", "_0001")))
    assert main(["-d", "51", "--like", "998", "--no_check", "-npfp", "1"]) == 2
    assert f"{OTHER} has 2 channels, and STUNetPlans_T of {pre.name} is for 1" in capsys.readouterr().err
