"""stunet.Model: features of images of any kind, with labels and points in their places."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from stunet.architectures.base import Architecture
from stunet.errors import DataError, StunetError, UsageError, WeightsError
from stunet.inference.features.model import Model
from stunet.inference.features.opening import open_encoder
from stunet.weights.checkpoints import save_checkpoint
from tests.loops import for_each
from tests.nnunet_networks import BOTH, arguments, network
from tests.predictor_models import SHAPE, SPACING, make_model, write_image


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose plan transposes axes and resamples."""
    return Model(make_model(tmp_path_factory.mktemp("m") / "T__P__3d_fullres"), precision="fp32")


def identity(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the only stage be the preprocessed image itself, which is not normalised."""
    ready = model._windows.network
    monkeypatch.setattr(type(ready), "features", lambda self, windows, until: [windows])
    monkeypatch.setattr(type(ready), "blocks", lambda self, until="encoder": [(1, 1, 1)])
    plan = model._preparation._configuration.configuration
    monkeypatch.setitem(plan, "normalization_schemes", ["NoNormalization"])


def test_of_a_file_an_image_and_an_array_features_are_the_same(model: Model, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii.gz")
    image = sitk.ReadImage(str(path))
    of_file = model.features(path)
    assert [tuple(values.shape) for values in of_file.values()] == [(1, 4), (1, 8), (1, 16)]
    array = sitk.GetArrayFromImage(image)
    affine = nibabel.load(path).affine
    for other in (model.features(image), model.features(array, affine=affine), model.features(nibabel.load(path))):
        for stage, values in of_file.items():
            torch.testing.assert_close(other[stage], values)


def test_points_in_mm_are_at_the_right_voxel_of_an_oblique_image(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity(model, monkeypatch)
    values = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) + 5
    values[:2] = 0  # cropped
    image = sitk.GetImageFromArray(values)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5)
    image.SetSpacing((1.5, 1.5, 1.5))  # that of the plan: nothing is resampled
    image.SetOrigin((30.0, -70.0, 11.0))
    image.SetDirection(turn.GetMatrix())
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    voxels = [(3, 7, 9), (17, 24, 20), (2, 0, 0)]  # (D, H, W)
    lps = np.array([image.TransformIndexToPhysicalPoint(voxel[::-1]) for voxel in voxels])
    lps += 0.2  # still the same voxel
    for world, points in (("LPS", lps), ("RAS", lps * [-1, -1, 1])):
        for orientation in (None, "RAS", "LPI"):
            turned = Model(model.model.folder, precision="fp32", orientation=orientation)
            monkeypatch.setitem(
                turned._preparation._configuration.configuration, "normalization_schemes", ["NoNormalization"]
            )
            found = turned.features(tmp_path / "a.nii.gz", points=points, world=world)
            assert [row.name for row in found.rows] == ["1", "2", "3"]
            np.testing.assert_allclose(found[0][:, 0], [values[voxel] for voxel in voxels], rtol=1e-5)


def test_labels_lie_where_the_image_does_however_it_is_turned_and_resampled(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity(model, monkeypatch)
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:9, 3:7, 10:15], labels[12:, 15:, 2:6] = 1, 2
    values = np.where(labels == 1, 10.0, np.where(labels == 2, 20.0, 5.0)).astype(np.float32)
    for name, array in (("image", values), ("labels", labels)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING[::-1])
        image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    found = model.features(tmp_path / "image.nii.gz", labels=tmp_path / "labels.nii.gz", pools=["case", "class"])
    assert [(row.pool, row.name, row.voxels) for row in found.rows[1:]] == [("class", "1", 80), ("class", "2", 240)]
    case, one, two = found[0][:, 0].tolist()
    assert abs(case - values.mean()) < 0.1
    assert 8 < one < 10.5  # a spline blurs the borders
    assert 16.5 < two < 21
    array = model.features(tmp_path / "image.nii.gz", labels=labels, classes={"both": [1, 2]})
    assert array.rows[0].name == "both"
    np.testing.assert_allclose(array[0][0, 0], (80 * one + 240 * two) / 320, rtol=1e-5)


def test_an_array_that_nothing_turns_has_labels_with_its_own_axes(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(write_image(tmp_path / "a.nii.gz"))))
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:9, 3:7, 10:15] = 1
    image = sitk.GetImageFromArray(labels)  # whose axes run LPS
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(tmp_path / "labels.nii.gz"))
    turning = Model(folder, precision="fp32", orientation="RAS")
    expected = turning.features(array, labels=labels, spacing=SPACING)
    found = turning.features(array, labels=tmp_path / "labels.nii.gz", spacing=SPACING)
    for stage, values in expected.items():
        torch.testing.assert_close(found[stage], values)


@for_each("architecture", BOTH)
def test_every_architecture_gives_features_without_a_decoder(architecture: Architecture, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    plans = json.loads((folder / "plans.json").read_text())
    for name in ("2d", "3d_fullres"):
        plans["configurations"][name]["architecture"] = {
            "network_class_name": architecture.class_name,
            "arch_kwargs": arguments(architecture),
            "_kw_requires_import": list(architecture.imports),
        }
    (folder / "plans.json").write_text(json.dumps(plans))
    net = network(architecture)
    weights = {name: value for name, value in net.state_dict().items() if name.startswith("encoder.")}
    content = {"network_weights": weights, "trainer_name": "T", "init_args": {"configuration": "3d_fullres"}}
    save_checkpoint(content, folder / "fold_0" / "checkpoint_final.pth")
    made = Model(folder, precision="fp32")
    image = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    found = made.features(image, spacing=(1.5, 1.5, 1.5))
    normal = torch.from_numpy((image - image.mean()) / image.std()).permute(1, 2, 0)[None, None]
    with torch.inference_mode():
        dense = architecture.features(net.eval(), normal)
    assert len(found) == len(dense)
    for stage, values in enumerate(dense):
        torch.testing.assert_close(found[stage][0], values.mean((0, 2, 3, 4)), rtol=1e-4, atol=1e-4)


def test_no_module_of_the_decoder_is_called(model: Model, tmp_path: Path) -> None:
    network = model._windows.network._plain
    decoder = [*network.upsample_layers, *network.conv_blocks_localization, *network.seg_outputs]  # type: ignore[misc]

    def fail(module: nn.Module, *_: object) -> None:
        raise AssertionError(module)

    hooks = [module.register_forward_pre_hook(fail) for module in decoder]
    model.features(write_image(tmp_path / "a.nii.gz"))
    for hook in hooks:
        hook.remove()


def test_an_incomplete_encoder_and_other_mistakes_are_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", (0, 2))
    with pytest.raises(DataError, match=r"fold 1 of .* has no .* \(trained: 0 2\)"):
        open_encoder(folder, 1)
    with pytest.raises(WeightsError, match="no model or file 'NoSuch'"):
        Model("NoSuch")
    file = folder / "fold_0/checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    del content["network_weights"]["conv_blocks_context.1.0.conv2.weight"]
    torch.save(content, file)
    with pytest.raises(WeightsError):
        open_encoder(folder)
    assert open_encoder(folder, 2).model.folds == ("2",)
    content = torch.load(folder / "fold_2/checkpoint_final.pth", weights_only=False)
    torch.save({"network_weights": content["network_weights"]}, tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match="does not say how its images were preprocessed: unknown strides, spacing"):
        Model(tmp_path / "bare.pth")
    (folder / "fold_0/checkpoint_final.pth").unlink()
    (folder / "fold_2/checkpoint_final.pth").unlink()
    with pytest.raises(StunetError, match="no fold of"):
        Model(folder)


def test_a_checkpoint_of_other_plans_than_those_beside_it_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres")
    plans = json.loads((folder / "plans.json").read_text())
    content = torch.load(folder / "fold_0/checkpoint_final.pth", weights_only=False)
    content["init_args"]["plans"] = json.loads(json.dumps(plans))
    torch.save(content, folder / "fold_0/checkpoint_final.pth")
    assert open_encoder(folder).name == "STU-Net-T"
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 3.0, 3.0]
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(WeightsError, match=r"says spacing .* was trained with"):
        open_encoder(folder)


def test_a_cascades_second_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="second stage of a cascade"):
        Model(make_model(tmp_path / "T__P__3d_cascade_fullres"))


def test_bad_input_is_named(model: Model, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii.gz")
    other = write_image(tmp_path / "b.nii.gz", shape=(9, 9, 9))
    several = write_image(tmp_path / "c.nii.gz", values=np.ones((2, *SHAPE), np.float32))
    wrong = [
        (DataError, "have 2 channels instead of one value per voxel", {"labels": several}),
        (DataError, "do not lie where the image", {"labels": other}),
        (DataError, "labels of shape", {"labels": np.zeros((2, 2, 2))}),
        (DataError, "no whole numbers", {"labels": np.full(SHAPE, 0.5)}),
        (DataError, "from -1 to", {"labels": np.full(SHAPE, -1)}),
        (DataError, "none of the classes", {"labels": np.zeros(SHAPE)}),
        (DataError, "1 of 1 points are outside", {"points": [[1000.0, 0, 0]]}),
        (DataError, "points of shape", {"points": [1.0, 2, 3]}),
        (DataError, "2 names", {"points": [[3.0, -7, 11]], "names": ["a", "b"]}),
        (UsageError, "--pool class needs --labels", {"pools": ["class"]}),
        (UsageError, "no stage 7", {"stages": [7]}),
        (UsageError, "world 'XYZ'", {"points": [[0, 0, 0]], "world": "XYZ"}),
    ]
    for error, message, options in wrong:
        with pytest.raises(error, match=message):
            model.features(path, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="takes 1 channel"):
        model.features(np.zeros((2, 9, 9, 9), np.float32), spacing=(1, 1, 1))
