"""Distances against plain loops; rounding changes neither which patch is the nearest nor how near it is."""

import numpy as np
import pytest

from evaluate.neighbours import closeness_to, distance_to_another_patient, neighbours

WINDOW = (-1000.0, 400.0)


def patches(seed, n, shape=(12, 10)):
    return np.random.default_rng(seed).integers(-1000, 400, (n, *shape)).astype(np.int16)


def ids(patients, each):
    return np.repeat([f"p{i}" for i in range(patients)], each)


@pytest.mark.parametrize("shape", [(12, 10), (6, 7, 8)])
def test_distances_equal_the_plain_loops(shape):
    some, real = patches(0, 5, shape), patches(1, 4, shape)
    found = neighbours(some, real, WINDOW).hu
    for i, a in enumerate(some):
        for j, b in enumerate(real):
            best = min(np.sqrt(np.mean(np.square(np.flip(a, axes).astype(float) - b))) for axes in _subsets(range(len(shape))))
            assert found[i, j] == pytest.approx(best, rel=1e-5)


def _subsets(axes):
    axes = list(axes)
    return [[a for k, a in enumerate(axes) if bits >> k & 1] for bits in range(2 ** len(axes))]


def test_of_patches_that_differ_by_single_voxels_the_nearest_is_found_and_how_near():
    base = patches(0, 1, (32, 32))[0].clip(-900, 300)
    real = np.repeat(base[None], 30, axis=0)
    for n, patch in enumerate(real):
        patch.ravel()[: 30 - n] += 1  # the last differs in one voxel
    found = neighbours(base[None], real, WINDOW)
    assert found.nearest == [29]
    assert found.nearest_hu == pytest.approx(1 / 32)


def test_hu_outside_the_window_makes_no_difference():
    real = patches(0, 3)
    bright = np.where(real > 390, 3000, real).astype(np.int16)
    clipped = np.where(real > 390, 400, real).astype(np.int16)
    assert (neighbours(bright, clipped, WINDOW).nearest_hu == 0).all()


def test_patches_of_the_same_patient_do_not_set_the_scale():
    base = patches(0, 6)
    training = np.concatenate([base, np.clip(base + 3, -1000, 400)])
    patients = np.tile(ids(6, 1), 2)
    assert distance_to_another_patient(training, patients, WINDOW).min() > 100
    assert distance_to_another_patient(training, None, WINDOW).max() < 4
    assert np.isfinite(distance_to_another_patient(training, ["one"] * 12, WINDOW)).all()


def test_refuses_unequal_shapes():
    with pytest.raises(ValueError, match="no distance"):
        neighbours(patches(0, 2), patches(0, 2, (9, 9)), WINDOW)


def test_the_nearest_is_decided_by_subtraction_whatever_the_batch():
    """Real patches that hardly differ, more of them than there are others: products in float32 cannot tell which is the nearest."""
    rng = np.random.default_rng(0)
    real = np.clip(patches(0, 1, (16, 16)) + rng.integers(-1, 2, (60, 16, 16)), -1000, 400).astype(np.int16)
    some = np.clip(real[rng.integers(0, 60, 40)] + rng.normal(0, 2, (40, 16, 16)).round(), -1000, 400).astype(np.int16)
    whole = neighbours(some, real, WINDOW)
    exact = np.sqrt(np.square(some[:, None].astype(float) - real[None]).mean((2, 3)))
    np.testing.assert_array_equal(whole.nearest, exact.argmin(1))
    np.testing.assert_allclose(whole.nearest_hu, exact.min(1), rtol=1e-6)
    for size in (1, 3, 16):
        parts = [neighbours(some[n : n + size], real, WINDOW) for n in range(0, 40, size)]
        np.testing.assert_array_equal(np.concatenate([one.nearest_hu for one in parts]), whole.nearest_hu)


def test_closeness_by_hand():
    real = np.stack([np.full((8, 8), hu, np.int16) for hu in (0, 100, 100)])
    spacing_hu = distance_to_another_patient(real, None, WINDOW)
    np.testing.assert_array_equal(spacing_hu, [100, 0, 0])
    some = np.stack([np.full((8, 8), hu, np.int16) for hu in (30, 100, 90)])
    np.testing.assert_allclose(closeness_to(some, real, spacing_hu, WINDOW), [0.3, 0, np.inf])
