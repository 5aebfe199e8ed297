"""What an attack proves about privacy: an empirical lower bound of epsilon from scores of canary patients.

A canary is a patient that a fair coin put into the training set or left out of it. Scores are
float (m,), one a canary, higher = more likely "in"; included is bool (m,), and no score may have
been made with it. epsilon and delta are those of differential privacy under adding or removing one
patient. A bound holds at 95 %; 0 means that nothing was shown, not that nothing leaks.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import bisect
from scipy.special import expit, logit
from scipy.stats import beta, binom

from evaluate.intervals import Interval, bootstrap_interval
from evaluate.scores import area_under_roc

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
ERROR = 1 - CONFIDENCE
LEAST = 20  # canaries, or runs of each kind: fewer show next to nothing even when every guess is right
# Shares of the canaries guessed "in" (highest scores) and "out" (lowest). The wide rows suit few canaries, the narrow
# ones noisy scores, the last a model that repeats some patients and tells nothing of the others. Each row has its part of
# the error (Bonferroni).
GUESSED_IN_OUT = ((0.4, 0.4), (0.2, 0.2), (0.05, 0.05), (0.05, 0.0))
CHUNK = 1024  # rows of a distance matrix held at a time


@dataclass(frozen=True)
class Bound:
    """epsilon: lower bound, 0 or more, from `guesses` of which `right` were right. cap: what a perfect attack would show."""

    epsilon: float
    cap: float
    guesses: int
    right: int


@dataclass(frozen=True)
class AttackResult(Bound):
    """One attack's row of the audit table: `one_run_bound` at this delta, and how well scores tell in from out.

    tpr_at_1_percent_fpr: share of those in found while at most 1 % of those out are accused; NaN, and
    its interval None, below 100 out, where no threshold accuses 1 %.
    """

    name: str
    confidence: float
    delta: float
    canaries: int
    auroc: float
    auroc_interval: Interval
    tpr_at_1_percent_fpr: float
    tpr_interval: Interval | None


def attack_result(
    name: str, scores: ArrayLike, included: ArrayLike, delta: float, rng: np.random.Generator, error: float = ERROR
) -> AttackResult:
    """Bound, AUROC and TPR of one attack. rng draws AUROC's bootstrap. Raises ValueError as `one_run_bound` does.

    error: the bound's; of several attacks that are to hold together, each has its part. The intervals are of 95 % each.
    """
    bound = one_run_bound(scores, included, delta, error)
    scores, included = np.asarray(scores, np.float64), np.asarray(included)
    members, others = scores[included], scores[~included]

    def auroc(x: Floats, y: Floats) -> float:
        return area_under_roc(np.r_[x, y], np.arange(len(x) + len(y)) < len(x))

    around = bootstrap_interval(auroc, members, others, None, None, rng, draws=200)
    tpr, tpr_interval = tpr_at_1_percent_fpr(members, others)
    return AttackResult(
        **asdict(bound), name=name, confidence=1 - error, delta=delta, canaries=len(scores),
        auroc=auroc(members, others), auroc_interval=Interval(max(0.0, around.low), min(1.0, around.high)),
        tpr_at_1_percent_fpr=tpr, tpr_interval=tpr_interval,
    )  # fmt: skip


def tpr_at_1_percent_fpr(members: Floats, others: Floats) -> tuple[float, Interval | None]:
    """Share of members above a score that at most 1 % of the others pass, and its 95 % interval; NaN, None below 100 others.

    Order statistics bound the score, Clopper-Pearson the share above it. Below about 440 others the low
    end is 0: the top 1 % of all who are not members may score more than any that were seen.
    """
    if len(others) < 100:
        return np.nan, None
    falling, error = np.sort(others)[::-1], ERROR / 4
    fewest, most = (int(binom.ppf(p, len(others), 0.01)) for p in (error, 1 - error))  # others above the true threshold
    surely = np.array((members > falling[fewest - 1]).sum() if fewest else 0)
    missed = np.array((members < falling[most]).sum())
    low, high = _rate_at_least(surely, len(members), error), 1 - _rate_at_least(missed, len(members), error)
    return float((members > falling[len(others) // 100]).mean()), Interval(float(low), float(high))


def one_run_bound(scores: ArrayLike, included: ArrayLike, delta: float, error: float = ERROR) -> Bound:
    """Lower bound of epsilon from one training run with m canaries (Steinke, Nasr & Jagielski 2023, Alg. 1).

    Guesses "in" for the highest scores, "out" for the lowest, and abstains between. How many is
    tried for each row of GUESSED_IN_OUT, fixed beforehand, each at its part of the error, so taking
    the best is no cheating. Of equal scores at the edge of the guesses, the wrong ones count first.

    Raises ValueError unless there are 20 canaries or more, some in and some out, with finite
    scores, and delta is in [0, 1).
    """
    scores, included = np.asarray(scores, np.float64), np.asarray(included)
    if scores.ndim != 1 or included.shape != scores.shape or included.dtype != bool:
        raise ValueError(f"expected (m,) scores and (m,) booleans, got {scores.shape} and {included.shape} {included.dtype}")
    _check("canaries", len(scores), delta, scores)
    if included.all() or not included.any():
        raise ValueError(f"all {len(scores)} canaries are {'in' if included.all() else 'out'}; draw each with probability 1/2")
    likely_in, likely_out = np.lexsort((included, -scores)), np.lexsort((~included, scores))  # by score, then wrong before right
    found, cap = [], one_run_cap(len(scores), delta, error)
    for guessed_in, guessed_out in _rows(len(scores)):
        guesses = guessed_in + guessed_out
        right = int(included[likely_in[:guessed_in]].sum() + (~included[likely_out[:guessed_out]]).sum())
        epsilon = one_run_epsilon(len(scores), guesses, right, delta, error / len(GUESSED_IN_OUT))
        found.append(Bound(epsilon, cap, guesses, right))
    return max(found, key=lambda bound: bound.epsilon)


@cache
def one_run_cap(canaries: int, delta: float, error: float = ERROR) -> float:
    """The most that `one_run_bound` can show, every guess right; a perfect attack does if 40 to 60 % are in."""
    _check("canaries", canaries, delta)
    row_error = error / len(GUESSED_IN_OUT)
    return max(one_run_epsilon(canaries, sum(row), sum(row), delta, row_error) for row in _rows(canaries))


def _rows(canaries: int) -> list[tuple[int, int]]:
    return [(round(share_in * canaries), round(share_out * canaries)) for share_in, share_out in GUESSED_IN_OUT]


def one_run_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How likely, at most, `right` or more of the guesses are right under (epsilon, delta).

    With W ~ Binomial(guesses, e^eps / (1 + e^eps)), Steinke et al. 2023, Theorem 5.2 and the code
    of Appendix D: P[W >= right] + 2 m delta max_{i >= 1} P[right > W >= right - i] / i.
    m counts abstentions too: delta may be spent on any canary.
    """
    tail = float(binom.sf(right - 1, guesses, expit(epsilon)))
    if right == 0 or delta == 0:
        return tail
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, expit(epsilon)))  # P[right > W >= right - i]
    return min(1.0, tail + 2 * canaries * delta * float((below / np.arange(1, right + 1)).max()))


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, error: float = ERROR) -> float:
    """Lower bound of epsilon, wrong with probability `error` or less, for a number of guesses fixed beforehand.

    The epsilon at which the p-value passes `error`, by bisection: while below 1/2, it only grows with
    epsilon. Without delta that is the Clopper-Pearson bound of the share that is right, in log-odds.
    """
    without_delta = logit(max(0.5, float(_rate_at_least(np.array(right), guesses, error))))

    def excess(epsilon: float) -> float:
        return one_run_p_value(canaries, guesses, right, epsilon, delta) - error

    return float(bisect(excess, 0, without_delta + 1e-6, xtol=1e-6)) if excess(0) < 0 else 0.0


