"""Is there a seam where a lesion was drawn into a patch? What `edges.py` measures of composites, against real lesions.

A lesion has an outline and a texture of its own, and those are no seam: composites are compared with real lesions of the same
diameters, each measured around the same places.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.edges import MEASURES
from evaluate.halvings import LEAST_PATIENTS, Halvings
from evaluate.intervals import Interval, Patients

Floats = NDArray[np.float64]

SEAMS = ("gradient_edge", "radial_edge", "noise_edge", "rim_hu", "noise_step")
"""What a seam shows in. The others differ where the lesion is badly drawn, or the backgrounds are of another kind."""
MOST_STRATA = 5


@dataclass(frozen=True)
class EdgeTest:
    """One of MEASURES in composites and in real lesions of the same diameters.

    difference: of medians, composites less real, with its 95 % interval; floor: what the medians of two halves of the real patients
    typically differ by; ks: largest gap between the cumulative distributions, 0 to 1. It `differs` where the whole interval is
    further from 0 than the floor.
    """

    name: str
    title: str
    real_median: float
    composite_median: float
    difference: float
    interval: Interval
    floor: float
    ks: float
    differs: bool


@dataclass(frozen=True)
class Edges:
    """Every test, those of SEAMS in which composites differ, and how well diameters were matched: strata, and the medians that came of it."""

    tests: tuple[EdgeTest, ...]
    seams: tuple[str, ...]
    seam: bool
    strata: int
    real_diameter_mm: float
    composite_diameter_mm: float


def compare_edges(
    real: dict[str, Floats],
    composites: dict[str, Floats],
    radius_mm: tuple[Floats, Floats],
    patients: Patients,
    composite_patients: Patients,
    rng: np.random.Generator,
    *,
    draws: int = 400,
    halvings: int = 100,
) -> Edges:
    """Each measure of composites against real lesions of the same diameters. radius_mm: of real and of composites, of the lesion.

    Diameters are matched by strata (Cochran 1968): at most five that hold equal numbers of composites and 8 real patients or more each;
    a real patch counts as much as makes the strata's shares those of the composites. Intervals resample the real patients and the
    composites' (of their backgrounds; None where each stands alone). The floor is the median, over so many halvings of the real
    patients, of the difference between the halves' medians. Of sets without a seam, 3 of 100 were said to have one: 400
    times real lung nodules of one half of 295 patients against those of the other; random fields of 40 patients 1 of 100, of 12 patients 4.

    A measure with fewer than 8 real patients or composites is left out. Raises ValueError if there are fewer than 8 of either at all.
    """
    halves = Halvings.draw(patients, len(radius_mm[0]), len(radius_mm[1]), rng, halvings)
    who = np.arange(len(radius_mm[0])) if patients is None else np.asarray(patients)
    stratum, shares = _strata(*radius_mm, who)
    every = (np.ones((1, len(who))), _resampled(who, rng, draws), halves.first, halves.second)
    plain, drawn, first, second = (_matched(one, stratum, shares) for one in every)
    count = len(radius_mm[1])
    drawn_composites = _resampled(np.arange(count) if composite_patients is None else np.asarray(composite_patients), rng, draws)
    tests = []
    for name, title in MEASURES.items():
        r, c = np.isfinite(real[name]), np.isfinite(composites[name])
        if min(len(np.unique(who[r])), c.sum()) < LEAST_PATIENTS:
            continue
        x, y = real[name][r], composites[name][c]
        real_median, composite_median = float(weighted_medians(x, plain[:, r])[0]), float(np.median(y))
        differences = weighted_medians(y, drawn_composites[:, c]) - weighted_medians(x, drawn[:, r])
        low, high = np.nanquantile(differences, [0.025, 0.975])  # NaN where a draw has none of the patches that were measured
        floor = float(np.nanmedian(np.abs(weighted_medians(x, first[:, r]) - weighted_medians(x, second[:, r]))))
        tests.append(
            EdgeTest(
                name=name,
                title=title,
                real_median=real_median,
                composite_median=composite_median,
                difference=composite_median - real_median,
                interval=Interval(float(low), float(high)),
                floor=floor,
                ks=weighted_ks(x, y, plain[0, r]),
                differs=bool(low > floor or high < -floor),
            )
        )
    seams = tuple(one.name for one in tests if one.name in SEAMS and one.differs)
    diameters = 2 * float(weighted_medians(radius_mm[0], plain)[0]), 2 * float(np.median(radius_mm[1]))
    return Edges(tuple(tests), seams, bool(seams), len(shares), *diameters)


def weighted_medians(values: Floats, weights: Floats) -> Floats:
    """The median of values (N,) by each row of weights (K, N), (K,); NaN where a row has no weight."""
    order = np.argsort(values)
    below = np.cumsum(weights[:, order], axis=1)
    half = below[:, -1:] / 2
    slack = 1e-9 * half  # sums of equal weights miss a half by rounding
    lower, upper = ((below < edge).sum(1).clip(max=len(values) - 1) for edge in (half - slack, half + slack))
    return np.where(half[:, 0] > 0, (values[order][lower] + values[order][upper]) / 2, np.nan)


def weighted_ks(x: Floats, y: Floats, weights: Floats) -> float:
    """Kolmogorov and Smirnov's statistic of x (N,), by weights (N,), and y (M,): largest gap between cumulative distributions."""
    both = np.concatenate([x, y])
    order = np.argsort(both)
    gap = np.cumsum(np.concatenate([weights / weights.sum(), np.full(len(y), -1 / len(y))])[order])
    last = np.append(np.diff(both[order]) > 0, True)  # of equal values: between them no distribution has a step
    return float(np.abs(gap[last]).max())


def _strata(real_mm: Floats, composite_mm: Floats, who: NDArray) -> tuple[NDArray[np.intp], Floats]:
    """The stratum of each real patch, (N,), and the share of composites in each stratum, (S,)."""
    for count in range(MOST_STRATA, 0, -1):
        edges = np.quantile(composite_mm, np.arange(1, count) / count)
        mine = np.searchsorted(edges, real_mm, side="right")
        if count == 1 or all(len(np.unique(who[mine == n])) >= LEAST_PATIENTS for n in range(count)):
            break
    return mine, np.bincount(np.searchsorted(edges, composite_mm, side="right"), minlength=count) / len(composite_mm)


def _matched(weights: NDArray, stratum: NDArray[np.intp], shares: Floats) -> Floats:
    """Weights (K, N) changed so that each stratum has its share in each row, as far as it has any weight there."""
    there = weights @ (stratum[:, None] == np.arange(len(shares)))
    return weights * np.divide(shares, there, out=np.zeros_like(there), where=there > 0)[:, stratum]


def _resampled(who: NDArray, rng: np.random.Generator, draws: int) -> Floats:
    """How often each patch counts when patients are drawn with replacement, (draws, N)."""
    _, index = np.unique(who, return_inverse=True)
    count = int(index.max()) + 1
    return rng.multinomial(count, np.full(count, 1 / count), draws)[:, index].astype(np.float64)
