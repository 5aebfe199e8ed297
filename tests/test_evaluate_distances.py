"""Distances against answers that follow from mathematics, and against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluate.distances import (
    _cross_trace_by_features,
    _cross_trace_by_samples,
    frechet_distance,
    kernel_distance,
    kernel_distance_over_subsets,
    precision_recall_density_coverage,
    sliced_wasserstein,
    standardise,
)

SETS = arrays(np.float64, st.tuples(st.integers(6, 20), st.just(4)), elements=st.floats(-100, 100, width=32))


def gaussian(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize(("n", "d"), [(30, 5), (10, 40)])
def test_equal_covariance_leaves_the_squared_distance_of_the_means(n, d):
    x, shift = gaussian(0, n, d), np.linspace(-1, 2, d)
    assert frechet_distance(x, x + shift) == pytest.approx(np.square(shift).sum(), rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_scaling_one_dimension_leaves_the_squared_difference_of_the_spreads():
    x = gaussian(0, 50, 1)
    x = (x - x.mean()) / x.std(ddof=1)
    assert frechet_distance(3 * x, 5 * x + 7) == pytest.approx((5 - 3) ** 2 + 7**2)


def test_two_point_sets_by_hand():
    # On the axes, variances 2 and 8 along x against 2 along y: tr(Sx + Sy), as Sx Sy = 0.
    x, y = np.array([[-1.0, 0], [1, 0]]), np.array([[0.0, -2], [0, 2]])
    assert frechet_distance(x, y) == pytest.approx(2 + 8)


@pytest.mark.parametrize(("n1", "n2", "d"), [(40, 30, 6), (40, 5, 12), (9, 40, 12), (8, 8, 8)])
def test_both_routes_agree(n1, n2, d):
    x, y = gaussian(1, n1, d), 2 * gaussian(2, n2, d) @ gaussian(3, d, d)
    xc, yc = x - x.mean(0), y - y.mean(0)
    assert _cross_trace_by_features(xc, yc) == pytest.approx(_cross_trace_by_samples(xc, yc), rel=1e-6)


def test_matches_the_matrix_square_root_of_scipy():
    from scipy.linalg import sqrtm

    x, y = gaussian(1, 60, 6), 1 + gaussian(2, 50, 6) @ gaussian(3, 6, 6)
    sx, sy = np.cov(x.T), np.cov(y.T)
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(sx + sy - 2 * sqrtm(sx @ sy).real)
    assert frechet_distance(x, y) == pytest.approx(expected)


def test_repeated_features_are_no_obstacle():
    x, y = gaussian(1, 60, 3), 1 + gaussian(2, 50, 3)
    twice = frechet_distance(np.hstack([x, x]), np.hstack([y, y]))
    assert twice == pytest.approx(2 * frechet_distance(x, y), rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(SETS, SETS)
def test_frechet_is_symmetric_and_never_negative(x, y):
    scale = 1 + np.square(x).sum() + np.square(y).sum()
    assert frechet_distance(x, y) >= 0
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), abs=1e-6 * scale)


@settings(deadline=None, max_examples=40)
@given(SETS, SETS, st.integers(0, 2**31))
def test_distances_do_not_depend_on_the_order_of_samples(x, y, seed):
    shuffled = np.random.default_rng(seed).permutation(x)
    for distance in (frechet_distance, kernel_distance):
        scale = 1 + distance(x, -x) + distance(x, y)
        assert distance(shuffled, y) == pytest.approx(distance(x, y), abs=1e-6 * abs(scale))
    first, second = (sliced_wasserstein(one, y, np.random.default_rng(0), 8) for one in (x, shuffled))
    assert first == pytest.approx(second, abs=1e-9)


def test_kernel_distance_equals_the_plain_double_loop():
    x, y = gaussian(0, 7, 3), gaussian(1, 5, 3) + 1

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [np.mean([k(a, b) for i, a in enumerate(one) for j, b in enumerate(one) if i != j]) for one in (x, y)]
    expected = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(expected)


def test_kernel_distance_is_zero_on_average_for_equal_distributions():
    values = [kernel_distance(gaussian(2 * s, 30, 4), gaussian(2 * s + 1, 20, 4)) for s in range(300)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0  # unbiased: it must fall on both sides
    shifted = [kernel_distance(gaussian(2 * s, 30, 4), gaussian(2 * s + 1, 20, 4) + 0.5) for s in range(50)]
    assert np.mean(shifted) > 10 * error


def test_kernel_distance_over_subsets_of_everything_is_the_distance():
    x, y = gaussian(0, 12, 3), gaussian(1, 12, 3)
    mean, sd = kernel_distance_over_subsets(x, y, np.random.default_rng(0), subsets=3)
    assert (mean, sd) == (pytest.approx(kernel_distance(x, y)), pytest.approx(0, abs=1e-12))


def test_sliced_wasserstein_of_a_shift():
    rng = np.random.default_rng(0)
    x = gaussian(0, 40, 1)
    assert sliced_wasserstein(x, x + 3, rng) == pytest.approx(3)
    # A direction u sees a shift s as u.s, whose mean square is |s|^2 / D.
    x = gaussian(0, 40, 5)
    assert sliced_wasserstein(x, x + 2, rng, 20_000) == pytest.approx(2, rel=0.02)


def test_sliced_wasserstein_of_unequal_sizes_by_hand():
    # Sorted masses 1/2, 1/2 against 1/3 each: gaps 0 on [0, 1/3], 1 on [1/3, 1/2], 0, 1 on [2/3, 1].
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [1.0], [2.0]])
    assert sliced_wasserstein(x, y, np.random.default_rng(0)) == pytest.approx(np.sqrt(1 / 6 + 1 / 3))


def test_coverage_equals_the_plain_loops():
    real, synthetic, k = gaussian(0, 40, 3), gaussian(1, 30, 3) * 0.7 + 1, 3

    def radius(x, i):
        return sorted(np.linalg.norm(x[i] - other) for j, other in enumerate(x) if j != i)[k - 1]

    inside = np.array([[np.linalg.norm(r - s) < radius(real, i) for s in synthetic] for i, r in enumerate(real)])
    inside_synthetic = [any(np.linalg.norm(r - s) < radius(synthetic, j) for j, s in enumerate(synthetic)) for r in real]
    got = precision_recall_density_coverage(real, synthetic, k)
    assert got.precision == pytest.approx(inside.any(0).mean())
    assert got.recall == pytest.approx(np.mean(inside_synthetic))
    assert got.density == pytest.approx(inside.sum() / (k * len(synthetic)))
    assert got.coverage == pytest.approx(inside.any(1).mean())
    assert 0 < got.precision < 1
    assert 0 < got.recall < 1


def test_far_sets_share_nothing_and_a_collapsed_set_covers_little():
    real = gaussian(0, 50, 3)
    far = precision_recall_density_coverage(real, real + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    collapsed = precision_recall_density_coverage(real, gaussian(1, 50, 3) * 1e-3)
    assert collapsed.precision == 1
    assert collapsed.recall == 0
    assert collapsed.coverage < 0.5


def test_standardise_uses_the_reference_alone():
    reference = gaussian(0, 30, 3) * [1, 100, 0] + [0, 5, 0.3]
    itself, other = standardise(reference, reference, reference + 10)
    assert itself.mean(0) == pytest.approx(0, abs=1e-12)
    assert itself.std(0) == pytest.approx([1, 1, 0], abs=1e-12)
    assert other[:, 2] == pytest.approx(10)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), "one D"),
        (np.zeros((1, 2)), np.zeros((3, 2)), "2 samples"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "NaN"),
    ],
)
def test_refuses_what_has_no_distance(x, y, message):
    for distance in (frechet_distance, kernel_distance, precision_recall_density_coverage):
        with pytest.raises(ValueError, match=message):
            distance(x, y)
    with pytest.raises(ValueError, match="more than 5"):
        precision_recall_density_coverage(np.zeros((5, 2)), np.zeros((9, 2)))
