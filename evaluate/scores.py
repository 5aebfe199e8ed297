"""What a detector's scores are worth: metrics over arms and seeds, and their paired differences.

Scores are log-odds of a lesion; a score at or above the threshold calls a patch a lesion.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from evaluate.intervals import Interval

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]

METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auroc")


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
    """One arm's metric less the baseline arm's, paired by seed and patient, with its 95 % interval."""

    value: float
    interval: Interval


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


def choose_threshold(scores: Floats, lesion: Truth) -> float:
    """The score with the best balanced accuracy (Youden's J); halfway to the next lower score."""
    levels = np.unique(scores)
    candidates = np.concatenate([[levels[0] - 1], (levels[1:] + levels[:-1]) / 2, [levels[-1] + 1]])
    hits = np.searchsorted(np.sort(scores[lesion]), candidates)
    rejections = np.searchsorted(np.sort(scores[~lesion]), candidates)
    balanced = rejections / (~lesion).sum() - hits / lesion.sum()
    best = np.flatnonzero(balanced == balanced.max())
    return float(candidates[best[len(best) // 2]])


def summarise(scores: Scores) -> dict[str, dict[str, MetricSummary]]:
    """arm -> metric -> mean and standard deviation over seeds (N - 1; 0 for one seed)."""
    everyone = np.arange(len(scores.lesion))
    summary = {}
    for a, arm in enumerate(scores.arms):
        table = _by_seed(scores, a, everyone)
        sd = table.std(0, ddof=1) if len(table) > 1 else np.zeros(len(METRICS))
        summary[arm] = {name: MetricSummary(float(m), float(s)) for name, m, s in zip(METRICS, table.mean(0), sd, strict=True)}
    return summary


def sensitivity_by_class(scores: Scores, classes: NDArray) -> dict[str, dict[str, float]]:
    """class -> arm -> share of its lesions found, mean over seeds; class with fewest patients first."""
    names = [str(name) for name in np.unique(classes[scores.lesion])]
    names.sort(key=lambda name: len(np.unique(scores.patients[scores.lesion & (classes == name)])))
    called = scores.log_odds >= scores.thresholds[..., None]
    return {
        name: {arm: float(called[a][:, scores.lesion & (classes == name)].mean()) for a, arm in enumerate(scores.arms)} for name in names
    }


def differences_to(baseline: str, scores: Scores, rng: np.random.Generator, draws: int = 500) -> dict[str, dict[str, Difference]]:
    """arm -> metric -> difference to the baseline arm, with a 95 % bootstrap interval.

    Each draw resamples test patients and seeds with replacement, the same ones for both arms:
    another hospital's patients and another training would move both. Thresholds stay as fixed.
    """
    base = scores.arms.index(baseline)
    others = [a for a in range(len(scores.arms)) if a != base]
    everyone = np.arange(len(scores.lesion))
    reference = _by_seed(scores, base, everyone).mean(0)
    drawn: dict[int, list[Floats]] = {a: [] for a in others}
    _, patient_of = np.unique(scores.patients, return_inverse=True)
    rows_of = [np.flatnonzero(patient_of == p) for p in range(int(patient_of.max()) + 1)]
    while len(drawn[others[0]]) < draws:
        rows = np.concatenate([rows_of[p] for p in rng.integers(0, len(rows_of), len(rows_of))])
        seeds = rng.integers(0, scores.log_odds.shape[1], scores.log_odds.shape[1])
        if scores.lesion[rows].all() or not scores.lesion[rows].any():
            continue  # sensitivity or specificity has no meaning in such a draw
        baseline_metrics = _by_seed(scores, base, rows)[seeds].mean(0)
        for a in others:
            drawn[a].append(_by_seed(scores, a, rows)[seeds].mean(0) - baseline_metrics)
    result = {}
    for a in others:
        low, high = np.quantile(np.array(drawn[a]), [0.025, 0.975], axis=0)
        value = _by_seed(scores, a, everyone).mean(0) - reference
        result[scores.arms[a]] = {
            name: Difference(float(v), Interval(float(lo), float(hi))) for name, v, lo, hi in zip(METRICS, value, low, high, strict=True)
        }
    return result


def _by_seed(scores: Scores, arm: int, rows: NDArray) -> Floats:
    """METRICS of one arm on some test patches, (seeds, len(METRICS))."""
    return np.array(
        [
            list(metrics_of(one[rows], scores.lesion[rows], threshold).values())
            for one, threshold in zip(scores.log_odds[arm], scores.thresholds[arm], strict=True)
        ]
    )
