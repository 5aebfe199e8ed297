"""The phantom's lesions: where they find room in the lungs, and how each class looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from data.phantom_painting import BLOOD_HU, Grid, blob, directions, paint_local
from data.volume import Lesion

CLASSES = ("solid", "ground_glass", "cystic")


DIAMETER_MM = (6.0, 25.0)


@dataclass
class Room:
    """Where the lungs are free: points (N, 3) in LPS mm, and from each the distance in mm to
    the nearest pleura, great vessel, hilum or lesion."""

    points_mm: np.ndarray
    free_mm: np.ndarray

    @classmethod
    def of(cls, lung: np.ndarray, hilum_z_mm: float, grid: Grid) -> Room:
        """Judged on blocks of about 4 mm, each no more lung than its least voxel."""
        step = max(1, round(4 / grid.spacing_mm[1]))
        m = grid.shape[1] // step
        blocks = lung[:, : m * step, : m * step].reshape(-1, m, step, m, step).min(axis=(2, 4))
        z, y, x = grid.axes()
        y, x = (axis[: m * step].reshape(m, step).mean(axis=1) for axis in (y, x))
        spacing = np.multiply(grid.spacing_mm, (1, step, step))
        depth = distance_transform_edt(np.pad(blocks > 0.9, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
        k, j, i = np.nonzero(depth)
        points = np.stack([x[i], y[j], z[k]], axis=-1).astype(float)
        hila = np.array([[38, 6, hilum_z_mm], [-38, 6, hilum_z_mm]])
        to_hilum = np.linalg.norm(points[:, None] - hila, axis=2).min(axis=1) - 22
        return cls(points, np.minimum(depth[k, j, i], to_hilum))

    def take(self, center_mm: np.ndarray, radius_mm: float) -> None:
        """A ball is free no more."""
        gap = np.linalg.norm(self.points_mm - center_mm, axis=1) - radius_mm
        self.free_mm = np.minimum(self.free_mm, gap)

    def free_at(self, point_mm: np.ndarray) -> float:
        """A lower bound: the free distance at the nearest point, less the way to it."""
        way = np.linalg.norm(self.points_mm - point_mm, axis=1)
        return float(self.free_mm[way.argmin()] - way.min())


def place_lesions(rng: np.random.Generator, room: Room, count: int) -> list[Lesion]:
    """Lesions inside the lungs, 5 mm and more apart, the largest first; a third lie at an edge.

    Raises ValueError if they do not fit.
    """
    labels = rng.permutation(np.resize(CLASSES, count))
    low, high = np.log(DIAMETER_MM)
    diameters = np.sort(np.exp(rng.uniform(low, high, count)))[::-1]
    found: list[Lesion] = []
    for label, diameter in zip(labels, diameters, strict=True):
        radius = diameter / 2
        fits = room.free_mm > radius + 2
        at_edge = fits & (room.free_mm < radius + 6)
        if rng.random() < 1 / 3 and at_edge.any():
            fits = at_edge
        if not fits.any():
            raise ValueError(f"{count} lesions asked for, but these lungs have room for {len(found)}; ask for fewer")
        center = room.points_mm[rng.choice(np.flatnonzero(fits))] + rng.uniform(-1, 1, 3)
        room.take(center, radius + 3)
        found.append(Lesion(tuple(center.tolist()), float(diameter), str(label)))
    return found


def spicules(rng: np.random.Generator, lesion: Lesion) -> np.ndarray:
    """Thin strands that leave a nodule in all directions; half the nodules have them."""
    count = int(rng.integers(12, 24)) if rng.random() < 0.5 else 0
    radius, way = lesion.radius_mm, directions(rng, count)
    start = lesion.center_mm + 0.7 * radius * way
    end = lesion.center_mm + (radius + rng.uniform(3, 8, (count, 1))) * way
    return np.column_stack([start, end, rng.uniform(1.0, 1.6, count), np.full(count, 0.3)])


def paint_solid(rng: np.random.Generator, hu: np.ndarray, grid: Grid, lesion: Lesion, room: Room) -> None:
    """A lobulated soft-tissue nodule; one in six has a calcified grain."""
    radius = lesion.radius_mm
    shape = blob(rng, radius, rng.uniform(0.06, 0.2), 0.8)
    paint_local(hu, grid, lesion.center_mm, 1.6 * radius + 2, rng.uniform(20, 60), shape)
    if rng.random() < 1 / 6:
        grain = lesion.center_mm + 0.3 * radius * directions(rng, 1)[0]
        paint_local(hu, grid, grain, radius, 400, blob(rng, 0.3 * radius, 0.05, 0.8))


def paint_ground_glass(rng: np.random.Generator, hu: np.ndarray, grid: Grid, lesion: Lesion, room: Room) -> None:
    """Haze of -640 to -420 HU: fluid takes part of the air's place, so vessels show through."""
    radius = lesion.radius_mm
    shape = blob(rng, radius, rng.uniform(0.1, 0.22), rng.uniform(0.3, 0.8) * radius)
    share = (rng.uniform(-640, -420) + 860) / (BLOOD_HU + 860)
    paint_local(hu, grid, lesion.center_mm, 2 * radius, BLOOD_HU, lambda o: share * shape(o))


def paint_cystic(rng: np.random.Generator, hu: np.ndarray, grid: Grid, lesion: Lesion, room: Room) -> None:
    """A thin-walled air cyst with smaller ones near it, as in lymphangioleiomyomatosis."""
    radius = lesion.radius_mm
    cysts = [(np.array(lesion.center_mm), radius)]
    for way in directions(rng, int(rng.integers(4, 10))):
        small = rng.uniform(2.2, 2.8 + 0.35 * radius)
        where = lesion.center_mm + way * (radius + small + rng.uniform(3.5, 7))
        if room.free_at(where) > small:
            cysts.append((where, small))
            room.take(where, small)
    for where, size in cysts:
        shape = blob(rng, size, rng.uniform(0.02, 0.07), 0.6)
        inward = size / (size - rng.uniform(1, 1 + min(1, 0.12 * size)))
        paint_local(hu, grid, where, 1.3 * size + 2, rng.uniform(-500, -300), shape)
        cavity_hu = rng.uniform(-960, -935)
        paint_local(hu, grid, where, 1.3 * size + 2, cavity_hu, lambda o: shape(inward * o))  # noqa: B023


PAINTERS = {"solid": paint_solid, "ground_glass": paint_ground_glass, "cystic": paint_cystic}
