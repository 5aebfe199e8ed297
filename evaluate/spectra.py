"""Spectra of patches: peaks where upsampling leaves them, and noise power by frequency. Pure functions of arrays.

Patches are HU, (N, H, W) or (N, D, H, W), clipped to a window. Before they are transformed, each loses its best second-order
polynomial, which is anatomy and no texture, and fades out towards its borders, which would leak into every frequency.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, product

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Floats = NDArray[np.floating]

LEAST_PIXELS = 16  # along an axis: below, 1/4 and 1/2 cycles a pixel are not told apart
MOST_BANDS = 8
UPSAMPLING = (0.0, 0.25, 0.5, -0.25)  # cycles a pixel
BATCH = 64  # patches transformed at a time, so memory does not grow with the set
ROUNDING = 1 / 12  # HU^2: what rounding to whole HU adds to any patch; nothing below it is measured


def upsampling_frequencies(shape: Sequence[int]) -> list[tuple[float, ...]]:
    """Combinations of 0, 1/4, 1/2 and -1/4 cycles a pixel, without 0 and without opposites of one another."""
    found: list[tuple[float, ...]] = []
    for one in product(*_bases(shape)):
        opposite = tuple(f if f in (0, 0.5) else -f for f in one)
        if any(one) and opposite not in found:
            found.append(one)
    if not found:
        raise ValueError(
            f"patches of {tuple(shape)} are too small to look for a checkerboard: {LEAST_PIXELS} pixels along an axis are the least"
        )
    return found


def upsampling_peaks(hu: NDArray, window: tuple[float, float]) -> tuple[Floats, Floats]:
    """At each of `upsampling_frequencies`, log2 of each patch's power over what is around it, and of its power, HU^2; (N, F) both.

    Around: a quadratic through the log power 2 and 3 steps of 1/n away, along each axis of n pixels
    and between. Patches are detrended and tapered.
    """
    shape, d = hu.shape[1:], hu.ndim - 1
    chosen = [tuple(UPSAMPLING.index(f) for f in one) for one in upsampling_frequencies(shape)]
    steps = [np.arange(-3, 4) if n >= LEAST_PIXELS else np.zeros(1) for n in shape]
    bases = _bases(shape)
    waves = []
    for n, base, step in zip(shape, bases, steps, strict=True):
        cycles = np.add.outer(base, step / n).ravel()
        waves.append(np.exp(-2j * np.pi * np.outer(cycles, np.arange(n))).astype(np.complex64))
    weights = _peak_weights(steps)
    rounding = np.float32(ROUNDING * _taper_power(shape))
    peaks, power = [], []
    for some in _detrended_and_tapered(hu, window):
        spectrum: NDArray = some
        for axis, wave in enumerate(waves, start=1):
            spectrum = np.moveaxis(np.tensordot(spectrum, wave, (axis, 1)), -1, axis)
        # (N, base * offset, base * offset ...) => (N, base, base ..., offsets)
        split = [size for base, step in zip(bases, steps, strict=True) for size in (len(base), len(step))]
        logs = np.log2(np.square(np.abs(spectrum)) + rounding).reshape(-1, *split)
        logs = logs.transpose(0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2)).reshape(len(logs), *split[::2], -1)
        logs = np.stack([logs[(slice(None), *one)] for one in chosen], axis=1)
        peaks.append(logs @ weights)
        power.append(logs[..., weights == 1][..., 0])
    return np.concatenate(peaks), np.concatenate(power)


def wave_amplitude(power: Floats, shape: Sequence[int]) -> Floats:
    """HU of the cosine that has so much power, (F,), at each of `upsampling_frequencies` of a patch of that shape; peak, not peak to peak."""
    # A real wave splits its power between a frequency and its opposite, unless they are the same.
    halved = np.array([2 - all(f in (0, 0.5) for f in one) for one in upsampling_frequencies(shape)])
    return halved * np.sqrt(power) / np.prod([_taper(n).sum() for n in shape])


def band_edges(shape: Sequence[int], spacing_mm: Sequence[float]) -> Floats:
    """Edges of at most 8 bands of equal width in cycles/mm, from 0 to the Nyquist frequency of the finest axis."""
    mm, pixels = min(zip(spacing_mm, (-n for n in shape), strict=True))
    return np.linspace(0, 0.5 / mm, min(MOST_BANDS, -pixels // 2) + 1)


def noise_power_spectrum(hu: NDArray, spacing_mm: Sequence[float], window: tuple[float, float]) -> Floats:
    """Each patch's noise power, radially averaged over the bands of `band_edges`, float64 (N, bands), HU^2 mm^2 (mm^3 in 3-D).

    Squared DFT of the detrended patch times voxel size over the number of voxels (ICRU Report 87,
    2012; IEC 62220-1: second-order detrending), so white noise has its variance times the voxel's
    size. A taper, whose mean square is divided out, keeps edges of the patch from leaking: a patch
    is no uniform phantom, and at low frequencies this is the power of anatomy.
    """
    frequency = np.meshgrid(*(np.fft.fftfreq(n, mm) for n, mm in zip(hu.shape[1:], spacing_mm, strict=True)), indexing="ij")
    edges = band_edges(hu.shape[1:], spacing_mm)
    band = np.digitize(np.linalg.norm(frequency, axis=0), edges * (1 + 1e-9), right=True).ravel()
    average = (band[:, None] == np.arange(1, len(edges))).astype(np.float32)  # 0 Hz and the corners belong to no band
    average /= average.sum(0)
    scale = np.prod(spacing_mm) / _taper_power(hu.shape[1:])
    return np.concatenate([
        np.square(np.abs(fft.fftn(some, axes=range(1, hu.ndim)))).reshape(len(some), -1) @ average
        for some in _detrended_and_tapered(hu, window)
    ]).astype(np.float64) * scale  # fmt: skip


def _bases(shape: Sequence[int]) -> list[tuple[float, ...]]:
    """What is looked at along each axis: the frequencies of upsampling, or 0 alone where too few pixels tell them apart."""
    return [UPSAMPLING if n >= LEAST_PIXELS else UPSAMPLING[:1] for n in shape]


def _detrended_and_tapered(hu: NDArray, window: tuple[float, float]) -> Iterator[Floats]:
    """Batches of patches, float32, less their best second-order polynomial, fading out towards their borders."""
    shape = hu.shape[1:]
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    terms = [np.ones(shape), *axes, *(a * b for a, b in combinations_with_replacement(axes, 2))]
    basis = np.linalg.qr(np.stack([term.ravel() for term in terms], axis=1))[0].astype(np.float32)
    taper = np.ones(shape, np.float32)
    for axis, n in enumerate(shape):
        taper *= _taper(n).astype(np.float32).reshape(-1, *[1] * (len(shape) - axis - 1))
    for start in range(0, len(hu), BATCH):
        flat = np.clip(hu[start : start + BATCH], *window).astype(np.float32).reshape(-1, len(basis))
        yield (flat - flat @ basis @ basis.T).reshape(-1, *shape) * taper


def _taper(n: int) -> Floats:
    """Hann's, periodic: a wave leaks into the two frequencies beside it and into no other."""
    return np.sin(np.pi * np.arange(n) / n) ** 2


def _taper_power(shape: Sequence[int]) -> float:
    """The taper's squares, summed over a patch."""
    return float(np.prod([np.square(_taper(n)).sum() for n in shape]))


def _peak_weights(steps: Sequence[NDArray]) -> Floats:
    """Weights, (offsets,), of log power: 1 at the frequency itself, less what a quadratic through the ring around it gives there.

    steps: the offsets along each axis. The ring is 2 or 3 steps away: nearer ones hold what the taper leaks of a peak.
    """
    grid = np.meshgrid(*steps, indexing="ij")
    offsets = np.stack([one.ravel() for one in grid if np.ptp(one)], axis=1)
    away = np.abs(offsets).max(1)
    pairs = combinations_with_replacement(offsets.T, 2)
    terms = np.column_stack([np.ones(len(offsets)), offsets, *(a * b for a, b in pairs)])
    weights = np.where(away == 0, 1.0, 0.0)
    weights[away >= 2] = -np.linalg.pinv(terms[away >= 2])[0]  # the constant term is the value at the frequency itself
    return weights
