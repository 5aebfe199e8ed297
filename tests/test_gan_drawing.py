"""Samples as asked for: the same in any parts, from each model its share, the best by its critic; latents cut off as scipy does it."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from gan.conditions import KNOTS_MM, Conditions
from gan.drawing import PILOT_SEEDS, QUALITY, Drawing, draw
from gan.networks import Critic, Generator
from gan.orders import CLASS, DIAMETER, LIKE, Likeness, Request, which_model
from gan.sampling import TILE, Model, candidates, critic_scores, sample, truncated

PLAIN, BOTH = Conditions(), Conditions(("ggo", "solid"), diameter=True)
SHAPE, SPACING = (16, 16), (1.0, 1.0)
ABOUT = {"shape": list(SHAPE), "class_counts": {"ggo": 20, "solid": 60}, "diameter_deciles_mm": [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]}
from_centre = torch.from_numpy(np.hypot(*np.meshgrid(*[np.arange(16) - 7.5] * 2)).astype(np.float32))


class Discs(nn.Module):
    """A generator one can foresee: a bright disc on dark ground, its radius from the first latent and, where it is asked, the diameter;
    the second latent shades the ground, the others give it texture. The arguments are those of gan.networks.Generator."""

    def __init__(self, shape=SHAPE, channels=1, latent=8, conditions=0):
        super().__init__()
        self.latent, self.conditions = latent, conditions
        draws = torch.Generator().manual_seed(channels)
        self.texture = nn.Parameter(torch.randn(latent, 256, generator=draws) * 0.03)

    def forward(self, z, condition=None):
        shares, classes = (None, None) if condition is None else (condition[:, -len(KNOTS_MM) :], condition[:, : -len(KNOTS_MM)])
        known = shares is not None
        mm = torch.exp(shares @ torch.log(torch.tensor(KNOTS_MM))) if known else 8.0
        radius = (mm / 2 + (0.6 if known else 1.5) * z[:, 0]).clamp(0.5, 7.5)
        bright = 0.6 - 0.6 * classes[:, 0] if known else z.new_full((len(z),), 0.6)
        disc = from_centre < radius[:, None, None]
        x = torch.where(disc, bright[:, None, None], (-0.8 + 0.05 * z[:, 1])[:, None, None])
        return (x + (z @ self.texture).view(-1, 16, 16)).clamp(-1, 1)[:, None]


def discs(conditions=PLAIN, number=1, critic=False, **about) -> Model:
    generator = Discs(channels=number, conditions=conditions.size).requires_grad_(False)
    return Model(generator, conditions, 5, f"{number:064x}", {**ABOUT, **about}, critic=critic_of(conditions, number) if critic else None)


def critic_of(conditions=PLAIN, seed=0, shape=SHAPE) -> Critic:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Critic(shape, 4, conditions.size).eval().requires_grad_(False)


def drawing_of(models, request=Request(), seeds=range(40), **options) -> Drawing:  # noqa: B008
    return Drawing(models, [1.0] * len(models), request, seeds, SPACING, **options)


def by_size(patches, asked, rows):
    """A check: how many pixels are bright; some numbers of them will not do."""
    bright = (patches[:, 0] > -0.3).sum((1, 2))
    return bright.astype(float), bright % 3 > 0


def by_texture(patches, asked, rows):
    """A check that depends on the whole patch, and on what was asked for."""
    found = patches.mean((1, 2, 3)) * 1000 % 1
    return found, found < np.where(asked.labels[rows] == "ggo", 0.5, 0.8)


CHECKS = {"size": by_size, "texture": by_texture}


# --- latents ---


def test_every_try_of_every_seed_is_drawn_into_a_place_of_its_own(monkeypatch):
    seen, model = [], SimpleNamespace(generator=SimpleNamespace(latent=8))
    backgrounds = SimpleNamespace(draw=lambda rng, asked_mm: (seen.append(rng.random()), np.zeros((1, 1, 4, 4), np.float32))[::-1])
    monkeypatch.setattr("gan.drawing.composites", lambda *given: [(np.zeros((2, 1, 4, 4), np.float32), None)])
    for attempt in range(3):
        draw(model, [5, 6], attempt, np.full(2, 8.0), None, None, backgrounds)
    assert len(set(seen)) == 6


@given(st.floats(0.05, 6), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_truncation_maps_quantile_to_quantile(limit, seed):
    z = torch.from_numpy(np.random.default_rng(seed).standard_normal((4, 16)))
    expected = stats.truncnorm(-limit, limit).ppf(stats.norm.cdf(z.numpy()))
    np.testing.assert_allclose(truncated(z, limit).numpy(), expected, rtol=1e-9, atol=1e-9)
    single = truncated(z.float(), limit)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_truncation_keeps_order_and_bounds_and_does_nothing_without_a_limit():
    z = torch.linspace(-9, 9, 2001, dtype=torch.float64).float()
    for limit in (0.1, 1.5, 8.0):
        found = truncated(z, limit)
        assert (found.diff() >= 0).all()
        assert found.abs().max() <= limit
        assert (found[z.abs() < 4].diff() > 0).all()
    assert truncated(z, None) is z
    np.testing.assert_allclose(truncated(z, 8.0)[z.abs() < 5], z[z.abs() < 5], rtol=1e-5, atol=1e-6)


def test_candidates_follow_from_seed_and_attempt():
    first, second = candidates(range(50), 0, 8), candidates(range(50), 1, 8)
    order = np.random.default_rng(0).permutation(50)
    for attempt, whole in enumerate((first, second)):
        assert torch.equal(candidates(order.tolist(), attempt, 8), whole[order])
    rows = torch.cat([first, second, candidates(range(50), 2, 8)])
    assert len(rows.unique(dim=0)) == 150
    model = discs()
    drawn = np.concatenate(list(sample(model, range(50), truncation=1.2)))
    np.testing.assert_array_equal(drawing_of([model], truncation=1.2).part(0, 40)[0].patches, drawn[:40])


def test_attempts_of_one_seed_are_no_other_seeds_samples():
    """NumPy takes a number of more than 32 bits for several, so [5, 1] and 5 + 2**32 would be one seed."""
    z = torch.cat([candidates([5, 5 + 2**32, 5 + 2**33], attempt, 8) for attempt in range(3)])
    assert len(z.unique(dim=0)) == 9


@pytest.mark.parametrize("attempt", range(5))
def test_what_a_seed_is_asked_for_tells_nothing_of_its_latents(attempt):
    """Else samples of a class, or of a size, would have latents of their own wherever the first candidate is turned down."""
    z = candidates(range(2000), attempt, 4).numpy()
    for stream in (CLASS, DIAMETER, LIKE):
        places = np.array([np.random.default_rng([seed, stream]).random() for seed in range(2000)])
        for column in z.T:
            for values in (column, np.abs(column)):
                assert abs(stats.spearmanr(places, values).statistic) < 0.12, (stream, attempt)


# --- the critic's opinion ---


@pytest.mark.parametrize(("shape", "conditions"), [((16, 16), PLAIN), ((16, 16), BOTH), ((8, 8, 8), PLAIN)])
def test_scores_are_the_critics_and_do_not_depend_on_the_batch(shape, conditions):
    model = replace(discs(conditions), critic=critic_of(conditions, shape=shape))
    patches = np.random.default_rng(0).uniform(-1, 1, (2 * TILE + 9, 1, *shape)).astype(np.float32)
    labels = np.resize(["ggo", "solid"], len(patches)).tolist()
    condition = conditions.encode(labels, np.linspace(4, 20, len(patches))) if conditions.size else None

    def scores(rows):
        return critic_scores(model, patches[rows], None if condition is None else condition[rows])

    whole = scores(slice(None))
    expected = model.critic(torch.from_numpy(patches), None if condition is None else torch.from_numpy(condition)).numpy()
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)
    assert whole.dtype == np.float64
    for rows in (slice(0, 1), slice(5, 5 + TILE), np.random.default_rng(1).permutation(len(patches))[:50]):
        np.testing.assert_array_equal(scores(rows), whole[rows])
    assert len(scores(slice(0, 0))) == 0


@pytest.mark.parametrize("conditions", [PLAIN, BOTH], ids=["plain", "of classes"])
def test_quality_keeps_about_its_share_the_best_by_the_critic(conditions):
    model = discs(conditions, critic=True)
    model.critic.score.weight[1:2].mul_(20)  # a critic that likes one class better
    drawing = drawing_of([model], Request("balanced"), range(1500), quality=0.7)
    taken, asked, _, tally = drawing.part(0, 1500)
    assert tally.rate == pytest.approx(0.7, abs=0.06)
    assert set(tally.rejected) == {QUALITY}
    np.testing.assert_array_equal(
        taken.measured[QUALITY], critic_scores(drawing.models[0], taken.patches, asked.condition(conditions, np.arange(1500)))
    )
    everything = replace(drawing, quality=None).part(0, 1500)[0].patches
    everything = critic_scores(drawing.models[0], everything, asked.condition(conditions, np.arange(1500)))
    first = taken.attempts == 0
    for label in np.unique(asked.labels):
        of_class = asked.labels == label
        assert first[of_class].mean() == pytest.approx(0.7, abs=0.08)  # of each class as many
        assert everything[of_class & first].min() >= everything[of_class & ~first].max()


def test_each_model_is_judged_by_its_own_critic():
    models = [discs(number=number, critic=True) for number in (1, 2)]
    models[1].critic.score.weight.mul_(-50)
    drawing = Drawing(models, [1, 3], Request(), range(600), SPACING, quality=0.5)
    taken, _, model_of, tally = drawing.part(0, 600)
    np.testing.assert_array_equal(model_of, which_model(range(600), [1, 3]))
    assert tally.rate == pytest.approx(0.5, abs=0.06)
    for n, model in enumerate(models):
        mine = model_of == n
        np.testing.assert_array_equal(taken.measured[QUALITY][mine], critic_scores(model, taken.patches[mine]))
        assert (taken.attempts[mine] == 0).mean() == pytest.approx(0.5, abs=0.1)


def test_quality_judges_a_model_without_classes_that_imitates_one():
    like = Likeness(np.full(9, "nodule"), np.full(9, 8.0), np.full(9, np.nan))
    drawing = drawing_of([discs(critic=True)], Request(like=like), range(300), quality=0.5)
    assert drawing.part(0, 300)[3].rate == pytest.approx(0.5, abs=0.1)


# --- any parts ---


def test_a_sample_is_the_same_in_any_parts_and_among_any_others():
    models = [discs(BOTH, number, critic=True) for number in (1, 2)]
    drawing = drawing_of(models, Request("balanced", (6, 10)), range(100, 180), truncation=1.5, quality=0.8, checks=CHECKS)
    taken, asked, model_of, tally = drawing.part(0, 80)
    assert list(taken.measured) == drawing.measured == ["size", "texture", QUALITY]
    assert 0 < taken.attempts.mean() < 20
    assert set(tally.rejected) == {"size", "texture", QUALITY}
    assert {*model_of} == {0, 1}

    def assert_equal(part, rows):
        some, orders, models_of, _ = part
        np.testing.assert_array_equal(some.patches, taken.patches[rows])
        np.testing.assert_array_equal(some.attempts, taken.attempts[rows])
        for name, values in taken.measured.items():
            np.testing.assert_array_equal(some.measured[name], values[rows])
        np.testing.assert_array_equal(models_of, model_of[rows])
        np.testing.assert_array_equal(orders.labels, asked.labels[rows])

    counted = Counter()
    for first, count in ((0, 33), (33, 1), (34, 46)):
        part = drawing.part(first, count)
        assert_equal(part, np.arange(first, first + count))
        counted.update(part[3].rejected)
    assert counted == tally.rejected
    rows = np.random.default_rng(0).permutation(80)[:30]
    assert_equal(replace(drawing, seeds=[100 + int(row) for row in rows]).part(0, 30), rows)


def test_every_taken_sample_passes_its_checks_and_none_before_it_does():
    drawing = drawing_of([discs(BOTH)], Request("balanced"), range(60), checks=CHECKS)
    taken, asked, _, _ = drawing.part(0, 60)
    for name, check in CHECKS.items():
        measured, passed = check(taken.patches, asked, np.arange(60))
        assert passed.all()
        np.testing.assert_array_equal(taken.measured[name], measured)
    model = drawing.models[0]
    for row in range(60):
        condition = asked.condition(BOTH, np.array([row]))
        for attempt in range(taken.attempts[row] + 1):
            z = candidates([row], attempt, 8)
            patch = model.generator(z, torch.from_numpy(condition)).numpy()
            good = all(check(patch, asked, np.array([row]))[1][0] for check in CHECKS.values())
            assert good == (attempt == taken.attempts[row])


def test_filling_counts_from_where_the_part_is():
    drawing = drawing_of([discs(BOTH)], Request(fill={"solid": 30, "ggo": 10}))
    assert Counter(drawing.part(0, 40)[1].labels.tolist()) == {"solid": 30, "ggo": 10}
    assert Counter(drawing.part(25, 10)[1].labels.tolist()) == {"solid": 5, "ggo": 5}
    assert drawing.asked([7, 8], 29).labels.tolist() == ["solid", "ggo"]


def test_what_never_passes_is_told_with_what_was_asked_for(monkeypatch):
    monkeypatch.setattr("gan.selection.MOST_ATTEMPTS", 100)
    drawing = drawing_of([discs(BOTH)], Request("solid", (6, 8)), [77], checks={"never": lambda x, asked, rows: (x[:, 0, 0, 0], rows < 0)})
    with pytest.raises(ValueError, match=r"seed 77, solid, measured 6\.0 to 8\.0 mm: none of 100 candidates is as asked for"):
        drawing.part(0, 1)


# --- what truncation costs ---


def test_diversity_is_what_truncation_leaves_of_the_distances():
    model = discs(BOTH)
    costs = [drawing_of([model], truncation=limit).diversity() for limit in (None, 1.5, 1.0, 0.2)]
    assert costs[0] == 1
    assert costs == sorted(costs, reverse=True)
    assert costs[1] < 0.99
    assert costs[3] < 0.9
    narrow = [drawing_of([model], seeds=seeds, truncation=1.0).diversity() for seeds in (range(3), range(10**6, 10**6 + 9))]
    assert narrow == [costs[2]] * 2  # judged by seeds of its own

    def plain(limit):
        drawing = replace(drawing_of([model], truncation=limit), seeds=range(PILOT_SEEDS, PILOT_SEEDS + 256))
        x = drawing.part(0, 256)[0].patches.astype(float)
        return np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in zip(x[:128], x[128:], strict=True)])

    assert costs[2] == pytest.approx(plain(1.0) / plain(None), rel=1e-5)


def test_a_real_generator_draws_in_any_parts_too():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(SHAPE, 4, 8, BOTH.size).eval().requires_grad_(False)
    for weight in generator.parameters():
        weight.mul_(8)
    drawing = drawing_of([Model(generator, BOTH, 1, "0" * 64, ABOUT)], seeds=range(70), checks={"texture": by_texture})
    taken = drawing.part(0, 70)[0]
    assert taken.attempts.max() > 0
    for first, count in ((0, 1), (1, 40), (41, 29)):
        np.testing.assert_array_equal(drawing.part(first, count)[0].patches, taken.patches[first : first + count])
