"""Distances against answers that follow from mathematics, plain loops, and the packages that others use."""

from math import erf, exp, gamma, pi, sqrt

import numpy as np
import pytest
from conftest import benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluate import distances
from evaluate.distances import (
    _frechet_distance_by_samples,
    energy_distance,
    frechet_distance,
    frechet_distance_of_moments,
    gaussian_mmd,
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


def moments(x):
    return x.mean(0), np.cov(x.T)


@pytest.mark.parametrize(("n1", "n2", "d"), [(40, 30, 6), (40, 5, 12), (5, 40, 12), (9, 9, 12), (8, 8, 8)])
def test_both_routes_agree(n1, n2, d):
    x, y = gaussian(1, n1, d), 2 * gaussian(2, n2, d) @ gaussian(3, d, d)
    assert frechet_distance_of_moments(*moments(x), *moments(y)) == pytest.approx(_frechet_distance_by_samples(x, y), rel=1e-6)


def test_points_that_are_all_the_same_have_the_distance_of_points():
    x = np.ones((9, 3))
    assert frechet_distance(x, x + 2) == pytest.approx(12)
    assert frechet_distance(x, gaussian(0, 9, 3)) == pytest.approx(
        np.square(1 - gaussian(0, 9, 3).mean(0)).sum() + gaussian(0, 9, 3).var(0, ddof=1).sum()
    )


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
    for distance in (frechet_distance, kernel_distance, energy_distance, lambda x, y: gaussian_mmd(x, y, 50.0)):
        scale = 1 + distance(x, -x) + distance(x, y)
        assert distance(shuffled, y) == pytest.approx(distance(x, y), abs=1e-6 * abs(scale))
    first, second = (sliced_wasserstein(one, y, np.random.default_rng(0), 8) for one in (x, shuffled))
    assert first == pytest.approx(second, abs=1e-9)


def plain_loop(x, y, pair):
    """E pair(x, x') + E pair(y, y') - 2 E pair(x, y) over pairs of different samples."""
    within = [np.mean([pair(a, b) for i, a in enumerate(one) for j, b in enumerate(one) if i != j]) for one in (x, y)]
    return sum(within) - 2 * np.mean([pair(a, b) for a in x for b in y])


@pytest.mark.parametrize("block", [1, 2, 4, 1024])
def test_distances_of_pairs_equal_the_plain_double_loop(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    x, y = gaussian(0, 7, 3), gaussian(1, 5, 3) + 1
    assert kernel_distance(x, y) == pytest.approx(plain_loop(x, y, lambda a, b: (a @ b / 3 + 1) ** 3))
    assert energy_distance(x, y) == pytest.approx(plain_loop(x, y, lambda a, b: -np.linalg.norm(a - b)))
    assert gaussian_mmd(x, y, 1.7) == pytest.approx(plain_loop(x, y, lambda a, b: np.exp(-np.square(a - b).sum() / (2 * 1.7**2))))


UNBIASED = pytest.mark.parametrize("distance", [kernel_distance, energy_distance, lambda x, y: gaussian_mmd(x, y, 2.0)])


@UNBIASED
def test_unbiased_distances_are_zero_on_average_for_equal_distributions(distance):
    values = [distance(gaussian(2 * s, 30, 4), gaussian(2 * s + 1, 20, 4)) for s in range(300)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0  # unbiased: it must fall on both sides
    shifted = [distance(gaussian(2 * s, 30, 4), gaussian(2 * s + 1, 20, 4) + 0.5) for s in range(50)]
    assert np.mean(shifted) > 10 * error


def test_two_point_masses():
    x, y = np.zeros((4, 3)), np.full((6, 3), 2.0)  # at a distance of sqrt(12)
    assert energy_distance(x, y) == pytest.approx(2 * sqrt(12), abs=1e-6)
    assert gaussian_mmd(x, y, 3.0) == pytest.approx(2 - 2 * exp(-12 / 18))


@pytest.mark.parametrize("shift", [0.0, 0.7, 3.0])
def test_energy_distance_of_two_normal_distributions(shift):
    # E|N(m, s^2)| = s sqrt(2/pi) exp(-m^2 / 2 s^2) + m erf(m / s sqrt 2); differences have s^2 = 2 and m = shift or 0.
    expected = 4 / sqrt(pi) * (exp(-(shift**2) / 4) - 1) + 2 * shift * erf(shift / 2)
    values = [energy_distance(gaussian(2 * s, 200, 1), gaussian(2 * s + 1, 100, 1) + shift) for s in range(60)]
    assert abs(np.mean(values) - expected) < 3 * np.std(values) / sqrt(60)


def test_energy_distance_of_normal_distributions_of_unequal_spread_in_five_dimensions():
    # |N(0, s^2 I)| is s times a chi variable of 5 degrees of freedom, whose mean is sqrt 2 gamma(3) / gamma(5/2).
    chi = sqrt(2) * gamma(3) / gamma(2.5)
    expected = chi * (2 * sqrt(1 + 9) - sqrt(1 + 1) - sqrt(9 + 9))
    values = [energy_distance(gaussian(2 * s, 200, 5), 3 * gaussian(2 * s + 1, 150, 5)) for s in range(40)]
    assert abs(np.mean(values) - expected) < 3 * np.std(values) / sqrt(40)


def test_gaussian_mmd_of_two_normal_distributions():
    # E exp(-|z|^2 / 2 b^2) with z ~ N(m, 2 I) in D dimensions is (b^2 / (b^2 + 2))^(D/2) exp(-|m|^2 / 2 (b^2 + 2)).
    b, d, shift = 1.5, 3, np.array([1.0, -0.5, 0.2])
    expected = 2 * (b**2 / (b**2 + 2)) ** (d / 2) * (1 - exp(-shift @ shift / (2 * (b**2 + 2))))
    values = [gaussian_mmd(gaussian(2 * s, 150, d), gaussian(2 * s + 1, 100, d) + shift, b) for s in range(60)]
    assert abs(np.mean(values) - expected) < 3 * np.std(values) / sqrt(60)


def test_the_bandwidth_is_the_median_distance_of_the_real_set_alone(monkeypatch):
    real, synthetic = gaussian(0, 41, 3) + 100, 30 * gaussian(1, 20, 3)
    median = np.median([np.linalg.norm(a - b) for i, a in enumerate(real) for b in real[:i]])
    assert gaussian_mmd(real, synthetic) == pytest.approx(gaussian_mmd(real, synthetic, median), rel=1e-9)
    monkeypatch.setattr(distances, "MEDIAN_SAMPLES", 20)  # of 41, every third
    median = np.median([np.linalg.norm(a - b) for i, a in enumerate(real[::3]) for b in real[::3][:i]])
    assert gaussian_mmd(real, synthetic) == pytest.approx(gaussian_mmd(real, synthetic, median), rel=1e-9)
    with pytest.raises(ValueError, match="equal"):
        gaussian_mmd(np.repeat(real[:1], 9, axis=0), synthetic)


def test_energy_distance_is_scipys_less_the_mean_distances_over_the_counts():
    from scipy import stats

    x, y = gaussian(0, 30, 1), 2 * gaussian(1, 20, 1) + 0.5
    within = [np.abs(one - one.T).sum() / (len(one) * (len(one) - 1)) for one in (x, y)]
    with_themselves = stats.energy_distance(x[:, 0], y[:, 0]) ** 2  # the V-statistic
    assert energy_distance(x, y) == pytest.approx(with_themselves - within[0] / 30 - within[1] / 20)


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


@pytest.mark.parametrize("block", [7, 1024])
def test_coverage_equals_the_plain_loops(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
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


@pytest.fixture(scope="module")
def peers():
    yield from benchmark("distances")


def imported(peers, module):
    return peers.peer(module) if peers.find_spec(module.split(".")[0]) else pytest.skip(f"{module} is not installed")


@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated:DeprecationWarning")
def test_frechet_distance_equals_pytorch_fid(peers):
    x, y = peers.features(300, 40)
    expected = imported(peers, "pytorch_fid.fid_score").calculate_frechet_distance(*moments(x), *moments(y))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert peers.pytorch_fid(peers.moments(x), peers.moments(y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("samples", [30, 300])
def test_frechet_distance_equals_torch_fidelity(peers, samples):
    imported(peers, "torch_fidelity.metric_fid")
    x, y = peers.features(samples, 40)
    assert frechet_distance(x, y) == pytest.approx(peers.torch_fidelity(moments(x), moments(y))(), rel=1e-6)


def test_kernel_distance_equals_torch_fidelity(peers):
    imported(peers, "torch_fidelity.metric_kid")
    x, y = peers.features(200, 40)
    assert kernel_distance(x, y) == pytest.approx(peers.torch_fidelity_kernel(x, y)(), rel=1e-9)


def test_gaussian_mmd_equals_torch_fidelity(peers):
    metric = imported(peers, "torch_fidelity.metric_kid")
    x, y = peers.features(60, 40)
    assert gaussian_mmd(x, y, 1.3) == pytest.approx(metric.kernel_mmd(x, y, kid_kernel="rbf", kid_kernel_rbf_sigma=1.3), rel=1e-9)


@pytest.mark.parametrize("k", [1, 5])
def test_coverage_equals_prdc(k, capsys):
    theirs = pytest.importorskip("prdc")
    real, synthetic = gaussian(0, 150, 6), 0.8 * gaussian(1, 110, 6) + 0.3
    expected = theirs.compute_prdc(real, synthetic, nearest_k=k)
    found = precision_recall_density_coverage(real, synthetic, k)
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected, abs=1e-12)
    assert 0 < found.coverage < 1


@pytest.mark.parametrize("n", [40, 60])
def test_sliced_wasserstein_equals_pot(n):
    ot = pytest.importorskip("ot")
    x, y = gaussian(0, 40, 5), 2 * gaussian(1, n, 5) + 1
    directions = np.random.default_rng(3).standard_normal((16, 5))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = ot.sliced_wasserstein_distance(x, y, projections=directions.T, p=2)
    assert sliced_wasserstein(x, y, np.random.default_rng(3), 16) == pytest.approx(float(expected), rel=1e-9)


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
    for distance in (frechet_distance, kernel_distance, gaussian_mmd, energy_distance, precision_recall_density_coverage):
        with pytest.raises(ValueError, match=message):
            distance(x, y)
    with pytest.raises(ValueError, match="more than 5"):
        precision_recall_density_coverage(np.zeros((5, 2)), np.zeros((9, 2)))
