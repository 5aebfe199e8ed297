"""Artefact checks: oracles for what they measure, and whether each catches its artefact and nothing else."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from evaluate.artefacts import checkerboard, find_artefacts, noise_power
from evaluate.figures import noise_and_gray_levels
from evaluate.gray_levels import QUANTILES, affine_map, gray_levels, gray_map, quantiles, window_ends
from evaluate.halvings import Halvings
from evaluate.spectra import band_edges, noise_power_spectrum, upsampling_frequencies, upsampling_peaks, wave_amplitude

WINDOW = (-1000.0, 400.0)
PATIENTS = np.repeat(np.arange(40), 4)


def textured(count, rng, shape=(32, 32)):
    """Patches with a lesion-like blob, correlated texture and noise, at strengths that vary from patch to patch."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(np.square(a) for a in axes))
    size, height, noise = (rng.uniform(*span, (count, *[1] * len(shape))) for span in ((0.2, 0.7), (600, 900), (10, 30)))
    smooth = ndimage.gaussian_filter(rng.standard_normal((count, *shape)), (0, *[1.5] * len(shape)))
    fine = ndimage.gaussian_filter(rng.standard_normal((count, *shape)), (0, *[0.5] * len(shape)))
    return whole(-850 + height / (1 + np.exp((radius - size) * 12)) + 100 * smooth + noise * fine)


def whole(hu):
    return np.clip(np.rint(hu), *WINDOW).astype(np.int16)


def parity(shape):
    """+1 and -1 in turns along every axis."""
    return 1 - 2 * (np.indices(shape).sum(0) % 2)


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    return textured(len(PATIENTS), rng), textured(200, rng)


def found(real, synthetic):
    return find_artefacts(real, synthetic, (0.7,) * (real.ndim - 1), WINDOW, PATIENTS[: len(real)], np.random.default_rng(1), draws=60)


@pytest.mark.parametrize(("shape", "spacing_mm"), [((32, 32), (0.7, 0.7)), ((24, 40), (1.0, 0.5)), ((12, 20, 20), (1.5, 0.8, 0.8))])
def test_white_noise_has_its_variance_times_the_size_of_a_voxel_in_every_band(shape, spacing_mm):
    noise = whole(np.random.default_rng(0).normal(-300, 50, (300, *shape)))
    spectrum = noise_power_spectrum(noise, spacing_mm, WINDOW).mean(0)
    # Detrending takes what a second-order polynomial explains from the first band.
    assert spectrum[1:] == pytest.approx(2500 * np.prod(spacing_mm), rel=0.05)
    assert len(spectrum) == len(band_edges(shape, spacing_mm)) - 1
    assert band_edges(shape, spacing_mm)[-1] == pytest.approx(0.5 / min(spacing_mm))


def test_a_wave_has_its_power_in_the_band_of_its_frequency():
    spacing = 0.5
    wave = np.cos(2 * np.pi * np.arange(32) * 10 / 32)  # 10/32 cycles a pixel: 0.625 cycles/mm
    hu = whole(np.broadcast_to(-300 + 100 * wave, (3, 32, 32)))
    spectrum = noise_power_spectrum(hu, (spacing, spacing), WINDOW)[0]
    edges = band_edges((32, 32), (spacing, spacing))
    assert edges[spectrum.argmax()] < 0.625 <= edges[spectrum.argmax() + 1]
    assert spectrum.max() > 40 * np.delete(spectrum, [spectrum.argmax(), spectrum.argmax() + 1, spectrum.argmax() - 1]).max()


def test_a_linear_trend_is_no_noise():
    y, x = np.mgrid[:32, :32]
    hu = (-500 + 8 * x - 6 * y)[None].astype(np.int16)
    assert noise_power_spectrum(hu, (1.0, 1.0), WINDOW).max() < 1e-3


