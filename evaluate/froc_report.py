"""What `python -m evaluate froc` found: as text, JSON, CSV and picture. Nothing in them names a series."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evaluate.froc import (
    LUNA16_RATES,
    Candidates,
    Curve,
    Findings,
    bootstrap,
    curve_of,
    interval_of,
    match,
    nodules_hit,
    sensitivity_at,
    strongest,
)
from evaluate.intervals import Interval

DEFINITION = (
    "LUNA16 (Setio et al. 2017; noduleCADEvaluationLUNA16.py): a candidate hits a nodule when it is nearer to the centre than half of the diameter; "
    "of several in one nodule the most probable counts and the others are ignored; candidates in excluded findings are ignored; sensitivity is "
    "interpolated linearly between the curve's points; the score is the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives a scan. "
    "Intervals hold 95 % of draws of scans with replacement."
)
COLOUR = "#d55e00"
SHOWN = np.geomspace(LUNA16_RATES[0], LUNA16_RATES[-1], 97)  # every 16th is one of LUNA16's


@dataclass(frozen=True)
class Estimate:
    """A sensitivity or a score with its 95 % interval, None where there is none."""

    value: float
    interval: Interval | None


@dataclass(frozen=True, eq=False)
class FrocReport:
    """sensitivity: at LUNA16_RATES. band: low and high at SHOWN, None without intervals. counts, settings, notes and warnings: told as they are."""

    curve: Curve
    sensitivity: Sequence[Estimate]
    score: Estimate
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    counts: Mapping[str, int]
    settings: Mapping[str, Any]
    notes: Sequence[str]
    warnings: Sequence[str]


def evaluated(
    candidates: Candidates, nodules: Findings, excluded: Findings, scans: int, most: int, draws: int, rng: np.random.Generator,
    settings: Mapping[str, Any], notes: Sequence[str],
) -> FrocReport:  # fmt: skip
    """The curve, the score and their intervals. most: candidates a scan, 0 for all; draws: of the bootstrap, 0 for no intervals.

    Raises ValueError if there is no nodule.
    """
    kept = strongest(candidates, most) if most else np.ones(len(candidates.scan), bool)
    marked = Candidates(candidates.scan[kept], candidates.position_mm[kept], candidates.probability[kept])
    marks = match(marked, nodules, excluded, scans)
    curve = curve_of(marks)
    values = sensitivity_at(LUNA16_RATES, marks, np.ones((1, scans), np.int64))[0]
    found = int(marks.hit.sum())
    counts = {
        "scans": scans, "scans_with_nodules": int((marks.nodules > 0).sum()), "nodules": len(nodules.scan), "nodules_hit": found,
        "candidates": len(candidates.scan), "false_positives": len(marks.hit) - found, "ignored_double": marks.double,
        "ignored_on_excluded": marks.excluded, "ignored_beyond_limit": int((~kept).sum()),
    }  # fmt: skip
    rates = np.append(LUNA16_RATES, SHOWN)
    drawn = bootstrap(rates, marks, rng, draws) if draws and scans > 1 else None
    intervals: list[Interval | None] = [None] * len(LUNA16_RATES)
    score_interval, band = None, None
    if drawn is not None:
        at_rates, shown = drawn[:, : len(LUNA16_RATES)], drawn[:, len(LUNA16_RATES) :]
        intervals, score_interval = [interval_of(column) for column in at_rates.T], interval_of(at_rates.mean(1))
        ends = [interval_of(column) for column in shown.T]
        band = np.array([one.low for one in ends]), np.array([one.high for one in ends])
    return FrocReport(
        curve,
        [Estimate(float(value), interval) for value, interval in zip(values, intervals, strict=True)],
        Estimate(float(values.mean()), score_interval),
        band,
        counts,
        settings,
        [*notes, *_notes(curve, drawn, draws, scans)],
        _warnings(marked, nodules, marks.shared, found),
    )


def _notes(curve: Curve, drawn: NDArray | None, draws: int, scans: int) -> list[str]:
    notes = []
    end = curve.false_positives_per_scan[-1]
    if end < LUNA16_RATES[-1]:
        notes.append(
            f"The curve ends at {end:.3g} false positives a scan; beyond, its last sensitivity, {curve.sensitivity[-1]:.3f}, stands in."
        )
    if drawn is None:
        notes.append("No intervals: they take two scans or more." if scans < 2 else "No intervals: --bootstrap is 0.")
    elif len(drawn) < draws:
        notes.append(f"{draws - len(drawn)} of the {draws} draws had no nodule and were left out of the intervals.")
    return notes


def _warnings(candidates: Candidates, nodules: Findings, shared: int, found: int) -> list[str]:
    warnings = []
    turned = Candidates(candidates.scan, candidates.position_mm * [-1, -1, 1], candidates.probability)
    if (mirrored := nodules_hit(turned, nodules)) > 3 * found:
        warnings.append(
            f"nodules hit: {found}; with the signs of coordX and coordY turned, {mirrored} would be. So one of the two files seems to be in RAS "
            "(NIfTI's axes), and both should be in LPS (DICOM's); turn the signs in that file"
        )
    elif not found and len(candidates.scan):
        warnings.append(
            "no candidate hits a nodule; check that the coordinates of both files are mm in the scanner's axes (LPS), not voxels"
        )
    if shared:
        warnings.append(
            f"candidates in two nodules or more: {shared}; each counts for all of them. Look for nodules that are annotated twice"
        )
    return warnings


def to_json(report: FrocReport) -> str:
    """Every number. An interval that was not measured is null."""

    def plain(one: Estimate) -> dict[str, float | None]:
        ends = (one.interval.low, one.interval.high) if one.interval else (None, None)
        return {"value": one.value, "low": ends[0], "high": ends[1]}

    told = {
        "version": 1, "luna16_score": plain(report.score),
        "sensitivity": [{"false_positives_per_scan": rate, **plain(one)} for rate, one in zip(LUNA16_RATES, report.sensitivity, strict=True)],
        "counts": report.counts, "settings": report.settings, "definition": DEFINITION, "notes": report.notes, "warnings": report.warnings,
    }  # fmt: skip
    return json.dumps(told, indent=1, allow_nan=False) + "\n"


def to_csv(curve: Curve) -> str:
    """A row for each point of the curve."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["false_positives_per_scan", "sensitivity", "threshold"])
    table.writerows(zip(curve.false_positives_per_scan.tolist(), curve.sensitivity.tolist(), curve.threshold.tolist(), strict=True))
    return text.getvalue()


