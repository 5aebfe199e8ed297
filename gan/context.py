"""Lesions drawn into lesion-free patches: the generator, and what it draws into.

A rare lesion has few pictures, lesion-free anatomy has many. This generator takes the anatomy as it is and draws the lesion and its
transition into it: outside a soft support around the patch's middle nothing changes, not by a bit. Of critic and loss it changes
nothing, but that the critic sees patches through a window little wider than the support: what lies beyond comes from other places
than real lesions do, and the generator could not help it.

Shapes: N patches, 1 channel, *S = (H, W) or (D, H, W). Patches are float32 in [-1, 1]. The lesion's centre is the patch's middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gan.config import Origin
from gan.networks import BatchNorm, Convolution, UpsamplingConvolution, channels_last, from_cells, strides, to_cells, widths

REACH = 1.15
"""A lesion is not round: its support has this many times its radius, and MARGIN_MM more, before it fades over SOFT_MM."""
MARGIN_MM, SOFT_MM, SEEN_MM = 1.0, 3.0, 2.5
"""SEEN_MM: how much further the critic sees."""
TRIES = 8
"""Lesion-free patches among which the best is taken."""
UNKNOWN_MM = 8.0
"""The diameter of a lesion of which none is known: a constant, so that in a private run no patient's depends on another's."""
CHANGED = 0.5
"""A voxel belongs to the lesion where it was changed by this share of what the lesion's middle was."""
CONTRAST, CORE = "contrast", 0.7
"""What `contrast` is called among what is measured of samples, and the share of a lesion's radius within which it is."""
VISIBLE = 0.2
"""The contrast from which on a lesion can be seen: a tenth of the window, 140 HU of the usual 1,400, about half of what faint ground glass
differs from lung by."""

ORIGINS: Mapping[str, str] = {
    "cohort": "patients of the cohort that the model was trained on",
    "public": "patients of a public data set",
    "phantom": "procedural phantoms, which are nobody",
    "unknown": "patients of whom nothing was stated",
}
"""Whose anatomy a lesion is drawn into, in words."""


def privacy_of_composites(guarantee: str | None, origin: Origin) -> str:
    """What is promised of lesions drawn into this anatomy: a guarantee of the model covers the lesions, never whose anatomy is shown."""
    anatomy = f"the anatomy around a lesion is that of {ORIGINS[origin]}"
    if origin in ("public", "phantom"):
        return f"{guarantee or 'no guarantee: trained without differential privacy'}; {anatomy}"
    own = f" The model that draws the lesions has one, for those it was trained on: {guarantee}" if guarantee else ""
    return f"no guarantee: {anatomy}, shown as it is, whatever a header says: who may see theirs may see this, and nobody else.{own}"


class Patches(Protocol):
    """Patches: a length, and float32 (N, 1, *S) in [-1, 1] at positions (N,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: np.ndarray, /) -> np.ndarray | Tensor: ...


class Scene(NamedTuple):
    """What lesions are drawn into, each (N, 1, *S): the lesion-free patch, how far it may be changed, and how far the critic sees, 0 to 1."""

    background: Tensor
    support: Tensor
    view: Tensor


def support(
    shape: Sequence[int], spacing_mm: Sequence[float], diameters_mm: np.ndarray | Sequence[float], further_mm: float = 0.0
) -> np.ndarray:
    """float32 (N, 1, *S) in [0, 1]: where a lesion of each diameter may change its patch; 1 near the middle, 0 beyond `radius_mm`.

    In between a smoothstep, whose slope is 0 at both ends, so that no edge shows. further_mm: so much wider.
    """
    distance = _distance(shape, spacing_mm)
    ends = (radius_mm(np.asarray(diameters_mm, float)) + further_mm).reshape(-1, *[1] * (1 + len(shape)))
    inside = np.clip((ends - distance) / SOFT_MM, 0, 1)
    return (inside * inside * (3 - 2 * inside)).astype(np.float32)


def _distance(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """(*S): of each voxel from the middle, in mm."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    squares = [np.square(axis).reshape([-1 if a == b else 1 for b in range(len(shape))]) for a, axis in enumerate(axes)]
    return np.sqrt(sum(squares[1:], squares[0]))


def radius_mm(diameters_mm: np.ndarray) -> np.ndarray:
    """How far from its centre a lesion of this diameter may change a voxel."""
    return diameters_mm / 2 * REACH + MARGIN_MM + SOFT_MM


def largest_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """The diameter of the largest lesion whose support lies inside a patch."""
    half = min((n - 1) / 2 * mm for n, mm in zip(shape, spacing_mm, strict=True))
    return max(0.0, (half - MARGIN_MM - SOFT_MM) * 2 / REACH)


