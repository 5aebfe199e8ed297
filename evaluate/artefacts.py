"""Artefacts: do synthetic patches have marks that real ones do not have?

Five checks: a checkerboard from upsampling, the noise power spectrum, voxels at the window's ends,
a shift or scaling of HU, and gray levels that come in steps. Patches are int16 HU, (N, H, W) or
(N, D, H, W), one window and spacing for both sets; spectra and gray levels see them clipped to it.

Every difference is read against a floor: 100 times the real patients are halved, and what the two
halves differ by is measured in the same way. A check `differs` only where synthetic patches are
further from the real ones than any half of real patients was from the other, with one bar for all
frequencies, bands or numbers that a check looks at. A half holds fewer patients than the sets that
are compared, so the bar is high: of 400 times that real lung nodules of 12 to 206 patients were
compared with those of the rest of 413 patients, 7 times some check said that they differ. But
with few patients, no difference found is no proof that there is none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from evaluate.intervals import Interval, Patients, halves_of_patients
from evaluate.spectra import ROUNDING, Floats, band_edges, noise_power_spectrum, upsampling_frequencies, upsampling_peaks, wave_amplitude

LEAST_PATIENTS = 8  # fewer have fewer than 35 halvings: too few for a floor
STEPS_HU = (2.0, 20.0)  # steps between gray levels that are looked for
QUANTILES = np.arange(1, 100) / 100


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
class EndShare:
    """The mean share of a patch's voxels that lie somewhere. excess: how far the sets are apart, in floors: over 1 they differ."""

    name: str
    real: float
    synthetic: float
    excess: float


@dataclass(frozen=True)
class WindowEnds:
    """Shares of voxels at or below the window's low end, at or above its high end, and outside of it."""

    shares: tuple[EndShare, ...]
    differs: bool
    evidence: str


@dataclass(frozen=True)
class GrayMap:
    """synthetic HU = slope * real HU + offset_hu, between the quantiles (1 to 99 %) of all voxels inside the window.

    shift_hu: the mean of synthetic less real quantiles; quantiles: (share, real HU, synthetic HU).
    """

    slope: float
    slope_floor: float
    offset_hu: float
    shift_hu: float
    shift_floor_hu: float
    quantiles: tuple[tuple[float, float, float], ...]
    differs: bool
    evidence: str


@dataclass(frozen=True)
class GrayLevels:
    """Distinct HU in the middle 98 % of all voxels, the mean spacing between them, and the comb they form.

    comb: how sharply the histogram repeats every step_hu, 0 (not) to 1 (nothing in between); floor:
    of |synthetic - real|.
    """

    real_levels: int
    synthetic_levels: int
    real_spacing_hu: float
    synthetic_spacing_hu: float
    step_hu: float
    real_comb: float
    synthetic_comb: float
    floor: float
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


@dataclass(frozen=True)
class Halvings:
    """Two halves of the real patients, many times over, as weights (halvings, N) whose products with per-patch values are means."""

    first: Floats
    second: Floats
    patients: int

    @classmethod
    def draw(cls, patients: Patients, real: int, synthetic: int, rng: np.random.Generator, draws: int = 100) -> "Halvings":
        """The second half is thinned to the number of synthetic patches where these are fewer.

        Raises ValueError if there are fewer than 8 patients or 8 synthetic patches.
        """
        count = real if patients is None else len(np.unique(np.asarray(patients)))
        if min(count, synthetic) < LEAST_PATIENTS:
            raise ValueError(
                f"{count} real patients and {synthetic} synthetic patches: artefacts are looked for with {LEAST_PATIENTS} or more of each"
            )
        weights = np.zeros((2, draws, real))
        for n in range(draws):
            a, b = halves_of_patients(patients, real, rng)
            b = rng.choice(b, min(len(b), synthetic), replace=False)
            weights[0, n, a], weights[1, n, b] = 1 / len(a), 1 / len(b)
        return cls(weights[0], weights[1], count)

    def floor(self, per_patch: Floats, difference: Callable[[Floats, Floats], Floats] = np.subtract) -> Floats:
        """How far, in each of B numbers, synthetic may be from real before it is further than any two halves are, (B,).

        per_patch: (N, S); difference: of means (K, S) and (K, S), row by row, (K, B). Each number's
        spread times the largest excursion, in units of spread, of any number in any halving.
        """
        found = difference(self.first @ per_patch, self.second @ per_patch)
        spread = np.sqrt(np.square(found).mean(0))
        excursion = np.divide(np.abs(found), spread, out=np.zeros_like(found), where=spread > 0)
        return spread * excursion.max()


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
    excess = _excess(s - r, floor)
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
    excess = _excess(both_s.mean(0) - both_r.mean(0), floor)

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


