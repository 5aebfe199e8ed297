"""From one series and what is listed in it to patches: lesions, and lesion-free places inside the lung."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.acquisition import Acquisition
from data.dicom import Series, read_series
from data.lesion_list import BACKGROUND, Listed
from data.lesions import ras_suspected
from data.metaimage import read_metaimage
from data.nifti import read_nifti
from data.preprocess import Window, cut, lung_mask, outside_share
from data.sources import METAIMAGE, NIFTI, Unreadable
from data.volume import Lesion, Volume

LUNG_GRID_MM = 4.0
"""How finely the lung is looked for: on phantoms the Dice coefficient is the same as at 1 mm."""
MIRROR_HU = 150
"""Noise does not make one place of the lung so much denser than another."""
UNKNOWN_RADIUS_MM = 10.0
"""How far from its centre a lesion without a stated diameter is taken to reach, where none may be."""

OUTSIDE = "lesion outside its volume, left out (see --coordinates)"
OFF_LUNG = "lesion that does not touch the lung (see --coordinates)"
WIDER = "lesion wider than the patch: its edge is cut off (see --size and --spacing)"
NO_LUNG = "series without a lung mask: no background patches from it"
NO_ROOM = "background patch fewer than asked: no room in the lung away from lesions"
PADDED = "patch that reaches beyond its scan, padded with air (column padded)"


@dataclass(frozen=True)
class CutConfig:
    """How patches are cut.

    shape: (H, W) for axial patches, (D, H, W) for cubes. spacing_mm: of a patch, along each axis.
    slices: axial patches a lesion, in neighbouring slices within the middle half of its diameter.
    background: lesion-free patches for each lesion, from inside the lung.
    """

    shape: tuple[int, ...] = (64, 64)
    spacing_mm: float = 1.0
    window: Window = (-1000.0, 400.0)
    slices: int = 1
    background: int = 1
    seed: int = 0
    validation: float = 0.15
    test: float = 0.25


@dataclass(frozen=True)
class Cut:
    """A patch and what it shows. padded: the share of it that lies outside the scan."""

    hu: np.ndarray
    lesion: Lesion
    padded: float


@dataclass(frozen=True)
class Cutting:
    """What one series gave. left_out: lesions that gave no patch, by reason; notes: what a user should know, counted.

    mirrored: lesions whose place is lung while the place with x and y negated, in the lung too, is dense; and the other way round.
    """

    cuts: list[Cut]
    left_out: Counter[str]
    notes: Counter[str]
    acquisition: Acquisition
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    mirrored: tuple[int, int] = (0, 0)


def read_volume(series: Series) -> Volume:
    """The HU volume of a series, by the format its files have."""
    if series.spoiled:
        raise series.spoiled
    name = series.files[0].name.lower()
    if name.endswith(NIFTI):
        return read_nifti(series.files[0])
    if name.endswith(METAIMAGE):
        return read_metaimage(series.files[0])
    return read_series(series)


def cut_series(series: Series, listed: Sequence[Listed], config: CutConfig) -> Cutting:
    """The patches of one series.

    Raises Unreadable or OSError when the series, or a mask of it, cannot be read, or when its
    lesions lie in the lung only with x and y negated, as RAS coordinates do.
    """
    stored = read_volume(series)
    notes = Counter(stored.notes)
    left_out: Counter[str] = Counter()
    lesions: list[Lesion] = []
    for one in listed:
        found, why = one.locate(stored)
        lesions += found
        left_out.update(why)
    volume = stored.axial()
    coarse = volume.thinned(LUNG_GRID_MM)
    lung = _lung(coarse)
    if lung is None:
        notes[NO_LUNG] += config.background > 0
    elif ras_suspected([lesion.center_mm for lesion in lesions], lung, coarse):
        raise Unreadable(series.files[0], "its lesions lie in the lung only with x and y negated: the list is in RAS (coordinates)")
    inside = [lesion for lesion in lesions if volume.contains(volume.index_of(lesion.center_mm))]
    left_out[OUTSIDE] += len(lesions) - len(inside)
    shown = [lesion for lesion in inside if lesion.label != BACKGROUND]
    places = [(centre, lesion) for lesion in shown for centre in _centres(volume, lesion, config)]
    if lung is not None:
        notes[OFF_LUNG] += sum(not touches(lung, coarse, lesion) for lesion in shown)
    empty = _background(lung, coarse, inside, config)
    notes[NO_ROOM] += max(config.background * len(shown) - len(empty), 0) if lung is not None else 0
    places += [(lesion.center_mm, lesion) for lesion in empty]
    cuts = [
        Cut(cut(volume, centre, config.shape, config.spacing_mm), Lesion(centre, lesion.diameter_mm, lesion.label),
            outside_share(volume, centre, config.shape, config.spacing_mm)) for centre, lesion in places
    ]  # fmt: skip
    notes[PADDED] += sum(c.padded > 0 for c in cuts)
    notes[WIDER] += sum(2 * lesion.radius_mm > min(config.shape) * config.spacing_mm for lesion in shown)
    k, j, i = volume.hu.shape
    mirrored = (0, 0) if lung is None else _mirrored(volume, coarse, lung, shown)
    return Cutting(cuts, +left_out, +notes, stored.acquisition or Acquisition("unknown"), (k, j, i), volume.spacing_mm, mirrored)


def _mirrored(volume: Volume, coarse: Volume, lung: np.ndarray, lesions: Sequence[Lesion]) -> tuple[int, int]:
    """How many lesions are clearly denser with x and y negated, as when a list in RAS is read as LPS, and how many as stated.

    Only those count that lie in the lung both ways: there a lesion is denser than what is around it, unless it is a cyst.
    """
    found = [0, 0]
    for x, y, z in (lesion.center_mm for lesion in lesions):
        points = ((x, y, z), (-x, -y, z))
        if all(_value(lung, coarse.index_of(point)) == 1 for point in points):
            stated, negated = (_value(volume.hu, volume.index_of(point), 1) for point in points)
            found[0] += negated > stated + MIRROR_HU
            found[1] += stated > negated + MIRROR_HU
    return found[0], found[1]


def _value(values: np.ndarray, index: np.ndarray, reach: int = 0) -> float:
    """The mean of the voxels around an index; NaN outside."""
    middle = np.rint(index).astype(int)
    if np.any(middle < 0) or np.any(middle >= values.shape):
        return float("nan")
    return float(values[tuple(slice(max(n - reach, 0), n + reach + 1) for n in middle)].mean())


def _lung(volume: Volume) -> np.ndarray | None:
    try:
        return lung_mask(volume)
    except ValueError:
        return None


def _centres(volume: Volume, lesion: Lesion, config: CutConfig) -> list[tuple[float, float, float]]:
    """The lesion's centre; for several axial slices also the points above and below it, nearest first."""
    if len(config.shape) == 3 or config.slices == 1:
        return [lesion.center_mm]
    centre = volume.index_of(lesion.center_mm)
    middle = round(float(np.clip(centre[0], 0, volume.hu.shape[0] - 1)))
    reach = lesion.radius_mm / 2 / volume.spacing_mm[0]
    near = sorted(range(volume.hu.shape[0]), key=lambda k: abs(k - centre[0]))
    slices = [k for k in near if k == middle or abs(k - centre[0]) <= reach][: config.slices]
    return [volume.point_at(np.array([k, *centre[1:]])) for k in slices]


