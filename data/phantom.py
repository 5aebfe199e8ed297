"""A procedural chest CT with lesions whose place, size and class are known: the demo cohort.

No patient stands behind it. `chest` draws one patient: body wall, bones, heart and great
vessels, two lungs with branching vessels and airways, lesions; then what a scanner adds.
`write_cohort` writes patients as DICOM series with a lesion list.

Arrays are [k, j, i] = [slice, row, column] with i to the patient's left (+x), j to the back
(+y), k to the head (+z); the volume's middle is LPS (0, 0, 0) mm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d

from data.dicom_writing import Subject, write_series
from data.lesions import write_annotations
from data.parallel import map_processes
from data.phantom_lesions import PAINTERS, Room, place_lesions, spicules
from data.phantom_painting import (
    AIR_HU,
    BLOOD_HU,
    CORTEX_HU,
    FAT_HU,
    MARROW_HU,
    SOFT_HU,
    Grid,
    fill,
    oval,
    paint,
    texture,
    tube,
    widened,
    within,
)
from data.volume import Lesion, Volume


def chest(
    rng: np.random.Generator,
    series_uid: str,
    *,
    matrix: int = 256,
    slice_mm: float = 5.0,
    lesions: int = 12,
) -> tuple[Volume, list[Lesion]]:
    """One patient: a Volume of matrix x matrix pixels a slice, int16 HU, and its lesions.

    The classes take turns, so three lesions hold all of them. Diameters are log-uniform in
    DIAMETER_MM. The same rng state gives the same bytes.

    Raises ValueError if the lungs have no room for that many lesions.
    """
    patient = Patient.draw(rng)
    grid = patient.grid(matrix, slice_mm)
    hu, lung = body(rng, patient, grid)
    paint_bones(hu, patient, grid)
    paint(hu, BLOOD_HU, fill(great_vessels(patient), grid))
    room = Room.of(lung * (hu < -500), patient.hilum_z_mm, grid)
    inside_mm = room.points_mm[room.free_mm > 4]
    found = place_lesions(rng, room, lesions)
    paint_trees(rng, hu, patient, grid, inside_mm, found)
    for lesion in found:
        PAINTERS[lesion.label](rng, hu, grid, lesion, room)
    return Volume(scan(rng, hu, patient, grid), grid.spacing_mm, grid.affine(), series_uid), found


@dataclass(frozen=True)
class Patient:
    """What differs between patients: lengths in mm, and HU."""

    half_width_mm: float
    half_depth_mm: float
    height_mm: float
    fat_mm: float
    dome_z_mm: float
    heart_size: float
    lung_hu: float
    offset_hu: float
    noise_hu: float
    psf_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Patient:
        size = rng.uniform(0.92, 1.08)
        return cls(
            half_width_mm=122 * size * rng.uniform(0.96, 1.04),
            half_depth_mm=88 * size * rng.uniform(0.92, 1.08),
            height_mm=250 * size,
            fat_mm=rng.uniform(4, 16),
            dome_z_mm=-125 * size + rng.uniform(58, 82),
            heart_size=size * rng.uniform(0.85, 1.05),
            lung_hu=rng.uniform(-880, -840),
            offset_hu=rng.normal(0, 5),
            noise_hu=rng.uniform(15, 30),
            psf_mm=rng.uniform(0.5, 0.7),
        )

    @property
    def hilum_z_mm(self) -> float:
        return self.dome_z_mm + 82

    @property
    def spine_y_mm(self) -> float:
        return 0.76 * self.half_depth_mm

    def cavity(self, z: float) -> tuple[float, float, float]:
        """Half-width, half-depth and middle y in mm of the space inside the ribs at height z."""
        up = np.clip((z + 45) / (self.height_mm / 2 + 37), 0, 0.999)
        taper = np.sqrt(1 - up**3)
        return self.half_width_mm * taper, self.half_depth_mm * taper, 14 * up**2

    def grid(self, matrix: int, slice_mm: float) -> Grid:
        """The voxels of a scan of this patient: matrix x matrix pixels a slice."""
        pixel_mm = 2.15 * (self.half_width_mm + self.fat_mm + 20) / matrix
        return Grid((round(self.height_mm / slice_mm), matrix, matrix), (slice_mm, pixel_mm, pixel_mm))


def body(rng: np.random.Generator, patient: Patient, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The body without bones and vessels: HU and the fraction of lung, both float32 (K, J, I).

    The lungs are what the rib cage, the mediastinum, the heart and the diaphragm leave free.
    """
    z_mm, y, x = grid.axes()
    y, x = y[:, None], x[None, :]
    thick, pixel, _ = grid.spacing_mm
    wobble = texture(rng, grid, 30)
    grain = 18 * texture(rng, grid, 3.5) + 14 * texture(rng, grid, 20)
    hu = np.full(grid.shape, AIR_HU, np.float32)
    lung = np.empty(grid.shape, np.float32)
    wide, deep, _ = patient.cavity(-45)
    back = deep + 0.6 * patient.fat_mm + 24
    top = patient.dome_z_mm - np.where(x > 0, 14, 0)
    fall = 0.9 * ((np.abs(x) - 62) / 65) ** 2 + ((y + 15) / 85) ** 2
    dome = top - 54 * np.minimum(fall, 1.1)
    couch = within(np.abs(y - back - 12 + (x / 40) ** 2) - 2, pixel) * (np.abs(x) < wide)
    for k, z in enumerate(z_mm):
        a, b, middle = patient.cavity(z)
        skin = oval(x, y - 8, wide + patient.fat_mm + 18, back)
        muscle = oval(x, y - 8, wide + 15, deep + 20) + 2.5 * wobble[k]
        beyond_ribs = -oval(x, y - middle, a + 16, b + 14)
        paint(hu[k], 20, within(skin, pixel))
        paint(hu[k], FAT_HU, within(skin + 2.5, pixel))
        paint(hu[k], SOFT_HU, within(muscle, pixel))
        lobules = within(muscle + 4, 6) * within(beyond_ribs, 6) * within(-wobble[k], 0.4)
        paint(hu[k], FAT_HU, lobules)

        cavity = oval(x, y - middle, a, b)
        below = z - dome + 2 * wobble[k]
        heart = heart_distance(x, y, z, patient)
        column = oval(x, y + 4, 27 + 5 * np.sin(z / 23), 62)
        spine = np.hypot(x, y - patient.spine_y_mm - middle) - 25
        hilum = np.sqrt((np.abs(x) - 36) ** 2 + (y - 6) ** 2 + (z - patient.hilum_z_mm) ** 2) - 15
        between = np.minimum.reduce([np.abs(x) - 3 + 0 * y, column, spine, hilum, heart - 3])
        paint(hu[k], FAT_HU, within(cavity, pixel))
        paint(hu[k], BLOOD_HU, within(heart, pixel))
        paint(hu[k], SOFT_HU + 8, within(cavity + 2, pixel) * within(below + 3, thick))
        lung[k] = within(np.maximum(cavity + 1, -between) + 1.5 * wobble[k], pixel)
        lung[k] *= within(-below, thick)
        paint(hu[k], patient.lung_hu + 0.25 * y + grain[k], lung[k])
        paint(hu[k], -650, couch)
    return hu, lung


