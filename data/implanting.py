"""A lesion drawn at the model's spacing, set into a scan at the scan's own.

What the model changed, cube with lesion less cube without, is carried to the scan's voxels and added to their HU: every voxel outside
the lesion keeps its value bit by bit. Arrays are [k, j, i], axial (see volume.py).

Noise. A cube that was interpolated from a scan holds some of its noise, which is subtracted with the cube; some is left, and the lesion
inherits it. Left as well are traces of vessels finer than the cube, or than a thick slice, which would shine through: so what is left is
cut off at 3 standard deviations of the noise around, and scaled down to it where it is more. Then noise is added, in the lesion only,
until it has the standard deviation of the lung around it, or of the soft tissue in the same slices where that is less, since lung has
texture of its own. Its spectrum is that of what was subtracted, and so, with what was left, the scan's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.ndimage import binary_erosion, gaussian_filter

from data.placing import TISSUE_HU, Placed, Scan
from data.preprocess import cut
from data.volume import Volume

Draw = Callable[[np.ndarray, Sequence[Placed]], Iterator[tuple[np.ndarray, np.ndarray]]]
"""int16 HU (N, *S), cubes without a lesion, and what is wanted in them -> for each its HU with the lesion, and bool, what of it is lesion.

Outside what it changed, a cube's HU are returned exactly as they were."""

_AT_ONCE = 32
_NOISE = 102
"""Stream of a lesion's random numbers."""
_SMOOTH, _MOST, _LEAST_VOXELS = 3.0, 3.0, 12
"""Noise is what is left without a Gaussian mean over so many pixels; what exceeds so many standard deviations is none; so few voxels say nothing."""

_PLAIN_HU, _SOFT_HU = 100, (0, 100)
"""Smoothed, lung differs no more from its median, and the edge of a vessel does; soft tissue lies between these."""


@dataclass(frozen=True)
class Drawn:
    """What a model drew. cube: int16 HU (*S), around the place; hu: float32, the same with the lesion. mask: bool, what of it is lesion."""

    placed: Placed
    cube: np.ndarray
    hu: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Implanted:
    """A lesion in the scan.

    box: where in Scan.axial; mask: bool, the box's voxels that are lesion: at least half as much of each as of the fullest.
    center_mm: LPS, the middle of the lesion's mass; diameter_mm: of the ball of its volume. support_mm: how far from
    that the farthest changed voxel lies. mean_hu: in the mask, before and after. noise_hu: standard deviation (see noise_sd)
    that was to be met, in the mask before, and in the mask after, without the lesion's own shape; NaN where it cannot be measured.
    """

    placed: Placed
    box: tuple[slice, slice, slice]
    mask: np.ndarray
    center_mm: tuple[float, float, float]
    diameter_mm: float
    support_mm: float
    mean_hu: tuple[float, float]
    noise_hu: tuple[float, float, float]

    @property
    def slices(self) -> int:
        """How many show it."""
        return int(self.mask.any(axis=(1, 2)).sum())


def drawn(scan: Scan, placed: Sequence[Placed], shape: Sequence[int], spacing_mm: Sequence[float], draw: Draw) -> Iterator[Drawn]:
    """Each lesion as the model draws it. shape, spacing_mm: of the model's cubes.

    Raises ValueError where the model drew no lesion, or one that reaches the cube's border.
    """
    rest = iter(placed)
    while some := list(islice(rest, _AT_ONCE)):
        cubes = np.stack([cut(scan.axial, one.center_mm, shape, spacing_mm) for one in some])
        for one, cube, (hu, mask) in zip(some, cubes, draw(cubes, some), strict=True):
            changed = hu != cube
            told = f"seed {one.seed}, lesion {one.number}, {one.diameter_mm:.1f} mm"
            if not (changed & mask).any():
                raise ValueError(f"{told}: the model drew no lesion; ask for a larger --diameter, or train it longer")
            if np.count_nonzero(changed[1:-1, 1:-1, 1:-1]) < np.count_nonzero(changed):
                raise ValueError(f"{told}: the model's lesion reaches the border of its cube; ask for a smaller --diameter")
            yield Drawn(one, cube, hu, mask)


