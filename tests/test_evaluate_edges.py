"""Rims, steps and smoothing of known strength around the edge of a support, and what is said of random fields without any."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from evaluate import seams
from evaluate.attributes import distance_to_centre_mm
from evaluate.edges import MEASURES, edge_measures, noise_kept, radial_profile
from evaluate.figures import edge_profile
from evaluate.seams import SEAMS, compare_edges, weighted_ks, weighted_medians

WINDOW = (-1000.0, 400.0)
SPACING = (0.8, 0.8)


def wide(values, dimensions=2):
    return np.reshape(values, (-1, *[1] * dimensions))


def fields(patients, each, rng, least_mm=2.5, most_mm=6.0):
    """Lesion-like blobs in correlated texture and noise; a patient's patches share their noise. Returns HU, radii, ids."""
    count = patients * each
    radius = rng.uniform(least_mm, most_mm, count)
    noise = rng.lognormal(3.2, 0.5, patients).repeat(each)
    texture, fine = (ndimage.gaussian_filter(rng.standard_normal((count, 32, 32)), (0, sigma, sigma)) for sigma in (1.5, 0.5))
    distance = distance_to_centre_mm((32, 32), SPACING)
    blob = wide(rng.uniform(500, 900, count)) / (1 + np.exp((distance - wide(radius)) / wide(rng.uniform(0.3, 1, count))))
    hu = blob - 850 + 150 * wide(rng.uniform(0.5, 2, count)) * texture + wide(noise) * fine
    return whole(hu), radius, np.arange(patients).repeat(each)


def whole(hu):
    return np.clip(np.rint(hu), *WINDOW).astype(np.int16)


def judged(real, composites, hu=None, seed=1, **options):
    """What is said of the composites, or of hu in their place."""
    measured = [edge_measures(x, r, SPACING, WINDOW) for x, r in ((real[0], real[1]), (composites[0] if hu is None else hu, composites[1]))]
    return compare_edges(*measured, (real[1], composites[1]), real[2], composites[2], np.random.default_rng(seed), draws=200, **options)


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    return fields(40, 2, rng), fields(40, 2, rng)


@pytest.mark.parametrize(("shape", "spacing_mm"), [((40, 40), (0.7, 0.7)), ((40, 64), (1.0, 0.6)), ((20, 32, 32), (1.4, 0.9, 0.9))])
def test_a_rim_has_the_height_it_was_made_with_and_a_hard_edge_its_step(shape, spacing_mm):
    distance = distance_to_centre_mm(shape, spacing_mm)
    edge_mm = 8.0
    away = (distance - edge_mm) * distance_to_centre_mm(shape, [1] * len(shape)) / np.maximum(distance, 1e-9)
    rim = np.where(np.abs(away) <= 1, -700, -750)
    disc = np.where(away <= 0, -600, -800)
    ramp = -900 + 10 * distance
    found = edge_measures(np.stack([rim, disc, ramp]), np.full(3, 4.0), spacing_mm, WINDOW, support=2.0)
    assert found["rim_hu"][0] == pytest.approx(50)
    assert found["rim_hu"][1:] == pytest.approx([0, 0], abs=11)  # the band has not just as many voxels on both sides
    assert found["radial_edge"][0] == pytest.approx(0, abs=6)
    # 200 HU over a band of two voxels, of which the central differences of the voxels beside it take a little.
    mm = np.mean(spacing_mm)
    assert found["radial_edge"][1] == pytest.approx(-200 / (2 * mm), rel=0.2)
    assert found["gradient_edge"][1] >= -found["radial_edge"][1]
    for zone in ("inside", "edge", "outside"):
        assert found[f"radial_{zone}"][2] == pytest.approx(10, rel=0.03)
        assert found[f"gradient_{zone}"][2] == pytest.approx(10, rel=0.03)
    assert found["radial_outside"][1] > found["radial_edge"][1] / 10


@pytest.mark.parametrize(("shape", "sigma"), [((48, 48), 30.0), ((16, 24, 24), 50.0)])
def test_white_noise_has_its_variance_in_every_zone(shape, sigma):
    noise = whole(np.random.default_rng(0).normal(-300, sigma, (80, *shape)))
    found = edge_measures(noise, np.full(80, 4.0), [1.0] * len(shape), WINDOW, support=1.5)
    for zone in ("inside", "edge", "outside"):
        assert np.median(found[f"noise_{zone}"]) == pytest.approx(sigma**2, rel=0.08)
    assert np.mean(found["noise_step"]) == pytest.approx(0, abs=0.06)


