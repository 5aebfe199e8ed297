"""What each sample is drawn for: which model, which class, which diameter. All of it follows from the seed and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gan.conditions import Conditions

CLASS, DIAMETER, LIKE = 1, 2, 3
"""Streams of random numbers of a seed, besides its latents."""
TOLERANCE = 0.2
"""Where one diameter is wanted, and not a range: how far from it the measured one may be."""
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Likeness:
    """Real lesions to be imitated, N of them: class, diameter as it is listed, and as it is measured in the patch (NaN where it is not)."""

    labels: np.ndarray
    listed_mm: np.ndarray
    measured_mm: np.ndarray


@dataclass(frozen=True)
class Request:
    """What samples are wanted.

    label: a class, "natural" (as often as in training, or equally often where that is not known) or "balanced". between_mm: the least and
    the largest diameter, the same twice for just one. like: lesions to imitate, class by class where `label` or fill names one.
    fill: class -> how many more, the classes in turn; the samples are then as many as all of them together.
    """

    label: str = "natural"
    between_mm: tuple[float, float] | None = None
    like: Likeness | None = None
    fill: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Orders:
    """What N samples are drawn for. labels: class names, "" where there are none. asked_mm: told to the model, NaN where it is not.

    low_mm, high_mm: what the measured diameter must lie between; -inf and inf where any will do.
    """

    labels: np.ndarray
    asked_mm: np.ndarray
    low_mm: np.ndarray
    high_mm: np.ndarray

    def condition(self, conditions: Conditions, rows: np.ndarray) -> np.ndarray | None:
        """float32 (len(rows), K), as a model takes it; None for one that takes none."""
        return conditions.encode(self.labels[rows].tolist(), self.asked_mm[rows]) if conditions.size else None

    def words(self, row: int, seed: int) -> str:
        """Such as "seed 7, solid, measured 6.0 to 12.0 mm"."""
        label, low, high = self.labels[row], self.low_mm[row], self.high_mm[row]
        return ", ".join(
            [f"seed {seed}", *([str(label)] if label else []), *([f"measured {low:.1f} to {high:.1f} mm"] if np.isfinite(low) else [])]
        )


def missing(like: Likeness, wanted: int, conditions: Conditions) -> dict[str, int]:
    """Class -> how many lesions it lacks to `wanted`, the rarest first; all together under "" for a model that is asked for no class.

    Raises ValueError where none is missing.
    """
    names, counts = np.unique(like.labels, return_counts=True)
    found = {str(names[n]): int(wanted - counts[n]) for n in np.argsort(counts, kind="stable") if counts[n] < wanted}
    if not found:
        there = ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
        raise ValueError(f"--fill {wanted}: nothing is missing, there are {there}")
    return found if conditions.classes else {"": sum(found.values())}


def check_request(request: Request, conditions: Conditions) -> None:
    """Raises ValueError for what the model cannot be asked for, or what cannot be found among the lesions to imitate."""
    known = conditions.classes
    named = [*filter(None, request.fill or ()), *([request.label] if request.label not in ("natural", "balanced") else [])]
    for name in named:
        if name not in known:
            raise ValueError(f"--class {name}: this model can be asked for {', '.join(known) or 'no class; leave --class out'}")
        if request.like is not None and not (request.like.labels == name).any():
            raise ValueError(f"--class {name}: there is no lesion of it to match")
    if request.like is not None and known:
        unknown = sorted(set(request.like.labels.tolist()) - set(known))
        if unknown and not named:
            raise ValueError(f"class {unknown[0]} is among the lesions to match; this model can be asked for {', '.join(known)}")


def orders(
    request: Request, conditions: Conditions, trained_on: Mapping[str, Any], spacing_mm: Sequence[float] | None, seeds: Sequence[int],
    first: int = 0,
) -> Orders:  # fmt: skip
    """For each seed; first: which sample of the whole the first of them is. spacing_mm: of a patch, which no tolerance is finer than."""
    labels = _labels(request, conditions, trained_on.get("class_counts", {}), seeds, first)
    shape, asked = len(seeds), np.full(len(seeds), np.nan)
    low, high = np.full(shape, -np.inf), np.full(shape, np.inf)
    voxel = max(spacing_mm) if spacing_mm else 0.0
    if request.like is not None:
        rows = _like(request, conditions, labels, seeds)
        if conditions.classes and request.label == "natural" and request.fill is None:
            labels = request.like.labels[rows]
        asked, measured = request.like.listed_mm[rows].copy(), request.like.measured_mm[rows]
        known, room = np.isfinite(measured), np.maximum(TOLERANCE * measured, voxel)
        low[known], high[known] = (measured - room)[known], (measured + room)[known]
    elif request.between_mm is not None or conditions.diameter:
        asked = diameters_of(seeds, request.between_mm or natural_diameters(trained_on))
    if request.between_mm is not None:
        least, most = request.between_mm
        room = max(TOLERANCE * least, voxel) if least == most else 0.0
        low, high = np.full(shape, least - room), np.full(shape, most + room)
    if not conditions.diameter:
        asked[:] = np.nan
    return Orders(labels, asked, low, high)


def natural_diameters(trained_on: Mapping[str, Any]) -> Sequence[float]:
    """In mm: quantiles of the diameters trained on, evenly spaced; the ends of a usual range where they are not known."""
    return trained_on.get("diameter_deciles_mm") or (5.0, 20.0)


def diameters_of(seeds: Sequence[int], quantiles_mm: Sequence[float]) -> np.ndarray:
    """float64 (N,): each seed's own draw from the distribution with these evenly spaced quantiles."""
    places = [np.random.default_rng([seed, DIAMETER]).random() for seed in seeds]
    return np.interp(places, np.linspace(0, 1, len(quantiles_mm)), quantiles_mm)


