"""Painting tissue into a grid of voxels, for the phantom: partial volume, tubes, blobs, texture.

Tissue is float32 HU. A structure that fills a fraction of a voxel moves it by that fraction towards its
own HU, as partial volume does. A `distance` is in mm, negative inside, exact near the surface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

AIR_HU, FAT_HU, SOFT_HU, BLOOD_HU, MARROW_HU, CORTEX_HU = -1000, -95, 50, 42, 190, 620


@dataclass(frozen=True)
class Grid:
    """The voxels: shape (K, J, I) and spacing in mm, centred on LPS (0, 0, 0)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    def axes(self) -> list[np.ndarray]:
        """The voxel centres' z (K,), y (J,) and x (I,) in mm, float32."""
        return [((np.arange(n) - (n - 1) / 2) * step).astype(np.float32) for n, step in zip(self.shape, self.spacing_mm, strict=True)]

    def index(self, points_mm: np.ndarray) -> np.ndarray:
        """Fractional (k, j, i) of points x, y, z in mm, both (..., 3)."""
        return points_mm[..., ::-1] / self.spacing_mm + (np.array(self.shape) - 1) / 2

    def affine(self) -> np.ndarray:
        """(k, j, i, 1) to LPS mm (x, y, z, 1), float64 (4, 4)."""
        affine = np.zeros((4, 4))
        affine[[2, 1, 0], [0, 1, 2]] = self.spacing_mm
        affine[[2, 1, 0], 3] = -(np.array(self.shape) - 1) / 2 * self.spacing_mm
        affine[3, 3] = 1
        return affine


def paint(hu: np.ndarray, value: np.ndarray | float, fraction: np.ndarray) -> None:
    """Mixes `value` HU into hu, in place, where a structure fills `fraction` of a voxel."""
    hu += fraction * (value - hu)


def within(distance: np.ndarray, edge_mm: float) -> np.ndarray:
    """The fraction in [0, 1] that lies inside a surface, for voxels edge_mm wide."""
    return np.clip(0.5 - distance / edge_mm, 0, 1)


def oval(x: np.ndarray, y: np.ndarray, a: float, b: float) -> np.ndarray:
    """Distance to an oval of half-axes a and b, somewhat squarer than an ellipse."""
    u, v = np.abs(x / a), np.abs(y / b)
    return (0.5 * (u * u * (1 + u) + v * v * (1 + v)) - 1) * (min(a, b) / 2.5)


def texture(rng: np.random.Generator, grid: Grid, length_mm: float) -> np.ndarray:
    """A smooth random field (K, J, I), float32, mean 0 and variance 1, of that grain in mm.

    White noise on a grid of nodes length_mm apart, carried to the voxels by a Gaussian along
    each axis; weights are scaled to a squared sum of 1, so the variance is 1 at every voxel.
    """
    weights = []
    for axis in grid.axes():
        nodes = np.arange(axis[0] - 2 * length_mm, axis[-1] + 2 * length_mm, length_mm)
        w = np.exp(-0.5 * ((axis[:, None] - nodes) / (0.6 * length_mm)) ** 2)
        weights.append((w / np.linalg.norm(w, axis=1, keepdims=True)).astype(np.float32))
    wz, wy, wx = weights
    white = rng.standard_normal([w.shape[1] for w in weights], dtype=np.float32)
    return wy @ np.tensordot(wz, white, 1) @ wx.T


def tube(points_mm: list | np.ndarray, radius_mm: float) -> np.ndarray:
    """Tubes (N - 1, 8) of one radius through points (N, 3)."""
    points = np.asarray(points_mm, float)
    return np.column_stack([points[:-1], points[1:], np.full((len(points) - 1, 2), radius_mm)])


def widened(tubes: np.ndarray, by_mm: float) -> np.ndarray:
    """The tubes with both radii larger by by_mm."""
    return tubes + np.array([0, 0, 0, 0, 0, 0, by_mm, by_mm])


