"""Distances between two sets of feature vectors.

Sets are float64 (N, D): N samples, D features. The two sets may differ in N, never in D.
Fréchet, kernel, energy and sliced Wasserstein distances are 0 for equal distributions. All of them depend
on the scale of the features: `standardise` first where features have different units.
Pairs of samples are met block by block, so memory grows with N or N + D^2, never with N^2.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BLOCK = 1024  # samples met at a time: a matrix of pairs is then 8 MB, large enough for BLAS and small enough for the cache
MEDIAN_SAMPLES = 2000  # of which all pairs are sorted for the median distance


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Squared Fréchet distance between Gaussians fitted to x (N1, D) and y (N2, D); 0 or more.

    |mx - my|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2)), Heusel et al. 2017, Eq. 6, covariances with N - 1.
    The last trace is taken without a matrix square root, so it is real whatever the rounding:
    ||Xc Yc^T||_* / sqrt((N1-1)(N2-1)) where samples are fewer than features, and as in
    `frechet_distance_of_moments` otherwise. Both are exact; the choice is of speed.

    Raises ValueError if D differs, a set has fewer than 2 samples, or a value is not finite.
    """
    x, y = _two_sets(x, y)
    # Multiply-adds of all pairs against those of two covariances: is the harmonic mean of N1 and N2 below D?
    if 2 * len(x) * len(y) < (len(x) + len(y)) * x.shape[1]:
        return _frechet_distance_by_samples(x, y)
    return frechet_distance_of_moments(x.mean(0), _covariance(x), y.mean(0), _covariance(y))


def frechet_distance_of_moments(mean_x: Array, covariance_x: Array, mean_y: Array, covariance_y: Array) -> float:
    """Squared Fréchet distance between two Gaussians, by means (D,) and covariances (D, D); 0 or more."""
    shift = mean_x - mean_y
    total = np.trace(covariance_x) + np.trace(covariance_y)
    return max(0.0, float(shift @ shift + total - 2 * _root_trace(covariance_x, covariance_y)))


def _root_trace(sx: Array, sy: Array) -> float:
    """tr (Sx Sy)^(1/2): the eigenvalues of Sx Sy are those of the symmetric L^T Sx L, where Sy = L L^T."""
    for first, second in ((sx, sy), (sy, sx)):
        try:
            eigenvalues = scipy.linalg.eigvalsh(first, second, type=2, driver="gv")
        except np.linalg.LinAlgError:  # features that depend on each other: the second is singular
            continue
        return _sum_of_roots(eigenvalues)
    upper, pivots, rank, _ = scipy.linalg.lapack.dpstrf(sx, tol=np.finfo(float).eps * sx.diagonal().max())
    order, root = pivots - 1, np.triu(upper)[:rank]  # Sx[order][:, order] = root^T root
    return _sum_of_roots(np.linalg.eigvalsh(root @ sy[np.ix_(order, order)] @ root.T))


def _frechet_distance_by_samples(x: Array, y: Array) -> float:
    """The nuclear norm of M = Xc Yc^T by the eigenvalues of M M^T, of as many rows as the smaller set."""
    few, many = sorted((x, y), key=len)
    shift = few.mean(0) - many.mean(0)
    few = few - few.mean(0)
    total, gram = np.vdot(few, few) / (len(few) - 1), np.zeros((len(few), len(few)))
    for rows in _centred_blocks(many):
        products = few @ rows.T
        gram += products @ products.T
        total += np.vdot(rows, rows) / (len(many) - 1)
    cross = _sum_of_roots(np.linalg.eigvalsh(gram)) / np.sqrt((len(few) - 1) * (len(many) - 1))
    return max(0.0, float(shift @ shift + total - 2 * cross))


def _sum_of_roots(eigenvalues: NDArray) -> float:
    return float(np.sqrt(eigenvalues.clip(min=0)).sum())  # below 0 by rounding only


def _covariance(x: Array) -> Array:
    products = np.zeros((x.shape[1], x.shape[1]))
    some = np.empty_like(products)  # used again: new memory would cost a tenth of the time
    for rows in _centred_blocks(x):
        products += np.matmul(rows.T, rows, out=some)
    products /= len(x) - 1
    return products


def _centred_blocks(x: Array) -> Iterator[Array]:
    mean = x.mean(0)
    return (x[rows] - mean for rows in _blocks(len(x)))


