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


def cut(volume: Volume, center_mm: tuple[float, float, float], shape: Sequence[int], spacing_mm: float) -> np.ndarray:
    """The int16 HU around a point: (H, W) in the axial slice nearest to it, or (D, H, W).

    volume: axial (see Volume.axial). spacing_mm: of the patch, the same along each of its axes.
    Linear interpolation, so no value leaves the range of its neighbours; in 2-D none between
    slices, which would blur thick ones. Outside the volume: AIR_HU.
    Only the region needed is touched.
    """
    centre = volume.index_of(center_mm)
    steps = spacing_mm / np.array(volume.spacing_mm)
    size = np.array([1, *shape] if len(shape) == 2 else shape)
    if len(shape) == 2:
        centre[0], steps[0] = np.clip(np.rint(centre[0]), 0, volume.hu.shape[0] - 1), 1.0
    first = centre - (size - 1) / 2 * steps
    # one voxel of margin on each side, for places that rounding moves just past the last one
    low = np.clip(np.floor(first).astype(int) - 1, 0, None)
    high = np.minimum(np.ceil(first + (size - 1) * steps).astype(int) + 2, volume.hu.shape)
    if np.any(low >= high):
        return np.full(shape, AIR_HU, np.int16)
    region = volume.hu[tuple(map(slice, low, high))].astype(np.float32)
    patch = ndimage.affine_transform(region, steps, first - low, output_shape=tuple(size), order=1, mode="grid-constant", cval=AIR_HU)
    return np.rint(patch).astype(np.int16).reshape(shape)


def lung_mask(volume: Volume) -> np.ndarray:
    """bool (K, J, I): the air-filled lung of an axial chest CT, vessels and lesions inside it included.

    Air below -400 HU that does not reach the edge of its slice, components of at least 20 ml, each
    slice closed by 10 mm so that vessels and wall-hugging lesions belong to it. Trachea and bowel
    gas of that size are not told apart. Raises ValueError when there is no such air.
    """
    from skimage.measure import label
    from skimage.segmentation import clear_border

    air = volume.hu < -400
    for plane in air:  # the air around the patient touches the slice's edge, the lung does not
        plane[:] = clear_border(plane)
    components = label(air, connectivity=1)
    millilitres = np.bincount(components.ravel()) * np.prod(volume.spacing_mm) / 1000
    millilitres[0] = 0
    lung = (millilitres >= 20)[components]
    if not lung.any():
        raise ValueError("no lung found: no air of 20 ml inside the body (is this a chest CT in HU?)")
    distance_mm = partial(ndimage.distance_transform_edt, sampling=volume.spacing_mm[1:])
    for plane in lung:
        if plane.any() and not plane.all():
            grown = distance_mm(~plane) <= 10
            plane |= (distance_mm(grown) > 10) if not grown.all() else grown
    return lung
