"""Distances in HU from patches to real patches, voxel by voxel.

Patches are HU, (N, H, W) or (N, D, H, W). Distance is the root mean square difference in HU within
one window, at the best of all mirrorings of the first patch: 0 is a copy, and mirroring a copy
does not hide it. A shift does: `copies.py` lays patches over each other first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from evaluate.intervals import Patients

Floats = NDArray[np.float64]
CHUNK = 512  # patches compared at a time
ROUNDING = 1e-5  # of the squared norms: more than float32 products are wrong by


@dataclass(frozen=True)
class Neighbours:
    """Distances in HU from synthetic (or other) patches to real ones.

    hu: (N1, N2), root mean square difference at the best mirroring.
    """

    hu: NDArray[np.float32]

    @property
    def nearest(self) -> NDArray[np.int64]:
        """Row of the nearest real patch of each patch, (N1,)."""
        return self.hu.argmin(1)

    @property
    def nearest_hu(self) -> NDArray[np.float32]:
        """Distance to the nearest real patch, (N1,)."""
        return self.hu.min(1)


def neighbours(patches: NDArray, real: NDArray, window: tuple[float, float]) -> Neighbours:
    """Distance in HU of every patch to every real patch, at the best mirroring of the patch.

    Matrix products find the distances. Products of other sizes round differently, so the nearest and all that
    rounding could exchange with it are computed again by subtraction: a copy is at exactly 0, and which
    patch is the nearest, and how near, does not depend on the other patches. Raises ValueError if the shapes differ.
    """
    if patches.shape[1:] != real.shape[1:]:
        raise ValueError(f"patches of shape {patches.shape[1:]} have no distance to ones of {real.shape[1:]}")
    reference = _flat(real, window)
    voxels = reference.shape[1]
    squared = np.empty((len(patches), len(real)), np.float32)
    real_norm = np.square(reference).sum(1)
    for start in range(0, len(patches), CHUNK):
        some = patches[start : start + CHUNK]
        found = np.full((len(some), len(real)), np.inf, np.float32)
        for mirrored in _mirrorings(some):
            flat = _flat(mirrored, window)
            norm = np.square(flat).sum(1)[:, None] + real_norm[None, :]
            np.minimum(found, norm - 2 * (flat @ reference.T), out=found)
        error = norm * np.float32(ROUNDING)
        rows, columns = np.nonzero(found - error <= (found + error).min(1, keepdims=True))
        exact = np.full(len(rows), np.inf, np.float32)
        for mirrored in _mirrorings(some):
            flat = _flat(mirrored, window)
            for at in range(0, len(rows), CHUNK):
                pairs = slice(at, at + CHUNK)
                exact[pairs] = np.minimum(exact[pairs], np.square(flat[rows[pairs]] - reference[columns[pairs]]).sum(1))
        found[rows, columns] = exact
        squared[start : start + CHUNK] = found
    return Neighbours(np.sqrt(np.maximum(squared, 0) / voxels))


def distance_to_another_patient(real: NDArray, patients: Patients, window: tuple[float, float]) -> Floats:
    """Distance in HU from each real patch to the nearest one of another patient, (N,).

    Of another patient, since two patches of one lesion resemble each other more than any
    synthetic patch should resemble either. Where all are of one patient: to the nearest other patch.
    """
    return nearest_of_another_patient(neighbours(real, real, window).hu, patients)


def nearest_of_another_patient(between_hu: NDArray, patients: Patients) -> Floats:
    """distance_to_another_patient, from the distances between all patches (N, N)."""
    ids = np.arange(len(between_hu)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    same = ids[:, None] == ids[None, :]
    if same.all():
        same = np.eye(len(between_hu), dtype=bool)
    return np.where(same, np.inf, between_hu).min(1).astype(np.float64)


def closeness_to(patches: NDArray, training: NDArray, spacing_hu: Floats, window: tuple[float, float]) -> Floats:
    """Of each patch to the training patches, (N,): the distance to the nearest over that one's spacing_hu (see Memorisation.closeness).

    spacing_hu: of each training patch to the nearest of another patient, as distance_to_another_patient has it.
    """
    found = neighbours(patches, training, window)
    return closeness(found.nearest_hu, spacing_hu[found.nearest])


def closeness(to_training_hu: NDArray, spacing_hu: Floats) -> Floats:
    """to_training over spacing; 0 for an exact copy even where training patches repeat each other."""
    safe = np.where(spacing_hu > 0, spacing_hu, 1)
    return np.where(to_training_hu > 0, np.where(spacing_hu > 0, to_training_hu / safe, np.inf), 0.0)


def within_window(hu: NDArray, window: tuple[float, float]) -> NDArray[np.float32]:
    """HU within the window, from its middle: float32 keeps most digits around 0."""
    middle = (window[0] + window[1]) / 2
    return (np.clip(hu, *window) - np.float32(middle)).astype(np.float32)


def _mirrorings(patches: NDArray) -> Iterator[NDArray]:
    axes = range(1, patches.ndim)
    for flips in product([False, True], repeat=len(axes)):
        yield np.flip(patches, tuple(axis for axis, flip in zip(axes, flips, strict=True) if flip))


def _flat(hu: NDArray, window: tuple[float, float]) -> NDArray[np.float32]:
    return within_window(hu, window).reshape(len(hu), -1)