def implant(hu: np.ndarray, scan: Scan, lesion: Drawn, spacing_mm: Sequence[float]) -> Implanted:
    """Adds a lesion to hu, int16 of Scan.axial's shape, in place. spacing_mm: of the model's cubes.

    Values are rounded, and none falls below the scan's lowest. Voxels to which nothing is carried keep their HU.
    """
    placed, cube, mask = lesion.placed, lesion.cube, lesion.mask
    eroded = binary_erosion(mask, iterations=2)
    core = eroded if eroded.any() else mask  # without the lesion's soft edge
    own_noise = np.where(core, _rough(lesion.hu, core, (_SMOOTH,) * 3), 0)
    values = np.stack([lesion.hu - cube, mask, cube, np.ones(cube.shape), own_noise])
    box, (change, share, background, known, own_noise) = carried(values, spacing_mm, placed.index, scan.axial, scan.thickness_mm)
    before = scan.axial.hu[box]
    inside, touched, lung = share >= share.max() / 2, (change != 0) | (share > 0), _plain_lung(before)
    around = np.fmin(noise_sd(before, lung & ~touched), _soft_noise(scan.axial, round(placed.index[0])))
    left = before - background
    kept = left if np.isnan(around) else np.clip(left, -_MOST * around, _MOST * around)
    kept = kept * min(1, around / max(noise_sd(kept, inside), 1e-9)) if around > 0 else kept
    rng = np.random.default_rng([placed.stream, _NOISE])
    noise = matching_noise(rng, background, lung & (known > 0.999), around, noise_sd(kept + own_noise, inside))
    composite = before + change + share * (kept - left + noise)
    after = np.clip(np.rint(composite), scan.axial.hu.min(), 32767).astype(np.int16)
    hu[box] += np.where(touched, after - before, np.int16(0))  # added, for another lesion's outermost change may lie here too
    corner, spacing = np.array([one.start for one in box]), np.array(scan.axial.spacing_mm)
    middle = corner + [float(np.average(places, weights=share)) for places in np.indices(share.shape)]
    changed = (np.argwhere(after != before) + corner - middle) * spacing
    return Implanted(
        placed, box, inside, scan.axial.point_at(middle), float((6 / np.pi * share.sum() * spacing.prod()) ** (1 / 3)),
        float(np.linalg.norm(changed, axis=1).max(initial=0)), (float(before[inside].mean()), float(after[inside].mean())),
        (around, noise_sd(before, inside), noise_sd(kept + own_noise + noise, inside)),
    )  # fmt: skip


def carried(
    values: np.ndarray, spacing_mm: Sequence[float], index: Sequence[float], volume: Volume, thickness_mm: float
) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """Cubes (C, *S) around an index of the volume, 0 beyond them, at the volume's voxels: a box of it, and float64 (C, *box).

    The mean, over what each voxel shows (its pixel, and its slice's thickness), of the trilinear interpolation between the cubes' values,
    in closed form. So where slices neither overlap nor leave gaps, the sum over the voxels' volumes is the cubes' own.
    """
    extents = (thickness_mm, *volume.spacing_mm[1:])
    box, weights = [], []
    for side, step, at, mm, extent, voxels in zip(
        values.shape[1:], spacing_mm, index, volume.spacing_mm, extents, volume.hu.shape, strict=True
    ):
        reach = ((side + 1) / 2 * step + extent / 2) / mm
        low, high = max(0, int(np.floor(at - reach))), min(voxels, int(np.ceil(at + reach)) + 1)
        middles = (np.arange(low, high) - at) * mm
        nodes = (np.arange(side) - (side - 1) / 2) * step
        lower, upper = (_ramp((middles[:, None] + half - nodes) / step) for half in (-extent / 2, extent / 2))
        weights.append((upper - lower) * (step / extent))
        box.append(slice(low, high))
    k, j, i = box
    return (k, j, i), np.einsum("kd,jh,iw,cdhw->ckji", *weights, values.astype(np.float64), optimize=True)


