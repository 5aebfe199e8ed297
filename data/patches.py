"""Patches of HU and the folder they live in: one format for real and synthetic, 2-D and 3-D.

    dataset.json   what all patches share: shape, spacing_mm, window, unit, classes, content hash
    patches.csv    one row a patch, see `patch_table`
    shards/*.npy   int16 (rows, *shape), memory-mapped

Values are HU; windowing to [-1, 1] happens on reading. A set imported from gray-level pictures
whose window nobody stated has unit "gray": its values are the gray levels themselves.

Writing and reading pixels takes the same memory and as many open files for a million patches as for a thousand.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from data.patch_table import COLUMNS, SPLITS, PatchRow, PatchTable, check_name, read_table
from data.preprocess import Window, check_window, to_unit

T = TypeVar("T")

FORMAT = {"format": "lesiongan patch folder", "version": 2}
SHARD_BYTES = 64 * 2**20
"""The most pixels in a shard, so also what a writer keeps in memory."""
SHARD_ROWS = 32_768
OPEN_SHARDS = 64
"""How many shards a folder keeps open; beyond, the one not used for longest is closed."""

LICENCE_LENGTH = 200


@dataclass(frozen=True)
class PatchSpec:
    """What the patches of a folder share.

    shape: (H, W) or (D, H, W). spacing_mm: along each axis of shape, None where unknown.
    window: the HU shown as -1 and +1. unit: "HU", or "gray" when no window was stated.
    background: the class of lesion-free patches, if any. origin: where the patches come from.
    resampling: in words, how the source's voxels became these. licence: of the data, or its terms, in words
    (see check_licence), "" where nobody stated it. patients_known: False where a picture or scan counts as a
    patient only because it names none.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    window: Window
    classes: tuple[str, ...]
    unit: Literal["HU", "gray"] = "HU"
    background: str | None = None
    origin: Literal["real", "synthetic"] = "real"
    resampling: str = "none"
    licence: str = ""
    patients_known: bool = True

    def misfit(self, other: PatchSpec) -> str | None:
        """The first of shape, spacing_mm, window and unit that two kinds of patches differ in; None where they can be put side by side."""
        return next((name for name in ("shape", "spacing_mm", "window", "unit") if getattr(self, name) != getattr(other, name)), None)


@dataclass(frozen=True)
class Patch:
    """One patch to be written: int16 HU of the folder's shape, pseudonyms, and what is known of its lesion.

    split: one of SPLITS. padded: the share of its voxels that lie outside the scan, 0 to 1. id: its number in the folder unless given.
    """

    hu: np.ndarray
    patient: str
    series: str
    label: str
    diameter_mm: float | None = None
    center_mm: tuple[float, float, float] | None = None
    split: str = ""
    _: KW_ONLY
    padded: float = 0.0
    id: str | None = None


