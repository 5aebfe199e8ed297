"""A patch folder with changed copies of its training patches, and the table that says how each was made.

Held-out patients stay as they were scanned: a validation or test patch that was changed, or
counted several times, would measure how well the changes are handled, not how well patients are.

    augmentation.csv   one row a changed copy: id, source_id, and its Change; apply(source, change) gives its very bytes
    augmentation.png   some source patches, left, each with its changed copies in a row
"""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.augment import AugmentConfig, Change, apply, draw
from data.export import write_folder_preview, write_preview
from data.parallel import map_processes
from data.patches import Patch, PatchFolder, PatchRow, PatchWriter

TABLE = "augmentation.csv"
COLUMNS = ("id", "source_id", *(field.name for field in fields(Change)))
_READ: dict[str, Callable[[str], object]] = {
    "flip": lambda cell: tuple(int(axis) for axis in cell.split()),
    "crop_position": lambda cell: tuple(float(place) for place in cell.split()),
    "noise_seed": int,
}


@dataclass(frozen=True)
class CopyMaker:
    """Makes the changed copies of one training patch. Copy c of patch n depends on (seed, n, c) only."""

    path: Path
    content_hash: str
    config: AugmentConfig
    copies: int
    seed: int
    alone: bool

    def __call__(self, index: int) -> list[tuple[np.ndarray, Change]]:
        """int16 patch and Change for each copy of the patch at this index of the folder's rows."""
        if not self.alone:
            import torch

            torch.set_num_threads(1)
        folder = _opened(self.path, self.content_hash)
        (hu,) = folder.hu([index])
        changes = [
            draw(np.random.default_rng([self.seed, index, copy]), self.config, folder.shape, folder.spacing_mm)
            for copy in range(1, self.copies + 1)
        ]
        return [(apply(hu, change, folder.spacing_mm), change) for change in changes]


def augment_folder(
    source: PatchFolder, out: Path, config: AugmentConfig, factor: int, seed: int = 0, classes: Iterable[str] | None = None,
    processes: int = 1, track: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> Counter[tuple[str, str]]:  # fmt: skip
    """Writes every patch as it was, and factor - 1 changed copies of each training patch of these classes (all by default).

    out: an empty folder (see files.new_folder). Returns how many patches there are of each (split, class).
    A copy keeps its patient, series, class, split and centre; its lesion's diameter grows with the magnification.
    Raises ValueError when there is nothing to copy, or the source is no folder of scanned HU patches.
    """
    chosen = _chosen(source, config, factor, classes)
    maker = CopyMaker(source.path, source.content_hash, config, factor - 1, seed, alone=processes == 1)
    copies = map_processes(maker, chosen, processes)
    writer, wanted = PatchWriter(out, source.spec), set(chosen)
    shown, firsts, written = _spread(source, chosen), [], 0
    with open(out / TABLE, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for index, row in track(enumerate(source.rows), len(source)):
            made = next(copies) if index in wanted else []
            if index in shown:
                firsts.append(written)
            writer.add(_patch(row, source.hu([index])[0]))
            for number, (hu, change) in enumerate(made, 1):
                copy = _copy(row, number, change)
                writer.add(_patch(copy, hu))
                table.writerow([copy.id, row.id, *(" ".join(map(str, x)) if isinstance(x, tuple) else x for x in astuple(change))])
            written += 1 + len(made)
    writer.finish()
    if (source.path / "series.csv").is_file():
        shutil.copyfile(source.path / "series.csv", out / "series.csv")
    write_folder_preview(out)
    _write_picture(out, firsts, min(factor, 8))
    return writer.patches


def read_changes(file: Path) -> dict[str, tuple[str, Change]]:
    """augmentation.csv: a copy's id -> its source's id and its Change. Raises ValueError naming the line that is malformed."""
    changes = {}
    with open(file, newline="", encoding="utf-8") as text:
        table = csv.reader(text)
        if tuple(next(table, ())) != COLUMNS:
            raise ValueError(f"{file}: its columns are not {', '.join(COLUMNS)}")
        for row in table:
            try:
                values = {name: _READ.get(name, float)(cell) for name, cell in zip(COLUMNS[2:], row[2:], strict=True)}
                changes[row[0]] = (row[1], Change(**values))  # type: ignore[arg-type]
            except (ValueError, IndexError) as error:
                raise ValueError(f"{file}: line {table.line_num}: {error}") from None
    return changes


@lru_cache(maxsize=1)
def _opened(path: Path, content_hash: str) -> PatchFolder:
    """The folder, opened once a process; the hash keeps apart what a path held at different times."""
    return PatchFolder.open(path)


def _chosen(source: PatchFolder, config: AugmentConfig, factor: int, classes: Iterable[str] | None) -> list[int]:
    """Indices of the training patches to copy, or ValueError saying why there can be none."""
    names = source.classes if classes is None else tuple(classes)
    if (source.path / TABLE).exists():
        raise ValueError(f"{source.path}: is augmented already ({TABLE}); augment the folder it was made from, with a larger --factor")
    if source.spec.origin != "real":
        raise ValueError(f"{source.path}: holds synthetic patches; augment scanned ones, and sample more seeds for more synthetic ones")
    if factor < 2:
        raise ValueError(f"want a factor of 2 or more, got {factor}: a patch as it was, and the others changed")
    if source.unit != "HU" and config.changes_intensity:
        raise ValueError(
            f"{source.path}: holds gray levels, not HU; import it with --window, or change geometry only: "
            "--noise-hu 0 --blur-mm 0 --sharpen 0 --hu-shift 0 --hu-scale 0"
        )
    unknown = [name for name in names if name not in source.classes]
    if unknown:
        raise ValueError(f"{source.path}: no class {unknown[0]!r} in it, only {', '.join(source.classes)}")
    chosen = [int(index) for index in source.select(splits=["train"], classes=names)]
    if not chosen:
        raise ValueError(f"{source.path}: no training patch of {', '.join(names)} in it")
    return chosen


def _patch(row: PatchRow, hu: np.ndarray) -> Patch:
    return Patch(
        hu, row.patient, row.series, row.label, row.diameter_mm, row.center_mm, split=row.split, padded=row.padded, id=row.id
    )  # fmt: skip


def _copy(row: PatchRow, number: int, change: Change) -> PatchRow:
    diameter = None if row.diameter_mm is None else row.diameter_mm * change.magnification
    return row._replace(id=f"{row.id}-a{number}", diameter_mm=diameter)


def _spread(source: PatchFolder, chosen: Sequence[int], count: int = 8) -> set[int]:
    """Some of the chosen, evenly spread over the folder's classes and patches."""
    by_class = np.argsort(source.rows.names("label", np.array(chosen)), kind="stable")
    return {chosen[by_class[n]] for n in np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int)}


def _write_picture(out: Path, firsts: Sequence[int], columns: int) -> None:
    folder = PatchFolder.open(out)
    hu = folder.hu([first + n for first in firsts for n in range(columns)])
    write_preview(hu, folder.window, out / "augmentation.png", columns=columns, zoom=max(1, 128 // folder.shape[-1]))