def _ramp(x: np.ndarray) -> np.ndarray:
    """The integral up to x of the hat that is 1 at 0 and falls to 0 at -1 and 1."""
    x = np.clip(x, -1, 1)
    return 0.5 + x - np.sign(x) * x**2 / 2


def _plain_lung(hu: np.ndarray) -> np.ndarray:
    """bool of hu's shape: air-like tissue without vessels and their blurred edges, which no noise should be taken for."""
    smooth = gaussian_filter(hu.astype(np.float64), (0, 2, 2))
    air = smooth < TISSUE_HU
    return air & (np.abs(smooth - np.median(smooth[air])) < _PLAIN_HU) if air.any() else air


def _soft_noise(volume: Volume, k: int) -> float:
    """The noise of soft tissue, which has hardly any texture of its own, in three slices; NaN where there is none."""
    hu = volume.hu[max(k - 1, 0) : k + 2]
    smooth = gaussian_filter(hu.astype(np.float64), (0, 2, 2))
    return noise_sd(hu, (smooth > _SOFT_HU[0]) & (smooth < _SOFT_HU[1]))


def noise_sd(hu: np.ndarray, where: np.ndarray) -> float:
    """Standard deviation of the noise in bool `where`, in HU; NaN where there is too little of it.

    Of what the mean over neighbours in the axial plane, those in `where` only, leaves; by the median of its size, so that vessels weigh
    little. `where` loses its own edge pixels, twice or once, where enough is left.
    """
    plane = np.ones((1, 3, 3), bool)
    for times in (2, 1, 0):
        inner = binary_erosion(where, plane, times, border_value=1) if times else where
        if np.count_nonzero(inner) >= _LEAST_VOXELS:
            return float(np.median(np.abs(_rough(hu, inner, (0, _SMOOTH, _SMOOTH))[inner])) / 0.6745)
    return float("nan")


def matching_noise(rng: np.random.Generator, hu: np.ndarray, where: np.ndarray, wanted: float, there: float) -> np.ndarray:
    """float64 of hu's shape: noise that raises the standard deviation from `there` to `wanted`; 0 where it is there, or where one is NaN.

    Of the spectrum of hu's own noise in `where`, slice by slice: white noise convolved with it (Galerne et al. 2011, "Random phase
    textures"), its vessels cut off at 3 standard deviations. Slices are independent of one another.
    """
    if not there < wanted:
        return np.zeros(hu.shape)
    rough = np.where(where, _rough(hu, where, (0, _SMOOTH, _SMOOTH)), 0)
    limit = _MOST * np.median(np.abs(rough[where])) / 0.6745
    spectrum = np.fft.rfft2(np.clip(rough, -limit, limit))
    noise = np.fft.irfft2(spectrum * np.fft.rfft2(rng.standard_normal(hu.shape)), s=hu.shape[1:])
    everywhere = _rough(noise, np.ones(hu.shape), (0, _SMOOTH, _SMOOTH))  # as it is measured
    size = np.sqrt(np.mean(everywhere**2, axis=(1, 2), keepdims=True))
    return noise * np.divide(np.sqrt(wanted**2 - there**2), size, out=np.zeros_like(size), where=size > 0)


def _rough(hu: np.ndarray, where: np.ndarray, pixels: Sequence[float]) -> np.ndarray:
    """What a Gaussian mean over the neighbours in `where` leaves."""
    weight = gaussian_filter(where.astype(np.float64), pixels)
    mean = gaussian_filter(np.where(where, hu, 0).astype(np.float64), pixels)
    return hu - np.divide(mean, weight, out=np.zeros_like(mean), where=weight > 1e-9)
