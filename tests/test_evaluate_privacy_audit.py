"""The bound against mechanisms whose epsilon is known exactly; caps, ties and chance; attack scores by plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import binom, norm

from evaluate.privacy_audit import (
    attack_result,
    calibrated_nearest,
    one_run_bound,
    one_run_cap,
    one_run_epsilon,
    one_run_p_value,
    several_runs_bound,
    tpr_at_1_percent_fpr,
)

DELTA = 1e-5


def coins(seed, m):
    return np.random.default_rng(seed).random(m) < 0.5


def gaussian_sigma(epsilon, delta=DELTA):
    """Noise at which adding N(0, sigma^2) to a bit is exactly (epsilon, delta): Balle & Wang 2018, Eq. 6."""

    def spent(sigma):
        return norm.cdf(0.5 / sigma - epsilon * sigma) - np.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)

    return brentq(lambda sigma: spent(sigma) - delta, 0.05, 500)


def noisy_bits(epsilon, m, seed):
    included, rng = coins(seed, m), np.random.default_rng([seed, 1])
    return included + rng.normal(0, gaussian_sigma(epsilon), m), included


def too_often(wrong, seeds, chance=0.05):
    """Whether so many wrong bounds are too many to be the chance they are allowed, by more than bad luck of 1 in 1,000."""
    return wrong > binom.ppf(0.999, seeds, chance)


@pytest.mark.parametrize(
    ("m", "guesses", "right", "delta", "published"), [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)]
)
def test_values_printed_in_the_paper(m, guesses, right, delta, published):
    # Steinke et al. 2023, arXiv v1: Appendix D, p. 46, and section 7, p. 28 (there cut off, not rounded)
    assert one_run_epsilon(m, guesses, right, delta) == pytest.approx(published, abs=1e-3)


def test_without_delta_the_p_value_is_that_of_randomised_response():
    epsilon, guesses = 1.3, 30
    rng = np.random.default_rng(0)
    told_right = (rng.random((20_000, guesses)) < np.exp(epsilon) / (1 + np.exp(epsilon))).sum(1)
    for right in (15, 22, 25, 30):
        p = one_run_p_value(50, guesses, right, epsilon, 0.0)
        assert p == pytest.approx(binom.sf(right - 1, guesses, expit(epsilon)), rel=1e-12)
        assert p == pytest.approx((told_right >= right).mean(), abs=4 * np.sqrt(p * (1 - p) / 20_000) + 1e-4)
    assert one_run_epsilon(30, 30, 30, 0.0) == pytest.approx(logit(0.05 ** (1 / 30)), abs=1e-5)  # q^30 = 5 %


@given(st.integers(1, 40), st.floats(0, 1), st.floats(0, 3), st.floats(1e-6, 0.05))
@settings(max_examples=60, deadline=None)
def test_p_value_covers_mechanisms_that_spend_their_delta_on_one_or_on_all(guesses, part, epsilon, delta):
    m, right = guesses + 10, round(part * guesses)
    p = one_run_p_value(m, guesses, right, epsilon, delta)
    q = expit(epsilon)
    each_given_away = binom.sf(right - 1, guesses, delta + (1 - delta) * q)  # each bit in the clear with probability delta
    all_given_away = delta + (1 - delta) * binom.sf(right - 1, guesses, q)
    assert p >= max(each_given_away, all_given_away) - 1e-12
    loop = max((binom.cdf(right - 1, guesses, q) - binom.cdf(right - i - 1, guesses, q)) / i for i in range(1, m + 1))
    assert p == pytest.approx(min(1, binom.sf(right - 1, guesses, q) + 2 * m * delta * loop), abs=1e-9)


@given(st.integers(20, 300), st.floats(0.1, 1), st.floats(0.5, 1), st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]))
@settings(max_examples=40, deadline=None)
def test_bound_grows_with_right_guesses_and_falls_with_delta_and_confidence(m, guessed, part, delta):
    guesses = max(1, int(guessed * m))
    right = min(guesses - 1, int(part * guesses))
    bound = one_run_epsilon(m, guesses, right, delta)
    assert bound <= one_run_epsilon(m, guesses, right + 1, delta) + 2e-6
    assert bound >= one_run_epsilon(m, guesses, right, 2 * delta + 1e-6) - 2e-6
    assert bound >= one_run_epsilon(m, guesses, right, delta, error=0.01) - 2e-6
    refused = [one_run_p_value(m, guesses, right, epsilon, delta) <= 0.05 for epsilon in np.linspace(0, 6, 40)]
    assert refused == sorted(refused, reverse=True)  # all below one number, as bisection needs


@pytest.mark.parametrize(
    ("epsilon", "m", "seeds", "part"), [(0.1, 200, 80, 0.0), (1, 1000, 50, 0.1), (4, 1000, 40, 0.3), (8, 3000, 25, 0.35)]
)
def test_gaussian_mechanism_of_known_epsilon_stays_below_it_and_shows_a_good_part(epsilon, m, seeds, part):
    found = np.array([one_run_bound(*noisy_bits(epsilon, m, seed), DELTA).epsilon for seed in range(seeds)])
    assert not too_often((found > epsilon).sum(), seeds)
    assert np.median(found) >= part * epsilon


@pytest.mark.parametrize("epsilon", [0.5, 1.5])
def test_randomised_response_is_shown_nearly_whole(epsilon):
    # Every answer is worth the same and abstaining gains nothing: what is missing is chance, 1,600 guesses' worth.
    found = []
    for seed in range(60):
        included, rng = coins(seed, 2000), np.random.default_rng([seed, 1])
        answer = included ^ (rng.random(2000) > expit(epsilon))
        found.append(one_run_bound(answer + 1e-3 * rng.random(2000), included, 0.0).epsilon)
    assert not too_often((np.array(found) > epsilon).sum(), 60)
    assert np.median(found) > epsilon - 0.2


@pytest.mark.parametrize("m", [100, 1000])
def test_chance_shows_nothing(m):
    seeds = 100 if m == 100 else 50
    found = np.array([one_run_bound(np.random.default_rng([seed, 1]).random(m), coins(seed, m), DELTA).epsilon for seed in range(seeds)])
    assert not too_often((found > 0).sum(), seeds)
    assert np.median(found) == 0


@pytest.mark.parametrize(("m", "cap"), [(100, 2.871), (1000, 5.150), (10_000, 6.613)])
def test_a_perfect_attack_reaches_the_cap_and_a_reversed_one_shows_nothing(m, cap):
    included = coins(3, m)
    bound = one_run_bound(included + 0.1 * np.random.default_rng(0).random(m), included, DELTA)
    assert bound.right == bound.guesses
    assert bound.epsilon == bound.cap == one_run_cap(m, DELTA) == pytest.approx(cap, abs=1e-3)  # golden: of this grid and delta
    assert one_run_bound(-1.0 * included, included, DELTA).epsilon == 0
    assert one_run_cap(m, DELTA) < one_run_epsilon(m, m, m, DELTA)  # what trying four numbers of guesses costs


def test_a_model_that_repeats_one_in_seven_patients_is_caught():
    included, rng = coins(0, 1000), np.random.default_rng(1)
    repeated = included & (rng.random(1000) < 0.15)
    bound = one_run_bound(rng.normal(0, 1, 1000) + 6 * repeated, included, DELTA)
    assert bound.guesses == bound.right == 50
    assert bound.epsilon > 2


def test_ties_help_nobody_whatever_the_order_of_the_canaries():
    included = np.sort(coins(0, 200))
    for order in (slice(None), slice(None, None, -1)):
        assert one_run_bound(np.zeros(200), included[order], DELTA).epsilon == 0
    coarse = np.round(2 * (included + np.random.default_rng(0).normal(0, 0.4, 200)))
    got = {one_run_bound(coarse[order], included[order], DELTA) for order in (slice(None), slice(None, None, -1))}
    assert len(got) == 1
    rng = np.random.default_rng(1)
    assert got.pop().epsilon <= min(one_run_bound(coarse + 1e-3 * rng.random(200), included, DELTA).epsilon for _ in range(10)) + 1e-9


@pytest.mark.parametrize(
    ("scores", "included", "delta", "message"),
    [
        (np.zeros(19), coins(0, 19), DELTA, "20 canaries or more, got 19"),
        (np.zeros(30), np.ones(30, bool), DELTA, "all 30 canaries are in"),
        (np.zeros(30), np.zeros(30, bool), DELTA, "all 30 canaries are out"),
        (np.r_[np.nan, np.zeros(29)], coins(0, 30), DELTA, "not finite"),
        (np.zeros(30), coins(0, 31), DELTA, r"\(30,\) and \(31,\)"),
        (np.zeros(30), coins(0, 30).astype(int), DELTA, "booleans"),
        (np.zeros(30), coins(0, 30), 1.0, "delta"),
    ],
)
def test_what_cannot_be_audited_is_refused_in_one_line(scores, included, delta, message):
    with pytest.raises(ValueError, match=message) as error:
        one_run_bound(scores, included, delta)
    assert "\n" not in str(error.value)


def several_runs(epsilon, runs, seed):
    rng, sigma = np.random.default_rng(seed), gaussian_sigma(epsilon)
    return 1 + rng.normal(0, sigma, runs), rng.normal(0, sigma, runs)


@pytest.mark.parametrize(("epsilon", "part"), [(0.05, 0.0), (4, 0.2)])
def test_several_runs_stay_below_a_known_epsilon(epsilon, part):
    found = np.array([several_runs_bound(*several_runs(epsilon, 2000, seed), DELTA).epsilon for seed in range(100)])
    assert not too_often((found > epsilon).sum(), 100)
    assert np.median(found) >= part * epsilon


def test_several_runs_reach_their_cap_show_nothing_by_chance_and_judge_by_the_other_half():
    runs = np.random.default_rng(0).random(200)
    perfect = several_runs_bound(runs + 2, runs, 0.0)
    # 100 of each kind judged: all right, so TPR and TNR are at least 0.025^(1/100)
    assert perfect.epsilon == perfect.cap == pytest.approx(logit(0.025**0.01))
    assert (perfect.guesses, perfect.right) == (200, 200)
    assert several_runs_bound(runs, runs + 2, 0.0).epsilon == 0
    assert several_runs_bound(np.zeros(40), np.zeros(40), 0.0).epsilon == 0
    chance = [several_runs_bound(*np.random.default_rng(seed).random((2, 100)), DELTA).epsilon for seed in range(100)]
    assert not too_often(np.count_nonzero(chance), 100)
    told_apart_in_the_first_half_only = np.where(np.arange(200) % 2 == 0, runs + 2, runs)
    assert several_runs_bound(told_apart_in_the_first_half_only, runs, 0.0).epsilon == 0
    with pytest.raises(ValueError, match="20 runs of each kind or more, got 19"):
        several_runs_bound(runs[:19], runs, 0.0)
    with pytest.raises(ValueError, match="not finite"):
        several_runs_bound(np.r_[runs, np.inf], runs, 0.0)


def test_result_holds_the_bound_and_what_a_plain_look_at_the_scores_gives():
    included = coins(0, 1200)
    scores = 2 * included + np.random.default_rng(1).normal(0, 1, 1200)
    got = attack_result("critic", scores, included, DELTA, np.random.default_rng(2))
    bound = one_run_bound(scores, included, DELTA)
    assert (got.name, got.canaries, got.delta, got.confidence) == ("critic", 1200, DELTA, 0.95)
    assert (got.epsilon, got.cap, got.guesses, got.right) == (bound.epsilon, bound.cap, bound.guesses, bound.right)
    assert got.auroc == pytest.approx((scores[included][:, None] > scores[~included]).mean())
    assert got.auroc_interval.low < norm.cdf(2 / np.sqrt(2)) < got.auroc_interval.high
    accused = max(t for t in np.unique(scores) if (scores[~included] >= t).mean() > 0.01)
    assert got.tpr_at_1_percent_fpr == (scores[included] > accused).mean()
    assert got.tpr_interval.low < got.tpr_at_1_percent_fpr < got.tpr_interval.high


def test_interval_of_the_tpr_holds_the_true_one():
    truth = norm.sf(norm.ppf(0.99) - 2)
    for others, seeds in ((100, 200), (1000, 200)):
        rngs = [np.random.default_rng(seed) for seed in range(seeds)]
        intervals = [tpr_at_1_percent_fpr(rng.normal(2, 1, 500), rng.normal(0, 1, others))[1] for rng in rngs]
        assert not too_often(sum(not one.low <= truth <= one.high for one in intervals), seeds)
    assert np.mean([one.high - one.low for one in intervals]) < 0.4


def test_too_few_left_out_have_no_tpr_at_1_percent():
    included = np.arange(150) < 60
    got = attack_result("a", 1.0 * included, included, DELTA, np.random.default_rng(0))
    assert np.isnan(got.tpr_at_1_percent_fpr)
    assert got.tpr_interval is None
    assert got.auroc == got.auroc_interval.high == 1


def test_calibrated_nearest_equals_the_plain_loops():
    rng = np.random.default_rng(0)
    patients = [rng.normal(0, 1, (n, 5)) for n in (1, 4, 2, 1500)]  # the last in several parts of the distance matrix
    synthetic, reference = rng.normal(0, 1, (30, 5)), rng.normal(0, 1, (20, 5))

    def nearest(patch, others):
        return min(np.linalg.norm(patch - one) for one in others)

    loops = [max(nearest(patch, reference) - nearest(patch, synthetic) for patch in patient[:50]) for patient in patients[:3]]
    assert calibrated_nearest(patients, synthetic, reference)[:3] == pytest.approx(loops)
    last = [calibrated_nearest([patch[None]], synthetic, reference)[0] for patch in patients[3]]
    assert calibrated_nearest(patients, synthetic, reference)[3] == pytest.approx(max(last))


def test_copied_patients_are_caught_and_independent_ones_show_nothing():
    rng = np.random.default_rng(0)
    included = coins(1, 200)
    patients = [rng.normal(0, 1, (3, 8)) for _ in included]
    reference = rng.normal(0, 1, (200, 8))
    copies = np.array([patient[0] for patient, one in zip(patients, included, strict=True) if one])
    copied = one_run_bound(calibrated_nearest(patients, copies + rng.normal(0, 0.01, copies.shape), reference), included, DELTA)
    assert copied.epsilon == copied.cap
    assert one_run_bound(calibrated_nearest(patients, rng.normal(0, 1, (200, 8)), reference), included, DELTA).epsilon == 0


@pytest.mark.parametrize(
    ("patients", "synthetic", "message"),
    [
        ([], np.zeros((2, 3)), "one D"),
        ([np.zeros((0, 3))], np.zeros((2, 3)), "one D"),
        ([np.zeros((1, 4))], np.zeros((2, 3)), r"\(1, 4\)"),
        ([np.zeros((1, 3))], np.full((2, 3), np.nan), "not finite"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(patients, synthetic, message):
    with pytest.raises(ValueError, match=message):
        calibrated_nearest(patients, synthetic, np.zeros((2, 3)))
