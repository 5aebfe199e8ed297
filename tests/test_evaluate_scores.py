"""Detector metrics by hand and against plain loops; paired differences against known shifts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from evaluate.scores import (
    METRICS,
    Scores,
    _class_table,
    _metric_table,
    area_under_roc,
    choose_threshold,
    class_differences_to,
    differences_to,
    metrics_of,
    sensitivity_by_class,
    summarise,
)

LABELLED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=4, max_size=30).filter(
    lambda rows: len({positive for _, positive in rows}) == 2
)


def test_metrics_by_hand():
    scores = np.array([2.0, 1.0, -1.0, 0.5, -2.0, -3.0, -4.0])
    lesion = np.array([1, 1, 1, 0, 0, 0, 0], bool)
    got = metrics_of(scores, lesion, 0.0)
    assert got == pytest.approx(
        {"accuracy": 5 / 7, "balanced_accuracy": (2 / 3 + 3 / 4) / 2, "sensitivity": 2 / 3, "specificity": 3 / 4, "auroc": 11 / 12}
    )
    assert tuple(got) == METRICS


@given(LABELLED)
def test_auroc_equals_the_share_of_won_pairs(rows):
    scores, positive = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    won = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert area_under_roc(scores, positive) == pytest.approx(np.mean(won))


@given(LABELLED)
def test_no_threshold_does_better_than_the_chosen_one(rows):
    scores, positive = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])

    def balanced(threshold):
        return metrics_of(scores, positive, threshold)["balanced_accuracy"]

    assert balanced(choose_threshold(scores, positive)) == pytest.approx(max(balanced(t) for t in np.arange(-4, 5) - 0.5))


@given(LABELLED, st.floats(0.05, 0.95))
def test_a_threshold_at_a_specificity_is_the_lowest_that_keeps_it(rows, wanted):
    scores, positive = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    chosen = choose_threshold(scores, positive, wanted)
    assert metrics_of(scores, positive, chosen)["specificity"] >= wanted
    lower = scores[scores < chosen]
    if len(lower):
        assert metrics_of(scores, positive, lower.max())["specificity"] < wanted


def table(shift, seeds=4, patients=40, each=6):
    rng = np.random.default_rng(0)
    lesion = np.tile([True, False], patients * each // 2)
    base = rng.normal(0, 1, (1, seeds, len(lesion))) + lesion
    return Scores(
        ("a", "b"), np.concatenate([base, base + shift * lesion]), np.full((2, seeds), 0.5), lesion, np.repeat(np.arange(patients), each)
    )


def test_difference_of_equal_arms_is_nothing_and_of_a_better_arm_is_sure():
    same = differences_to("a", table(0.0), np.random.default_rng(0), draws=100)["b"]
    assert all((d.value, d.interval.low, d.interval.high) == (0, 0, 0) for d in same.values())
    better = differences_to("a", table(1.0), np.random.default_rng(0), draws=200)["b"]
    for name in ("sensitivity", "auroc", "balanced_accuracy"):
        assert 0 < better[name].interval.low <= better[name].value <= better[name].interval.high
    assert better["specificity"].value == 0


def test_resampled_metrics_equal_a_plain_loop_over_repeated_patches():
    rng = np.random.default_rng(0)
    scores = replace(table(0.5, seeds=2, patients=9, each=4), patients=np.array([f"p{n % 9}" for n in range(36)]))
    scores = replace(scores, log_odds=scores.log_odds.round(1))  # with ties
    counts = rng.integers(0, 4, (5, 9)).astype(float)
    classes = np.where(np.arange(36) < 12, "rare", "solid")
    got, by_class = _metric_table(scores, counts), _class_table(scores, classes, ["rare", "solid"], counts)
    for d, a, s in np.ndindex(5, 2, 2):
        rows = np.concatenate([np.flatnonzero(scores.patients == f"p{p}").repeat(int(counts[d, p])) for p in range(9)])
        expected = metrics_of(scores.log_odds[a, s][rows], scores.lesion[rows], 0.5)
        np.testing.assert_allclose(got[d, a, s], list(expected.values()))
        for c, name in enumerate(("rare", "solid")):
            mine = rows[scores.lesion[rows] & (classes[rows] == name)]
            np.testing.assert_allclose(by_class[d, a, s, c], (scores.log_odds[a, s][mine] >= 0.5).mean())


def test_equal_arms_trained_apart_differ_by_nothing_that_is_sure():
    """Two arms alike but for chance: few of 60 intervals leave 0 out. The truth is 0 by construction."""
    left_out = dict.fromkeys(METRICS, 0)
    for n in range(60):
        for name, d in simulated(n, gain=0.0)[0].items():
            left_out[name] += not d.interval.low <= 0 <= d.interval.high
    assert max(left_out.values()) <= 8  # 3 expected; more than 8 has a chance of 0.3 %


def test_intervals_cover_the_true_difference():
    """Of 120 simulated cohorts of 40 patients and 4 trainings; 114 are expected, fewer than 106 have a chance of 0.1 %."""
    found = [simulated(n, gain=0.4) for n in range(120)]
    for name in METRICS:
        assert sum(d[name].interval.low <= truth[name] <= d[name].interval.high for d, truth in found) >= 106, name


def simulated(seed, gain, patients=40, each=6, seeds=4):
    """The difference of two arms, and what it would be over all patients and trainings.

    A score is normal: lesion + patient + patient in this arm + training + patch. Its threshold is 0.75. So
    truth is by the normal distribution; AUROC pairs patches of two patients, or, once in `patients`, of one.
    """
    rng = np.random.default_rng(seed)
    patient, in_arm, training, patch, noise, shift = 0.7, 0.3, 0.3, 0.8, 0.4, np.array([1.5, 1.5 + gain])
    of, lesion = np.repeat(np.arange(patients), each), np.tile([True, False], patients * each // 2)
    log_odds = (
        shift[:, None, None] * lesion
        + rng.normal(0, patient, patients)[of]
        + rng.normal(0, in_arm, (2, 1, patients))[..., of]
        + rng.normal(0, training, (2, seeds, 1))
        + rng.normal(0, patch, len(of))
        + rng.normal(0, noise, (2, seeds, len(of)))
    )
    scores = Scores(("a", "b"), log_odds, np.full((2, seeds), 0.75), lesion, of)
    alone = 2 * (patch**2 + noise**2)
    between = alone + 2 * (patient**2 + in_arm**2)
    auroc = norm.cdf(shift / np.sqrt(between)) * (1 - 1 / patients) + norm.cdf(shift / np.sqrt(alone)) / patients
    sensitivity = float(np.diff(norm.cdf((shift - 0.75) / np.sqrt(between / 2 + training**2)))[0])
    truth = {"accuracy": sensitivity / 2, "balanced_accuracy": sensitivity / 2, "sensitivity": sensitivity, "specificity": 0.0}
    return differences_to("a", scores, rng, draws=300)["b"], truth | {"auroc": float(np.diff(auroc)[0])}


def test_class_differences_have_intervals_where_there_are_patients_enough():
    scores = table(1.0)
    rare = np.isin(scores.patients, [0, 1, 2])
    found = class_differences_to("a", scores, np.where(rare, "rare", "solid"), np.random.default_rng(0), draws=200)
    assert list(found) == ["rare", "solid"]
    overall = differences_to("a", scores, np.random.default_rng(0), draws=200)["b"]["sensitivity"]
    assert 0 < found["solid"]["b"].interval.low < found["solid"]["b"].value < found["solid"]["b"].interval.high
    assert found["rare"]["b"].interval == "3 patients, fewer than 5"
    assert 0.075 * found["rare"]["b"].value + 0.925 * found["solid"]["b"].value == pytest.approx(overall.value)


def test_one_seed_leaves_the_patients_alone_to_vary():
    scores = table(1.0, seeds=1)
    found = differences_to("a", scores, np.random.default_rng(0), draws=200)["b"]["sensitivity"]
    assert found.interval.high - found.interval.low < 0.4
    two = differences_to("a", table(1.0, seeds=2), np.random.default_rng(0), draws=200)["b"]["sensitivity"]
    assert two.interval.low >= -1
    assert two.interval.high <= 1


def test_summary_is_mean_and_sd_over_seeds():
    scores = table(1.0)
    by_hand = [metrics_of(one, scores.lesion, 0.5)["auroc"] for one in scores.log_odds[1]]
    got = summarise(scores)["b"]["auroc"]
    assert (got.mean, got.sd) == (pytest.approx(np.mean(by_hand)), pytest.approx(np.std(by_hand, ddof=1)))


def test_sensitivity_by_class_puts_the_rare_class_first():
    scores = Scores(
        ("a",),
        np.array([[[1.0, -1, 1, 1, -1, -1]]]),
        np.zeros((1, 1)),
        np.array([1, 1, 1, 1, 0, 0], bool),
        np.array(["p", "q", "r", "r", "p", "q"]),
    )
    found = sensitivity_by_class(scores, np.array(["solid", "solid", "rare", "rare", "none", "none"]))
    assert list(found) == ["rare", "solid"]
    assert found == {"rare": {"a": 1.0}, "solid": {"a": 0.5}}