def several_runs_bound(with_canary: ArrayLike, without_canary: ArrayLike, delta: float) -> Bound:
    """Lower bound of epsilon from many training runs with and without one canary (Jagielski et al. 2020).

    with_canary, without_canary: the attack's score in each run, independent, in an order in which
    the scores had no part. Every other run chooses the threshold, the rest (`guesses`) are judged
    by it. With rates bounded by Clopper-Pearson, 2.5 % each, epsilon is at least
    log((TPR_low - delta) / FPR_high) and log((1 - FPR_high - delta) / (1 - TPR_low)) (Nasr et al. 2021).

    Raises ValueError unless there are 20 runs of each kind, scores are finite and delta is in [0, 1).
    """
    x, y = np.asarray(with_canary, np.float64), np.asarray(without_canary, np.float64)
    _check("runs of each kind", min(len(x), len(y)), delta, x, y)
    first_x, first_y, x, y = x[::2], y[::2], x[1::2], y[1::2]
    levels = np.unique(np.r_[first_x, first_y])
    thresholds = np.r_[levels[0], (levels[1:] + levels[:-1]) / 2]
    best = thresholds[_threshold_epsilons(first_x, first_y, thresholds, delta).argmax()]
    (epsilon,) = _threshold_epsilons(x, y, np.array([best]), delta)
    (cap,) = _threshold_epsilons(np.ones(len(x)), np.zeros(len(y)), np.array([0.5]), delta)
    return Bound(float(epsilon), float(cap), len(x) + len(y), int((x >= best).sum() + (y < best).sum()))