class PatchFolder:
    """A patch folder, open for reading; `rows` is its table. Pixels stay on disk until they are asked for."""

    def __init__(self, path: Path, spec: PatchSpec, content_hash: str, rows: PatchTable):
        self.path, self.spec, self.content_hash, self.rows = path, spec, content_hash, rows
        numbers, places = np.unique(rows.shard, return_inverse=True)
        last = np.zeros(len(numbers), np.int64)
        np.maximum.at(last, places, rows.row)
        for number, row in zip(numbers.tolist(), last.tolist(), strict=True):
            if row >= len(_open_shard(path, spec.shape, number)):
                raise ValueError(f"{path}: patch {row} of shard {number} is missing; the folder is damaged")
        self._shard = lru_cache(OPEN_SHARDS)(partial(_open_shard, path, spec.shape))

    @classmethod
    def open(cls, path: str | Path) -> PatchFolder:
        """Reads and checks a patch folder. Raises OSError or ValueError naming what is wrong with it."""
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(
                f"{path}: no such patch folder; python -m data prepare makes one from scans, import one from pictures, sample.py one of synthetic patches"
            )
        try:
            meta = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            what = (
                "a run, not a patch folder; sample.py draws one from it"
                if (path / "config.yaml").exists()
                else "no dataset.json in it, so not a patch folder; python -m data prepare makes one from scans, import one from pictures, and "
                "sample.py one of synthetic patches"
            )
            raise FileNotFoundError(f"{path}: {what}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path / 'dataset.json'}: not JSON ({error})") from None
        if not isinstance(meta, dict) or {k: meta.get(k) for k in FORMAT} != FORMAT:
            if isinstance(meta, dict) and meta == {**meta, **FORMAT, "version": 1}:
                raise ValueError(f"{path}: this patch folder was made by an older version; prepare it again")
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
                resampling=str(meta["resampling"]),
                licence=check_licence(_stated(meta, "licence", "")),
                patients_known=_stated(meta, "patients_known", True),
            )
            content_hash = str(meta["content_sha256"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path / 'dataset.json'}: missing or malformed {error}") from None
        except ValueError as error:
            raise ValueError(f"{path / 'dataset.json'}: {error}") from None
        return cls(path, spec, content_hash, read_table(path / "patches.csv", spec.classes))

    def __reduce__(self) -> tuple[Any, ...]:  # for workers that are spawned
        return PatchFolder, (self.path, self.spec, self.content_hash, self.rows)

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
        shards, rows = self.rows.shard[indices], self.rows.row[indices]
        order = np.lexsort((rows, shards))  # as they lie on the disk
        for places in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1) if len(order) else ():
            out[places] = self._shard(int(shards[places[0]]))[rows[places]]
        return out

    def select(self, *, splits: Iterable[str] = SPLITS, classes: Iterable[str] | None = None) -> np.ndarray:
        """int64 (N,): indices of the rows in these splits and classes (all of them by default)."""
        return self.rows.where(set(splits), set(self.classes if classes is None else classes))

    @property
    def lesion_classes(self) -> tuple[str, ...]:
        """The classes without the background."""
        return tuple(c for c in self.classes if c != self.background)

    def verify(self) -> None:
        """Reads every byte; raises ValueError when the content is not what was written."""
        digest = hashlib.sha256()
        for file in [*sorted((self.path / "shards").glob("*.npy")), self.path / "patches.csv"]:
            digest.update(_file_hash(file))
        if digest.hexdigest() != self.content_hash:
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
    """Writes a patch folder into an empty folder (see files.new_folder), a shard at a time.

    patches: (split, class) -> how many so far. patients: pseudonym -> split of the real ones so far.
    """

    def __init__(self, path: Path, spec: PatchSpec):
        check_window(spec.window)
        check_licence(spec.licence)
        for name in spec.classes:
            check_label(name)
        self.path, self.spec = path, spec
        self.patches: Counter[tuple[str, str]] = Counter()
        self.patients: dict[str, str] = {}
        self._count = self._shards = self._pending = 0
        rows = min(SHARD_ROWS, max(1, SHARD_BYTES // (2 * math.prod(spec.shape))))
        self._pixels = np.empty((rows, *spec.shape), np.int16)
        self._lines = io.StringIO()
        self._table_hash, self._content = hashlib.sha256(), hashlib.sha256()
        csv.writer(self._lines, lineterminator="\n").writerow(COLUMNS)
        (path / "shards").mkdir()

    def add(self, patch: Patch) -> None:
        """Appends one patch. Raises ValueError when it does not fit the folder, or its patient is in another split already."""
        self._check(patch)
        row = PatchRow(
            patch.id or f"{self._count:06d}", patch.patient, patch.series, patch.label, patch.diameter_mm, patch.center_mm,
            patch.padded, patch.split, self._shards, self._pending,
        )  # fmt: skip
        csv.writer(self._lines, lineterminator="\n").writerow(row.cells())
        self._pixels[self._pending] = patch.hu
        self._count, self._pending = self._count + 1, self._pending + 1
        self.patches[patch.split, patch.label] += 1
        if self._pending == len(self._pixels):
            self._flush()

    def _check(self, patch: Patch) -> None:
        if patch.hu.shape != self.spec.shape or patch.hu.dtype != np.int16:
            raise ValueError(f"patch is {patch.hu.dtype}{patch.hu.shape}, the folder holds int16{self.spec.shape}")
        if patch.label not in self.spec.classes:
            raise ValueError(f"class {patch.label!r} is not one of {', '.join(self.spec.classes)}")
        if patch.split not in SPLITS:
            raise ValueError(f"split {patch.split!r} is not one of {', '.join(SPLITS)}")
        for what, name in (("id", patch.id), ("patient", patch.patient), ("series", patch.series)):
            if name is not None:
                check_name(what, name)
        numbers = (patch.diameter_mm or 0, *(patch.center_mm or ()))
        if not (all(map(math.isfinite, numbers)) and 0 <= patch.padded <= 1):
            raise ValueError(
                f"diameter {patch.diameter_mm}, centre {patch.center_mm}, padded {patch.padded}: want mm, and a share from 0 to 1"
            )
        # a synthetic patch has no patient: remembering its pseudonym would take memory for every patch
        if patch.split != "synthetic" and self.patients.setdefault(patch.patient, patch.split) != patch.split:
            raise ValueError(
                f"patient {patch.patient} would be in the splits {self.patients[patch.patient]} and {patch.split}; "
                "splits must not share patients"
            )

    def _flush(self) -> None:
        """Puts the pending pixels and their rows on the disk."""
        shard = self.path / "shards" / f"{self._shards:05d}.npy"
        np.save(shard, self._pixels[: self._pending])
        self._content.update(_file_hash(shard))
        lines = self._lines.getvalue().encode()
        with open(self.path / "patches.csv", "ab") as table:
            table.write(lines)
        self._table_hash.update(lines)
        self._shards, self._pending, self._lines = self._shards + 1, 0, io.StringIO()

    def finish(self) -> None:
        """Writes what is pending, and dataset.json. Raises ValueError when there is no patch."""
        if not self._count:
            raise ValueError("no patch to write")
        if self._pending:
            self._flush()
        self._content.update(self._table_hash.digest())
        meta = {**FORMAT, **asdict(self.spec), "patches": self._count, "content_sha256": self._content.hexdigest()}
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


def check_licence(text: str) -> str:
    """The words on the licence without spaces around them, or ValueError when they are not one line of at most LICENCE_LENGTH characters."""
    if len(text) > LICENCE_LENGTH or not text.isprintable():
        raise ValueError(f"licence {text[:30]!r}: want one line of at most {LICENCE_LENGTH} printable characters; it has {len(text)}")
    return text.strip()


def _stated(meta: Mapping[str, Any], name: str, otherwise: T) -> T:
    """What dataset.json states, or `otherwise` in a folder made before this was recorded."""
    value = meta.get(name, otherwise)
    if not isinstance(value, type(otherwise)):
        raise TypeError(name)
    return value


def _open_shard(path: Path, shape: tuple[int, ...], number: int) -> np.ndarray:
    file = path / "shards" / f"{number:05d}.npy"
    try:
        shard = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file}: not a whole array file ({error})") from None
    if shard.dtype != np.int16 or shard.shape[1:] != shape:
        raise ValueError(f"{file}: holds {shard.dtype}{shard.shape[1:]}, dataset.json says int16{shape}")
    return np.asarray(shard)  # still mapped, without the memmap class's cost at every index


def _file_hash(file: Path) -> bytes:
    """SHA-256. A folder's content hash is the SHA-256 over those of its shards, in order, and of patches.csv."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").digest()
