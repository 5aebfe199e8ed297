"""Near copies of one patch under two patients: the same scan or lesion listed twice, perhaps mirrored or shifted.

Patches are HU (or gray levels), (N, H, W) or (N, D, H, W), seen through the folder's window. The search has two
steps: a small blurred image of each patch proposes candidates, their fine detail decides. Unrelated patches may
look alike coarsely (a rib, the chest wall), but not down to their noise and small vessels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage

from data.preprocess import Window, to_unit

COPY = 0.7
"""The least correlation of fine detail that counts as a near copy.

Measured on 5,635 real patches of 610 scans (LUNA16 candidates, 32 x 32 pixels): the most alike of different scans
reach 0.60, under all mirrorings. Of 200 planted copies all are found when exact, mirrored, moved by a quarter of a
pixel, blurred as by another kernel or given 20 HU of noise; 158 when moved by half a pixel; about 130 when moved
by two pixels.
"""

MOST = 20_000
"""Patches compared, each with every other; of larger folders a random sample of this many."""

SMALLEST = 16
"""Pixels along the side of the smallest patch with enough detail to tell a copy from chance."""

SHIFT = 2
CROP = 48  # the middle that is compared: more would cost memory and tell no more
BLUR = 2.0
FLAT = 0.03  # of the window from -1 to 1; in the usual window 20 HU: flatter than noise is no detail
LEAST_DETAIL = 0.1  # mean square; a patch of air with one edge would match every other such patch
PLAIN = 5
CANDIDATES = 4
ALIKE = 0.5  # coarsely; a shift by two pixels costs this much
CHUNK = 128


@dataclass(frozen=True)
class NearCopy:
    """Two patches of different patients that show the same, as rows of the arrays searched.

    detail: correlation of their fine detail in [COPY, 1]. mirrored: axes of `first` that were mirrored to match.
    """

    first: int
    second: int
    detail: float
    mirrored: tuple[int, ...]


class NearCopySearch:
    """Collects patches, a chunk at a time and some kilobytes for each, then finds the near copies among them.

    window: what networks see; two patches that differ only outside it are the same to them.
    """

    def __init__(self, shape: tuple[int, ...], window: Window):
        if min(shape) < SMALLEST:
            raise ValueError(f"patches of {' x '.join(map(str, shape))} are too small to tell near copies from chance")
        self.shape, self.window = shape, window
        self._coarse: list[np.ndarray] = []
        self._detail: list[np.ndarray] = []

    def add(self, hu: np.ndarray) -> None:
        """Takes in int16 (N, *shape)."""
        x = to_unit(hu, self.window)
        self._coarse.append(coarse_image(x))
        self._detail.append(fine_detail(x))

    def find(
        self, patients: np.ndarray, track: Callable[[Iterable, int], Iterable] = lambda items, total: items
    ) -> list[NearCopy]:  # fmt: skip
        """Every near copy found, most alike first; each pair once. patients: (N,), in the order of `add`."""
        coarse, detail = np.concatenate(self._coarse), np.concatenate(self._detail)
        if len(patients) != len(coarse):
            raise ValueError(f"{len(patients)} patients for {len(coarse)} patches")
        person = np.unique(patients, return_inverse=True)[1]
        axes = range(1, coarse.ndim)
        mirrorings = [tuple(a for a, on in zip(axes, flips, strict=True) if on) for flips in product((False, True), repeat=len(axes))]
        jobs = [(mirrored, start) for mirrored in mirrorings for start in range(0, len(coarse), CHUNK)]
        found: dict[tuple[int, int], NearCopy] = {}
        for mirrored, start in track(jobs, len(jobs)):
            rows = np.arange(start, min(start + CHUNK, len(coarse)))
            others, alike = _nearest(_flat(np.flip(coarse[rows], mirrored)), _flat(coarse), person[rows], person)
            promising = (alike >= ALIKE).any(1)
            if not promising.any():
                continue
            rows, others = rows[promising], others[promising]
            in_plane = tuple(axis - (coarse.ndim - 3) for axis in mirrored if axis > coarse.ndim - 3)
            scores = np.where(alike[promising] >= ALIKE, _detail_match(detail, rows, others, in_plane), 0)
            for n, k in np.argwhere(scores >= COPY):
                pair = (int(min(rows[n], others[n, k])), int(max(rows[n], others[n, k])))
                if pair not in found or scores[n, k] > found[pair].detail:
                    found[pair] = NearCopy(*pair, float(scores[n, k]), tuple(a - 1 for a in mirrored))
        return sorted(found.values(), key=lambda copy: (-copy.detail, copy.first, copy.second))


def coarse_image(x: np.ndarray) -> np.ndarray:
    """float32 (N, 8, 8) or (N, 6, 6, 6) of means over blocks, mean 0 and length 1; all 0 for a flat patch."""
    blocks = 8 if x.ndim == 3 else 6
    for axis in range(1, x.ndim):
        edges = np.linspace(0, x.shape[axis], blocks + 1).astype(int)
        x = np.add.reduceat(x, edges[:-1], axis) / np.diff(edges).reshape(-1, *[1] * (x.ndim - axis - 1))
    each = tuple(range(1, x.ndim))
    x = x - x.mean(each, keepdims=True)
    return (x / np.maximum(np.sqrt((x * x).sum(each, keepdims=True)), 1e-3)).astype(np.float32)


def fine_detail(x: np.ndarray) -> np.ndarray:
    """float16 (N, planes, h, w): what a blur takes away, over its local strength, in the middle of each patch.

    Dividing by the local strength keeps one sharp edge from outweighing everything else. Around plain black or white
    it is 0, for the end of a scan looks the same in every patch that has it. planes is 1 for 2-D; in 3-D the middle
    2 * SHIFT + 1.
    """
    height, width = ((side - min(side, CROP)) // 2 for side in x.shape[-2:])
    depth = 0 if x.ndim == 3 else x.shape[1] // 2 - SHIFT
    sigma = (0,) + (BLUR,) * (x.ndim - 1)
    rough = x - ndimage.gaussian_filter(x, sigma)
    rough /= np.sqrt(ndimage.gaussian_filter(rough * rough, sigma) + FLAT**2)
    rough[_near_plain(x)] = 0
    planes = rough[:, None] if x.ndim == 3 else rough[:, depth : depth + 2 * SHIFT + 1]
    return planes[..., height : height + CROP, width : width + CROP].astype(np.float16)


def _near_plain(x: np.ndarray) -> np.ndarray:
    """bool, as x: in the reach of the blur from a block of PLAIN voxels a side that the window shows all black or all white."""
    each = (1,) + (PLAIN,) * (x.ndim - 1)
    reach = (1,) + (2 * round(3 * BLUR) + PLAIN,) * (x.ndim - 1)
    plain = [ndimage.minimum_filter((x == end).view(np.uint8), each, mode="nearest") for end in (-1, 1)]
    return ndimage.maximum_filter(plain[0] | plain[1], reach, mode="constant").view(bool)


def best_match(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, K): correlation of each plane (N, h, w) with K others (N, K, h, w), at the best shift by up to SHIFT pixels.

    Taken where the two overlap. A plane with less than LEAST_DETAIL matches nothing.
    """
    n, height, width = a.shape
    overlap = _shifted(np.ones((1, height, width), np.float32))  # (1, shifts, h w)
    moved, flat = _shifted(a), b.reshape(n, -1, height * width).swapaxes(1, 2)
    least = LEAST_DETAIL * overlap.sum(2)
    strength_a = np.maximum((moved * moved).sum(2), least)
    strength_b = np.maximum(overlap @ (flat * flat), least[..., None])
    return (moved @ flat / np.sqrt(strength_a[..., None] * strength_b)).max(1)


