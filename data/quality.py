"""What a patch folder holds, counted: patients, classes, scanners, HU, and what preparation left out.

Read from the folder's own tables. series.csv, skipped.csv and augmentation.csv are there or not, by where the
patches come from; augmented copies are counted, and left out of everything else, so that no lesion counts twice.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.near_copies import MOST, SMALLEST, NearCopy, NearCopySearch
from data.patch_table import SERIES_COLUMNS, SKIPPED_COLUMNS
from data.patches import PatchFolder
from data.preprocess import Window

HU_MIN = -32768

_CHUNK_VOXELS = 1 << 22

Track = Callable[[Iterable, str, int], Iterable]


@dataclass(frozen=True)
class SeriesRow:
    """One row of series.csv; "" and None where unknown."""

    series: str
    patient: str
    manufacturer: str
    model: str
    kernel: str
    pixel_mm: float | None
    slice_step_mm: float | None
    slice_thickness_mm: float | None


@dataclass(frozen=True)
class Rows:
    """The patches that count, without augmented copies: arrays of one length N, in the folder's order.

    index: row in the folder. label, patient, series, split, id: str. diameter_mm: NaN where unknown.
    padded: share of the patch that lies outside the scan.
    """

    index: np.ndarray
    id: np.ndarray
    label: np.ndarray
    patient: np.ndarray
    series: np.ndarray
    split: np.ndarray
    diameter_mm: np.ndarray
    padded: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def patients(self, where: np.ndarray | None = None) -> int:
        """How many patients the rows at `where` (bool (N,), all by default) have."""
        return len(np.unique(self.patient if where is None else self.patient[where]))


@dataclass(frozen=True)
class NearCopies:
    """What the search for near copies gave. compared: patches searched, of `of`; pairs: rows of Rows."""

    pairs: tuple[NearCopy, ...]
    compared: int
    of: int


@dataclass(frozen=True)
class Quality:
    """All that is measured of one folder.

    values: class -> how often each value from HU_MIN occurs, int64 (65536,).
    series, skipped: None where the folder has no such file. near_copies: a str says why none were looked for.
    """

    rows: Rows
    augmented: int
    values: Mapping[str, np.ndarray]
    series: tuple[SeriesRow, ...] | None
    skipped: Mapping[tuple[str, str], int] | None
    near_copies: NearCopies | str


def measure(folder: PatchFolder, track: Track = lambda items, words, total: items, seed: int = 0) -> Quality:
    """Measures a patch folder in bounded memory. track(items, words, total) wraps the long loops.

    seed: of the sample that near copies are looked for in, where the folder is large.
    Raises ValueError or OSError naming a damaged file and its line.
    """
    series = read_series(folder.path / "series.csv")
    skipped = read_skipped(folder.path / "skipped.csv")
    rows = scanned_rows(folder)
    return Quality(
        rows, len(folder) - len(rows), value_counts(folder, rows, track), series, skipped, near_copies(folder, rows, track, seed)
    )


def scanned_rows(folder: PatchFolder) -> Rows:
    """The folder's rows without augmented copies. Raises ValueError when nothing is left, or augmentation.csv is damaged."""
    table, copies = folder.rows, read_augmented(folder.path / "augmentation.csv")
    ids = table.names("id")
    index = np.flatnonzero(~np.isin(ids, sorted(copies))) if copies else np.arange(len(ids))
    if not len(index):
        raise ValueError(f"{folder.path / 'augmentation.csv'}: lists every patch as an augmented copy; the originals must be there, too")
    return Rows(
        index, ids[index], table.names("label", index), table.names("patient", index), table.names("series", index),
        table.names("split", index), table.diameter_mm[index], table.padded[index],
    )  # fmt: skip


