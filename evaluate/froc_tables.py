"""The tables of LUNA16's evaluation: candidates, nodules, excluded findings and the list of scans.

CSV in UTF-8, the first line names the columns. What is not as it should be is a ValueError of one line that names file, line and cause: no
series UID is in it, for they are identifiers.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SERIES = "seriesuid"
POSITION = ("coordX", "coordY", "coordZ")
FARTHEST_MM = 100_000.0


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of a CSV: the line that each stands on, its series, and its numbers, float64 (N, C): x, y, z and one more."""

    path: Path
    lines: Sequence[int]
    series: Sequence[str]
    numbers: NDArray[np.float64]

    def refuse(self, wrong: NDArray[np.bool_], why: str) -> None:
        """Raises ValueError that names the first row where `wrong`, (N,), holds."""
        if wrong.any():
            raise ValueError(f"{self.path}: line {self.lines[int(wrong.argmax())]}: {why}")


def read_results(path: Path) -> Table:
    """A detector's candidates; the last number is the probability. Raises ValueError or OSError."""
    table = _read(path, "probability")
    _refuse_repeated(table)
    return table


def read_annotations(path: Path) -> Table:
    """Nodules; the last number is the diameter in mm. Raises ValueError or OSError."""
    table = _read(path, "diameter_mm")
    table.refuse((table.numbers[:, 3] <= 0) | (table.numbers[:, 3] >= 500), "the diameter is not between 0 and 500 mm")
    _refuse_repeated(table)
    return table


def read_excluded(path: Path) -> Table:
    """Findings that are not to count; the last number is the diameter in mm, negative where not known. Raises ValueError or OSError."""
    table = _read(path, "diameter_mm")
    table.refuse(table.numbers[:, 3] >= 500, "the diameter is not below 500 mm")
    return table


def read_scans(path: Path) -> list[str]:
    """The series in a list: one a line, or the column seriesuid of a CSV. Raises ValueError or OSError."""
    rows = list(_rows(path))
    names = [cell.strip().lower() for cell in rows[0][1]]
    column, width = (_column(path, names, SERIES), len(names)) if SERIES in names else (0, 1)
    lines: dict[str, int] = {}
    for line, row in rows[1 if SERIES in names else 0 :]:
        cell = row[column].strip() if len(row) == width else ""
        if not cell or ";" in cell or "\t" in cell:
            raise ValueError(f"{path}: line {line}: want one series UID a line, or a CSV with a column {SERIES}")
        if lines.setdefault(cell, line) != line:
            raise ValueError(f"{path}: line {line}: the same series as in line {lines[cell]}; leave one of them out")
    if not lines:
        raise ValueError(f"{path}: no series in it")
    return list(lines)


def _read(path: Path, value: str) -> Table:
    """The table with the columns seriesuid, coordX, coordY, coordZ and `value`; others may stand beside them."""
    rows = _rows(path)
    names = [cell.strip().lower() for cell in next(rows)[1]]
    wanted = (SERIES, *POSITION, value)
    series, *columns = (_column(path, names, name, f"; want {','.join(wanted)} in the first line") for name in wanted)
    words = ("a coordinate", "a coordinate", "a coordinate", f"the {'diameter' if value == 'diameter_mm' else value}")
    lines, uids, numbers = [], [], []
    for line, row in rows:
        try:
            if len(row) != len(names):
                raise ValueError(f"has {len(row)} cells, and the first line names {len(names)}")
            if not row[series].strip():
                raise ValueError("the series is missing")
            numbers.append([_number(row[n], what) for n, what in zip(columns, words, strict=True)])
        except ValueError as why:
            raise ValueError(f"{path}: line {line}: {why}") from None
        uids.append(row[series].strip())
        lines.append(line)
    table = Table(path, lines, uids, np.array(numbers, np.float64).reshape(-1, len(columns)))
    table.refuse(np.abs(table.numbers[:, :3]).max(1, initial=0) > FARTHEST_MM, "a coordinate is more than 100 m from the origin; want mm")
    return table


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with cells, one at least, and the line that each stands on."""
    line, some = 0, False  # of the last whole row
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file, strict=True)
            for row in table:
                if table.line_num > line + 1:  # a missing quote would swallow the rows in between
                    raise ValueError(f"{path}: line {line + 1}: a quoted cell goes over several lines; a quote is missing or too many")
                line = table.line_num
                if row:
                    some = True
                    yield line, row
    except UnicodeDecodeError:
        raise ValueError(f"{path}: line {line + 1} or after: not a CSV file in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path}: line {line + 1}: not CSV ({error}); a quote is missing or too many, or it is no text") from None
    if not some:
        raise ValueError(f"{path}: empty")


def _column(path: Path, names: Sequence[str], name: str, wanted: str = "") -> int:
    """Where the column stands. names: in small letters."""
    if names.count(name.lower()) != 1:
        joined = "".join(names)
        other = next((word for mark, word in ((";", "semicolons"), ("\t", "tabs")) if mark in joined), None)
        hint = f", separated by commas, not by {other}" if other else ""
        raise ValueError(f"{path}: {'two columns' if name.lower() in names else 'no column'} {name}{wanted}{hint}")
    return names.index(name.lower())


def _number(cell: str, what: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in cell:  # Python reads 1_0 as 10
        raise ValueError(f"{what} is {'not a finite number' if cell.strip() else 'missing'}")
    return number


def _refuse_repeated(table: Table) -> None:
    """Raises ValueError naming both rows where one says what an earlier one says."""
    numbers: dict[str, int] = {}
    rows = np.column_stack([[numbers.setdefault(uid, len(numbers)) for uid in table.series], table.numbers])
    order = np.lexsort(rows.T)  # stable, so of equal rows the earlier one comes first
    again = (rows[order][1:] == rows[order][:-1]).all(1)
    if again.any():
        second, first = min(zip(order[1:][again].tolist(), order[:-1][again].tolist(), strict=True))
        raise ValueError(f"{table.path}: line {table.lines[second]}: says the same as line {table.lines[first]}; leave one of them out")
