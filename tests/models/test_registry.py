"""The registry: what is said of the public weights, and what is refused in a user's own file."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from stunet.errors import WeightsError
from stunet.labels.systems import load
from stunet.models import registry
from stunet.models.entry import check_name
from stunet.plans.check import check_plan
from stunet.plans.plan import Plan
from stunet.sizes import SIZES
from stunet.weights.v2 import NORMALIZATIONS, READERS, RESAMPLINGS
from tests.loops import for_each

OWN = """
[mine]
title = "ours"
data = "our scans"
modality = "MR"
channels = ["T1", "T2"]
spacing = [1, 1.5, 1.5]
patch_size = [16, 32, 32]
strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
normalization = ["ZScoreNormalization", "ZScoreNormalization"]
classes = ["background", "left", "right"]
[mine.T]
filename = "mine.pth"
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STUNET_MODELS", str(tmp_path))
    return tmp_path / "models.toml"


def test_all_public_weights_are_there_under_unique_names() -> None:
    names = [entry.name for entry in registry.entries()]
    sizes = ("S", "B", "L", "H")
    expected = {f"STU-Net-{size}.{tag}" for tag in ("totalseg", "abdomenatlas") for size in sizes}
    expected |= {f"STU-Net-B.{tag}" for tag in ("ct-org", "feta21", "brats21")}
    expected |= {f"OpenMind-ResEncL-{by}" for by in ("MAE", "SimCLR", "VoCo", "S3D", "MG", "VF", "SwinUNETR")}
    expected |= {f"TotalSegmentator-total-{part}" for part in ("3mm", *(f"part{i}" for i in range(1, 6)))}
    expected |= {f"TotalSegmentator-total_mr-{part}" for part in ("part1", "part2", "3mm")}
    expected |= {"ResEncL-T1-MAE", "MultiTalent-ResEncL", "MultiTalent-ResEncL-CTNorm", "VoComni-nnUNet"}
    assert {*names} == expected
    assert len(names) == len({*names})


def test_every_entry_of_another_network_states_licence_citation_and_input() -> None:
    for entry in registry.entries():
        if entry.size is None:
            assert entry.licence
            assert entry.citation
            assert entry.num_channels == 1
            # Either the download says which images it takes, or the entry; of one network nobody does.
            assert entry.has_plans or entry.spacing or entry.name == "VoComni-nnUNet"
            assert not entry.non_commercial


@for_each(("whole", "system", "parts"), [("total", "v2", 5), ("total_mr", "mr", 2)])
def test_the_parts_of_a_whole_share_the_official_classes_in_their_order(whole: str, system: str, parts: int) -> None:
    found = registry.parts_of(f"totalsegmentator-{whole}")
    together = [name for part in found for name in part.classes[1:]]
    official = load(f"totalsegmentator-{system}").classes
    assert len(found) == parts
    assert together == [each.name for each in official]
    assert registry.find(f"TotalSegmentator-{whole}-3mm").classes == ("background", *together)
    with pytest.raises(WeightsError, match=f"TotalSegmentator-{whole} is {parts} models") as refused:
        registry.find(f"TotalSegmentator-{whole}")
    assert f"stunet_models download TotalSegmentator-{whole}" in refused.value.hint


