"""Paths through the latents: they start and end at the seeds' own samples, move at one speed, and close."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.conditions import KNOTS_MM, Conditions
from gan.interpolation import growth, slerp, strips, walk
from gan.networks import Generator
from gan.sampling import Model, generate, sample

PLAIN, BOTH = Conditions(), Conditions(("ggo", "solid"), diameter=True)


def model_of(conditions=PLAIN, shape=(16, 16), latent=32, **trained_on) -> Model:
    """Untrained, its weights large enough that every latent gives another patch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(shape, 4, latent, conditions.size).eval().requires_grad_(False)
    for weight in generator.parameters():
        weight.mul_(8)
    return Model(generator, conditions, 1, "0" * 64, {"shape": list(shape), **trained_on})


def drawn(model, path) -> np.ndarray:
    return np.concatenate(list(generate(model, *path)))


def vectors(seed, count=2, size=128) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32))


T = np.linspace(0, 1, 9)


@given(st.integers(0, 10**6), st.integers(2, 64), st.floats(0.05, 20))
@settings(deadline=None)
def test_slerp_keeps_length_between_the_ends_and_turns_at_one_speed(seed, size, stretch):
    a, b = vectors(seed, 2, size)
    b = b * stretch
    points = slerp(a, b, T).double()
    lengths = points.norm(dim=1)
    np.testing.assert_allclose(lengths, (1 - T) * a.double().norm().item() + T * b.double().norm().item(), rtol=1e-6)
    directions = points / lengths[:, None]
    turned = 2 * torch.asin((directions[1:] - directions[:-1]).norm(dim=1) / 2)
    np.testing.assert_allclose(turned, turned.mean(), rtol=1e-4, atol=1e-6)
    whole = 2 * torch.asin(((directions[0] - directions[-1]).norm() / 2).clamp(max=1))
    assert turned.sum().item() == pytest.approx(whole.item(), abs=1e-4)


def test_slerp_is_whites_formula_where_the_ends_are_equally_long():
    a, b = vectors(0)
    b = b * (a.norm() / b.norm())
    angle = math.acos(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))
    expected = (np.sin((1 - T) * angle)[:, None] * a.numpy() + np.sin(T * angle)[:, None] * b.numpy()) / math.sin(angle)
    np.testing.assert_allclose(slerp(a, b, T), expected, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 128])
@pytest.mark.parametrize("case", ["equal", "opposite", "opposite, longer", "nearly equal", "nearly opposite", "from zero", "all zero"])
def test_ends_without_a_plane_of_their_own_give_numbers(size, case):
    a = vectors(1, 1, size)[0]
    a, b = {
        "equal": (a, a), "opposite": (a, -a), "opposite, longer": (a, -3 * a), "nearly equal": (a, torch.nextafter(a, a + 1)),
        "nearly opposite": (a, torch.nextafter(-a, a)), "from zero": (0 * a, a), "all zero": (0 * a, 0 * a),
    }[case]  # fmt: skip
    points = slerp(a, b, T)
    assert torch.isfinite(points).all()
    assert torch.equal(points[0], a)
    assert torch.equal(points[-1], b)
    if case == "equal":
        np.testing.assert_allclose(points, a.expand(len(T), -1), rtol=1e-6)
    if case == "opposite" and size > 1:
        np.testing.assert_allclose(points.norm(dim=1), a.norm(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (8, 16, 16)])
@pytest.mark.parametrize("conditions", [PLAIN, BOTH])
@pytest.mark.parametrize("truncation", [None, 1.5])
def test_strips_end_at_the_seeds_own_samples_bit_for_bit(shape, conditions, truncation):
    model, seeds, steps = model_of(conditions, shape), [5, 900, 5, 17], 13
    condition = conditions.encode(["ggo", "solid", "solid", "ggo"], [4.0, 31.7, math.nan, 9.3]) if conditions.size else None
    own = np.concatenate(list(sample(model, seeds, condition, truncation)))
    found = drawn(model, strips(model, seeds, steps, condition, truncation)).reshape(3, steps, *own.shape[1:])
    np.testing.assert_array_equal(found[:, 0], own[:-1])
    np.testing.assert_array_equal(found[:, -1], own[1:])
    assert (np.abs(np.diff(found, axis=1)).reshape(3, steps - 1, -1).max(-1) > 0).all()