def touches(lung: np.ndarray, volume: Volume, lesion: Lesion) -> bool:
    """Whether there is lung inside the lesion's sphere, or up to 5 mm from it. lung: bool, of the volume's shape."""
    reach = (lesion.radius_mm + 5) / np.array(volume.spacing_mm)
    centre = volume.index_of(lesion.center_mm)
    low = np.clip(np.floor(centre - reach).astype(int), 0, None)
    high = np.clip(np.ceil(centre + reach).astype(int) + 1, 0, None)
    return bool(lung[tuple(map(slice, low, high))].any())


def _background(lung: np.ndarray | None, volume: Volume, inside: Sequence[Lesion], config: CutConfig) -> list[Lesion]:
    """Lesion-free places: those that the list names as such, or else points in the lung whose patch holds no part of a lesion."""
    lesions = [lesion for lesion in inside if lesion.label != BACKGROUND]
    wanted = config.background * len(lesions)
    seed = int.from_bytes(hashlib.sha256(f"{config.seed}/{volume.series_uid}".encode()).digest()[:8])
    rng = np.random.default_rng(seed)
    listed = [lesion for lesion in inside if lesion.label == BACKGROUND]
    if listed:
        wanted = wanted or config.background  # of a series without lesions, too
        return [listed[n] for n in sorted(rng.permutation(len(listed))[:wanted])]
    if lung is None or not wanted:
        return []
    voxels = np.flatnonzero(lung)
    reach_mm = np.array(config.shape[-2:]).max() * config.spacing_mm / 2
    centres = np.array([lesion.center_mm for lesion in lesions])
    radii = np.array([lesion.radius_mm or UNKNOWN_RADIUS_MM for lesion in lesions])
    found: list[Lesion] = []
    for voxel in rng.choice(voxels, size=min(len(voxels), 200 * wanted), replace=False):
        point = volume.point_at(np.array(np.unravel_index(voxel, volume.hu.shape)))
        if (np.abs(centres - point).max(axis=1) > reach_mm + radii).all():
            found.append(Lesion(point, None, BACKGROUND))
        if len(found) == wanted:
            break
    return found