@for_each(
    ("name", "message"),
    [
        ("STU-Net-B.brats21", "unknown channels, classes, spacing"),
        ("OpenMind-ResEncL-MAE", "was pre-trained without labels: it has no head for classes"),
        ("VoComni-nnUNet", "unknown plans"),
    ],
)
def test_what_cannot_predict_is_said_before_it_is_downloaded(name: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as refused:
        registry.check_complete(registry.find(name))
    assert f"stunet_train --pretrained {name}" in refused.value.hint
    registry.check_complete(registry.find("TotalSegmentator-total-3mm"))


def test_the_class_order_is_the_published_one(data: Path) -> None:
    published = json.loads((data / "stunet_official" / "label_orders.json").read_text())
    classes = registry.find("STU-Net-H").classes
    assert classes == tuple(published[str(i)] for i in range(105))


def test_every_entry_can_be_had_and_its_figures_are_plausible() -> None:
    for entry in registry.entries():
        assert entry.sources or entry.pages
        assert all(address.startswith("https://") for address in entry.sources + entry.pages)
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        size = entry.bytes or entry.about_bytes
        # a file of nnU-Net v1 holds weights and momentum, four bytes each
        expected = 8 * SIZES[entry.size].parameters() if entry.size else size
        assert size is None or size == pytest.approx(expected, rel=0.01)


def test_a_mirror_is_used_only_where_the_checksum_is_published() -> None:
    for entry in registry.entries():
        assert len(entry.sources) < 2 or entry.sha256


@for_each("name", ["STU-Net-L", "stu-net-l", "STU-NET-L.TotalSeg"])
def test_a_name_is_found_in_any_case_and_without_its_default_tag(name: str) -> None:
    assert registry.find(name).name == "STU-Net-L.totalseg"


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(WeightsError, match=re.escape("did you mean 'STU-Net-B.brats21'")) as refused:
        registry.find("STU-Net-B.brats")
    assert refused.value.hint == "stunet_models list"


@for_each("size", ["S", "B", "L", "H"])
def test_plans_made_from_an_entry_are_whole(size: str) -> None:
    entry = registry.find(f"STU-Net-{size}")
    plans, dataset = registry.plan_of(entry).to_json(), registry.dataset_of(entry)
    check_plan(Plan(plans), "3d_fullres")
    manager = PlansManager(plans)
    configuration = manager.get_configuration("3d_fullres")
    assert configuration.pool_op_kernel_sizes == [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]]
    assert configuration.normalization_schemes == ["ZScoreNormalization"]
    assert manager.get_label_manager(dataset).num_segmentation_heads == 105
    assert dataset["labels"]["vertebrae_T9"] == 104


def test_what_plans_may_name_is_what_nnunet_has() -> None:
    from nnunetv2.imageio import reader_writer_registry
    from nnunetv2.preprocessing.normalization import default_normalization_schemes
    from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name

    schemes = vars(default_normalization_schemes)
    assert {name for name in schemes if name.endswith("Normalization")} == {*NORMALIZATIONS, "ImageNormalization"}
    assert {reader.__name__ for reader in reader_writer_registry.LIST_OF_IO_CLASSES} <= {*READERS}
    assert all(reader_writer_registry.recursive_find_reader_writer_by_name(name) for name in READERS)
    assert all(callable(recursive_find_resampling_fn_by_name(name)) for name in RESAMPLINGS)


