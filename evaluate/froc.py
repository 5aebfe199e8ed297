"""A detector's free-response ROC (FROC) and LUNA16's score: sensitivity against false positives a scan.

N candidates, M findings, S scans, numbered from 0. Positions are mm, in one coordinate system for both; a probability is any finite number that
is larger for what is more suspicious. The rules are LUNA16's (Setio et al. 2017, sec. 3.5, after van Ginneken et al. 2010), in detail those of its
script noduleCADEvaluationLUNA16.py:

- a candidate hits every nodule to whose centre it is nearer than half of the diameter; just as near is no hit;
- of several candidates in a nodule the most probable one counts, and the others are neither hits nor false positives;
- a candidate in no nodule but in an excluded finding is ignored; in neither, it is a false positive;
- a nodule without a candidate is missed at every threshold;
- candidates of one probability come together; between two points of the curve sensitivity is interpolated linearly, the first point is joined to
  (0, 0), and beyond the last one its sensitivity stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluate.intervals import Interval

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

LUNA16_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a scan at which sensitivity is averaged to the score."""

UNKNOWN_DIAMETER_MM = 10.0
"""What LUNA16 takes for a negative diameter, which stands for "not measured" in its list of excluded findings."""

_BLOCK = 4_000_000  # numbers of a table in memory


@dataclass(frozen=True, eq=False)
class Candidates:
    """What a detector marked: scan (N,), position_mm (N, 3), probability (N,)."""

    scan: Indices
    position_mm: Floats
    probability: Floats


@dataclass(frozen=True, eq=False)
class Findings:
    """Nodules, or excluded findings: scan (M,), center_mm (M, 3), diameter_mm (M,)."""

    scan: Indices
    center_mm: Floats
    diameter_mm: Floats


@dataclass(frozen=True, eq=False)
class Marks:
    """What the curve is made of: E marks, one for each nodule that was hit and one for each false positive.

    scan (E,), probability (E,), hit (E,): True for a nodule; nodules (S,): how many each scan has, hit or missed.
    double: candidates beside the one that counts, summed over nodules; excluded: candidates ignored on excluded findings;
    shared: candidates in two nodules or more.
    """

    scan: Indices
    probability: Floats
    hit: NDArray[np.bool_]
    nodules: Indices
    double: int
    excluded: int
    shared: int


@dataclass(frozen=True, eq=False)
class Curve:
    """A point for each distinct probability, falling, after (0, 0) at infinity: all (K + 1,).

    What is at least as probable as the threshold counts.
    """

    false_positives_per_scan: Floats
    sensitivity: Floats
    threshold: Floats


def strongest(candidates: Candidates, most: int) -> NDArray[np.bool_]:
    """Which candidates count where a scan may have `most`, bool (N,): of a scan with more, those above its next probability.

    So candidates that tie with the first one too many go with it. LUNA16's script takes 100.
    """
    order = np.lexsort((-candidates.probability, candidates.scan))
    scan, probability = candidates.scan[order], candidates.probability[order]
    too_many = np.arange(len(order)) - np.searchsorted(scan, scan) == most
    bound = np.full(int(scan[-1]) + 1 if len(scan) else 0, -np.inf)
    bound[scan[too_many]] = probability[too_many]
    return candidates.probability > bound[candidates.scan]


def pairs(candidates: Candidates, findings: Findings) -> tuple[Indices, Indices]:
    """Which candidate lies in which finding of its scan: candidates (P,) and findings (P,), by number.

    Nearer to the centre than half of the diameter; a negative diameter is taken for UNKNOWN_DIAMETER_MM.
    """
    order = np.argsort(candidates.scan, kind="stable")
    scan, position = candidates.scan[order], candidates.position_mm[order]
    first, end = (np.searchsorted(scan, findings.scan, side) for side in ("left", "right"))
    reach = np.square(np.where(findings.diameter_mm < 0, UNKNOWN_DIAMETER_MM, findings.diameter_mm) / 2)
    inside, of = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for n in np.flatnonzero(end > first):
        squared = np.square(position[first[n] : end[n]] - findings.center_mm[n]).sum(1)
        near = np.flatnonzero(squared < reach[n])
        inside.append(order[first[n] + near])
        of.append(np.full(len(near), n))
    return np.concatenate(inside), np.concatenate(of)


