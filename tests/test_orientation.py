"""Whatever the way an image's axes run: turns, properties, and every file that is written lie where the image lies."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from stunet.errors import UsageError
from stunet.images import Reader, count_orientations, file_orientation, file_reader
from stunet.inference import products
from stunet.inference.cases import InputCase
from stunet.inference.inputs import from_array, from_nibabel
from stunet.inference.model import ModelFolder
from stunet.inference.products import Products
from stunet.inference.reading import from_sitk, read
from stunet.orientation import (
    file_properties,
    for_nnunet,
    left_right_axis,
    orientation_of,
    parse_orientation,
    turn,
    turn_image,
    way_back,
)
from stunet.plans.plan import Plan
from stunet.results.segmentation import Segmentation
from tests.loops import for_each

CODES = ["".join(code) for axes in itertools.permutations(("LR", "PA", "SI")) for code in itertools.product(*axes)]
SHAPE = (3, 4, 5)  # (x, y, z)
OBLIQUE = np.linalg.qr(np.eye(3) + 0.15 * np.random.default_rng(3).normal(size=(3, 3)))[0]
OBLIQUE = OBLIQUE * np.sign(np.diag(OBLIQUE)) * [1.1, 1.3, 2.0]
READERS = {"SimpleITKIO": SimpleITKIO, "NibabelIO": NibabelIO}
READERS |= {"SimpleITKIOWithReorient": SimpleITKIOWithReorient, "NibabelIOWithReorient": NibabelIOWithReorient}


def numbered(code: str, axes: np.ndarray = OBLIQUE) -> nibabel.Nifti1Image:
    """An image stored in this orientation; the value of a voxel is its number in RAS, from 1 on."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, (3, -5, 9)
    image = nibabel.Nifti1Image(np.arange(1, 1 + np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), affine)
    to = nibabel.orientations.axcodes2ornt(code)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), to))
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    return image


