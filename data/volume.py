"""The two things a scan gives us: a volume of HU and the lesions in it.

Coordinates are DICOM's patient coordinates, LPS, in millimetres: x grows to the patient's
left, y to the back, z to the head (DICOM PS3.3, C.7.6.2.1.1). Arrays are indexed [k, j, i] =
[slice, row, column].
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np

from data.acquisition import Acquisition
from data.sources import Unreadable

AIR_HU = -1024
"""What a voxel without data holds: the bottom of the usual 12-bit CT scale."""

PADDING_HU = -1500
"""Nothing a scanner measures lies below this: what does is padding, declared or not, and becomes AIR_HU."""

MOST_MM = 1e5
"""Farther than any voxel lies from a scanner's own origin."""


@dataclass(frozen=True)
class Volume:
    """A CT volume.

    hu: int16 (K, J, I), Hounsfield units.
    affine: float64 (4, 4); affine @ (k, j, i, 1) is the voxel centre's (x, y, z, 1) in LPS mm.
    spacing_mm: distance of neighbouring voxel centres along k, j, i.
    series_uid: names the series in a lesion list; never written to an output as it is.
    image_uids: the SOPInstanceUID of each slice along k, empty where the format has none; never written either.
    acquisition: what the file tells of the scanner. notes: what was left out on reading, without identifiers.
    """

    hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    series_uid: str
    image_uids: tuple[str, ...] = ()
    acquisition: Acquisition | None = None
    notes: tuple[str, ...] = ()

    def index_of(self, point_mm: tuple[float, float, float]) -> np.ndarray:
        """The fractional voxel index (k, j, i), float64 (3,), of an LPS point in mm."""
        return (np.linalg.inv(self.affine) @ np.array([*point_mm, 1.0]))[:3]

    def point_at(self, index: np.ndarray) -> tuple[float, float, float]:
        """The LPS point in mm of a voxel index (k, j, i)."""
        x, y, z = (self.affine @ np.array([*index, 1.0]))[:3]
        return float(x), float(y), float(z)

    def contains(self, index: np.ndarray) -> bool:
        """Whether a fractional index lies inside the volume, half a voxel at the border included."""
        return bool(np.all(index >= -0.5) and np.all(index <= np.array(self.hu.shape) - 0.5))

    def thinned(self, most_mm: float) -> Volume:
        """Every n-th voxel along each axis, no more than most_mm apart where voxels are finer than that."""
        every = [max(1, int(most_mm / mm + 1e-6)) for mm in self.spacing_mm]
        first = [(n - 1) // 2 for n in every]
        affine = self.affine.copy()
        affine[:3, :3] *= every
        affine[:3, 3] = self.point_at(np.array(first))
        hu = self.hu[first[0] :: every[0], first[1] :: every[1], first[2] :: every[2]]
        return Volume(hu, spacing_of(affine), affine, self.series_uid, (), self.acquisition, self.notes)

    def axial(self) -> Volume:
        """The same voxels with axes turned so that k grows to the head, j to the back, i to the left.

        Only permutes and flips, so no HU changes: a sagittally stored series becomes axial,
        and an oblique one is turned to the nearest axes. Slices may be turned too, so image_uids are left out.
        """
        affine = self.affine @ nib.orientations.inv_ornt_aff(self._turn(), self.hu.shape)
        hu = np.ascontiguousarray(self.axial_view(self.hu))
        return Volume(hu, spacing_of(affine), affine, self.series_uid, (), self.acquisition, self.notes)

    def axial_view(self, values: np.ndarray) -> np.ndarray:
        """An array of hu's shape with its axes turned as axial() turns hu's. A view: what is written into it is written into the array."""
        return nib.orientations.apply_orientation(values, self._turn())

    def _turn(self) -> np.ndarray:
        """The axes of axial(), as nibabel names such a turn."""
        to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine
        now = nib.orientations.io_orientation(to_ras)
        want = nib.orientations.axcodes2ornt(("S", "P", "L"))
        return nib.orientations.ornt_transform(now, want)


@dataclass(frozen=True)
class Lesion:
    """A lesion: its centre in LPS mm, its diameter in mm where it is known, and its class."""

    center_mm: tuple[float, float, float]
    diameter_mm: float | None
    label: str

    @property
    def radius_mm(self) -> float:
        """Half its diameter; 0 where that is unknown."""
        return (self.diameter_mm or 0) / 2


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel spacing in mm along k, j, i of an index-to-mm affine (4, 4)."""
    k, j, i = np.linalg.norm(affine[:3, :3], axis=0)
    return float(k), float(j), float(i)


def checked_spacing(source: object, affine: np.ndarray) -> tuple[float, float, float]:
    """Spacing in mm along k, j, i; Unreadable when the axes are not perpendicular or have no length."""
    spacing = spacing_of(affine)
    if not np.abs(affine).max() < MOST_MM or min(spacing) <= 1e-6 or max(spacing) > 1000:
        raise Unreadable(source, "its affine is singular or not finite, or its spacing makes no sense")
    unit = affine[:3, :3] / np.array(spacing)
    if np.abs(unit.T @ unit - np.eye(3)).max() > 0.01:
        raise Unreadable(source, "its affine is sheared or singular (gantry tilt?); resample the volume first")
    return spacing
