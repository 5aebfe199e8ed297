"""Privacy: the accounting against exact formulas and other accountants, the ledger against crashes, randomness against its distribution."""

import hashlib
import json
import math
import os
import re
import stat
import subprocess
import sys
import warnings as python_warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, chi2, kstest, kurtosis, norm, skew

from gan.privacy import Ledger, PrivacyPlan, gaussian, plan_for, poisson, warnings

PLAN = PrivacyPlan(patients=1000, expected=128, patches=2, clip_norm=0.5, noise_multiplier=8.03, delta=1e-5, critic_steps=2000)
COHORT = "c" * 64


def options(**given_ones) -> SimpleNamespace:
    """What `privacy` holds by default, but for the options given."""
    default = {"epsilon": 0.0, "delta": 1e-5, "noise_multiplier": 0.0, "clip_norm": 1.0, "patients": 0, "patches": 2, "critic_steps": 2000}
    return SimpleNamespace(**default | given_ones)


def exact_epsilon(delta_of, delta: float) -> float:
    return brentq(lambda epsilon: delta_of(epsilon) - delta, 0, 200, xtol=1e-12)


@pytest.mark.parametrize(("noise", "steps", "delta"), [(1, 1, 1e-5), (4, 1, 1e-5), (0.5, 1, 1e-3), (10, 100, 1e-5), (30, 400, 1e-8)])
def test_epsilon_of_a_step_that_all_join_is_that_of_the_gaussian_mechanism(noise, steps, delta):
    """Balle & Wang 2018, Theorem 8; T steps are one with a noise multiplier of sigma / sqrt(T)."""
    half = math.sqrt(steps) / noise / 2
    exact = exact_epsilon(lambda e: norm.cdf(half - e / half / 2) - math.exp(e) * norm.cdf(-half - e / half / 2), delta)
    found = replace(PLAN, patients=1, expected=1, noise_multiplier=noise, delta=delta).epsilon(steps)
    assert exact <= found + 1e-9
    assert found == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(("rate", "noise"), [(0.128, 1.0), (0.5, 2.0), (0.02, 0.6)])
def test_epsilon_of_one_sampled_step_is_the_exact_one(rate, noise):
    """The patient joins the sum, normal around 0, with probability q, and moves it to 1. With the patient against without, as the worse."""

    def delta_of(epsilon):
        edge = noise**2 * math.log((math.exp(epsilon) - 1 + rate) / rate) + 0.5  # from here on it is likelier with than without
        return (1 - rate - math.exp(epsilon)) * norm.sf(edge / noise) + rate * norm.sf((edge - 1) / noise)

    exact = exact_epsilon(delta_of, 1e-5)
    found = replace(PLAN, expected=round(1000 * rate), noise_multiplier=noise).epsilon(1)
    assert exact <= found + 1e-9
    assert found == pytest.approx(exact, rel=1e-3)


def opacus_epsilons(plan: PrivacyPlan) -> tuple[float, float]:
    """Of its accountants RDP and PRV (to 0.01 either way)."""
    from opacus.accountants import PRVAccountant, RDPAccountant

    rdp, prv = RDPAccountant(), PRVAccountant()
    rdp.history = prv.history = [(plan.noise_multiplier, plan.sample_rate, plan.critic_steps)]
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # RDP is asked by PRV for a delta of 1e-13, and says that its best order is its largest
        return rdp.get_epsilon(plan.delta), prv.get_epsilon(plan.delta)


