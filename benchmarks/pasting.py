"""What a generator of lesions in anatomy has to beat: real lesions set into lesion-free patches, without a model.

Patches are float32 (N, 1, *S) in [-1, 1], two or three axes; the lesion's centre is the patch's middle. Each real lesion is flipped and
turned by quarters at random, and set into a lesion-free patch that has room for it (gan.context.Backgrounds), as a generator's are.

  pasted     with the soft edge of the generator's support, the brighter of lesion and anatomy at each voxel
  Poisson    seamless cloning (Pérez et al. 2003, Eq. 7) on the generator's support: the lesion's gradients, the anatomy's values at the border
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.linalg import spsolve

from gan.context import Backgrounds, support

Floats = NDArray[np.float32]


def paste(lesion: Floats, background: Floats, where: Floats) -> Floats:
    """All (*S); where: the support, in [0, 1]."""
    return np.maximum(background, where * lesion + (1 - where) * background)


def clone(lesion: Floats, background: Floats, where: Floats) -> Floats:
    """All (*S): inside the support, but for the patch's own border, the solution of Poisson's equation."""
    inside = (where > 0) & ndimage.binary_erosion(np.ones(where.shape, bool))
    number = np.full(where.shape, -1)
    number[inside] = np.arange(inside.sum())
    places = np.argwhere(inside)
    right = np.zeros(len(places))
    rows, columns = [np.arange(len(places))], [np.arange(len(places))]
    values = [np.full(len(places), 2.0 * where.ndim)]
    for axis in range(where.ndim):
        for step in (-1, 1):
            beside = places.copy()
            beside[:, axis] += step
            at = tuple(beside.T)
            right += lesion[inside] - lesion[at]
            known = number[at] < 0
            right[known] += background[at][known]
            rows.append(np.flatnonzero(~known))
            columns.append(number[at][~known])
            values.append(np.full((~known).sum(), -1.0))
    matrix = sparse.csc_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))))
    out = background.copy()
    out[inside] = np.clip(spsolve(matrix, right), -1, 1) if len(places) else []
    return out


BLENDS: Mapping[str, Callable[[Floats, Floats, Floats], Floats]] = {"pasted": paste, "Poisson": clone}


def set_in(
    lesions: Floats, diameters_mm: NDArray[np.float64], backgrounds: Backgrounds, count: int, rng: np.random.Generator, blend: str
) -> tuple[Floats, Floats, NDArray[np.int_]]:
    """`count` composites of lesions (M, 1, *S) drawn with replacement, the backgrounds they were set into, and which lesion each is, (count,)."""
    chosen = rng.integers(len(lesions), size=count)
    anatomy, _ = backgrounds.draw(rng, diameters_mm[chosen])
    return set_each(lesions[chosen], diameters_mm[chosen], anatomy, backgrounds, rng, blend), anatomy, chosen


def set_each(
    lesions: Floats, diameters_mm: NDArray[np.float64], anatomy: Floats, backgrounds: Backgrounds, rng: np.random.Generator, blend: str
) -> Floats:
    """Each lesion (N, 1, *S), turned at random, in its own anatomy (N, 1, *S)."""
    turned = quarter_turned(rng, backgrounds.flipped(rng, lesions))
    where = support(lesions.shape[2:], backgrounds.spacing_mm, diameters_mm)
    found = [BLENDS[blend](lesion[0], free[0], s[0]) for lesion, free, s in zip(turned, anatomy, where, strict=True)]
    return np.stack(found)[:, None]


def quarter_turned(rng: np.random.Generator, patches: Floats) -> Floats:
    """Each patch with each pair of equally long axes exchanged half of the time; with flips, all turns by quarters."""
    for a, b in combinations(range(2, patches.ndim), 2):
        if patches.shape[a] == patches.shape[b]:
            turn = (rng.random(len(patches)) < 0.5).reshape(-1, *[1] * (patches.ndim - 1))
            patches = np.where(turn, np.swapaxes(patches, a, b), patches)
    return patches
