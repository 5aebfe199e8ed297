"""Real lesions set into lesion-free patches: what each blend must leave, take over, and solve."""

import numpy as np
import pytest
from conftest import benchmark

from gan.context import Backgrounds, radius_mm, support

SHAPES = [(24, 24), (12, 12, 12)]


@pytest.fixture(scope="module")
def pasting():
    yield from benchmark("pasting")


def patches(count: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (count, 1, *shape)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_cloning_a_lesion_that_differs_by_a_constant_or_a_slope_gives_the_anatomy(pasting, shape):
    """Poisson's equation has one solution, and the anatomy solves it where gradients are its own, or where both are harmonic."""
    (free,) = patches(1, shape, 0)[0]
    where = support(shape, [1.0] * len(shape), [4.0])[0, 0]
    np.testing.assert_allclose(pasting.clone(free + 0.3, free, where), free, atol=1e-6)
    slopes = np.add.reduce(np.meshgrid(*[np.linspace(-0.1, 0.1, n) for n in shape], indexing="ij")).astype(np.float32)
    np.testing.assert_allclose(pasting.clone(np.zeros_like(slopes), slopes, where), slopes, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_cloned_voxels_have_the_lesions_laplacian(pasting, shape):
    lesion, free = patches(2, shape, 1)[:, 0] / 10
    where = support(shape, [1.0] * len(shape), [4.0])[0, 0]
    found = pasting.clone(lesion, free, where)
    inside = np.zeros(shape, bool)
    inside[(slice(1, -1),) * len(shape)] = (where > 0)[(slice(1, -1),) * len(shape)]
    laplacian = [sum(np.roll(x, step, axis) for axis in range(x.ndim) for step in (-1, 1)) - 2 * x.ndim * x for x in (found, lesion)]
    np.testing.assert_allclose(laplacian[0][inside], laplacian[1][inside], atol=1e-5)
    np.testing.assert_array_equal(found[~inside], free[~inside])


def test_pasting_keeps_what_is_brighter_and_nothing_changes_beyond_the_support(pasting):
    shape, diameters = (24, 24), np.array([4.0, 6.0])
    lesions, free = patches(2, shape, 2), patches(30, shape, 3)
    backgrounds = Backgrounds(free, None, shape)
    for blend in pasting.BLENDS:
        found, anatomy, which = pasting.set_in(lesions, diameters, backgrounds, 40, np.random.default_rng(0), blend)
        distance = np.hypot(*np.meshgrid(*[np.arange(24) - 11.5] * 2))
        beyond = distance > radius_mm(diameters[which])[:, None, None]
        np.testing.assert_array_equal(found[:, 0][beyond], anatomy[:, 0][beyond])
        assert set(which.tolist()) == {0, 1}
        again, _, _ = pasting.set_in(lesions, diameters, backgrounds, 40, np.random.default_rng(0), blend)
        np.testing.assert_array_equal(found, again)
    pasted, anatomy, which = pasting.set_in(lesions, diameters, backgrounds, 40, np.random.default_rng(0), "pasted")
    assert (pasted >= anatomy).all()
    bright = pasting.set_in(np.ones_like(lesions), diameters, backgrounds, 40, np.random.default_rng(0), "pasted")[0]
    assert (bright[:, 0, 11:13, 11:13] == 1).all()


def test_turns_are_all_eight_of_a_square(pasting):
    square = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    many = np.repeat(square, 400, 0)
    rng = np.random.default_rng(0)
    turned = pasting.quarter_turned(rng, Backgrounds(square, None, (3, 3)).flipped(rng, many))
    assert len({one.tobytes() for one in turned}) == 8
    flat = np.zeros((5, 1, 3, 4), np.float32)
    assert pasting.quarter_turned(rng, flat).shape == flat.shape
