"""What detectors' training patches are changed by without any generator: classic augmentation, and a policy.

Patches are float32 tensors (B, *shape) in [-1, 1], two or three axes; every patch gets its own draws.
Uncovered voxels repeat the border.
"""

from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

NOISE = 0.02  # of the window's half-width: 14 HU for a window of 1400
SHIFT = 0.06  # of a patch's side

# The strongest change of each kind; a patch's is uniform between none and this.
TURN, SHEAR, ZOOM, MOVE = np.pi / 6, 0.3, 1.3, 0.2  # radians, slope, factor, of a side
OFFSET, CONTRAST, GAMMA = 0.15, 1.4, 1.6  # 105 HU for a window of 1400, factors
BLUR, SHARPEN, GRAIN = 1.0, 1.5, 0.1  # voxels, factor of what blurring takes away, 70 HU
GEOMETRIC = ("turn", "shear", "zoom", "move")
INTENSITY = ("offset", "contrast", "gamma", "blur", "sharpen", "grain")
OPERATIONS = ("none", *GEOMETRIC, *INTENSITY)


def augment_classic(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """Flips, quarter turns, shifts of a few pixels and noise: what is usual without a generator.

    Quarter turns only in planes whose sides are equal.
    """
    count, *shape = patches.shape
    patches = _axes_exchanged(patches, rng)
    index: list[Tensor] = [torch.arange(count, device=patches.device).view(-1, *[1] * len(shape))]
    for axis, n in enumerate(shape):
        most = max(1, round(SHIFT * n))
        places = np.arange(n) + rng.integers(-most, most + 1, count)[:, None]
        places = places.clip(0, n - 1)
        places = np.where(rng.random(count)[:, None] < 0.5, places[:, ::-1], places)
        view = [count, *[n if a == axis else 1 for a in range(len(shape))]]
        index.append(torch.from_numpy(places.copy()).to(patches.device).view(view))
    return patches[tuple(index)] + NOISE * _noise(patches, rng)


def augment_turns(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """Flips and quarter turns, which keep every HU and its neighbours: for what must not be hidden by noise, shifts or smoothing."""
    patches = _axes_exchanged(patches, rng)
    for axis in range(1, patches.ndim):
        patches = _where_drawn(rng.random(len(patches)) < 0.5, patches.flip(axis), patches)
    return patches


def augment_policy(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """One operation of one strength a patch, both uniform: TrivialAugment (Müller & Hutter 2021, Algorithm 1).

    As there, over the usual flips and shifts (`augment_classic` comes first). Its photographic operations
    (posterise, solarise, equalise, invert) mean nothing in HU and have no part. MONAI has the others, but
    a patch at a time: 0.15 to 2 ms each, about 60 ms a batch of 64, where the whole training step takes 16.
    """
    count = len(patches)
    kinds, strengths = rng.integers(0, len(OPERATIONS), count), rng.uniform(-1, 1, count)
    places = rng.random((count, 2))
    changed = patches.clone()
    for kind, operation in enumerate(OPERATIONS):
        rows = np.flatnonzero(kinds == kind)
        if operation == "none" or not len(rows):
            continue
        some = patches[rows]
        if operation in GEOMETRIC:
            changed[rows] = _warp(some, _matrices(operation, some.shape[1:], strengths[rows], places[rows]))
        else:
            view = torch.from_numpy(strengths[rows].astype(np.float32)).to(patches.device).view(-1, *[1] * (patches.ndim - 1))
            changed[rows] = _intensity(operation, some, view, rng).clamp(-1, 1)  # no patch to be judged has HU beyond the window
    return changed


def _axes_exchanged(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the patches with two axes exchanged, where these have equal sides; together with flips that gives every quarter turn."""
    count, *shape = patches.shape
    for a in range(1, len(shape)):
        swap = rng.random(count) < 0.5
        if shape[a - 1] == shape[a]:
            patches = _where_drawn(swap, patches.transpose(a, a + 1), patches)
    return patches


def _where_drawn(drawn: NDArray, changed: Tensor, patches: Tensor) -> Tensor:
    """changed where drawn, bool (B,), and patches elsewhere."""
    return torch.where(torch.from_numpy(drawn).to(patches.device).view(-1, *[1] * (patches.ndim - 1)), changed, patches)


def _noise(patches: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(patches.shape, dtype=np.float32)).to(patches.device)


def _matrices(operation: str, shape: torch.Size, strength: NDArray, place: NDArray) -> NDArray:
    """Where each patch's voxels come from, around its centre: (B, axes, axes + 1), in voxels.

    strength: (B,) in [-1, 1]; place: (B, 2) in [0, 1), which axis or plane. Planes have equal sides
    where any do, so that slices are not turned into one another.
    """
    axes, every = len(shape), np.arange(len(strength))
    planes = [p for p in combinations(range(axes), 2) if shape[p[0]] == shape[p[1]]] or [(axes - 2, axes - 1)]
    first, second = np.array(planes)[(place[:, 0] * len(planes)).astype(int)].T
    forward = place[:, 1] < 0.5
    first, second = np.where(forward, first, second), np.where(forward, second, first)
    matrices = np.tile(np.eye(axes, axes + 1), (len(strength), 1, 1))
    if operation == "turn":
        cosine, sine = np.cos(TURN * strength), np.sin(TURN * strength)
        matrices[every, first, first] = matrices[every, second, second] = cosine
        matrices[every, first, second], matrices[every, second, first] = sine, -sine
    elif operation == "shear":
        matrices[every, first, second] = SHEAR * strength
    elif operation == "zoom":
        matrices[:, :, :axes] *= (ZOOM**strength)[:, None, None]
    else:
        axis = (place[:, 0] * axes).astype(int)
        matrices[every, axis, axes] = MOVE * strength * np.array(shape)[axis]
    return matrices


def _warp(patches: Tensor, matrices: NDArray) -> Tensor:
    """Patches read, linearly, at the places that matrices (B, axes, axes + 1) say."""
    half = np.array(patches.shape[1:]) / 2  # torch counts an axis from -1 to 1, and the last one first
    matrices = matrices * np.append(half, 1) / half[:, None]
    theta = np.concatenate([matrices[:, ::-1, -2::-1], matrices[:, ::-1, -1:]], axis=2)
    grid = nn.functional.affine_grid(torch.from_numpy(theta.astype(np.float32)), [len(patches), 1, *patches.shape[1:]], align_corners=False)
    return nn.functional.grid_sample(patches[:, None], grid.to(patches.device), padding_mode="border", align_corners=False)[:, 0]


def _intensity(operation: str, patches: Tensor, strength: Tensor, rng: np.random.Generator) -> Tensor:
    """One of INTENSITY; strength: (B, 1, ...) in [-1, 1]."""
    amount = strength.abs()
    if operation == "offset":
        return patches + OFFSET * strength
    if operation == "contrast":
        mean = patches.flatten(1).mean(1).view_as(strength)
        return mean + (patches - mean) * CONTRAST**strength
    if operation == "gamma":
        return (patches.clamp(-1, 1) / 2 + 0.5) ** (GAMMA**strength) * 2 - 1
    if operation == "blur":
        return _blurred(patches, BLUR * amount)
    if operation == "sharpen":
        return patches + SHARPEN * amount * (patches - _blurred(patches, torch.ones_like(amount)))
    return patches + GRAIN * amount * _noise(patches, rng)


def _blurred(patches: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian smoothing of each patch by its own sigma (B, 1, ...), in voxels, at most 1."""
    offsets = torch.arange(-3, 4, device=patches.device)
    weights = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3).flatten()[:, None]) ** 2)
    weights /= weights.sum(1, keepdim=True)
    for axis, n in enumerate(patches.shape[1:], 1):
        places = (torch.arange(n, device=patches.device)[:, None] + offsets).clamp(0, n - 1)
        windows = patches.index_select(axis, places.flatten()).unflatten(axis, (n, 7))
        patches = (windows * weights.view(-1, *[1] * axis, 7, *[1] * (patches.ndim - 1 - axis))).sum(axis + 1)
    return patches
