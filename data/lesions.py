"""Lesion lists: which lesions lie where, by series."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from data.patches import check_label
from data.volume import Lesion

LUNA16_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
DEFAULT_CLASS = "lesion"


def read_annotations(path: str | Path) -> dict[str, list[Lesion]]:
    """series UID -> lesions, from a LUNA16 `annotations.csv` (LPS mm), optionally with a `class` column.

    Without one every lesion is of class "lesion". Raises ValueError naming the line of a malformed row.
    """
    try:
        lesions = _read_luna16(Path(path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    if not lesions:
        raise ValueError(f"{path}: no lesion in it")
    return lesions


def _read_luna16(path: Path) -> dict[str, list[Lesion]]:
    lesions: dict[str, list[Lesion]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        missing = [c for c in LUNA16_COLUMNS if c not in (table.fieldnames or ())]
        if missing:
            hint = " separated by commas" if ";" in "".join(table.fieldnames or ()) else ""
            raise ValueError(f"{path}: no column {', '.join(missing)}; want {','.join(LUNA16_COLUMNS)}[,class]{hint}")
        for line, row in enumerate(table, 2):
            if None in row or None in row.values():
                raise ValueError(f"{path}: line {line}: has not the {len(table.fieldnames or ())} cells that the first line names")
            try:
                x, y, z, diameter = (float(row[c]) for c in LUNA16_COLUMNS[1:])
                label = check_label((row.get("class") or DEFAULT_CLASS).strip())
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: line {line}: {error}") from None
            if not all(map(math.isfinite, (x, y, z))) or not 0 < diameter < 500:
                raise ValueError(f"{path}: line {line}: centre {x:g}, {y:g}, {z:g}, diameter {diameter:g} mm")
            if not row["seriesuid"]:
                raise ValueError(f"{path}: line {line}: no seriesuid")
            lesions.setdefault(row["seriesuid"].strip(), []).append(Lesion((x, y, z), diameter, label))
    return lesions


def write_annotations(lesions: dict[str, list[Lesion]], path: Path) -> None:
    """Writes LUNA16's columns and `class`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*LUNA16_COLUMNS, "class"])
        for uid, found in lesions.items():
            for lesion in found:
                table.writerow([uid, *(f"{mm:.3f}" for mm in lesion.center_mm), f"{lesion.diameter_mm:.2f}", lesion.label])
