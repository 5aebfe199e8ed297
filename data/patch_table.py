"""The table of a patch folder, patches.csv: one row a patch, read once into NumPy columns.

A million rows take about 100 MB and a few seconds; a `PatchRow` is made when it is asked for.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

SPLITS = ("train", "validation", "test", "synthetic")
COLUMNS = (
    "id", "patient", "series", "class", "diameter_mm", "center_x_mm", "center_y_mm", "center_z_mm", "padded", "split", "shard", "row",
)  # fmt: skip
SERIES_COLUMNS = (
    "series", "patient", "format", "manufacturer", "model", "kernel", "slices", "rows", "columns", "pixel_mm", "slice_step_mm",
    "slice_thickness_mm",
)  # fmt: skip
SKIPPED_COLUMNS = ("kind", "id", "count", "reason")
"""Of series.csv and skipped.csv, which `prepare` puts beside patches.csv."""
_ROWS_AT_ONCE = 16_384
_LONGEST_NAME = 64


class PatchRow(NamedTuple):
    """One row of patches.csv. padded: the share of the patch's voxels that lie outside the scan, 0 to 1."""

    id: str
    patient: str
    series: str
    label: str
    diameter_mm: float | None
    center_mm: tuple[float, float, float] | None
    padded: float
    split: str
    shard: int
    row: int

    def cells(self) -> list[str | int]:
        """The row as it stands in patches.csv."""
        diameter = "" if self.diameter_mm is None else f"{self.diameter_mm:.2f}"
        centre = ["", "", ""] if self.center_mm is None else [f"{mm:.3f}" for mm in self.center_mm]
        padded = f"{self.padded:.3f}" if self.padded else "0"
        return [*self[:4], diameter, *centre, padded, self.split, self.shard, self.row]


class PatchTable:
    """The N rows of a patches.csv: `table[n]` is a PatchRow, and iterating gives them in order.

    As columns: shard and row, int32 (N,), where the pixels are; diameter_mm (N,), center_mm (N, 3) and padded (N,),
    float64, NaN where unknown; and `names`.
    """

    def __init__(self, columns: dict[str, np.ndarray], classes: Sequence[str]):
        """columns: see _columns; emptied on the way, so that what was read is not kept beside what is made of it."""
        self.shard, self.row = columns.pop("shard"), columns.pop("row")
        self.diameter_mm, self.center_mm, self.padded = (columns.pop(name) for name in ("diameter_mm", "center_mm", "padded"))
        self._names = {"id": columns.pop("id"), "label": np.array(classes, dtype=str), "split": np.array(SPLITS)}
        self._codes = {"label": columns.pop("class"), "split": columns.pop("split")}
        for name in ("patient", "series"):
            self._names[name], codes = np.unique(columns.pop(name), return_inverse=True)
            self._codes[name] = codes.astype(np.int32)

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, n: int) -> PatchRow:
        n = range(len(self))[n]
        return next(self._made(slice(n, n + 1)))

    def __iter__(self) -> Iterator[PatchRow]:
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self._made(slice(start, start + _ROWS_AT_ONCE))

    def _made(self, part: slice) -> Iterator[PatchRow]:
        text = (self.names(name, part).tolist() for name in ("id", "patient", "series", "label"))
        diameters = (None if math.isnan(mm) else mm for mm in self.diameter_mm[part].tolist())
        centres = (None if math.isnan(x) else (x, y, z) for x, y, z in self.center_mm[part].tolist())
        others = (values.tolist() for values in (self.padded[part], self.names("split", part), self.shard[part], self.row[part]))
        return map(PatchRow, *text, diameters, centres, *others)

    def names(
        self, column: Literal["id", "patient", "series", "label", "split"], indices: np.ndarray | slice | int = slice(None)
    ) -> np.ndarray:
        """One column of text, of the rows at these indices: an array of str."""
        places = self._codes[column][indices] if column in self._codes else indices
        return self._names[column][places].astype(str)

    def where(self, splits: Collection[str], labels: Collection[str]) -> np.ndarray:
        """int64 (N,): indices of the rows in these splits and with these labels, in order."""
        return np.flatnonzero(self._is_in("split", splits) & self._is_in("label", labels))

    def _is_in(self, column: str, wanted: Collection[str]) -> np.ndarray:
        return np.array([name in wanted for name in self._names[column].tolist()])[self._codes[column]]

    def check(self, path: Path) -> None:
        """Raises ValueError when an id is there twice or a patient is in two splits. path: for the message."""
        ids = self._names["id"]
        ordered = np.sort(ids)
        doubled = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(doubled):
            line = 2 + int(np.flatnonzero(ids == doubled[0])[1])
            raise ValueError(f"{path}: line {line}: id {doubled[0].decode()} is there twice")
        patient, split = self._codes["patient"], self._codes["split"]
        split_of = np.empty(len(self._names["patient"]), split.dtype)
        split_of[patient] = split
        torn = np.flatnonzero(split_of[patient] != split)
        if len(torn):
            rows = np.flatnonzero(patient == patient[torn[0]])
            other = rows[split[rows] != split[rows[0]]][0]
            raise ValueError(
                f"{path}: line {2 + int(other)}: patient {self.names('patient', int(other))} is in the splits "
                f"{self.names('split', int(rows[0]))} and {self.names('split', int(other))}; splits must not share patients"
            )