def _detail_match(detail: np.ndarray, rows: np.ndarray, others: np.ndarray, in_plane: tuple[int, ...]) -> np.ndarray:
    """(N, K): best_match of the rows' middle planes, mirrored along these axes, with any plane of the others'."""
    mirrored = np.flip(detail[rows, detail.shape[1] // 2], in_plane).astype(np.float32)
    planes = detail[others].astype(np.float32)
    n, k, depth, height, width = planes.shape
    return best_match(mirrored, planes.reshape(n, k * depth, height, width)).reshape(n, k, depth).max(2, initial=0)


def _nearest(a: np.ndarray, b: np.ndarray, person_a: np.ndarray, person_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of b nearest to each row of a among other persons' (N, CANDIDATES), and their products."""
    alike = a @ b.T
    alike[person_a[:, None] == person_b] = -1
    nearest = np.argpartition(-alike, min(CANDIDATES, len(b) - 1), axis=1)[:, :CANDIDATES]
    return nearest, np.take_along_axis(alike, nearest, 1)


def _shifted(planes: np.ndarray) -> np.ndarray:
    """(N, (2 SHIFT + 1)^2, h w): the planes moved by every shift, 0 where nothing moved in."""
    padded = np.pad(planes, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, planes.shape[1:], axis=(1, 2))
    return windows.reshape(len(planes), (2 * SHIFT + 1) ** 2, -1)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
