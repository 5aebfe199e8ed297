"""Patches of HU and the folder they live in: one format for real and synthetic, 2-D and 3-D.

    dataset.json   what all patches share: shape, spacing_mm, window, unit, classes, content hash
    patches.csv    one row a patch
    shards/*.npy   int16 (rows, *shape), memory-mapped

Values are HU; windowing to [-1, 1] happens on reading. A set imported from gray-level pictures
whose window nobody stated has unit "gray": its values are the gray levels themselves.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data.preprocess import Window, check_window, to_unit

FORMAT = {"format": "lesiongan patch folder", "version": 1}
SHARD_ROWS = 4096
SPLITS = ("train", "validation", "test", "synthetic")
COLUMNS = (
    "id", "patient", "series", "class", "diameter_mm", "center_x_mm", "center_y_mm", "center_z_mm", "split", "shard", "row",
)  # fmt: skip


@dataclass(frozen=True)
class PatchSpec:
    """What the patches of a folder share.

    shape: (H, W) or (D, H, W). spacing_mm: along each axis of shape, None where unknown.
    window: the HU shown as -1 and +1. unit: "HU", or "gray" when no window was stated.
    background: the class of lesion-free patches, if any. origin: where the patches come from.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    window: Window
    classes: tuple[str, ...]
    unit: Literal["HU", "gray"] = "HU"
    background: str | None = None
    origin: Literal["real", "synthetic"] = "real"


@dataclass(frozen=True)
class Patch:
    """One patch to be written: int16 HU of the folder's shape, pseudonyms, and what is known of its lesion."""

    hu: np.ndarray
    patient: str
    series: str
    label: str
    diameter_mm: float | None = None
    center_mm: tuple[float, float, float] | None = None
    split: str | None = None
    id: str | None = None


class PatchRow(NamedTuple):
    """One row of patches.csv."""

    id: str
    patient: str
    series: str
    label: str
    diameter_mm: float | None
    center_mm: tuple[float, float, float] | None
    split: str
    shard: int
    row: int


