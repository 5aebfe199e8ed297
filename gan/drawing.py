"""Samples as they were asked for: from which model, for which class and diameter, and drawn again where a test turns them down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from gan.context import CONTRAST, Backgrounds, seen_in
from gan.orders import Orders, Request, orders, which_model
from gan.sampling import Model, candidates, composites, critic_scores, generate
from gan.selection import Taken, Tally, Test, Watch, select

PILOT, PILOT_SEEDS = 256, 2**62
"""Samples by which a quality, and what truncation costs, are judged, and their first seed, which nobody asks for."""

Check = Callable[[np.ndarray, Orders, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Patches (n, 1, *S) in [-1, 1], the orders of a part and which of them these are, int (n,) -> what is measured, and whether it will do."""
QUALITY = "critic_score"
ANATOMY = 1
"""Of a try's random numbers, those that decide what its lesion is drawn into."""


def draw(
    model: Model, seeds: Sequence[int], attempt: int, asked_mm: np.ndarray, condition: np.ndarray | None, truncation: float | None = None,
    backgrounds: Backgrounds | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """float32 (N, 1, *S) in [-1, 1]: each seed's attempt-th try, at lesions of asked_mm (N,); and the lesion-free patch it was drawn into.

    backgrounds: for a model that draws into them; which one a try gets follows from its seed, too. None without.
    """
    z = candidates(seeds, attempt, model.generator.latent, truncation)
    if backgrounds is None:
        return np.concatenate(list(generate(model, z, condition))), None
    anatomy = np.concatenate([
        backgrounds.draw(np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(attempt, ANATOMY))), asked_mm[n : n + 1])[0]
        for n, seed in enumerate(seeds)
    ])  # fmt: skip
    return np.concatenate([patches for patches, _ in composites(model, anatomy, asked_mm, z, condition)]), anatomy


@dataclass(frozen=True)
class Drawing:
    """What samples are drawn from and for, and what they must pass.

    models draw in these shares; they take the same conditions and give the same shape. spacing_mm: of a patch, None where unknown.
    backgrounds: what lesions are drawn into, for models that do; else None. truncation: see sampling.truncated. quality: the share of samples to keep, by their own model's critic. checks: by name, tried in order.
    """

    models: Sequence[Model]
    shares: Sequence[float]
    request: Request
    seeds: Sequence[int]
    spacing_mm: tuple[float, ...] | None = None
    truncation: float | None = None
    quality: float | None = None
    checks: Mapping[str, Check] = field(default_factory=dict)
    backgrounds: Backgrounds | None = None

    @property
    def measured(self) -> list[str]:
        """Names of what is measured of every sample."""
        own = {CONTRAST: self.backgrounds is not None, QUALITY: self.quality is not None}
        return [*self.checks, *[name for name, wanted in own.items() if wanted]]

    def asked(self, seeds: Sequence[int], first: int = 0) -> Orders:
        """What seeds are drawn for; first: which sample of the whole the first of them is."""
        return self._orders(seeds, self.request, first)

    def part(self, first: int, count: int, watch: Watch = lambda tally: None) -> tuple[Taken, Orders, np.ndarray, Tally]:
        """Some of the samples, what they were drawn for, the number of each one's model, int (n,), and what was turned down.

        Whatever parts the whole is drawn in, a sample is the same. Raises ValueError where hardly any candidate passes.
        """
        seeds, tally = self.seeds[first : first + count], Tally()
        asked, model_of = self.asked(seeds, first), which_model(seeds, self.shares)
        shape = (1, *self.models[0].trained_on["shape"])
        anatomy = None if self.backgrounds is None else np.empty((len(seeds), *shape), np.float32)

        def draw(rows: np.ndarray, attempt: int) -> np.ndarray:
            found = np.empty((len(rows), *shape), np.float32)
            for n in np.unique(model_of[rows]):
                mine = np.flatnonzero(model_of[rows] == n)
                found[mine], free = self._candidates(n, seeds, attempt, asked, rows[mine])
                if anatomy is not None:
                    anatomy[rows[mine]] = free
            return found

        def checked(check: Check, patches: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return check(patches, asked, rows)

        tests: dict[str, Test] = {name: partial(checked, check) for name, check in self.checks.items()}
        if self.backgrounds is not None and anatomy is not None:
            tests[CONTRAST] = seen_in(anatomy, self.backgrounds.spacing_mm, asked.asked_mm)
        if self.quality is not None:
            tests[QUALITY] = partial(self._score, model_of, asked)
        taken = select(count, draw, tests, tally, lambda row: asked.words(row, seeds[row]), watch=watch)
        return replace(taken, anatomy=anatomy), asked, model_of, tally

    def diversity(self) -> float:
        """How far samples lie from one another, over how far they would without truncation: mean root mean square differences."""
        seeds, request = range(PILOT_SEEDS, PILOT_SEEDS + PILOT), replace(self.request, fill=None, like=None)
        rows, half = np.arange(PILOT), PILOT // 2
        asked = self._orders(seeds, request)
        drawn = (drawing._candidates(0, seeds, 0, asked, rows)[0] for drawing in (self, replace(self, truncation=None)))
        with_it, without = (np.sqrt(np.square(x[:half] - x[half:]).reshape(half, -1).mean(1)).mean() for x in drawn)
        return float(with_it / without)

    def _orders(self, seeds: Sequence[int], request: Request, first: int = 0) -> Orders:
        return orders(request, self.models[0].conditions, self.models[0].trained_on, self.spacing_mm, seeds, first)

    def _candidates(
        self, model: int, seeds: Sequence[int], attempt: int, asked: Orders, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """These rows of the seeds, as `draw` has them."""
        one = self.models[model]
        mine = [seeds[row] for row in rows]
        return draw(one, mine, attempt, asked.asked_mm[rows], asked.condition(one.conditions, rows), self.truncation, self.backgrounds)

    def _score(self, model_of: np.ndarray, asked: Orders, patches: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, least = np.empty(len(rows)), np.empty(len(rows))
        for n, model in enumerate(self.models):
            mine = model_of[rows] == n
            scores[mine] = critic_scores(model, patches[mine], asked.condition(model.conditions, rows[mine]))
            least[mine] = [self._least_scores[n, label] for label in asked.labels[rows[mine]].tolist()]
        return scores, scores >= least

    @cached_property
    def _least_scores(self) -> dict[tuple[int, str], float]:
        """(model, class) -> the score that the wanted share of a pilot of that class is above."""
        assert self.quality is not None
        seeds, rows, found = range(PILOT_SEEDS, PILOT_SEEDS + PILOT), np.arange(PILOT), {}
        for n, model in enumerate(self.models):
            for label in model.conditions.classes or ("",):
                asked = self._orders(seeds, replace(self.request, label=label or "natural", fill=None, like=None))
                scores = critic_scores(model, self._candidates(n, seeds, 0, asked, rows)[0], asked.condition(model.conditions, rows))
                found[n, label] = float(np.quantile(scores, 1 - self.quality)) if self.quality < 1 else -np.inf
        return found
