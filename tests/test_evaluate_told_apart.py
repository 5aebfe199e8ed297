"""A mark is found, nothing is found where there is nothing, and no patient is on both sides of a split."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from evaluate import told_apart
from evaluate.classic import augment_turns
from evaluate.detector import Recipe
from evaluate.told_apart import Shown, area_within_folds, centre_only, deal_folds, tell_apart, tell_halves

WINDOW = (-1000.0, 400.0)
SPACING = (1.0, 1.0)
QUICK = {"folds": 2, "seeds": 1, "draws": 500, "recipe": Recipe(30, 16, "small", "natural", "cpu")}


def patches(seed, patients, each=4, shape=(12, 12), name="p", spread=0.0):
    """Noise of 60 HU around a level that is each patient's own."""
    rng = np.random.default_rng(seed)
    level = rng.normal(-700, spread, patients).repeat(each).reshape(-1, *[1] * len(shape))
    hu = rng.normal(level, 60, (patients * each, *shape))
    return Shown(np.clip(hu, *WINDOW).astype(np.int16), np.repeat([f"{name}{n}" for n in range(patients)], each))


def told(real, composites, seed=0, **changes):
    return tell_apart(real, composites, (1.0,) * (real.hu.ndim - 1), WINDOW, np.random.default_rng(seed), **(QUICK | changes))


