"""Pictures of the report, as PNG bytes. Patches are HU; of 3-D patches the middle slice is shown."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from evaluate.artefacts import NoisePower
from evaluate.attributes import ATTRIBUTES
from evaluate.edges import Profile
from evaluate.features import middle_slice, to_gray
from evaluate.key_figures import Figure as KeyFigure

REAL_COLOUR, SYNTHETIC_COLOUR = "#0072b2", "#d55e00"  # told apart by colour-blind readers too
SET_COLOURS = (REAL_COLOUR, SYNTHETIC_COLOUR, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe & Ito 2008
GAP = 2


def grid(hu: NDArray[np.int16], window: tuple[float, float], columns: int = 6, most: int = 24) -> bytes:
    """At most `most` patches (N, *shape) at even steps, side by side in the window, `columns` to a row."""
    steps = np.unique(np.linspace(0, len(hu) - 1, most).round().astype(int))
    gray = to_gray(middle_slice(hu[steps]), window)
    count, height, width = gray.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), 255, np.uint8)
    for n, patch in enumerate(gray):
        top, left = n // columns * (height + GAP), n % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = patch
    return _png_of(sheet)


def picture(hu: NDArray[np.int16], window: tuple[float, float]) -> bytes:
    """One patch (*shape) in the window."""
    return _png_of(to_gray(middle_slice(hu[None]), window)[0])


def attribute_distributions(real: Mapping[str, NDArray[np.float64]], synthetic: Mapping[str, NDArray[np.float64]]) -> bytes:
    """Histograms of each lesion attribute, real and synthetic laid over each other, areas equal."""
    figure = Figure(figsize=(7, 8), layout="constrained")
    axes = figure.subplots(3, 2).ravel()
    for axis, (name, title) in zip(axes, ATTRIBUTES.items(), strict=True):
        r, s = real[name][np.isfinite(real[name])], synthetic[name][np.isfinite(synthetic[name])]
        axis.set_title(title, fontsize=11)
        axis.set_yticks([])
        axis.spines[["left", "right", "top"]].set_visible(False)
        if not len(r) or not len(s):
            axis.text(0.5, 0.5, "not measured", ha="center", transform=axis.transAxes)
            continue
        both = np.concatenate([r, s])
        low, high = np.quantile(both, [0.005, 0.995])  # a stray value must not squeeze the rest
        bins = np.linspace(low, max(high, low + 1e-6), 25)
        for values, colour, label in ((r, REAL_COLOUR, "real"), (s, SYNTHETIC_COLOUR, "synthetic")):
            shares = np.full(len(values), 1 / len(values))
            axis.hist(values.clip(low, bins[-1]), bins, weights=shares, color=colour, alpha=0.35, label=label)
            axis.hist(values.clip(low, bins[-1]), bins, weights=shares, color=colour, histtype="step", linewidth=1.5)
    handles, labels = next((a.get_legend_handles_labels() for a in axes if a.get_legend_handles_labels()[0]), ([], []))
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return _png_of_figure(figure)


def noise_and_gray_levels(
    noise: NoisePower, real: NDArray[np.int16], synthetic: NDArray[np.int16], window: tuple[float, float], spacing_known: bool = True
) -> bytes:
    """Noise power by frequency; synthetic over real with its interval and what real halves stay within; histograms of HU."""
    figure = Figure(figsize=(7, 8), layout="constrained")
    power, ratio, levels = figure.subplots(3, 1)
    middle = [(band.low + band.high) / 2 for band in noise.bands]
    edges = [band.low for band in noise.bands] + [noise.bands[-1].high]
    mm = "mm" if spacing_known else "pixel"
    power.plot(middle, [band.real for band in noise.bands], color=REAL_COLOUR, marker="o", label="real")
    power.plot(middle, [band.synthetic for band in noise.bands], color=SYNTHETIC_COLOUR, marker="o", label="synthetic")
    power.set(yscale="log", title=f"noise power (HU² {mm}{'²' if real.ndim == 3 else '³'})")
    ratio.stairs(
        [b.floor for b in noise.bands], edges, baseline=[1 / b.floor for b in noise.bands], fill=True, color=REAL_COLOUR, alpha=0.2
    )
    ratio.vlines(
        middle,
        [band.interval.low for band in noise.bands],
        [band.interval.high for band in noise.bands],
        color=SYNTHETIC_COLOUR,
        linewidth=2,
    )
    ratio.plot(middle, [band.ratio for band in noise.bands], color=SYNTHETIC_COLOUR, marker="o", linestyle="none")
    ratio.set_yscale("log", base=2)
    ratio.yaxis.set_major_formatter("{x:g}")
    ratio.set(title="synthetic over real; shaded: halves of real patients", xlabel=f"cycles/{mm}")
    ratio.axhline(1, color=REAL_COLOUR, linewidth=1)
    bins = np.linspace(*window, 101)
    for hu, colour in ((real, REAL_COLOUR), (synthetic, SYNTHETIC_COLOUR)):
        shares = np.histogram(np.clip(hu, *window), bins)[0] / hu.size
        levels.stairs(shares, bins, fill=True, color=colour, alpha=0.35)
        levels.stairs(shares, bins, color=colour, linewidth=1.5)
    levels.set(title="share of voxels", xlabel="HU", yscale="log")
    for axis in (power, ratio, levels):
        axis.spines[["right", "top"]].set_visible(False)
        axis.title.set_fontsize(11)
    figure.legend(*power.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return _png_of_figure(figure)


def edge_profile(sets: Mapping[str, Profile]) -> bytes:
    """HU, gradient and noise by distance from the middle, real lesions first, then sets of composites (beyond five, colours repeat).

    A line is the mean over patients, its band holds 95 % of such means; the support's edge is marked.
    """
    figure = Figure(figsize=(7, 8), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    for n, (label, one) in enumerate(sets.items()):
        colour = SET_COLOURS[n % len(SET_COLOURS)]
        middle = (one.edges[1:] + one.edges[:-1]) / 2
        for axis, mean, low, high in zip(axes, one.mean, one.low, one.high, strict=True):
            axis.fill_between(middle, low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(middle, mean, color=colour, linewidth=1.5 if n else 2.5, zorder=2 if n else 3, label=label)
    for axis, title in zip(axes, ("HU", "gradient (HU/mm)", "noise (HU)"), strict=True):
        axis.axvline(1, color="gray", linewidth=1, linestyle=":")
        axis.set_title(title, fontsize=11)
        axis.spines[["right", "top"]].set_visible(False)
    axes[-1].set_xlabel("distance from the middle, in radii of the support (dotted: its edge)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return _png_of_figure(figure)


def intervals_side_by_side(reports: Sequence[tuple[str, Mapping[str, KeyFigure]]], names: Sequence[str], most: int = 12) -> bytes | None:
    """For each of the first `most` figures that have an interval, the reports' values as dots with 95 % intervals; None without any."""
    shown = [name for name in names if sum(name in found and found[name].low is not None for _, found in reports) > 1][:most]
    if not shown:
        return None
    rows = -(-len(shown) // 3)
    figure = Figure(figsize=(9, 0.9 + rows * (0.7 + 0.3 * len(reports))), layout="constrained")
    for axis, name in zip(figure.subplots(rows, 3, squeeze=False).ravel(), [*shown, *[None] * (3 * rows - len(shown))], strict=True):
        if name is None:
            axis.set_axis_off()
            continue
        for n, (_, found) in enumerate(reports):
            one = found.get(name)
            if one is not None and one.low is not None and one.high is not None:
                axis.plot([one.low, one.high], [n, n], color=SYNTHETIC_COLOUR)
                axis.plot([one.value], [n], "o", color=SYNTHETIC_COLOUR)
        axis.set_title(name, fontsize=9)
        axis.set_yticks(range(len(reports)), [label for label, _ in reports], fontsize=8)
        axis.set_ylim(len(reports) - 0.5, -0.5)
        axis.spines[["right", "top"]].set_visible(False)
    return _png_of_figure(figure)


def _png_of_figure(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _png_of(gray: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, gray, cmap="gray", vmin=0, vmax=255, format="png")
    return buffer.getvalue()