@pytest.mark.parametrize("shape", [(32, 32), (30, 34), (16, 16), (8, 20, 20)])
def test_a_pure_checkerboard_has_its_peak_at_one_half_along_all_axes(shape):
    rng = np.random.default_rng(0)
    noise = rng.normal(-300, 2, (60, *shape))
    frequencies = upsampling_frequencies(shape)
    expected = tuple(0.5 if n >= 16 else 0.0 for n in shape)
    board = parity([n if n >= 16 else 1 for n in shape])
    peaks, power = upsampling_peaks(whole(noise + 20 * board), WINDOW)
    assert frequencies[peaks.mean(0).argmax()] == expected
    assert np.delete(peaks.mean(0), peaks.mean(0).argmax()) == pytest.approx(0, abs=1.5)
    assert wave_amplitude(np.exp2(power.mean(0)), shape)[peaks.mean(0).argmax()] == pytest.approx(20, rel=0.02)


def test_a_wave_is_as_high_as_it_was_made():
    x = np.arange(32)
    for n, one in enumerate(upsampling_frequencies((32, 32))):
        wave = 20 * np.cos(2 * np.pi * np.add.outer(one[0] * x, one[1] * x))
        power = upsampling_peaks((wave - 300)[None], WINDOW)[1]
        assert wave_amplitude(np.exp2(power[0]), (32, 32))[n] == pytest.approx(20, rel=0.02)


def test_frequencies_of_upsampling_are_listed_once_each():
    assert len(upsampling_frequencies((32, 32))) == (4**2 - 4) // 2 + 3
    assert len(upsampling_frequencies((32, 32, 32))) == (4**3 - 8) // 2 + 7
    assert upsampling_frequencies((8, 32)) == [(0.0, 0.25), (0.0, 0.5)]
    with pytest.raises(ValueError, match="too small"):
        upsampling_frequencies((8, 8))


@pytest.mark.parametrize(
    "change", [lambda hu: ndimage.gaussian_filter(hu, (0, 0.8, 0.8)), lambda hu: hu + np.random.default_rng(3).normal(0, 60, hu.shape)]
)
def test_blur_and_noise_are_no_checkerboard(sets, change):
    real, synthetic = sets
    halvings = Halvings.draw(PATIENTS, len(real), len(synthetic), np.random.default_rng(0))
    assert not checkerboard(real, whole(change(synthetic.astype(float))), WINDOW, halvings).differs


def test_an_affine_map_is_recovered():
    real = np.linspace(-900, 100, 99)
    slope, offset, shift = affine_map(real, 0.875 * real + 225, WINDOW)
    assert (slope, offset) == pytest.approx((0.875, 225))
    assert shift == pytest.approx(np.mean(-0.125 * real + 225))


def test_quantiles_that_hit_the_window_do_not_bend_the_map():
    real = np.linspace(-950, 390, 99)
    slope, offset, _shift = affine_map(real, np.clip(1.2 * real + 50, *WINDOW), WINDOW)
    assert (slope, offset) == pytest.approx((1.2, 50))


def test_quantiles_are_numpys_to_a_level():
    hu = np.random.default_rng(0).integers(-900, 300, 20000)
    levels = np.arange(-1000, 401)
    histogram = np.bincount(hu + 1000, minlength=1401)
    assert quantiles(levels, histogram) == pytest.approx(np.quantile(hu, np.arange(1, 100) / 100), abs=1)


def test_nothing_differs_between_sets_of_one_kind(sets):
    artefacts = found(*sets)
    assert artefacts.differing == ()
    assert (artefacts.real_patches, artefacts.real_patients, artefacts.synthetic_patches) == (160, 40, 200)


