"""A finished segmentation: its labels, the names of their values, and where its voxels lie.

Everything else in this folder takes a Segmentation; prediction makes one of what it has in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stunet.errors import DataError
from stunet.labels.names import head_classes
from stunet.orientation import FLAT_THICKNESS, LPS_OF_RAS

if TYPE_CHECKING:
    import nibabel
    import SimpleITK


@dataclass(frozen=True)
class Segmentation:
    """Labels on the grid of a file.

    Examples:
        >>> labels = np.array([[[0, 1], [1, 2]]], np.uint8)
        >>> names = {"liver": 1, "spleen": 2}
        >>> made = Segmentation(labels, names, (5.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        >>> made.voxel_mm3
        5.0
        >>> made.to_sitk().GetSize()
        (2, 2, 1)

    Attributes:
        labels_DHW: Label values, uint8 or uint16; a 2D image is one slice.
        names: Value in `labels_DHW` by class name, without the background, which is 0.
        spacing: In mm, (D, H, W); for the one slice of a 2D image the first is nnU-Net's marker, not a thickness.
        origin: Position of the first voxel in mm, ITK's (x, y, z) in LPS; two numbers if the file is a 2D image.
        direction: ITK's direction cosines, row by row: 9 numbers, or 4.
        regions: For a model with regions, the values whose union each name is; they may overlap. Empty otherwise.
        forms: What the header of a NIfTI image states about its place; NIfTI files of this segmentation copy it.
    """

    labels_DHW: np.ndarray
    names: Mapping[str, int]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    forms: Mapping[str, Any] | None = None

    @classmethod
    def from_properties(
        cls, labels_DHW: np.ndarray, properties: Mapping[str, Any], dataset: Mapping[str, Any]
    ) -> "Segmentation":
        """Make a segmentation with the geometry that one of nnU-Net's readers returned for the image.

        Args:
            labels_DHW: In the axes of the image as the reader returned it.
            properties: The reader's: sitk_stuff, nibabel_stuff, or only `spacing` (TIFF, PNG: placed at 0); and `nifti`
                if a header was read (nifti_header.read_forms).
            dataset: dataset.json with the `labels` of the values; for regions also with regions_class_order.

        Raises:
            DataError: The values have no names, or do not fit 16 bits.
        """
        names, regions = class_names(dataset)
        if labels_DHW.dtype not in (np.uint8, np.uint16):
            top, bottom = int(labels_DHW.max(initial=0)), int(labels_DHW.min(initial=0))
            if bottom < 0:
                raise DataError(f"the segmentation has the negative value {bottom}", "renumber the labels from 0")
            if top > np.iinfo(np.uint16).max:
                raise DataError(f"the segmentation has value {top}, more than 16 bits hold", "renumber the labels")
            labels_DHW = labels_DHW.astype(np.uint8 if top <= np.iinfo(np.uint8).max else np.uint16)
        return cls(labels_DHW, names, *_place(properties), regions, properties.get("nifti"))

    @cached_property
    def value_names(self) -> dict[int, str]:
        """What a voxel of each value is.

        With regions, a value marks its region minus those inside it that do not contain the value: if a tumour of
        values 1 and 2 has a core of 2, value 1 is `tumour without core`.
        """
        if not self.regions:
            return {value: name for name, value in self.names.items()}
        return {value: self._remainder(name, value) for name, value in self.names.items()}

    def header_name(self, value: int) -> str:
        """Return what a voxel of a value is, on one line and without control characters, which no header can hold."""
        name = self.value_names[value]
        return " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())

    def values(self, name: str) -> tuple[int, ...]:
        """Return all values that belong to a class."""
        return self.regions.get(name, (self.names[name],))

    @property
    def is_2d(self) -> bool:
        """Whether the file is a 2D image, whose slice has no thickness."""
        return len(self.origin) == 2

    @property
    def voxel_mm3(self) -> float | None:
        """The volume of a voxel; None for a 2D image."""
        return None if self.is_2d else float(np.prod(self.spacing))

    @property
    def affine_ras(self) -> np.ndarray:
        """The matrix of a NIfTI file, (4, 4): from voxel (x, y, z) to mm in RAS; a 2D image lies in the plane z = 0."""
        size = len(self.origin)
        affine = np.eye(4)
        affine[:size, :size] = np.reshape(self.direction, (size, size)) * self.spacing[::-1][:size]  # columns are axes
        affine[:size, 3] = self.origin
        return np.diag([*np.diag(LPS_OF_RAS), 1.0]) @ affine

    def to_sitk(self) -> "SimpleITK.Image":
        """Return the label map as an ITK image; 2D if the file is."""
        import SimpleITK

        image = SimpleITK.GetImageFromArray(self.labels_DHW[0] if self.is_2d else self.labels_DHW)
        image.SetSpacing(self.spacing[::-1][: image.GetDimension()])
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def to_nibabel(self) -> "nibabel.Nifti1Image":
        """Return the label map as nibabel's image, with the axes (x, y, z); 2D if the file is."""
        import nibabel

        from stunet.results.nifti_labels import nibabel_image

        made = nibabel_image(self, self.labels_DHW)
        # Once more, with the affine that the header states: nibabel leaves it out of the first one.
        return nibabel.Nifti1Image(made.dataobj, made.header.get_best_affine(), made.header)

    def save(self, path: str | Path) -> None:
        """Write the label map to a file: .nii, .nii.gz, .seg.nrrd, or another image format of ITK, by its ending.

        NIfTI and .seg.nrrd hold names and colours of the classes. The file is replaced once it is complete.

        Raises:
            OSError: The file cannot be written, or the disk is full.
            UsageError: No image format has this ending, or one that refers to the slices of a DICOM series.
        """
        from stunet.results.saving import save

        save(self, Path(path))

    def _remainder(self, name: str, value: int) -> str:
        inside = {
            other: set(values) & set(self.values(name))
            for other, values in self.regions.items()
            if other != name and value not in values
        }
        # Only the outermost of the regions inside are named; those within them are left out with them.
        parts = [other for other, values in inside.items() if values and not any(values < v for v in inside.values())]
        return f"{name} without {', '.join(parts)}" if parts else name


def class_names(dataset: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """Return, from a dataset.json, the value of each class and, for regions, the values that each is made of.

    nnU-Net writes the i-th number of regions_class_order where the i-th region is found; later ones overwrite earlier.

    Raises:
        DataError: There are regions, but regions_class_order does not have one number for each.
    """
    labels = dataset["labels"]
    values = {name: tuple(np.atleast_1d(labels[name]).astype(int).tolist()) for name in head_classes(labels)}
    values = {name: value for name, value in values.items() if set(value) != {0}}
    if all(len(value) == 1 for value in values.values()):
        return {name: value[0] for name, value in values.items()}, {}
    order = dataset.get("regions_class_order") or []
    if len(order) != len(values):
        raise DataError(
            f"{len(values)} regions ({', '.join(values)}) and {len(order)} numbers in regions_class_order",
            "give dataset.json one number for each region",
        )
    return dict(zip(values, map(int, order), strict=True)), values


def _place(properties: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Return spacing (D, H, W), and origin and direction in ITK's convention."""
    spacing = tuple(map(float, properties["spacing"]))
    if itk := properties.get("sitk_stuff"):
        return spacing, tuple(map(float, itk["origin"])), tuple(map(float, itk["direction"]))
    if nibabel := properties.get("nibabel_stuff"):
        affine = np.asarray(nibabel.get("reoriented_affine", nibabel["original_affine"]), float)
        axes, origin = LPS_OF_RAS @ affine[:3, :3], LPS_OF_RAS @ affine[:3, 3]
        lengths = np.linalg.norm(axes, axis=0)  # the header's pixdim may differ
        return tuple(lengths[::-1].tolist()), tuple(origin.tolist()), tuple((axes / lengths).ravel().tolist())
    size = 2 if spacing[0] == FLAT_THICKNESS else 3  # pictures have a spacing of 1
    return spacing, (0.0,) * size, tuple(np.eye(size).ravel().tolist())