def kernel_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3; can be below 0, 0 on average if equal.

    Over all N1 x N2 pairs, so it needs no random subsets. Binkowski et al. 2018, sec. 4 (the
    "KID" when the features are Inception's).

    Raises ValueError as `frechet_distance` does.
    """
    x, y = _two_sets(x, y)
    return _mean_within(x, _cubic_kernel) + _mean_within(y, _cubic_kernel) - 2 * _mean_between(x, y, _cubic_kernel)


def kernel_distance_over_subsets(
    x: ArrayLike, y: ArrayLike, rng: np.random.Generator, subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """Mean and standard deviation of `kernel_distance` over random subsets, as KID is reported.

    Each subset draws min(subset_size, N1, N2) samples of each set without replacement. The
    standard deviation is that of one subset's value, not an error of the mean.
    """
    x, y = _two_sets(x, y)
    size = min(subset_size, len(x), len(y))
    values = [
        kernel_distance(x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)]) for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _cubic_kernel(x: Array, y: Array) -> Array:
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base  # numpy's ** 3 is many times slower


def gaussian_mmd(real: ArrayLike, synthetic: ArrayLike, bandwidth: float | None = None) -> float:
    """Unbiased squared MMD with the kernel exp(-|x - y|^2 / (2 bandwidth^2)); can be below 0, 0 on average if equal.

    Gretton et al. 2012, Lemma 6 (Eq. 3). bandwidth: by default the median distance between two REAL
    samples, theirs sec. 8; with synthetic ones in it, a poor synthetic set would choose what it is
    measured by. Of more than 2,000 real samples, that many evenly spaced ones give the median.
    Pass one where several values are to be compared, such as the draws of a bootstrap.

    Raises ValueError if half of the real pairs or more are equal and no bandwidth is given, or as
    `frechet_distance` does.
    """
    x, y = _two_centred_sets(real, synthetic)
    kernel = partial(_gaussian_kernel, bandwidth=_median_distance(x) if bandwidth is None else bandwidth)
    return _mean_within(x, kernel) + _mean_within(y, kernel) - 2 * _mean_between(x, y, kernel)


def _gaussian_kernel(x: Array, y: Array, bandwidth: float) -> Array:
    exponent = squared_distances(x, y)
    exponent /= -2 * bandwidth**2
    return np.exp(exponent, out=exponent)


def _median_distance(x: Array) -> float:
    some = x[:: -(-len(x) // MEDIAN_SAMPLES)]
    median = float(np.median(_distances(some, some)[np.triu_indices(len(some), 1)]))
    if median <= 1e-7 * np.sqrt(np.square(some).sum(1).max()):  # what rounding leaves of 0
        raise ValueError("half of the real pairs or more are equal, so their median distance gives no bandwidth; remove duplicates")
    return median


def energy_distance(x: ArrayLike, y: ArrayLike) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|; can be below 0, 0 on average if equal.

    Székely & Rizzo 2013, the squared distance, of the unit of the features. It is 0 for equal
    distributions only, has no parameter and needs no more than means to exist. The U-statistic: pairs
    of one sample with itself are left out, so that like `kernel_distance` it has no bias, and sets of
    different sizes can be compared. The V-statistic (the square of SciPy's) is never negative, and
    too large by the mean distance within each set over its N.

    Raises ValueError as `frechet_distance` does.
    """
    x, y = _two_centred_sets(x, y)
    return 2 * _mean_between(x, y, _distances) - _mean_within(x, _distances) - _mean_within(y, _distances)


def _distances(x: Array, y: Array) -> Array:
    squared = squared_distances(x, y)
    return np.sqrt(squared, out=squared)


Pairs = Callable[[Array, Array], Array]
"""Of some samples (n, D) and others (m, D) to a value a pair (n, m)."""


def _mean_between(x: Array, y: Array, pairs: Pairs) -> float:
    total = sum(float(pairs(x[rows], y[columns]).sum()) for rows in _blocks(len(x)) for columns in _blocks(len(y)))
    return total / (len(x) * len(y))


def _mean_within(x: Array, pairs: Pairs) -> float:
    """Mean over pairs of different samples: leaving out i = j is what makes it unbiased. Each pair is met once."""
    total, blocks = 0.0, _blocks(len(x))
    for n, rows in enumerate(blocks):
        same = pairs(x[rows], x[rows])
        total += float(same.sum() - same.trace())
        total += 2 * sum(float(pairs(x[rows], x[columns]).sum()) for columns in blocks[n + 1 :])
    return total / (len(x) * (len(x) - 1))


def _blocks(samples: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, samples, BLOCK)]