class Backgrounds:
    """Lesion-free patches to draw into."""

    def __init__(self, patches: Patches, spacing_mm: Sequence[float] | None, shape: Sequence[int], origin: Origin = "cohort"):
        if not len(patches):
            raise ValueError("there is no lesion-free patch to draw into")
        self.patches, self.shape, self.origin = patches, tuple(shape), origin
        self.spacing_mm = tuple(spacing_mm or [1.0] * len(shape))

    def draw(
        self, rng: np.random.Generator, diameters_mm: np.ndarray, like: np.ndarray | Tensor | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 (N, 1, *S), and which ones they are, (N,): for a lesion of each diameter, the best of TRIES random patches, flipped along
        each axis half of the time.

        like: real lesions (N, 1, *S) of these diameters. The best is the one whose density around the lesion, as far as the critic sees, is
        nearest to theirs: were surroundings of another kind than theirs, the critic would see that, and the generator would draw rings
        to make up for it. None: the best is the one that is least dense where the lesion goes.
        """
        count = len(diameters_mm)
        rows = rng.integers(len(self.patches), size=count * TRIES)
        some = np.asarray(self.patches[rows]).reshape(count, TRIES, 1, *self.shape)
        middle = support(self.shape, self.spacing_mm, diameters_mm, -SOFT_MM)
        if like is None:
            misfit = _mean(some, middle[:, None])
        else:
            around = np.where(middle > 0, 0, self.view(diameters_mm))
            theirs = like.cpu().numpy() if isinstance(like, Tensor) else like
            misfit = np.abs(_mean(some, around[:, None]) - _mean(theirs[:, None], around[:, None]))
        best = misfit.argmin(1)
        return self.flipped(rng, some[np.arange(count), best]), rows.reshape(count, TRIES)[np.arange(count), best]

    def flipped(self, rng: np.random.Generator, patches: np.ndarray) -> np.ndarray:
        """Patches (N, 1, *S), each along each axis half of the time."""
        for axis in range(2, patches.ndim):
            turn = (rng.random(len(patches)) < 0.5).reshape(-1, *[1] * (patches.ndim - 1))
            patches = np.where(turn, np.flip(patches, axis), patches)
        return patches

    def scene(self, rng: np.random.Generator, diameters_mm: np.ndarray, like: np.ndarray | Tensor | None = None) -> Scene:
        """What lesions of these diameters are drawn into. like: see draw."""
        return scene_of(self.draw(rng, diameters_mm, like)[0], self.spacing_mm, diameters_mm)

    def view(self, diameters_mm: np.ndarray) -> np.ndarray:
        """float32 (N, 1, *S) in [0, 1]: how far the critic sees real lesions of these diameters."""
        return support(self.shape, self.spacing_mm, diameters_mm, SEEN_MM)


def _mean(patches: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of patches (N, M, 1, *S), with weights (N, 1, 1, *S): (N, M); 0 where all weights are 0, as around a lesion larger than its patch."""
    axes = tuple(range(2, patches.ndim))
    return (patches * weights).sum(axes) / np.maximum(weights.sum(axes), 1e-6)


def scene_of(backgrounds: np.ndarray, spacing_mm: Sequence[float], diameters_mm: np.ndarray) -> Scene:
    """Of lesion-free patches (N, 1, *S) and the diameters (N,) of what is to be drawn into them."""
    windows = (support(backgrounds.shape[2:], spacing_mm, diameters_mm, further) for further in (0.0, SEEN_MM))
    return Scene(*(torch.from_numpy(one) for one in (np.ascontiguousarray(backgrounds), *windows)))


class ContextGenerator(nn.Module):
    """Latent, condition and scene to patch: the plain generator's layers draw the lesion, told its size by the support at each of their
    own; the anatomy decides only, with the lesion, how opaque it is.

    x = b + s a (v - b), with background b, support s, opacity a in (0, 1) and drawn value v in [-1, 1]: outside the support x is b
    exactly, x never leaves the window, and vessels or pleura shine through where a is small. That v knows nothing of b makes lesions
    differ by their latents: a generator that saw the anatomy throughout took it for its source of chance, and in one place drew one lesion.
    """

    def __init__(self, shape: Sequence[int], channels: int, latent: int, conditions: int = 0):
        super().__init__()
        self.steps, maps = strides(shape), widths(shape, channels)
        self.latent, self.conditions, self.cell = latent, conditions, self.steps[0]
        sides = [side // prod(axis) for side, axis in zip(shape, zip(*self.steps, strict=True), strict=True)]
        self.start = (maps[-1], *sides)
        self.project = nn.Linear(latent + conditions, prod(self.start), bias=False)
        nn.init.normal_(self.project.weight, std=0.02)
        self.norms, self.up = nn.ModuleList([BatchNorm(maps[-1])]), nn.ModuleList()
        for (before, after), stride in zip(pairwise(maps[::-1]), self.steps[:0:-1], strict=True):
            self.up.append(UpsamplingConvolution(before + 1, after, stride))
            self.norms.append(BatchNorm(after))
        self.anatomy = Convolution(2 * prod(self.cell), maps[0], self.cell, cells=True)
        self.value = UpsamplingConvolution(maps[0] + 1, 1, self.cell, cells=True)
        self.opacity = UpsamplingConvolution(2 * maps[0] + 1, 1, self.cell, cells=True)
        self.bias = nn.Parameter(torch.zeros(2))

    def forward(self, z: Tensor, condition: Tensor | None, scene: Scene) -> Tensor:
        """(N, latent), standard normal, (N, K), and the scene -> (N, 1, *S) in [-1, 1]."""
        z = z if condition is None else torch.cat([z, condition], 1)
        sizes = [2 * scene.support - 1]
        for step in self.steps:
            sizes.append(_POOL[len(step)](sizes[-1], step, step))
        x = self.project(z).view(-1, *self.start).contiguous(memory_format=channels_last(len(self.cell)))
        for n, norm in enumerate(self.norms):
            x = torch.cat([torch.relu(norm(x)), sizes[-1 - n]], 1)
            x = self.up[n](x) if n < len(self.up) else x
        anatomy = self.anatomy(torch.cat([to_cells(scene.background, self.cell), to_cells(sizes[0], self.cell)], 1))
        value = torch.tanh(from_cells(self.value(x), self.cell) + self.bias[0])
        opacity = torch.sigmoid(from_cells(self.opacity(torch.cat([x, anatomy], 1)), self.cell) + self.bias[1])
        return scene.background + scene.support * opacity * (value - scene.background)


_POOL = {2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}


def contrast(patches: np.ndarray, backgrounds: np.ndarray, spacing_mm: Sequence[float], diameters_mm: np.ndarray) -> np.ndarray:
    """float64 (N,), in [0, 2]: how far lesions stand out from the anatomy (N, 1, *S) they were drawn into: the mean absolute change within
    CORE of the radius."""
    change = np.abs(patches.astype(np.float64) - backgrounds)
    distance = _distance(patches.shape[2:], spacing_mm)
    radii = np.maximum(np.asarray(diameters_mm) / 2 * CORE, distance.min()).reshape(-1, *[1] * distance.ndim)
    inside = distance <= radii
    return (change[:, 0] * inside).sum(axis=tuple(range(1, change.ndim - 1))) / inside.reshape(len(inside), -1).sum(1)


def seen_in(
    anatomy: np.ndarray, spacing_mm: Sequence[float], diameters_mm: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The test (see selection.py) that a lesion can be seen in its anatomy (N, 1, *S): of candidates (n, 1, *S), and which of the N they are
    for, the contrasts, and whether they are enough. A patch that is said to show what nobody can see would be a wrong label.

    anatomy is looked at when candidates come, so that whoever draws them may draw it anew.
    """

    def seen(patches: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = contrast(patches, anatomy[rows], spacing_mm, diameters_mm[rows])
        return found, found >= VISIBLE

    return seen


def lesion_masks(patches: np.ndarray, scene: Scene) -> np.ndarray:
    """bool (N, *S): the lesions of patches (N, 1, *S) that were drawn into a scene.

    Where a voxel was changed by half of what the most changed fiftieth of the inner support was, holes filled; the piece nearest to the middle.
    All False where nothing was changed.
    """
    from scipy import ndimage

    found = np.zeros((len(patches), *patches.shape[2:]), bool)
    middle = (np.array(patches.shape[2:]) - 1) / 2
    for n, (x, b, s) in enumerate(zip(patches[:, 0], scene.background[:, 0].cpu().numpy(), scene.support[:, 0].cpu().numpy(), strict=True)):
        change = np.abs(x - b)
        most = np.quantile(change[s >= 0.5 * s.max()], 0.98)
        if most > 0:
            pieces, _ = ndimage.label(ndimage.binary_fill_holes(change >= CHANGED * most))
            places = np.argwhere(pieces)
            nearest = places[np.square(places - middle).sum(1).argmin()]
            found[n] = pieces == pieces[tuple(nearest)]
    return found
