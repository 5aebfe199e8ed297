"""Lesion lists: which lesions lie where, by series. Coordinates are LPS mm unless said otherwise (see volume.py).

A list may be a CSV of points or of masks (lesion_tables.py), LIDC-IDRI's XML (lidc.py), mask volumes
(masks.py) or DICOM segmentations (segmentations.py). Lesions are placed once their scan has been read.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from data.patches import check_label
from data.sources import METAIMAGE, NIFTI, Source, Unreadable, find_sources
from data.volume import Lesion, Volume

LUNA16_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
DEFAULT_CLASS = "lesion"
BACKGROUND = "background"
LUNG_REACH_MM = 5.0
"""How far from the lung a lesion's centre may lie: at the pleura or the hilum, outside the air."""

UNFIT_CLASS = "class name is unfit: want letters, digits, '_', '-', '.' or spaces, at most 40"


@dataclass(frozen=True)
class ListConfig:
    """How a list is to be read.

    coordinates: of a CSV's points: LPS mm, RAS mm, or voxel i, j, k (column, row, slice of the volume as
    stored, from 0). class_from: the CSV column, the LIDC characteristic such as "texture", or "SegmentLabel",
    that holds the class. classes: (value, class name) for values of it, or of a label mask; a value that is
    not named there is its own name. readers: LIDC: how many readers, of usually four, must have marked a nodule.
    """

    coordinates: Literal["lps", "ras", "voxel"] = "lps"
    class_from: str | None = None
    classes: tuple[tuple[str, str], ...] = ()
    readers: int = 3

    def __post_init__(self):
        if self.coordinates not in ("lps", "ras", "voxel"):
            raise ValueError(f"coordinates {self.coordinates!r}: want lps, ras or voxel")
        if self.readers < 1:
            raise ValueError(f"{self.readers} readers: want 1 or more")
        for _, name in self.classes:
            check_label(name)


class Listed(Protocol):
    """What a list says of one series. Its repr holds all that its lesions follow from, for caches."""

    def locate(self, volume: Volume) -> tuple[list[Lesion], Counter[str]]:
        """The lesions, and what was left out, counted (reasons without identifiers). volume: as stored, not yet turned axial.

        Raises Unreadable, or OSError, when a file that the list names cannot be read or does not fit the scan.
        """
        ...


@dataclass(frozen=True)
class LesionList:
    """What a list holds.

    series: by series UID, or by file stem for NIfTI and MetaImage. patients: series -> patient id, where the
    list states one. problems: (line, or 0 where there are none; reason without identifiers) of what was left out.
    """

    series: dict[str, tuple[Listed, ...]]
    patients: dict[str, str] = field(default_factory=dict)
    problems: tuple[tuple[int, str], ...] = ()

    def files(self) -> frozenset[Source]:
        """The masks and segmentations in it, paths resolved: no scans, though they may lie among them."""
        named = [source for listed in self.series.values() for one in listed if (source := getattr(one, "source", None))]
        return frozenset(Source(source.path.resolve(), source.member) for source in named)


def read_lesions(path: str | Path, config: ListConfig) -> LesionList:
    """A lesion list of any kind, recognised by what is there.

    A file: CSV (UTF-8, commas), LIDC XML, a mask (NIfTI, MetaImage) or a DICOM segmentation. A folder or a zip
    archive: any number of one of the last three, at any depth; XML comes first, since LIDC keeps it beside the slices.
    CSV: a series column (seriesuid, series, image or file; a path counts as its stem) with LUNA16's or x,y,z
    coordinates, an optional diameter, class and patient_id; or with `mask`, a path inside the CSV's folder.
    LUNA16's candidates: class 1 is "nodule", class 0 "background". A list without classes: all "lesion".

    Malformed rows are left out and told in `problems`. Raises ValueError when nothing is left or the list
    cannot be read at all, FileNotFoundError when it is not there.
    """
    place = Path(path)
    sources = [source for source in find_sources([place]) if source == Source(place) or not source.name.startswith(".")]
    xml = [source for source in sources if source.name.lower().endswith(".xml")]
    masks = [source for source in sources if source.name.lower().endswith(NIFTI + METAIMAGE)]
    if xml and masks:
        raise Unreadable(place, "holds both XML and masks; name the folder of the one that is the list")
    if xml:
        from data.lidc import read_lidc

        return read_lidc(place, xml, config)
    if masks:
        from data.masks import read_masks

        return read_masks(place, masks, config)
    if sources != [Source(place)] or _is_dicom(sources[0]):
        from data.segmentations import read_segmentations

        return read_segmentations(place, sources, config)
    from data.lesion_tables import read_table

    return read_table(place, config)


def class_of(value: str, classes: dict[str, str]) -> str:
    """The class that a value stands for: named in `classes`, or the value itself; "4.0" is "4".

    Raises ValueError, without the value, when that is missing or unfit for a class name.
    """
    if not value:
        raise ValueError("class is missing")
    whole = value.removesuffix(".0")
    try:
        return classes.get(value) or classes.get(whole) or check_label(whole)
    except ValueError:
        raise ValueError(UNFIT_CLASS) from None


def _is_dicom(source: Source) -> bool:
    if source.size < 132:
        return False
    with open(source.path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def ras_suspected(points_lps: Sequence[tuple[float, float, float]], lung_mask: np.ndarray, volume: Volume) -> bool:
    """Whether a series' lesions, stated as LPS mm, are RAS: none is within LUNG_REACH_MM of the lung, but with x and y negated 90 % are.

    lung_mask: bool, of the volume's shape; the volume is axial.
    """
    stated = np.array(points_lps, dtype=np.float64).reshape(-1, 3)
    if not len(stated) or any(_near(lung_mask, volume, point) for point in stated):
        return False
    return float(np.mean([_near(lung_mask, volume, point) for point in stated * (-1, -1, 1)])) >= 0.9


def _near(lung: np.ndarray, volume: Volume, point: np.ndarray) -> bool:
    x, y, z = point.tolist()
    centre, spacing = volume.index_of((x, y, z)), np.array(volume.spacing_mm)
    low = np.clip(np.ceil(centre - LUNG_REACH_MM / spacing), 0, lung.shape).astype(int)
    high = np.clip(np.floor(centre + LUNG_REACH_MM / spacing) + 1, 0, lung.shape).astype(int)
    voxels = np.argwhere(lung[tuple(map(slice, low, high))]) + low
    return bool((np.linalg.norm((voxels - centre) * spacing, axis=1) <= LUNG_REACH_MM).any())


def write_annotations(lesions: dict[str, list[Lesion]], path: Path) -> None:
    """Writes LUNA16's columns and `class`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*LUNA16_COLUMNS, "class"])
        for uid, found in lesions.items():
            for lesion in found:
                table.writerow([uid, *(f"{mm:.3f}" for mm in lesion.center_mm), f"{lesion.diameter_mm:.2f}", lesion.label])
