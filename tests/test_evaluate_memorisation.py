"""Planted copies are found; a generator that copies nobody is not accused."""

import numpy as np
import pytest

from evaluate.memorisation import (
    audit_memorisation,
    distance_to_another_patient,
    membership_inference,
    neighbours,
)

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


def test_hu_outside_the_window_makes_no_difference():
    real = patches(0, 3)
    bright = np.where(real > 390, 3000, real).astype(np.int16)
    clipped = np.where(real > 390, 400, real).astype(np.int16)
    assert (neighbours(bright, clipped, WINDOW).nearest_hu == 0).all()


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


def test_patches_of_the_same_patient_do_not_set_the_scale():
    base = patches(0, 6)
    training = np.concatenate([base, np.clip(base + 3, -1000, 400)])
    patients = np.tile(ids(6, 1), 2)
    assert distance_to_another_patient(training, patients, WINDOW).min() > 100
    assert distance_to_another_patient(training, None, WINDOW).max() < 4
    assert np.isfinite(distance_to_another_patient(training, ["one"] * 12, WINDOW)).all()


def test_without_held_out_patients_the_controls_are_absent():
    found = audit_memorisation(patches(0, 4), patches(1, 6), ["a"] * 6, None, None, WINDOW, np.random.default_rng(0))
    assert found.nearer_to_training is None
    assert found.membership is None
    assert found.nearest_held_out is None
    assert len(found.closeness) == 4


def test_membership_by_hand():
    got = membership_inference(np.array([1.0, 2.0, 5.0, 6.0]), None, np.array([3.0, 4.0]), None, np.random.default_rng(0), draws=10)
    assert got.auroc == 0.5
    hundred = np.arange(100.0)
    got = membership_inference(np.r_[hundred[:50] - 50, hundred[:50] + 1], None, hundred, None, np.random.default_rng(0), draws=10)
    assert got.tpr_at_1_percent_fpr == 0.5  # the 50 that are nearer than any of the others


def test_refuses_unequal_shapes():
    with pytest.raises(ValueError, match="no distance"):
        neighbours(patches(0, 2), patches(0, 2, (9, 9)), WINDOW)
