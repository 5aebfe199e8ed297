"""The learning curves of a run as one picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gan.checkpoint import write_atomically
from gan.history import History, distances, points, read_history

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by colour-blind readers too
FAINT = "#666666"
SMOOTHED_FROM = 200
"""A line of more points is drawn thin, and over it, thick, its running median."""


class Panel(NamedTuple):
    """Metrics that share an axis. lines: a metric, and what the legend calls it. level: where a dashed line lies, and its name.

    setting: what is drawn only if it changed during the run.
    """

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    log: bool = False
    level: tuple[float, str] | None = None
    setting: bool = False


WASSERSTEIN = (("wasserstein", "training patients"), ("wasserstein_held_out", "held-out patients"))
PANELS = (
    Panel("Wasserstein estimate", "score, real less synthetic", WASSERSTEIN),
    Panel("Losses", "loss", (("critic_loss", "critic"), ("generator_loss", "generator"))),
    Panel("Slope of the critic", "mean norm of the slope", (("slope_norm", "slope"),), level=(1.0, "wanted")),
    Panel("Gradient penalty", "mean of (slope - 1)², log", (("penalty", "penalty, before its weight"),), log=True),
    Panel(
        "Gradients of the parameters", "norm, log",
        (("critic_gradient_norm", "critic"), ("generator_gradient_norm", "generator")), log=True,
    ),
    Panel("Variety of the samples", "distance of two samples, over real", (("variety", "samples"),), level=(1.0, "as real patches")),
    Panel("Privacy spent", "epsilon", (("epsilon", "epsilon so far"),)),
    Panel("Critic steps for an update", "steps", (("n_critic", "critic steps"),), setting=True),
    Panel("Augmentation", "probability", (("augment_probability", "of changing a patch"),), setting=True),
    Panel("Speed", "training patches a second", (("images_per_second", "speed"),)),
)  # fmt: skip


def write_curves(metrics: Path, picture: Path) -> None:
    """Draws a run's metrics.jsonl as PNG, 1200 pixels wide; the same metrics give the same bytes.

    Panels whose metrics are missing are left out; where nothing was logged yet, there is no picture.
    """
    from matplotlib.figure import Figure

    history = read_history(metrics)
    drawings = [partial(_draw, panel=panel, history=history) for panel in PANELS if _worth_drawing(panel, history)]
    drawings[1:1] = [partial(_draw_distances, title=title, lines=lines, history=history) for title, lines in distances(history).items()]
    if not drawings:
        return
    rows = -(-len(drawings) // 2)
    figure = Figure(figsize=(12, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for axis, draw in zip(axes, drawings, strict=False):
        draw(axis)
        axis.set_xlabel("step (updates of the generator)")
        axis.grid(color="#dddddd", linewidth=0.5)
        axis.spines[["right", "top"]].set_visible(False)
        axis.legend(fontsize=9, framealpha=0.7, edgecolor="none")
    for axis in axes[len(drawings) :]:
        axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    write_atomically(picture, buffer.getvalue())


def _worth_drawing(panel: Panel, history: History) -> bool:
    values = [points(history, name)[1] for name, _ in panel.lines]
    return any(len(np.unique(those)) > panel.setting for those in values)


def _draw(axis, panel: Panel, history: History) -> None:
    axis.set_title(panel.title, fontsize=11)
    axis.set_ylabel(panel.unit)
    for (name, label), colour in zip(panel.lines, COLOURS, strict=False):
        _draw_line(axis, *points(history, name), label, colour)
    if panel.lines == WASSERSTEIN:
        _shade_gap(axis, history)
    if panel.level:
        axis.axhline(panel.level[0], color=FAINT, linestyle="--", linewidth=1, label=panel.level[1], zorder=1)
    _scale(axis, panel.log)


def _draw_line(axis, steps: np.ndarray, values: np.ndarray, label: str, colour: str) -> None:
    if len(steps) > SMOOTHED_FROM:
        axis.plot(steps, values, color=colour, linewidth=0.5, alpha=0.35)
        values = _running_median(values)
    axis.plot(steps, values, color=colour, linewidth=1.6, marker="." if len(steps) < 30 else None, label=label)


def _shade_gap(axis, history: History) -> None:
    """The gap between training and held-out patients, which is what a critic knows by heart."""
    both = [line for line in history if all(math.isfinite(line.get(name, math.nan)) for name, _ in WASSERSTEIN)]
    if both:
        (steps, train), (_, held_out) = (points(both, name) for name, _ in WASSERSTEIN)
        if len(steps) > SMOOTHED_FROM:
            train, held_out = _running_median(train), _running_median(held_out)
        axis.fill_between(steps, train, held_out, where=train > held_out, color=COLOURS[3], alpha=0.3, linewidth=0, label="gap")


def _draw_distances(axis, title: str, lines: Sequence[tuple[str, str, str]], history: History) -> None:
    """lines: as _distances has them."""
    axis.set_title(title, fontsize=11)
    axis.set_ylabel("distance, log (dotted: floor)")
    lowest = []
    for n, (name, label, floor) in enumerate(lines):
        colour = COLOURS[n % len(COLOURS)]
        steps, values = points(history, name)
        best = int(np.argmin(values))
        _draw_line(axis, steps, values, f"{label}, best {values[best]:.3g} at step {steps[best]:.0f}", colour)
        axis.plot(steps[best], values[best], marker="o", markersize=8, markerfacecolor="none", markeredgewidth=1.6, color=colour)
        _, floors = points(history, floor)
        if len(floors) and floors[-1] > 0:
            axis.axhline(floors[-1], color=colour, linestyle=":", linewidth=1.2)
        lowest.append(values.min())
    if min(lowest) > 0:
        axis.set_yscale("log")
    else:  # an unbiased estimate may lie below 0
        axis.set_yscale("symlog", linthresh=max(abs(min(lowest)), 1e-3))


def _scale(axis, log: bool) -> None:
    """A logarithmic scale where it is wanted, and where a few values would otherwise make a flat line of all the others."""
    values = np.concatenate([line.get_ydata() for line in axis.lines])
    typical, most = np.quantile(np.abs(values), [0.5, 1])
    exploded = most > 100 * typical > 0
    if (log and values.max() > 0) or (exploded and values.min() > 0):
        axis.set_yscale("log")
    elif exploded:
        axis.set_yscale("symlog", linthresh=1.001 * 10 ** math.ceil(math.log10(typical)))  # at 1000 itself, labels would overlap


def _running_median(values: np.ndarray) -> np.ndarray:
    """Over a twenty-fifth of the line."""
    from scipy.ndimage import median_filter

    return median_filter(values, len(values) // 50 * 2 + 1, mode="mirror")