@pytest.mark.parametrize("shape", [(12, 12), (8, 8, 8)])
def test_a_mark_in_the_middle_is_found(shape):
    real, composites = patches(0, 12, shape=shape), patches(1, 12, shape=shape, name="q")
    composites.hu[(slice(None), *[slice(n // 2 - 2, n // 2 + 2) for n in shape])] += 250
    found = told(real, composites)
    assert found.auroc > 0.95
    assert found.told
    assert found.interval.low <= found.auroc <= found.interval.high
    assert found.by_size is None


def test_what_comes_from_one_distribution_is_not_told_apart():
    found = told(patches(0, 30, spread=50), patches(1, 30, name="q", spread=50), seeds=3)
    assert not found.told
    assert found.interval.low < 0.5 < found.interval.high
    assert found.interval.high - found.interval.low < 0.6
    assert found.real.shape == found.composites.shape == (3, 120)
    assert len({one.tobytes() for one in found.real}) == 3


def signed(seed, patients, name):
    """Eight patches of each patient, who has a strong pattern that no one else has."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(-500, 150, (patients, 12, 1)).repeat(12, 2).repeat(8, 0) + rng.normal(0, 10, (8 * patients, 12, 12))
    return Shown(np.clip(hu, *WINDOW).astype(np.int16), np.repeat([f"{name}{n}" for n in range(patients)], 8))


def test_a_patients_own_pattern_tells_nothing():
    """A network learns whose pattern is whose; only where a patient is on both sides of a split does that help."""
    real, composites = signed(0, 16, "p"), signed(1, 16, "q")
    longer = {"recipe": Recipe(50, 32, "small", "natural", "cpu")}
    found = told(real, composites, **longer)
    assert found.interval.low < 0.5 < found.interval.high
    assert abs(found.auroc - 0.5) < 0.25
    leaking = told(*(Shown(one.hu, np.arange(128) + 1000 * n) for n, one in enumerate((real, composites))), **longer)
    assert leaking.auroc > 0.9


def test_no_network_judges_a_patient_it_was_trained_on(monkeypatch):
    """Patients are shared between the sets, and a pasted lesion is of two."""
    rng = np.random.default_rng(0)
    real = patches(0, 20)
    pairs = np.stack([rng.integers(0, 20, 200), rng.integers(0, 20, 200)], axis=1)
    composites = Shown(np.zeros((200, 12, 12), np.int16), np.char.add("p", pairs.astype(str)))
    everything = np.concatenate([real.hu, composites.hu])
    everything[:, 0, 0] = np.arange(280)  # says which patch it is
    real, composites = Shown(everything[:80], real.patients), Shown(everything[80:], composites.patients)
    whose = [{name} for name in real.patients] + [set(row) for row in composites.patients]
    judged = []

    def train(shown, nothing, window, arm, seed, recipe, tell):
        assert arm.augmentation == "turns"
        assert (shown.lesion == (shown.hu[:, 0, 0] >= 80)).all()
        return set().union(*(whose[n] for n in shown.hu[:, 0, 0]))

    def log_odds(trained, hu, window, device):
        for n in hu[:, 0, 0]:
            assert not trained & whose[n]
        judged.extend(hu[:, 0, 0])
        return np.zeros(len(hu))

    monkeypatch.setattr(told_apart, "train_detector", train)
    monkeypatch.setattr(told_apart, "log_odds_of", log_odds)
    found = told(real, composites, folds=4)
    assert found.auroc == 0.5
    assert sorted(judged) == [*range(80), *(80 + np.flatnonzero(found.folds[1] >= 0))]
    assert np.isnan(found.composites[0]).tolist() == (found.folds[1] < 0).tolist()
    assert 20 < (found.folds[1] >= 0).sum() < 90  # both patients are in one of four folds by chance
    fold_of = deal_folds(real.patients, composites.patients, 4, rng)
    given = told(real, composites, fold_of=fold_of)
    assert given.folds[0].tolist() == [fold_of[name] for name in real.patients]


def test_folds_hold_as_many_patients_of_each_kind():
    both, real, composite = ([f"{kind}{n}" for n in range(12)] for kind in "brc")
    fold_of = deal_folds(np.array(both + real), np.array([both + composite, composite + both]), 4, np.random.default_rng(0))
    assert len(fold_of) == 36
    for kind in (both, real, composite):
        assert np.bincount([fold_of[name] for name in kind]).tolist() == [3] * 4
    assert fold_of != deal_folds(np.array(both + real), np.array(both + composite), 4, np.random.default_rng(1))


def test_other_backgrounds_are_seen_only_where_they_are_shown():
    real, composites = patches(0, 12), patches(1, 12, name="q")
    far = centre_only(Shown(np.zeros_like(real.hu), real.patients, np.full(48, 3.0)), SPACING, WINDOW) < -999
    other = np.where(far, composites.hu + 300, composites.hu).astype(np.int16)
    assert told(real, Shown(other, composites.patients)).auroc > 0.95
    radii = np.random.default_rng(0).uniform(2, 3, (2, 48))
    centres = told(Shown(real.hu, real.patients, radii[0]), Shown(other, composites.patients, radii[1]))
    assert centres.interval.low < 0.5 < centres.interval.high
    assert centres.by_size == pytest.approx((radii[1][:, None] > radii[0]).mean())


def test_a_mask_keeps_the_ball_of_each_patch():
    hu = np.full((2, 7, 9, 9), 40, np.int16)
    masked = centre_only(Shown(hu, np.arange(2), np.array([2.0, 0.0])), (2.0, 1.0, 1.0), WINDOW)
    assert (masked[0] == 40).sum() == 13 + 2  # the disc of radius 2 in the middle slice, and one voxel in each slice beside it
    assert (masked[1] == 40).sum() == 1
    assert set(np.unique(masked)) == {-1000, 40}


def test_halves_of_real_patients_are_the_floor():
    real = patches(0, 24, spread=50)
    found = tell_halves(Shown(real.hu, real.patients, np.full(96, 5.0)), SPACING, WINDOW, np.random.default_rng(0), **QUICK)
    assert found.interval.low < 0.5 < found.interval.high
    assert found.real.shape[1] + found.composites.shape[1] == 96
    assert found.by_size == 0.5


def test_areas_are_of_pairs_within_folds_and_their_interval_is_of_patients():
    rng = np.random.default_rng(0)
    names = np.repeat([f"p{n}" for n in range(30)], 4)
    composite, fold = rng.random(120) < 0.5, np.repeat(np.arange(30) % 3, 4)
    scores = rng.normal(0, 1, (2, 120)) + composite
    fold[:8] = -1
    area, interval = area_within_folds(scores, composite, fold, names, rng, 2000)
    won = [[(one[a] > one[b]) for a, b in product(range(120), repeat=2) if composite[a] and not composite[b] and fold[a] == fold[b] >= 0] for one in scores]  # fmt: skip
    assert area == pytest.approx(np.mean(won))
    shifted, _ = area_within_folds(scores + 100.0 * fold, composite, fold, names, rng, 10)
    assert shifted == pytest.approx(area)
    alone = area_within_folds(np.stack([scores[0]] * 2), composite, fold, names, rng, 2000)[1]
    apart = area_within_folds(np.stack([scores[0], -scores[0]]), composite, fold, names, rng, 2000)[1]
    assert apart.high - apart.low > 2 * (alone.high - alone.low)  # trainings that contradict one another are no evidence
    same = np.repeat(scores[0][::4], 4)[None]  # four patches that say one thing are no more than one
    repeated = area_within_folds(same, np.repeat(composite[::4], 4), fold, names, rng, 2000)[1]
    single = area_within_folds(same[:, ::4], composite[::4], fold[::4], names[::4], rng, 2000)[1]
    assert repeated.high - repeated.low == pytest.approx(single.high - single.low, rel=0.15)
    assert interval.low < area < interval.high


def test_what_trainings_differ_by_is_students_interval_of_their_mean():
    """Half of the trainings tell all composites, half none, whichever patients are drawn."""
    composite = np.arange(60) % 2 == 0
    scores = np.where(np.arange(16)[:, None] % 2, composite, 0.0)
    area, interval = area_within_folds(scores, composite, np.zeros(60, int), np.arange(60), np.random.default_rng(0), 20_000)
    assert area == 0.75
    areas = np.tile([0.5, 1.0], 8)
    wanted = stats.t.interval(0.95, 15, areas.mean(), stats.sem(areas))
    assert (interval.low, interval.high) == pytest.approx(wanted, abs=0.01)


def test_intervals_hold_a_half_where_scores_mean_nothing():
    """Of 200 sets of 30 patients, 190 are expected; fewer than 178 have a chance of 0.1 %."""
    names, fold = np.repeat(np.arange(30), 4), np.repeat(np.arange(30) % 3, 4)
    composite = np.repeat(np.arange(30) % 2 == 0, 4)
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        scores = rng.normal(0, 1, 30).repeat(4) + rng.normal(0, 1, 120)
        interval = area_within_folds(scores[None], composite, fold, names, rng, 200)[1]
        held += interval.low <= 0.5 <= interval.high
    assert held >= 178


@pytest.mark.parametrize(("shape", "ways"), [((5, 5), 8), ((4, 6), 4), ((3, 4, 4), 16)])
def test_turns_keep_every_patch_but_for_its_orientation(shape, ways):
    patch = torch.rand(shape)
    turned = augment_turns(patch.expand(600, *shape), np.random.default_rng(0))
    found = {tuple(one.flatten().tolist()) for one in turned}
    assert len(found) == ways
    assert all(sorted(one) == sorted(patch.flatten().tolist()) for one in found)
    steps = {round(one.reshape(shape).diff(dim=-1).abs().sum().item(), 3) for one in map(torch.tensor, found)}
    assert len(steps) == (2 if shape[-1] == shape[-2] else 1)


def test_what_does_not_fit_is_refused():
    real, composites = patches(0, 12), patches(1, 12, name="q")
    with pytest.raises(ValueError, match="radii in both sets or in none"):
        told(real, Shown(composites.hu, composites.patients, np.full(48, 3.0)))
    with pytest.raises(ValueError, match="of one size"):
        told(real, Shown(composites.hu[:, 1:], composites.patients))
    with pytest.raises(ValueError, match="2 folds or more"):
        told(real, composites, folds=1)
    with pytest.raises(ValueError, match=r"composites of 5 patients, .* got 2 folds, 3 patients"):
        told(real, Shown(composites.hu[:12], composites.patients[:12]))
    with pytest.raises(ValueError, match="12 patients have no fold"):
        told(real, composites, fold_of=deal_folds(real.patients, real.patients, 2, np.random.default_rng(0)))
    together = {name: int(name == "q0") for name in deal_folds(real.patients, composites.patients, 2, np.random.default_rng(0))}
    with pytest.raises(ValueError, match=r"real lesions of .* got 2 folds, 12 patients, \d+ and 0;"):
        told(real, composites, fold_of=together)
