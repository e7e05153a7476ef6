"""Images that readers refuse, contradictory headers, and a network that sees one patient in any orientation."""

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from stunet.errors import DataError, UsageError
from stunet.evaluation.segmentations import read_segmentation
from stunet.files import read_json, write_json
from stunet.images import Reader, file_orientation, read_header
from stunet.inference.cases import InputCase
from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from stunet.inference.products import Products
from stunet.inference.reading import read
from stunet.nifti_header import oddities, open_nifti
from stunet.orientation import file_properties
from stunet.results.nifti_labels import write_nifti
from stunet.results.segmentation import Segmentation
from tests.dicom_files import VOLUME, write_series
from tests.loops import for_each
from tests.predictor_models import SHAPE, SMALL, make_model, run, write_dicom, write_image

FP32 = Options(precision="fp32")
A = np.diag([-1.5, -1.5, 2.0, 1.0])
B = A + np.array([[0, 0, 0, 10], [0, 0, 0, -5], [0, 0, 0, 3], [0, 0, 0, 0]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose plans say that its training images are LPS."""
    folder = make_model(tmp_path_factory.mktemp("model") / "T__P__3d_fullres", mirror=None)
    return recorded(folder, orientation="LPS")


def recorded(folder: Path, **values: Any) -> Path:
    write_json(folder / "plans.json", {**read_json(folder / "plans.json"), "stunet": values})
    return folder


def save(
    path: Path, qform: tuple[Any, int] = (A, 1), sform: tuple[Any, int] = (A, 1), **fields: Any
) -> nibabel.Nifti1Image:
    array = np.random.default_rng(1).integers(0, 3, (6, 7, 8)).astype(np.int16)
    image = nibabel.Nifti1Image(array, A)
    image.set_qform(*qform)
    image.set_sform(*sform)
    for key, value in {"scl_slope": 1, "scl_inter": 0, "vox_offset": 352, "magic": b"n+1", **fields}.items():
        image.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image.header.binaryblock + b"\0" * 4 + array.tobytes(order="F"))
    return image


@for_each(("by_itk", "kind"), [(True, "SimpleITKIO"), (False, "NibabelIO")])
@for_each(
    ("qform", "sform", "says", "itk", "other"),
    [
        ((A, 1), (B, 2), "differ by 11.6 mm", "qform", "sform"),
        ((A, 1), (B, 1), "differ by 11.6 mm", "sform", "sform"),
        ((A, 2), (A, 4), "", "", ""),
        ((None, 0), (None, 0), "neither qform nor sform", "stored", "stored"),
    ],
)
def test_two_forms_that_differ_are_said_with_the_one_that_is_read(
    qform: Any, sform: Any, says: str, itk: str, other: str, by_itk: bool, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.nii"
    save(path, qform, sform)
    found = oddities(path, by_itk)
    if not says:
        assert found is None
        return
    assert says in str(found)
    assert (itk if by_itk else other) in str(found)
    if qform[1]:
        _, properties = Reader(kind).read_images([str(path)])
        stuff = properties.get("sitk_stuff")
        x = -stuff["origin"][0] if stuff else properties["nibabel_stuff"]["original_affine"][0, 3]
        assert x == (B if (itk if by_itk else other) == "sform" else A)[0, 3]


@for_each(
    ("fields", "says"),
    [
        ({"pixdim": [1, 1, 1, 1, 1, 1, 1, 1]}, "1 x 1 x 1 mm by pixdim"),
        ({"scl_slope": np.nan}, "scl_slope nan and scl_inter 0: values are read as stored times 1 plus 0"),
        ({"scl_slope": 0, "scl_inter": 5}, "scl_slope 0 and scl_inter 5: values are read as stored times 1 plus 5"),
        ({"intent_code": 1002}, "label map"),
        ({"scl_slope": 0}, None),
        ({"scl_slope": 2, "scl_inter": 3}, None),
    ],
)
def test_what_a_header_contradicts_is_said(fields: Any, says: str | None, tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    forms = ((A, 1), (None, 0) if says and "qform" in says else (A, 1))
    if "pixdim" in fields:  # what a qform is made of; the sform says something else
        forms, says = ((None, 0), (A, 2)), says and says.replace("qform", "sform")
    save(path, *forms, **fields)
    found = oddities(path, by_itk=True)
    assert (found is None) if says is None else says in str(found)
    if "scl_inter" in fields and "scl_slope" in fields:
        slope = fields["scl_slope"] or 1
        expected = np.random.default_rng(1).integers(0, 3, (6, 7, 8)) * slope + fields["scl_inter"]
        np.testing.assert_array_equal(Reader("SimpleITKIO").read_images([str(path)])[0][0], expected.T)


@for_each("reader", ["SimpleITKIO", "NibabelIO"])
@for_each(
    ("qform", "sform"), [((A, 1), (B, 2)), ((A, 1), (B, 1)), ((B, 4), (A, 4)), ((None, 0), (None, 0)), ((A, 3), (B, 0))]
)
def test_results_have_both_forms_of_their_image(qform: Any, sform: Any, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "in" / "x.nii"
    image = save(path, qform, sform, xyzt_units=10)
    model = make_model(tmp_path / "T__P__3d_fullres", reader=reader)
    opened = open_model(model)
    raw = read(InputCase("x", (path,)), opened, "RAS")
    labels = raw.on_file_grid[0].astype(np.uint8)
    made = Segmentation.from_properties(labels, file_properties(raw.properties, labels.shape), opened.dataset)
    write_nifti(made, tmp_path / "out.nii.gz")
    result: Any = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(result.affine, nibabel.load(path).affine)
    for key in ("qform_code", "sform_code", "srow_x", "srow_z", "quatern_b", "qoffset_x", "xyzt_units"):
        np.testing.assert_array_equal(result.header[key], image.header[key], err_msg=key)
    np.testing.assert_array_equal(result.header["pixdim"][:4], image.header["pixdim"][:4])
    np.testing.assert_array_equal(result.get_fdata(), nibabel.load(path).get_fdata())


def test_axes_a_little_off_the_right_angle_are_read_and_results_keep_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sheared = A.copy()
    sheared[0, 2] = 0.001
    path = tmp_path / "x.nii"
    save(path, (None, 0), (sheared, 1))
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(path)
    with caplog.at_level(logging.WARNING):
        array, properties = Reader("SimpleITKIO", "RAS").read_images([str(path)])
        header = read_header(path)
        labels, geometry = read_segmentation(path, frozenset(range(3)))
    assert "0.029 degrees from perpendicular" in caplog.text
    assert header.size == geometry.size == (6, 7, 8)
    assert np.allclose(header.spacing, (1.5, 1.5, 2))
    np.testing.assert_array_equal(array[0], nibabel.load(path).get_fdata().T[:, ::-1, ::-1])
    np.testing.assert_array_equal(labels, nibabel.load(path).get_fdata().T)
    assert properties["sitk_stuff"]["original_orientation"] == "LPS"
    sheared[0, 2] = 0.2
    save(path, (None, 0), (sheared, 1))
    with pytest.raises(DataError, match=r"are 5.7 degrees from perpendicular"):
        read_header(path)


def test_a_patient_gets_the_same_labels_in_any_orientation(model: Path, tmp_path: Path) -> None:
    predictor = Predictor(model, FP32)
    assert predictor.orientation == "LPS"
    assert "orientation" not in predictor.made_by
    image = sitk.DICOMOrient(sitk.ReadImage(write_image(tmp_path / "x.nii.gz", shape=SMALL)), "LPS")
    expected = predictor.predict(image)
    assert len(np.unique(expected.labels_DHW)) == 3
    unturned = Predictor(recorded(make_model(tmp_path / "T__P__3d_fullres", mirror=None)), FP32)
    assert np.array_equal(unturned.predict(image).labels_DHW, expected.labels_DHW)
    for code in ("RAS", "PIR"):
        turn_image = sitk.DICOMOrient(image, code)
        path = tmp_path / code / f"{code}.nii.gz"
        path.parent.mkdir()
        sitk.WriteImage(turn_image, path)
        [outcome] = run(model, path.parent, tmp_path / f"out_{code}", products=Products(statistics=True))
        assert outcome.error is None
        written = sitk.ReadImage(outcome.file)
        assert written.GetSize() == turn_image.GetSize()
        np.testing.assert_allclose(written.GetDirection(), turn_image.GetDirection(), atol=1e-6)
        back = sitk.GetArrayFromImage(sitk.DICOMOrient(written, "LPS"))
        assert np.array_equal(back, expected.labels_DHW)
        own = nibabel.load(path)
        for given in (turn_image, own):
            assert np.array_equal(predictor.predict(given).labels_DHW, sitk.GetArrayFromImage(written))
        array = torch.from_numpy(sitk.GetArrayFromImage(turn_image))
        made = predictor.predict(array, affine=own.affine)
        assert np.array_equal(made.labels_DHW, sitk.GetArrayFromImage(written))
        np.testing.assert_allclose(made.affine_ras, own.affine, atol=1e-6)
        assert outcome.statistics["a"].voxels == int((expected.labels_DHW == 1).sum())


def test_probabilities_lie_on_the_images_grid(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "in" / "x.nii.gz"
    image = sitk.DICOMOrient(sitk.ReadImage(write_image(tmp_path / "x.nii.gz", shape=SMALL)), "SRA")
    path.parent.mkdir()
    sitk.WriteImage(image, path)
    [outcome] = run(model, path.parent, tmp_path / "out", products=Products(probabilities=True))
    likely = np.load(tmp_path / "out" / "x.npz")["probabilities"]
    assert np.array_equal(likely.argmax(0), sitk.GetArrayFromImage(sitk.ReadImage(outcome.file)))


def test_a_model_that_says_no_orientation_asks_once_and_takes_an_answer(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    silent = recorded(make_model(tmp_path / "T__P__3d_fullres", mirror=None))
    predictor = Predictor(silent, FP32)
    image = sitk.ReadImage(write_image(tmp_path / "x.nii.gz", shape=SMALL))
    array = sitk.GetArrayFromImage(image)
    with caplog.at_level(logging.WARNING):
        predictor.predict(array, spacing=(1.8, 1.2, 1.5))
        assert not caplog.records
        predictor.predict(image)
        predictor.predict(image)
        predictor.predict(sitk.DICOMOrient(image, "RAS"))
    assert [
        ("run PLI;" in line.message, "run RAS, those of others PLI" in line.message) for line in caplog.records
    ] == [
        (True, False),
        (False, True),
    ]
    told = Predictor(silent, Options(precision="fp32", orientation="las"))
    assert told.orientation == told.made_by["orientation"] == "LAS"
    with pytest.raises(UsageError, match="the plans say that the training images are LPS"):
        Predictor(model, Options(orientation="RAS"))
    # The training images, where they are on this machine.
    raw = tmp_path / "raw" / "Dataset001_Test"
    write_image(raw / "imagesTr" / "a_0000.nii.gz")
    write_json(raw / "dataset.json", read_json(silent / "dataset.json"))
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    assert Predictor(silent, FP32).orientation == "PLI"
    reorients = recorded(make_model(tmp_path / "U__P__3d_fullres", reader="NibabelIOWithReorient"))
    assert Predictor(reorients, FP32).orientation == "RAS"


def test_predict_says_what_it_takes(model: Path, tmp_path: Path) -> None:
    predictor = Predictor(model, FP32)
    write_dicom(tmp_path / "dicom")
    assert predictor.predict(tmp_path / "dicom").labels_DHW.shape == (10, 20, 20)
    with pytest.raises(DataError, match=r"no such file: 'none.nii.gz'"):
        predictor.predict("none.nii.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no DICOM slices in the folder"):
        predictor.predict(tmp_path / "empty")
    for wrong, what in ((None, "type NoneType"), (3, "type int"), ([3], "a list of int"), ([], "an empty list")):
        with pytest.raises(UsageError, match=f"Predictor.predict does not take .*{what}"):
            predictor.predict(wrong)
    with pytest.raises(UsageError, match="belong to an array"):
        predictor.predict("x.nii.gz", spacing=(1, 1, 1))
    with pytest.raises(DataError, match="is not a matrix of 4 x 4"):
        predictor.predict(np.zeros(SHAPE), affine=np.eye(3))


def test_images_of_one_channel_each_become_one_of_several(tmp_path: Path) -> None:
    predictor = Predictor(make_model(tmp_path / "T__P__3d_fullres", channels=2, mirror=None), FP32)
    files = [write_image(tmp_path / f"c_000{n}.nii.gz", n, SMALL) for n in (0, 1)]
    expected = predictor.predict(files).labels_DHW
    assert np.array_equal(predictor.predict([sitk.ReadImage(file) for file in files]).labels_DHW, expected)
    assert np.array_equal(predictor.predict([nibabel.load(file) for file in files]).labels_DHW, expected)
    with pytest.raises(DataError, match=r"holds 1 channel\(s\), but the model takes 2"):
        predictor.predict(nibabel.load(files[0]))
    with pytest.raises(DataError, match=r"3 images for 2 channel\(s\)"):
        predictor.predict([nibabel.load(files[0])] * 3)
    turn_image = sitk.DICOMOrient(sitk.ReadImage(files[1]), "LPS")
    there = recorded(make_model(tmp_path / "U__P__3d_fullres", channels=2), orientation="LPS")
    for each in (predictor, Predictor(there, FP32)):
        with pytest.raises(DataError, match="does not lie on the grid of the first"):
            each.predict([sitk.ReadImage(files[0]), turn_image])
        with pytest.raises(DataError, match="does not lie on the grid of the first"):
            each.predict([turn_image, turn_image[:, :, 0]])
        with pytest.raises(DataError, match="does not lie on the grid of the first"):
            each.predict([nibabel.load(files[0]), nibabel.as_closest_canonical(nibabel.load(files[1]))])
    sitk.WriteImage(turn_image, files[1])
    with pytest.raises(DataError, match=r"the axes of .* run PLI, those of .* LPS"):
        predictor.predict(files)


def test_a_reader_that_turns_images_takes_channels_of_any_orientation(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", channels=2, reader="SimpleITKIOWithReorient")
    files = [write_image(tmp_path / f"c_000{n}.nii.gz", n) for n in (0, 1)]
    expected = read(InputCase("c", tuple(files)), open_model(folder), None).image_CDHW
    sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(files[1]), "LPS"), files[1])
    np.testing.assert_array_equal(read(InputCase("c", tuple(files)), open_model(folder), None).image_CDHW, expected)


def test_names_in_capitals_are_read_as_others(model: Path, tmp_path: Path) -> None:
    for form in ((None, 0), (A, 1)):
        image = save(tmp_path / "x.nii", form, form)
        (tmp_path / "X.NII").write_bytes((tmp_path / "x.nii").read_bytes())
        small, capital = (
            read(InputCase("x", (tmp_path / name,)), open_model(model), "RAS") for name in ("x.nii", "X.NII")
        )
        assert image.shape == capital.image_CDHW.shape[:0:-1]
        np.testing.assert_array_equal(capital.image_CDHW, small.image_CDHW)
        assert capital.properties["nifti"] == small.properties["nifti"]


def test_the_series_of_a_dicom_folder_is_chosen_by_the_models_channel_or_by_name(model: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "T__P__3d_fullres", mirror=None)
    write_json(folder / "dataset.json", {**read_json(folder / "dataset.json"), "channel_names": {"0": "CT"}})
    predictor, study = Predictor(folder, FP32), tmp_path / "study"
    write_series(study, VOLUME)
    tall = np.repeat(VOLUME, 4, 0)
    write_series(study, tall, [f"p{n:02}" for n in range(24)], Modality="PT", SeriesInstanceUID="1.2.9")
    assert predictor.predict(study).labels_DHW.shape == VOLUME.shape
    assert predictor.predict(study, series="1.2.9").labels_DHW.shape == tall.shape
    with pytest.raises(DataError, match="no images of a series '7'") as caught:
        predictor.predict(study, series="7")
    assert "in Python: series" in caught.value.hint
    write_series(tmp_path / "both" / "one")
    write_series(tmp_path / "both" / "two")
    with pytest.raises(DataError, match="holds 2 folders with a series"):
        predictor.predict(tmp_path / "both")
    with pytest.raises(UsageError, match="series"):
        predictor.predict(write_image(tmp_path / "x.nii.gz"), series="7")


def test_channels_and_previous_labels_in_another_place_are_refused(tmp_path: Path) -> None:
    files = [write_image(tmp_path / f"c_000{n}.nii.gz", n) for n in (0, 1)]
    moved = sitk.ReadImage(files[1])
    moved.SetOrigin([value + 0.3 for value in moved.GetOrigin()])
    sitk.WriteImage(moved, files[1])
    two = open_model(make_model(tmp_path / "T__P__3d_fullres", channels=2))
    read(InputCase("c", tuple(files)), two, None)
    moved.SetOrigin([value + 30 for value in moved.GetOrigin()])
    sitk.WriteImage(moved, files[1])
    with pytest.raises(DataError, match=r"c_0001.nii.gz' lies up to 5\d\.?\d* mm from .*c_0000"):
        read(InputCase("c", tuple(files)), two, None)
    one = open_model(make_model(tmp_path / "U__P__3d_fullres"))
    labels = sitk.Cast(sitk.ReadImage(files[0]), sitk.sitkUInt8)
    sitk.WriteImage(labels, tmp_path / "previous.nii.gz")
    case = InputCase("c", (files[0],), tmp_path / "previous.nii.gz")
    assert read(case, one, "RAS").previous is not None
    labels.SetOrigin(moved.GetOrigin())
    sitk.WriteImage(labels, tmp_path / "previous.nii.gz")
    with pytest.raises(DataError, match=r"previous stage's labels .* do not lie where the image"):
        read(case, one, "RAS")


def test_formats_that_do_not_say_how_an_image_lies_have_no_orientation(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros(SHAPE, np.float32))
    for ending, line in ((".nrrd", b"space"), (".mha", b"TransformMatrix")):
        path = tmp_path / f"a{ending}"
        sitk.WriteImage(image, path)
        assert file_orientation(path, "SimpleITKIO") == "LPS"
        content = path.read_bytes()
        size = image.GetNumberOfPixels() * 4
        head, voxels = content[:-size], content[-size:]
        path.write_bytes(b"".join(part for part in head.splitlines(True) if not part.startswith(line)) + voxels)
        assert sitk.ReadImage(path).GetSize() == image.GetSize()
        assert file_orientation(path, "SimpleITKIO") is None


@for_each("ending", [".nii", ".nii.gz", ".NII.GZ"])
@for_each("stock", [SimpleITKIO, NibabelIO])
def test_labels_differ_from_nnunets_only_by_an_intent_that_says_so(tmp_path: Path, stock: type, ending: str) -> None:
    save(tmp_path / "image.nii", (A, 1), (A, 1))
    _, properties = stock().read_images([str(tmp_path / "image.nii")])
    labels = np.random.default_rng(3).integers(0, 300, (8, 7, 6), dtype=np.uint16)
    theirs, ours = tmp_path / "theirs.nii", tmp_path / f"ours{ending}"
    stock().write_seg(labels, str(theirs), properties)
    Reader(stock.__name__).write_seg(labels, str(ours), properties)
    expected = bytearray(theirs.read_bytes())
    assert int.from_bytes(expected[68:70], "little") == 0
    expected[68:70] = (1002).to_bytes(2, "little")
    with open_nifti(ours) as file:
        assert file.read() == bytes(expected)
    for reader in (SimpleITKIO(), NibabelIO()):
        np.testing.assert_array_equal(reader.read_seg(str(ours))[0][0], labels)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(ours)), labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["image.nii", "theirs.nii", ours.name])


@for_each("ending", [".nii", ".nii.gz"])
def test_labels_that_the_disk_cannot_hold_are_an_error(tmp_path: Path, ending: str, room_for: Any) -> None:
    save(tmp_path / "image.nii", (A, 1), (A, 1))
    _, properties = SimpleITKIO().read_images([str(tmp_path / "image.nii")])
    labels = np.random.default_rng(3).integers(0, 2, (64, 64, 64), dtype=np.uint8)
    with room_for(8192), pytest.raises(OSError, match=r"No space|too large"):
        Reader("SimpleITKIO").write_seg(labels, str(tmp_path / f"x{ending}"), properties)
