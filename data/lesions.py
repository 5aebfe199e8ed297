"""Lesion lists: which lesions lie where, by series. Coordinates are LPS mm unless said otherwise (see volume.py).

A list may be a CSV of points or of masks (lesion_tables.py), LIDC-IDRI's XML (lidc.py), mask volumes
(masks.py) or DICOM segmentations (segmentations.py). Lesions are placed once their scan has been read.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.lesion_list import LUNA16_COLUMNS, LesionList, ListConfig
from data.lesion_tables import read_table
from data.lidc import read_lidc
from data.masks import read_masks
from data.segmentations import read_segmentations
from data.sources import METAIMAGE, NIFTI, Source, Unreadable, find_sources
from data.volume import Lesion, Volume

LUNG_REACH_MM = 5.0
"""How far from the lung a lesion's centre may lie: at the pleura or the hilum, outside the air."""


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
        return read_lidc(place, xml, config)
    if masks:
        return read_masks(place, masks, config)
    if sources != [Source(place)] or _is_dicom(sources[0]):
        return read_segmentations(place, sources, config)
    return read_table(place, config)


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
