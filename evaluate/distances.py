"""Distances between two sets of feature vectors.

Sets are float64 (N, D): N samples, D features. The two sets may differ in N, never in D.
Fréchet, kernel and sliced Wasserstein distances are 0 for equal distributions. All of them depend
on the scale of the features: `standardise` first where features have different units.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CHUNK_ROWS = 1024  # rows of a pairwise matrix held at a time: 1024 x 50,000 float64 is 400 MB


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Squared Fréchet distance between Gaussians fitted to x (N1, D) and y (N2, D); 0 or more.

    |mx - my|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2)), Heusel et al. 2017, Eq. 6, covariances with N - 1.
    The last trace is taken without a matrix square root, so it is real whatever the rounding:
    ||Xc Yc^T||_* / sqrt((N1-1)(N2-1)) when a set has fewer samples than features, and the
    eigenvalues of L^T Sy L with Sx = L L^T otherwise. Both are exact; the choice is of speed.

    Raises ValueError if D differs, a set has fewer than 2 samples, or a value is not finite.
    """
    x, y = _two_sets(x, y)
    cross = _cross_trace_by_samples if min(len(x), len(y)) < x.shape[1] else _cross_trace_by_features
    shift = x.mean(0) - y.mean(0)
    xc, yc = x - x.mean(0), y - y.mean(0)
    total = np.square(xc).sum() / (len(x) - 1) + np.square(yc).sum() / (len(y) - 1)
    return max(0.0, float(shift @ shift + total - 2 * cross(xc, yc)))


def _cross_trace_by_samples(xc: Array, yc: Array) -> float:
    """tr (Sx Sy)^(1/2) from centred sets, as the nuclear norm of an N1 x N2 matrix."""
    nuclear_norm = np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    return float(nuclear_norm / np.sqrt((len(xc) - 1) * (len(yc) - 1)))


def _cross_trace_by_features(xc: Array, yc: Array) -> float:
    """tr (Sx Sy)^(1/2) from centred sets, as the root eigenvalues of a symmetric D x D matrix."""
    sx, sy = xc.T @ xc / (len(xc) - 1), yc.T @ yc / (len(yc) - 1)
    try:
        root = np.linalg.cholesky(sx)
    except np.linalg.LinAlgError:  # features that depend on each other: Sx is singular
        eigenvalues, vectors = np.linalg.eigh(sx)
        root = vectors * np.sqrt(eigenvalues.clip(min=0))
    eigenvalues = np.linalg.eigvalsh(root.T @ sy @ root)
    return float(np.sqrt(eigenvalues.clip(min=0)).sum())


def kernel_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3; can be below 0, 0 on average if equal.

    Over all N1 x N2 pairs, so it needs no random subsets. Binkowski et al. 2018, sec. 4 (the
    "KID" when the features are Inception's).

    Raises ValueError as `frechet_distance` does.
    """
    x, y = _two_sets(x, y)
    return _mean_kernel_within(x) + _mean_kernel_within(y) - 2 * _mean_kernel(x, y)


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


def _mean_kernel(x: Array, y: Array) -> float:
    total = sum(float(_cubic_kernel(x[start : start + CHUNK_ROWS], y).sum()) for start in range(0, len(x), CHUNK_ROWS))
    return total / (len(x) * len(y))


def _mean_kernel_within(x: Array) -> float:
    """Mean kernel over pairs of different samples: leaving out i = j is what makes it unbiased."""
    diagonal = ((np.square(x).sum(1) / x.shape[1] + 1) ** 3).sum()
    return float((_mean_kernel(x, x) * len(x) ** 2 - diagonal) / (len(x) * (len(x) - 1)))


def _cubic_kernel(x: Array, y: Array) -> Array:
    base = x @ y.T
    base /= x.shape[1]
    base += 1
    return base * base * base  # numpy's ** 3 is many times slower


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
    r, s = _two_sets(real, synthetic)
    if min(len(r), len(s)) <= k:
        raise ValueError(
            f"{k} neighbours need more than {k} samples, got {len(r)} real and {len(s)} synthetic; give more samples or a smaller k"
        )
    centre = r.mean(0)  # distances by matrix products lose fewest digits near the origin
    r, s = r - centre, s - centre
    real_radius, synthetic_radius = _squared_radius(r, k), _squared_radius(s, k)
    between = squared_distances(r, s)
    in_real_ball = between < real_radius[:, None]
    return Coverage(
        precision=float(in_real_ball.any(0).mean()),
        recall=float((between < synthetic_radius[None, :]).any(1).mean()),
        density=float(in_real_ball.sum(0).mean() / k),
        coverage=float((between.min(1) < real_radius).mean()),
    )


def _squared_radius(x: Array, k: int) -> Array:
    """Squared distance from each sample to its k-th nearest other sample, shape (N,)."""
    squared = squared_distances(x, x)
    np.fill_diagonal(squared, np.inf)
    return np.partition(squared, k - 1, axis=1)[:, k - 1]


def squared_distances(x: Array, y: Array) -> Array:
    """|x_i - y_j|^2 as an (N1, N2) matrix, through one matrix product; never below 0."""
    squared = x @ y.T
    squared *= -2
    squared += np.square(x).sum(1)[:, None]
    squared += np.square(y).sum(1)[None, :]
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


def _two_sets(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"two sets of shape (N, D) with one D are compared, got {x.shape} and {y.shape}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a distance needs 2 samples or more in each set, got {len(x)} and {len(y)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features hold NaN or infinity; look for patches with impossible HU values")
    return x, y
