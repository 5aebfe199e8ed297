"""What a detector's scores are worth: metrics over arms and seeds, and their paired differences.

Scores are log-odds of a lesion; a score at or above the threshold calls a patch a lesion.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from evaluate.intervals import Interval

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]

METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc")
LEAST_PATIENTS = 5  # of a class: resampling fewer makes intervals that are far too narrow
NUMBERS_AT_ONCE = 2**22  # in one array of the bootstrap: 32 MiB


@dataclass(frozen=True)
class Scores:
    """log_odds: (arms, seeds, N); thresholds: (arms, seeds); lesion: bool (N,); patients: N ids."""

    arms: tuple[str, ...]
    log_odds: Floats
    thresholds: Floats
    lesion: Truth
    patients: NDArray


@dataclass(frozen=True)
class MetricSummary:
    """A metric over seeds in one arm: mean and standard deviation, in [0, 1]."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Difference:
    """One arm's metric less the baseline arm's, paired by seed and patient, with its 95 % interval or why there is none."""

    value: float
    interval: Interval | str


def metrics_of(scores: Floats, lesion: Truth, threshold: float) -> dict[str, float]:
    """Each of METRICS for one detector, in [0, 1]. lesion must hold both True and False."""
    called = scores >= threshold
    sensitivity, specificity = float(called[lesion].mean()), float((~called[~lesion]).mean())
    return {
        "accuracy": float((called == lesion).mean()),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "auroc": area_under_roc(scores, lesion),
    }


def area_under_roc(scores: Floats, positive: Truth) -> float:
    """Chance that a positive scores above a negative, ties counting half (Mann-Whitney U)."""
    ranks = rankdata(scores)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def weighted_area_under_roc(scores: Floats, positive: Truth, weights: Floats) -> Floats:
    """`area_under_roc` when patch i counts weights[d, i] times: (N,), (N,), (draws, N) -> (draws,)."""
    order = np.argsort(scores, kind="stable")
    ranked, positive, weights = scores[order], positive[order], weights[:, order]
    below = np.zeros((len(weights), len(scores) + 1))
    np.cumsum(weights * ~positive, axis=1, out=below[:, 1:])
    mine = weights[:, positive]
    first, last = (np.searchsorted(ranked, ranked[positive], side=side) for side in ("left", "right"))
    won = (mine * (below[:, first] + below[:, last])).sum(1) / 2
    return won / (mine.sum(1) * below[:, -1])