def calibrated_nearest(canary_features: Sequence[NDArray], synthetic_features: NDArray, reference_features: NDArray) -> Floats:
    """A black-box attack's scores (m,): are synthetic patches nearer to the patient than real ones are?

    canary_features: each patient's patches, m arrays (n_i, D); synthetic (N1, D); reference (N2, D) of
    real patients neither canaries nor trained on. Standardise features of different units first.
    A patch scores its distance to the nearest reference less that to the nearest synthetic patch
    (GAN-Leaks, Chen et al. 2020, with real patches for its reference model); a patient scores the
    most of any of its patches, since one patch given back is a leak.

    Raises ValueError if a set or patient is empty, D differs or a feature is not finite.
    """
    shapes = {np.shape(one) for one in (*canary_features, synthetic_features, reference_features)}
    if not len(canary_features) or any(len(s) != 2 or 0 in s for s in shapes) or len({s[1] for s in shapes}) > 1:
        raise ValueError(f"expected one D and a patch or more in every (n, D) array, got {sorted(shapes)}")
    sets = [np.asarray(x, np.float64) for x in (np.concatenate(canary_features), synthetic_features, reference_features)]
    if not all(np.isfinite(x).all() for x in sets):
        raise ValueError("a feature is not finite (NaN or infinite); look at the extractor that gave it")
    scores = _nearest(sets[0], sets[2]) - _nearest(sets[0], sets[1])
    return np.maximum.reduceat(scores, np.cumsum([0] + [len(one) for one in canary_features[:-1]]))


def _nearest(x: Floats, y: Floats) -> Floats:
    norms = np.square(y).sum(1)
    squared = [np.square(rows).sum(1) + (norms - 2 * rows @ y.T).min(1) for rows in np.split(x, range(CHUNK, len(x), CHUNK))]
    return np.sqrt(np.concatenate(squared).clip(min=0))


def _threshold_epsilons(x: Floats, y: Floats, thresholds: Floats, delta: float) -> Floats:
    hits, rejections = len(x) - np.searchsorted(np.sort(x), thresholds), np.searchsorted(np.sort(y), thresholds)
    tpr, tnr = _rate_at_least(hits, len(x), ERROR / 2), _rate_at_least(rejections, len(y), ERROR / 2)
    return np.log(np.maximum.reduce([np.ones(len(thresholds)), (tpr - delta) / (1 - tnr), (tnr - delta) / (1 - tpr)]))


def _rate_at_least(successes: NDArray, trials: int, error: float) -> Floats:
    """Clopper-Pearson's lower bound of a rate, above it with probability `error` or less."""
    return np.where(successes > 0, beta.ppf(error, np.maximum(successes, 1), trials - successes + 1), 0.0)


def _check(what: str, count: int, delta: float, *scores: Floats) -> None:
    if count < LEAST:
        raise ValueError(f"an audit needs {LEAST} {what} or more, got {count}")
    if not 0 <= delta < 1:
        raise ValueError(f"delta is a probability below 1, got {delta}")
    if not np.isfinite(np.r_[0.0, *scores]).all():
        raise ValueError("a score is not finite (NaN or infinite); look where the attack computed it")
