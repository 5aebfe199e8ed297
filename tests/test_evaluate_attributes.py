"""Lesion attributes of discs and balls whose answer is known, and tests between distributions."""

import numpy as np
import pytest
from scipy import stats

from evaluate.attributes import (
    ATTRIBUTES,
    _roundness,
    central_component,
    compare_attributes,
    compare_classes,
    corrected_together,
    holm,
    lesion_attributes,
)

WINDOW = (-1000.0, 400.0)


def lesions(diameters_mm, shape, spacing_mm, hu=50, around=-850, stretch=1.0):
    """A bright disc or ball in the middle of each patch, optionally stretched along the last axis."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    grid = list(np.meshgrid(*axes, indexing="ij"))
    grid[-1] = grid[-1] / stretch
    radius = np.sqrt(sum(np.square(g) for g in grid))
    return np.stack([np.where(radius <= d / 2, hu, around) for d in diameters_mm]).astype(np.int16)


@pytest.mark.parametrize(("shape", "spacing_mm"), [((48, 48), (0.7, 0.7)), ((40, 64), (1.0, 0.5)), ((20, 28, 28), (1.2, 0.9, 0.9))])
def test_a_disc_or_ball_has_its_diameter_density_and_roundness(shape, spacing_mm):
    diameters = [6.0, 9.0, 14.0]
    found = lesion_attributes(lesions(diameters, shape, spacing_mm), spacing_mm, WINDOW)
    assert found["diameter_mm"] == pytest.approx(diameters, rel=0.12)
    assert found["mean_hu"] == pytest.approx(50)
    assert found["sd_hu"] == pytest.approx(0, abs=1e-6)
    assert (found["roundness"] > 0.94).all()


def test_a_long_lesion_is_less_round_by_the_known_factor():
    # An ellipse with axes a and 2a: its area over its moment is 2 (a b) / (a^2 + b^2) = 4/5 of a disc's.
    found = lesion_attributes(lesions([10.0], (64, 64), (0.5, 0.5), stretch=2.0), (0.5, 0.5), WINDOW)
    assert found["roundness"] == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("voxels", "spacing_mm"), [((1, 1), (0.7, 0.7)), ((2, 3), (0.7, 0.8)), ((1, 4), (1.0, 0.5)), ((2, 2, 3), (1.2, 0.9, 0.9))]
)
def test_few_voxels_are_as_round_as_the_box_they_fill(voxels, spacing_mm):
    mask = np.zeros((1, *[8] * len(voxels)), bool)
    mask[(0, *[slice(2, 2 + n) for n in voxels])] = True
    sides = np.array(voxels) * spacing_mm
    dimensions, size = len(sides), sides.prod()
    radius = np.sqrt(size / np.pi) if dimensions == 2 else np.cbrt(3 * size / (4 * np.pi))
    ball, box = radius**2 * dimensions / (dimensions + 2), np.square(sides).sum() / 12  # mean squared distances to the middle
    assert _roundness(mask, spacing_mm) == pytest.approx(ball / box)


def test_a_blurred_edge_is_less_sharp_and_noise_is_texture():
    from scipy import ndimage

    sharp = lesions([10.0], (48, 48), (0.7, 0.7))
    soft = ndimage.gaussian_filter(sharp.astype(float), (0, 2, 2)).astype(np.int16)
    noisy = sharp + np.random.default_rng(0).normal(0, 40, sharp.shape).astype(np.int16)
    found = lesion_attributes(np.concatenate([sharp, soft, noisy]), (0.7, 0.7), WINDOW)
    assert found["sharpness_hu_per_mm"][1] < 0.6 * found["sharpness_hu_per_mm"][0]
    assert found["texture_hu"][2] > found["texture_hu"][0] + 10
    assert found["sd_hu"][2] == pytest.approx(40, rel=0.2)


def test_a_vessel_and_the_chest_wall_are_cut_off():
    plain = lesions([8.0], (48, 48), (0.7, 0.7))
    attached = plain.copy()
    attached[0, 23:25, 24:] = 50  # a vessel of two pixels
    attached[0, :, 40:] = 50  # the wall it runs into
    alone, cut = (lesion_attributes(hu, (0.7, 0.7), WINDOW)["diameter_mm"][0] for hu in (plain, attached))
    assert cut == pytest.approx(alone, rel=0.25)


def test_a_patch_where_nothing_stands_out_has_no_lesion():
    flat = np.full((2, 32, 32), -850, np.int16)
    flat[1] += np.random.default_rng(0).integers(0, 20, (32, 32)).astype(np.int16)
    assert not central_component(flat, (0.7, 0.7), WINDOW).any()
    assert all(np.isnan(column).all() for column in lesion_attributes(flat, (0.7, 0.7), WINDOW).values())


def test_a_patch_is_measured_alone():
    hu = np.random.default_rng(0).integers(-1000, 400, (6, 24, 24)).astype(np.int16)
    together = lesion_attributes(hu, (0.7, 0.7), WINDOW)
    for n in range(6):
        alone = lesion_attributes(hu[n : n + 1], (0.7, 0.7), WINDOW)
        assert all(alone[name][0] == pytest.approx(together[name][n], nan_ok=True) for name in ATTRIBUTES)


def test_values_outside_the_window_make_no_difference():
    inside = lesions([9.0], (32, 32), (0.7, 0.7), hu=400, around=-1000)
    outside = lesions([9.0], (32, 32), (0.7, 0.7), hu=3000, around=-1024)
    first, second = (lesion_attributes(hu, (0.7, 0.7), WINDOW) for hu in (inside, outside))
    assert all(first[name] == pytest.approx(second[name]) for name in ATTRIBUTES)


def test_comparison_finds_the_attribute_that_was_shifted():
    rng = np.random.default_rng(0)
    real = {"a": rng.standard_normal(200), "b": rng.standard_normal(200)}
    synthetic = {"a": rng.standard_normal(300), "b": rng.standard_normal(300) + 1}
    synthetic["b"][:5] = np.nan
    a, b = compare_attributes(real, synthetic, None, rng)
    assert a.p_holm > 0.05
    assert b.p_holm < 1e-6
    assert b.wasserstein == pytest.approx(1, abs=0.25)
    assert b.synthetic_measured == 295
    assert b.ks == pytest.approx(stats.ks_2samp(real["b"], synthetic["b"][5:]).statistic)


def test_many_patches_of_few_patients_are_not_many_witnesses():
    rng = np.random.default_rng(1)
    patient = rng.standard_normal(8)
    real = {"a": np.repeat(patient, 50) + 0.01 * rng.standard_normal(400)}
    synthetic = {"a": rng.standard_normal(400)}
    patients = np.repeat(np.arange(8), 50)
    assert compare_attributes(real, synthetic, None, rng)[0].p_value < 1e-3
    assert compare_attributes(real, synthetic, patients, rng)[0].p_value > 0.05


def labels(**counts):
    return np.repeat(list(counts), list(counts.values()))


def test_class_shares_are_compared_by_pearsons_chi_square():
    real, synthetic = labels(cyst=30, solid=70), labels(cyst=100, solid=100)
    found = compare_classes(real, synthetic, None, np.random.default_rng(0))
    assert found.counts == (("cyst", 30, 100), ("solid", 70, 100))
    # By hand: n (ad - bc)^2 over the product of the margins.
    assert found.chi_square == pytest.approx(300 * (30 * 100 - 70 * 100) ** 2 / (100 * 200 * 130 * 170))
    assert found.p_value == pytest.approx(stats.chi2.sf(found.chi_square, 1))
    same = compare_classes(labels(cyst=50, solid=50), synthetic, None, np.random.default_rng(0))
    assert same.p_value == pytest.approx(1)


def test_a_patient_is_one_witness_of_a_class():
    # 20 patients with 10 patches each, all of one class: 200 patches say much less than they seem to.
    patients = np.repeat(np.arange(20), 10)
    real = np.where(patients < 13, "cyst", "solid")
    synthetic = labels(cyst=100, solid=100)
    rng = np.random.default_rng(0)
    assert compare_classes(real, synthetic, None, rng).p_value < 0.01
    assert compare_classes(real, synthetic, patients, rng).p_value > 0.1


@pytest.mark.parametrize(
    ("real", "synthetic", "reason"),
    [
        (labels(cyst=3, solid=40), labels(cyst=2, solid=60), "too few"),
        (labels(solid=40), labels(solid=60), "one class"),
        (labels(cyst=30, solid=40), labels(lesion=60), "no class is in both"),
    ],
)
def test_no_chi_square_where_it_is_not_valid(real, synthetic, reason):
    found = compare_classes(real, synthetic, None, np.random.default_rng(0))
    assert found.p_value is None
    assert reason in found.reason


def test_classes_and_attributes_are_corrected_as_one_family():
    rng = np.random.default_rng(0)
    real = {"a": rng.standard_normal(200), "b": rng.standard_normal(200)}
    synthetic = {"a": rng.standard_normal(300), "b": rng.standard_normal(300) + 0.3}
    attributes = compare_attributes(real, synthetic, None, rng)
    classes = compare_classes(labels(cyst=30, solid=70), labels(cyst=100, solid=100), None, rng)
    both, corrected = corrected_together(attributes, classes)
    assert [one.p_holm for one in both] + [corrected.p_holm] == holm([one.p_value for one in attributes] + [classes.p_value])
    without = compare_classes(labels(solid=40), labels(solid=60), None, rng)
    assert corrected_together(attributes, without) == (tuple(attributes), without)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_refuses_a_spacing_that_does_not_fit():
    with pytest.raises(ValueError, match="2 spacings"):
        lesion_attributes(np.zeros((1, 4, 4, 4), np.int16), (1.0, 1.0), WINDOW)
