"""The figures of a report by which reports are compared and gates decide: each with a name, an interval and a direction.

Names are words with dots between them: `frechet.radiomics`, `detector.delta.sensitivity`. They stand in report.json as "figures".
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from evaluate.intervals import Floor, Interval
from evaluate.report import DetectorResult, Distance, MemorisationResult, Metric, Report
from evaluate.scores import METRICS
from evaluate.verdict import Level, Part

Better = Literal["lower", "higher", "neither"]

ALIASES = {"recall": "sensitivity", "fid": "frechet.inception-v3", "kid": "kernel.inception-v3"}
"""Other words for the last part of a name: the recall of a detector is its sensitivity, the FID is the whole name."""


@dataclass(frozen=True)
class Figure:
    """A number, the 95 % interval it has (or None), and in which direction it is better."""

    value: float
    low: float | None = None
    high: float | None = None
    better: Better = "neither"


def key_figures(report: Report) -> dict[str, Figure]:
    """The figures of a report by name, most important first."""
    return dict(_figures(report))


def _figures(report: Report) -> Iterator[tuple[str, Figure]]:
    for d in report.distances:
        if d.reference == report.compared.reference:
            yield from _of_distance(f"{d.metric}.{d.measure.extractor}", d)
    for row in report.classes:
        for d in row.distances:
            yield from _of_distance(f"class.{row.label}.{d.metric}.{d.measure.extractor}", d)
    if report.attributes:
        yield "attributes.differing", Figure(sum(a.p_holm < 0.05 for a in report.attributes), better="lower")
    if isinstance(report.memorisation, MemorisationResult):
        yield from _of_memorisation(report.memorisation)
    if isinstance(report.detector, DetectorResult):
        yield from _of_detector(report.detector)


def _of_distance(name: str, d: Distance) -> Iterator[tuple[str, Figure]]:
    better: Better = "higher" if d.metric in ("precision", "recall", "coverage") else "neither" if d.metric == "density" else "lower"
    yield name, _with_interval(d.value, d.interval if isinstance(d.interval, Interval) else None, better)
    if isinstance(d.floor, Floor) and d.floor.low > 0 and better == "lower":  # how many times something near 0 says nothing
        yield f"{name}.over_floor", Figure(d.floor.synthetic_value / d.floor.value, better="lower")


def _of_memorisation(found: MemorisationResult) -> Iterator[tuple[str, Figure]]:
    yield "memorisation.copies", Figure(len(found.copies), better="lower")
    yield "memorisation.held_out_copies", Figure(len(found.held_out_copies), better="lower")
    yield "memorisation.duplicates", Figure(len(found.duplicates), better="lower")
    yield "memorisation.authenticity", Figure(found.authenticity)
    if found.data_copying is not None:
        yield "memorisation.data_copying", Figure(found.data_copying.z)
    if (m := found.membership) is not None:
        yield "memorisation.membership.auroc", _with_interval(m.auroc, m.auroc_interval, "lower")
        if isinstance(m.tpr_interval, Interval):
            yield "memorisation.membership.tpr", _with_interval(m.tpr_at_1_percent_fpr, m.tpr_interval, "lower")


def _of_detector(found: DetectorResult) -> Iterator[tuple[str, Figure]]:
    """Of the arm with synthetic lesions: its metrics, and their differences to the arm it is compared with."""
    if found.headline is None:
        return
    for name, d in found.differences[found.headline].items():
        yield f"detector.{name}", Figure(found.arms[found.headline][name].mean, better="higher")
        yield f"detector.delta.{name}", _with_interval(d.value, d.interval if isinstance(d.interval, Interval) else None, "higher")


def _with_interval(value: float, interval: Interval | None, better: Better) -> Figure:
    return Figure(value, interval.low if interval else None, interval.high if interval else None, better)


NAME = r"[\w.+:/\- ]+?"
GATE = re.compile(rf"\s*({NAME})\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")
KNOWN = re.compile(
    rf"(class\.{NAME}\.)?({'|'.join(get_args(Metric))})\.{NAME}|attributes\.differing|detector\.(delta\.)?({'|'.join(METRICS)})"
    r"|memorisation\.(copies|held_out_copies|duplicates|authenticity|data_copying|membership\.(auroc|tpr))"
)
"""The figures that a report may have."""
COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """A condition under which a report fails: a figure's name (with .low or .high for an end of its interval, or verdict.PART), and a bound."""

    text: str
    name: str
    sign: str
    bound: str

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Raises ValueError, with an example, for what is no condition."""
        found = GATE.fullmatch(text)
        if not found:
            raise ValueError(f"--fail-if {text!r}: want a figure, a comparison and a bound, such as 'detector.delta.recall < 0'")
        name, sign, bound = found.groups()
        if name.startswith("verdict."):
            if name.removeprefix("verdict.") not in get_args(Part):
                raise ValueError(
                    f"--fail-if {text!r}: no such verdict; there are {', '.join(f'verdict.{part}' for part in get_args(Part))}"
                )
            if sign not in ("==", "!="):
                raise ValueError(f"--fail-if {text!r}: a verdict is a word; compare it by == or !=, such as 'verdict.memorisation == bad'")
            if bound not in get_args(Level):
                raise ValueError(f"--fail-if {text!r}: {bound!r} is no verdict; there are {', '.join(get_args(Level))}")
        else:
            if not KNOWN.fullmatch(_full(re.sub(r"\.(low|high)$", "", name))):
                raise ValueError(
                    f"--fail-if {text!r}: no figure has that name; a report has, such as there are data for, METRIC.FAMILY and "
                    "class.NAME.METRIC.FAMILY (such as frechet.radiomics, coverage.inception-v3), attributes.differing, memorisation.copies, "
                    ".held_out_copies, .duplicates, .authenticity, .data_copying, .membership.auroc, .membership.tpr, detector.METRIC, detector.delta.METRIC "
                    f"(METRIC: {', '.join(METRICS)}), and verdict.{', .'.join(get_args(Part))}"
                )
            try:
                number = float(bound)
            except ValueError:
                number = math.nan
            if math.isnan(number):  # which is neither above nor below anything: the gate would never fail
                raise ValueError(f"--fail-if {text!r}: {bound!r} is no number")
        return cls(text, name, sign, bound)

    def fails(self, figures: Mapping[str, Figure], verdicts: Mapping[str, str]) -> str | None:
        """Why the report fails, in a sentence; None where it does not. A figure that was not measured fails: nobody knows that it is good enough."""
        if self.name.startswith("verdict."):
            level = verdicts[self.name.removeprefix("verdict.")]
            return f"{self.text}: it is {level}" if (level == self.bound) == (self.sign == "==") else None
        value = _value_of(self.name, figures)
        if value is None or math.isnan(value):
            weights = "; it takes --inception-weights FILE" if "inception" in _full(self.name) else ""
            return f"{self.text}: not measured{weights}; report.json has, under figures, {len(figures)} that were, such as {', '.join([*figures][:3])}"
        return f"{self.text}: it is {value:.4g}" if COMPARE[self.sign](value, float(self.bound)) else None


def _value_of(name: str, figures: Mapping[str, Figure]) -> float | None:
    *before, last = name.split(".")
    figure = figures.get(_full(".".join(before) if last in ("low", "high") else name))
    if figure is None:
        return None
    return {"low": figure.low, "high": figure.high}.get(last, figure.value)


def _full(name: str) -> str:
    *before, last = name.split(".")
    return ".".join([*before, ALIASES.get(last, last)])
