"""Where in a whole scan lesions may be set: inside the lung, clear of its border, of vessels, and of other lesions.

Places are drawn from seeds, lesion by lesion: the first n of a series do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import distance_transform_edt

from data.cohort import find_volumes, tell_files
from data.cutting import UNKNOWN_RADIUS_MM, read_volume, touches
from data.lesion_list import BACKGROUND, ListConfig
from data.lesions import ras_suspected, read_lesions
from data.preprocess import lung_mask
from data.volume import Lesion, Volume

GRID_MM = 2.0
"""How finely the lung is looked for: slices are divided, or left out, to about this."""
BORDER_MM, GAP_MM = 2.0, 12.0
"""What must lie between a lesion's ball and the lung's border, and between two lesions' balls: more than the transitions of both."""
TISSUE_HU, MOST_TISSUE = -500, 0.1
"""Voxels above this are vessels, walls or lesions; the share of them that a place may hold."""
MOST_TRIES = 1000
_PLACE = 101
"""Stream of a lesion's random numbers; the generator has others."""


@dataclass(frozen=True)
class Order:
    """A lesion that is wanted. seed: its series'. number: of the series' lesions, from 1. stream: the seed of its own random numbers."""

    seed: int
    number: int
    stream: int
    label: str
    diameter_mm: float

    @property
    def name(self) -> str:
        return f"{self.seed}-{self.number}"


@dataclass(frozen=True)
class Placed(Order):
    """An order with its place: LPS mm of its middle, and how many places were looked at. The middle's index along k, j, i of Scan.axial."""

    center_mm: tuple[float, float, float]
    index: tuple[float, float, float]
    tries: int


@dataclass(frozen=True)
class Scan:
    """A scan to set lesions into.

    stored, axial: its voxels as they were read, and with axes turned (see Volume.axial). thickness_mm: of what a slice shows.
    taken: the lesions that are there, as far as they are listed; listed: whether there was a list.
    depth_mm: float32, how far each voxel of a grid inside the lung lies from the nearest outside it, both by their centres, 0 outside;
    grid: (4, 4), from its index to LPS mm.
    """

    stored: Volume
    axial: Volume
    thickness_mm: float
    depth_mm: np.ndarray = field(repr=False)
    grid: np.ndarray
    taken: tuple[Lesion, ...] = ()
    listed: bool = False

    @property
    def least_mm(self) -> float:
        """The smallest diameter that the spacing can show: two pixels, and half of a slice wherever between slices it lies."""
        step, *pixel = self.axial.spacing_mm
        return max(2 * max(pixel), self.thickness_mm / 2, step - self.thickness_mm / 2)


def read_scan(place: str, lesions: str | None = None, warn: Callable[[str], None] = lambda line: None) -> Scan:
    """The one CT series in a folder, archive or file. lesions: a list of those in it, of any kind that read_lesions knows.

    warn: told what was left out. Raises ValueError or OSError, in one line without identifiers, where there is no series, or several,
    where it cannot be trusted, where it has no lung, or where the list cannot be read or places all its lesions off the lung.
    """
    listed = None if lesions is None else read_lesions(lesions, ListConfig())
    series, skipped = find_volumes([place], leave_out=listed.files() if listed else frozenset())
    if len(series) > 1:
        raise ValueError(f"{place}: holds {len(series)} series; name a folder or file that holds one")
    tell_files(skipped, warn)
    stored = read_volume(series[0])
    for note in stored.notes:
        warn(note)
    found: list[Lesion] = []
    if listed:
        if listed.problems:
            warn(f"{lesions}: {len(listed.problems)} rows left out, the first because {listed.problems[0][1]}")
        for one in listed.series.get(stored.series_uid, ()):
            there, left_out = one.locate(stored)
            found += [lesion for lesion in there if lesion.label != BACKGROUND]
            for reason, count in left_out.items():
                warn(f"{lesions}: {count} x {reason}")
        if not found:
            warn(f"{lesions}: lists no lesion of this series; there is none to stay away from")
    try:
        return scan_of(stored, found, listed is not None)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def scan_of(stored: Volume, taken: Iterable[Lesion] = (), listed: bool = False) -> Scan:
    """A volume as one to set lesions into. Raises ValueError where no lung is found, or where no lesion touches it, or as RAS only."""
    axial, taken = stored.axial(), tuple(taken)
    coarse = axial.thinned(GRID_MM)
    lung = lung_mask(coarse)
    if ras_suspected([lesion.center_mm for lesion in taken], lung, coarse):
        raise ValueError("the listed lesions lie in the lung only with x and y negated: the list is in RAS")
    if taken and not any(touches(lung, coarse, lesion) for lesion in taken):
        raise ValueError(f"of the listed lesions, {len(taken)}, none touches the lung; want LPS mm of this very scan, or no list")
    divided = max(1, round(coarse.spacing_mm[0] / GRID_MM))  # so that a lesion may end between two thick slices
    grid = coarse.affine.copy()
    grid[:3, 3] += grid[:3, 0] * (0.5 / divided - 0.5)
    grid[:3, 0] /= divided
    spacing_mm = (coarse.spacing_mm[0] / divided, *coarse.spacing_mm[1:])
    inside = np.pad(lung.repeat(divided, axis=0), 1)  # beyond the scan there is no lung
    depth_mm = distance_transform_edt(inside, sampling=spacing_mm)[1:-1, 1:-1, 1:-1].astype(np.float32)
    return Scan(stored, axial, _thickness(stored, axial), depth_mm, grid, taken, listed)


