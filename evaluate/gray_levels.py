"""Artefacts of gray levels: voxels at the window's ends, a shift or scaling of HU, levels that come in steps.

Patches are int16 HU, (N, H, W) or (N, D, H, W), clipped to the window where not said otherwise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from evaluate.halvings import Halvings, excess_of
from evaluate.spectra import Floats

STEPS_HU = (2.0, 20.0)  # steps between gray levels that are looked for
QUANTILES = np.arange(1, 100) / 100


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
    excess = excess_of(root_s.mean(0) - root_r.mean(0), floor)
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
    found = [np.maximum(combs(one.mean(0, keepdims=True))[0], 0) for one in (r, s)]  # a gap in the line is no comb
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
