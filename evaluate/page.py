"""The report as one HTML file that needs nothing else: no script, no font, no request."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from evaluate.artefacts import Artefacts
from evaluate.audit import Pictures
from evaluate.figures import attribute_distributions, grid, intervals_side_by_side, noise_and_gray_levels, picture
from evaluate.intervals import Floor, Interval
from evaluate.report import DetectorResult, Distance, MemorisationResult, Report
from evaluate.scores import METRICS
from evaluate.side_by_side import Read, figure_names, to_table
from evaluate.summary import METRIC_WORDS, limits_of, number, what_was_compared
from evaluate.verdict import verdicts_of

MARKS = {"good": "✓", "doubt": "?", "bad": "✗", "unknown": "–"}
"""Beside the words, so that no reader depends on colour."""


def to_html(report: Report, pictures: Pictures, show_real: bool = True) -> str:
    """The page. show_real: False leaves out every real patch, for readers who may not see patients; a synthetic copy of one, too."""
    environment = templates()
    window = report.compared.window
    found = report.memorisation if isinstance(report.memorisation, MemorisationResult) else None
    hidden = {one.patch for one in (*found.copies, *found.held_out_copies)} if found and not show_real else set[str]()
    synthetic_hu = pictures.synthetic.hu[~np.isin(pictures.synthetic.ids, sorted(hidden))]
    suspects = found.suspects if found else ()
    shown = [
        (
            suspect,
            None if suspect.synthetic in hidden else picture(synthetic, window),
            picture(training, window) if show_real else None,
            picture(held_out, window) if show_real and held_out is not None else None,
        )
        for suspect, (synthetic, training, held_out) in zip(suspects, pictures.suspects, strict=True)
    ]
    controls = (
        [
            (control, picture(held_out, window), picture(training, window))
            for control, (held_out, training) in zip(found.controls, pictures.controls, strict=True)
            if show_real
        ]
        if found
        else []
    )
    return environment.get_template("page.html.jinja").render(
        report=report,
        how={one.patch: one.how for one in found.copies} if found else {},
        suspects_nearest=min((one.closeness for one in suspects), default=None),
        controls_nearest=min((one.closeness for one in found.controls), default=None) if found else None,
        compared=report.compared,
        what=what_was_compared(report),
        verdicts=verdicts_of(report),
        marks=MARKS,
        limits=limits_of(report),
        real_grid=grid(pictures.real.hu, window) if show_real else None,
        synthetic_grid=grid(synthetic_hu, window) if len(synthetic_hu) else None,
        hidden=len(hidden),
        attributes_figure=attribute_distributions(pictures.real_attributes, pictures.synthetic_attributes) if report.attributes else None,
        artefacts=_checks(report.artefacts),
        artefacts_figure=_artefacts_figure(report, pictures),
        suspects=shown,
        controls=controls,
        found=found,
        detector=report.detector if isinstance(report.detector, DetectorResult) else None,
        rows=_rows(report),
        measures=list(dict.fromkeys(d.measure for d in report.distances)),
        metrics=[(name, METRIC_WORDS[name]) for name in METRICS],
        floor=_floor,
        show_real=show_real,
    )


def comparison_page(reports: Sequence[Read], sentences: Sequence[str]) -> str:
    """Several reports side by side, as a page that needs nothing else."""
    head, *body = to_table(reports)
    return (
        templates()
        .get_template("comparison.html.jinja")
        .render(
            sentences=sentences,
            head=head,
            body=body,
            picture=intervals_side_by_side([(one.name, one.figures) for one in reports], figure_names(reports)),
        )
    )


def templates() -> jinja2.Environment:
    """The pages' templates; what comes from a folder cannot become markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, interval=_interval, signed=_signed)
    environment.globals.update(image=_image)
    return environment


def _checks(found: Artefacts | str) -> list[tuple[str, Any]]:
    """Each check and what it is called; none where they were not made."""
    if isinstance(found, str):
        return []
    return [
        ("Checkerboard", found.checkerboard), ("Noise power", found.noise_power), ("Window's ends", found.window_ends),
        ("Scale and shift of HU", found.gray_map), ("Steps of gray", found.gray_levels),
    ]  # fmt: skip


def _artefacts_figure(report: Report, pictures: Pictures) -> bytes | None:
    if isinstance(report.artefacts, str):
        return None
    compared = report.compared
    return noise_and_gray_levels(
        report.artefacts.noise_power, pictures.real.hu, pictures.synthetic.hu, compared.window, compared.spacing_mm is not None
    )


def _rows(report: Report) -> list[tuple[Distance, Distance | None]]:
    """Each distance to the reference, beside the same one to training patients."""
    reference = report.compared.reference
    to_training = {(d.measure, d.metric): d for d in report.distances if d.reference != reference}
    return [(d, to_training.get((d.measure, d.metric))) for d in report.distances if d.reference == reference]


def _image(png: bytes, alt: str, kind: str = "") -> Markup:
    data = base64.b64encode(png).decode("ascii")
    return Markup('<img class="{}" alt="{}" src="data:image/png;base64,{}">').format(kind, alt, data)


def _interval(interval: Interval | str) -> str:
    return interval if isinstance(interval, str) else f"{number(interval.low)} to {number(interval.high)}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _floor(distance: Distance) -> dict[str, str]:
    """The floor's cells of a table row; reasons stand in the first."""
    f = distance.floor
    if not isinstance(f, Floor):
        return {"value": f"none: {f}", "synthetic": "", "samples": ""}
    return {
        "value": f"{number(f.value)} ({number(f.low)} to {number(f.high)})",
        "synthetic": number(f.synthetic_value),
        "samples": str(f.samples),
    }
