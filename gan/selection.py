"""Drawing until what is drawn is what was asked for: candidate a of seed k follows from k and a alone, and so does the one that is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LEAST_RATE = 0.01
"""Of candidates that are taken: below this, something is asked for that the model does not draw."""
PATIENCE = 2000
"""Candidates before the rate is judged."""
MOST_ATTEMPTS = 1000
"""Candidates of one seed."""

Test = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Patches (n, 1, *S) in [-1, 1] and which samples they are for, int (n,) -> what was measured, float (n,), and whether it will do, bool (n,)."""


@dataclass
class Tally:
    """How many candidates were drawn, and which test turned down how many (the first that did)."""

    drawn: int = 0
    taken: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def add(self, drawn: int, taken: int, rejected: Mapping[str, int]) -> None:
        self.drawn, self.taken = self.drawn + drawn, self.taken + taken
        self.rejected.update(rejected)

    def facts(self) -> dict[str, Any]:
        """As `add` takes them, for JSON."""
        return {"drawn": self.drawn, "taken": self.taken, "rejected": dict(self.rejected)}

    def summary(self) -> dict[str, Any]:
        """The same, and the rate."""
        return {**self.facts(), "acceptance": round(self.rate, 4)}

    @property
    def rate(self) -> float:
        return self.taken / max(self.drawn, 1)

    def words(self) -> str:
        """Such as "412 of 1,000 candidates taken (0.41); turned down: 588 by diameter"."""
        turned = ", ".join(f"{count:,} by {name}" for name, count in self.rejected.most_common() if count)
        return f"{self.taken:,} of {self.drawn:,} candidates taken ({self.rate:.2g})" + (f"; turned down: {turned}" if turned else "")


Watch = Callable[[Tally], None]


@dataclass(frozen=True)
class Taken:
    """N samples. patches: float32 (N, 1, *S). attempts: int (N,). measured: what each test measured, float (N,). anatomy: (N, 1, *S), what each
    was drawn into; None where into nothing."""

    patches: np.ndarray
    attempts: np.ndarray
    measured: dict[str, np.ndarray]
    anatomy: np.ndarray | None = None


def select(
    count: int, draw: Callable[[np.ndarray, int], np.ndarray], tests: Mapping[str, Test], tally: Tally, told: Callable[[int], str],
    most: int | None = None, watch: Watch = lambda tally: None,
) -> Taken:  # fmt: skip
    """For each of `count` samples its first candidate that passes every test.

    draw: which samples, int (n,), and which attempt -> patches (n, 1, *S) in [-1, 1]. told: names a sample in words. most: candidates of one
    sample, MOST_ATTEMPTS by default. watch: called after every attempt.
    Raises ValueError, with the rate, when hardly any candidate passes.
    """
    patches: np.ndarray | None = None
    attempts, measured = np.zeros(count, int), {name: np.full(count, np.nan) for name in tests}
    pending, attempt = np.arange(count), 0
    while len(pending):
        drawn = draw(pending, attempt)
        patches = np.empty((count, *drawn.shape[1:]), drawn.dtype) if patches is None else patches
        tally.drawn += len(pending)
        good = np.arange(len(pending))
        for name, test in tests.items():
            if not len(good):
                break
            values, passed = test(drawn[good], pending[good])
            measured[name][pending[good]] = values
            tally.rejected[name] += int((~passed).sum())
            good = good[passed]
        patches[pending[good]], attempts[pending[good]] = drawn[good], attempt
        tally.taken += len(good)
        pending, attempt = np.delete(pending, good), attempt + 1
        watch(tally)
        if len(pending) and tally.drawn >= PATIENCE and tally.rate < LEAST_RATE:
            raise ValueError(
                f"hardly any sample is as asked for: {tally.words()}; ask for less, train on more such lesions, or see --reject"
            )
        if len(pending) and attempt == (most or MOST_ATTEMPTS):
            raise ValueError(
                f"{told(int(pending[0]))}: none of {attempt:,} candidates is as asked for; in all, {tally.words()}; ask for less, other seeds, or train longer"
            )
    assert patches is not None
    return Taken(patches, attempts, measured)