def value_counts(folder: PatchFolder, rows: Rows, track: Track = lambda items, words, total: items) -> dict[str, np.ndarray]:
    """class -> how often each int16 value occurs in its patches, from HU_MIN up: int64 (65536,)."""
    counts = {label: np.zeros(1 << 16, np.int64) for label in folder.classes}
    step = max(1, _CHUNK_VOXELS // int(np.prod(folder.shape)))
    jobs = [
        (label, of_class[n : n + step])
        for label in folder.classes
        for of_class in [rows.index[rows.label == label]]
        for n in range(0, len(of_class), step)
    ]
    for label, chunk in track(jobs, "reading values", len(jobs)):
        counts[label] += np.bincount(folder.hu(chunk).ravel().astype(np.int32) - HU_MIN, minlength=1 << 16)
    return counts


def near_copies(folder: PatchFolder, rows: Rows, track: Track = lambda items, words, total: items, seed: int = 0) -> NearCopies | str:
    """Near copies of patches under another patient, or why none were looked for."""
    if folder.spec.origin == "synthetic":
        return "synthetic patches have no patients (`python -m evaluate` looks for copies of real ones)"
    if min(folder.shape) < SMALLEST:
        return f"patches of fewer than {SMALLEST} pixels along a side show too little to tell a copy from chance"
    if rows.patients() < 2:
        return "there is only one patient"
    sample = np.arange(len(rows))
    if len(rows) > MOST:
        sample = np.sort(np.random.default_rng(seed).choice(len(rows), MOST, replace=False))
    search = NearCopySearch(folder.shape, folder.window)
    step = max(1, _CHUNK_VOXELS // 4 // int(np.prod(folder.shape)))
    chunks = [sample[n : n + step] for n in range(0, len(sample), step)]
    for chunk in track(chunks, "reading details", len(chunks)):
        search.add(folder.hu(rows.index[chunk]))
    found = search.find(rows.patient[sample], lambda items, total: track(items, "comparing patches", total))
    pairs = tuple(NearCopy(int(sample[c.first]), int(sample[c.second]), c.detail, c.mirrored) for c in found)
    return NearCopies(pairs, len(sample), len(rows))


def outside_window(counts: np.ndarray, window: Window) -> tuple[float, float]:
    """Shares of the voxels at or below the window's low end, and at or above its high end: what shows as -1 or +1."""
    low, high = (int(np.clip(end, HU_MIN, -HU_MIN - 1)) - HU_MIN for end in (np.floor(window[0]), np.ceil(window[1])))
    total = max(int(counts.sum()), 1)
    return float(counts[: low + 1].sum() / total), float(counts[high:].sum() / total)


def value_quantiles(counts: np.ndarray, shares: Sequence[float]) -> list[int]:
    """The values below which these shares of the voxels lie."""
    reached = np.cumsum(counts)
    return [int(np.searchsorted(reached, share * reached[-1])) + HU_MIN for share in shares]


def contact_rows(rows: Rows, label: str, most: int = 36) -> np.ndarray:
    """At most `most` rows of a class at even steps, as many from each of its patients: int64 (n,)."""
    of_class = np.flatnonzero(rows.label == label)
    by_patient = of_class[np.argsort(rows.patient[of_class], kind="stable")]
    patients, first = np.unique(rows.patient[by_patient], return_index=True)
    each = -(-most // max(len(patients), 1))
    chosen = [mine[_even_steps(len(mine), each)] for mine in np.split(by_patient, first[1:])]
    together = np.concatenate(chosen)
    return together[_even_steps(len(together), most)]


def _even_steps(count: int, most: int) -> np.ndarray:
    """int64: at most `most` of the places 0 to count - 1."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def patients_by(rows: Rows, series: Iterable[SeriesRow], what: str) -> dict[str, Counter[str]]:
    """class -> known values of a column of series.csv, such as "kernel" -> patients of the class with it."""
    value_of = {row.series: getattr(row, what) for row in series}
    seen: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for label, patient, uid in zip(rows.label.tolist(), rows.patient.tolist(), rows.series.tolist(), strict=True):
        if value_of.get(uid):
            seen[label].add((value_of[uid], patient))
    return {label: Counter(value for value, _ in pairs) for label, pairs in seen.items()}


def read_series(file: Path) -> tuple[SeriesRow, ...] | None:
    """series.csv, None where it is absent. Raises ValueError naming the line that is wrong."""
    rows = _read(file, SERIES_COLUMNS)
    if rows is None:
        return None
    return tuple(
        SeriesRow(
            row["series"], row["patient"], row["manufacturer"], row["model"], row["kernel"],
            *(_length(file, line, row, name) for name in ("pixel_mm", "slice_step_mm", "slice_thickness_mm")),
        )
        for line, row in rows
    )  # fmt: skip


def read_skipped(file: Path) -> Counter[tuple[str, str]] | None:
    """skipped.csv as (kind, reason) -> count, None where it is absent. Raises ValueError naming the line that is wrong."""
    rows = _read(file, SKIPPED_COLUMNS)
    if rows is None:
        return None
    counts: Counter[tuple[str, str]] = Counter()
    for line, row in rows:
        if not row["count"].isascii() or not row["count"].isdigit():
            raise ValueError(f"{file}: line {line}: count {row['count']!r} is no whole number")
        counts[row["kind"], row["reason"]] += int(row["count"])
    return counts


def read_augmented(file: Path) -> set[str]:
    """Ids of the augmented copies that augmentation.csv lists; none where it is absent."""
    return {row["id"] for _, row in _read(file, ("id", "source_id")) or ()}


def _read(file: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]] | None:
    """(line, row) of a CSV table that has at least these columns."""
    if not file.exists():
        return None
    try:
        with open(file, newline="", encoding="utf-8") as content:
            table = csv.DictReader(content, strict=True)
            missing = [name for name in columns if name not in (table.fieldnames or ())]
            if missing:
                raise ValueError(f"{file}: has no column {missing[0]}; want {','.join(columns)}")
            rows = [(table.line_num, row) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: not a CSV table in UTF-8 ({error})") from None
    for line, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{file}: line {line}: want {len(row) - (None in row)} cells, as in the first line")
    return rows


def _length(file: Path, line: int, row: Mapping[str, str], name: str) -> float | None:
    if not row[name]:
        return None
    try:
        mm = float(row[name])
    except ValueError:
        mm = np.nan
    if not 0 < mm < 1e4:
        raise ValueError(f"{file}: line {line}: {name} {row[name]!r} is no length in mm")
    return mm
