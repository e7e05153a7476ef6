"""Tests of pipeline.py, engine/memory.py and products.py: many cases, in order, within limits, whole or not."""

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from stunet.errors import DataError, OutOfMemoryError
from stunet.inference.cases import InputCase, find_cases, read_geometry
from stunet.inference.engine import memory
from stunet.inference.model import open_model
from stunet.inference.pipeline import Outcome, Pipeline
from stunet.inference.predictor import Options, Predictor
from stunet.inference.preparation import NetworkInput
from stunet.inference.products import Products
from stunet.results.run_report import STAGES
from tests.loops import for_each
from tests.predictor_models import make_model, write_dicom, write_image

ALL = Products(probabilities=True, preview=True, statistics=True)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = make_model(tmp_path_factory.mktemp("model") / "T__P__3d_fullres", mirror=None)
    return Predictor(open_model(folder), Options(precision="fp32"))


@pytest.fixture
def cases(tmp_path: Path, predictor: Predictor) -> list[InputCase]:
    """Four cases a to d; c is damaged."""
    for seed, name in enumerate("abcd"):
        write_image(tmp_path / f"in/{name}_0000.nii.gz", seed)
    damaged = tmp_path / "in/c_0000.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    return find_cases(tmp_path / "in", predictor.model)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_a_broken_case_in_the_middle_is_an_outcome_in_its_place(
    predictor: Predictor, cases: list[InputCase], out: Path
) -> None:
    outcomes = list(Pipeline(predictor, out).run(cases))
    assert [outcome.case for outcome in outcomes] == cases
    assert [outcome.error is None for outcome in outcomes] == [True, True, False, True]
    assert names(out) == ["a.nii.gz", "b.nii.gz", "d.nii.gz"]
    for outcome in (outcomes[0], outcomes[1], outcomes[3]):
        alone = predictor.predict(list(outcome.case.files))
        np.testing.assert_array_equal(voxels(outcome.file), alone.labels_DHW)
    assert len({voxels(outcomes[n].file).tobytes() for n in (0, 1, 3)}) == 3


