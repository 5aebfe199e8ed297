"""The attack and the copying test against plain loops, by hand, and over many sets drawn where nothing is copied."""

import numpy as np
import pytest

from evaluate.membership import copying_z, data_copying, design_effect, membership_inference


def test_membership_by_hand():
    got = membership_inference(np.array([1.0, 2.0, 5.0, 6.0]), None, np.array([3.0, 4.0]), None, np.random.default_rng(0), draws=10)
    assert got.auroc == 0.5
    hundred = np.arange(100.0)
    got = membership_inference(np.r_[hundred[:50] - 50, hundred[:50] + 1], None, hundred, None, np.random.default_rng(0), draws=10)
    assert got.tpr_at_1_percent_fpr == 0.5  # the 50 that are nearer than any of the others
    assert got.tpr_interval.low < 0.5 < got.tpr_interval.high
    fewer = membership_inference(hundred, None, hundred[:99], None, np.random.default_rng(0), draws=10)
    assert np.isnan(fewer.tpr_at_1_percent_fpr)
    assert fewer.tpr_interval == "1 % of 99 held-out patches is less than one; it takes 100"


def test_intervals_hold_95_percent_of_the_draws(monkeypatch):
    scripted = {"_auroc": [*(n / 1000 for n in range(1001)), 0.5], "_tpr": [*(n / 2000 for n in range(1001)), 0.25]}
    for name, values in scripted.items():
        draws = iter(values)
        monkeypatch.setattr(f"evaluate.membership.{name}", lambda members, others, draws=draws: next(draws))
    got = membership_inference(np.arange(120.0), None, np.arange(120.0), None, np.random.default_rng(0), draws=1001)
    assert (got.auroc_interval.low, got.auroc_interval.high) == pytest.approx((0.025, 0.975))
    assert (got.tpr_interval.low, got.tpr_interval.high) == pytest.approx((0.0125, 0.4875))


def test_intervals_hold_the_truth_where_closeness_tells_nothing():
    """Patients of 4 patches that share half of their variance: intervals over patches would miss far more often than 5 %."""
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        training, held_out = (rng.normal(size=(n, 1)) + rng.normal(size=(n, 4)) for n in (60, 40))
        patients = [np.repeat(np.arange(n), 4) for n in (60, 40)]
        got = membership_inference(training.ravel(), patients[0], held_out.ravel(), patients[1], rng, draws=60)
        held += got.auroc_interval.low <= 0.5 <= got.auroc_interval.high
    assert held >= 50  # of 57 expected


def test_copying_z_equals_the_paper_s_formula_by_loops():
    rng = np.random.default_rng(0)
    q, p = rng.integers(0, 20, 13).astype(float), rng.integers(0, 20, 9).astype(float)
    u = sum((a > b) + 0.5 * (a == b) for a in q for b in p)
    m, n = len(q), len(p)
    assert copying_z(q, p, None) == pytest.approx((u - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12))


def test_copies_are_strongly_negative_and_underfitting_positive():
    rng = np.random.default_rng(0)
    held_out = rng.uniform(100, 200, 50)
    assert copying_z(np.zeros(100), held_out, None) < -8
    assert copying_z(held_out + 200, held_out, None) > 8


@pytest.mark.parametrize("each", [1, 5])
def test_fresh_draws_give_a_standard_normal_z(each):
    """Also where a patient's patches resemble each other, who without the design effect would double its spread."""
    values, plain = [], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        shared = rng.normal(size=(40, 1)) * (each > 1)
        held_out = (shared + 0.5 * rng.normal(size=(40, each))).ravel()
        synthetic = rng.normal(size=200) * (each > 1) + 0.5 * rng.normal(size=200)
        values.append(copying_z(synthetic, held_out, np.repeat(np.arange(40), each)))
        plain.append(copying_z(synthetic, held_out, None))
    assert np.mean(values) == pytest.approx(0, abs=0.15)
    assert np.std(values) == pytest.approx(1, abs=0.15)
    assert each == 1 or np.std(plain) > 1.5


def test_design_effect_by_hand():
    assert design_effect(np.arange(6.0), None) == 1
    assert design_effect(np.arange(6.0), ["a"] * 6) == 6
    twins = np.repeat(np.random.default_rng(0).permutation(50), 2).astype(float)
    assert design_effect(twins, np.repeat(np.arange(50), 2)) == pytest.approx(2, abs=0.05)


def test_cells_show_where_a_generator_copies():
    """Two groups of training patients; copies lie in the first one only, and its cell says so."""
    rng = np.random.default_rng(0)
    points = np.r_[rng.normal(0, 1, (50, 2)), rng.normal(50, 1, (50, 2))]

    def nearest(some):
        far = np.linalg.norm(some[:, None] - points[None], axis=2)
        return far.min(1), far.argmin(1)

    held_out = np.r_[rng.normal(0, 1, (20, 2)), rng.normal(50, 1, (20, 2))]
    synthetic = np.r_[points[:40] + 0.01, rng.normal(50, 1, (40, 2))]
    between = np.linalg.norm(points[:, None] - points[None], axis=2)
    found = data_copying(*nearest(synthetic), *nearest(held_out), None, between)
    assert [(one.training, one.held_out, one.synthetic) for one in found.cells] in ([(50, 20, 40)] * 2,)
    low, high = sorted(one.z for one in found.cells)
    assert low < -5
    assert abs(high) < 2.5
    assert found.c_t == pytest.approx((low + high) / 2)
    assert low < found.z < high