def choose_threshold(scores: Floats, lesion: Truth, specificity: float | None = None) -> float:
    """Where to call a lesion: halfway between two neighbouring scores, or beyond the last.

    Without `specificity`, where balanced accuracy is best (Youden's J). With it, in (0, 1), the lowest
    threshold that calls at least that share of the lesion-free patches free.
    """
    levels = np.unique(scores)
    candidates = np.concatenate([[levels[0] - 1], (levels[1:] + levels[:-1]) / 2, [levels[-1] + 1]])
    rejections = np.searchsorted(np.sort(scores[~lesion]), candidates) / (~lesion).sum()
    if specificity is not None:
        return float(candidates[np.flatnonzero(rejections >= specificity)[0]])
    balanced = rejections - np.searchsorted(np.sort(scores[lesion]), candidates) / lesion.sum()
    best = np.flatnonzero(balanced == balanced.max())
    return float(candidates[best[len(best) // 2]])


def summarise(scores: Scores) -> dict[str, dict[str, MetricSummary]]:
    """arm -> metric -> mean and standard deviation over seeds (N - 1; 0 for one seed)."""
    summary = {}
    for arm, log_odds, thresholds in zip(scores.arms, scores.log_odds, scores.thresholds, strict=True):
        table = np.array([list(metrics_of(one, scores.lesion, t).values()) for one, t in zip(log_odds, thresholds, strict=True)])
        sd = table.std(0, ddof=1) if len(table) > 1 else np.zeros(len(METRICS))
        summary[arm] = {name: MetricSummary(float(m), float(s)) for name, m, s in zip(METRICS, table.mean(0), sd, strict=True)}
    return summary


def sensitivity_by_class(scores: Scores, classes: NDArray) -> dict[str, dict[str, float]]:
    """class -> arm -> share of its lesions found, mean over seeds; class with fewest patients first."""
    called = scores.log_odds >= scores.thresholds[..., None]
    return {
        name: {arm: float(called[a][:, scores.lesion & (classes == name)].mean()) for a, arm in enumerate(scores.arms)}
        for name in _rarest_first(scores, classes)
    }


def differences_to(baseline: str, scores: Scores, rng: np.random.Generator, draws: int = 2000) -> dict[str, dict[str, Difference]]:
    """arm -> metric -> difference to the baseline arm, with a 95 % bootstrap interval.

    Each draw resamples the test patients, the same ones for both arms, and moves their mean difference by
    what another few trainings would: Student's t times the standard error over seeds. Resampling three
    or five seeds as well would be simpler, but covers the truth in 84 to 88 % of simulations only.
    Thresholds stay as fixed. With one seed nobody knows what another training would change: its
    interval is about patients alone.
    """
    found = _paired(baseline, scores, lambda counts: _metric_table(scores, counts), rng, draws)
    return {arm: dict(zip(METRICS, row, strict=True)) for arm, row in found.items()}


def class_differences_to(
    baseline: str, scores: Scores, classes: NDArray, rng: np.random.Generator, draws: int = 2000
) -> dict[str, dict[str, Difference]]:
    """class -> arm -> difference in sensitivity, as `differences_to`; class with fewest patients first.

    A class of fewer than LEAST_PATIENTS test patients has a difference and no interval.
    """
    names = _rarest_first(scores, classes)
    patients = [len(np.unique(scores.patients[scores.lesion & (classes == name)])) for name in names]
    found = _paired(baseline, scores, lambda counts: _class_table(scores, classes, names, counts), rng, draws)
    few = "{} patients, fewer than " + str(LEAST_PATIENTS)
    return {
        name: {arm: row[c] if n >= LEAST_PATIENTS else Difference(row[c].value, few.format(n)) for arm, row in found.items()}
        for c, (name, n) in enumerate(zip(names, patients, strict=True))
    }


def _rarest_first(scores: Scores, classes: NDArray) -> list[str]:
    names = [str(name) for name in np.unique(classes[scores.lesion])]
    return sorted(names, key=lambda name: len(np.unique(scores.patients[scores.lesion & (classes == name)])))


def _paired(
    baseline: str, scores: Scores, table: Callable[[Floats], Floats], rng: np.random.Generator, draws: int
) -> dict[str, list[Difference]]:
    """arm -> the difference in each column of `table`, which turns patients' counts (draws, P) into (draws, arms, seeds, columns)."""
    base = scores.arms.index(baseline)
    counts = _patient_counts(scores, rng, draws)
    at_once = max(1, NUMBERS_AT_ONCE // len(scores.lesion))
    drawn = np.concatenate([table(counts[n : n + at_once]).mean(2) for n in range(0, draws, at_once)])
    drawn -= drawn[:, base : base + 1]
    by_seed = table(np.ones((1, counts.shape[1])))[0]
    by_seed -= by_seed[base]
    seeds = by_seed.shape[1]
    if seeds > 1:
        drawn += rng.standard_t(seeds - 1, draws)[:, None, None] * by_seed.std(1, ddof=1) / np.sqrt(seeds)
    low, high = np.nanquantile(drawn.clip(-1, 1), [0.025, 0.975], axis=0)  # two seeds' Student's t goes beyond what shares can differ by
    return {
        arm: [Difference(float(v), Interval(float(lo), float(hi))) for v, lo, hi in zip(by_seed[a].mean(0), low[a], high[a], strict=True)]
        for a, arm in enumerate(scores.arms)
        if a != base
    }


def _patient_counts(scores: Scores, rng: np.random.Generator, draws: int) -> Floats:
    """How often each patient is in each draw, (draws, P); draws without a lesion or a lesion-free patch are made again."""
    each = _by_patient(scores, np.array([scores.lesion, ~scores.lesion]))
    patients = each.shape[1]
    kept = np.zeros((0, patients))
    while len(kept) < draws:
        drawn = rng.multinomial(patients, np.full(patients, 1 / patients), draws - len(kept)).astype(float)
        kept = np.concatenate([kept, drawn[(drawn @ each.T > 0).all(1)]])
    return kept


def _by_patient(scores: Scores, marks: NDArray) -> Floats:
    """Patches of each patient that are marked: (..., N) -> (..., P), patients in the order of np.unique."""
    _, patient_of = np.unique(scores.patients, return_inverse=True)
    order = np.argsort(patient_of, kind="stable")
    starts = np.flatnonzero(np.diff(patient_of[order], prepend=-1))
    return np.add.reduceat(marks[..., order], starts, axis=-1, dtype=float)


def _metric_table(scores: Scores, counts: Floats) -> Floats:
    """METRICS when each patient counts as often as drawn: (draws, P) -> (draws, arms, seeds, len(METRICS))."""
    called = scores.log_odds >= scores.thresholds[..., None]
    hits, rejections = _by_patient(scores, called & scores.lesion), _by_patient(scores, ~called & ~scores.lesion)
    lesions, free = (counts @ _by_patient(scores, mark)[:, None] for mark in (scores.lesion, ~scores.lesion))
    right = [np.einsum("dp,asp->das", counts, one) for one in (hits, rejections)]
    sensitivity, specificity = right[0] / lesions[..., None], right[1] / free[..., None]
    accuracy = (right[0] + right[1]) / (lesions + free)[..., None]
    _, patient_of = np.unique(scores.patients, return_inverse=True)
    weights = counts[:, patient_of]
    auroc = [[weighted_area_under_roc(one, scores.lesion, weights) for one in arm] for arm in scores.log_odds]
    return np.stack([accuracy, (sensitivity + specificity) / 2, sensitivity, specificity, np.transpose(auroc, (2, 0, 1))], axis=-1)


def _class_table(scores: Scores, classes: NDArray, names: list[str], counts: Floats) -> Floats:
    """Sensitivity to each class: (draws, P) -> (draws, arms, seeds, classes); NaN where a draw has none of its lesions."""
    called = scores.log_odds >= scores.thresholds[..., None]
    members = np.array([scores.lesion & (classes == name) for name in names])
    found = np.einsum("dp,ascp->dasc", counts, _by_patient(scores, called[:, :, None] & members))
    there = (counts @ _by_patient(scores, members).T)[:, None, None]
    return np.divide(found, there, out=np.full(found.shape, np.nan), where=there > 0)
