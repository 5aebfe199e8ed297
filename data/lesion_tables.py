"""Lesion lists as CSV: a row for each lesion, as a point or as a mask."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from data.lesion_list import BACKGROUND, DEFAULT_CLASS, LUNA16_COLUMNS, LesionList, ListConfig, Listed, class_of
from data.masks import MaskFile
from data.nifti import stem
from data.sources import METAIMAGE, NIFTI, Source, Unreadable
from data.volume import Lesion, Volume

SAME_AGAIN = "the same lesion as in an earlier row"
_WANTED = f"want {','.join(LUNA16_COLUMNS)}[,class], or image,x,y,z[,diameter,class,patient_id], or image,mask[,class]"
_SERIES = ("seriesuid", "series_uid", "series", "image", "file")
_POINTS = (("coordx", "coordy", "coordz"), ("x", "y", "z"))
_CANDIDATES = ["seriesuid", "coordx", "coordy", "coordz", "class"]
_CANDIDATE_CLASSES = {"0": BACKGROUND, "1": "nodule"}


@dataclass(frozen=True, eq=False, repr=False)
class Points:
    """Lesions that a CSV lists for one series.

    centers: float64 (N, 3), LPS mm, or voxel i, j, k where `voxel`. diameters_mm: float64 (N,), NaN where not known.
    """

    centers: np.ndarray
    diameters_mm: np.ndarray
    labels: tuple[str, ...]
    voxel: bool = False

    def locate(self, volume: Volume) -> tuple[list[Lesion], Counter[str]]:
        """Every lesion listed, also those outside the volume."""
        centers = self.centers
        if self.voxel:
            centers = centers[:, ::-1] @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        rows = zip(centers.tolist(), self.diameters_mm.tolist(), self.labels, strict=True)
        return [Lesion((x, y, z), None if math.isnan(mm) else mm, label) for (x, y, z), mm, label in rows], Counter()

    def __repr__(self) -> str:
        content = self.centers.tobytes() + self.diameters_mm.tobytes() + "\0".join(self.labels).encode()
        return f"Points({len(self.labels)}, voxel={self.voxel}, sha256={hashlib.sha256(content).hexdigest()})"


@dataclass(frozen=True)
class _Columns:
    """Which cell of a row holds what; None for what the list does not hold."""

    width: int
    series: int
    point: tuple[int, int, int] | None
    diameter: int | None
    label: int | None
    mask: int | None
    patient: int | None
    candidates: bool


def read_table(path: Path, config: ListConfig) -> LesionList:
    """A CSV of points or of masks, as read_lesions says; malformed rows are told in `problems`.

    Raises Unreadable naming the line where it is no such CSV, or where no row is left.
    """
    problems: list[tuple[int, str]] = []
    line = 0  # of the last whole row
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.reader(file, strict=True)
            rows = _Rows(path, _columns(path, next(table, []), config), config)
            line = table.line_num
            for row in table:
                if table.line_num > line + 1:  # a missing quote would swallow the rows in between
                    raise Unreadable(path, f"line {line + 1}: a quoted cell goes over several lines; a quote is missing or too many")
                line = table.line_num
                try:
                    if row:
                        rows.add(row, table.line_num)
                except ValueError as why:
                    problems.append((table.line_num, str(why)))
    except UnicodeDecodeError as error:
        raise Unreadable(path, "not a CSV file in UTF-8; save it as one", str(error)) from None
    except csv.Error as error:
        raise Unreadable(path, f"line {line + 1}: not CSV; a quote is missing or too many", str(error)) from None
    series = rows.finish(problems)
    if not series:
        raise (
            Unreadable(path, f"line {problems[0][0]}: {problems[0][1]}", "no row is left")
            if problems
            else Unreadable(path, "no lesion in it")
        )
    return LesionList(series, rows.patients, tuple(sorted(problems)))


def _columns(path: Path, head: list[str], config: ListConfig) -> _Columns:
    names = [name.strip().lower() for name in head]
    if not "".join(names):
        raise Unreadable(path, "empty, or its first line is")
    other = next((mark for mark in ";\t" if mark in "".join(names)), None)
    hint = f", separated by commas, not by {'semicolons' if other == ';' else 'tabs'}; and numbers with a decimal point" if other else ""

    def find(*wanted: str) -> int | None:
        name = next((name for name in wanted if name in names), None)
        if name and names.count(name) > 1:
            raise Unreadable(path, "two columns of one name", name)
        return names.index(name) if name else None

    series = find(*_SERIES)
    if series is None:
        raise Unreadable(path, f"no column {_SERIES[0]}; {_WANTED}{hint}")
    found = [tuple(find(axis) for axis in axes) for axes in _POINTS]
    point = next(((x, y, z) for x, y, z in found if x is not None and y is not None and z is not None), None)
    mask = find("mask")
    if point is None and mask is None:
        raise Unreadable(path, f"no column coordX, coordY, coordZ; {_WANTED}{hint}")
    label = find(config.class_from.strip().lower()) if config.class_from else find("class", "label")
    if config.class_from and label is None:
        raise Unreadable(path, f"no column {config.class_from} in its first line to read the classes from")
    return _Columns(
        len(names), series, point, find("diameter_mm", "diameter"), label, mask, find("patient_id", "patient"), names == _CANDIDATES
    )


class _Rows:
    """The rows read so far, kept small: LUNA16's candidates are three quarters of a million."""

    def __init__(self, path: Path, columns: _Columns, config: ListConfig):
        self.folder, self.columns, self.config = path.parent, columns, config
        self.classes = {**(_CANDIDATE_CLASSES if columns.candidates else {}), **dict(config.classes)}
        self.patients: dict[str, str] = {}
        self._points: dict[str, tuple[array, array]] = {}  # series -> x, y, z, diameter, class number; line
        self._masks: dict[str, list[Listed]] = {}
        self._names: dict[str, str] = {}  # series cell -> series
        self._labels: dict[str, str] = {}  # class cell -> class
        self._numbers: dict[str, int] = {DEFAULT_CLASS: 0}  # class -> its number

    def add(self, row: list[str], line: int) -> None:
        """Takes a row in, or raises ValueError with the reason, in which no cell is quoted."""
        columns = self.columns
        if len(row) != columns.width:
            more = "; a decimal comma, perhaps: write numbers with a decimal point" if len(row) > columns.width else ""
            raise ValueError(f"has not the {columns.width} cells that the first line names{more}")
        series = self._series(row[columns.series])
        label = self._label(row[columns.label]) if columns.label is not None else None
        if columns.mask is not None:
            mask = self._mask(row[columns.mask], label)
            if mask in self._masks.get(series, ()):
                raise ValueError(SAME_AGAIN)
            self._check_patient(series, row)
            self._masks.setdefault(series, []).append(mask)
            return
        assert columns.point is not None
        x, y, z = (_number(row[n], "a coordinate") for n in columns.point)
        diameter = math.nan
        if columns.diameter is not None and row[columns.diameter].strip():
            diameter = _number(row[columns.diameter], "the diameter")
            if not 0 < diameter < 500:
                raise ValueError("the diameter is not between 0 and 500 mm")
        self._check_patient(series, row)
        values, lines = self._points.setdefault(series, (array("d"), array("q")))
        values.extend((x, y, z, diameter, self._numbers.setdefault(label or DEFAULT_CLASS, len(self._numbers))))
        lines.append(line)

    def finish(self, problems: list[tuple[int, str]]) -> dict[str, tuple[Listed, ...]]:
        """All series; rows that say the same again go to `problems`."""
        series: dict[str, tuple[Listed, ...]] = {name: tuple(masks) for name, masks in self._masks.items()}
        names = list(self._numbers)
        turn = np.array([-1.0, -1.0, 1.0] if self.config.coordinates == "ras" else [1.0, 1.0, 1.0])
        for name, (values, lines) in self._points.items():
            rows = np.array(values).reshape(-1, 5)
            _, first = np.unique(np.nan_to_num(rows, nan=-1), axis=0, return_index=True)
            problems.extend((lines[n], SAME_AGAIN) for n in set(range(len(rows))) - set(first.tolist()))
            rows = rows[np.sort(first)]
            labels = tuple(names[int(number)] for number in rows[:, 4])
            series[name] = (Points(rows[:, :3] * turn, rows[:, 3].copy(), labels, self.config.coordinates == "voxel"),)
        return series

    def _series(self, cell: str) -> str:
        if cell not in self._names:
            name = stem(Path(PureWindowsPath(cell.strip()).name))
            if not name:
                raise ValueError("the series is missing")
            self._names[cell] = name
        return self._names[cell]

    def _label(self, cell: str) -> str:
        if cell not in self._labels:
            self._labels[cell] = class_of(cell.strip(), self.classes)
        return self._labels[cell]

    def _mask(self, cell: str, label: str | None) -> Listed:
        named = PureWindowsPath(cell.strip())  # takes / and \ for separators, and knows drives
        if not named.name or named.anchor or ".." in named.parts:
            raise ValueError("the mask is missing, or not a path inside the list's folder")
        source = Source(self.folder / PurePosixPath(*named.parts))
        if not named.name.lower().endswith(NIFTI + METAIMAGE):
            raise ValueError("the mask is neither NIfTI nor MetaImage")
        if not source.path.is_file():
            raise ValueError("the mask is not there")
        return MaskFile(source, source.version(), label, self.config.classes)

    def _check_patient(self, series: str, row: list[str]) -> None:
        patient = row[self.columns.patient].strip() if self.columns.patient is not None else ""
        if patient and self.patients.setdefault(series, patient) != patient:
            raise ValueError("another patient than in an earlier row of its series")


def _number(cell: str, what: str) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in cell:  # Python reads 1_0 as 10
        if re.fullmatch(r"\s*[-+]?\d+,\d+\s*", cell):
            raise ValueError(f"{what} has a decimal comma; write numbers with a decimal point")
        raise ValueError(f"{what} is {'not a finite number' if cell.strip() else 'missing'}")
    return number
