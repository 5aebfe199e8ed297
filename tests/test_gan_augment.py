"""The critic's augmentation: against NumPy, as a linear map with its transpose, and how its probability moves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gan.augment import MOST, STEP, Changes, Overfitting

SHAPES = [(8, 8), (10, 16), (6, 12, 12), (12, 8, 10)]


def by_numpy(x: np.ndarray, flipped, turned, moved) -> np.ndarray:
    """Of one patch."""
    for axis, flip in enumerate(flipped):
        x = np.flip(x, axis) if flip else x
    x = np.swapaxes(x, -1, -2) if turned else x
    for axis, by in enumerate(moved):
        padding = [(0, 0)] * x.ndim
        padding[axis] = (abs(by), abs(by))
        x = np.pad(x, padding, mode="reflect").take(range(abs(by) + by, abs(by) + by + x.shape[axis]), axis)
    return x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_equals_numpy_patch_by_patch(shape, probability):
    changes = Changes.draw(np.random.default_rng(0), 40, shape, probability)
    x = torch.randn(40, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = changes.made(x)
    for n in range(40):
        np.testing.assert_array_equal(made[n, 0], by_numpy(x[n, 0].numpy(), *(one[n] for one in changes)))
    rows = np.arange(40) % 3 == 0  # a process's share of a batch
    assert torch.equal(changes.of(rows).made(x[rows]), made[rows])
    assert torch.equal(made, x) == (probability == 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_change_is_made_as_often_as_asked(shape):
    count, probability = 4000, 0.4
    flipped, turned, moved = Changes.draw(np.random.default_rng(1), count, shape, probability)
    within = 5 * np.sqrt(0.25 / count)
    assert flipped.mean(0) == pytest.approx([probability / 2] * (len(shape) - 1), abs=within)
    assert turned.mean() == pytest.approx(probability / 2 if shape[-1] == shape[-2] else 0, abs=within)
    assert np.any(moved, 1).mean() == pytest.approx(probability, abs=probability / 3)  # some are moved by 0
    assert np.all(np.abs(moved).max(0) == np.rint(0.1 * np.asarray(shape)))


def test_the_gradient_is_that_of_the_linear_map():
    """<A x, y> = <x, transposed A y>, with the transposed map by autograd."""
    changes = Changes.draw(np.random.default_rng(2), 20, (12, 12), 0.8)
    x, y = torch.randn(2, 20, 1, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_(True)
    product = (changes.made(x) * y).sum()
    (back,) = torch.autograd.grad(product, x)
    assert (x * back).sum().item() == pytest.approx(product.item(), rel=1e-12)
    assert not torch.equal(back, y)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), max_size=60), st.floats(0.1, 0.9))
def test_probability_stays_within_bounds_and_survives_a_checkpoint(scores, target):
    one, other = Overfitting(target), Overfitting(target)
    for n, (training, held_out) in enumerate(scores):
        before = one.probability
        measure = one.look(training, held_out)
        assert 0 <= one.probability <= MOST
        assert one.probability >= before if measure > target else one.probability <= before
        if n == len(scores) // 2:
            other.state = one.state
        elif n > len(scores) // 2:
            other.look(training, held_out)
    if scores:
        assert torch.equal(one.state, other.state)


def test_probability_rises_while_held_out_patches_score_as_synthetic_ones():
    overfitting = Overfitting(0.5)
    for _ in range(10):
        assert overfitting.look(training=2.0, held_out=0.0) == pytest.approx(1)
    assert overfitting.probability == pytest.approx(10 * STEP)
    for _ in range(60):
        overfitting.look(training=2.0, held_out=2.0)
    assert overfitting.probability == 0
