"""How far a distance can be trusted: its interval, the floor under it, and its limit at infinite N.

A patient gives several patches that resemble each other, so patients are resampled, not patches.
Sets are float64 (N, D); `patients` is a sequence of N ids, or None when every sample stands alone
(synthetic patches from independent seeds).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.distances import frechet_distance

Array = NDArray[np.float64]
Distance = Callable[[Array, Array], float]
Patients = Sequence[str] | NDArray | None


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, in the unit of what it belongs to."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:  # also refuses NaN
            raise ValueError(f"an interval runs from low to high, got {self.low} to {self.high}")


@dataclass(frozen=True)
class Floor:
    """What two sets of real held-out patients differ by, and synthetic at the same N.

    value: mean distance between two halves of the held-out patients, `samples` patches each, over
    random halvings; low, high: the range that holds 95 % of the halvings.
    synthetic_value: mean distance of `samples` synthetic patches to `samples` held-out ones, so
    synthetic_value / value compares like with like.
    """

    value: float
    low: float
    high: float
    samples: int
    synthetic_value: float


@dataclass(frozen=True)
class Extrapolation:
    """A Fréchet distance at several N and the straight line in 1/N continued to 1/N = 0."""

    value: float
    sizes: tuple[int, ...]
    values: tuple[float, ...]


def bootstrap_interval(
    distance: Distance,
    x: Array,
    y: Array,
    x_patients: Patients,
    y_patients: Patients,
    rng: np.random.Generator,
    draws: int = 100,
) -> Interval:
    """95 % interval of distance(x, y), by a repeated half-sample bootstrap over patients.

    Each draw keeps half of each set's patients (Saigo, Shao & Sitter 2001). Drawing with
    replacement, as usual, puts duplicates into a set: they shrink the balls of density and
    coverage to nothing and widen the interval of a Fréchet distance further. A smaller N also
    moves a distance, so the draws' spread is laid around distance(x, y) itself: the interval is
    about the distance at this N. For a Fréchet distance it errs on the wide side.

    Raises ValueError if a set has only one patient.
    """
    x_rows, y_rows = _rows_by_patient(x_patients, len(x)), _rows_by_patient(y_patients, len(y))
    values = np.array([distance(x[_halves(x_rows, rng)[0]], y[_halves(y_rows, rng)[0]]) for _ in range(draws)])
    centre = distance(x, y)
    low, high = np.quantile(values - np.median(values), [0.025, 0.975])
    return Interval(centre + float(low), centre + float(high))


def real_floor(
    distance: Distance,
    held_out: Array,
    patients: Patients,
    synthetic: Array,
    rng: np.random.Generator,
    draws: int = 20,
) -> Floor:
    """What the distance is between two halves of the held-out patients, where nothing is synthetic.

    Both halves, and the synthetic set beside them, have the same N: a distance between small sets
    is large even when the distributions are equal, and only shrinks with N.

    Raises ValueError if there are fewer than two held-out patients.
    """
    rows = _rows_by_patient(patients, len(held_out))
    samples = min([len(synthetic)] + [min(map(len, _halves(rows, rng))) for _ in range(draws)])
    between_halves, to_synthetic = [], []
    for _ in range(draws):
        a, b = (rng.choice(half, samples, replace=False) for half in _halves(rows, rng, at_least=samples))
        some = rng.choice(len(synthetic), samples, replace=False)
        between_halves.append(distance(held_out[a], held_out[b]))
        to_synthetic.append(distance(held_out[a], synthetic[some]))
    low, high = np.quantile(between_halves, [0.025, 0.975])
    return Floor(float(np.mean(between_halves)), float(low), float(high), samples, float(np.mean(to_synthetic)))


def extrapolate_frechet(x: Array, y: Array, rng: np.random.Generator, points: int = 8, repeats: int = 4) -> Extrapolation:
    """The Fréchet distance of x and y continued to infinite N (Chong & Forsyth 2020, sec. 4.1).

    Subsets of n samples of each set, n from a third of the smaller set to all of it, evenly
    spaced in 1/n; a line is fitted to distance against 1/n. The bias is linear in 1/n only when n
    is well above D: below about 2 D the value is a rough guide, and it can fall below 0.
    """
    largest = min(len(x), len(y))
    smallest = max(2, largest // 3)
    if smallest >= largest:
        raise ValueError(f"an extrapolation needs 3 samples or more in each set, got {largest}")
    sizes = np.unique(np.round(1 / np.linspace(1 / largest, 1 / smallest, points)).astype(int))
    values = [
        np.mean(
            [frechet_distance(x[rng.choice(len(x), n, replace=False)], y[rng.choice(len(y), n, replace=False)]) for _ in range(repeats)]
        )
        for n in sizes
    ]
    _slope, at_infinity = np.polyfit(1 / sizes, values, 1)
    return Extrapolation(float(at_infinity), tuple(map(int, sizes)), tuple(map(float, values)))


def halves_of_patients(patients: Patients, count: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Rows of two random halves, without a patient in both; as near in size as whole patients allow.

    patients: ids of the `count` rows, or None when each row stands alone.
    Raises ValueError if there is only one patient.
    """
    return _halves(_rows_by_patient(patients, count), rng)


def _rows_by_patient(patients: Patients, count: int) -> list[NDArray]:
    if patients is None:
        rows = list(np.arange(count)[:, None])
    else:
        if len(patients) != count:
            raise ValueError(f"{count} samples need {count} patient ids, got {len(patients)}")
        _, index = np.unique(np.asarray(patients), return_inverse=True)
        order = np.argsort(index, kind="stable")
        rows = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)
    if len(rows) < 2:
        raise ValueError("an interval or a floor needs 2 patients or more, got 1")
    return rows


def _halves(rows: list[NDArray], rng: np.random.Generator, at_least: int = 1) -> tuple[NDArray, NDArray]:
    """Two groups of whole patients with `at_least` rows each; redrawn until they have them."""
    total = sum(map(len, rows))
    while True:
        order = rng.permutation(len(rows))
        filled = np.cumsum([len(rows[i]) for i in order])
        cut = int(np.clip(np.abs(filled - total / 2).argmin() + 1, 1, len(rows) - 1))
        a = np.concatenate([rows[i] for i in order[:cut]])
        b = np.concatenate([rows[i] for i in order[cut:]])
        if min(len(a), len(b)) >= at_least:
            return a, b
