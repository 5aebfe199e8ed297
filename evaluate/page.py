"""The report as one HTML file that needs nothing else: no script, no font, no request."""

import base64
from pathlib import Path

import jinja2
from markupsafe import Markup

from evaluate.audit import Pictures
from evaluate.figures import attribute_distributions, grid, picture
from evaluate.intervals import Floor, Interval
from evaluate.report import DetectorResult, Distance, MemorisationResult, Report
from evaluate.scores import METRICS
from evaluate.summary import METRIC_WORDS, limits_of, number, summary_of


def to_html(report: Report, pictures: Pictures, show_real: bool = True) -> str:
    """The page. show_real: False leaves out every real patch, for readers who may not see patients."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(number=number, interval=_interval, signed=_signed)
    environment.globals.update(image=_image)
    window = report.compared.window
    found = report.memorisation
    suspects = found.suspects if isinstance(found, MemorisationResult) else ()
    shown = [
        (
            suspect,
            picture(synthetic, window),
            picture(training, window) if show_real else None,
            picture(held_out, window) if show_real and held_out is not None else None,
        )
        for suspect, (synthetic, training, held_out) in zip(suspects, pictures.suspects, strict=True)
    ]
    return environment.get_template("page.html.jinja").render(
        report=report,
        compared=report.compared,
        summary=summary_of(report),
        limits=limits_of(report),
        real_grid=grid(pictures.real.hu, window) if show_real else None,
        synthetic_grid=grid(pictures.synthetic.hu, window),
        attributes_figure=attribute_distributions(pictures.real_attributes, pictures.synthetic_attributes) if report.attributes else None,
        suspects=shown,
        found=found if isinstance(found, MemorisationResult) else None,
        detector=report.detector if isinstance(report.detector, DetectorResult) else None,
        rows=_rows(report),
        measures=list(dict.fromkeys(d.measure for d in report.distances)),
        metrics=[(name, METRIC_WORDS[name]) for name in METRICS],
        floor=_floor,
        show_real=show_real,
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