def test_a_failed_case_keeps_no_images_in_memory(predictor: Predictor, cases: list[InputCase], out: Path) -> None:
    error = list(Pipeline(predictor, out).run(cases))[2].error
    assert error is not None
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_the_image_of_a_failed_case_is_freed_before_the_next_one_is_read(
    predictor: Predictor, cases: list[InputCase], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[weakref.ref[Any]] = []
    alive: list[int] = []
    read = predictor.read

    def fail(prepared: NetworkInput, *_: Any) -> None:
        images.append(weakref.ref(prepared.image_CDHW))
        raise DataError("fails")

    def look(case: InputCase) -> Any:
        alive.append(sum(image() is not None for image in images))
        return read(case)

    monkeypatch.setattr(predictor, "segment", fail)
    monkeypatch.setattr(predictor, "read", look)
    monkeypatch.setattr(Pipeline, "_plan", lambda *_: memory.Schedule(ahead=False, half=False))
    assert all(outcome.error for outcome in Pipeline(predictor, out).run(cases[:2]))
    assert alive == [0, 0]
    assert len(images) == 2


def test_every_stage_of_every_case_is_timed_and_its_files_are_listed(
    predictor: Predictor, cases: list[InputCase], out: Path
) -> None:
    for outcome in Pipeline(predictor, out, ALL).run(cases[2:]):
        report = outcome.report
        assert report.name == outcome.case.name
        assert report.peak_gb is not None
        assert report.peak_gb > 0.05
        if outcome.error:
            assert list(report.seconds) == ["read"]
            assert report.error == f"{outcome.error.message}; {outcome.error.hint}"
            assert report.files == []
            continue
        assert list(report.seconds) == list(STAGES)
        assert all(seconds > 0 for seconds in report.seconds.values())
        assert report.files == [f"{report.name}{end}" for end in (".npz", ".pkl", "_preview.png", ".nii.gz")]
        assert set(report.files) <= set(names(out))
        labels, image = voxels(outcome.file), voxels(outcome.case.files[0])
        assert set(outcome.statistics) == {"a", "b"}
        for value, name in ((1, "a"), (2, "b")):
            measured = outcome.statistics[name]
            assert measured.voxels == (labels == value).sum() > 0
            assert measured.intensity is not None
            np.testing.assert_allclose(measured.intensity["MR0"].mean, image[labels == value].mean(), rtol=1e-5)
        with np.load(out / report.files[0]) as file:
            np.testing.assert_array_equal(file["probabilities"].argmax(0), labels)
    assert len(names(out)) == 4


def test_windows_and_cases_are_told_as_they_come(predictor: Predictor, cases: list[InputCase], out: Path) -> None:
    told: list[Any] = []
    pipeline = Pipeline(
        predictor,
        out,
        on_case=lambda case, windows: told.append((case.name, windows)),
        on_window=lambda: told.append(1),
    )
    list(pipeline.run(cases))
    begun = [entry for entry in told if entry != 1]
    assert [name for name, _ in begun] == ["a", "b", "d"]
    expected = [entry for pair in begun for entry in (pair, *[1] * pair[1])]
    assert told == expected


def test_a_name_that_leaves_no_room_for_temporary_names_is_predicted_and_one_too_long_is_an_error_of_that_case(
    tmp_path: Path, predictor: Predictor, out: Path
) -> None:
    long, too_long = "x" * 240, "y" * 250
    for name in ("a.nii.gz", f"{long}.nii.gz", f"{too_long}.nii"):
        write_image(tmp_path / "in" / name)
    outcomes = list(Pipeline(predictor, out).run(find_cases(tmp_path / "in", predictor.model)))
    assert [outcome.error is None for outcome in outcomes] == [True, True, False]
    assert outcomes[2].error is not None
    assert "File name too long" in outcomes[2].error.message
    assert names(out) == ["a.nii.gz", f"{long}.nii.gz"]


@for_each("products", [Products(), ALL, Products("masks"), Products("seg.nrrd")])
def test_a_file_that_cannot_be_written_to_its_end_leaves_nothing(
    predictor: Predictor,
    cases: list[InputCase],
    out: Path,
    room_for: Callable[[int], AbstractContextManager[None]],
    products: Products,
) -> None:
    with room_for(300):
        outcomes = list(Pipeline(predictor, out, products).run(cases[:2]))
    assert [outcome.error is None for outcome in outcomes] == [False] * 2
    assert "File too large" in outcomes[0].error.message  # type: ignore[union-attr]
    assert names(out) == []
    assert next(Pipeline(predictor, out, products).run(cases[:1])).error is None


@for_each("products", [Products(), ALL])
def test_an_interruption_leaves_whole_cases_and_no_threads(
    predictor: Predictor, cases: list[InputCase], out: Path, products: Products
) -> None:
    seen: list[int] = []

    of_first = predictor.count_windows(predictor.preprocess(predictor.read(cases[0])))

    def interrupt() -> None:
        seen.append(1)
        if len(seen) == 1 + of_first:
            raise KeyboardInterrupt

    threads = threading.active_count()
    outcomes: list[Outcome] = []
    with pytest.raises(KeyboardInterrupt):
        outcomes.extend(Pipeline(predictor, out, products, on_window=interrupt).run(cases))
    assert {name[0] for name in names(out)} == {"a"}
    assert len(names(out)) == len(products.endings(predictor.model))
    assert threading.active_count() == threads
    [outcome] = Pipeline(predictor, out, products).run(cases[1:2])
    assert outcome.error is None


def test_a_run_that_is_given_up_ends_its_threads(predictor: Predictor, cases: list[InputCase], out: Path) -> None:
    threads = threading.active_count()
    run = Pipeline(predictor, out).run(cases)
    assert next(run).case == cases[0]
    run.close()
    assert threading.active_count() == threads
    assert not [name for name in names(out) if name.startswith(".part")]


class Watched(Pipeline):
    """Notes when a case is read, segmented and written."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.events: list[str] = []

    def _prepare(self, outcome: Outcome) -> Any:
        self.events.append(f"read {outcome.case.name}")
        return super()._prepare(outcome)

    def _segment(self, outcome: Outcome, prepared: Any, half: bool) -> Any:
        self.events.append(f"segment {outcome.case.name}" + " in half precision" * half)
        result = super()._segment(outcome, prepared, half)
        self.events.append(f"segmented {outcome.case.name}")
        return result

    def _write(self, outcome: Outcome, *given: Any) -> Outcome:
        result = super()._write(outcome, *given)
        self.events.append(f"wrote {outcome.case.name}")
        return result


def limited(predictor: Predictor, out: Path, cases: list[InputCase], half: bool = False) -> Watched:
    """A pipeline with room for one case after the other, and not for two."""
    needs = [predictor.memory_need(*read_geometry(case)) for case in cases]
    least = max(max(need.prepare, need.segment - half * need.half_saves, need.write) for need in needs)
    pipeline = Watched(predictor, out, max_memory_gb=1)
    pipeline._limit = pipeline._base + least + 1
    return pipeline


def test_without_a_limit_the_next_case_is_read_while_the_network_works(
    tmp_path: Path, predictor: Predictor, cases: list[InputCase], out: Path
) -> None:
    pipeline = Watched(predictor, out)
    list(pipeline.run([cases[0], cases[1], cases[3]]))
    order = pipeline.events.index
    assert order("read b") < order("segmented a")
    assert order("read d") < order("segmented b")
    assert order("read d") > order("segment a")  # but not two ahead


def test_a_limit_without_room_for_two_has_one_case_after_the_other(
    predictor: Predictor, cases: list[InputCase], out: Path
) -> None:
    three = [cases[0], cases[1], cases[3]]
    pipeline = limited(predictor, out, three)
    outcomes = list(pipeline.run(three))
    assert pipeline.events == [
        f"{what} {case.name}" for case in three for what in ("read", "segment", "segmented", "wrote")
    ]
    assert all(outcome.error is None for outcome in outcomes)


def test_less_memory_adds_logits_in_half_precision_and_still_less_refuses_the_case(
    predictor: Predictor, cases: list[InputCase], out: Path
) -> None:
    expected = predictor.predict(list(cases[0].files)).labels_DHW
    pipeline = limited(predictor, out, cases[:1], half=True)
    [outcome] = pipeline.run(cases[:1])
    assert outcome.error is None
    found = voxels(outcome.file)
    assert (found == expected).mean() > 0.99
    assert "segment a in half precision" in pipeline.events
    pipeline._limit = (pipeline._limit or 0) - 2
    [outcome] = pipeline.run(cases[:1])
    assert isinstance(outcome.error, OutOfMemoryError)
    np.testing.assert_array_equal(predictor.predict(list(cases[0].files)).labels_DHW, expected)


def test_a_limit_also_holds_beside_a_case_that_cannot_be_read(
    predictor: Predictor, cases: list[InputCase], out: Path
) -> None:
    cases[2].files[0].write_bytes(b"no image")
    errors = [outcome.error for outcome in Pipeline(predictor, out, max_memory_gb=0.001).run(cases)]
    assert [type(error) for error in errors] == [OutOfMemoryError, OutOfMemoryError, DataError, OutOfMemoryError]
    assert names(out) == []


def test_a_limit_also_holds_for_a_dicom_folder(tmp_path: Path, predictor: Predictor, out: Path) -> None:
    write_dicom(tmp_path / "patient")
    [case] = find_cases(tmp_path / "patient", predictor.model)
    assert read_geometry(case) == ((10, 20, 20), (2.0, 1.5, 1.5))
    [outcome] = Pipeline(predictor, out, max_memory_gb=0.001).run([case])
    assert isinstance(outcome.error, OutOfMemoryError)
    [outcome] = Pipeline(predictor, out).run([case])
    assert outcome.error is None
    raw = predictor.read(InputCase("x", (write_nifti_of(case, tmp_path),)))
    shape, spacing = read_geometry(case)
    assert raw.image_CDHW.shape[1:] == shape
    np.testing.assert_allclose(raw.properties["spacing"], spacing)


def write_nifti_of(case: InputCase, folder: Path) -> Path:
    from stunet.datasets.dicom import read_series

    sitk.WriteImage(read_series(case.files[0]), folder / "series.nii.gz")
    return folder / "series.nii.gz"


NEED = memory.Need(prepare=3, segment=10, write=2, half_saves=4)
LARGE = memory.Need(prepare=8, segment=20, write=5, half_saves=4)


@for_each(
    ("own", "neighbours", "limit", "ahead", "half"),
    [
        (NEED, [NEED], 100 + 15, True, False),
        (NEED, [NEED], 100 + 14, False, False),
        (NEED, [NEED, LARGE], 100 + 23, True, False),
        (NEED, [LARGE, NEED], 100 + 22, False, False),
        (NEED, [NEED], 100 + 10, False, False),
        (NEED, [NEED], 100 + 9, False, True),
        (NEED, [NEED], 100 + 6, False, True),
    ],
)
def test_what_gives_way_first_is_reading_ahead_and_then_precision(
    own: memory.Need, neighbours: list[memory.Need], limit: float, ahead: bool, half: bool
) -> None:
    assert memory.schedule(own, neighbours, 100, limit) == memory.Schedule(ahead, half)


def test_a_case_that_fits_in_no_way_is_refused_with_what_it_needs() -> None:
    with pytest.raises(OutOfMemoryError, match=r"needs about 8\.00 GB, more than the 7\.50 GB") as caught:
        memory.schedule(memory.Need(3e9, 10e9, 2e9, 4e9), [NEED], 2e9, 7.5e9)
    assert "--max_memory 8.1GB" in caught.value.hint