def _thickness(stored: Volume, axial: Volume) -> float:
    """Of axial slices: what the file tells, or, where that is missing, of slices stored otherwise, or no sense, the step between them."""
    step, (x, y, z) = axial.spacing_mm[0], np.abs(stored.affine[:3, 0])
    told = stored.acquisition.slice_thickness_mm if stored.acquisition and z > max(x, y) else None
    return told if told and step / 10 <= told <= 4 * step else step


def check_diameter(scan: Scan, diameter_mm: float, largest_mm: float) -> None:
    """Raises ValueError for what the spacing cannot show, or what is larger than the model's cube can hold."""
    if diameter_mm < scan.least_mm:
        raise ValueError(
            f"--diameter {diameter_mm:g}: with pixels of {max(scan.axial.spacing_mm[1:]):.3g} mm and slices of {scan.thickness_mm:.3g} mm "
            f"every {scan.axial.spacing_mm[0]:.3g} mm, this scan shows lesions of {scan.least_mm:.3g} mm and more "
            "(two pixels, half a slice)"
        )
    if diameter_mm > largest_mm:
        raise ValueError(f"--diameter {diameter_mm:g}: the model's cube holds lesions of up to {largest_mm:.3g} mm")


def place_lesions(scan: Scan, orders: Sequence[Order]) -> list[Placed]:
    """A place for each order, those of one series apart from one another.

    A place is drawn evenly from the lung's voxels that lie deeper than the lesion's radius and BORDER_MM, and within that voxel. It is
    turned down where the ball holds more than MOST_TISSUE above TISSUE_HU, or where a lesion is nearer than GAP_MM.

    Raises ValueError, telling how many found room and which diameter did not, after MOST_TRIES places.
    """
    placed: list[Placed] = []
    for order in orders:
        mine = [Lesion(one.center_mm, one.diameter_mm, one.label) for one in placed if one.seed == order.seed]
        found = _place(scan, order, [*scan.taken, *mine])
        if found is None:
            wanted = sum(one.seed == order.seed for one in orders)
            raise ValueError(
                f"seed {order.seed}: too little room in the lung: {len(mine)} of {wanted} lesions found a place, "
                f"and the next, of {order.diameter_mm:.1f} mm, none; ask for fewer or smaller ones"
            )
        placed.append(found)
    return placed


def _place(scan: Scan, order: Order, others: Sequence[Lesion]) -> Placed | None:
    radius = order.diameter_mm / 2
    voxel_mm = np.linalg.norm(scan.grid[:3, :3], axis=0).max()  # half of one to the border, and half of one that a place may lie off
    room = np.flatnonzero(scan.depth_mm >= radius + BORDER_MM + voxel_mm)
    if not len(room):
        return None
    rng = np.random.default_rng([order.stream, _PLACE])
    centers = np.array([other.center_mm for other in others]).reshape(-1, 3)
    apart = radius + GAP_MM + np.array([other.radius_mm or UNKNOWN_RADIUS_MM for other in others])
    for tries in range(1, MOST_TRIES + 1):
        voxel = np.unravel_index(room[rng.integers(len(room))], scan.depth_mm.shape)
        x, y, z = (scan.grid @ [*(np.array(voxel) + rng.uniform(-0.5, 0.5, 3)), 1])[:3].tolist()
        k, j, i = scan.axial.index_of((x, y, z)).tolist()
        if (np.linalg.norm(centers - (x, y, z), axis=1) >= apart).all() and _tissue(scan.axial, (k, j, i), radius) <= MOST_TISSUE:
            return Placed(order.seed, order.number, order.stream, order.label, order.diameter_mm, (x, y, z), (k, j, i), tries)
    return None


def _tissue(volume: Volume, index: tuple[float, float, float], radius_mm: float) -> float:
    """Of the voxels that a ball touches, the share above TISSUE_HU."""
    spacing, reach = np.array(volume.spacing_mm), radius_mm / np.array(volume.spacing_mm) + 0.5
    low = np.maximum(np.ceil(index - reach), 0).astype(int)
    high = np.floor(index + reach).astype(int) + 1
    box = volume.hu[tuple(map(slice, low, high))]
    k, j, i = (
        (np.maximum(np.abs(first + np.arange(count) - at) - 0.5, 0) * mm) ** 2
        for first, count, at, mm in zip(low, box.shape, index, spacing, strict=True)
    )
    return float(np.mean(box[k[:, None, None] + j[:, None] + i <= radius_mm**2] > TISSUE_HU))