def sliced_wasserstein(x: ArrayLike, y: ArrayLike, rng: np.random.Generator, projections: int = 256) -> float:
    """Root mean square, over random directions, of the 1-D Wasserstein-2 distance; 0 or more.

    Exact in each direction also when N1 and N2 differ. For D = 1 it is the Wasserstein-2 distance.
    Bonneel et al. 2015, sec. 3.

    Raises ValueError as `frechet_distance` does.
    """
    x, y = _two_sets(x, y)
    directions = rng.standard_normal((projections, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    xs, ys = np.sort(directions @ x.T, axis=1), np.sort(directions @ y.T, axis=1)
    # Both quantile functions are steps; between two neighbouring levels both are constant.
    levels = np.union1d(np.arange(1, len(x)) / len(x), np.arange(1, len(y)) / len(y))
    edges = np.concatenate([[0.0], levels, [1.0]])
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    gap = xs[:, (middles * len(x)).astype(int)] - ys[:, (middles * len(y)).astype(int)]
    return float(np.sqrt((np.square(gap) @ widths).mean()))


@dataclass(frozen=True)
class Coverage:
    """Precision, recall, density and coverage of a synthetic set (Naeem et al. 2020).

    precision: share of synthetic samples inside the real set; recall: share of real samples inside
    the synthetic set; coverage: share of real samples with a synthetic one nearby; all in [0, 1].
    density: how deep inside; about 1 for equal distributions, and it can exceed 1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(real: ArrayLike, synthetic: ArrayLike, k: int = 5) -> Coverage:
    """How synthetic (N2, D) lies among real (N1, D), by balls that reach each k-th neighbour.

    Naeem et al. 2020, Eqs. 1-4. A set with duplicates has balls of radius 0, which hold nothing.

    Raises ValueError if a set has k samples or fewer, or as `frechet_distance` does.
    """
    r, s = _two_centred_sets(real, synthetic)
    if min(len(r), len(s)) <= k:
        raise ValueError(
            f"{k} neighbours need more than {k} samples, got {len(r)} real and {len(s)} synthetic; give more samples or a smaller k"
        )
    real_radius, synthetic_radius = _squared_radius(r, k), _squared_radius(s, k)
    balls_around_synthetic = np.zeros(len(s), int)
    reached_by_synthetic, holds_synthetic = np.zeros(len(r), bool), np.zeros(len(r), bool)
    for rows in _blocks(len(r)):
        for columns in _blocks(len(s)):
            squared = squared_distances(r[rows], s[columns])
            in_real_ball = squared < real_radius[rows, None]
            balls_around_synthetic[columns] += in_real_ball.sum(0)
            holds_synthetic[rows] |= in_real_ball.any(1)
            reached_by_synthetic[rows] |= (squared < synthetic_radius[columns]).any(1)
    return Coverage(
        precision=float((balls_around_synthetic > 0).mean()),
        recall=float(reached_by_synthetic.mean()),
        density=float(balls_around_synthetic.mean() / k),
        coverage=float(holds_synthetic.mean()),
    )


def _squared_radius(x: Array, k: int) -> Array:
    """Squared distance from each sample to its k-th nearest other sample, shape (N,)."""
    nearest = np.full((len(x), k), np.inf)

    def update(rows: slice, squared: Array) -> None:
        nearest[rows] = np.partition(np.hstack([nearest[rows], squared]), k - 1, axis=1)[:, :k]

    blocks = _blocks(len(x))
    for n, rows in enumerate(blocks):
        itself = squared_distances(x[rows], x[rows])
        np.fill_diagonal(itself, np.inf)
        update(rows, itself)
        for columns in blocks[n + 1 :]:
            squared = squared_distances(x[rows], x[columns])
            update(rows, squared)
            update(columns, squared.T)
    return nearest[:, k - 1]


def squared_distances(x: Array, y: Array) -> Array:
    """|x_i - y_j|^2 as an (N1, N2) matrix, through one matrix product; never below 0."""
    squared = x @ y.T
    squared *= -2
    squared += np.einsum("nd,nd->n", x, x)[:, None]
    squared += np.einsum("nd,nd->n", y, y)
    return np.maximum(squared, 0, out=squared)


def standardise(reference: ArrayLike, *sets: ArrayLike) -> list[Array]:
    """Each set less the reference's mean, over the reference's standard deviation, per feature.

    The reference is always a REAL set: a scale taken from synthetic samples would hide what is
    wrong with them. A feature that is constant in the reference is only centred.
    """
    reference = np.asarray(reference, np.float64)
    spread = reference.std(0)
    # A constant feature keeps a spread of rounding size; dividing by that would make noise huge.
    spread = np.where(spread > 1e-9 * (1 + np.abs(reference).max(0)), spread, 1.0)
    return [(np.asarray(one, np.float64) - reference.mean(0)) / spread for one in sets]


def _two_centred_sets(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Both less the mean of x: distances by matrix products lose fewest digits near the origin."""
    x, y = _two_sets(x, y)
    centre = x.mean(0)
    return x - centre, y - centre


def _two_sets(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"two sets of shape (N, D) with one D are compared, got {x.shape} and {y.shape}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a distance needs 2 samples or more in each set, got {len(x)} and {len(y)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features hold NaN or infinity; look for patches with impossible HU values")
    return x, y