@for_each("name", ["", "..", "a/b", "a\n", "a" * 101, "models.toml", "Checksums.json"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="cannot be a model's name"):
        check_name(name)


def test_own_entries_are_added_and_take_the_place_of_ours(own: Path) -> None:
    own.write_text(OWN + OWN.replace("mine", "totalseg"))
    added = registry.find("STU-Net-T.mine")
    assert (added.num_channels, added.num_classes, added.spacing) == (2, 3, (1, 1.5, 1.5))
    assert PlansManager(registry.plan_of(added).to_json()).foreground_intensity_properties_per_channel == {
        "0": {},
        "1": {},
    }
    assert registry.find("STU-Net-T.totalseg").title == "ours"
    assert registry.find("STU-Net-B.totalseg").title != "ours"


def test_own_entries_of_another_network_have_the_name_of_their_table(own: Path) -> None:
    one = OWN.replace("[mine.T]", "").replace("[mine]", "[My-Net]\nnetwork = 'resenc-l'")
    classes = "classes = { labels = 'totalsegmentator-v1', last = 'kidney_right' }\n"
    several = (
        f"[Net]\nnetwork = 'plain'\ntitle = 't'\ndata = 'd'\nmodality = 'CT'\n{classes}[Net.a]\n[Net.b]\nepochs = 3"
    )
    own.write_text(f"{one}\n{several}")
    assert (registry.find("my-net").network, registry.find("my-net").filename) == ("resenc-l", "mine.pth")
    assert [registry.find(f"Net-{name}").epochs for name in "ab"] == [None, 3]
    assert registry.find("Net-a").classes == ("background", "spleen", "kidney_right")
    assert registry.find("Net-a").size is None


@for_each(
    ("classes", "message"),
    [
        ("{ labels = 'nothing' }", "no file"),
        ("{ labels = '../amos' }", "is a path, not a name"),
        ("{ labels = 'amos', first = 'tail' }", "'tail' is not in list"),
        ("{ labels = 'amos', from = 'liver' }", "unknown key"),
        ("{}", "label system None is not text"),
    ],
)
def test_classes_of_a_label_system_that_is_none_are_named(own: Path, classes: str, message: str) -> None:
    own.write_text(OWN.replace('["background", "left", "right"]', classes))
    with pytest.raises(WeightsError, match=f"STU-Net-T.mine: classes = .*{message}"):
        registry.entries()


@for_each(
    ("licence", "non_commercial"),
    [
        ("CC-BY-NC-SA-4.0", True), ("CC BY-NC 4.0", True), ("non-commercial use", True), ("Noncommercial 1.0", True),
        ("not for commercial use", True), ("CC-BY-4.0", False), ("Apache-2.0", False), ("NCSA", False), ("", False),
    ],
)  # fmt: skip
def test_a_licence_that_forbids_commercial_use_is_known_by_its_words(licence: str, non_commercial: bool) -> None:
    entry = replace(registry.find("STU-Net-B"), licence=licence or None)
    assert entry.non_commercial == non_commercial


@for_each(
    ("before", "after", "message"),
    [
        ("title", "titel", "unknown key 'titel'; did you mean 'title'"),
        ('data = "our scans"', "", "STU-Net-T.mine: missing data"),
        ("[16, 32, 32]", '["16", 32, 32]', "patch_size = .* is not of type"),
        ("[16, 32, 32]", "[]", "patch_size"),
        ('"ours"', "3", "title = 3"),
        ("[mine.T]", "[mine.tiny]", r"\[mine\] has no table \[mine.SIZE\], and no network"),
        ("[mine]", "[mine]\nnetwork = 'resnet'", "mine-T: network = resnet: must be one of stunet-t, "),
        ("[mine]", "[mine", "not valid TOML"),
        ("[mine]", "deep = " + "[" * 5000, "not valid TOML"),
        ("mine", "'x/../../victim'", "cannot be a model's name"),
        ("mine.pth", "../mine.pth", "filename = ../mine.pth: must be a file name without a folder"),
        ("mine.pth", "..", "filename"),
        ("mine.pth", "", "filename"),
        ("mine.pth", "model.json", "filename"),
        ("title", 'companions = ["../x"]\ntitle', "companions"),
        ("title", 'companions = ["models.toml"]\ntitle', "companions"),
        ("title", 'folder = "a/b"\ntitle', "folder"),
        ("title", "has_plans = 1\ntitle", "has_plans = 1 is not of type"),
        ('filename = "mine.pth"', 'sources = ["https://x.org/y"]', "sources .* accompanied by a filename"),
        ("title", 'sources = ["file:///etc/passwd"]\ntitle', "sources"),
        ("title", "bytes = -5\ntitle", "bytes = -5: must be positive"),
        ("title", 'sha256 = "XYZ"\ntitle', "sha256"),
        ("title", "num_channels = 4\ntitle", "num_channels = 4, but channels has 2"),
        ('"left", "right"', '"left", "left"', "classes"),
        ('"background", ', "", "classes"),
        ("[1, 1.5, 1.5]", "[nan, 1, 1]", "spacing"),
        ("[1, 1.5, 1.5]", "[1.5, 1.5]", "must be one number for each of 2 axes"),
        ("[[1, 1, 1], [1, 2, 2]", "[[2, 1, 1], [1, 2, 2]", "strides"),
        ('["ZScoreNormalization", ', '["os", ', "normalization .* must be among CTNormalization, "),
        ('["ZScoreNormalization", ', "[", "normalization .* must be one per channel"),
        ("title", "mirror_axes = [7]\ntitle", "mirror_axes"),
    ],
)
def test_a_mistake_in_own_entries_is_named(own: Path, before: str, after: str, message: str) -> None:
    own.write_text(OWN.replace(before, after))
    with pytest.raises(WeightsError, match=message) as refused:
        registry.entries()
    assert str(own) in refused.value.message
