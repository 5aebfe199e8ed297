"""What a patch is drawn for: its class, its lesion's diameter, as numbers the networks take.

Importing this file loads nothing heavier than NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KNOTS_MM = (3.0, 6.0, 12.0, 24.0, 48.0)
"""Diameters, evenly spaced on a log scale. They are fixed, not taken from the data: what a model was asked says nothing of patients."""


@dataclass(frozen=True)
class Conditions:
    """What a run's patches are drawn for. classes: their names; none when the class does not matter. diameter: whether it does.

    by_support: the networks are not told the diameter in numbers, since they see how far the lesion may reach (context.py). Told both, a
    critic of few lesions knows each by its diameter, and the generator draws one lesion for each, whatever the latent.
    """

    classes: tuple[str, ...] = ()
    diameter: bool = False
    by_support: bool = False

    @property
    def size(self) -> int:
        """K, how many numbers describe a patch."""
        return len(self.classes) + len(KNOTS_MM) * self._in_numbers

    @property
    def _in_numbers(self) -> bool:
        return self.diameter and not self.by_support

    def encode(self, labels: Sequence[str], diameters_mm: Sequence[float] | np.ndarray) -> np.ndarray:
        """float32 (N, K): 1 for the class, 0 for the others; then the diameter's share of its two neighbouring knots.

        Shares are linear in log diameter, so they sum to 1, and any curve over the knots is linear in them. An unknown
        diameter (NaN) has zeros. Raises ValueError for a class that is not among them.
        """
        out = np.zeros((len(labels), self.size), np.float32)
        if self.classes:
            number = {name: n for n, name in enumerate(self.classes)}
            unknown = sorted(set(labels) - set(number))
            if unknown:
                raise ValueError(f"class {unknown[0]!r} is not one of {', '.join(self.classes)}")
            out[np.arange(len(labels)), [number[label] for label in labels]] = 1
        if self._in_numbers:
            known = np.isfinite(diameters_mm)
            at = np.log(np.clip(np.asarray(diameters_mm, float)[known], KNOTS_MM[0], KNOTS_MM[-1]))
            knots = np.log(KNOTS_MM)
            shares = np.maximum(0, 1 - np.abs(at[:, None] - knots) / (knots[1] - knots[0]))
            out[known, len(self.classes) :] = shares
        return out

    def evenly(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray | None, np.ndarray]:
        """float32 (count, K), None where K is 0, and the diameters: every class equally often, diameters evenly on a log scale.

        Nothing of any training set.
        """
        labels = [self.classes[n] for n in rng.integers(len(self.classes), size=count)] if self.classes else [""] * count
        diameters_mm = np.exp(rng.uniform(np.log(KNOTS_MM[0]), np.log(KNOTS_MM[-1]), count))
        return self.encode(labels, diameters_mm) if self.size else None, diameters_mm

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Conditions:
        """From a checkpoint's {"classes": [...], "diameter": ..., "by_support": ...}; an absent one is unconditional."""
        return cls(
            tuple(str(name) for name in described.get("classes", ())), *(bool(described.get(name)) for name in ("diameter", "by_support"))
        )


def drawing_weights(labels: np.ndarray, balance: float) -> np.ndarray | None:
    """float64 (N,), sum 1: each patch's chance of being drawn, or None when all have the same.

    A class of n patches is drawn in proportion to n^(1 - balance): 0 as often as it occurs, 1 every class equally often.
    """
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if balance == 0 or len(counts) == 1:
        return None
    weights = (counts.astype(float) ** -balance)[codes]
    return weights / math.fsum(weights)