def seed_of(seed: int, number: int) -> int:
    """The seed of a series' number-th lesion: its own for the first, so that it is that seed's sample, and others for the rest."""
    return seed if number == 1 else int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)[0])


def which_model(seeds: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """int (N,): the model that draws each seed. In any run of seeds, each model's part is within a few of its share.

    Multiples of the golden ratio fill [0, 1) evenly (Knuth 1998, vol. 3, sec. 6.4).
    """
    places = (np.asarray(seeds, np.uint64) * np.uint64(_GOLDEN)).astype(float) / 2.0**64
    ends = np.cumsum(np.asarray(shares, float) / np.sum(shares))
    return np.minimum(np.searchsorted(ends, places, side="right"), len(ends) - 1)


def _labels(request: Request, conditions: Conditions, counts: Mapping[str, int], seeds: Sequence[int], first: int) -> np.ndarray:
    known = conditions.classes
    if request.fill is not None:
        names, ends = list(request.fill), np.cumsum(list(request.fill.values()))
        return np.array(names)[np.searchsorted(ends, first + np.arange(len(seeds)), side="right")]
    if request.label in known or not known:
        return np.full(len(seeds), request.label if known else "", dtype=object).astype(str)
    chances = np.array([counts.get(name, 0) if counts and request.label == "natural" else 1 for name in known], float)
    chances /= chances.sum()
    return np.array([known[int(np.random.default_rng([seed, CLASS]).choice(len(known), p=chances))] for seed in seeds])


def _like(request: Request, conditions: Conditions, labels: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """int (N,): the row of `like` that each seed imitates; of its class where that was decided."""
    assert request.like is not None
    decided = conditions.classes and (request.fill is not None or request.label != "natural")
    places = np.array([np.random.default_rng([seed, LIKE]).random() for seed in seeds])
    if not decided:
        return (places * len(request.like.labels)).astype(int)
    rows = np.zeros(len(seeds), int)
    for name in np.unique(labels):
        of_class, wanted = np.flatnonzero(request.like.labels == name), labels == name
        rows[wanted] = of_class[(places[wanted] * len(of_class)).astype(int)]
    return rows
