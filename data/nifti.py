"""NIfTI volumes in and out. NIfTI's world is RAS; ours is LPS (see volume.py)."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from data.volume import Volume, spacing_of

_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def read_nifti(path: Path) -> Volume:
    """One HU volume. Raises ValueError naming the file and what is wrong with it.

    Refused: four dimensions, NaN, no affine, sheared affine, values without air (already windowed).
    """
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise ValueError(f"{path}: {type(image).__name__}, not NIfTI")
        values = np.asarray(image.dataobj)
        scale = _MM[image.header.get_xyzt_units()[0]]
        sform, sform_code = image.get_sform(coded=True)
        qform, qform_code = image.get_qform(coded=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # nibabel raises many kinds on damaged files
        raise ValueError(f"{path}: not a whole NIfTI file ({' '.join(str(error).split())})") from None
    if not sform_code and not qform_code:
        raise ValueError(f"{path}: neither sform nor qform is set, so its orientation is unknown")
    corners = np.array([[0, 0, 0, 1], [*values.shape[:3], 1]], dtype=float) if values.ndim >= 3 else np.zeros((2, 4))
    if sform_code and qform_code and np.abs(corners @ (sform - qform).T).max() * scale > 1:
        raise ValueError(f"{path}: sform and qform place its corners more than 1 mm apart; one of them is wrong")
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise ValueError(f"{path}: shape {values.shape}, want three dimensions")
    to_lps = _RAS @ np.diag([scale, scale, scale, 1.0]) @ image.affine
    affine = to_lps[:, [2, 1, 0, 3]]  # our index order is k, j, i
    return Volume(as_hu(path, values.T), checked_spacing(path, affine), affine, stem(path))


def write_nifti(hu: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Writes int16 HU (K, J, I) with its index-to-LPS affine; the same input gives the same bytes."""
    image = nib.Nifti1Image(np.ascontiguousarray(hu.T), _RAS @ affine[:, [2, 1, 0, 3]])
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    nib.save(image, path)


def as_hu(path: Path, values: np.ndarray) -> np.ndarray:
    """int16 of the same shape; ValueError where values cannot be the HU of a CT with air in it."""
    if values.size == 0:
        raise ValueError(f"{path}: holds no voxel")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: holds NaN or infinite values")
    if values.min() < -32768 or values.max() > 32767:
        raise ValueError(f"{path}: values from {values.min():g} to {values.max():g} are no HU")
    if values.min() >= 0:
        raise ValueError(f"{path}: values from {values.min():g} to {values.max():g}, none below 0 HU; already windowed?")
    return np.rint(values).astype(np.int16)


def checked_spacing(path: Path, affine: np.ndarray) -> tuple[float, float, float]:
    """Spacing in mm along k, j, i; ValueError when the axes are not perpendicular or have no length."""
    spacing = spacing_of(affine)
    if not np.isfinite(affine).all() or min(spacing) <= 0:
        raise ValueError(f"{path}: affine is singular or not finite")
    unit = affine[:3, :3] / np.array(spacing)
    if np.abs(unit.T @ unit - np.eye(3)).max() > 0.01:
        raise ValueError(f"{path}: affine is sheared (gantry tilt?); resample the volume first")
    return spacing


def stem(path: Path) -> str:
    """The file's name without its suffixes: how a lesion list names a NIfTI or MetaImage volume."""
    name = path.name
    for suffix in (".gz", ".nii", ".mha", ".mhd"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name
