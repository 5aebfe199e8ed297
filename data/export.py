"""Synthetic patches as files people open: 16-bit PNG, NIfTI, DICOM, and a preview grid. HU are equal in all three.

HU arrays are int16 (H, W) or (D, H, W).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.dicom_writing import Subject, write_series
from data.nifti import write_nifti
from data.patches import PatchFolder
from data.preprocess import Window, to_unit

PNG_OFFSET = 2048
"""A 16-bit PNG's gray level is HU + PNG_OFFSET."""

FORMATS = ("png", "nifti", "dicom")


def write_png16(hu: np.ndarray, file: Path) -> None:
    """One 2-D patch as 16-bit gray PNG: level = HU + PNG_OFFSET. Raises ValueError for 3-D or HU that do not fit."""
    from PIL import Image

    if hu.ndim != 2:
        raise ValueError(f"a patch of {hu.ndim} dimensions is no PNG; use nifti or dicom")
    if hu.min() < -PNG_OFFSET:
        raise ValueError(f"{hu.min()} HU lies below the {-PNG_OFFSET} HU that a PNG can hold here; use nifti or dicom")
    Image.fromarray((hu.astype(np.int32) + PNG_OFFSET).astype(np.uint16)).save(file, format="PNG")


def write_patch_nifti(hu: np.ndarray, spacing_mm: tuple[float, ...], file: Path) -> None:
    """One patch as NIfTI, a 2-D one as a single slice; its first voxel lies at the origin."""
    volume, affine = _as_volume(hu, spacing_mm)
    write_nifti(volume, affine, file)


def write_patch_dicom(hu: np.ndarray, spacing_mm: tuple[float, ...], subject: Subject, folder: Path) -> None:
    """A 2-D patch as folder.dcm, a single CT image; a 3-D one as a series in the folder, from feet to head."""
    volume, affine = _as_volume(hu, spacing_mm)
    if hu.ndim == 2:
        files = [folder.with_name(f"{folder.name}.dcm")]
    else:
        folder.mkdir()
        files = [folder / f"{k + 1:04d}.dcm" for k in range(len(volume))]
    write_series(volume, affine, subject, files, single_image=hu.ndim == 2)


def write_preview(hu: np.ndarray, window: Window, file: Path, columns: int = 8, zoom: int = 2) -> None:
    """A grid of (N, *S) patches as 8-bit PNG through the window; of 3-D patches the middle slice."""
    from PIL import Image

    planes = hu if hu.ndim == 3 else hu[:, hu.shape[1] // 2]
    gray = np.rint((to_unit(planes, window) + 1) * 127.5).astype(np.uint8)
    columns = min(columns, len(gray))
    blank = -len(gray) % columns
    gray = np.pad(gray, [(0, blank), (0, 1), (0, 1)])
    rows, (height, width) = len(gray) // columns, gray.shape[1:]
    grid = gray.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    Image.fromarray(grid.repeat(zoom, 0).repeat(zoom, 1)).save(file, format="PNG")


def write_folder_preview(path: Path, count: int = 64) -> None:
    """preview.png in a patch folder: lesion patches spread evenly over it, class by class."""
    folder = PatchFolder.open(path)
    lesions = np.concatenate([np.empty(0, np.int64), *(folder.select(classes=[label]) for label in sorted(folder.lesion_classes))])
    spread = np.linspace(0, len(lesions) - 1, min(count, len(lesions))).astype(int)
    if len(spread):
        write_preview(folder.hu(lesions[spread]), folder.window, path / "preview.png")


def _as_volume(hu: np.ndarray, spacing_mm: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(K, J, I) and its index-to-LPS affine; a 2-D patch is one slice, given 1 mm."""
    k, j, i = (1.0, *spacing_mm) if hu.ndim == 2 else spacing_mm
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = k, j, i, 1.0
    return (hu[None] if hu.ndim == 2 else hu), affine