def to_text(report: FrocReport) -> str:
    """The table, the counts and the notes, for a terminal."""

    def cells(name: str, one: Estimate) -> str:
        interval = f"{one.interval.low:.3f} to {one.interval.high:.3f}" if one.interval else "none"
        return f"{name:<24}{one.value:<13.3f}{interval}"

    counts = report.counts
    return "\n".join([
        f"{'false positives a scan':<24}{'sensitivity':<13}95 % interval",
        *(cells(f"{rate:g}", one) for rate, one in zip(LUNA16_RATES, report.sensitivity, strict=True)),
        cells("LUNA16 score (mean)", report.score),
        "",
        f"Scans: {counts['scans']:,}, {counts['scans_with_nodules']:,} of them with nodules.",
        f"Nodules: {counts['nodules']:,}, {counts['nodules_hit']:,} of them hit at some threshold.",
        f"Candidates: {counts['candidates']:,}, {counts['false_positives']:,} of them false positives. Ignored: {counts['ignored_double']:,} beside "
        f"the most probable one of their nodule, {counts['ignored_on_excluded']:,} on excluded findings, {counts['ignored_beyond_limit']:,} beyond "
        "the limit of their scan.",
        *(f"- {note}" for note in report.notes),
    ])  # fmt: skip


def to_picture(report: FrocReport) -> bytes:
    """PNG: sensitivity over false positives a scan from 1/8 to 8, with its 95 % band and the points of the score."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    line = np.interp(SHOWN, report.curve.false_positives_per_scan, report.curve.sensitivity)
    if report.band is not None:
        axes.fill_between(SHOWN, *report.band, color=COLOUR, alpha=0.2, linewidth=0, label="95 % of draws of scans")
    axes.plot(SHOWN, line, color=COLOUR, label=f"LUNA16 score {report.score.value:.3f}")
    axes.plot(LUNA16_RATES, [one.value for one in report.sensitivity], "o", color=COLOUR)
    axes.set_xscale("log", base=2)
    axes.set_xticks(LUNA16_RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    counts = report.counts
    axes.set(
        xlim=(0.118, 8.5), ylim=(0, 1.02), xlabel="false positives a scan", ylabel="sensitivity",
        title=f"{counts['nodules']:,} nodules in {counts['scans']:,} scans",
    )  # fmt: skip
    axes.title.set_fontsize(11)
    axes.grid(alpha=0.3)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
