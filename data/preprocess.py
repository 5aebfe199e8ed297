"""From HU to what a network sees, and exactly back; resampling; the lung mask.

HU arrays are int16. Network values are float32 in [-1, 1] over a window (low, high) in HU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy import ndimage

from data.volume import AIR_HU, Volume

Window = tuple[float, float]


def check_window(window: Window) -> Window:
    """The window itself, or ValueError when it is not (low, high) with low < high within int16."""
    low, high = window
    if not (-32768 <= low < high <= 32767):
        raise ValueError(f"window {low:g},{high:g}: want low,high in HU with low < high, such as -1000,400")
    return window


def to_unit(hu: np.ndarray, window: Window) -> np.ndarray:
    """HU of any shape to float32 in [-1, 1]; what lies outside the window is clipped to its ends."""
    low, high = window
    return (np.clip(hu, low, high).astype(np.float32) - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)


def from_unit(x: np.ndarray, window: Window) -> np.ndarray:
    """float32 in [-1, 1] to int16 HU, rounded: the exact inverse of to_unit for whole HU in the window."""
    low, high = window
    hu = (np.clip(x, -1, 1).astype(np.float64) + 1) * ((high - low) / 2) + low
    return np.rint(hu).astype(np.int16)


def cut(volume: Volume, center_mm: tuple[float, float, float], shape: Sequence[int], spacing_mm: float | Sequence[float]) -> np.ndarray:
    """The int16 HU around a point: (H, W) in the axial slice nearest to it, or (D, H, W).

    volume: axial (see Volume.axial). spacing_mm: of the patch, the same along each of its axes; of a cube also one for each.
    Linear interpolation, so no value leaves the range of its neighbours; in 2-D none between
    slices, which would blur thick ones. Outside the volume: AIR_HU.
    Only the region needed is touched.
    """
    first, steps, size = _places(volume, center_mm, shape, spacing_mm)
    # one voxel of margin on each side, for places that rounding moves just past the last one
    low = np.clip(np.floor(first).astype(int) - 1, 0, None)
    high = np.minimum(np.ceil(first + (size - 1) * steps).astype(int) + 2, volume.hu.shape)
    if np.any(low >= high):
        return np.full(shape, AIR_HU, np.int16)
    region = volume.hu[tuple(map(slice, low, high))].astype(np.float32)
    patch = ndimage.affine_transform(region, steps, first - low, output_shape=tuple(size), order=1, mode="grid-constant", cval=AIR_HU)
    return np.rint(patch).astype(np.int16).reshape(shape)


def outside_share(volume: Volume, center_mm: tuple[float, float, float], shape: Sequence[int], spacing_mm: float) -> float:
    """The share of a patch's voxels, 0 to 1, whose centre lies outside the volume, more than half a voxel off its last ones."""
    first, steps, size = _places(volume, center_mm, shape, spacing_mm)
    inside = 1.0
    for start, step, count, voxels in zip(first, steps, size, volume.hu.shape, strict=True):
        places = start + step * np.arange(count)
        inside *= np.mean((places >= -0.5 - 1e-6) & (places <= voxels - 0.5 + 1e-6))
    return float(1 - inside)


def _places(
    volume: Volume, center_mm: tuple[float, float, float], shape: Sequence[int], spacing_mm: float | Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a patch lies in its volume, along k, j, i: its first voxel's index, the step from voxel to voxel, and their number."""
    centre = volume.index_of(center_mm)
    steps = np.asarray(spacing_mm) / np.array(volume.spacing_mm)
    size = np.array([1, *shape] if len(shape) == 2 else shape)
    if len(shape) == 2:
        centre[0], steps[0] = np.clip(np.rint(centre[0]), 0, volume.hu.shape[0] - 1), 1.0
    return centre - (size - 1) / 2 * steps, steps, size


_GAS_HU = -965
"""Gas alone is -1000 HU; half the voxels of a lung are above this even in severe emphysema."""
_BRONCHUS_HU, _BRONCHUS_SQUARE_CM = -920, 8.0
"""What is smaller in a slice than this, and darker, is a bronchus or the trachea (3 to 4 square cm)."""

_FOAM_HU = -880
"""The foam of a patient table is about -900 HU."""


def lung_mask(volume: Volume) -> np.ndarray:
    """bool (K, J, I): the lungs of an axial chest CT, with vessels and lesions in them, without trachea, large bronchi and bowel gas.

    Air below -400 HU inside the body, slice by slice (see _lung_air), in pieces of at least 20 ml and a tenth of the largest; each
    slice closed by 10 mm, so that vessels and wall-hugging lesions belong to it; holes that are closed on all sides, such as
    nodules, filled. A lesion wider than that at the wall or the hilum stays outside. Voxels of 4 mm are fine enough (see
    Volume.thinned). Raises ValueError when there is no such air.
    """
    hu, spacing_mm = volume.hu, np.array(volume.spacing_mm)
    from skimage.measure import label

    square_cm = float(np.prod(spacing_mm[1:]) / 100)
    slices = [_lung_air(plane, square_cm) for plane in hu]
    air = np.stack([sure for sure, _ in slices])
    for order in (range(1, len(air)), range(len(air) - 2, -1, -1)):  # from slice to slice, towards the head and back
        for k in order:
            near = air[k - 1] if order.step > 0 else air[k + 1]
            for piece in slices[k][1]:
                if near[piece].mean() >= 0.5:
                    air[k] |= piece
    components = label(air, connectivity=1)
    millilitres = np.bincount(components.ravel()) * np.prod(spacing_mm) / 1000
    millilitres[0] = 0
    lung = (millilitres >= max(20, 0.1 * millilitres.max()))[components]
    if not lung.any():
        raise ValueError("no lung found: no air of 20 ml inside the body (is this a chest CT in HU?)")
    distance_mm = partial(ndimage.distance_transform_edt, sampling=spacing_mm[1:])
    for plane in lung:
        if plane.any() and not plane.all():
            grown = distance_mm(~plane) <= 10
            plane |= (distance_mm(grown) > 10) if not grown.all() else grown
    return ndimage.binary_fill_holes(lung)


def _lung_air(plane: np.ndarray, square_cm: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """bool (J, I): the air in an axial slice that is lung; and pieces that are only if the next slice's lung is there too.

    Gas without tissue in it is darker than lung: around the patient, in the bowel, and in trachea and bronchi, which are
    small too. A piece at the slice's edge is lung that the field of view cuts off when it is denser than a table's foam;
    when it is not, it may be either. square_cm: of a pixel.
    """
    from skimage.measure import label

    pieces = label(plane < -400, connectivity=1)
    count = int(pieces.max())
    if not count:
        return pieces.astype(bool), []
    medians = ndimage.median(plane, pieces, np.arange(1, count + 1))
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:] * square_cm
    is_lung = (medians > _GAS_HU) & ((areas > _BRONCHUS_SQUARE_CM) | (medians > _BRONCHUS_HU))
    edge = np.isin(np.arange(1, count + 1), np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    unsure = is_lung & edge & (medians <= _FOAM_HU)
    return np.concatenate([[False], is_lung & ~unsure])[pieces], [pieces == n + 1 for n in np.flatnonzero(unsure)]
