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
from stunet.preprocessing.like import channel_warning, find_like, input_differences, model_to_follow
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
    change(other / "dataset.json", channel_names={"0": "PET"})
    with pytest.raises(DataError, match=f"{OTHER} is not preprocessed like STUNetPlans_T of {pre.name}") as caught:
        find_like(OTHER, model, "3d_fullres")
    words = caught.value.hint.split()
    assert words == ["stunet_plan_and_preprocess", "-d", "51", "--like", "998:STUNetPlans_T", "-c", "3d_fullres"]
    assert main([*words[1:], "-np", "1", "-npfp", "1"]) == 0
    out, err = capsys.readouterr()
    assert "STUNetPlans_T_like998" in out
    assert f"the channels of {OTHER} are PET, those of {pre.name} CT: they are taken for the same" in err
    assert "next: stunet_pretrain -d 51, or on its labels stunet_train 51 3d_fullres all" in err
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
    assert plan.get("original_median_spacing_after_transp") == [5.0, 1.0, 1.0]


def test_what_cannot_be_planned_alike_is_refused(pre: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code, message in (
        (["--like", "7"], 3, "no dataset '7'"),
        (["--like", "998:X"], 3, "no plans 'X'"),
        (["--like", "998", "--spacing", "1mm"], 2, "--like takes another dataset's plan as it is"),
        (["--spacing", "1", "2"], 2, "--spacing 1 2 is neither three numbers in mm nor one"),
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


def test_the_orientation_of_an_older_plan_is_that_of_its_fingerprint_or_it_is_planned_again(pre: Path) -> None:
    plan = read_plan(plan_path(pre.name))
    older = plan.with_ours(orientation=None, orientations=None)
    assert model_to_follow(pre.name, older)[0].orientation == plan.orientation
    assert not input_differences(older, plan, "3d_fullres")
    path = pre / "dataset_fingerprint.json"
    for known in ({"LPS": 5, "RAS": 1}, None):  # which that version did not turn; which it did not look at
        if known:
            change(path, stunet_orientations=known)
        else:
            path.unlink()
        with pytest.raises(DataError, match="do not say which way the axes of its images run") as caught:
            model_to_follow(pre.name, older)
        assert caught.value.hint.startswith("stunet_plan_and_preprocess -d 998 -c ")
        assert input_differences(older, plan, "3d_fullres")
    assert model_to_follow(pre.name, plan)[0] == plan


def test_channels_are_compared_by_their_names() -> None:
    def compare(one: list[str], other: list[str]) -> str | None:
        named = [{"channel_names": {str(n): name for n, name in enumerate(names)}} for names in (one, other)]
        return channel_warning("Dataset001_A", named[0], "Dataset002_B", named[1])

    for one, other in ((["T1", "ct"], ["t1", "CT"]), (["image"], ["CT"]), (["image", "T1"], ["T2", "T1"])):
        assert compare(one, other) is None
    said = compare(["PET"], ["CT"])
    assert said == "the channels of Dataset001_A are PET, those of Dataset002_B CT: they are taken for the same"
    with pytest.raises(DataError, match="of Dataset001_A are T1, T2, those of Dataset002_B T2, T1") as caught:
        compare(["T1", "T2"], ["T2", "T1"])
    assert caught.value.hint.startswith("the same order in both")