def window_ends(real: NDArray, synthetic: NDArray, window: tuple[float, float], halvings: Halvings) -> WindowEnds:
    """Voxels at the window's ends, where a generator saturates or never arrives, and outside, where it must not be.

    Judged by the mean square root of each patch's share (Bartlett 1936: it evens out the spread of
    counts), for one patient with bone in every patch carries a plain mean. Where few patients reach
    an end, none may be among the real ones by chance: the floor is never below what 3 patients in all
    could add (rule of three, Hanley & Lippman-Hand 1983). Real voxels may be outside the window,
    which clips them only on reading; more than theirs is an artefact.
    """
    low, high = window

    def shares(hu: NDArray) -> Floats:
        flat = hu.reshape(len(hu), -1)
        return np.stack([(flat <= low).mean(1), (flat >= high).mean(1), ((flat < low) | (flat > high)).mean(1)], axis=1)

    r, s = shares(real), shares(synthetic)
    root_r, root_s = np.sqrt(r), np.sqrt(s)
    typical = (root_r.sum(0) + root_s.sum(0)) / np.maximum(1, (r > 0).sum(0) + (s > 0).sum(0))
    floor = np.maximum(halvings.floor(root_r), 3 / halvings.patients * typical)
    excess = _excess(root_s.mean(0) - root_r.mean(0), floor)
    excess[2] *= root_s[:, 2].mean() > root_r[:, 2].mean()
    names = (f"at {low:g} HU or below", f"at {high:g} HU or above", "outside the window")
    found = [EndShare(*one) for one in zip(names, r.mean(0).tolist(), s.mean(0).tolist(), excess.tolist(), strict=True)]
    evidence = "; ".join(
        f"{one.name} lie {100 * one.synthetic:.2g} % of synthetic voxels and {100 * one.real:.2g} % of real ones, "
        + ("more than any halves of real patients differ by" if one.excess > 1 else "within what halves of real patients differ by")
        for one in found
    )
    return WindowEnds(tuple(found), bool((excess > 1).any()), evidence[0].upper() + evidence[1:] + ".")


def gray_map(real: NDArray, synthetic: NDArray, window: tuple[float, float], halvings: Halvings) -> GrayMap:
    """The straight line that takes the quantiles of all real voxels to those of all synthetic ones.

    A set that went through a wrong window, slope or intercept is one such line away from the real.
    """
    levels, r, s = _histograms(real, synthetic, window)

    def lines(a: Floats, b: Floats) -> Floats:
        found = [affine_map(quantiles(levels, x), quantiles(levels, y), window) for x, y in zip(a, b, strict=True)]
        return np.array([(slope - 1, shift) for slope, _offset, shift in found])

    floor = halvings.floor(r, lines)
    q = [quantiles(levels, one.mean(0)) for one in (r, s)]
    slope, offset, shift = affine_map(q[0], q[1], window)
    evidence = (
        f"Synthetic HU = {slope:.3f} x real HU {offset:+.0f} fits the quantiles best, {shift:+.1f} HU on average; halves of real patients "
        f"stay within a slope of 1 ± {floor[0]:.3f} and ± {floor[1]:.1f} HU."
    )
    shown = [np.flatnonzero(np.isclose(QUANTILES, p))[0] for p in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)]
    return GrayMap(
        slope=slope,
        slope_floor=float(floor[0]),
        offset_hu=offset,
        shift_hu=shift,
        shift_floor_hu=float(floor[1]),
        quantiles=tuple((float(QUANTILES[i]), float(q[0][i]), float(q[1][i])) for i in shown),
        differs=bool(abs(slope - 1) > floor[0] or abs(shift) > floor[1]),
        evidence=evidence,
    )


def affine_map(real: Floats, synthetic: Floats, window: tuple[float, float]) -> tuple[float, float, float]:
    """Slope, offset and mean shift (HU) of the least-squares line from real to synthetic quantiles.

    Quantiles at an end of the window in either set do not count, unless nearly all of them are.
    """
    inside = (np.minimum(real, synthetic) > window[0] + 0.5) & (np.maximum(real, synthetic) < window[1] - 0.5)
    if inside.sum() >= 10:
        real, synthetic = real[inside], synthetic[inside]
    centred = real - real.mean()
    slope = float(centred @ synthetic / max(centred @ centred, 1e-9))
    shift = float((synthetic - real).mean())
    return slope, float(synthetic.mean() - slope * real.mean()), shift


