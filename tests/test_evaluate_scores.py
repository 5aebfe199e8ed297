"""Detector metrics by hand and against plain loops; paired differences against known shifts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.scores import (
    METRICS,
    Scores,
    area_under_roc,
    choose_threshold,
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
