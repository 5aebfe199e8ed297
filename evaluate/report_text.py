"""A report in writing: as JSON for programs, as Markdown for a repository or a ticket, as lines for the terminal."""

import math
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np

from evaluate.features import INCEPTION
from evaluate.key_figures import Figure, key_figures
from evaluate.report import Distance, Report
from evaluate.summary import limits_of, number, what_was_compared
from evaluate.verdict import Verdict, verdicts_of

FORMAT = {"format": "lesiongan evaluation", "version": 2}


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON types; NaN becomes null. Conventional keys stand at the top, for Inception only.

    `verdicts` and `figures` (see key_figures.py) are in short what follows in full.
    """
    short = {
        "verdicts": [_plain(one) for one in verdicts_of(report)],
        "figures": {name: _plain(asdict(one)) for name, one in key_figures(report).items()},
    }
    return {**FORMAT, **conventional_keys(report), **short, **_plain(report)}


def conventional_keys(report: Report) -> dict[str, float]:
    """The keys that torch-fidelity and prdc write, where Inception features were used; otherwise nothing."""
    found = {d.metric: d.value for d in report.distances if d.measure.extractor == INCEPTION and d.reference == report.compared.reference}
    if not found:
        return {}
    keys = {"frechet_inception_distance": found["frechet"]}
    if report.kernel_over_subsets:
        mean, sd = report.kernel_over_subsets
        keys |= {"kernel_inception_distance_mean": mean, "kernel_inception_distance_std": sd}
    return keys | {name: found[name] for name in ("precision", "recall", "density", "coverage") if name in found}


def _plain(value: Any) -> Any:
    if isinstance(value, Distance):
        own = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"title": value.title, **own}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_markdown(report: Report) -> str:
    """Verdicts, key figures and limits as Markdown."""
    lines = ["# Synthetic lesions: evaluation", "", what_was_compared(report), ""]
    for verdict in verdicts_of(report):
        lines += [f"## {verdict.part.capitalize()}: {verdict.headline}", ""]
        lines += [f"- {sentence}" for sentence in _sentences(verdict)]
        lines.append("")
    lines += ["## Figures", "", "| figure | value | 95 % interval |", "| --- | --- | --- |"]
    lines += [f"| {name.replace('|', '/')} | {number(one.value)} | {_interval(one)} |" for name, one in key_figures(report).items()]
    lines += ["", "## What this cannot say", "", *(f"- {one}" for one in (*report.notes, *limits_of(report))), ""]
    lines.append(
        f"Seed {report.compared.seed}; content hashes: real {report.compared.real_sha256}, synthetic {report.compared.synthetic_sha256}."
    )
    return "\n".join(lines) + "\n"


def in_lines(report: Report) -> Iterator[str]:
    """What a terminal shows: the sets, and each verdict with what it rests on."""
    yield what_was_compared(report)
    for verdict in verdicts_of(report):
        yield f"\n{verdict.part.upper()}: {verdict.headline}"
        for sentence in _sentences(verdict):
            yield f"  - {sentence}"


def _sentences(verdict: Verdict) -> list[str]:
    return [*(one.sentence for one in verdict.findings), *verdict.evidence, *(f"Caution: {one}" for one in verdict.doubt)]


def _interval(figure: Figure) -> str:
    return "" if figure.low is None or figure.high is None else f"{number(figure.low)} to {number(figure.high)}"