def test_noise_smoothed_inside_a_disc_keeps_the_share_that_its_weights_say():
    rng = np.random.default_rng(0)
    background = rng.normal(-500, 40, (150, 40, 40))
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    smooth = ndimage.convolve(background, weights[None])
    edge_mm = np.repeat([6.0, 9.0], 75)
    drawn = np.where(distance_to_centre_mm((40, 40), (0.8, 0.8)) <= wide(edge_mm), smooth, background)
    kept = noise_kept(whole(drawn), whole(background), edge_mm / 1.5, (0.8, 0.8), WINDOW)
    high_pass = np.pad(np.outer([-1, 2, -1], [-1, 2, -1]) / 6.0, 2)
    expected = np.square(ndimage.convolve(high_pass, weights, mode="constant")).sum() / np.square(high_pass).sum()
    assert np.median(kept) == pytest.approx(expected, rel=0.1)
    untouched = edge_measures(whole(drawn), edge_mm / 1.5, (0.8, 0.8), WINDOW)
    assert np.mean(untouched["noise_outside"]) == pytest.approx(1600, rel=0.05)
    assert np.median(untouched["noise_step"]) == pytest.approx(np.log2(expected), abs=0.2)
    assert noise_kept(whole(background), whole(background), edge_mm, (0.8, 0.8), WINDOW) == pytest.approx(1)


def test_an_outline_in_a_zone_is_little_noise():
    noise = np.random.default_rng(0).normal(-800, 20, (50, 40, 40))
    noise[:, :, 8:10] += 600  # a vessel, outside
    found = edge_measures(whole(noise), np.full(50, 5.0), SPACING, WINDOW)
    assert np.median(found["noise_outside"]) < 2 * 20**2  # the mean of squares is near 100 times as much


def test_zones_without_enough_voxels_are_not_measured():
    found = edge_measures(np.zeros((2, 16, 16), np.int16), np.array([0.5, 40.0]), (1.0, 1.0), WINDOW, support=np.array([1.0, 2.0]))
    assert np.isnan(found["noise_inside"]).tolist() == [True, False]
    assert np.isnan(found["gradient_outside"]).tolist() == [False, True]
    assert np.isnan(found["rim_hu"]).all()


