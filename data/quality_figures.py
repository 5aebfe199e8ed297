"""Pictures of the quality page, as PNG bytes. Patches are HU; of 3-D patches the middle slice is shown."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

from data.preprocess import Window, to_unit
from data.quality import HU_MIN

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by colour-blind readers too
FRAME = (213, 94, 0, 255)
GAP, LARGEST = 3, 96


def contact_sheet(hu: np.ndarray, window: Window, framed: np.ndarray, columns: int = 9) -> bytes:
    """The patches (N, *shape) side by side in the window; those of framed (bool (N,)) in an orange frame."""
    gray = _gray(hu, window)
    count, height, width = gray.shape
    columns = min(columns, count)
    sheet = np.full(
        (-(-count // columns) * (height + GAP) + GAP, columns * (width + GAP) + GAP, 4), 0, np.uint8
    )  # the gaps are clear, for light and dark pages
    for n in np.flatnonzero(framed).tolist():
        top, left = n // columns * (height + GAP), n % columns * (width + GAP)
        sheet[top : top + height + 2 * GAP, left : left + width + 2 * GAP] = FRAME
    for n, patch in enumerate(gray):
        top, left = n // columns * (height + GAP) + GAP, n % columns * (width + GAP) + GAP
        sheet[top : top + height, left : left + width, :3] = patch[..., None]
        sheet[top : top + height, left : left + width, 3] = 255
    return _png(sheet)


def picture(hu: np.ndarray, window: Window, mirrored: tuple[int, ...] = ()) -> bytes:
    """One patch (*shape) in the window, mirrored along these axes."""
    return _png(np.repeat(_gray(np.flip(hu, mirrored)[None], window)[0][..., None], 3, axis=2))


def value_histograms(values: Mapping[str, np.ndarray], window: Window, unit: str) -> bytes:
    """Each class's share of voxels by value, the window's ends marked. values: as Quality.values."""
    total = np.cumsum(np.sum(list(values.values()), axis=0))
    low, high = (
        int(np.searchsorted(total, share * total[-1])) + HU_MIN for share in (0.0005, 0.9995)
    )  # a stray value must not squeeze the rest
    low, high = min(low, int(np.floor(window[0]))), max(high, int(np.ceil(window[1])))
    width = max(1, (high - low) // 100)
    edges = np.arange(low - width, high + 2 * width, width)
    figure, axis = _figure(7, 3.2)
    for label, colour in zip(values, _colours(len(values)), strict=True):
        counts = np.histogram(np.arange(1 << 16) + HU_MIN, edges, weights=values[label])[0]
        axis.stairs(counts / max(values[label].sum(), 1), edges, color=colour, linewidth=1.5, label=label)
    for end in window:
        axis.axvline(end, color="#555555", linestyle="--", linewidth=1)
    axis.set_yscale("log")
    axis.set_xlabel("HU (dashed: the window's ends)" if unit == "HU" else "gray level (dashed: black and white)")
    axis.set_ylabel("share of voxels, log scale")
    return _saved(figure, axis)


def diameter_histograms(diameters: Mapping[str, np.ndarray]) -> bytes:
    """Lesions by diameter in mm, class by class."""
    together = np.concatenate(list(diameters.values()))
    edges = np.linspace(0, max(float(np.quantile(together, 0.995)), 1.0), 31)
    figure, axis = _figure(7, 2.8)
    for (label, mm), colour in zip(diameters.items(), _colours(len(diameters)), strict=True):
        axis.stairs(np.histogram(mm.clip(max=edges[-1]), edges)[0], edges, color=colour, linewidth=1.5, label=label)
    axis.set_xlabel("diameter, mm (the last bar holds all larger ones)")
    axis.set_ylabel("patches")
    return _saved(figure, axis)


def geometry_histograms(columns: Mapping[str, np.ndarray]) -> bytes:
    """Series by slice step, slice thickness and pixel size: title -> mm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.3), layout="constrained")
    for axis, (title, mm) in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns.items(), strict=True):
        span = max(float(np.ptp(mm)), 0.1 * float(mm.max()))
        axis.hist(mm, 20, range=(float(mm.min()) - span / 20, float(mm.max()) + span / 20), color=COLOURS[0])
        axis.set_xlabel(title)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.spines[["right", "top"]].set_visible(False)
    figure.axes[0].set_ylabel("series")
    return _saved(figure)


def _gray(hu: np.ndarray, window: Window) -> np.ndarray:
    """uint8 (N, h, w): middle slices in the window, thinned where larger than LARGEST."""
    planes = hu if hu.ndim == 3 else hu[:, hu.shape[1] // 2]
    step = -(-max(planes.shape[1:]) // LARGEST)
    return np.rint((to_unit(planes[:, ::step, ::step], window) + 1) * 127.5).astype(np.uint8)


def _colours(count: int) -> Sequence[str]:
    return [COLOURS[n % len(COLOURS)] for n in range(count)]


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["right", "top"]].set_visible(False)
    return figure, axis


def _saved(figure, axis=None) -> bytes:
    if axis is not None:
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