@pytest.mark.parametrize(
    ("patients", "expected", "steps", "epsilon", "known"),
    [
        (200, 32, 2000, 1, 26.7352), (200, 32, 2000, 3, 10.0037), (200, 32, 2000, 10, 3.66189),
        (1000, 128, 2000, 3, 8.02109), (10000, 128, 20000, 1, 6.80313),
    ],
)  # fmt: skip
def test_noise_for_an_epsilon_is_the_least_and_other_accountants_agree(patients, expected, steps, epsilon, known):
    """Known noise multipliers: calibrate_dp_mechanism of dp-accounting 0.6.0 with its PLD accountant, to 1e-6."""
    plan = plan_for(options(epsilon=epsilon, patients=expected, critic_steps=steps), patients)
    spent = plan.epsilon(steps)
    assert epsilon * 0.997 < spent <= epsilon
    assert known - 1e-4 <= plan.noise_multiplier <= known * 1.002
    assert plan.noise_multiplier == float(f"{plan.noise_multiplier:.4g}")  # as printed
    rdp, prv = opacus_epsilons(plan)
    assert prv == pytest.approx(spent, rel=0.005, abs=0.02)
    assert max(spent, prv) < rdp < 1.12 * spent


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 500), st.floats(1, 30))
def test_epsilon_grows_with_steps_and_sample_rate_and_falls_with_noise(steps, expected, noise):
    plan = replace(PLAN, expected=expected, noise_multiplier=noise)
    epsilon = plan.epsilon(steps)
    assert plan.epsilon(steps + 1 + steps // 10) >= epsilon
    assert replace(plan, expected=2 * expected).epsilon(steps) >= epsilon
    assert replace(plan, noise_multiplier=1.1 * noise).epsilon(steps) <= epsilon
    assert plan.epsilon(0) == 0.0


def test_large_epsilons_come_from_coarser_accounts_and_stay_on_the_safe_side():
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    plan = replace(PLAN, patients=200, expected=32, noise_multiplier=1.0)
    step = dp_accounting.PoissonSampledDpEvent(0.16, dp_accounting.GaussianDpEvent(1.0))
    fine = PLDAccountant(value_discretization_interval=1e-4).compose(step, 500).get_epsilon(1e-5)
    assert fine <= plan.epsilon(500) < fine * 1.001
    assert fine > 20
    everyone = replace(PLAN, patients=1, expected=1, noise_multiplier=1.0)
    loss_exceeds = 5000 + 100 * norm.isf(1e-5)  # with a chance of delta, for it is normal around T / 2 with a deviation of sqrt(T)
    assert 0.999 * loss_exceeds < everyone.epsilon(10_000) < 2 * loss_exceeds


def test_a_step_of_the_least_noise_costs_19():
    assert replace(PLAN, patients=1, expected=1, noise_multiplier=0.3).epsilon(1) == pytest.approx(19, abs=0.5)


@pytest.mark.parametrize(("patients", "expected"), [(1, 1), (10, 10), (100, 16), (404, 50), (5000, 128)])
def test_an_eighth_of_the_patients_join_a_step_where_nothing_else_is_said(patients, expected):
    plan = plan_for(options(noise_multiplier=20.0, critic_steps=3), patients)
    assert plan == PrivacyPlan(patients, expected, 2, 1.0, 20.0, 1e-5, 3)
    assert plan.sample_rate == expected / patients
    assert plan_for(options(noise_multiplier=20.0, critic_steps=3, patients=1), patients).expected == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "privacy.epsilon is 0 and privacy.noise_multiplier 0; give one"),
        ({"epsilon": 1.0, "noise_multiplier": 2.0}, "privacy.epsilon is 1 and privacy.noise_multiplier 2; give one"),
        ({"epsilon": -1.0}, "epsilon of the run is -1, want above 0 to 100; set privacy.epsilon"),
        ({"epsilon": math.nan}, "epsilon of the run is nan, want above 0"),
        ({"epsilon": 101.0}, "epsilon of the run is 101, want above 0 to 100"),
        ({"noise_multiplier": 0.5}, r"epsilon of the run is [\d.]+, want above 0 to 100"),
        ({"epsilon": 1e-4}, "privacy.epsilon 0.0001 is out of reach with 200 patients and 2000 critic steps; allow a larger epsilon"),
        ({"noise_multiplier": 0.1}, "privacy.noise_multiplier is 0.1, want 0.3 or more, .*; or give privacy.epsilon"),
        ({"noise_multiplier": -1.0}, "privacy.noise_multiplier is -1, want 0.3 or more"),
        ({"noise_multiplier": math.inf}, "privacy.noise_multiplier is inf"),
        ({"epsilon": 1.0, "delta": 0.0}, r"privacy.delta is 0, want 1e-12 .* to below 1, best far below 1 / 200 patients"),
        ({"epsilon": 1.0, "delta": 1.0}, "privacy.delta is 1, "),
        ({"epsilon": 1.0, "delta": math.nan}, "privacy.delta is nan"),
        ({"epsilon": 1.0, "clip_norm": 0.0}, "privacy.clip_norm is 0, want a number above 0"),
        ({"epsilon": 1.0, "patients": 201}, "privacy.patients is 201, want 1 to 200, the training patients there are"),
        ({"epsilon": 1.0, "patients": -1}, "privacy.patients is -1"),
        ({"epsilon": 1.0, "patches": 0}, "privacy.patches is 0, want 1 or more"),
        ({"epsilon": 1.0, "critic_steps": 0}, "privacy.critic_steps is 0, want 1 or more"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_in_one_line(wrong, told):
    with pytest.raises(ValueError, match=told) as error:
        plan_for(options(**wrong), 200)
    assert "\n" not in str(error.value)


def test_more_epsilon_than_the_least_noise_spends_takes_the_least_noise():
    assert plan_for(options(epsilon=60.0, patients=200, critic_steps=1), 200).noise_multiplier == 0.3


def test_the_sentence_says_everything_and_rounds_up(monkeypatch):
    monkeypatch.setattr(PrivacyPlan, "epsilon", lambda plan, steps: {1500: 2.7701, 2000: 3.0}[steps])
    sentence = PLAN.sentence(1500)
    for part in (
        "epsilon 2.78", "delta 1e-05", "one patient with all their patches, added or removed", "PLD accountant of dp-accounting 0.",
        "1,000 training", "probability 128 / 1000 = 0.128", "noise multiplier 8.03", "clip norm 0.5", "1,500 critic steps so far",
        "critic's updates", "generator", "moving average", "every sample", "only for training patients", "other runs",
    ):  # fmt: skip
        assert part in sentence
    assert len(re.findall(r"[.!?](?:\s|$)", sentence)) == 1  # one sentence
    assert "epsilon 3.00 and" in PLAN.sentence(2000)


def test_warnings_name_what_is_wrong_and_what_helps():
    assert warnings(PLAN, 166_624) == []
    (few,) = warnings(replace(PLAN, patients=200, expected=25, noise_multiplier=10), 166_624)
    assert few.startswith("200 training patients are few")
    assert "noise is 1.6e+02 times as long" in few  # 10 x sqrt(166,624) / 25 = 163
    assert "--init-from" in few
    found = warnings(replace(PLAN, noise_multiplier=0.45, critic_steps=100, delta=1e-3), 166_624)
    assert [line.split(" of ")[0] for line in found] == ["A noise multiplier", "An epsilon", "A delta"]


def stream(seed: str):
    """A source that gives the same bytes in every run: SHAKE-128 of the seed and of how often it was asked."""
    asked = 0

    def source(count: int) -> bytes:
        nonlocal asked
        asked += 1
        return hashlib.shake_128(f"{seed} {asked}".encode()).digest(count)

    return source


def test_everyone_joins_with_the_rate_and_independently():
    count, rate, steps, source = 1000, 0.128, 500, stream("poisson")
    joined = np.zeros((steps, count), bool)
    for row in joined:
        row[poisson(count, rate, source)] = True

    def usual(hits: int, trials: int, chance: float) -> bool:
        low, high = binom.interval(0.9999, trials, chance)
        return low <= hits <= high

    assert usual(joined.sum(), joined.size, rate)
    assert usual((joined[:, ::2] & joined[:, 1::2]).sum(), joined.size // 2, rate**2)  # of neighbours, in pairs that share nobody
    assert usual((joined[::2] & joined[1::2]).sum(), joined.size // 2, rate**2)  # of one patient, in two steps
    assert all(usual(joins, steps, rate) for joins in joined.sum(0)[:100])
    low, high = chi2.interval(0.9999, steps - 1)  # batches differ in size as they should: shuffled ones of 128 would not
    assert low < joined.sum(1).var(ddof=1) * (steps - 1) / (count * rate * (1 - rate)) < high


def test_a_patient_joins_when_their_53_bits_are_below_the_rate():
    words = np.array([0, 2**62 - 2**11, 2**62, 2**64 - 1], "<u8")  # of 2^64: 0, just below a quarter, a quarter, nearly 1
    for rate, expected in {0.0: [], 2**-53: [0], 0.25: [0, 1], 0.25 + 2**-53: [0, 1, 2], 1.0: [0, 1, 2, 3]}.items():
        assert poisson(4, rate, lambda count: words.tobytes()).tolist() == expected


def test_noise_is_standard_normal_and_independent():
    numbers = gaussian(200_000, stream("gaussian")).numpy()
    assert numbers.dtype == np.float64
    assert kstest(numbers, "norm").pvalue > 0.01
    error = 4 / math.sqrt(len(numbers))
    assert abs(numbers.mean()) < error
    assert abs(numbers.var() - 1) < error * math.sqrt(2)
    assert abs(skew(numbers)) < error * math.sqrt(6)
    assert abs(kurtosis(numbers)) < error * math.sqrt(24)
    for shift in (1, 2, 2**14, 2**15):
        assert abs(np.mean(numbers[shift:] * numbers[:-shift])) < 1.1 * error
        assert abs(np.mean(numbers[shift:] ** 2 * numbers[:-shift] ** 2) - 1) < 1.1 * error * math.sqrt(8)
    assert binom.interval(0.9999, len(numbers), 2 * norm.sf(4))[1] >= (abs(numbers) > 4).sum() > 0


def test_noise_is_the_sum_of_two_box_muller_numbers_from_words_of_its_own():
    given_out = []

    def source(count: int) -> bytes:
        given_out.append(stream("words")(count))
        return given_out[-1]

    found = gaussian(2**15 + 3, source)
    assert [len(part) for part in given_out] == [32 * 2**15, 32 * 3]
    words = [int.from_bytes(given_out[1][at : at + 8], "little") >> 1 for at in range(0, 96, 8)]
    for i in range(3):
        u1, u2, v1, v2 = ((word + 0.5) / 2**63 for word in words[i::3])
        first, second = (math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v) for u, v in ((u1, v1), (u2, v2)))
        assert found[2**15 + i].item() == pytest.approx((first + second) / math.sqrt(2), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("byte", [b"\0", b"\xff", b"\x80", b"\x7f"])
def test_extreme_bytes_give_finite_noise(byte):
    assert abs(gaussian(5, lambda count: byte * count)).max() < 14


def test_the_source_is_never_the_same_twice():
    assert (gaussian(100) != gaussian(100)).all()
    assert poisson(1000, 0.5).tolist() != poisson(1000, 0.5).tolist()


def ledger_file(run: Path) -> Path:
    return run / ".privacy.json"


def test_a_ledger_remembers_and_only_its_owner_reads_it(tmp_path):
    ledger = Ledger(tmp_path, PLAN, COHORT)
    assert ledger.spent == 0
    for total in (0, 3, 3, 2000):
        ledger.spend(total)
        assert Ledger(tmp_path, PLAN, COHORT, must_exist=True).spent == ledger.spent == total
        assert stat.S_IMODE(ledger_file(tmp_path).stat().st_mode) == 0o600
    content = json.loads(ledger_file(tmp_path).read_text())
    assert (content["cohort"], content["plan"]["noise_multiplier"], content["plan"]["unit"]) == (COHORT, 8.03, "patient")
    assert [file.name for file in tmp_path.iterdir()] == [".privacy.json"]


@pytest.mark.parametrize("total", [2, -1, 2001])
def test_a_ledger_goes_neither_backwards_nor_beyond_the_plan(tmp_path, total):
    ledger = Ledger(tmp_path, PLAN, COHORT)
    ledger.spend(3)
    with pytest.raises(ValueError, match=rf"\.privacy\.json: {total} critic steps, want 3, spent before, to 2000"):
        ledger.spend(total)
    assert Ledger(tmp_path, PLAN, COHORT).spent == ledger.spent == 3


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"patients": 999}, "the number of training patients is 999, but .* was started with 1000; .* or another --out"),
        ({"expected": 64}, "privacy.patients is 64, but .* was started with 128"),
        ({"patches": 3}, "privacy.patches is 3"),
        ({"clip_norm": 0.25}, "privacy.clip_norm is 0.25, but .* was started with 0.5"),
        ({"noise_multiplier": 8.04}, "privacy.noise_multiplier is 8.04, but .* was started with 8.03; .*may follow from privacy.epsilon"),
        ({"delta": 1e-6}, "privacy.delta is 1e-06"),
        ({"critic_steps": 3000}, "privacy.critic_steps is 3000"),
    ],
)
def test_a_ledger_refuses_another_plan(tmp_path, changed, told):
    Ledger(tmp_path, PLAN, COHORT).spend(5)
    before = ledger_file(tmp_path).read_bytes()
    with pytest.raises(ValueError, match=told):
        Ledger(tmp_path, replace(PLAN, **changed), COHORT)
    assert ledger_file(tmp_path).read_bytes() == before