def save(image: nibabel.Nifti1Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def places(array_xyz: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where each number lies, in mm."""
    result = np.full((np.prod(SHAPE) + 1, 3), np.nan)
    index = np.argwhere(array_xyz > 0)
    result[array_xyz[tuple(index.T)].astype(int)] = index @ affine[:3, :3].T + affine[:3, 3]
    return result


TRUTH = places(*(lambda image: (image.get_fdata(), image.affine))(numbered("RAS")))


def of_sitk(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return places(sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine)


@for_each(("own", "wanted"), [("LPS", "RAS"), ("PIR", "LAS"), ("SLA", "SLA")])
def test_a_turn_and_its_way_back_are_one(own: str, wanted: str) -> None:
    array = np.arange(2 * 6 * 7 * 8).reshape(2, 6, 7, 8)
    way = turn(own, wanted)
    assert np.array_equal(way.back(way(array)), array)
    assert (way(array) is array) == (own == wanted)
    assert np.array_equal(turn(wanted, own)(way(array)), array)


def test_orientations_are_three_letters_of_different_axes() -> None:
    assert parse_orientation("las") == "LAS"
    assert [left_right_axis(code) for code in ("LPS", "PIR", "SLA", None)] == [2, 0, 1, 2]
    for wrong in ("LRS", "LP", "", "XYZ", "LPSS"):
        with pytest.raises(UsageError, match="not an orientation"):
            parse_orientation(wrong)


@for_each(("start", "wanted"), enumerate(["RAS", "LPS", "PIL"]))
def test_turned_images_of_all_orientations_lie_where_they_lay(start: int, wanted: str) -> None:
    for code in CODES[start::3]:
        image = numbered(code)
        array = np.asarray(image.dataobj).T[None]
        spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
        lps = np.diag([-1, -1, 1]) @ image.affine[:3]
        itk = {
            "spacing": tuple(spacing),
            "origin": tuple(lps[:, 3]),
            "direction": tuple((lps[:, :3] / spacing).ravel()),
        }
        for stuff in ({"sitk_stuff": itk}, {"nibabel_stuff": {"original_affine": image.affine}}):
            ours, of_ours = turn_image(array, {**stuff, "spacing": list(spacing[::-1])}, wanted)
            assert orientation_of(of_ours) == wanted
            made = Segmentation.from_properties(ours[0].astype(np.uint16), of_ours, {"labels": {"a": 1}})
            np.testing.assert_allclose(places(ours[0].T, made.affine_ras)[1:], TRUTH[1:], atol=1e-6)
            place = file_properties(of_ours, array.shape[1:])
            made = Segmentation.from_properties(array[0].astype(np.uint16), place, {"labels": {"a": 1}})
            np.testing.assert_allclose(made.affine_ras, image.affine, atol=1e-12)
            np.testing.assert_array_equal(way_back(of_ours)(ours), array)


@for_each("kind", ["SimpleITKIO", "NibabelIO"])
def test_images_of_all_orientations_are_turned_as_nnunet_turns_them(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    for code in CODES[len(kind) % 2 :: 3]:
        save(numbered(code), path)
        assert file_orientation(path, kind) == code
        array, properties = READERS[kind]().read_images([str(path)])
        theirs, of_theirs = READERS[f"{kind}WithReorient"]().read_images([str(path)])
        ours, of_ours = Reader(kind, "RAS").read_images([str(path)])
        assert orientation_of(properties) == code
        assert orientation_of(of_ours) == orientation_of(of_theirs) == "RAS"
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(of_ours["spacing"], of_theirs["spacing"], rtol=1e-6)
        for image, of_image in ((ours, of_ours), (theirs, of_theirs)):
            np.testing.assert_array_equal(way_back(of_image)(image), array)
            back = file_properties(of_image, array.shape[1:])
            np.testing.assert_allclose(back["spacing"], properties["spacing"], rtol=1e-6)
            for stuff in properties.keys() & {"sitk_stuff", "nibabel_stuff"}:
                assert back[stuff].keys() == properties[stuff].keys()
                for key, value in properties[stuff].items():
                    np.testing.assert_allclose(back[stuff][key], value, atol=1e-6)


def test_an_image_in_the_wanted_orientation_is_what_nnunet_reads(tmp_path: Path) -> None:
    path = save(numbered("LAS"), tmp_path / "x.nii.gz")
    array, properties = SimpleITKIO().read_images([str(path)])
    same, of_same = Reader("SimpleITKIO", "LAS").read_images([str(path)])
    assert of_same == properties
    assert same.tobytes() == array.tobytes()


def predicted(
    code: str, reader: str, orientation: str | None, folder: Path
) -> tuple[InputCase, Segmentation, Any, ModelFolder]:
    """The numbers of an image as the labels of a perfect network, and what is needed to write them."""
    path = save(numbered(code), folder / "in" / f"{code}.nii.gz")
    names = {str(number): number for number in range(1, 1 + np.prod(SHAPE))}
    dataset = {"labels": {"background": 0, **names}, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    model = ModelFolder(folder, Plan({"image_reader_writer": reader}), dataset, (0,), "")
    case = InputCase(code, (path,))
    raw = read(case, model, orientation)
    assert orientation_of(raw.properties) == (orientation or code)
    labels = way_back(raw.properties).contiguous(raw.image_CDHW[0]).astype(np.uint16)
    np.testing.assert_array_equal(labels, raw.on_file_grid[0])
    place = file_properties(raw.properties, labels.shape)
    return case, Segmentation.from_properties(labels, place, dataset), place, model


@for_each("reader", list(READERS))
def test_all_formats_lie_where_the_image_lies(reader: str, tmp_path: Path) -> None:
    orientation = "RAS" if reader.endswith("Reorient") else "PSL"
    for number, code in enumerate(CODES[list(READERS).index(reader) :: 7]):
        case, segmentation, place, model = predicted(code, reader, orientation, tmp_path)
        folder = tmp_path / f"out{number}"
        folder.mkdir()
        writer = file_reader(reader)
        for format_ in ("image", "seg.nrrd"):
            wanted = Products(format_, probabilities=False)
            ((file,), _) = products.write(segmentation, place, None, case, folder, wanted, model, writer)
            if format_ == "image":
                result: Any = nibabel.load(file)
                np.testing.assert_allclose(places(result.get_fdata(), result.affine)[1:], TRUTH[1:], atol=1e-4)
            by_itk = sitk.ReadImage(file)
            np.testing.assert_allclose(of_sitk(by_itk)[1:], TRUTH[1:], atol=1e-4)
            assert by_itk.GetSize() == segmentation.labels_DHW.shape[::-1] == nibabel.load(case.files[0]).shape
        np.testing.assert_allclose(of_sitk(segmentation.to_sitk())[1:], TRUTH[1:], atol=1e-4)
        affine = segmentation.affine_ras
        np.testing.assert_allclose(places(segmentation.labels_DHW.T, affine)[1:], TRUTH[1:], atol=1e-4)
        # What nnU-Net's ensembling does with the .pkl beside probabilities, which lie on the same grid.
        if number % 4:
            continue
        theirs = pickle.loads(pickle.dumps(products.for_nnunet(place, reader)))
        READERS[reader]().write_seg(segmentation.labels_DHW % 50, str(folder / "theirs.nii.gz"), theirs)
        ours = nibabel.load(case.files[0])
        stored: Any = nibabel.load(folder / "theirs.nii.gz")
        np.testing.assert_allclose(stored.affine, ours.affine, atol=1e-4)
        np.testing.assert_array_equal(stored.get_fdata(), ours.get_fdata() % 50)


def test_masks_and_objects_lie_there_too(tmp_path: Path) -> None:
    for code in ("LPS", "AIR", "SRP"):
        image = numbered(code)
        path = save(image, tmp_path / f"{code}.nii.gz")
        arrays = {
            "nibabel": from_nibabel(nibabel.load(path), ["CT"], "LAS"),
            "SimpleITK": from_sitk(sitk.ReadImage(path), ["CT"], "LAS"),
            "array": from_array(np.asarray(image.dataobj).T, None, image.affine, ["CT"], "LAS"),
        }
        for raw in arrays.values():
            assert orientation_of(raw.properties) == "LAS"
            labels = raw.on_file_grid[0].astype(np.uint16)
            np.testing.assert_array_equal(labels, np.asarray(image.dataobj).T)
            dataset = {"labels": {"background": 0, "a": 1}}
            made = Segmentation.from_properties(labels, file_properties(raw.properties, labels.shape), dataset)
            np.testing.assert_allclose(made.affine_ras, image.affine, atol=1e-5)
    case, segmentation, place, model = predicted("PIR", "NibabelIOWithReorient", "RAS", tmp_path)
    few = Segmentation(segmentation.labels_DHW, {"a": 1, "b": 60}, *place_of(segmentation), forms=segmentation.forms)
    (tmp_path / "out").mkdir()
    ((folder,), _) = products.write(few, place, None, case, tmp_path / "out", Products("masks"), model, None)
    for name, value in few.names.items():
        mask: Any = nibabel.load(folder / f"{name}.nii.gz")
        at = np.argwhere(mask.get_fdata())[0]
        np.testing.assert_allclose(mask.affine[:3, :3] @ at + mask.affine[:3, 3], TRUTH[value], atol=1e-4)


@for_each("kind", READERS)
def test_stock_writers_put_results_of_dicom_series_to_their_place(kind: str, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.arange(1, 1 + np.prod(SHAPE), dtype=np.int16).reshape(SHAPE[::-1]))
    image.SetSpacing((1.1, 1.3, 2.0))
    image.SetOrigin((3, -5, 9))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))  # as images.read_series() gives it
    raw = from_sitk(image, ["CT"], "LPS")
    properties = for_nnunet(file_properties(raw.properties, SHAPE[::-1]), kind)
    READERS[kind]().write_seg(raw.on_file_grid[0].astype(np.int16), str(tmp_path / "x.nii.gz"), properties)
    np.testing.assert_allclose(of_sitk(sitk.ReadImage(tmp_path / "x.nii.gz")), of_sitk(image), atol=1e-4)


def place_of(segmentation: Segmentation) -> tuple[Any, ...]:
    return segmentation.spacing, segmentation.origin, segmentation.direction


def test_arrays_without_affine_and_files_without_forms_stay_as_they_are(tmp_path: Path) -> None:
    array = np.ones(SHAPE, np.float32)
    raw = from_array(array, (1, 2, 3), None, ["CT"], "LPS")
    assert raw.image_CDHW.shape == (1, *SHAPE)
    assert orientation_of(raw.properties) is None
    image = numbered("LPS")
    image.set_qform(None, 0)
    image.set_sform(None, 0)
    path = save(image, tmp_path / "x.nii")
    assert count_orientations([path], "SimpleITKIO") == count_orientations([path], "NibabelIO") == {}
    for kind in ("SimpleITKIO", "NibabelIO"):
        np.testing.assert_array_equal(Reader(kind, "RAI").read_images([str(path)])[0][0], image.get_fdata().T)


def test_a_file_of_several_channels_is_turned_as_one() -> None:
    direction = np.eye(4)
    direction[:3, :3] = np.diag([1, -1, 1])
    itk = {"spacing": (1.0, 2.0, 3.0, 1.0), "origin": (4.0, 5.0, 6.0, 0.0), "direction": tuple(direction.ravel())}
    image = np.arange(2 * 4 * 5 * 6, dtype=np.float32).reshape(2, 4, 5, 6)
    assert orientation_of({"sitk_stuff": itk}) == "LAS"
    ours, of_ours = turn_image(image, {"sitk_stuff": itk, "spacing": [3.0, 2.0, 1.0]}, "LPS")
    np.testing.assert_array_equal(ours, image[:, :, ::-1])
    assert of_ours["sitk_stuff"]["origin"] == (4.0, 5.0 - 2 * 4, 6.0)
    assert file_properties(of_ours, image.shape[1:])["sitk_stuff"]["origin"] == (4.0, 5.0, 6.0)


STORED = {"RAS": 2, "LPS": 2, "LAS": 2, "PSR": 0, "ASL": 0, "SPL": 0, "SRA": 1}


@for_each(("orientation", "axis"), STORED.items())
@for_each("reader", ["SimpleITKIO", "NibabelIO"])
def test_the_left_right_axis_follows_the_storage(tmp_path: Path, orientation: str, axis: int, reader: str) -> None:
    path = save(numbered(orientation), tmp_path / "x.nii.gz")
    assert left_right_axis(file_orientation(path, reader)) == axis


def test_the_left_right_axis_is_the_one_along_which_a_left_half_lies(tmp_path: Path) -> None:
    """The slow reference: the axis of the array along which physical x changes most."""
    c, s = np.cos(0.3), np.sin(0.3)
    tilt = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    for direction in map(np.array, itertools.permutations(np.eye(3))):
        if np.linalg.det(direction) < 0:
            continue
        image = sitk.GetImageFromArray(np.zeros(SHAPE, np.uint8))
        image.SetDirection((tilt @ direction).ravel().tolist())
        image.SetSpacing((1, 2, 9))
        sitk.WriteImage(image, path := tmp_path / "x.nii.gz")
        along_x = np.array(image.GetDirection()).reshape(3, 3)[0]
        assert left_right_axis(file_orientation(path, "SimpleITKIO")) == 2 - int(np.argmax(np.abs(along_x)))
