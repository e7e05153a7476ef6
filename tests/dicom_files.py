"""Writes small DICOM files, legacy and enhanced, that break what a test wants broken."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

VOLUME = np.random.default_rng(0).integers(-1000, 1000, (6, 8, 9)).astype(np.int16)  # (D, H, W)
SPACING = (2.5, 0.75, 0.5)  # mm, (D, H, W)
ORIGIN = (10.0, 20.0, 30.0)
IN_ORDER = "fbdace"  # names of files that are not in the order of the slices


def positions(depth: int = len(VOLUME), step: float = SPACING[0]) -> list[tuple[float, ...]]:
    """Those of an even stack."""
    return [(*ORIGIN[:2], ORIGIN[2] + step * i) for i in range(depth)]


def write_series(
    folder: Path,
    values: np.ndarray = VOLUME,
    names: Sequence[str] = IN_ORDER,
    places: Sequence[Sequence[float]] | None = None,
    change: Callable[[int, Dataset], Any] = lambda index, dataset: None,
    slope: float | Sequence[float] = 1.0,
    intercept: float | Sequence[float] = -1024.0,
    **attributes: Any,
) -> list[Path]:
    """A file for each slice; `change` may alter a dataset, or return False for one that is not written."""
    folder.mkdir(parents=True, exist_ok=True)
    places = positions(len(values)) if places is None else places
    slopes, intercepts = (np.broadcast_to(what, len(values)) for what in (slope, intercept))
    files = []
    for index, plane in enumerate(values):
        dataset = _image(plane, float(slopes[index]), float(intercepts[index]))
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.InstanceNumber = index + 1
        dataset.PixelSpacing, dataset.SliceThickness = [str(s) for s in SPACING[1:]], str(SPACING[0])
        dataset.ImagePositionPatient = [f"{x:.10g}" for x in places[index]]
        dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slopes[index]:g}", f"{intercepts[index]:g}"
        for name, value in attributes.items():
            setattr(dataset, name, value)
        if change(index, dataset) is not False:
            name = names[index] if index < len(names) else f"{index:03d}"
            files.append(folder / f"{name}.dcm")
            _save(dataset, files[-1])
    return files


def write_enhanced(
    file: Path,
    values: np.ndarray = VOLUME,
    order: Sequence[int] | None = None,
    places: Sequence[Sequence[float]] | None = None,
    slopes: Sequence[float] | None = None,
    change: Callable[[Dataset], Any] = lambda dataset: None,
    **attributes: Any,
) -> Path:
    """One file with all slices; slopes stand with their frames if given, else with what frames share."""
    file.parent.mkdir(parents=True, exist_ok=True)
    places = positions(len(values)) if places is None else places
    order = range(len(values)) if order is None else order
    dataset = _image(values[0], 1, -1024)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [str(s) for s in SPACING[1:]], str(SPACING[0])
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    if slopes is None:
        shared.PixelValueTransformationSequence = [_rescale(1)]
    frames, pixels = [], []
    for number, index in enumerate(order, 1):
        frame, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{x:.10g}" for x in places[index]]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", number, [1, number]
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        if slopes is not None:
            frame.PixelValueTransformationSequence = [_rescale(slopes[index])]
        frames.append(frame)
        slope = 1.0 if slopes is None else slopes[index]
        pixels.append(np.rint((values[index].astype(float) + 1024) / slope).astype(np.uint16))
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    dataset.NumberOfFrames, dataset.PixelData = len(frames), np.stack(pixels).tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    change(dataset)
    _save(dataset, file)
    return file


def without(*names: str, at: Sequence[int] | None = None) -> Callable[[int, Dataset], None]:
    """Removes attributes, of all slices or of some."""

    def change(index: int, dataset: Dataset) -> None:
        for name in names if at is None or index in at else ():
            del dataset[name]

    return change


def _rescale(slope: float) -> Dataset:
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = f"{slope:g}", "-1024", "HU"
    return item


def _image(plane: np.ndarray, slope: float, intercept: float) -> Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = Dataset()
    dataset.file_meta, dataset.preamble = meta, bytes(128)
    dataset.SOPClassUID, dataset.Modality, dataset.ImageType = CTImageStorage, "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Test^One", "P1", "", "O"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20200101", "120000", "1", ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = np.rint((plane.astype(float) - intercept) / slope).astype(np.uint16).tobytes()
    return dataset


def _save(dataset: Dataset, file: Path) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    kinds = {ImplicitVRLittleEndian: (True, True), ExplicitVRBigEndian: (False, False)}
    implicit, little = kinds.get(syntax, (False, True))
    dataset.save_as(file, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