def heart_distance(x: np.ndarray, y: np.ndarray, z: float, patient: Patient) -> np.ndarray:
    """Distance to an egg that points to the left, forward and down."""
    x, y, z = x - 24, y + 22, z - patient.dome_z_mm - 36
    along = np.cos(0.6) * x - np.sin(0.6) * y + 0.35 * z
    across = np.sin(0.6) * x + np.cos(0.6) * y
    a, b, c = 60 * patient.heart_size, 43 * patient.heart_size, 50
    return (np.sqrt((along / a) ** 2 + (across / b) ** 2 + (z / c) ** 2) - 1) * b


def paint_bones(hu: np.ndarray, patient: Patient, grid: Grid) -> None:
    """Spine, breastbone and pairs of ribs that fall from the back to the front."""
    low, high = -patient.height_mm / 2, patient.height_mm / 2
    bones = []
    for z in np.arange(low, high, 25):
        y = patient.spine_y_mm + 4 + patient.cavity(z)[2]
        bones.append(tube([(0, y, z), (0, y, z + 20)], 15))
        for side in (-1, 1):
            arch = [(side * 12, y + 8, z), (side * 11, y + 26, z), (0, y + 31, z), (0, y + 42, z)]
            bones.append(tube(arch, 4))
    for z in np.arange(low - 5, high + 50, 25):
        for side in (-1, 1):
            bones.append(tube([rib_point(patient, z, side, t) for t in np.linspace(0, 1, 24)], 5))
    for x in (-8, 0, 8):
        front = [(z, *patient.cavity(z)) for z in (-40, 0, 45, 75)]
        bones.append(tube([(x, middle - b - 7, z) for z, _, b, middle in front], 5))
    every = np.concatenate(bones)
    paint(hu, CORTEX_HU, fill(every, grid, samples=8))
    paint(hu, MARROW_HU, fill(widened(every, -1.6), grid, samples=8))


