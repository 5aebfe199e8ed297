"""Canaries: what they are, that the coins alone decide who is in, and that one who watches the training sees who was."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from evaluate.scores import area_under_roc
from gan import private_trainer
from gan.canaries import Canaries, WatchedTrainer, _Attacker, attacked, coins, crafted, crafted_pictures, look_every, with_canaries
from gan.conditions import Conditions
from gan.config import NetworkConfig, PrivacyConfig, TrainingConfig
from gan.privacy import PrivacyPlan
from gan.trainer import Trainer, TrainingSet

SHAPE = (16, 16)
NETWORKS = NetworkConfig(channels=4, latent=8)
PATIENTS = 30


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer samples to draw, which no test here looks at closely."""
    monkeypatch.setattr("gan.canaries.SAMPLES", 100)


def real_patches(count=2 * PATIENTS, shape=SHAPE, seed=5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 1, *shape)).astype(np.float32)


def training_set(conditions: Conditions | None = None) -> TrainingSet:
    patches = real_patches()
    condition = conditions.encode(["a"] * len(patches), [8.0] * len(patches)) if conditions else None
    return TrainingSet(patches, condition, None, np.repeat([f"p{n:02d}" for n in range(PATIENTS)], 2))


def private(steps=30, noise=1.0, patches=2, conditions=None, seed=0) -> WatchedTrainer:
    """Of half of the patients in every step."""
    plan = PrivacyPlan(PATIENTS, PATIENTS // 2, patches, 1.0, noise, 1e-5, steps)
    config = TrainingConfig(learning_rate=1e-4, device="cpu", seed=seed)
    return WatchedTrainer(
        SHAPE, NETWORKS, config, PrivacyConfig(n_critic=5, patches=patches, adaptive=False), plan, conditions or Conditions()
    )


def silent(monkeypatch) -> None:
    """Leaves out the noise."""
    monkeypatch.setattr(private_trainer, "gaussian", lambda count: torch.zeros(count, dtype=torch.float64))


def last_moment(trainer, data, canaries, included, every=1):
    return list(attacked(trainer, data, canaries, included, every, 1, np.random.default_rng(3)))[-1]


@pytest.mark.parametrize("shape", [(32, 32), (24, 16), (16, 16, 16)])
def test_crafted_pictures_are_bold_mirrored_and_each_its_own(shape):
    pictures = crafted_pictures(20, shape, np.random.default_rng(0))
    assert pictures.shape == (20, 1, *shape)
    assert pictures.dtype == np.float32
    assert np.abs(pictures).max() <= 1
    assert (np.abs(pictures).reshape(20, -1).mean(1) > 0.6).all()
    np.testing.assert_array_equal(pictures, pictures[..., ::-1])
    assert max(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in combinations(pictures, 2)) < 0.75
    np.testing.assert_array_equal(pictures, crafted_pictures(20, shape, np.random.default_rng(0)))


def test_crafted_patients_are_of_any_class():
    conditions = Conditions(("a", "b"), diameter=True)
    canaries = crafted(40, 3, SHAPE, conditions, np.random.default_rng(0))
    assert len(canaries) == 40
    assert canaries.condition.shape == (40, conditions.size)
    assert 10 < canaries.condition[:, 0].sum() < 30
    np.testing.assert_allclose(canaries.condition.sum(1), 2, atol=1e-6)
    assert crafted(5, 1, SHAPE, Conditions(), np.random.default_rng(0)).condition is None


def test_only_those_the_coin_puts_in_are_in_and_they_are_patients_of_their_own():
    conditions = Conditions(("a",))
    data = training_set(conditions)
    canaries = Canaries(real_patches(5, seed=6), np.array([0, 0, 1, 2, 2]), conditions.encode(["a"] * 5, [np.nan] * 5), copies=2)
    assert [positions.tolist() for positions in canaries.of_each()] == [[0, 1], [2], [3, 4]]
    together = with_canaries(data, canaries, np.array([True, False, True]))
    assert len(together.patches) == 60 + 8
    np.testing.assert_array_equal(together.patches[np.array([67, 3, 60])], [canaries.patches[4], data.patches[3], canaries.patches[0]])
    assert len(set(together.patients.tolist())) == PATIENTS + 2
    np.testing.assert_array_equal(together.patients[60:] - PATIENTS, [0] * 4 + [2] * 4)
    np.testing.assert_array_equal(together.patients[:60], np.repeat(np.arange(PATIENTS), 2))
    assert together.condition.shape == (68, 1)
    assert together.weights is None
    weighted = with_canaries(TrainingSet(data.patches, data.condition, np.arange(60) / 1770, data.patients), canaries, np.ones(3, bool))
    assert weighted.weights.sum() == pytest.approx(1)
    assert weighted.weights[-1] == pytest.approx(weighted.weights[:60].mean())


def test_coins_are_fair_and_nobody_can_foresee_them():
    found = coins(100_000)
    assert found.dtype == bool
    assert found.mean() == pytest.approx(0.5, abs=0.01)  # six deviations
    assert (coins(100) != coins(100)).any()
    np.testing.assert_array_equal(coins(100, seed=4), coins(100, seed=4))
    assert (coins(100, seed=4) != coins(100, seed=5)).any()


def test_what_others_contribute_is_kept_apart_and_the_sum_stays_as_it_was(monkeypatch):
    silent(monkeypatch)
    data, seen = training_set(), []

    def remaining(first_canary):
        trainer = private(steps=5)
        trainer.first_canary = first_canary

        def observe(gradients):
            total = sum(((trainer.plan.expected * g).norm() ** 2).item() for g in gradients.values())
            known = trainer.others
            left = sum(((trainer.plan.expected * g - (known[p] if known else 0)).norm() ** 2).item() for p, g in gradients.items())
            seen.append(left / total)

        trainer.observe = observe
        trainer.update(data)
        return seen[-5:]

    assert max(remaining(len(data.patches))) < 1e-10  # nobody is a canary, so all is known
    assert min(remaining(0)) == 1.0  # all are
    assert all(0.01 < share < 1 for share in remaining(30))


@pytest.mark.parametrize("conditions", [Conditions(), Conditions(("a", "b"))])
def test_one_who_watches_sees_who_was_in_where_nothing_hides_it(monkeypatch, conditions):
    silent(monkeypatch)
    canaries = crafted(40, 2, SHAPE, conditions, np.random.default_rng(1))
    included, data = coins(40, seed=2), training_set(conditions if conditions.size else None)
    moment = last_moment(private(conditions=conditions), data, canaries, included)
    assert moment.critic_steps == 30
    assert moment.gradient_scores.shape == moment.critic_scores.shape == (40,)
    assert moment.synthetic.shape == (100, 1, *SHAPE)
    assert area_under_roc(moment.gradient_scores, included) > 0.9  # 0.98 to 1 in 15 runs, whose secrets no seed decides


def test_noise_hides_who_was_in():
    canaries, included = crafted(60, 2, SHAPE, Conditions(), np.random.default_rng(1)), coins(60, seed=2)
    moment = last_moment(private(noise=300.0), training_set(), canaries, included)
    assert area_under_roc(moment.gradient_scores, included) == pytest.approx(0.5, abs=0.3)  # four deviations
    assert moment.epsilon < 0.1


def test_a_critic_without_privacy_learns_canaries_by_heart():
    canaries, included, whole = crafted(30, 2, SHAPE, Conditions(), np.random.default_rng(1)), coins(30, seed=2), training_set()
    data = TrainingSet(whole.patches[:20], None, None, whole.patients[:20])
    trainer, told = Trainer(SHAPE, NetworkConfig(channels=16, latent=8), TrainingConfig(steps=150, device="cpu")), []
    assert look_every(trainer, canaries) == round((30 + 32) / 32)
    rng = np.random.default_rng(3)
    moments = list(attacked(trainer, data, canaries, included, 10, 3, rng, tell=lambda progress, _: told.append(progress)))
    assert [moment.critic_steps for moment in moments] == [50, 100, 150]
    assert all(math.isinf(moment.epsilon) for moment in moments)
    assert told == sorted(told)
    assert told[-1] == 1
    assert area_under_roc(moments[-1].critic_scores, included) > 0.8
    assert area_under_roc(moments[-1].gradient_scores, included) > 0.7


def test_real_patients_as_canaries_have_as_many_patches_as_they_have():
    patients = np.repeat(np.arange(20), np.random.default_rng(0).integers(1, 8, 20))
    canaries, included = Canaries(real_patches(len(patients), seed=8), patients), coins(20, seed=1)
    trainer = private(steps=5)
    moment = last_moment(trainer, training_set(), canaries, included, every=2)
    assert np.isfinite(moment.gradient_scores).all()
    assert len(moment.critic_scores) == 20
    assert look_every(trainer, canaries) == round((20 + 32) * 4 / 30)


def test_a_canarys_score_is_the_mean_of_its_patches_less_synthetic_ones_for_the_same_class():
    conditions = Conditions(("a", "b"))
    canaries = Canaries(real_patches(5, seed=6), np.array([0, 0, 1, 2, 2]), conditions.encode(list("abbaa"), [math.nan] * 5))
    trainer, scores = private(conditions=conditions), []
    with torch.no_grad():
        for net in (trainer.average, trainer.critic):
            for parameter in net.parameters():
                parameter.mul_(5)
        for parameter in trainer.generator.parameters():
            parameter.fill_(math.nan)  # the averaged generator is what is given away
    attacker = _Attacker(trainer, training_set(conditions), canaries, 1, np.random.default_rng(3))
    found = attacker.critic_scores()
    z = torch.from_numpy(np.random.default_rng(3).standard_normal((8, NETWORKS.latent), dtype=np.float32))
    with torch.no_grad():
        for patch, condition in zip(torch.from_numpy(canaries.patches), torch.from_numpy(canaries.condition), strict=True):
            asked = condition[None]
            synthetic = [trainer.critic(trainer.average(one[None], asked), asked).item() for one in z]
            scores.append(trainer.critic(patch[None], asked).item() - np.mean(synthetic))
    np.testing.assert_allclose(found, [np.mean(scores[:2]), scores[2], np.mean(scores[3:])], rtol=1e-3)
    assert np.isfinite(attacker.synthetic(training_set(conditions))).all()