class PatchFolder:
    """A patch folder, open for reading. Shards stay on disk until their patches are asked for."""

    def __init__(self, path: Path, spec: PatchSpec, content_hash: str, rows: list[PatchRow]):
        self.path, self.spec, self.content_hash, self.rows = path, spec, content_hash, rows
        self._shard = np.array([row.shard for row in rows], dtype=np.int64)
        self._row = np.array([row.row for row in rows], dtype=np.int64)
        self._shards = [_open_shard(path, n, spec.shape) for n in range(int(self._shard.max(initial=-1)) + 1)]
        for row in rows:
            if row.row >= len(self._shards[row.shard]):
                raise ValueError(f"{path}: patch {row.id} is missing from its shard; the folder is damaged")

    @classmethod
    def open(cls, path: str | Path) -> PatchFolder:
        """Reads and checks a patch folder. Raises OSError or ValueError naming what is wrong with it."""
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such patch folder; make one with `python -m data prepare --help`")
        try:
            meta = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}: no dataset.json in it, so not a patch folder; make one with `python -m data prepare --help`"
            ) from None
        except ValueError as error:
            raise ValueError(f"{path / 'dataset.json'}: not JSON ({error})") from None
        if not isinstance(meta, dict) or {k: meta.get(k) for k in FORMAT} != FORMAT:
            raise ValueError(f"{path / 'dataset.json'}: not a patch folder of version {FORMAT['version']}")
        try:
            spec = PatchSpec(
                shape=tuple(int(n) for n in meta["shape"]),
                spacing_mm=None if meta["spacing_mm"] is None else tuple(float(mm) for mm in meta["spacing_mm"]),
                window=check_window((float(meta["window"][0]), float(meta["window"][1]))),
                classes=tuple(str(c) for c in meta["classes"]),
                unit=meta["unit"],
                background=meta["background"],
                origin=meta["origin"],
            )
            content_hash = str(meta["content_sha256"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path / 'dataset.json'}: missing or malformed {error}") from None
        return cls(path, spec, content_hash, _read_rows(path / "patches.csv", spec))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def spacing_mm(self) -> tuple[float, ...] | None:
        return self.spec.spacing_mm

    @property
    def window(self) -> Window:
        return self.spec.window

    @property
    def unit(self) -> str:
        return self.spec.unit

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def background(self) -> str | None:
        return self.spec.background

    def hu(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """int16 (N, *shape): the patches at these indices of `rows`."""
        indices = np.asarray(indices, dtype=np.int64)
        out = np.empty((len(indices), *self.shape), np.int16)
        for shard in np.unique(self._shard[indices]):
            here = self._shard[indices] == shard
            out[here] = self._shards[shard][self._row[indices[here]]]
        return out

    def select(self, *, splits: Iterable[str] = SPLITS, classes: Iterable[str] | None = None) -> np.ndarray:
        """int64 (N,): indices of the rows in these splits and classes (all of them by default)."""
        splits, wanted = set(splits), set(self.classes if classes is None else classes)
        return np.array([n for n, row in enumerate(self.rows) if row.split in splits and row.label in wanted], np.int64)

    @property
    def lesion_classes(self) -> tuple[str, ...]:
        """The classes without the background."""
        return tuple(c for c in self.classes if c != self.background)

    def verify(self) -> None:
        """Reads every byte; raises ValueError when the content is not what was written."""
        if _content_hash(self.path) != self.content_hash:
            raise ValueError(f"{self.path}: its content does not match its hash; the folder was damaged or edited")


class WindowedPatches:
    """Some patches of a folder as a network sees them: float32 (N, 1, *shape) in [-1, 1], by position."""

    def __init__(self, folder: PatchFolder, indices: np.ndarray):
        self.folder, self.indices = folder, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        return to_unit(self.folder.hu(self.indices[positions]), self.folder.window)[:, None]


class PatchWriter:
    """Writes a patch folder into an empty folder (see files.new_folder), a shard at a time."""

    def __init__(self, path: Path, spec: PatchSpec):
        check_window(spec.window)
        for name in spec.classes:
            check_label(name)
        self.path, self.spec = path, spec
        self.rows: list[PatchRow] = []
        self._pending: list[np.ndarray] = []
        self._shards = 0
        (path / "shards").mkdir()

    def add(self, patch: Patch) -> None:
        """Appends one patch; its split may still be open (see finish)."""
        if patch.hu.shape != self.spec.shape or patch.hu.dtype != np.int16:
            raise ValueError(f"patch is {patch.hu.dtype}{patch.hu.shape}, the folder holds int16{self.spec.shape}")
        if patch.label not in self.spec.classes:
            raise ValueError(f"class {patch.label!r} is not one of {', '.join(self.spec.classes)}")
        number = len(self.rows)
        self.rows.append(
            PatchRow(
                patch.id or f"{number:06d}",
                patch.patient,
                patch.series,
                patch.label,
                patch.diameter_mm,
                patch.center_mm,
                patch.split or "",
                self._shards,
                len(self._pending),
            )
        )
        self._pending.append(patch.hu)
        if len(self._pending) == SHARD_ROWS:
            self._flush()

    def _flush(self) -> None:
        np.save(self.path / "shards" / f"{self._shards:05d}.npy", np.stack(self._pending))
        self._shards, self._pending = self._shards + 1, []

    def finish(self, split_of: Mapping[str, str] | None = None) -> None:
        """Writes the table and dataset.json. split_of: patient -> split, for patches added without one."""
        if not self.rows:
            raise ValueError("no patch to write")
        if self._pending:
            self._flush()
        self.rows = rows = [row if row.split else row._replace(split=(split_of or {})[row.patient]) for row in self.rows]
        with open(self.path / "patches.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for row in rows:
                centre = ["", "", ""] if row.center_mm is None else [f"{mm:.3f}" for mm in row.center_mm]
                diameter = "" if row.diameter_mm is None else f"{row.diameter_mm:.2f}"
                table.writerow([*row[:4], diameter, *centre, *row[6:]])
        meta = {**FORMAT, **asdict(self.spec), "patches": len(rows), "content_sha256": _content_hash(self.path)}
        (self.path / "dataset.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def split_by_patient(patients: Iterable[str], seed: int = 0, validation: float = 0.15, test: float = 0.25) -> dict[str, str]:
    """patient -> "train", "validation" or "test": no patient is in two splits.

    The fractions are of patients. Training always has one; with three patients or more, so has
    each other split whose fraction is above 0. The order of `patients` does not matter.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(f"split fractions validation {validation:g} and test {test:g} must leave some for training")
    shuffled = sorted(set(patients), key=lambda p: hashlib.sha256(f"{seed}/{p}".encode()).digest())
    count = len(shuffled)
    tests = min(max(round(test * count), int(test > 0)), max(count - 1, 0))
    validations = min(max(round(validation * count), int(validation > 0)), max(count - 1 - tests, 0))
    splits = ["test"] * tests + ["validation"] * validations + ["train"] * (count - tests - validations)
    return dict(zip(shuffled, splits, strict=True))


def check_label(label: str) -> str:
    """The class name itself, or ValueError when it is unfit for a CSV cell or a folder's name."""
    if not label or len(label) > 40 or not all(c.isascii() and (c.isalnum() or c in "_-. ") for c in label) or label[0] in "-. ":
        raise ValueError(f"class name {label!r}: want letters, digits, '_', '-', '.' or spaces, at most 40")
    return label


def _read_rows(path: Path, spec: PatchSpec) -> list[PatchRow]:
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if tuple(table.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: its columns are not {', '.join(COLUMNS)}")
        for line, r in enumerate(table, 2):
            try:
                x, y, z = (float(r[f"center_{axis}_mm"] or "nan") for axis in "xyz")
                centre = None if math.isnan(x) else (x, y, z)
                diameter = float(r["diameter_mm"]) if r["diameter_mm"] else None
                row = PatchRow(
                    r["id"], r["patient"], r["series"], r["class"], diameter, centre, r["split"], int(r["shard"]), int(r["row"])
                )  # fmt: skip
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: line {line}: {error}") from None
            if row.split not in SPLITS or row.label not in spec.classes or row.shard < 0 or row.row < 0:
                raise ValueError(f"{path}: line {line}: unknown split, class or place in the shards")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no patches in it")
    split_of: dict[str, str] = {}
    for row in rows:
        if split_of.setdefault(row.patient, row.split) != row.split:
            raise ValueError(
                f"{path}: patient {row.patient} is in the splits {split_of[row.patient]} and {row.split}; splits must not share patients"
            )
    return rows


def _open_shard(path: Path, number: int, shape: tuple[int, ...]) -> np.ndarray:
    file = path / "shards" / f"{number:05d}.npy"
    try:
        shard = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file}: not a whole array file ({error})") from None
    if shard.dtype != np.int16 or shard.shape[1:] != shape:
        raise ValueError(f"{file}: holds {shard.dtype}{shard.shape[1:]}, dataset.json says int16{shape}")
    return shard


def _content_hash(path: Path) -> str:
    """SHA-256 over patches.csv and the shards, in order."""
    digest = hashlib.sha256()
    for file in [path / "patches.csv", *sorted((path / "shards").glob("*.npy"))]:
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
