"""Intervals, floors and extrapolations against known sampling distributions."""

import numpy as np
import pytest

from evaluate.distances import frechet_distance
from evaluate.intervals import (
    Interval,
    bootstrap_interval,
    extrapolate_frechet,
    halves_of_patients,
    real_floor,
)


def mean_difference(x, y):
    return float(x.mean() - y.mean())


def cohort(rng, patients, each, d=1):
    """Patches of one patient share most of their value; returns (N, d) and N patient ids."""
    samples = rng.standard_normal((patients, 1, d)) + 0.1 * rng.standard_normal((patients, each, d))
    return samples.reshape(-1, d), np.repeat([f"p{i}" for i in range(patients)], each)


def test_interval_of_a_mean_has_the_width_of_the_standard_error_over_patients():
    rng = np.random.default_rng(0)
    x, patients = cohort(rng, patients=100, each=5)
    y, y_patients = cohort(rng, patients=100, each=5)
    got = bootstrap_interval(mean_difference, x, y, patients, y_patients, rng, draws=2000)
    assert got.high - got.low == pytest.approx(2 * 1.96 * np.sqrt(2 * 1.0025 / 100), rel=0.25)
    assert got.low < mean_difference(x, y) < got.high
    as_if_independent = bootstrap_interval(mean_difference, x, y, None, None, rng, draws=500)
    assert as_if_independent.high - as_if_independent.low < 0.6 * (got.high - got.low)


def test_an_interval_holds_95_percent_of_the_draws_around_the_distance_itself():
    values = iter([*range(1001), 7.0])  # of the draws, then of the sets themselves
    got = bootstrap_interval(
        lambda x, y: next(values), np.zeros((4, 1)), np.zeros((4, 1)), None, None, np.random.default_rng(0), draws=1001
    )
    assert (got.low, got.high) == pytest.approx((7 - 475, 7 + 475))


def test_halves_never_share_a_patient_and_keep_every_row():
    rng = np.random.default_rng(0)
    patients = np.array(["a"] * 7 + ["b"] + ["c"] * 3 + ["d"] * 4)
    for _ in range(50):
        a, b = halves_of_patients(patients, len(patients), rng)
        assert sorted([*a, *b]) == list(range(15))
        assert not set(patients[a]) & set(patients[b])
        assert len(a)
        assert len(b)


def test_floor_is_low_for_one_distribution_and_synthetic_at_the_same_size_is_higher():
    rng = np.random.default_rng(0)
    real, patients = cohort(rng, patients=60, each=4, d=3)
    same, _ = cohort(rng, patients=300, each=1, d=3)
    floor = real_floor(frechet_distance, real, patients, same, rng)
    assert floor.samples <= 120
    assert floor.low <= floor.value <= floor.high
    assert floor.synthetic_value < 2 * floor.value
    shifted = real_floor(frechet_distance, real, patients, same + 2, rng)
    assert shifted.synthetic_value == pytest.approx(12, rel=0.2)
    assert shifted.synthetic_value > 10 * shifted.value


def test_a_floor_holds_95_percent_of_the_halvings():
    values = (value for n in range(41) for value in (float(n), 100.0))  # between halves, then to synthetic
    x = np.zeros((8, 1))
    floor = real_floor(lambda a, b: next(values), x, None, x, np.random.default_rng(0), draws=41)
    assert (floor.low, floor.value, floor.high, floor.synthetic_value) == pytest.approx((1, 20, 39, 100))


def test_floor_takes_no_more_than_the_synthetic_set_has():
    rng = np.random.default_rng(0)
    real, patients = cohort(rng, patients=30, each=4, d=2)
    assert real_floor(frechet_distance, real, patients, rng.standard_normal((9, 2)), rng).samples == 9


def test_extrapolation_undoes_the_bias_of_small_samples():
    rng = np.random.default_rng(0)
    biased, extrapolated = [], []
    for _ in range(20):
        x, y = rng.standard_normal((300, 10)), rng.standard_normal((300, 10))
        biased.append(frechet_distance(x, y))
        extrapolated.append(extrapolate_frechet(x, y, rng).value)
    assert abs(np.mean(extrapolated)) < 0.25 * np.mean(biased)


def test_one_patient_has_no_interval_and_no_floor():
    rng = np.random.default_rng(0)
    x, one = rng.standard_normal((8, 2)), ["p"] * 8
    with pytest.raises(ValueError, match="2 patients"):
        bootstrap_interval(frechet_distance, x, x, one, None, rng)
    with pytest.raises(ValueError, match="2 patients"):
        real_floor(frechet_distance, x, one, x, rng)
    with pytest.raises(ValueError, match="low to high"):
        Interval(1.0, float("nan"))
