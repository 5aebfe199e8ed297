"""Planted copies are found; a generator that copies nobody is not accused."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from evaluate.memorisation import audit_memorisation, near_copy_test
from evaluate.neighbours import closeness_to, distance_to_another_patient

WINDOW = (-1000.0, 400.0)


def patches(seed, n, shape=(12, 10)):
    return np.random.default_rng(seed).integers(-1000, 400, (n, *shape)).astype(np.int16)


def smooth(seed, n, side=24):
    """Random patches with the grain of CT: blurred noise of 200 HU."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(n, side, side)), (0, 1.5, 1.5))
    return (noise / noise.std() * 200 - 400).clip(*WINDOW).astype(np.int16)


def ids(patients, each):
    return np.repeat([f"p{i}" for i in range(patients)], each)


def test_planted_copies_are_exactly_the_most_suspicious():
    training, held_out, synthetic = patches(0, 60), patches(1, 40), patches(2, 50)
    copied = {7: 3, 20: 41, 33: 8}
    for row, source in copied.items():
        synthetic[row] = training[source]
    synthetic[20] = synthetic[20][::-1]  # mirroring does not hide a copy
    synthetic[33] = np.clip(synthetic[33] + 5, -1000, 400)  # nor does a little noise
    found = audit_memorisation(synthetic, training, ids(20, 3), held_out, ids(20, 2), WINDOW, np.random.default_rng(0), draws=40)
    assert set(found.most_suspicious(3)) == set(copied)
    assert all(found.nearest_training[row] == source for row, source in copied.items())
    assert found.nearest_training_hu[7] == found.nearest_training_hu[20] == 0
    assert found.nearest_training_hu[33] == pytest.approx(5, abs=0.1)
    assert found.closeness[7] == 0
    assert found.closeness[33] < 0.05
    assert found.closeness[[r for r in range(50) if r not in copied]].min() > 0.8


def test_closeness_is_the_distance_over_that_of_the_nearest_training_patch_to_another_patient():
    training, held_out, synthetic = patches(0, 20), patches(1, 12), patches(2, 15)
    training[:2] = np.clip(training[:1] + np.arange(2)[:, None, None] * 90, -1000, 400)  # one much nearer to another patient than others
    synthetic[0] = np.clip(training[0] + 50, -1000, 400)
    found = audit_memorisation(synthetic, training, np.arange(20), held_out, ids(6, 2), WINDOW, np.random.default_rng(0), draws=10)
    spacing = distance_to_another_patient(training, np.arange(20), WINDOW)
    assert spacing[:2].max() < 0.5 * spacing[2:].min()
    np.testing.assert_allclose(found.closeness, closeness_to(synthetic, training, spacing, WINDOW))
    np.testing.assert_allclose(found.closeness, found.nearest_training_hu / spacing[found.nearest_training], rtol=1e-6)


def test_a_generator_that_repeats_its_training_set_stands_out_from_the_control():
    rng = np.random.default_rng(0)
    training, held_out = patches(0, 40), patches(1, 40)
    copies = np.clip(training + rng.integers(-100, 100, training.shape), -1000, 400).astype(np.int16)
    guilty = audit_memorisation(copies, training, ids(20, 2), held_out, ids(20, 2), WINDOW, rng, draws=60)
    assert guilty.authenticity == 0
    assert guilty.authenticity_held_out > 0.2
    assert guilty.nearer_to_training.interval.low > guilty.nearer_to_half.interval.high
    assert guilty.membership.auroc == 1
    assert np.isnan(guilty.membership.tpr_at_1_percent_fpr)  # 1 % of 40 is no patch

    fresh = audit_memorisation(patches(5, 80), training, ids(20, 2), held_out, ids(20, 2), WINDOW, rng, draws=60)
    assert fresh.nearer_to_half.interval.low < 0.5 < fresh.nearer_to_half.interval.high
    assert fresh.nearer_to_training.interval.low < 0.5 < fresh.nearer_to_training.interval.high
    assert fresh.membership.auroc_interval.low < 0.5 < fresh.membership.auroc_interval.high


def test_a_training_set_that_repeats_itself_still_shows_its_copies():
    training = np.concatenate([patches(0, 5), patches(0, 5)])  # p0 and p1 share every patch
    found = audit_memorisation(training[:2], training, ids(2, 5), None, None, WINDOW, np.random.default_rng(0))
    assert (found.closeness == 0).all()
    assert found.authenticity == 0


def test_without_held_out_patients_the_controls_are_absent():
    found = audit_memorisation(patches(0, 4), patches(1, 6), ["a"] * 6, None, None, WINDOW, np.random.default_rng(0))
    assert found.nearer_to_training is None
    assert found.membership is None
    assert found.nearest_held_out is None
    assert len(found.closeness) == 4


def test_the_audit_names_what_the_plain_distance_misses():
    """A moved and turned copy is no nearer than chance voxel by voxel; duplicates and repeats are named as well."""
    training, held_out, synthetic = smooth(0, 40), smooth(1, 30), smooth(2, 50)
    synthetic[4] = np.rot90(np.pad(training[9], 2, mode="reflect")[:24, 4:])  # moved by -2, 2
    synthetic[5] = synthetic[6]
    held_out[3] = training[1, ::-1]
    found = audit_memorisation(synthetic, training, ids(20, 2), held_out, ids(15, 2), WINDOW, np.random.default_rng(0), draws=20)
    assert [(one.row, one.real) for one in found.copies] == [(4, 9)]
    assert found.copies[0].exact
    assert found.closeness[4] > 0.5
    assert found.most_suspicious(2)[0] == 4
    assert [(one.row, one.real) for one in found.duplicates] == [(3, 1)]
    assert found.repeats == ((5, 6),)
    assert found.control_patients == 35
    assert found.least_close_control(1) == [3]
    assert found.control_nearest[3] == 1
    assert found.data_copying.z == pytest.approx(0, abs=3.5)


def test_samples_that_are_moved_copies_are_turned_down_whatever_comes_with_them():
    training, held_out, synthetic = smooth(0, 40), smooth(1, 30), smooth(2, 50)
    synthetic[7] = np.pad(training[3], 2, mode="reflect")[3:27, :24].T
    test = near_copy_test(training, ids(20, 2), held_out, WINDOW)
    found, passed = test(synthetic)
    spacing_hu = distance_to_another_patient(training, ids(20, 2), WINDOW)
    expected = found >= np.quantile(closeness_to(held_out, training, spacing_hu, WINDOW), 0.01)
    assert expected[7]
    expected[7] = False
    np.testing.assert_array_equal(passed, expected)
    for size in (1, 7):
        parts = [test(synthetic[n : n + size]) for n in range(0, 50, size)]
        np.testing.assert_array_equal(np.concatenate([one[0] for one in parts]), found)
        np.testing.assert_array_equal(np.concatenate([one[1] for one in parts]), passed)
