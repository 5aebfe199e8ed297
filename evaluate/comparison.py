"""Distances between a synthetic and the real sets, each with its interval and floor.

Features are float64 (N, D), in the order training, held-out, synthetic; held-out is None where
there are no such patients.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluate.cohort import PatchSet
from evaluate.config import EvaluateConfig
from evaluate.distances import (
    energy_distance,
    frechet_distance,
    gaussian_mmd,
    kernel_distance,
    precision_recall_density_coverage,
    sliced_wasserstein,
    standardise,
)
from evaluate.features import Extractor
from evaluate.intervals import Extrapolation, Floor, Interval, bootstrap_interval, extrapolate_frechet, real_floor
from evaluate.report import ClassRow, ConfusedClass, Distance, Measure, Metric, Reference

Result = TypeVar("Result")

NEIGHBOURS = 5  # k of precision, recall, density and coverage
LEAST_PATIENTS = 4  # two halves of two patients each
LEAST_PER_CLASS = 10  # patches of a class in each set: a Gaussian fitted to fewer says nothing


def standardised(extractor: Extractor, features: list[NDArray | None]) -> list[NDArray | None]:
    """Training, held-out and synthetic features, on the scale of training patients where units differ."""
    if extractor.unit_scale:
        return features
    assert features[0] is not None  # an evaluation without training patches is refused earlier
    return [None if one is None else standardise(features[0], one)[0] for one in features]


def _metrics(rng: np.random.Generator) -> dict[Metric, Callable[[NDArray, NDArray], float]]:
    seed = int(rng.integers(2**31))  # one set of directions, so that draws differ in patients alone

    def sliced(x: NDArray, y: NDArray) -> float:
        return sliced_wasserstein(x, y, np.random.default_rng(seed), 128)

    def coverage(name: str, x: NDArray, y: NDArray) -> float:
        return float(getattr(precision_recall_density_coverage(x, y, NEIGHBOURS), name))

    return {
        "frechet": frechet_distance,
        "kernel": kernel_distance,
        "sliced_wasserstein": sliced,
        "energy": energy_distance,
        "gaussian_mmd": gaussian_mmd,
        "precision": partial(coverage, "precision"),
        "recall": partial(coverage, "recall"),
        "density": partial(coverage, "density"),
        "coverage": partial(coverage, "coverage"),
    }


def all_distances(
    extractor: Extractor,
    sets: list[NDArray | None],
    training: PatchSet,
    held_out: PatchSet,
    config: EvaluateConfig,
    rng: np.random.Generator,
) -> list[Distance]:
    """Every metric of one extractor, synthetic to held-out and to training patients, where there are enough patches."""
    synthetic = sets[2]
    assert synthetic is not None
    found = []
    references: list[tuple[Reference, NDArray | None, PatchSet]] = [
        ("held-out", sets[1], held_out),
        ("training", sets[0], training),
    ]
    for metric, distance in _metrics(rng).items():
        for name, real, patches in references:
            # Precision and its kin ask for more samples than neighbours, and for as many in each half.
            enough = 2 if metric not in ("precision", "recall", "density", "coverage") else 4 * (NEIGHBOURS + 1)
            if real is not None and min(len(real), len(synthetic)) >= enough:
                found.append(_distance(metric, distance, extractor, name, real, patches, synthetic, config, rng))
    return found


def _distance(
    metric: Metric,
    distance: Callable[[NDArray, NDArray], float],
    extractor: Extractor,
    reference: Reference,
    real: NDArray,
    patches: PatchSet,
    synthetic: NDArray,
    config: EvaluateConfig,
    rng: np.random.Generator,
    label: str | None = None,
) -> Distance:
    interval: Interval | str = f"{patches.size.patients} patients: an interval needs {LEAST_PATIENTS}"
    floor: Floor | str = "real patches of unseen patients alone give a floor"
    if reference == "held-out":
        floor = f"{patches.size.patients} held-out patients: a floor needs {LEAST_PATIENTS}"
    if patches.size.patients >= LEAST_PATIENTS:
        interval = _or_reason(
            lambda: _within_range(metric, bootstrap_interval(distance, real, synthetic, patches.patients, None, rng, config.draws))
        )
        if reference == "held-out":
            floor = _or_reason(lambda: real_floor(distance, real, patches.patients, synthetic, rng))
    extrapolated: Extrapolation | None = None
    if metric == "frechet" and min(len(real), len(synthetic)) >= 2 * real.shape[1]:
        extrapolated = extrapolate_frechet(real, synthetic, rng)
    return Distance(
        metric=metric,
        measure=Measure(
            extractor.name, extractor.weights_sha256, extractor.window, extractor.resize, real.shape[1], not extractor.unit_scale
        ),
        reference=reference,
        real_samples=len(real),
        real_patients=patches.size.patients,
        synthetic_samples=len(synthetic),
        value=distance(real, synthetic),
        interval=interval,
        floor=floor,
        extrapolated=extrapolated,
        label=label,
    )


def distances_by_class(
    extractor: Extractor,
    real: NDArray,
    synthetic: NDArray,
    real_patches: PatchSet,
    synthetic_patches: PatchSet,
    reference: Reference,
    config: EvaluateConfig,
    rng: np.random.Generator,
) -> tuple[ClassRow, ...]:
    """Fréchet and kernel distance class by class, the class with the fewest real patients first.

    Empty when no synthetic patch has a class of the real ones: the generator drew all as one kind.
    """
    if not set(real_patches.labels) & set(synthetic_patches.labels):
        return ()
    metrics = _metrics(rng)
    rows = []
    for label in np.unique(np.concatenate([real_patches.labels, synthetic_patches.labels])):
        here, there = np.flatnonzero(real_patches.labels == label), np.flatnonzero(synthetic_patches.labels == label)
        some = real_patches.take(here)
        if min(len(here), len(there)) < LEAST_PER_CLASS:
            rows.append(ClassRow(str(label), some.size, len(there), (), f"fewer than {LEAST_PER_CLASS} patches in a set"))
            continue
        found = tuple(
            _distance(name, metrics[name], extractor, reference, real[here], some, synthetic[there], config, rng, str(label))
            for name in ("frechet", "kernel")
        )
        rows.append(ClassRow(str(label), some.size, len(there), found))
    return tuple(sorted(rows, key=lambda row: (row.real.patients, row.label)))


def confused_classes(
    real: NDArray, synthetic: NDArray, real_patches: PatchSet, synthetic_patches: PatchSet, rng: np.random.Generator, draws: int = 40
) -> tuple[ConfusedClass, ...]:
    """Classes whose synthetic patches are nearer, by Fréchet distance, to the real patches of another class.

    Each distance is between as many patches, drawn anew each time; a class is confused where that holds in all but one of 40 draws.
    """
    labels = sorted(set(real_patches.labels.tolist()))
    rows = {label: np.flatnonzero(real_patches.labels == label) for label in labels}
    rows = {label: found for label, found in rows.items() if len(found) >= LEAST_PER_CLASS}
    confused = []
    for label in rows if len(rows) > 1 else ():
        there = np.flatnonzero(synthetic_patches.labels == label)
        size = min(len(there), *map(len, rows.values()))
        if size < LEAST_PER_CLASS:
            continue
        found = {other: np.empty(draws) for other in rows}
        for n in range(draws):
            some = synthetic[rng.choice(there, size, replace=False)]
            for other, theirs in rows.items():
                found[other][n] = frechet_distance(real[rng.choice(theirs, size, replace=False)], some)
        nearest = min((other for other in rows if other != label), key=lambda other: float(np.mean(found[other])))
        if (found[label] > found[nearest]).mean() >= 1 - 1 / draws:
            confused.append(ConfusedClass(label, nearest, float(found[label].mean()), float(found[nearest].mean())))
    return tuple(confused)


def _or_reason(compute: Callable[[], Result]) -> Result | str:
    """The result, or why there is none: half of the patients can leave too few patches for a distance."""
    try:
        return compute()
    except ValueError as error:
        return str(error)


def _within_range(metric: Metric, interval: Interval) -> Interval:
    """The interval cut to the values its metric can take; only the unbiased ones fall below 0."""
    lowest = -np.inf if metric in ("kernel", "energy", "gaussian_mmd") else 0.0
    highest = 1.0 if metric in ("precision", "recall", "coverage") else np.inf
    return Interval(float(np.clip(interval.low, lowest, highest)), float(np.clip(interval.high, lowest, highest)))
