"""A copy is found however it was moved, turned or blurred by noise, with its ids; real patients are not accused."""

from itertools import product

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from evaluate.copies import Control, duplicates_between, exact_repeats, fitted_control, search_copies
from evaluate.neighbours import within_window
from evaluate.registration import Searched, detail, overlap, turns

WINDOW = (-1000.0, 400.0)


def smooth(seed, n, shape):
    """Random patches with the grain of CT: blurred noise of 200 HU about -300."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(n, *shape)), (0, *[1.5] * len(shape)))
    return (noise / noise.std() * 200 - 300).clip(*WINDOW).astype(np.int16)


def changed(patch, rng, noise_hu):
    """Moved by up to 3 voxels, turned, with 10 % more or less contrast and with noise."""
    shift = rng.integers(-3, 4, patch.ndim)
    moved = np.pad(patch.astype(float), 3, mode="reflect")[tuple(slice(3 + s, 3 + s + n) for s, n in zip(shift, patch.shape, strict=True))]
    ways = turns(patch.shape)
    turned = ways[rng.integers(len(ways))].of(moved[None])[0]
    return (turned * rng.uniform(0.9, 1.1) + rng.normal(0, noise_hu, patch.shape)).clip(*WINDOW).astype(np.int16)


def test_the_turns_are_the_symmetries():
    assert len(turns((8, 8))) == 8
    assert len(turns((8, 9))) == 4
    assert len(turns((8, 8, 8))) == 48
    assert len(turns((8, 8, 8), (2.5, 1.0, 1.0))) == 16
    picture = np.arange(16).reshape(1, 4, 4)
    assert len({one.of(picture).tobytes() for one in turns((4, 4))}) == 8


@pytest.mark.parametrize("shape", [(24, 24), (24, 30)])
def test_a_copy_under_every_symmetry_and_shift_is_exact(shape):
    larger = smooth(0, 30, tuple(n + 6 for n in shape))
    training = larger[:, 3:-3, 3:-3]
    searched = Searched(training, WINDOW)
    shifts = list(product(range(-3, 4), repeat=2))
    moved = np.stack([larger[11, 3 + y : 3 + y + shape[0], 3 + x : 3 + x + shape[1]] for y, x in shifts])
    for number, turn in enumerate(searched.turns):
        back = next(one for one in searched.turns if (one.of(turn.of(training[:1])) == training[:1]).all())
        patches = turn.of(moved)
        found = searched.nearest(patches)
        assert (found.real == 11).all()
        assert [tuple(one) for one in found.shift] == shifts
        assert {searched.turns[n] for n in found.turn} == {back}, number
        assert found.misfit.max() < 1e-6
        copies = search_copies(patches[:5], training, None, None, None, WINDOW).copies
        assert all(one.exact and one.difference_hu == 0 and (one.gain, one.offset_hu) == (1, 0) for one in copies)
        assert len(copies) == 5


def test_misfit_is_the_share_of_detail_that_the_best_laid_patch_does_not_explain():
    rng = np.random.default_rng(0)
    training = smooth(0, 20, (24, 24))
    searched = Searched(training, WINDOW)
    patches = np.stack([changed(patch, rng, noise_hu=60) for patch in training])
    found = searched.nearest(patches)
    assert (found.real == np.arange(20)).all()
    for n, (turn, shift) in enumerate(zip(found.turn, found.shift.tolist(), strict=True)):
        here, there = overlap((24, 24), shift)
        a, b = (
            detail(x[None]).astype(float).ravel()
            for x in (searched.turns[turn].of(within_window(patches[[n]], WINDOW))[0][here], searched.hu[n][there])
        )
        unexplained = a - b * (a @ b) / (b @ b)
        assert found.misfit[n] == pytest.approx(np.linalg.norm(unexplained) / np.linalg.norm(a), rel=1e-3)
    assert 0.1 < found.misfit.min() < found.misfit.max() < 0.9


def test_a_cube_is_found_in_any_position():
    training = smooth(0, 30, (16, 16, 16))
    rng = np.random.default_rng(1)
    source = rng.integers(0, 30, 12)
    copies = np.stack([changed(training[one], rng, 20) for one in source])
    np.testing.assert_array_equal(Searched(training, WINDOW).nearest(copies).real, source)


def test_what_is_found_does_not_depend_on_the_batch():
    training, rng = smooth(0, 50, (32, 32)), np.random.default_rng(0)
    some = np.concatenate([smooth(1, 30, (32, 32)), np.stack([changed(one, rng, 60) for one in training[:20]])])
    searched = Searched(training, WINDOW)
    whole = searched.nearest(some)
    for size in (1, 3, 16):
        parts = [searched.nearest(some[n : n + size]) for n in range(0, 50, size)]
        for name in ("real", "turn", "shift", "misfit"):
            np.testing.assert_array_equal(np.concatenate([getattr(one, name) for one in parts]), getattr(whole, name))


def test_planted_copies_are_reported_with_their_ids_and_nobody_else():
    """1 % of 400 synthetic patches, noisy, moved, turned; a training patch that two patients share does not hide them."""
    training, held_out, synthetic = smooth(0, 120, (24, 24)), smooth(1, 60, (24, 24)), smooth(2, 400, (24, 24))
    training[7] = training[80]
    rng = np.random.default_rng(0)
    planted = {13: 5, 100: 99, 101: 40, 333: 61}
    for row, source in planted.items():
        synthetic[row] = changed(training[source], rng, rng.uniform(20, 50))
    found = search_copies(synthetic, training, np.repeat(np.arange(60), 2), held_out, np.repeat(np.arange(30), 2), WINDOW)
    assert {one.row: one.real for one in found.copies} == planted
    assert [one.misfit for one in found.copies] == sorted(one.misfit for one in found.copies)
    assert all(0.85 < one.gain < 1.15 and one.difference_hu < 60 and not one.exact for one in found.copies)
    assert all(one.control_share <= 2 / 90 for one in found.copies)  # but for the two who share a patch
    assert found.duplicates == ()


def test_held_out_patches_are_no_copies_and_all_training_patches_are():
    training, held_out, other = (smooth(seed, 60, (24, 24)) for seed in range(3))
    assert search_copies(other, training, None, held_out, None, WINDOW).copies == ()
    found = search_copies(training[:, ::-1], training, None, held_out, None, WINDOW).copies
    assert [one.row for one in found] == [one.real for one in found]
    assert len(found) == 60


def test_duplicates_between_training_and_held_out_are_found():
    training, held_out, rng = smooth(0, 60, (24, 24)), smooth(1, 40, (24, 24)), np.random.default_rng(0)
    held_out[4] = changed(training[30], rng, 20)
    held_out[9] = training[2]
    for found in (
        duplicates_between(held_out, training, None, WINDOW),
        search_copies(held_out[:1], training, None, held_out, None, WINDOW).duplicates,
    ):
        assert [(one.row, one.real, one.exact) for one in found] == [(9, 2, True), (4, 30, False)]


def test_patches_without_detail_are_no_evidence():
    training = smooth(0, 40, (24, 24))
    training[3] = -1000
    synthetic = np.full((2, 24, 24), -1000, np.int16)
    assert search_copies(synthetic, training, None, None, None, WINDOW).copies == ()
    assert exact_repeats(synthetic) == ((0, 1),)


def test_few_patients_show_exact_copies_only():
    training = smooth(0, 10, (24, 24))
    synthetic = np.concatenate([smooth(1, 20, (24, 24)), training[3:5]])
    synthetic[0] = changed(training[0], np.random.default_rng(0), 30)
    found = search_copies(synthetic, training, ["one"] * 10, None, None, WINDOW)
    assert sorted((one.row, one.real) for one in found.copies) == [(20, 3), (21, 4)]
    assert len(found.control.misfits) == 0


def test_chance_by_ranks_and_beyond_them():
    """Misfits whose true law is a power: the chance is never below the truth but in 1 of 20 draws of patients."""
    below = 0
    for seed in range(200):
        control = fitted_control(np.random.default_rng(seed).uniform(size=100) ** (1 / 10))
        below += control.chance(np.array([0.4]))[0] < 0.4**10
    assert below <= 20
    ranks = Control(np.array([0.2, 0.4, 0.6]), 0.0, 0.0)
    np.testing.assert_allclose(ranks.chance(np.array([0.1, 0.4, 0.9])), [1 / 4, 3 / 4, 1])
    np.testing.assert_allclose(ranks.share(np.array([0.1, 0.4, 0.9])), [0, 2 / 3, 1])


def test_refuses_unequal_shapes():
    with pytest.raises(ValueError, match="cannot be laid over"):
        Searched(smooth(0, 3, (24, 24)), WINDOW).nearest(smooth(0, 3, (25, 24)))
