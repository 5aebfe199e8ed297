"""Several reports side by side: figures with intervals, and a ranking for each family of features.

Reports are read from their JSON, so that models can be compared which were evaluated on different days or machines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluate.key_figures import Figure
from evaluate.report_text import FORMAT

SHOWN_FIRST = ("frechet", "kernel", "precision", "recall", "coverage", "memorisation", "detector")


@dataclass(frozen=True)
class Read:
    """A report as compared: its name, its figures by name, its verdicts (part -> level), what it was made of, and the SHA-256 of each family's weights."""

    name: str
    figures: Mapping[str, Figure]
    verdicts: Mapping[str, str]
    compared: Mapping[str, Any]
    weights: Mapping[str, str | None] = field(default_factory=dict)


def read_report(path: str | Path, name: str | None = None) -> Read:
    """Raises FileNotFoundError when there is none, ValueError when it is no report of this version."""
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.get("version", FORMAT["version"]) != FORMAT["version"]:
            raise ValueError(f"its version is {found['version']}, want {FORMAT['version']}")
        figures = {str(key): _figure(one) for key, one in found["figures"].items()}
        verdicts = {str(one["part"]): str(one["level"]) for one in found["verdicts"]}
        weights = {str(one["measure"]["extractor"]): one["measure"]["weights_sha256"] for one in found.get("distances", ())}
        compared = dict(found["compared"])
        _ = compared["real_sha256"], compared["synthetic_sha256"], int(compared["synthetic"]["patches"])
        return Read(name or file.resolve().parent.name, figures, verdicts, compared, weights)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such report; python -m evaluate writes one into its folder --out") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: not a report of this version ({' '.join(str(error).split())[:80]}); evaluate again") from None


def _figure(one: Mapping[str, Any]) -> Figure:
    figure = Figure(**one)
    if not all(isinstance(end, int | float) for end in (figure.value, figure.low or 0, figure.high or 0)):
        raise TypeError(f"no number: {one}")
    return figure


def check_comparable(reports: Sequence[Read]) -> list[str]:
    """What a reader must know before comparing. Raises ValueError where reports must not be compared at all."""
    if len(reports) < 2:
        raise ValueError("one report: give two or more to compare")
    if len({one.name for one in reports}) < len(reports):
        raise ValueError("two reports have one name; name them with --names")
    for key, words in (("real_sha256", "real patches"), ("window", "windows"), ("shape", "shapes")):
        if len({json.dumps(one.compared.get(key)) for one in reports}) > 1:
            raise ValueError(
                f"the reports are of different {words}: distances to different patients cannot be compared; evaluate on one folder"
            )
    for family in dict.fromkeys(family for one in reports for family in one.weights):
        if len({one.weights[family] for one in reports if family in one.weights}) > 1:
            raise ValueError(
                f"{family} has other weights in one report than in another: its distances cannot be compared; evaluate with one file"
            )
    notes = []
    if len(counts := {one.compared["synthetic"]["patches"] for one in reports}) > 1:
        notes.append(
            f"The synthetic sets differ in size ({', '.join(map(str, sorted(counts)))}): distances fall with size. Draw as many of each."
        )
    if len({one.compared["synthetic_sha256"] for one in reports}) < len(reports):
        notes.append("Two reports are of the same synthetic patches.")
    return notes


def figure_names(reports: Sequence[Read]) -> list[str]:
    """Every figure that two reports or more have, the ones people ask for first."""
    names = dict.fromkeys(name for one in reports for name in one.figures)
    shared = [name for name in names if sum(name in one.figures for one in reports) > 1]
    return sorted(shared, key=lambda name: next((n for n, start in enumerate(SHOWN_FIRST) if name.startswith(start)), len(SHOWN_FIRST)))


def ranking(reports: Sequence[Read], figure: str) -> list[list[str]]:
    """Names of the reports from best to worst by one figure; those whose interval reaches the best of a group's share its place.

    Reports without the figure are left out, and a figure without direction ranks nobody.
    """
    has = [one for one in reports if figure in one.figures and one.figures[figure].better != "neither"]
    if not has:
        return []
    sign = 1 if has[0].figures[figure].better == "lower" else -1

    def ends(one: Read) -> tuple[float, float]:
        f = one.figures[figure]
        low, high = sorted(sign * (f.value if end is None else end) for end in (f.low, f.high))
        return low, high

    places: list[list[Read]] = []
    for one in sorted(has, key=lambda one: sign * one.figures[figure].value):
        if places and ends(one)[0] <= ends(places[-1][0])[1]:
            places[-1].append(one)
        else:
            places.append([one])
    return [[one.name for one in place] for place in places]


def in_words(reports: Sequence[Read]) -> Iterator[str]:
    """A sentence for each report with a bad verdict, for each family of features, and one on where they disagree."""
    for one in reports:
        if bad := [part for part, level in one.verdicts.items() if level == "bad"]:
            yield f"{one.name}: the verdict on {' and '.join(bad)} is bad. Being near to real patients does not make up for that; read its report."
    families = [name for name in figure_names(reports) if name.startswith("frechet.") and name.count(".") == 1]
    orders = {name.removeprefix("frechet."): ranking(reports, name) for name in families}
    for family, places in orders.items():
        yield f"By {family}, nearest first: {' < '.join(' ~ '.join(place) for place in places)}."
    for family, places in orders.items():
        rank = {name: n for n, place in enumerate(places) for name in place}
        for other, others in orders.items():
            theirs = {name: n for n, place in enumerate(others) for name in place}
            for a in rank:
                for b in rank:
                    if family < other and rank[a] < rank[b] and theirs.get(a, 0) > theirs.get(b, 0):
                        yield f"{family} and {other} disagree on {a} and {b}: neither is the better one by these features."
    if not families:
        yield "No Fréchet distance stands in two reports: there is nothing to rank."


def to_table(reports: Sequence[Read]) -> list[list[str]]:
    """Rows of cells: a header, the verdicts, then the figures with their intervals."""
    rows = [["", *(one.name for one in reports)]]
    parts = dict.fromkeys(part for one in reports for part in one.verdicts)
    rows += [[f"verdict.{part}", *(one.verdicts.get(part, "") for one in reports)] for part in parts]
    for name in figure_names(reports):
        rows.append([name, *(_cell(one.figures.get(name)) for one in reports)])
    return rows


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    interval = "" if figure.low is None or figure.high is None else f" ({figure.low:.3g} to {figure.high:.3g})"
    return f"{figure.value:.3g}{interval}"


def to_text(rows: Sequence[Sequence[str]]) -> str:
    """The table in columns of equal width."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def to_markdown(rows: Sequence[Sequence[str]], sentences: Sequence[str]) -> str:
    """The sentences as a list, and the table."""
    head, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["# Synthetic lesions: comparison", "", *(f"- {one}" for one in sentences), ""]
    lines += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
    return "\n".join(lines) + "\n"