CHANGES = {
    "rim of 40 HU": (("rim_hu",), lambda hu, away, other: hu + 40 * (np.abs(away) <= 0.8)),
    "hard-edged paste": (("gradient_edge",), lambda hu, away, other: np.where(away <= 0, hu, other)),
    "step of 100 HU": (("gradient_edge", "radial_edge"), lambda hu, away, other: hu + 100 * (away <= 0)),
    "smoothed inside": (("noise_step",), lambda hu, away, other: np.where(away <= 0, ndimage.gaussian_filter(hu, (0, 0.7, 0.7)), hu)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_seam_is_seen_where_it_was_made(sets, name):
    real, composites = sets
    expected, change = CHANGES[name]
    away = distance_to_centre_mm((32, 32), SPACING) - wide(1.5 * composites[1])
    other = np.random.default_rng(2).permutation(composites[0]).astype(float) + 150
    found = judged(real, composites, whole(change(composites[0].astype(float), away, other)))
    assert found.seam
    assert set(expected) <= set(found.seams)
    for one in found.tests:
        assert one.interval.low <= one.interval.high
        assert one.difference == pytest.approx(one.composite_median - one.real_median)


def test_untouched_fields_have_no_seam_but_by_chance():
    """About 1 set of 100 is expected to be said to have one: more than 3 of 40 has a chance below 0.1 %."""
    rng = np.random.default_rng(3)
    hu, radius, _ = fields(500, 2, rng)
    measured = {name: values.reshape(500, 2) for name, values in edge_measures(hu, radius, SPACING, WINDOW).items()}
    radius, ids = radius.reshape(500, 2), np.arange(40).repeat(2)
    seen = 0
    for seed in range(40):
        both = np.split(rng.choice(500, 80, replace=False), 2)
        real, composites = ({name: values[some].ravel() for name, values in measured.items()} for some in both)
        radii = (radius[both[0]].ravel(), radius[both[1]].ravel())
        seen += compare_edges(real, composites, radii, ids, ids, np.random.default_rng(seed), draws=100, halvings=50).seam
    assert seen <= 3


def test_lesions_of_another_size_are_matched_first(monkeypatch):
    rng = np.random.default_rng(4)
    real, large = fields(120, 1, rng), fields(60, 1, rng, least_mm=4.8)
    found = judged(real, large)
    assert found.strata > 1
    assert found.real_diameter_mm == pytest.approx(found.composite_diameter_mm, abs=0.4)
    assert not [one.name for one in found.tests if one.differs]
    monkeypatch.setattr(seams, "MOST_STRATA", 1)
    unmatched = judged(real, large)
    assert unmatched.composite_diameter_mm - unmatched.real_diameter_mm > 1.5
    assert [one.name for one in unmatched.tests if one.differs]


def test_what_is_not_at_the_edge_is_no_seam(sets):
    """Composites in quieter backgrounds differ, and are not said to have a seam."""
    real, composites = sets
    middle = composites[0].mean((1, 2), keepdims=True)
    found = judged(real, composites, whole(middle + 0.8 * (composites[0] - middle)))
    assert not found.seam
    rough = composites[0] + np.random.default_rng(0).normal(0, 60, composites[0].shape)
    differing = {one.name for one in judged(real, composites, whole(rough)).tests if one.differs}
    assert {"noise_inside", "noise_outside"} <= differing
    assert set(SEAMS) < set(MEASURES)


def test_intervals_resample_patients_not_patches(sets):
    real, composites = sets
    again = tuple(np.concatenate([one] * 6) for one in real)
    few, many = judged(real, composites), judged(again, composites)
    alone = judged((*again[:2], None), composites)
    for a, b, c in zip(few.tests, many.tests, alone.tests, strict=True):
        widths = [one.interval.high - one.interval.low for one in (a, b, c)]
        assert widths[1] == pytest.approx(widths[0], rel=0.35)
        assert widths[2] < widths[0]


def test_weighted_statistics_are_those_of_repeated_values():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=25).round(1), rng.normal(0.3, 1, 40).round(1)
    weights = rng.integers(0, 4, (30, 25)).astype(float)
    expected = [np.median(x.repeat(row.astype(int))) for row in weights]
    np.testing.assert_allclose(weighted_medians(x, weights), expected)
    np.testing.assert_allclose(weighted_medians(x, weights / 3), expected)
    assert np.isnan(weighted_medians(x, np.zeros((1, 25)))).all()
    for row in weights:
        assert weighted_ks(x, y, row) == pytest.approx(stats.ks_2samp(x.repeat(row.astype(int)), y).statistic)


def test_a_profile_is_the_mean_over_patients_at_each_distance():
    distance = distance_to_centre_mm((40, 40), SPACING)
    patients = np.repeat(np.arange(20), [1] * 10 + [9] * 10)
    level = np.where(patients < 10, 0.0, 20.0)  # patients count alike, whatever their patches
    hu = -900 + 20 * distance + wide(level)
    found = radial_profile(hu, np.full(len(hu), 5.0), SPACING, WINDOW, patients, support=1.5)
    middle = (found.edges[1:] + found.edges[:-1]) / 2 * 7.5
    np.testing.assert_allclose(found.mean[0][1:], -900 + 10 + 20 * middle[1:], atol=8)
    assert np.isnan(found.mean[0][0])  # four voxels
    np.testing.assert_allclose(found.mean[1][2:], 20, rtol=0.1)
    np.testing.assert_allclose((found.high - found.low)[0][1:], 2 * 1.96 * 10 * np.sqrt(20 / 19) / np.sqrt(20))
    noisy = radial_profile(hu + np.random.default_rng(0).normal(0, 25, hu.shape), np.full(len(hu), 5.0), SPACING, WINDOW, patients)
    np.testing.assert_allclose(noisy.mean[2][3:], 25, rtol=0.1)
    seven = patients < 7
    assert np.isnan(radial_profile(hu[seven], np.full(7, 5.0), SPACING, WINDOW, patients[seven]).mean).all()


def test_the_figure_is_a_png(sets):
    real, composites = (radial_profile(hu, radius, SPACING, WINDOW, ids) for hu, radius, ids in sets)
    picture = edge_profile({"real": real, "drawn": composites, "pasted": composites})
    assert Image.open(io.BytesIO(picture)).format == "PNG"
    assert picture != edge_profile({"real": real})


def test_what_does_not_fit_is_refused(sets):
    (hu, radius, ids), composites = sets
    with pytest.raises(ValueError, match="a radius per patch"):
        edge_measures(hu, radius[1:], SPACING, WINDOW)
    with pytest.raises(ValueError, match="5 voxels or more"):
        edge_measures(hu[:, :4], radius, SPACING, WINDOW)
    with pytest.raises(ValueError, match="background of each composite"):
        noise_kept(hu, hu[1:], radius, SPACING, WINDOW)
    with pytest.raises(ValueError, match="7 real patients"):
        judged((hu[:14], radius[:14], ids[:14]), composites)
