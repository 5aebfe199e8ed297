"""The critic's augmentation, for few patches: it sees real and synthetic ones changed in the same ways, so it cannot learn them by heart.

Karras et al. 2020, "Training generative adversarial networks with limited data": each change is made with a probability that rises while
the critic overfits. Up to some 0.8 the generator does not learn to draw the changes themselves (sec. 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MOST = 0.8
STEP = 0.01
"""What the probability rises or falls by after each look, one every LOOK_EVERY updates."""
LOOK_EVERY = 10
KEEP = 0.9
"""Of the scores seen before, at each look."""
SHIFT = 0.1
"""Of a side: how far a patch is moved at most."""


class Changes(NamedTuple):
    """Of N patches: flipped (N, axes but the last, which is `mirror`'s), turned (N,): last two sides exchanged, and moved (N, axes), pixels."""

    flipped: np.ndarray
    turned: np.ndarray
    moved: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, shape: Sequence[int], probability: float) -> Changes:
        """Each change with this probability (and then a flip or a turn is one in half of the cases), apart from the others."""
        axes = len(shape)
        made = rng.random((count, axes + 1)) < probability
        symmetric = made[:, :axes] & (rng.random((count, axes)) < 0.5)
        most = np.rint(SHIFT * np.asarray(shape)).astype(int)
        square = shape[-1] == shape[-2]
        return cls(symmetric[:, 1:], symmetric[:, 0] & square, rng.integers(-most, most + 1, (count, axes)) * made[:, axes:])

    def of(self, rows: np.ndarray | slice) -> Changes:
        """Those of some of the patches."""
        return Changes(*(one[rows] for one in self))

    def made(self, x: Tensor) -> Tensor:
        """(N, 1, *S) -> the same shape, changed; differentiable."""
        ones = [1] * (x.ndim - 1)
        flipped, turned, moved = (torch.from_numpy(one).to(x.device) for one in self)
        for axis in range(2, x.ndim - 1):
            x = torch.where(flipped[:, axis - 2].view(-1, *ones), x.flip(axis), x)
        if self.turned.any():
            x = torch.where(turned.view(-1, *ones), x.mT, x)
        for axis, side in enumerate(x.shape[2:], 2):
            place = (torch.arange(side, device=x.device) + moved[:, axis - 2, None]).abs()  # reflected at one border,
            place = (side - 1) - ((side - 1) - place).abs()  # and at the other
            x = x.gather(axis, place.view(len(x), *[side if n == axis else 1 for n in range(1, x.ndim)]).expand(x.shape))
        return x


class Overfitting:
    """How far the critic has learned its patches by heart, and the probability that follows.

    The measure is r_v of the paper's Eq. 1: how much better training patches score than held-out ones, as a share of how much better they
    score than synthetic ones. 0: no better; 1: held-out patches score as synthetic ones.
    """

    def __init__(self, target: float):
        self.target, self.probability = target, 0.0
        self._gaps = [0.0, 0.0]

    def look(self, training: float, held_out: float) -> float:
        """Moves the probability; returns the measure, smoothed. Both are mean scores, less that of synthetic patches."""
        self._gaps = [KEEP * gap + (1 - KEEP) * now for gap, now in zip(self._gaps, (training - held_out, training), strict=True)]
        measure = self._gaps[0] / max(self._gaps[1], 1e-6)
        self.probability = float(np.clip(self.probability + (STEP if measure > self.target else -STEP), 0, MOST))
        return measure

    @property
    def state(self) -> Tensor:
        """float64 (3,), for a checkpoint."""
        return torch.tensor([self.probability, *self._gaps], dtype=torch.float64)

    @state.setter
    def state(self, saved: Tensor) -> None:
        self.probability, *self._gaps = saved.tolist()