def fill(tubes: np.ndarray, grid: Grid, samples: int = 16) -> np.ndarray:
    """The fraction of every voxel inside tubes (S, 8), float32 (K, J, I).

    Points that share a tube's volume fill it evenly, `samples` of them a voxel, and a voxel
    sums the volume of its points: thin oblique vessels and thick slices need no special case.
    Even filling is by the R2 sequence (Roberts 2018).
    """
    start, path = tubes[:, :3], tubes[:, 3:6] - tubes[:, :3]
    near, far = tubes[:, 6], tubes[:, 7]
    length = np.linalg.norm(path, axis=1)
    voxel_mm3 = np.prod(grid.spacing_mm)
    volume_mm3 = np.pi * (near**2 + near * far + far**2) / 3 * length
    count = np.ceil(np.maximum(volume_mm3 * samples / voxel_mm3, 4 * length)).astype(int) + 1
    s = np.repeat(np.arange(len(count)), count)
    n = np.arange(len(s))
    t = (n - (np.cumsum(count) - count)[s] + 0.5) / count[s]
    radius = near[s] * (1 - t) + far[s] * t
    out = radius * np.sqrt(n * 0.7548776662466927 % 1)
    angle = 2 * np.pi * (n * 0.5698402909980532 % 1)
    u = np.cross(path, np.eye(3)[np.abs(path).argmin(axis=1)])
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(path, u) / length[:, None]
    points = start[s] + t[:, None] * path[s]
    points += (out * np.cos(angle))[:, None] * u[s] + (out * np.sin(angle))[:, None] * v[s]

    index = np.rint(grid.index(points)).astype(int)
    kept = np.all((index >= 0) & (index < grid.shape), axis=1)
    share = np.pi * radius**2 * (length / count)[s] / voxel_mm3
    flat = np.ravel_multi_index(tuple(index[kept].T), grid.shape)
    total = np.bincount(flat, share[kept], minlength=int(np.prod(grid.shape)))
    return np.minimum(total, 1).astype(np.float32).reshape(grid.shape)


def directions(rng: np.random.Generator, count: int) -> np.ndarray:
    """Unit vectors (count, 3), uniform on the sphere."""
    v = rng.standard_normal((count, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def paint_local(
    hu: np.ndarray,
    grid: Grid,
    center_mm: ArrayLike,
    reach_mm: float,
    value: float,
    opacity: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Paints what lies within reach_mm of a centre, averaged over samples about 0.7 mm apart.

    opacity: offsets from the centre, x, y, z in mm (..., 3), to fractions (...) in [0, 1].
    """
    middle = grid.index(np.asarray(center_mm))
    reach = reach_mm / np.array(grid.spacing_mm)
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.minimum(np.ceil(middle + reach) + 1, grid.shape).astype(int)
    offsets, parts = [], []
    for axis, spacing in enumerate(grid.spacing_mm):
        fine = max(1, round(spacing / 0.7))
        n = (np.arange((high[axis] - low[axis]) * fine) + 0.5) / fine - 0.5 + low[axis]
        offsets.append((n - middle[axis]) * spacing)
        parts += [high[axis] - low[axis], fine]
    z, y, x = np.meshgrid(*offsets, indexing="ij")
    fraction = opacity(np.stack([x, y, z], axis=-1)).reshape(parts).mean(axis=(1, 3, 5))
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    paint(hu[box], value, fraction.astype(np.float32))


def blob(rng: np.random.Generator, radius_mm: float, rough: float, edge_mm: float) -> Callable[[np.ndarray], np.ndarray]:
    """The opacity of a lobulated ball whose mean radius is radius_mm, half way down its edge.

    The outline is a sum of Legendre polynomials of degree 2 to 5 about random axes: spherical
    harmonics, whose mean over all directions is 0, so lobes leave the mean radius as it is.
    """
    poles = directions(rng, 6)
    coefficients = np.zeros((6, 6))
    coefficients[[0, 1, 2, 3, 4, 5], [2, 2, 3, 3, 4, 5]] = rough * rng.uniform(0.4, 1, 6)

    def opacity(offset: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm(offset, axis=-1)
        way = offset / np.maximum(distance, 1e-6)[..., None]
        lobes = np.zeros_like(distance)
        for pole, coefficient in zip(poles, coefficients, strict=True):
            lobes += np.polynomial.legendre.legval(way @ pole, coefficient)
        return within(distance - radius_mm * np.clip(1 + lobes, 0.6, 1.5), edge_mm)

    return opacity