def read_table(path: Path, classes: Sequence[str]) -> PatchTable:
    """Reads and checks patches.csv. Raises ValueError naming the line that does not fit, OSError when it cannot be read."""
    columns: dict[str, np.ndarray] = {}
    room, filled = _lines(path), 0
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.reader(file)
        try:
            if tuple(next(table, ())) != COLUMNS:
                raise ValueError(f"{path}: its columns are not {', '.join(COLUMNS)}")
            while rows := list(islice(table, _ROWS_AT_ONCE)):
                for name, values in _checked_columns(path, filled + 2, rows, classes).items():
                    column = columns.setdefault(name, np.empty((room, *values.shape[1:]), values.dtype))
                    if column.itemsize < values.itemsize:  # longer names than before
                        column = columns[name] = column.astype(values.dtype)
                    column[filled : filled + len(rows)] = values
                filled += len(rows)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: near line {table.line_num}: not a CSV file in UTF-8 ({error})") from None
    if not filled:
        raise ValueError(f"{path}: no patches in it")
    read = PatchTable({name: column[:filled] for name, column in columns.items()}, classes)
    read.check(path)
    return read


def _lines(path: Path) -> int:
    """How many lines the table has at most, its head left out."""
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 16), b""))


def check_name(what: str, name: str) -> None:
    """Raises ValueError when an id or a pseudonym is unfit for a CSV cell. what: which of them, for the message."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_. -]*", name) or len(name) > _LONGEST_NAME:
        raise ValueError(f"{what} {name!r}: want letters, digits, '_', '-', '.' or spaces, at most {_LONGEST_NAME}")


def _checked_columns(path: Path, line: int, rows: list[list[str]], classes: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns of the rows that begin at this line; where they cannot be read, row by row to find out which it is."""
    try:
        return _columns(rows, classes)
    except ValueError:
        for number, row in enumerate(rows, line):
            try:
                _columns([row], classes)
            except ValueError as error:
                raise ValueError(f"{path}: line {number}: {error}") from None
        raise


def _columns(rows: list[list[str]], classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Rows of cells as columns: bytes for names, codes for class and split, mm in float64, NaN where a cell is empty."""
    if {len(row) for row in rows} != {len(COLUMNS)}:
        raise ValueError(f"want {len(COLUMNS)} cells a row")
    cells = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    names = {name: _names(name, cells[name]) for name in ("id", "patient", "series")}
    centre = np.stack([_numbers(f"center_{axis}_mm", cells[f"center_{axis}_mm"]) for axis in "xyz"], axis=1)
    if (np.isnan(centre).any(axis=1) != np.isnan(centre).all(axis=1)).any():
        raise ValueError("the centre needs x, y and z, or none of them")
    padded = _numbers("padded", cells["padded"])
    if not ((padded >= 0) & (padded <= 1)).all():
        raise ValueError("padded must be a share from 0 to 1")
    try:
        label, split = _codes(cells["class"], classes), _codes(cells["split"], SPLITS)
        shard, row = (np.array([int(cell) for cell in cells[name]], np.int64) for name in ("shard", "row"))
        if min(shard.min(), row.min()) < 0 or max(shard.max(), row.max()) > np.iinfo(np.int32).max:
            raise OverflowError
    except (KeyError, ValueError, OverflowError):
        raise ValueError("unknown split, class or place in the shards") from None
    return {
        **names, "class": label.astype(np.int32), "diameter_mm": _numbers("diameter_mm", cells["diameter_mm"]), "center_mm": centre,
        "padded": padded, "split": split.astype(np.int8), "shard": shard.astype(np.int32), "row": row.astype(np.int32),
    }  # fmt: skip


def _names(column: str, cells: Sequence[str]) -> np.ndarray:
    joined = "".join(cells)
    if not (joined.isascii() and joined.isprintable()) or "" in cells or max(map(len, cells)) > _LONGEST_NAME:
        raise ValueError(f"{column} must have 1 to {_LONGEST_NAME} plain characters")
    return np.array(cells, dtype="S")


def _codes(cells: Sequence[str], known: Sequence[str]) -> np.ndarray:
    places = {name: n for n, name in enumerate(known)}
    return np.array([places[cell] for cell in cells])


def _numbers(column: str, cells: Sequence[str]) -> np.ndarray:
    values = np.array([float(cell) if cell else np.nan for cell in cells])
    if np.isfinite(values).sum() != len(cells) - cells.count(""):
        raise ValueError(f"{column} must be a number or empty")
    return values