def rib_point(patient: Patient, z: float, side: int, t: float) -> tuple[float, float, float]:
    """A point of a rib that leaves the spine at height z; t runs from 0 (back) to 1 (front)."""
    z = z - 62 * t**1.3
    a, b, middle = patient.cavity(z)
    angle = np.pi * (0.06 + 0.8 * t)
    squarer = 1 + 0.068 * np.sin(2 * angle) ** 2
    a, b = (a + 7) * squarer, (b + 7) * squarer
    return side * a * np.sin(angle), middle + b * np.cos(angle), z


def great_vessels(patient: Patient) -> np.ndarray:
    """Aorta, upper vena cava and pulmonary trunk with its two branches, as tubes."""
    h, half = patient.hilum_z_mm, patient.height_mm / 2
    aorta = [(-10, -26, h - 25), (-13, -28, h + 15), (-4, -12, h + 40), (12, 12, h + 42)]
    aorta += [(18, 36, h + 26), (20, 42, h - 20), (14, 42, -half)]
    return np.concatenate([
        tube(aorta, 12),
        tube([(-18, -14, half), (-18, -18, h - 10)], 8),
        tube([(12, -30, h - 20), (14, -16, h), (-40, 6, h)], 10),
        tube([(14, -16, h), (40, 8, h + 5)], 10),
    ])  # fmt: skip


def grow_tree(points: np.ndarray, balance: float) -> tuple[np.ndarray, np.ndarray]:
    """A tree over points (N, 3) rooted at point 0: each point's parent, and the order of growth.

    Each step joins the point whose wire plus `balance` x its path to the root is shortest: 0
    spares tissue, large values spare transport (Cuntz et al. 2010, "One rule to grow them all").
    """
    count = len(points)
    parent, order = np.zeros(count, int), np.zeros(count, int)
    path, cost = np.zeros(count), np.full(count, np.inf)
    waiting = np.ones(count, bool)
    new = 0
    for n in range(count):
        order[n] = new
        waiting[new] = False
        wire = np.linalg.norm(points - points[new], axis=1)
        path[new] = path[parent[new]] + wire[parent[new]]
        offer = wire + balance * (path[new] + wire)
        closer = waiting & (offer < cost)
        cost[closer], parent[closer] = offer[closer], new
        new = int(np.where(waiting, cost, np.inf).argmin())
    return parent, order


def vessel_tree(rng: np.random.Generator, points_mm: np.ndarray) -> np.ndarray:
    """Tubes (N - 1, 8) from point 0 to the others; radii by Murray's law with exponent 2.5."""
    parent, order = grow_tree(points_mm, balance=0.45)
    child = order[1:]
    leaves = np.ones(len(points_mm))
    leaves[parent[child]] = 0
    for n in child[::-1]:
        leaves[parent[n]] += leaves[n]
    radius = rng.uniform(0.45, 0.6) * leaves**0.4
    start_radius = np.minimum(radius[parent[child]], 1.25 * radius[child])
    return np.column_stack([points_mm[parent[child]], points_mm[child], start_radius, 0.9 * radius[child]])