def match(candidates: Candidates, nodules: Findings, excluded: Findings, scans: int) -> Marks:
    """Who hits what, by the rules above. scans: how many there are, with candidates and nodules or without."""
    candidate, nodule = pairs(candidates, nodules)
    best = np.full(len(nodules.scan), -np.inf)
    np.maximum.at(best, nodule, candidates.probability[candidate])
    found = best > -np.inf
    hits = np.bincount(candidate, minlength=len(candidates.scan))
    on_excluded = np.zeros(len(candidates.scan), bool)
    on_excluded[pairs(candidates, excluded)[0]] = True
    false = (hits == 0) & ~on_excluded
    return Marks(
        scan=np.concatenate([nodules.scan[found], candidates.scan[false]]),
        probability=np.concatenate([best[found], candidates.probability[false]]),
        hit=np.arange(found.sum() + false.sum()) < found.sum(),
        nodules=np.bincount(nodules.scan, minlength=scans),
        double=len(nodule) - int(found.sum()),
        excluded=int((on_excluded & (hits == 0)).sum()),
        shared=int((hits > 1).sum()),
    )


def nodules_hit(candidates: Candidates, nodules: Findings) -> int:
    """How many nodules have a candidate."""
    return len(np.unique(pairs(candidates, nodules)[1]))


def curve_of(marks: Marks) -> Curve:
    """The curve of all scans. Raises ValueError if they have no nodule."""
    if not marks.nodules.any():
        raise ValueError("no nodule in the scans: there is no sensitivity without one")
    scans = len(marks.nodules)
    false, hits = _counts(marks, np.ones((1, scans), np.int64))
    threshold = np.append(np.inf, np.unique(marks.probability)[::-1])
    return Curve(false[0] / scans, hits[0] / marks.nodules.sum(), threshold)


def sensitivity_at(rates: ArrayLike, marks: Marks, drawn: Indices) -> Floats:
    """Sensitivity at R numbers of false positives a scan, in each of B draws of scans, float64 (B, R).

    drawn: (B, S), how often each scan is in the draw; once each is the set itself. NaN where a draw has no nodule.
    """
    false, hits = _counts(marks, drawn)
    nodules, scans = drawn @ marks.nodules, drawn.sum(1)
    found = [np.interp(np.asarray(rates), f / n, h) for f, n, h in zip(false, scans, hits, strict=True)]
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.array(found).reshape(len(drawn), np.size(rates)) / nodules[:, None]


def bootstrap(rates: ArrayLike, marks: Marks, rng: np.random.Generator, draws: int = 1000) -> Floats:
    """Sensitivity at R rates in `draws` draws of S scans with replacement, float64 (B, R).

    A draw without a nodule has no sensitivity and is left out, so B may be less than draws.
    """
    scans = len(marks.nodules)
    block = max(1, _BLOCK // max(scans, len(marks.scan), 1))
    values = []
    for done in range(0, draws, block):
        picked = rng.integers(scans, size=(min(block, draws - done), scans))
        rows = np.arange(len(picked))[:, None] * scans
        drawn = np.bincount((rows + picked).ravel(), minlength=picked.size).reshape(picked.shape)
        values.append(sensitivity_at(rates, marks, drawn[drawn @ marks.nodules > 0]))
    return np.concatenate(values)


def interval_of(values: Floats | Sequence[float]) -> Interval:
    """What holds 95 % of n values, from the one of rank 0.025 n to that of rank 0.975 n, ranks from 0, as in LUNA16's script.

    Raises ValueError for fewer than 40: then the ends are the smallest and the largest.
    """
    ordered, n = np.sort(values), len(values)
    if n < 40:
        raise ValueError(f"a 95 % interval needs 40 draws or more, got {n}")
    return Interval(float(ordered[25 * n // 1000]), float(ordered[975 * n // 1000]))


def _counts(marks: Marks, drawn: Indices) -> tuple[Indices, Indices]:
    """False positives and hits at each distinct probability, falling, after a 0: both (B, K + 1)."""
    order = np.argsort(-marks.probability, kind="stable")
    probability, scan, hit = marks.probability[order], marks.scan[order], marks.hit[order]
    last = np.flatnonzero(np.append(probability[1:] != probability[:-1], True)[: len(order)])
    counts = []
    for mine in (~hit, hit):
        counted = np.zeros((len(drawn), 1 + len(order)), np.int64)
        counted[:, 1:][:, mine] = drawn[:, scan[mine]]
        counts.append(counted.cumsum(1)[:, np.append(0, 1 + last)])
    return counts[0], counts[1]
