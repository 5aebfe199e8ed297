"""Can a network tell composites from real lesions? An AUROC on patients it was not trained on: 0.5 is a guess, 1 means always.

A small ResNet, that of `detector.py`, is trained on real against composite patches, fold by fold of patients. Patches are HU, (N, H, W)
or (N, D, H, W), with the lesion in the middle; the network sees float32 in [-1, 1]. Its training patches are flipped and turned by
quarters and nothing else: noise and interpolation would hide the very seams that are looked for, and shifts repeat the border.

Backgrounds of composites and real lesions come from other places in the lung, which an AUROC of whole patches would measure too. With
a radius per patch, everything further from the middle is one constant. A network then sees how large each mask is: give sets of the
same diameters, and read `by_size`, what the radius alone would tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluate.attributes import distance_to_centre_mm
from evaluate.detector import LEAST_PATCHES, Arm, DetectorSet, Recipe, log_odds_of, train_detector
from evaluate.intervals import Interval, halves_of_patients
from evaluate.scores import LEAST_PATIENTS, area_under_roc, weighted_area_under_roc

Floats = NDArray[np.float64]

TURNED = Arm("composite against real", "turns")
RECIPE = Recipe(steps=400, batch=64, network="small", balance="natural", device="cpu")


@dataclass(frozen=True)
class Shown:
    """Patches, hu (N, *S), and whose they are: ids, (N,), or (N, K) where each is of K patients.

    A composite is of the patient of its background and, where a real lesion was pasted, of that lesion's too: both have to be in
    the same fold, or it is left out of all judging. radius_mm: (N,), beyond it nothing is shown; None shows all.
    """

    hu: NDArray
    patients: NDArray
    radius_mm: Floats | None = None


@dataclass(frozen=True)
class ToldApart:
    """auroc: chance that a composite looks more like one than a real lesion of the same fold does, mean over seeds.

    interval: 95 %, over patients and, with two seeds or more, over trainings; they are `told` apart where it is above 0.5. Few patches
    make a weak network: not told apart is no proof that nobody can. by_size: the AUROC of radii alone, None without any. real,
    composites: log-odds of being a composite from networks that saw none of its patients, (seeds, N), NaN where no fold holds all of
    them; only those of one fold compare. folds: of each real patch and of each composite, -1 where none.
    """

    auroc: float
    interval: Interval
    told: bool
    by_size: float | None
    real: Floats
    composites: Floats
    folds: tuple[NDArray[np.int_], NDArray[np.int_]]


def tell_apart(
    real: Shown,
    composites: Shown,
    spacing_mm: Sequence[float],
    window: tuple[float, float],
    rng: np.random.Generator,
    *,
    fold_of: dict[str, int] | None = None,
    folds: int = 5,
    seeds: int = 3,
    recipe: Recipe = RECIPE,
    draws: int = 2000,
    tell: Callable[[int, int], None] = lambda seed, fold: None,
) -> ToldApart:
    """Trains folds x seeds networks and judges each patch by those that saw none of its patients. tell(seed, fold) comes before each.

    fold_of: the fold of each patient, from `deal_folds`, where composites were made fold by fold; dealt by rng where None. A
    patient's real patches and composites are in one fold. Folds stay the same from seed to seed; weights and batches do not.

    Raises ValueError, with the counts, if shapes do not fit or patches or patients are too few.
    """
    sets = (real, composites)
    if (
        real.hu.shape[1:] != composites.hu.shape[1:]
        or len(spacing_mm) != real.hu.ndim - 1
        or len({one.radius_mm is None for one in sets}) > 1
    ):
        raise ValueError(
            "patches are of one size with a spacing per axis, and have radii in both sets or in none, got "
            f"{real.hu.shape}, {composites.hu.shape} and {len(spacing_mm)} spacings"
        )
    who = [np.asarray(one.patients).astype(str).reshape(len(one.hu), -1) for one in sets]
    fold_of = deal_folds(who[0], who[1], folds, rng) if fold_of is None else fold_of
    width = max(one.shape[1] for one in who)
    names = np.concatenate([np.pad(one, ((0, 0), (0, width - one.shape[1])), mode="edge") for one in who])
    if unknown := set(names.ravel().tolist()) - set(fold_of):
        raise ValueError(f"{len(unknown)} patients have no fold; deal folds to those of both sets")
    theirs = np.vectorize(fold_of.__getitem__, otypes=[int])(names)
    fold = np.where((theirs == theirs[:, :1]).all(1), theirs[:, 0], -1)
    hu = np.concatenate([centre_only(one, spacing_mm, window) for one in sets])
    composite = np.arange(len(hu)) >= len(real.hu)
    numbers = np.unique(theirs).tolist()
    _check(composite, names[:, 0], theirs, fold, numbers)

    scores = np.full((seeds, len(hu)), np.nan)
    nothing = DetectorSet(hu[:0], composite[:0], names[:0, 0])
    for seed in range(seeds):
        for number in numbers:
            tell(seed, number)
            seen, judged = (theirs != number).all(1), fold == number
            train = DetectorSet(hu[seen], composite[seen], names[seen, 0])
            network = train_detector(train, nothing, window, TURNED, seed * len(numbers) + number, recipe, lambda step: None)
            scores[seed, judged] = log_odds_of(network, hu[judged], window, recipe.device)
    auroc, interval = area_within_folds(scores, composite, fold, names[:, 0], rng, draws)
    radii = [one.radius_mm for one in sets if one.radius_mm is not None]
    return ToldApart(
        auroc=auroc,
        interval=interval,
        told=interval.low > 0.5,
        by_size=area_under_roc(np.concatenate(radii), composite) if radii else None,
        real=scores[:, ~composite],
        composites=scores[:, composite],
        folds=(fold[~composite], fold[composite]),
    )


def tell_halves(
    real: Shown, spacing_mm: Sequence[float], window: tuple[float, float], rng: np.random.Generator, **options: Any
) -> ToldApart:
    """The floor: `tell_apart`, with its options, of two halves of the real patients, where there is nothing to tell."""
    first, second = (
        Shown(real.hu[rows], np.asarray(real.patients)[rows], None if real.radius_mm is None else real.radius_mm[rows])
        for rows in halves_of_patients(real.patients, len(real.hu), rng)
    )
    return tell_apart(first, second, spacing_mm, window, rng, **options)


def deal_folds(real: NDArray, composites: NDArray, folds: int, rng: np.random.Generator) -> dict[str, int]:
    """A fold of 0..folds-1 for each id in either array, of any shape; those in both, in one and in the other are spread evenly."""
    r, c = (np.asarray(ids).astype(str).ravel() for ids in (real, composites))
    order = rng.permutation(np.union1d(r, c))
    order = order[np.argsort(np.isin(order, r) + 2 * np.isin(order, c), kind="stable")]
    return {str(name): n % folds for n, name in enumerate(order)}


def centre_only(shown: Shown, spacing_mm: Sequence[float], window: tuple[float, float]) -> NDArray:
    """hu, with the window's low end further from the middle than a patch's radius."""
    if shown.radius_mm is None:
        return shown.hu
    distance_mm = distance_to_centre_mm(shown.hu.shape[1:], spacing_mm)
    return np.where(distance_mm <= shown.radius_mm.reshape(-1, *[1] * distance_mm.ndim), shown.hu, window[0])


def area_within_folds(
    scores: Floats, composite: NDArray[np.bool_], fold: NDArray[np.int_], names: NDArray, rng: np.random.Generator, draws: int
) -> tuple[float, Interval]:
    """Mean AUROC over seeds, (seeds, N), of all pairs of a composite and a real lesion in one fold, and its 95 % interval.

    Networks of two folds have no scale in common, so their scores are never compared (Airola et al. 2011). Each draw resamples
    patients and moves the mean by what other trainings would: Student's t times the standard error over seeds.
    """
    _, index = np.unique(names, return_inverse=True)
    patients = int(index.max()) + 1
    counts = np.concatenate([np.ones((1, patients)), rng.multinomial(patients, np.full(patients, 1 / patients), draws)])
    won, pairs = np.zeros((len(scores), draws + 1)), np.zeros(draws + 1)
    for number in np.unique(fold[fold >= 0]):
        rows = np.flatnonzero(fold == number)
        weights, mine = counts[:, index[rows]], composite[rows]
        here = weights[:, mine].sum(1) * weights[:, ~mine].sum(1)
        there = here > 0
        pairs += here
        for n, one in enumerate(scores):
            won[n, there] += here[there] * weighted_area_under_roc(one[rows], mine, weights[there])
    by_seed = won[:, pairs > 0] / pairs[pairs > 0]
    drawn, seeds = by_seed.mean(0)[1:], len(scores)
    if seeds > 1:
        drawn = drawn + rng.standard_t(seeds - 1, len(drawn)) * by_seed[:, 0].std(ddof=1) / np.sqrt(seeds)
    low, high = np.quantile(drawn.clip(0, 1), [0.025, 0.975])
    return float(by_seed[:, 0].mean()), Interval(float(low), float(high))


def _check(composite: NDArray[np.bool_], names: NDArray, theirs: NDArray, fold: NDArray, numbers: list[int]) -> None:
    for kind, mine in (("real lesions", ~composite), ("composites", composite)):
        patients = len(np.unique(names[mine & (fold >= 0)]))
        seen = min(int((mine & (theirs != number).all(1)).sum()) for number in numbers)
        judged = min(int((mine & (fold == number)).sum()) for number in numbers)
        if len(numbers) < 2 or patients < LEAST_PATIENTS or seen < LEAST_PATCHES or not judged:
            raise ValueError(
                f"telling apart needs 2 folds or more, {kind} of {LEAST_PATIENTS} patients, {LEAST_PATCHES} to train on and 1 to judge in each fold; "
                f"got {len(numbers)} folds, {patients} patients, {seen} and {judged}; give more, or fewer folds"
            )
