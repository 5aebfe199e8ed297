"""Artefacts: do synthetic patches have marks that real ones do not have?

Five checks: a checkerboard from upsampling, the noise power spectrum, and three of gray levels
(`gray_levels.py`): voxels at the window's ends, a shift or scaling of HU, levels that come in steps. Patches are int16 HU, (N, H, W) or
(N, D, H, W), one window and spacing for both sets; spectra and gray levels see them clipped to it.

Every difference is read against a floor: 100 times the real patients are halved, and what the two
halves differ by is measured in the same way. A check `differs` only where synthetic patches are
further from the real ones than any half of real patients was from the other, with one bar for all
frequencies, bands or numbers that a check looks at. A half holds fewer patients than the sets that
are compared, so the bar is high: of 400 times that real lung nodules of 12 to 206 patients were
compared with those of the rest of 413 patients, 7 times some check said that they differ. But
with few patients, no difference found is no proof that there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.gray_levels import GrayLevels, GrayMap, WindowEnds, gray_levels, gray_map, window_ends
from evaluate.halvings import Halvings, excess_of
from evaluate.intervals import Interval, Patients
from evaluate.spectra import ROUNDING, Floats, band_edges, noise_power_spectrum, upsampling_frequencies, upsampling_peaks, wave_amplitude


@dataclass(frozen=True)
class Peak:
    """One frequency that upsampling leaves, in cycles a pixel along each axis.

    real, synthetic: log2 of its power over what the frequencies around it suggest, 0 where nothing
    stands out; floor: of |synthetic - real|; amplitude_hu: of the wave that would explain the excess.
    """

    frequency: tuple[float, ...]
    real: float
    synthetic: float
    floor: float
    amplitude_hu: float


@dataclass(frozen=True)
class Checkerboard:
    """Peaks (or gaps) at 1/2 and 1/4 cycles a pixel, the most unusual first."""

    peaks: tuple[Peak, ...]
    differs: bool
    evidence: str


@dataclass(frozen=True)
class Band:
    """A band of frequency, cycles/mm, and the mean noise power in it, HU^2 mm^2 (2-D) or HU^2 mm^3 (3-D).

    ratio: synthetic over real, of geometric means over patches, for a few noisy scans carry a plain
    mean; interval: of the ratio, 95 %; floor: the factor, above 1, that halves of real patients stay within.
    quiet: share of synthetic patches with no more power than the quietest quarter of real ones have;
    quiet_floor: of |quiet - 1/4|.
    """

    low: float
    high: float
    real: float
    synthetic: float
    ratio: float
    interval: Interval
    floor: float
    quiet: float
    quiet_floor: float


@dataclass(frozen=True)
class NoisePower:
    """The noise power spectra, from low frequency to high."""

    bands: tuple[Band, ...]
    differs: bool
    evidence: str


@dataclass(frozen=True)
class Artefacts:
    """All checks, and on what they rest. halvings: of the real patients, behind each floor."""

    checkerboard: Checkerboard
    noise_power: NoisePower
    window_ends: WindowEnds
    gray_map: GrayMap
    gray_levels: GrayLevels
    real_patches: int
    real_patients: int
    synthetic_patches: int
    halvings: int

    @property
    def differing(self) -> tuple[str, ...]:
        """Names of the checks in which synthetic patches differ."""
        names = ("checkerboard", "noise_power", "window_ends", "gray_map", "gray_levels")
        return tuple(name for name in names if getattr(self, name).differs)


def find_artefacts(
    real: NDArray[np.int16],
    synthetic: NDArray[np.int16],
    spacing_mm: Sequence[float],
    window: tuple[float, float],
    patients: Patients,
    rng: np.random.Generator,
    draws: int = 100,
) -> Artefacts:
    """Every check of synthetic patches against real ones; patients: ids of the real patches.

    Raises ValueError if shapes differ, no axis has 16 pixels, or there are fewer than 8 real patients
    or synthetic patches.
    """
    if real.ndim not in (3, 4) or real.shape[1:] != synthetic.shape[1:] or len(spacing_mm) != real.ndim - 1:
        raise ValueError(
            "patches are (N, H, W) or (N, D, H, W) of one size with a spacing per axis, got "
            f"{real.shape} real, {synthetic.shape} synthetic and {len(spacing_mm)} spacings"
        )
    halvings = Halvings.draw(patients, len(real), len(synthetic), rng, draws)
    return Artefacts(
        checkerboard=checkerboard(real, synthetic, window, halvings),
        noise_power=noise_power(real, synthetic, spacing_mm, window, patients, halvings, rng),
        window_ends=window_ends(real, synthetic, window, halvings),
        gray_map=gray_map(real, synthetic, window, halvings),
        gray_levels=gray_levels(real, synthetic, window, halvings),
        real_patches=len(real),
        real_patients=halvings.patients,
        synthetic_patches=len(synthetic),
        halvings=draws,
    )


def checkerboard(real: NDArray, synthetic: NDArray, window: tuple[float, float], halvings: Halvings) -> Checkerboard:
    """Peaks and gaps in the power spectrum where upsampling by 2 and by 4 leaves them.

    At 1/2 and 1/4 cycles a pixel along each axis and in all combinations: transposed convolutions
    overlap unevenly with that period (Odena et al. 2016), and upsampling repeats the spectrum there
    (Durall et al. 2020). A peak is power over what the frequencies around it suggest, so that noise
    or blur, which change all of them, are no checkerboard. Axes of fewer than 16 pixels are left out.
    """
    frequencies = upsampling_frequencies(real.shape[1:])
    (r, _), (s, power) = (upsampling_peaks(hu, window) for hu in (real, synthetic))
    floor = halvings.floor(r)
    r, s, power = r.mean(0), s.mean(0), np.exp2(power.mean(0))
    amplitude = wave_amplitude(power * np.maximum(0, 1 - np.exp2(r - s)), real.shape[1:])
    excess = excess_of(s - r, floor)
    found = [Peak(frequencies[i], float(r[i]), float(s[i]), float(floor[i]), float(amplitude[i])) for i in np.argsort(-excess)]
    top, differs = found[0], bool((excess > 1).any())
    evidence = (
        f"At {' and '.join(f'{f:g}' for f in top.frequency)} cycles a pixel (along {_axes(len(top.frequency))}) the power of a typical patch is "
        f"{2**top.synthetic:.2g} times what the frequencies around it suggest in the synthetic set, {2**top.real:.2g} times in the real one: "
        f"a factor of {2 ** (top.synthetic - top.real):.2g}. Halves of real patients are within a factor of {2**top.floor:.2g}."
    )
    if differs and top.synthetic > top.real:
        evidence += f" A wave of about {top.amplitude_hu:.2g} HU would explain it."
    return Checkerboard(tuple(found), differs, evidence)


def noise_power(
    real: NDArray,
    synthetic: NDArray,
    spacing_mm: Sequence[float],
    window: tuple[float, float],
    patients: Patients,
    halvings: Halvings,
    rng: np.random.Generator,
) -> NoisePower:
    """The noise power spectra of both sets, band by band, their ratio, and how many patches are quiet.

    Scans differ so much in noise that a ratio hides what all synthetic patches have in common: with
    noise added, none is as quiet as the quietest quarter of the real ones. One bar holds for both.
    """
    edges = band_edges(real.shape[1:], spacing_mm)
    r, s = (noise_power_spectrum(hu, spacing_mm, window) + ROUNDING * np.prod(spacing_mm) for hu in (real, synthetic))
    log_r, log_s = np.log2(r), np.log2(s)
    quarter = np.quantile(log_r, 0.25, axis=0)
    both_r, both_s = (np.concatenate([logs, logs <= quarter], axis=1) for logs in (log_r, log_s))
    floor = halvings.floor(both_r)
    excess = excess_of(both_s.mean(0) - both_r.mean(0), floor)

    draws = _resampled_means(log_s, None, rng) - _resampled_means(log_r, patients, rng)
    intervals = np.exp2(np.quantile(draws, [0.025, 0.975], axis=0))
    count = len(quarter)
    bands = [
        Band(
            low=float(edges[n]),
            high=float(edges[n + 1]),
            real=float(r[:, n].mean()),
            synthetic=float(s[:, n].mean()),
            ratio=float(np.exp2(log_s[:, n].mean() - log_r[:, n].mean())),
            interval=Interval(float(intervals[0, n]), float(intervals[1, n])),
            floor=float(np.exp2(floor[n])),
            quiet=float((log_s[:, n] <= quarter[n]).mean()),
            quiet_floor=float(floor[count + n]),
        )
        for n in range(count)
    ]
    top, quietest = bands[int(excess[:count].argmax())], bands[int(excess[count:].argmax())]
    evidence = (
        f"Between {top.low:.2g} and {top.high:.2g} cycles/mm a typical synthetic patch has {top.ratio:.2g} times the noise power of a real one "
        f"(95 % interval {top.interval.low:.2g} to {top.interval.high:.2g}); halves of real patients are within a factor of {top.floor:.2g} there. "
        f"Between {quietest.low:.2g} and {quietest.high:.2g}, {100 * quietest.quiet:.0f} % of synthetic patches are as quiet as the quietest quarter of "
        f"real ones; halves of real patients are within {100 * quietest.quiet_floor:.0f} percentage points of one another."
    )
    return NoisePower(tuple(bands), bool((excess > 1).any()), evidence)


def _resampled_means(per_patch: Floats, patients: Patients, rng: np.random.Generator, draws: int = 400) -> Floats:
    """Means over patches (N, S) of patients drawn with replacement, (draws, S)."""
    index = np.arange(len(per_patch)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    count = int(index.max()) + 1
    weights = rng.multinomial(count, np.full(count, 1 / count), draws)[:, index].astype(np.float64)
    return weights @ per_patch / weights.sum(1, keepdims=True)


def _axes(count: int) -> str:
    return "rows and columns" if count == 2 else "slices, rows and columns"