def test_a_ledger_refuses_other_patches_without_naming_their_hash(tmp_path):
    Ledger(tmp_path, PLAN, COHORT).spend(5)
    with pytest.raises(ValueError, match=r"was trained on other patches .* choose another --out") as error:
        Ledger(tmp_path, PLAN, "d" * 64)
    assert COHORT not in str(error.value)
    assert "d" * 64 not in str(error.value)


def test_a_ledger_that_should_be_there_is_not_begun_anew(tmp_path):
    with pytest.raises(ValueError, match=r"\.privacy\.json: missing, so what the run has spent is unknown"):
        Ledger(tmp_path, PLAN, COHORT, must_exist=True)
    assert not ledger_file(tmp_path).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"sha256": "0", "spent": 0}'])
def test_a_damaged_ledger_is_named_and_kept(tmp_path, content):
    ledger_file(tmp_path).write_bytes(content)
    with pytest.raises(ValueError, match=r"\.privacy\.json: damaged .* restore the file"):
        Ledger(tmp_path, PLAN, COHORT)
    assert ledger_file(tmp_path).read_bytes() == content


def test_no_flipped_bit_makes_a_ledger_say_something_else(tmp_path):
    Ledger(tmp_path, PLAN, COHORT).spend(1234)
    whole, as_before = ledger_file(tmp_path).read_bytes(), 0
    for bit in range(0, 8 * len(whole), 13):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        ledger_file(tmp_path).write_bytes(flipped)
        with suppress(ValueError):
            assert Ledger(tmp_path, PLAN, COHORT).spent == 1234  # it may say the same as before, such as 1E-05 for 1e-05
            as_before += 1
    assert as_before <= 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_in_any_call_to_the_system_leaves_the_ledger_before_or_after(tmp_path, monkeypatch, error):
    def failing_at(n: int) -> list[str]:
        """From now on the n-th of the calls that write fails; gives the names of those made so far."""
        made = []

        def wrap(name, real):
            def call(*arguments, **named):
                made.append(name)
                if len(made) == n:
                    raise error
                return real(*arguments, **named)

            return call

        for owner, name in ((os, "replace"), (os, "fsync"), (os, "chmod"), (Path, "write_bytes")):
            patch.setattr(owner, name, wrap(name, getattr(owner, name)))
        return made

    outcomes = set()
    for n in range(1, 20):
        run = tmp_path / str(n)
        run.mkdir()
        ledger = Ledger(run, PLAN, COHORT)
        ledger.spend(3)
        with monkeypatch.context() as patch:
            made = failing_at(n)
            with suppress(OSError, KeyboardInterrupt):
                ledger.spend(7)
        reached = Ledger(run, PLAN, COHORT, must_exist=True).spent
        outcomes.add(reached)
        assert reached in (3, 7)
        assert [file.name for file in run.iterdir()] == [".privacy.json"]
        with pytest.raises(ValueError, match="want 7"):  # what may be on the disk counts
            ledger.spend(6)
        ledger.spend(7)
        assert Ledger(run, PLAN, COHORT).spent == 7
        if len(made) < n:
            break
    assert made == ["write_bytes", "chmod", "fsync", "replace", "fsync"]
    assert outcomes == {3, 7}


def test_importing_loads_nothing_heavy():
    code = "import sys, gan.privacy; sys.exit(' '.join({'torch', 'scipy', 'dp_accounting', 'opacus'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""
