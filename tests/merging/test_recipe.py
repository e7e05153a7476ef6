"""Every key of a merge.yaml is read, and what is wrong with one is named."""

from pathlib import Path

import pytest

from stunet.errors import DataError
from stunet.merging.recipe import LabelTarget, Recipe, load_recipe
from tests.loops import for_each

COMPLETE = """
name: Dataset900_BodyUnion
head: sigmoid
classes: names.txt
extra_classes: [liver_tumor]
geometry: {reader: simpleitk_reorient, spacing: [1.5, 1.5, 3], patch: [128, 128, 64]}
intensity: {scheme: ct}
mirror: swap
sampling: {alpha: 0.3, oversample_foreground: 0.5}
folds: {number: 3, seed: 1}
images: copy
defaults: {on_unknown_label: unannotated, on_absent_label: keep, allow_noncommercial: true}
sources:
  - id: amos
    dataset: 218
    modality: {from: case_id, CT: "<500", MR: ">=500"}
    license: CC-BY-4.0
    labels:
      postcava: inferior_vena_cava
      liver: [liver, liver_tumor]
      aorta: {as: separate}
      4: {as: unannotated}
    split: seeded
    weight: 2
    annotated_overrides: cases.csv
    exclude: [case_1]
"""
MINIMAL = "name: Dataset900_A\nclasses: [liver]\nsources: [{id: a, dataset: Dataset001_A}]\n"


def _load(folder: Path, text: str) -> Recipe:
    (folder / "names.txt").write_text("liver\n\ninferior_vena_cava\n")
    (folder / "merge.yaml").write_text(text)
    return load_recipe(folder / "merge.yaml")


def test_every_key_is_read(tmp_path: Path) -> None:
    recipe = _load(tmp_path, COMPLETE)
    assert (recipe.name, recipe.head, recipe.images, recipe.mirror) == (
        "Dataset900_BodyUnion",
        "sigmoid",
        "copy",
        "swap",
    )
    assert recipe.classes == ("liver", "inferior_vena_cava", "liver_tumor")
    assert (recipe.reader, recipe.spacing, recipe.patch) == ("SimpleITKIOWithReorient", (1.5, 1.5, 3.0), (128, 128, 64))
    assert (recipe.scheme, recipe.alpha, recipe.oversample_foreground) == ("ct", 0.3, 0.5)
    assert (recipe.folds, recipe.seed) == (3, 1)
    assert (recipe.on_unknown, recipe.on_absent, recipe.allow_noncommercial) == ("unannotated", "keep", True)
    (source,) = recipe.sources
    assert (source.id, source.dataset, source.licence, source.split) == ("amos", "218", "CC-BY-4.0", "seeded")
    assert (source.weight, source.exclude, source.overrides) == (2.0, ("case_1",), tmp_path / "cases.csv")
    assert source.modality == {"CT": "<500", "MR": ">=500"}
    assert source.labels == {
        "postcava": LabelTarget(("inferior_vena_cava",)),
        "liver": LabelTarget(("liver", "liver_tumor")),
        "aorta": LabelTarget(how="separate"),
        4: LabelTarget(how="unannotated"),
    }


def test_a_label_system_gives_the_classes_and_need_not_be_complete(tmp_path: Path) -> None:
    recipe = _load(tmp_path, MINIMAL.replace("[liver]", "totalsegmentator_v2"))
    assert len(recipe.classes) == 117
    assert not recipe.required
    assert _load(tmp_path, MINIMAL).required == {"liver"}


def test_the_example_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/pretraining.md").read_text()
    recipe = _load(tmp_path, text.partition("```yaml\n")[2].partition("```")[0])
    assert [source.id for source in recipe.sources] == ["ts", "amos", "kits", "segthor"]


