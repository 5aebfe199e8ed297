"""Radiomics: equal to SciPy, scikit-image and plain loops, finite, and of each patch alone."""

import itertools
import re

import numpy as np
import pytest

from evaluate import radiomics as module
from evaluate.features import radiomics
from evaluate.radiomics import radiomic_features

WINDOW = (-1000.0, 400.0)


def patches(seed, n, shape=(20, 24)):
    return np.random.default_rng(seed).integers(-1200, 600, (n, *shape)).astype(np.int16)


@pytest.mark.parametrize(("shape", "spacing_mm"), [((20, 24), (0.7, 0.7)), ((10, 12, 14), (1.2, 0.7, 0.7)), ((5, 5), (1.0, 1.0))])
def test_radiomics_are_finite_named_and_of_each_patch_alone(shape, spacing_mm):
    extractor = radiomics(spacing_mm, WINDOW)
    hu = patches(0, 300, shape)
    hu[0] = -1000  # flat patches are where variances divide by 0
    together = extractor.compute(hu)
    assert together.shape == (300, len(extractor.feature_names))
    assert together.dtype == np.float64
    assert np.isfinite(together).all()
    assert extractor.spacing_mm == spacing_mm
    alone = np.concatenate([extractor.compute(hu[n : n + 1]) for n in (0, 7, 280)])
    assert alone == pytest.approx(together[[0, 7, 280]], rel=1e-9, abs=1e-9)


def test_every_feature_is_in_the_table():
    table = module.__doc__.split("\n\n")[2]
    named = re.sub(r"\d", "", " ".join(radiomics((1.0, 1.0), WINDOW).feature_names)).split()
    assert len(named) == 44
    told = re.sub(r"\d", "", table)
    for name in named:
        stem = name.removeprefix("lesion_") if name.startswith("lesion_") else name
        last = "_" + stem.rsplit("_", 1)[-1]
        assert stem in told or last in told, f"{name} is not in the table of {module.__file__}"


