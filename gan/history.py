"""The metrics of a run over its steps, as RUN/metrics.jsonl holds them.

A history is a mapping a line, in order of step: "step", and any of the metrics; in lines with validation also
"validation/MEASURE", "validation/MEASURE/CLASS" and "validation/floor/MEASURE". Of validation distances less is better; the floor is
what two halves of the real patients differ by.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

History = Sequence[Mapping[str, float]]

OVERALL = "Distance to held-out patients"
"""What the distances over all classes are called."""


def read_history(metrics: Path) -> list[dict[str, float]]:
    """The history in a metrics.jsonl: its numbers; empty where there is no such file yet.

    Damaged lines are passed over; of two lines of one step the later counts.
    """
    lines: dict[float, dict[str, float]] = {}
    if not metrics.exists():
        return []
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
            numbers = {name: float(value) for name, value in found.items() if type(value) in (int, float)}
        except (ValueError, AttributeError, OverflowError, RecursionError):
            continue
        if math.isfinite(numbers.get("step", math.nan)):
            lines[numbers["step"]] = numbers
    return [lines[step] for step in sorted(lines)]


def points(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
    """float64 (n,) steps and values of a metric, where it is there and finite."""
    there = [(line["step"], line[name]) for line in history if math.isfinite(line.get(name, math.nan))]
    steps, values = np.array(there, np.float64).reshape(-1, 2).T
    return steps, values


def distances(history: History) -> dict[str, list[tuple[str, str, str]]]:
    """The validation distances, by the title of their panel: each as its metric, its name in the legend and its floor's metric."""
    panels: dict[str, list[tuple[str, str, str]]] = {}
    for name in dict.fromkeys(name for line in history for name in line if math.isfinite(line[name])):
        match name.split("/", 2):
            case ["validation", "floor", _]:
                pass
            case ["validation", measure]:
                panels.setdefault(OVERALL, []).append((name, measure, f"validation/floor/{measure}"))
            case ["validation", measure, label]:
                panels.setdefault(f"{OVERALL}, by class: {measure}", []).append((name, label, f"validation/floor/{measure}/{label}"))
    return panels
