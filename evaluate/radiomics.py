"""Features of a patch that need no trained weights: intensity, layout, edges, texture, shape.

Patches are HU, (N, H, W) or (N, D, H, W), clipped to one window first. Every feature is computed
for each patch on its own, so a feature depends neither on the other patches nor on a batch size.

name                        unit      what it is, over the whole patch unless it says otherwise
mean, sd                    HU        mean and standard deviation (over N voxels, not N - 1)
skewness, kurtosis          1         third and fourth standardised moments; 3 is a Gaussian's kurtosis; an sd below 1 HU counts as 1
entropy                     bits      Shannon entropy of the histogram: 32 equal bins over the window
p05 p25 p50 p75 p95         HU        percentiles
shell0_mean ... shell5_mean HU        mean in six rings (shells in 3-D) of equal width around the centre, up to the nearest border
shell0_sd ... shell5_sd     HU        standard deviation in the same rings
centre_less_rim             HU        mean of the innermost ring less that of the outermost
gradient_mean, _sd, _p90    HU/mm     mean, spread and 90th percentile of the gradient's magnitude, by central differences
local_sd_mean, _spread      HU        mean and spread of the standard deviation in every voxel's 3-voxel neighbourhood
cooccurrence_contrast       levels^2  Haralick's features of neighbours one voxel apart: 16 gray levels over the window, both directions
cooccurrence_homogeneity    1         along every axis in one matrix; the energy is the root of the sum of squares
cooccurrence_energy         1
cooccurrence_correlation    1
band0_log_energy ... band5  log10     mean power in six bands of spatial frequency up to 0.5 cycles a voxel, under a Hann window:
                                      log10(1 + power in HU^2)
lesion_...                            the six of `attributes.py` (diameter_mm, mean_hu, sd_hu, roundness, sharpness_hu_per_mm,
                                      texture_hu), of the central component; 0 where no lesion stands out

Where these have a namesake, the tests hold them to it: SciPy's moments and entropy, NumPy's percentiles and gradient, scikit-image's
graycomatrix and graycoprops. By pyradiomics' definitions its Mean, StandardDeviation, Skewness and Kurtosis are ours over the whole
patch, its Contrast, Idm and Correlation are our contrast, homogeneity and correlation, and its JointEnergy is our energy squared; it
takes diagonal neighbours too, and bins of equal width in HU.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from evaluate.attributes import distance_to_centre_mm, gradient_magnitude, lesion_attributes

Floats = NDArray[np.float64]
Named = dict[str, Floats]

PERCENTILES = (5, 25, 50, 75, 95)
SHELLS = 6
HISTOGRAM_BINS = 32
GRAY_LEVELS = 16
FREQUENCY_BANDS = 6


def radiomic_features(hu: NDArray, spacing_mm: Sequence[float], window: tuple[float, float]) -> Named:
    """Named features of each patch, float64 (N,) each, all finite; the table above says what they are."""
    values = np.clip(hu, *window).astype(np.float64)
    gray = (values - window[0]) / (window[1] - window[0])
    shape = lesion_attributes(hu, spacing_mm, window)
    return {
        **_intensity(values, gray),
        **_shells(values, spacing_mm),
        **_edges(values, spacing_mm),
        **_local_texture(values),
        **_cooccurrence(gray),
        **_band_energies(values),
        **{f"lesion_{name}": np.nan_to_num(column) for name, column in shape.items()},
    }


def _intensity(values: Floats, gray: Floats) -> Named:
    flat = values.reshape(len(values), -1)
    mean, sd = flat.mean(1), flat.std(1)
    relative = (flat - mean[:, None]) / np.maximum(sd, 1.0)[:, None]  # a flat patch has no skew: below 1 HU is noise
    squared = np.square(relative)
    named = {
        "mean": mean,
        "sd": sd,
        "skewness": (squared * relative).mean(1),
        "kurtosis": (squared * squared).mean(1),
        "entropy": _entropy(_histogram(gray, HISTOGRAM_BINS)),
    }
    percentiles = np.percentile(flat, PERCENTILES, axis=1)
    return named | {f"p{p:02d}": row for p, row in zip(PERCENTILES, percentiles, strict=True)}


def _shells(values: Floats, spacing_mm: Sequence[float]) -> Named:
    """Mean and spread in rings of equal width around the centre, and how the innermost stands out."""
    distance = distance_to_centre_mm(values.shape[1:], spacing_mm)
    radius = min(n * mm / 2 for n, mm in zip(values.shape[1:], spacing_mm, strict=True))
    shell = np.minimum((distance / radius * SHELLS).astype(int), SHELLS)
    named, filled = {}, []
    for n in range(SHELLS):
        inside = values[:, shell == n]
        empty = not inside.shape[1]  # in a patch of a few voxels; such a ring is 0 in every patch
        named[f"shell{n}_mean"] = np.zeros(len(values)) if empty else inside.mean(1)
        named[f"shell{n}_sd"] = np.zeros(len(values)) if empty else inside.std(1)
        filled += [] if empty else [n]
    return named | {"centre_less_rim": named[f"shell{filled[0]}_mean"] - named[f"shell{filled[-1]}_mean"]}


def _edges(values: Floats, spacing_mm: Sequence[float]) -> Named:
    slope = gradient_magnitude(values, spacing_mm).reshape(len(values), -1)
    return {
        "gradient_mean": slope.mean(1),
        "gradient_sd": slope.std(1),
        "gradient_p90": np.percentile(slope, 90, axis=1),
    }


def _local_texture(values: Floats) -> Named:
    """Standard deviation in 3-voxel neighbourhoods: its mean and its spread over the patch."""
    around = (1, *[3] * (values.ndim - 1))
    # The mean of a patch changes no deviation, and taking it off first keeps digits.
    centred = values - values.mean(tuple(range(1, values.ndim)), keepdims=True)
    mean = ndimage.uniform_filter(centred, around)
    variance = ndimage.uniform_filter(np.square(centred), around) - np.square(mean)
    local = np.sqrt(variance.clip(min=0)).reshape(len(values), -1)
    return {"local_sd_mean": local.mean(1), "local_sd_spread": local.std(1)}


def _cooccurrence(gray: Floats) -> Named:
    """Haralick's contrast, homogeneity, energy and correlation of neighbours one voxel apart.

    Haralick et al. 1973, over 16 gray levels of the window, both directions along every axis
    pooled. As in scikit-image's graycomatrix (symmetric, normed) and graycoprops.
    """
    level = np.minimum((gray * GRAY_LEVELS).astype(np.int64), GRAY_LEVELS - 1)
    pairs = np.zeros((len(gray), GRAY_LEVELS, GRAY_LEVELS))
    for axis in range(1, gray.ndim):
        one = np.delete(level, -1, axis=axis).reshape(len(gray), -1)
        next_to_it = np.delete(level, 0, axis=axis).reshape(len(gray), -1)
        pairs += _count_per_patch(one * GRAY_LEVELS + next_to_it, GRAY_LEVELS**2).reshape(pairs.shape)
    pairs = pairs + pairs.transpose(0, 2, 1)
    p = pairs / pairs.sum((1, 2), keepdims=True)
    i = np.arange(GRAY_LEVELS, dtype=np.float64)
    difference = i[:, None] - i[None, :]
    marginal = p.sum(2)
    centred = i[None, :] - (marginal @ i)[:, None]
    variance = (marginal * np.square(centred)).sum(1)
    covariance = np.einsum("nij,ni,nj->n", p, centred, centred)
    # A patch of one gray level has no variance; its neighbours agree wholly.
    correlation = np.divide(covariance, variance, out=np.ones(len(p)), where=variance > 1e-12)
    return {
        "cooccurrence_contrast": (p * np.square(difference)).sum((1, 2)),
        "cooccurrence_homogeneity": (p / (1 + np.square(difference))).sum((1, 2)),
        "cooccurrence_energy": np.sqrt(np.square(p).sum((1, 2))),
        "cooccurrence_correlation": correlation,
    }


def _band_energies(values: Floats) -> Named:
    """log10 power in six bands of spatial frequency: the checkerboards of a generator sit in the last."""
    axes = tuple(range(1, values.ndim))
    shape = values.shape[1:]
    window = np.ones(shape)
    for axis, n in enumerate(shape):  # Hann: without it the patch's borders act as edges
        window *= np.hanning(n + 2)[1:-1].reshape([-1 if a == axis else 1 for a in range(len(shape))])
    centred = (values - values.mean(axes, keepdims=True)) * window
    power = np.square(np.abs(np.fft.rfftn(centred, axes=axes))) / np.prod(shape)
    frequencies = [np.fft.fftfreq(n) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1])]
    frequency = np.sqrt(sum(np.square(f) for f in np.meshgrid(*frequencies, indexing="ij")))
    band = np.minimum((frequency / 0.5 * FREQUENCY_BANDS).astype(int), FREQUENCY_BANDS - 1)
    voxels = [max(1, int((band == n).sum())) for n in range(FREQUENCY_BANDS)]  # a small patch has empty bands
    return {f"band{n}_log_energy": np.log10(1 + power[:, band == n].sum(1) / voxels[n]) for n in range(FREQUENCY_BANDS)}


def _histogram(gray: Floats, bins: int) -> Floats:
    """Share of voxels in each of `bins` equal parts of [0, 1], (N, bins)."""
    level = np.minimum((gray * bins).astype(np.int64), bins - 1).reshape(len(gray), -1)
    return _count_per_patch(level, bins) / level.shape[1]


def _entropy(shares: Floats) -> Floats:
    """Shannon entropy in bits of each row."""
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    return -(shares * logs).sum(1)


def _count_per_patch(codes: NDArray[np.int64], largest: int) -> Floats:
    """How often each code 0..largest-1 occurs in each row of codes, (N, largest)."""
    rows = np.arange(len(codes))[:, None] * largest
    counts = np.bincount((codes + rows).ravel(), minlength=len(codes) * largest)
    return counts.reshape(len(codes), largest).astype(np.float64)