def test_radiomics_see_hu_through_the_window_only():
    hu = patches(0, 8)
    extractor = radiomics((0.7, 0.7), WINDOW)
    assert (extractor.compute(hu) == extractor.compute(np.clip(hu, -1000, 400))).all()
    assert (extractor.compute(hu) != extractor.compute((hu // 2).astype(np.int16))).any()


def test_cooccurrence_equals_scikit_image():
    from skimage.feature import graycomatrix, graycoprops

    hu = patches(1, 3)
    found = radiomic_features(hu, (1.0, 1.0), WINDOW)
    for n, patch in enumerate(hu):
        counts = graycomatrix(levels_of(patch), [1], [0, np.pi / 2], levels=16, symmetric=True).sum((2, 3))
        matrix = (counts / counts.sum())[:, :, None, None]
        for name in ("contrast", "homogeneity", "energy", "correlation"):
            assert found[f"cooccurrence_{name}"][n] == pytest.approx(graycoprops(matrix, name)[0, 0])


def test_cooccurrence_of_a_volume_equals_pyradiomics_definitions_in_a_loop():
    hu = patches(2, 1, (4, 5, 6))
    level = levels_of(hu[0])
    p = np.zeros((16, 16))
    for here in itertools.product(*map(range, level.shape)):
        for step in np.eye(3, dtype=int):
            there = tuple(here + step)
            if all(t < n for t, n in zip(there, level.shape, strict=True)):
                p[level[here], level[there]] += 1
                p[level[there], level[here]] += 1
    p /= p.sum()
    i, j = np.indices(p.shape)
    mean = (p * i).sum()
    variance = (p * np.square(i - mean)).sum()
    found = radiomic_features(hu, (1.0, 1.0, 1.0), WINDOW)
    assert found["cooccurrence_contrast"][0] == pytest.approx((p * np.square(i - j)).sum())
    assert found["cooccurrence_homogeneity"][0] == pytest.approx((p / (1 + np.square(i - j))).sum())  # pyradiomics' Idm
    assert found["cooccurrence_energy"][0] ** 2 == pytest.approx(np.square(p).sum())  # its JointEnergy
    assert found["cooccurrence_correlation"][0] == pytest.approx(((p * i * j).sum() - mean**2) / variance)


def test_intensity_equals_scipy():
    from scipy import stats

    hu = np.clip(patches(2, 4), *WINDOW).astype(np.int16)
    flat = hu.reshape(4, -1).astype(float)
    found = radiomic_features(hu, (1.0, 1.0), WINDOW)
    assert found["mean"] == pytest.approx(flat.mean(1))
    assert found["sd"] == pytest.approx(stats.tstd(flat, axis=1, ddof=0))
    assert found["skewness"] == pytest.approx(stats.skew(flat, axis=1))
    assert found["kurtosis"] == pytest.approx(stats.kurtosis(flat, axis=1, fisher=False))
    for percent in (5, 25, 50, 75, 95):
        assert found[f"p{percent:02d}"] == pytest.approx(np.percentile(flat, percent, axis=1))
    shares = [np.histogram(row, 32, WINDOW)[0] / row.size for row in flat]
    assert found["entropy"] == pytest.approx([stats.entropy(s, base=2) for s in shares])


@pytest.mark.parametrize(("shape", "spacing_mm"), [((11, 12), (0.8, 0.6)), ((7, 8, 9), (1.5, 0.7, 0.7))])
def test_shells_edges_and_local_texture_equal_plain_loops(shape, spacing_mm):
    hu = patches(3, 2, shape)
    found = radiomic_features(hu, spacing_mm, WINDOW)
    for n, patch in enumerate(np.clip(hu, *WINDOW).astype(float)):
        rings = [[] for _ in range(7)]
        radius = min(side * mm / 2 for side, mm in zip(shape, spacing_mm, strict=True))
        for place in itertools.product(*map(range, shape)):
            away = [(p - (side - 1) / 2) * mm for p, side, mm in zip(place, shape, spacing_mm, strict=True)]
            rings[min(6, int(np.hypot.reduce(away) / radius * 6))].append(patch[place])
        for ring in range(6):
            assert found[f"shell{ring}_mean"][n] == pytest.approx(np.mean(rings[ring]) if rings[ring] else 0)
            assert found[f"shell{ring}_sd"][n] == pytest.approx(np.std(rings[ring]) if rings[ring] else 0)

        slope = np.sqrt(np.square(np.gradient(patch, *spacing_mm)).sum(0))
        assert found["gradient_mean"][n] == pytest.approx(slope.mean())
        assert found["gradient_sd"][n] == pytest.approx(slope.std())
        assert found["gradient_p90"][n] == pytest.approx(np.percentile(slope, 90))

        around = np.lib.stride_tricks.sliding_window_view(np.pad(patch, 1, mode="symmetric"), (3,) * patch.ndim)
        local = around.std(tuple(range(-patch.ndim, 0)))
        assert found["local_sd_mean"][n] == pytest.approx(local.mean())
        assert found["local_sd_spread"][n] == pytest.approx(local.std())


def test_band_energies_equal_a_plain_fourier_sum():
    hu = patches(4, 1, (8, 10))
    found = radiomic_features(hu, (1.0, 1.0), WINDOW)
    patch = np.clip(hu[0], *WINDOW).astype(float)
    y, x = np.indices(patch.shape)
    hann = np.square(np.sin(np.pi * (y + 1) / 9)) * np.square(np.sin(np.pi * (x + 1) / 11))
    windowed = (patch - patch.mean()) * hann
    bands = [[] for _ in range(6)]
    for v, u in itertools.product(range(8), range(6)):  # of the other half of u the power is the same
        fv, fu = (v if v < 4 else v - 8) / 8, u / 10
        power = abs((windowed * np.exp(-2j * np.pi * (fv * y + fu * x))).sum()) ** 2 / patch.size
        bands[min(5, int(np.hypot(fv, fu) / 0.5 * 6))].append(power)
    for n, powers in enumerate(bands):
        assert found[f"band{n}_log_energy"][0] == pytest.approx(np.log10(1 + np.mean(powers)))


def test_a_ramp_has_its_slope_and_a_checkerboard_its_frequency():
    ramp = np.broadcast_to(np.arange(32) * 10 - 900, (1, 32, 32)).astype(np.int16)
    found = radiomic_features(ramp, (1.0, 2.0), WINDOW)
    assert found["gradient_mean"] == pytest.approx(10 / 2)
    assert found["gradient_sd"] == pytest.approx(0, abs=1e-9)
    board = (-300 + 50 * (np.indices((1, 32, 32)).sum(0) % 2 * 2 - 1)).astype(np.int16)
    found = radiomic_features(board, (1.0, 1.0), WINDOW)
    bands = [found[f"band{n}_log_energy"][0] for n in range(6)]
    assert int(np.argmax(bands)) == 5


def levels_of(hu):
    """Sixteen gray levels of the window."""
    gray = (np.clip(hu, *WINDOW) - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    return np.minimum((gray * 16).astype(np.uint8), 15)