def test_a_walk_goes_through_its_seeds_and_closes_without_a_jump():
    model, seeds, between = model_of(latent=128), [1, 2, 3, 4, 5], 11
    z, condition = walk(model, seeds, between)
    assert condition is None
    assert z.shape == (60, 128)
    frames = drawn(model, (z, None))
    np.testing.assert_array_equal(frames[:: between + 1], np.concatenate(list(sample(model, seeds))))
    flat = frames.reshape(60, -1).astype(np.float64)
    steps = np.linalg.norm(flat - np.roll(flat, -1, axis=0), axis=1)
    assert steps[-1] <= 1.5 * np.median(steps)
    assert steps.max() <= 3 * np.median(steps)
    apart = np.linalg.norm(flat[:, None] - flat, axis=-1) + 1e9 * np.eye(60)
    assert apart.min() > 0.2 * np.median(steps)  # no frame comes twice
    directions = z.double() / z.double().norm(dim=1, keepdim=True)
    turned = torch.acos((directions * directions.roll(-1, 0)).sum(1)).reshape(len(seeds), -1)
    np.testing.assert_allclose(turned, turned.mean(1, keepdim=True).expand_as(turned), rtol=1e-3)


def test_a_walk_of_conditions_closes_too():
    condition = BOTH.encode(["ggo", "solid", "ggo"], [4.0, 20.0, 11.0])
    z, along = walk(model_of(BOTH), [1, 2, 3], 3, condition)
    np.testing.assert_array_equal(along[::4], condition)
    assert z.shape[0] == along.shape[0] == 12
    np.testing.assert_allclose(along[:, :2].sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(along[-1, :2], [1, 0])  # from ggo to ggo
    steps = np.abs(along - np.roll(along, -1, axis=0)).max(1)
    assert steps.max() < 0.6


def test_halfway_between_two_diameters_lies_their_geometric_mean():
    condition = BOTH.encode(["ggo", "solid", "solid"], [3.0, 48.0, math.nan])
    _, along = strips(model_of(BOTH), [1, 2, 3], 3, condition)
    np.testing.assert_allclose(along[1], [0.5, 0.5, *Conditions(diameter=True).encode([""], [12.0])[0]], atol=1e-6)
    np.testing.assert_allclose(along[4], [0, 1, 0, 0, 0, 0, 0.5], atol=1e-6)  # to an unknown diameter, shares fade
    assert along.dtype == np.float32


def test_growth_asks_one_latent_for_growing_diameters():
    model = model_of(BOTH, diameter_deciles_mm=[2.0, 6.0, 9.0, 30.0])
    z, condition = growth(model, [4, 9], 5, "solid")
    assert torch.equal(z[:5], z[:1].expand(5, -1))
    diameters_mm = np.exp(condition[:, 2:] @ np.log(KNOTS_MM)).reshape(2, 5)
    np.testing.assert_allclose(diameters_mm, [np.geomspace(3, 30, 5)] * 2, rtol=1e-5)
    np.testing.assert_array_equal(condition[:, :2], [[0, 1]] * 10)
    patches = drawn(model, (z, condition)).reshape(2, 5, -1)
    np.testing.assert_array_equal(patches[1, 4], next(sample(model, [9], BOTH.encode(["solid"], [30.0])))[0].ravel())
    assert (np.abs(np.diff(patches, axis=1)).max(-1) > 0).all()
    assert growth(model_of(Conditions(diameter=True)), [1], 3, between_mm=(3, 48))[1].shape == (3, 5)


def test_what_cannot_be_drawn_is_refused_in_one_line():
    plain, both = model_of(), model_of(BOTH)
    for call, words in [
        (lambda: strips(plain, [1], 8), "2 seeds or more"),
        (lambda: strips(plain, [1, 2], 1), "2 steps or more"),
        (lambda: strips(both, [1, 2], 3, np.zeros((3, 7), np.float32)), r"are \(3, 7\), want \(2, 7\)"),
        (lambda: walk(plain, [1], 3), "2 seeds or more"),
        (lambda: walk(plain, [1, 2, 2], 3), "neighbours different"),
        (lambda: walk(plain, [1, 2, 1], 3), "neighbours different"),
        (lambda: growth(plain, [1], 3), "cannot be asked for a diameter"),
        (lambda: growth(both, [1], 3, "cyst"), "class 'cyst' is not one of ggo, solid"),
        (lambda: growth(both, [1], 3, "ggo", (20.0, 5.0)), "from small to large"),
        (lambda: growth(both, [1], 3, "ggo", (1.0, 5.0)), "within 3 to 48 mm"),
        (lambda: growth(both, [], 3, "ggo"), "1 seed or more"),
        (lambda: drawn(both, strips(both, [1, 2], 3)), "give it condition="),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
