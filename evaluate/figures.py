"""Pictures of the report, as PNG bytes. Patches are HU; of 3-D patches the middle slice is shown."""

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from evaluate.attributes import ATTRIBUTES
from evaluate.features import middle_slice, to_gray

REAL_COLOUR, SYNTHETIC_COLOUR = "#0072b2", "#d55e00"  # told apart by colour-blind readers too
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _png_of(gray: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    imsave(buffer, gray, cmap="gray", vmin=0, vmax=255, format="png")
    return buffer.getvalue()