PROBLEMS = {
    "no YAML": ("name: [", r"is not YAML: .*line 1"),
    "a list": ("- a", r"the file is \['a'\], not a table"),
    "a key twice": (MINIMAL + "name: b\n", r"duplicate key 'name'"),
    "an unknown key": (MINIMAL + "clases: a\n", r"unknown key 'clases'; did you mean 'classes'"),
    "no name": ("classes: [a]\n", r"name is None"),
    "a name without number": (MINIMAL.replace("900", "9"), r"name is 'Dataset9_A'"),
    "no classes": (MINIMAL.replace("[liver]", "[]"), r"classes is empty"),
    "a class twice": (MINIMAL.replace("[liver]", "[liver, liver]"), r"'liver' is listed twice"),
    "background": (MINIMAL.replace("[liver]", "[background]"), r"'background' is not a class"),
    "an unknown system": (MINIMAL.replace("[liver]", "totalsegmentator_v9"), r"no label system .*did you mean"),
    "a list that is not there": (MINIMAL.replace("[liver]", "other.txt"), r"cannot read .*other.txt"),
    "no sources": ("name: Dataset900_A\nclasses: [a]\n", r"sources is not a list"),
    "an id twice": (MINIMAL.replace("}]", "}, {id: a, dataset: B}]"), r"two sources have the id 'a'"),
    "an id with a slash": (MINIMAL.replace("id: a", "id: a/b"), r"the id of source 1 is 'a/b'"),
    "no dataset": (MINIMAL.replace("dataset: Dataset001_A", "weight: 1"), r"source 'a' has no dataset"),
    "a weight of 0": (MINIMAL.replace("}]", ", weight: 0}]"), r"source 'a': weight is 0"),
    "a label that is nothing": (MINIMAL.replace("}]", ", labels: {x: []}}]"), r"label 'x' has no class"),
    "an unknown treatment": (MINIMAL.replace("}]", ", labels: {x: {as: y}}}]"), r"label 'x': as is 'y'"),
    "labels that are a list": (MINIMAL.replace("}]", ", labels: [x]}]"), r"labels are \['x'\]"),
    "a modality without rule": (MINIMAL.replace("}]", ", modality: {CT: 1}}]"), r"modality is \{'CT': 1\}"),
    "a rule that compares nothing": (
        MINIMAL.replace("}]", ", modality: {from: case_id, CT: all}}]"),
        r"modality has the rule 'all'",
    ),
    "pseudo labels": (MINIMAL.replace("}]", ", pseudo: {teacher: x}}]"), r"pseudo labels are not made here"),
    "an unknown head": (MINIMAL + "head: argmax\n", r"head is 'argmax'"),
    "an unknown reader": (MINIMAL + "geometry: {reader: NibabelIO}\n", r"geometry.reader is 'NibabelIO'"),
    "a spacing of two": (MINIMAL + "geometry: {spacing: [1, 1]}\n", r"geometry.spacing is \[1, 1\]"),
    "a patch of fractions": (MINIMAL + "geometry: {patch: [1, 1, 1.5]}\n", r"geometry.patch is 1.5"),
    "per-modality intensities": (MINIMAL + "intensity: {scheme: per_modality}\n", r"scheme is 'per_modality'"),
    "an alpha of 2": (MINIMAL + "sampling: {alpha: 2}\n", r"sampling.alpha is 2"),
    "one fold": (MINIMAL + "folds: {number: 1}\n", r"folds.number is 1"),
    "no truth value": (MINIMAL + "defaults: {allow_noncommercial: maybe}\n", r"allow_noncommercial is 'maybe'"),
}


@for_each(("text", "message"), PROBLEMS.values())
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _load(tmp_path, text)
    assert str(tmp_path / "merge.yaml") in caught.value.message
    assert caught.value.hint


def test_an_empty_licence_is_no_licence(tmp_path: Path) -> None:
    recipe = _load(tmp_path, MINIMAL.replace("dataset: Dataset001_A", "dataset: Dataset001_A, license: null"))
    assert recipe.sources[0].licence == ""


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none.yaml"):
        load_recipe(tmp_path / "none.yaml")
