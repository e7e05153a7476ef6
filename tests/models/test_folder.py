"""Model folders that stock nnU-Net runs, their archives and exports, and archives that mean harm."""

import json
import shutil
import stat
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from stunet.errors import DataError, UsageError, WeightsError
from stunet.files import read_json, write_json, write_lock
from stunet.inference.model import open_model
from stunet.inference.predictor import Options, Predictor
from stunet.models import installing, registry
from stunet.models.archive import is_packed_model, pack, unpack
from stunet.models.entry import Entry
from stunet.models.exporting import export
from stunet.models.folder import check, describe, write_model_folder
from stunet.networks import build
from stunet.weights.checkpoints import save_checkpoint
from stunet.weights.reading import Weights, read_weights
from tests.loops import for_each

STRIDES = ((1, 1, 1), (2, 2, 2), (1, 2, 2))
ENTRY = Entry(
    name="STU-Net-T.tiny", network="stunet-t", title="", data="", modality="CT", filename="tiny.model",
    channels=("CT",), num_channels=1, classes=("background", "left", "right"), num_classes=3, spacing=(2.0, 1.0, 1.0),
    patch_size=(8, 16, 16), strides=STRIDES, normalization=("ZScoreNormalization",), mirror_axes=(0, 2),
)  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    """Random weights of size T as nnU-Net v1 leaves them."""
    torch.manual_seed(3)
    file = tmp_path / "tiny.model"
    torch.save({"state_dict": build("T", STRIDES, 1, 3).state_dict()}, file)
    return read_weights(file)


@pytest.fixture
def folder(tmp_path: Path, weights: Weights) -> Path:
    """The model folder made of them."""
    return write_model_folder(tmp_path / "model", {"fold_0": describe(weights, ENTRY)}, {"source": "a test"})


def same(one: Weights, other: Weights) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


