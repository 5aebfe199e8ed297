"""Patches laid over real patches: in which turn, and moved by how much, do two show the same?

Patches are HU, (N, H, W) or (N, D, H, W), seen through one window. A voxel-wise distance does not survive a shift by one
voxel. So small images propose candidates over all turns and shifts, and the patches' own detail decides. Detail is what lies
between two blurs, without noise and without the slow shading that all chests share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from evaluate.intervals import Patients
from evaluate.neighbours import within_window

Floats = NDArray[np.float64]
Window = tuple[float, float]

SHIFT = 3  # voxels along each axis, less in patches below 24
FINE, ROUGH = 1.0, 2.0  # voxels: the blurs that detail lies between
FLAT_HU = 3.0  # detail weaker than this is taken for noise, so that two empty patches are not alike
SMALL_FINE, SMALL_ROUGH = 0.8, 2.0  # voxels of the small images
LEVELS = 16  # per standard deviation of a small image
CHUNK_BYTES = 2**23


@dataclass(frozen=True)
class Effort:
    """How hard is searched. side: of the small images, about. step: voxels between the shifts they try.

    candidates: real patches that are then looked at closely, each in so many ways to turn it.
    """

    side: int
    step: int
    candidates: int
    ways: int


EFFORT = {2: Effort(side=16, step=1, candidates=8, ways=3), 3: Effort(side=6, step=2, candidates=4, ways=2)}
"""By the number of axes. Of 500 copies of 648 nodules (32 x 32; moved by up to 3 pixels, turned, 20-50 HU of noise) all were
found, at 480 patches a second; with a step of 2 pixels 97 %. Of 40 cubes of 32^3 voxels among 480, 39, at 35 a second."""


@dataclass(frozen=True)
class Turn:
    """A symmetry of the patch: first its axes in this order, then those of `mirrored` flipped."""

    axes: tuple[int, ...]
    mirrored: tuple[int, ...]

    def of(self, patches: NDArray) -> NDArray:
        """Patches (N, *shape), each turned."""
        return np.flip(patches.transpose(0, *(axis + 1 for axis in self.axes)), tuple(axis + 1 for axis in self.mirrored))


@dataclass(frozen=True)
class Matches:
    """The best-laid real patch of each of N patches.

    real: its row, -1 where there was none to compare with. turn: number in `turns`. shift: (N, axes) voxels: voxel x of the
    turned patch shows what voxel x + shift of the real one shows. misfit: (N,) in [0, 1].
    """

    real: NDArray[np.int64]
    turn: NDArray[np.int64]
    shift: NDArray[np.int64]
    misfit: Floats


class Searched:
    """Real patches, made ready to be searched. spacing_mm: only axes of equal spacing are exchanged; None: all are equal."""

    def __init__(self, real: NDArray, window: Window, spacing_mm: Sequence[float] | None = None):
        self.window, self.shape = window, real.shape[1:]
        self.turns = turns(self.shape, spacing_mm)
        self.shift = min(SHIFT, min(self.shape) // 8)
        self.effort = EFFORT[len(self.shape)]
        self.factor = max(1, min(self.shape) // self.effort.side)
        steps = self.shift // self.effort.step
        self.places = self.effort.step * np.array(list(product(range(-steps, steps + 1), repeat=len(self.shape))))
        self.hu = within_window(real, window)
        self.detail = detail(self.hu)
        coarse = self._coarse(self.hu)
        self._small = np.stack([self._sampled(coarse, place) for place in self.places])
        self._strength = np.maximum(np.sqrt(np.square(self._small).sum(-1)), 1)

    def __len__(self) -> int:
        return len(self.hu)

    def nearest(self, patches: NDArray, patients: Patients = None, real_patients: Patients = None) -> Matches:
        """The best-laid real patch of each patch; with patients given, of another patient.

        What comes back for one patch does not depend on the others. Raises ValueError if the shapes differ.
        """
        if patches.shape[1:] != self.shape:
            raise ValueError(f"patches of shape {patches.shape[1:]} cannot be laid over ones of {self.shape}")
        barred = None
        if patients is not None and real_patients is not None:
            barred = np.asarray(patients)[:, None] == np.asarray(real_patients)[None, :]
        voxels = int(np.prod([side - 2 * self.shift for side in self.shape]))
        step = max(
            1,
            CHUNK_BYTES // (4 * voxels * self.effort.candidates * self.effort.ways),
            CHUNK_BYTES // (4 * len(self) * self._small.shape[-1]),
        )
        parts = [
            self._nearest(patches[start : start + step], None if barred is None else barred[start : start + step])
            for start in range(0, len(patches), step)
        ]
        if not parts:
            none = np.zeros(0, np.int64)
            return Matches(none, none, np.zeros((0, len(self.shape)), np.int64), np.zeros(0))
        return Matches(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("real", "turn", "shift", "misfit")))

    def _nearest(self, patches: NDArray, barred: NDArray | None) -> Matches:
        hu = within_window(patches, self.window)
        rows, turn, shift = self._candidates(self._coarse(hu), barred)
        count, kept = rows.shape
        fine = detail(hu)
        turned = np.stack([_middle(one.of(fine), self.shift) for one in self.turns])
        flat = turned.reshape(len(self.turns), count, -1)
        likeness, shift = self._refined(
            flat[turn.ravel(), np.repeat(np.arange(count), kept)], rows.ravel(), shift.reshape(count * kept, -1)
        )
        likeness = likeness.reshape(rows.shape)
        if barred is not None:
            likeness[np.take_along_axis(barred, rows, 1)] = -1
        best = likeness.argmax(1)
        each = np.arange(count)
        real = np.where(likeness[each, best] >= 0, rows[each, best], -1)
        turn, shift = turn[each, best], shift.reshape(count, kept, -1)[each, best]
        return Matches(real, turn, shift, np.where(real >= 0, self._misfit(hu, real, turn, shift), 1.0))

    def _misfit(self, hu: NDArray, real: NDArray, turn: NDArray, shift: NDArray) -> Floats:
        """(N,), where the two overlap. Detail is taken again, of the overlaps alone: so both have the same border, and a copy fits exactly."""
        turned = np.empty_like(hu)
        for number in np.unique(turn):
            turned[turn == number] = self.turns[number].of(hu[turn == number])
        found = np.empty(len(hu))
        for one in np.unique(shift, axis=0):
            rows = np.flatnonzero((shift == one).all(1))
            here, there = overlap(self.shape, one.tolist())
            a, b = (detail(x).reshape(len(rows), -1).astype(np.float64) for x in (turned[rows][:, *here], self.hu[real[rows]][:, *there]))
            least = FLAT_HU * np.sqrt(a.shape[1])
            strengths = [np.maximum(np.sqrt(np.square(x).sum(1)), least) for x in (a, b)]
            found[rows] = np.sqrt(1 - np.clip((a * b).sum(1) / (strengths[0] * strengths[1]), 0, 1) ** 2)
        return found

    def _coarse(self, hu: NDArray) -> NDArray[np.float32]:
        """Rougher detail, as hu, in whole numbers: LEVELS to a standard deviation."""
        bare = _band(hu, SMALL_FINE * self.factor, SMALL_ROUGH * self.factor)
        spread = np.maximum(np.sqrt(np.square(bare).mean(tuple(range(1, hu.ndim)), keepdims=True)), FLAT_HU)
        return np.clip(np.rint(bare / spread * LEVELS), -127, 127).astype(np.float32)

    def _sampled(self, coarse: NDArray, place: NDArray) -> NDArray[np.float32]:
        """(N, voxels) of the small images: every factor-th voxel of the middle, moved by `place`."""
        slices = [slice(self.shift + n, side - self.shift + n, self.factor) for n, side in zip(place, self.shape, strict=True)]
        return np.ascontiguousarray(coarse[:, *slices]).reshape(len(coarse), -1)

    def _candidates(self, coarse: NDArray, barred: NDArray | None) -> tuple[NDArray, NDArray, NDArray]:
        """Rows of the real patches most alike in the small, with the likeliest turns (N, K) and shifts in voxels (N, K, axes).

        The small images are whole numbers up to 127 of at most a thousand voxels. Their products add up to less than 2^24, so
        float32 has the sums exactly, in whatever order they are added: the candidates of a patch do not depend on its batch.
        """
        still = np.zeros(len(self.shape), int)
        middles = [self._sampled(one.of(coarse), still) for one in self.turns]
        alike = np.zeros((len(coarse), len(self)), np.float32)
        for middle in middles:
            for window, strength in zip(self._small, self._strength, strict=True):
                np.maximum(alike, middle @ window.T / strength, out=alike)
        if barred is not None:
            alike[barred] = -1
        kept, ways = min(self.effort.candidates, len(self)), min(self.effort.ways, len(self.turns))
        rows = np.argpartition(-alike, kept - 1, axis=1)[:, :kept]
        rows.sort(axis=1)
        turn = np.empty((len(coarse), kept, ways), np.int64)
        place = np.empty_like(turn)
        stacked = np.stack(middles, 1)
        for n, row in enumerate(rows):  # (turns, voxels) @ (K, voxels, places)
            products = stacked[n] @ self._small[:, row].transpose(1, 2, 0) / self._strength[:, row].T[:, None]
            turn[n] = np.argsort(-products.max(2), axis=1, kind="stable")[:, :ways]
            place[n] = np.take_along_axis(products.argmax(2), turn[n], 1)
        count = kept * ways
        return rows.repeat(ways, 1), turn.reshape(-1, count), self.places[place].reshape(-1, count, len(self.shape))

    def _refined(self, middle: NDArray, rows: NDArray, shift: NDArray) -> tuple[Floats, NDArray]:
        """Correlation of detail at the best shift within a voxel of the given one, (P,), and that shift (P, axes)."""
        windows = _sliding(self.detail, self.shift)
        least = FLAT_HU * np.sqrt(middle.shape[1])
        strength = np.maximum(np.sqrt(np.square(middle).sum(1)), least)
        best, found = np.full(len(rows), -np.inf), shift.copy()
        for way in product((0, -1, 1), repeat=len(self.shape)):
            tried = np.clip(shift + way, -self.shift, self.shift)
            laid = windows[rows, *(tried + self.shift).T].reshape(len(rows), -1)
            here = (middle * laid).sum(1) / (strength * np.maximum(np.sqrt(np.square(laid).sum(1)), least))
            better = here > best
            best[better], found[better] = here[better], tried[better]
        return best, found


def turns(shape: tuple[int, ...], spacing_mm: Sequence[float] | None = None) -> tuple[Turn, ...]:
    """The symmetries of a patch: 8 of a square, 48 of a cube; axes of different length or spacing are not exchanged."""
    axes = range(len(shape))
    like = list(zip(shape, spacing_mm or (1.0,) * len(shape), strict=True))
    return tuple(
        Turn(order, tuple(axis for axis, flip in zip(axes, flips, strict=True) if flip))
        for order in permutations(axes)
        if all(like[axis] == like[place] for place, axis in enumerate(order))
        for flips in product((False, True), repeat=len(shape))
    )


def detail(hu: NDArray) -> NDArray[np.float32]:
    """HU between two blurs, as hu."""
    return np.ascontiguousarray(_band(hu, FINE, ROUGH), np.float32)


def _band(hu: NDArray, fine: float, rough: float) -> NDArray:
    blurred = [gaussian_filter(hu, (0, *[sigma] * (hu.ndim - 1)), truncate=3.0) for sigma in (fine, rough)]
    return blurred[0] - blurred[1]


def _sliding(images: NDArray, reach: int) -> NDArray:
    """(N, shifts along each axis ..., middle ...): each image's middle, moved by -reach to reach, as a view."""
    sides = tuple(side - 2 * reach for side in images.shape[1:])
    return np.lib.stride_tricks.sliding_window_view(images, sides, axis=tuple(range(1, images.ndim)))


def overlap(shape: tuple[int, ...], shift: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a turned patch and a real one show the same, in either, see Matches.shift."""
    here = tuple(slice(max(0, -s), side - max(0, s)) for s, side in zip(shift, shape, strict=True))
    there = tuple(slice(max(0, s), side - max(0, -s)) for s, side in zip(shift, shape, strict=True))
    return here, there


def _middle(images: NDArray, reach: int) -> NDArray:
    return images[:, *[slice(reach, side - reach) for side in images.shape[1:]]]