CHANGES = {
    "blurred": ("noise_power", lambda hu: ndimage.gaussian_filter(hu, (0, 0.7, 0.7))),
    "noisy": ("noise_power", lambda hu: hu + np.random.default_rng(2).normal(0, 20, hu.shape)),
    "8 bits": ("gray_levels", lambda hu: np.floor((hu + 1000) / 1400 * 255) / 255 * 1400 - 1000),
    "wrong window": ("gray_map", lambda hu: np.clip((hu + 1400) / 1600, 0, 1) * 1400 - 1000),
    "nearest": ("checkerboard", lambda hu: hu[:, ::2, ::2].repeat(2, 1).repeat(2, 2)),
    "checkerboard of 5 HU": ("checkerboard", lambda hu: hu + 5 * parity(hu.shape[1:])),
    "saturated": ("window_ends", lambda hu: np.where(hu > -100, 400, hu)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_artefact_is_caught_by_its_check(sets, name):
    real, synthetic = sets
    check, change = CHANGES[name]
    artefacts = found(real, whole(change(synthetic.astype(float))))
    assert check in artefacts.differing
    assert getattr(artefacts, check).evidence.endswith(".")


def test_8_bits_show_their_step_and_the_window_its_map(sets):
    real, synthetic = sets
    halvings = Halvings.draw(PATIENTS, len(real), len(synthetic), np.random.default_rng(0))
    levels = gray_levels(real, whole(CHANGES["8 bits"][1](synthetic)), WINDOW, halvings)
    assert levels.step_hu == pytest.approx(1400 / 255, abs=0.02)
    assert levels.synthetic_spacing_hu == pytest.approx(1400 / 255, rel=0.1)
    assert levels.synthetic_comb > 0.8
    assert levels.real_comb < 0.05
    mapped = gray_map(real, whole(CHANGES["wrong window"][1](synthetic)), WINDOW, halvings)
    assert mapped.slope == pytest.approx(0.875, abs=0.05)
    assert mapped.shift_hu == pytest.approx(225 + 0.125 * 700, rel=0.2)


def test_a_voxel_that_three_unseen_patients_could_explain_is_no_artefact(sets):
    real, synthetic = sets
    halvings = Halvings.draw(PATIENTS, len(real), len(synthetic), np.random.default_rng(0))
    some, many = synthetic.copy(), synthetic.copy()
    some[:5, 0, 0] = 400  # 2.5 % of patches, where none of 40 patients has one: 3 in 40 are 7.5 %
    many[:100, 0, 0] = 400
    assert not window_ends(real, some, WINDOW, halvings).differs
    _, high, _ = window_ends(real, some, WINDOW, halvings).shares
    assert high.excess == pytest.approx((5 / 200) / (3 / 40))
    assert window_ends(real, many, WINDOW, halvings).differs


def test_quantiles_spread_a_levels_voxels_over_its_hu():
    levels = np.arange(-2.0, 3.0)
    assert quantiles(levels, np.array([0, 0, 1, 0, 0])) == pytest.approx(QUANTILES - 0.5)
    assert quantiles(levels, np.ones(5)) == pytest.approx(5 * QUANTILES - 2.5)


@pytest.mark.parametrize("end", WINDOW)
def test_saturated_voxels_are_no_steps_of_gray(sets, end):
    real, synthetic = sets
    halvings = Halvings.draw(PATIENTS, len(real), len(synthetic), np.random.default_rng(0))
    saturated = synthetic.copy()
    saturated[:, :16] = end
    rest, half = (gray_levels(real, one, WINDOW, halvings) for one in (synthetic[:, 16:], saturated))
    assert half.synthetic_comb == pytest.approx(rest.synthetic_comb, abs=1e-3)
    assert not half.differs


def test_halves_are_of_patients_and_the_second_has_no_more_patches_than_synthetic_ones():
    drawn = Halvings.draw(PATIENTS, 160, 10, np.random.default_rng(0), draws=20)
    assert drawn.first.shape == drawn.second.shape == (20, 160)
    assert drawn.patients == 40
    for first, second in zip(drawn.first, drawn.second, strict=True):
        assert ((first > 0).sum(), (second > 0).sum()) == (80, 10)
        assert (first.sum(), second.sum()) == (pytest.approx(1), pytest.approx(1))
        assert not set(PATIENTS[first > 0]) & set(PATIENTS[second > 0])
    with pytest.raises(ValueError, match="40 real patients and 7 synthetic patches"):
        Halvings.draw(PATIENTS, 160, 7, np.random.default_rng(0))


def test_a_floor_is_the_largest_excursion_of_any_number_in_the_spread_of_each():
    drawn, values = Halvings.draw(PATIENTS, 160, 100, np.random.default_rng(0)), np.random.default_rng(1).normal(size=(160, 3)) * [1, 10, 0]
    found = [[one @ values[:, n] - other @ values[:, n] for one, other in zip(drawn.first, drawn.second, strict=True)] for n in range(3)]
    spreads = [np.sqrt(np.mean(np.square(one))) for one in found]
    largest = max(abs(one) / spread for ones, spread in zip(found, spreads, strict=True) if spread for one in ones)
    assert drawn.floor(values) == pytest.approx([spread * largest for spread in spreads])


def test_more_real_voxels_outside_the_window_are_no_artefact(sets):
    real, synthetic = sets
    wide = real.copy()
    wide[:, 5, 5] = -1024
    halvings = Halvings.draw(PATIENTS, len(real), len(synthetic), np.random.default_rng(0))
    *_, outside = window_ends(wide, synthetic, WINDOW, halvings).shares
    assert (outside.real, outside.synthetic, outside.excess) == (1 / 1024, 0, 0)
    *_, outside = window_ends(real, wide, WINDOW, halvings).shares
    assert outside.excess > 1


def test_a_collapsed_set_differs_and_nothing_breaks(sets):
    real, _ = sets
    artefacts = found(real, np.full((20, 32, 32), -1000, np.int16))
    assert {"noise_power", "window_ends", "gray_map"} <= set(artefacts.differing)
    found(np.full_like(real, -700), np.full_like(real, -700))


def test_cubes():
    rng = np.random.default_rng(0)
    real, synthetic = (textured(n, rng, (16, 16, 16)) for n in (80, 60))
    assert found(real, synthetic).differing == ()
    assert "checkerboard" in found(real, whole(synthetic + 6 * parity((16, 16, 16)))).differing


def test_few_patients_or_unequal_sizes_are_refused(sets):
    real, synthetic = sets
    with pytest.raises(ValueError, match="7 real patients"):
        find_artefacts(real[:28], synthetic, (1.0, 1.0), WINDOW, PATIENTS[:28], np.random.default_rng(0))
    with pytest.raises(ValueError, match="of one size"):
        find_artefacts(real, synthetic[:, 1:], (1.0, 1.0), WINDOW, PATIENTS, np.random.default_rng(0))


def test_ratio_and_quiet_patches_of_the_noise_power(sets):
    real, synthetic = sets
    halvings = Halvings.draw(PATIENTS, len(real), len(synthetic), np.random.default_rng(0))

    def last_band(hu):
        return noise_power(real, hu, (0.7, 0.7), WINDOW, PATIENTS, halvings, np.random.default_rng(0)).bands[-1]

    same, noisy = last_band(synthetic), last_band(whole(CHANGES["noisy"][1](synthetic)))
    assert same.interval.low < same.ratio < same.interval.high
    assert same.quiet == pytest.approx(0.25, abs=same.quiet_floor)
    assert noisy.synthetic - same.synthetic == pytest.approx(20**2 * 0.7**2, rel=0.1)
    assert noisy.interval.low > 1
    assert noisy.quiet < 0.02
    # Twice the contrast has four times the power, in every patch.
    halves = whole(real * 0.5)
    doubled = noise_power(halves, whole(halves * 2.0), (0.7, 0.7), WINDOW, PATIENTS, halvings, np.random.default_rng(0))
    assert [band.ratio for band in doubled.bands] == pytest.approx([4] * 8, rel=1e-2)


def test_the_figure_is_a_png(sets):
    real, synthetic = sets
    halvings = Halvings.draw(PATIENTS, len(real), len(synthetic), np.random.default_rng(0))
    noise = noise_power(real, synthetic, (0.7, 0.7), WINDOW, PATIENTS, halvings, np.random.default_rng(0))
    picture = noise_and_gray_levels(noise, real, synthetic, WINDOW)
    assert Image.open(io.BytesIO(picture)).size == (770, 880)