def stock(folder: Path) -> nnUNetPredictor:
    """nnU-Net's own predictor of a model folder."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnU-Net looks through its trainers
        predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    return predictor


@for_each("half", [False, True])
def test_stock_nnunet_runs_the_folder_and_computes_what_the_network_computes(
    weights: Weights, folder: Path, tmp_path: Path, half: bool
) -> None:
    if half:
        export(folder, tmp_path / "half", half=True)
        folder = tmp_path / "half"
        assert all(value.dtype == torch.float16 for value in read_weights(folder).tensors.values())
    predictor = stock(folder)
    assert predictor.allowed_mirroring_axes == (0, 2)
    predictor.use_mirroring = predictor.use_gaussian = False
    network = build("T", STRIDES, 1, 3).eval()
    network.load_state_dict(weights.tensors)
    image = torch.randn(1, 8, 16, 16)
    with torch.inference_mode():
        expected = network(image[None])[0]
    logits = predictor.predict_logits_from_preprocessed_data(image)
    tolerance = 2e-2 if half else 1e-3  # nnU-Net's logits are float16, which has 11 bits
    assert torch.allclose(logits.float(), expected, rtol=tolerance, atol=tolerance)


def test_our_predictor_runs_the_folder(folder: Path) -> None:
    predictor = Predictor(open_model(folder), Options())
    assert predictor.configuration_name == "3d_fullres"
    assert predictor.patch == (8, 16, 16)


@for_each(
    ("axes", "there", "read"),
    [((0, 2), {"inference_allowed_mirroring_axes": (0, 2)}, (0, 2)),
     ((), {"inference_allowed_mirroring_axes": None}, ()),
     (None, {}, None)],
)  # fmt: skip
def test_axes_that_are_none_and_axes_that_are_unknown_stay_apart(
    weights: Weights, tmp_path: Path, axes: tuple[int, ...] | None, there: dict, read: tuple[int, ...] | None
) -> None:
    described = describe(weights, replace(ENTRY, mirror_axes=axes))
    folder = write_model_folder(tmp_path / "model", {"fold_0": described}, {})
    content = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert {key: content[key] for key in content if "mirroring" in key} == there
    assert read_weights(folder).mirror_axes == read
    logits = stock(folder).predict_logits_from_preprocessed_data(torch.zeros(1, 8, 16, 16))  # refuses empty axes
    assert logits.shape == (3, 8, 16, 16)


def test_the_checkpoint_holds_the_weights_and_nothing_besides(weights: Weights, folder: Path) -> None:
    file = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=True)
    assert set(content) == {"network_weights", "trainer_name", "init_args", "inference_allowed_mirroring_axes"}
    size = sum(value.nbytes for value in weights.tensors.values())
    assert size < file.stat().st_size < 1.1 * size + 50_000
    assert same(read_weights(folder), weights)


@for_each(("name", "half"), [("out.safetensors", True), ("out.zip", False), ("out", True)])
def test_what_is_exported_and_imported_again_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, half: bool
) -> None:
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    export(folder, tmp_path / name, half)
    before, after = read_weights(folder), read_weights(installing.import_file(tmp_path / name, "again").path)
    if half:
        before = replace(before, tensors={key: value.half() for key, value in before.tensors.items()})
    assert same(before, after)
    assert (after.plan, after.dataset, after.mirror_axes) == (before.plan, before.dataset, (0, 2))
    with pytest.raises(DataError, match="exists already"):
        export(folder, tmp_path / name)


def test_half_precision_is_refused_where_it_overflows(weights: Weights, tmp_path: Path) -> None:
    weights.tensors["seg_outputs.0.bias"] = torch.tensor([1e6, 0, 0])
    folder = write_model_folder(tmp_path / "model", {"fold_0": describe(weights, ENTRY)}, {})
    with pytest.raises(WeightsError, match=r"seg_outputs\.0\.bias"):
        export(folder, tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()


def test_several_folds_need_an_archive(weights: Weights, tmp_path: Path) -> None:
    described = describe(weights, ENTRY)
    folder = write_model_folder(tmp_path / "model", {"fold_0": described, "fold_1": described}, {})
    with pytest.raises(WeightsError, match="2 folds"):
        export(folder, tmp_path / "out.safetensors")
    export(folder, tmp_path / "out.zip")
    assert (unpack(tmp_path / "out.zip", tmp_path / "back") / "fold_1" / "checkpoint_final.pth").is_file()


@for_each(
    ("change", "message"),
    [
        ({"strides": ((1, 1, 1), (2, 2, 2))}, "of another network"),
        ({"classes": ("background", "left")}, "the head has 3 rows, and 2 classes are named"),
        ({"channels": ("T1", "T2")}, r"takes 1 channel\(s\), and 2 are named"),
        ({"classes": None}, "unknown strides and spacing and class names"),
    ],
)
def test_weights_that_do_not_fit_their_description_are_refused(weights: Weights, change: dict, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        describe(weights, replace(ENTRY, **change))


def test_an_entry_that_contradicts_the_files_own_plans_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"is not STU-Net-T\.tiny: strides .* instead of"):
        describe(read_weights(folder), replace(ENTRY, strides=((1, 1, 1), (2, 2, 2), (2, 2, 2))))


def test_check_says_what_is_right(folder: Path, weights: Weights) -> None:
    assert check(folder) == [
        "files: 3, with the checksums of their installation",
        f"fold_0: {len(weights.tensors)} tensors, none with NaN; they fit the plans",
    ]
    assert check(weights.path) == [
        f"fold_0: {len(weights.tensors)} tensors, none with NaN; without plans: for fine-tuning only"
    ]


def test_weights_of_a_pretext_are_checked_but_are_no_model(folder: Path, tmp_path: Path) -> None:
    file = folder / "fold_0/checkpoint_final.pth"
    content = torch.load(file, weights_only=True)
    content["stunet"] = {"pretext": {"method": "mae", "transfers": "all", "state": {}}}
    save_checkpoint(content, file)
    (folder / "model.json").unlink()
    assert check(folder)[-1].endswith("pre-trained by 'mae' without labels: for fine-tuning only")
    for name in ("x.safetensors", "x.zip", "x"):
        with pytest.raises(WeightsError, match="pre-trained by 'mae' without labels: it has no head for classes"):
            export(file, tmp_path / name)
    with pytest.raises(WeightsError, match="it has no head for classes") as caught:
        describe(read_weights(file), ENTRY)
    assert "stunet_train DATASET --pretrained" in caught.value.hint


def test_check_finds_a_file_that_changed(folder: Path) -> None:
    dataset = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", dataset | {"labels": {"background": 0, "right": 1, "left": 2}})
    with pytest.raises(WeightsError, match=r"dataset\.json' is missing or has changed"):
        check(folder)


def test_check_finds_nan(folder: Path) -> None:
    (folder / "model.json").unlink()
    file = folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=True)
    content["network_weights"]["seg_outputs.0.bias"][1] = float("inf")
    torch.save(content, file)
    with pytest.raises(WeightsError, match="NaN or infinite weights in 1 of"):
        check(folder)


def test_a_zip_by_nnunet_is_read_with_its_deeper_folders(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, f"Dataset001_X/nnUNetTrainer__nnUNetPlans__3d_fullres/{file.relative_to(folder)}")
        archive.writestr("Dataset001_X/nnUNetTrainer__nnUNetPlans__3d_fullres/evil.py", "print()")
    target = unpack(tmp_path / "model.zip", tmp_path / "back")
    assert {file.name for file in target.rglob("*.*")} == {
        "plans.json", "dataset.json", "model.json", "checkpoint_final.pth",
    }  # fmt: skip


def test_a_checkpoint_is_no_packed_model(weights: Weights, folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "model.zip", "model")
    assert is_packed_model(tmp_path / "model.zip")
    assert not is_packed_model(weights.path)
    assert not is_packed_model(folder / "plans.json")


def link() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("m/fold_0/checkpoint_final.pth")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@for_each(
    ("member", "content", "message"),
    [
        ("../outside.json", b"{}", "outside of the folder"),
        ("m/../../outside.json", b"{}", "outside of the folder"),
        ("/outside.json", b"{}", "outside of the folder"),
        ("C:/outside.json", b"{}", "outside of the folder"),
        ("..\\outside.json", b"{}", "outside of the folder"),
        (link(), b"/etc/passwd", "is a link"),
        ("m/fold_0/checkpoint_final.pth", bytes(20_000_000), "that would become 20000"),
        ("other/plans.json", b"{}", "holds 2 model folders"),
    ],
)
def test_an_archive_that_means_harm_is_refused_and_writes_nothing(
    tmp_path: Path, member: str | zipfile.ZipInfo, content: bytes, message: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(folder / "evil.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/plans.json", json.dumps({}))
        archive.writestr(member, content)
    with pytest.raises(WeightsError, match=message):
        unpack(folder / "evil.zip", folder / "target")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "evil.zip"]


@for_each("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_member_that_cannot_be_unpacked_is_damaged(folder: Path, tmp_path: Path, compression: int) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w", compression) as archive:
        archive.write(folder / "plans.json", "m/plans.json")
        start = archive.getinfo("m/plans.json").header_offset + 30 + len("m/plans.json")
    content = bytearray((tmp_path / "model.zip").read_bytes())
    content[start + 10 : start + 60] = b"\xff" * 50
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.zip' is damaged"):
        unpack(tmp_path / "model.zip", tmp_path / "target")


@for_each(("field", "value"), [(0, ord("X")), (6, 99), (10, 99)])  # signature, version, method
def test_an_archive_with_a_broken_directory_is_damaged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: int, value: int
) -> None:
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    pack(folder, tmp_path / "model.zip", "model")
    content = bytearray((tmp_path / "model.zip").read_bytes())
    end = content.rfind(b"PK\5\6")
    content[int.from_bytes(content[end + 16 : end + 20], "little") + field] = value
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.zip' is damaged"):
        installing.import_file(tmp_path / "model.zip", "mine")


def test_only_folds_with_plain_numbers_and_short_names_are_unpacked(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "model.zip", "model")
    with zipfile.ZipFile(tmp_path / "model.zip", "a") as archive:
        archive.writestr("model/fold_\N{ARABIC-INDIC DIGIT THREE}/checkpoint_final.pth", "")
        archive.writestr(f"model/fold_0/checkpoint_{'a' * 300}.pth", "")
    there = {str(path.relative_to(tmp_path)) for path in unpack(tmp_path / "model.zip", tmp_path / "m").rglob("*.pth")}
    assert there == {"m/fold_0/checkpoint_final.pth"}


def test_an_archive_is_named_as_the_user_named_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path / "store"))
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    pack(folder, tmp_path / "model.zip", "model")
    with pytest.raises(WeightsError, match=r"model\.zip' has a checkpoint_final") as refused:
        installing.import_file(tmp_path / "model.zip", "mine")
    assert ".downloads" not in refused.value.message


@for_each("name", ["a.pth", "a.model"])
def test_another_ending_is_no_folder(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"ends with '\.(pth|model)'"):
        export(folder, tmp_path / name)
    export(folder, tmp_path / "new" / "folder" / "a.SAFETENSORS")
    assert read_weights(tmp_path / "new" / "folder" / "a.SAFETENSORS").kind == "stunet"


def test_the_configuration_that_a_checkpoint_names_is_taken_from_plans_with_several(
    folder: Path, tmp_path: Path
) -> None:
    plans = read_json(folder / "plans.json")
    plans["configurations"]["other"] = {"inherits_from": "3d_fullres", "spacing": [9, 9, 9]}
    write_json(folder / "plans.json", plans)
    read = read_weights(folder)
    assert (read.configuration, read.spacing, read.classes) == (
        "3d_fullres", [2.0, 1.0, 1.0], ["background", "left", "right"],
    )  # fmt: skip


def test_an_export_of_a_training_that_did_not_end_says_so(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(folder, tmp_path / "whole.safetensors")
    assert not caplog.messages
    (folder / "fold_1").mkdir()
    (folder / "fold_1" / "checkpoint_best.pth").touch()
    export(folder, tmp_path / "half.safetensors")
    assert "fold_1 of " in caplog.messages[-1]
    assert "is unfinished and left out" in caplog.messages[-1]
    shutil.rmtree(folder / "fold_1")
    (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth")
    export(folder, tmp_path / "best.safetensors")
    assert "is finished: fold_0/checkpoint_best.pth is used, epoch ? of 1000" in caplog.messages[-1]


@for_each("name", ["out.zip", "out.safetensors", "out"])
def test_one_process_at_a_time_exports_to_a_place(folder: Path, tmp_path: Path, name: str) -> None:
    with write_lock(tmp_path / name), pytest.raises(DataError, match=rf"another process writes .*{name}"):
        export(folder, tmp_path / name)
    export(folder, tmp_path / name)
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_archive_is_refused(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "model.zip", "model")
    content = bytearray((tmp_path / "model.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.zip").write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged"):
        unpack(tmp_path / "model.zip", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_the_v1_plans_of_the_official_weights_and_the_registry_agree(data: Path, tmp_path: Path) -> None:
    from stunet.weights.pickles import load_pickle
    from stunet.weights.v1 import convert_plans

    entry = registry.find("STU-Net-B")
    official = data / "stunet_official" / "base_ep4k.model.pkl"
    plans = convert_plans(load_pickle(official), official, "B").plan.content
    ours = registry.plan_of(entry).to_json()
    one, other = plans["configurations"]["3d_fullres"], ours["configurations"]["3d_fullres"]
    assert one == other
    keys = ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel",
            "original_median_shape_after_transp", "original_median_spacing_after_transp")  # fmt: skip
    assert {key: plans[key] for key in keys} == {key: ours[key] for key in keys}
    assert np.prod(entry.patch_size) == 128**3
