"""A look at samples while a model is trained: distances that order models as they should, and say so little as to be trusted."""

import numpy as np
import pytest

from evaluate.distances import frechet_distance, kernel_distance
from evaluate.features import radiomics
from evaluate.validation import LEAST, ValidationDistances

WINDOW = (-1000.0, 400.0)
OVERALL, KERNEL, FLOOR = "validation/frechet_radiomics", "validation/kernel_radiomics", "validation/floor/frechet_radiomics"
from_centre = np.hypot(*np.meshgrid(*[np.arange(16) - 7.5] * 2))


def nodules(count, seed, hu=100, largest=6.0):
    """Discs of this HU in lung, int16 (count, 16, 16)."""
    rng = np.random.default_rng(seed)
    radii = rng.uniform(2, largest, count)[:, None, None]
    return (np.where(from_centre < radii, hu, -850) + rng.normal(0, 30, (count, 16, 16))).astype(np.int16)


def distances(held_out, labels=None, patients=None, training=None, spacing_mm=(1.0, 1.0)):
    count = len(held_out)
    labels = ["nodule"] * count if labels is None else labels
    patients = [f"p{n // 4}" for n in range(count)] if patients is None else patients
    training = nodules(80, 9) if training is None else training
    return ValidationDistances(training, held_out, labels, patients, spacing_mm, WINDOW, np.random.default_rng(0))


def test_values_are_those_of_the_distances_in_features_standardised_by_training_patches():
    held_out, drawn, training = nodules(60, 1), nodules(50, 2, 50), nodules(80, 3)
    found = distances(held_out, training=training)(drawn, ["nodule"] * 50)
    scale, real, synthetic = (radiomics((1.0, 1.0), WINDOW).compute(hu) for hu in (training, held_out, drawn))
    real, synthetic = ((x - scale.mean(0)) / scale.std(0) for x in (real, synthetic))
    assert found[OVERALL] == pytest.approx(frechet_distance(real, synthetic), rel=1e-6)
    assert found[KERNEL] == pytest.approx(kernel_distance(real, synthetic), rel=1e-6)
    assert set(found) == {OVERALL, KERNEL, FLOOR}


def test_nearer_samples_have_the_smaller_distance():
    look = distances(nodules(60, 1))
    right, paler, black = (look(x, ["nodule"] * 60) for x in (nodules(60, 2), nodules(60, 2, -100), np.full((60, 16, 16), -1000, np.int16)))
    for measure in (OVERALL, KERNEL):
        assert right[measure] < paler[measure] < black[measure]
    assert right[FLOOR] == paler[FLOOR] == look.floor[FLOOR]
    assert right[OVERALL] < 3 * right[FLOOR]
    assert look.measure == "frechet_radiomics"
    same = look(nodules(60, 1), ["nodule"] * 60)
    assert same[OVERALL] == pytest.approx(0, abs=1e-6)


def test_classes_with_enough_patches_stand_beside_the_whole():
    labels = ["bright"] * 30 + ["dark"] * 30 + ["rare"] * (LEAST - 1)
    held_out = np.concatenate([nodules(30, 1), nodules(30, 2, -400), nodules(LEAST - 1, 3, 300)])
    look = distances(held_out, labels)
    samples = np.concatenate([nodules(30, 4), nodules(30, 5, -400), nodules(30, 6, 300)])
    told = [*["bright"] * 30, *["dark"] * 30, *["rare"] * 30]
    right = look(samples, told)
    assert set(right) == {OVERALL, KERNEL, FLOOR, f"{OVERALL}/bright", f"{OVERALL}/dark"}
    swapped = look(samples, ["dark"] * 30 + ["bright"] * 30 + ["rare"] * 30)
    assert swapped[OVERALL] == right[OVERALL]
    for name in ("bright", "dark"):
        assert swapped[f"{OVERALL}/{name}"] > 2 * right[f"{OVERALL}/{name}"]
    few = look(samples, ["bright"] * (LEAST - 1) + ["rare"] * (90 - LEAST + 1))
    assert set(few) == {OVERALL, KERNEL, FLOOR}


@pytest.mark.parametrize(("training", "held_out"), [(LEAST - 1, 40), (40, LEAST - 1), (0, 0)])
def test_too_few_patches_are_refused(training, held_out):
    with pytest.raises(ValueError, match=f"{training} training and {held_out} validation patches, want 20 of each"):
        distances(nodules(held_out, 1), training=nodules(training, 2))


def test_one_validation_patient_is_refused():
    with pytest.raises(ValueError, match="2 patients or more, got 1"):
        distances(nodules(40, 1), patients=["p"] * 40)


def test_patches_of_unknown_spacing_and_of_three_dimensions():
    held_out = nodules(40, 1)
    assert (
        distances(held_out, spacing_mm=None)(nodules(40, 2), ["nodule"] * 40)
        == distances(held_out)(nodules(40, 2), ["nodule"] * 40)
    )  # fmt: skip
    cubes = [np.stack([nodules(30, seed + n) for n in range(8)], 1) for seed in (10, 20, 30)]
    found = distances(cubes[0], training=cubes[1], spacing_mm=(2.0, 1.0, 1.0))(cubes[2], ["nodule"] * 30)
    assert all(np.isfinite(value) for value in found.values())


def test_the_same_generator_gives_the_same_halves():
    assert distances(nodules(60, 1)).floor == distances(nodules(60, 1)).floor