def gray_levels(real: NDArray, synthetic: NDArray, window: tuple[float, float], halvings: Halvings) -> GrayLevels:
    """Whether HU come in steps, as after 8 bits or a rescale without interpolation: a comb in the histogram.

    A comb of step d is a sharp line at 1/d cycles/HU in the histogram's Fourier transform (its
    characteristic function); what the histogram's smooth shape leaves there, the mean of the
    frequencies around, is taken off. Steps from 2 to 20 HU; finer ones appear at a multiple.
    """
    levels, r, s = _histograms(real, synthetic, window)
    size = 2 * len(levels)
    cycles = np.fft.rfftfreq(size)
    sought = (cycles >= 1 / STEPS_HU[1]) & (cycles <= 1 / STEPS_HU[0])
    around = 2 * (len(levels) // 14) + 1

    def combs(histogram: Floats) -> Floats:  # (K, levels) => (K, frequencies)
        inner = histogram.copy()
        inner[:, [0, -1]] = 0  # saturated voxels are another check's
        line = np.abs(np.fft.rfft(inner / np.maximum(inner.sum(1, keepdims=True), 1e-12), size))
        return (line - ndimage.uniform_filter1d(line, around, axis=1))[:, sought]

    # One bar for all steps: where the whole real set has nothing, its two halves have the same by construction.
    floor = float(halvings.floor(r, lambda a, b: np.abs(combs(b) - combs(a)).max(1, keepdims=True))[0])
    found = [combs(one.mean(0, keepdims=True))[0] for one in (r, s)]
    top = int(np.argmax(np.abs(found[1] - found[0])))
    step = float(1 / cycles[sought][top])
    counts = [_distinct(levels, one.mean(0)) for one in (r, s)]
    evidence = (
        f"Real voxels take {counts[0][0]} distinct HU, {counts[0][1]:.2f} HU apart, synthetic ones {counts[1][0]}, {counts[1][1]:.2f} HU apart. "
        f"Repetition every {step:.2f} HU (0 none, 1 nothing in between): {found[1][top]:.3f} synthetic, {found[0][top]:.3f} real; "
        f"halves of real patients within {floor:.3f}."
    )
    return GrayLevels(
        real_levels=counts[0][0],
        synthetic_levels=counts[1][0],
        real_spacing_hu=counts[0][1],
        synthetic_spacing_hu=counts[1][1],
        step_hu=step,
        real_comb=float(found[0][top]),
        synthetic_comb=float(found[1][top]),
        floor=floor,
        differs=bool(abs(found[1][top] - found[0][top]) > floor),
        evidence=evidence,
    )


def quantiles(levels: NDArray, histogram: Floats) -> Floats:
    """HU below which each of QUANTILES of the voxels lie; a level's voxels are spread over its 1 HU."""
    below = np.concatenate([[0], np.cumsum(histogram)]) / histogram.sum()
    return np.interp(QUANTILES, below, np.append(levels - 0.5, levels[-1] + 0.5))


def _histograms(real: NDArray, synthetic: NDArray, window: tuple[float, float]) -> tuple[NDArray, Floats, Floats]:
    """Whole HU of the window, and each patch's share of voxels at each, (N, levels); beyond counts as the end."""
    levels = np.arange(np.ceil(window[0]), np.floor(window[1]) + 1)
    found = []
    for hu in (real, synthetic):
        index = (np.clip(hu, levels[0], levels[-1]) - levels[0]).astype(np.intp).reshape(len(hu), -1)
        found.append(np.stack([np.bincount(one, minlength=len(levels)) for one in index]) / index.shape[1])
    return levels, found[0], found[1]


def _distinct(levels: NDArray, histogram: Floats) -> tuple[int, float]:
    """How many HU occur in the middle 98 % of voxels, and their mean spacing."""
    q = quantiles(levels, histogram)
    taken = levels[(histogram > 0) & (levels >= q[0] - 0.5) & (levels <= q[-1] + 0.5)]
    return len(taken), float((taken[-1] - taken[0]) / max(1, len(taken) - 1))


def _resampled_means(per_patch: Floats, patients: Patients, rng: np.random.Generator, draws: int = 400) -> Floats:
    """Means over patches (N, S) of patients drawn with replacement, (draws, S)."""
    index = np.arange(len(per_patch)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    count = int(index.max()) + 1
    weights = rng.multinomial(count, np.full(count, 1 / count), draws)[:, index].astype(np.float64)
    return weights @ per_patch / weights.sum(1, keepdims=True)


def _excess(difference: Floats, floor: Floats) -> Floats:
    """|difference| in floors; 0 where neither set shows anything."""
    return np.abs(difference) / np.maximum(floor, 1e-12)


def _axes(count: int) -> str:
    return "rows and columns" if count == 2 else "slices, rows and columns"