def paint_trees(
    rng: np.random.Generator,
    hu: np.ndarray,
    patient: Patient,
    grid: Grid,
    inside_mm: np.ndarray,
    lesions: list[Lesion],
) -> None:
    """An artery and a vein tree through points (N, 3) of each lung, airways beside the arteries.

    An artery reaches every lesion but the cysts, and spicules grow from some solid ones.
    """
    h = patient.hilum_z_mm
    carina = (0, 10, h + 22)
    blood = [spicules(rng, lesion) for lesion in lesions if lesion.label == "solid"]
    lumen = [tube([(0, 4, patient.height_mm / 2 + 9), carina], 8)]
    fed = np.reshape([ls.center_mm for ls in lesions if ls.label != "cystic"], (-1, 3))
    for side in (-1, 1):
        lung = inside_mm[inside_mm[:, 0] * side > 0]
        count = min(550, len(lung))
        artery_ends, vein_ends = (lung[rng.choice(len(lung), count, replace=False)] + rng.uniform(-2, 2, (count, 3)) for _ in range(2))
        to_lesions = fed[fed[:, 0] * side > 0]
        artery = vessel_tree(rng, np.concatenate([[(side * 36, 6, h)], artery_ends, to_lesions]))
        vein = vessel_tree(rng, np.concatenate([[(side * 36, 0, h - 14)], vein_ends]))
        blood += [artery, vein]
        airway = artery[artery[:, 7] > 1.3] * (1, 1, 1, 1, 1, 1, 0.85, 0.85)
        beside = np.outer(2.2 * airway[:, 7] + 0.6, (0, 0.8, 0.6))
        airway[:, :3] += beside
        airway[:, 3:6] += beside
        lumen += [airway, tube([carina, (side * 38, 8, h)], 5.5)]
    paint(hu, BLOOD_HU, fill(np.concatenate(blood), grid))
    paint(hu, SOFT_HU, fill(widened(np.concatenate(lumen), 1), grid))
    paint(hu, AIR_HU, fill(np.concatenate(lumen), grid))


def scan(rng: np.random.Generator, hu: np.ndarray, patient: Patient, grid: Grid) -> np.ndarray:
    """What the scanner makes of it: in-plane blur, correlated noise, int16 (K, J, I).

    Noise of filtered backprojection is weak at the lowest and highest frequencies: white noise,
    blurred by half a pixel, less most of the same blurred wider. Air holds less of it.
    """
    pixel = grid.spacing_mm[1]
    noise = rng.standard_normal(grid.shape, dtype=np.float32)
    for axis in (1, 2):
        hu = gaussian_filter1d(hu, patient.psf_mm / pixel, axis, mode="nearest", truncate=3)
        noise = gaussian_filter1d(noise, 0.6, axis, truncate=3)
    wide = gaussian_filter1d(gaussian_filter1d(noise, 1.8, 1, truncate=3), 1.8, 2, truncate=3)
    noise -= 0.8 * wide
    noise *= patient.noise_hu / noise.std()
    hu += patient.offset_hu + noise * np.where(hu < -400, 0.75, 1)
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


def write_cohort(
    folder: Path, seed: int, patients: int, *, lesions: int = 12, matrix: int = 256, slice_mm: float = 5.0, processes: int = 0
) -> Iterator[int]:
    """Writes patients as folder/patient-NNNN/*.dcm, yielding each number, and at the end folder/annotations.csv.

    Patient n follows from (seed, n) alone, so the number of processes (0: one a core) does not matter.
    """
    listed: dict[str, list[Lesion]] = {}
    write = partial(write_patient, folder, seed, lesions=lesions, matrix=matrix, slice_mm=slice_mm)
    for n, (series_uid, found) in enumerate(map_processes(write, range(patients), processes)):
        listed[series_uid] = found
        yield n
    write_annotations(listed, folder / "annotations.csv")


def write_patient(folder: Path, seed: int, n: int, *, lesions: int, matrix: int, slice_mm: float) -> tuple[str, list[Lesion]]:
    """Writes patient n's series as folder/patient-NNNN/*.dcm; its series UID and its lesions."""
    volume, found = chest(np.random.default_rng([seed, n]), "", matrix=matrix, slice_mm=slice_mm, lesions=lesions)
    series = folder / f"patient-{n:04d}"
    series.mkdir()
    subject = Subject(
        key=f"phantom {seed} {n}", name=f"PHANTOM^{n:04d}", patient_id=f"PHANTOM-{seed}-{n:04d}",
        description="procedural chest phantom", model="phantom", version="1", window=(-1000, 400),
    )  # fmt: skip
    files = [series / f"{k + 1:04d}.dcm" for k in range(len(volume.hu))]
    return str(write_series(volume.hu, volume.affine, subject, files)), found
