"""LIDC-IDRI's XML: what up to four readers outlined, and the nodules that enough of them marked.

The format: "LIDC XML file documentation", The Cancer Imaging Archive. The consensus is LUNA16's: Setio et al.
2017 (Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules), sec. 2.2.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from data.lesion_list import DEFAULT_CLASS, LesionList, ListConfig, Listed, class_of
from data.sources import Source, Unreadable
from data.volume import Lesion, Volume

CHARACTERISTICS = (
    "subtlety", "internalStructure", "calcification", "sphericity", "margin", "lobulation", "spiculation", "texture", "malignancy",
)  # fmt: skip

ELSEWHERE = "reader's mark on an image that is not in the series, left out (imageSOP_UID, imageZposition)"
TURNED = "reader's mark on a scan without image UIDs whose rows and columns may not be those of its DICOM images, left out"
TOO_FEW = "nodule that fewer readers marked than asked, left out"
NO_CLASS = "nodule without the characteristic that holds its class, left out"
DAMAGED = "a reader's mark whose outline or image position is damaged"
_FILE_BYTES = 64 << 20
_WIDEST = 4096


class Outline(NamedTuple):
    """What a mark encloses in one image: how many pixels, and the mean of their rows and columns."""

    image_uid: str
    z_mm: float
    pixels: int
    row: float
    column: float


@dataclass(frozen=True)
class Mark:
    """One reader's nodule of 3 mm or more. reader: its number in the file. value: of the characteristic asked for."""

    reader: int
    outlines: tuple[Outline, ...]
    value: int | None


@dataclass(frozen=True)
class LidcMarks:
    """All marks in one series, and how many readers must agree. by_value: classes follow from the marks' values."""

    marks: tuple[Mark, ...]
    readers: int
    by_value: bool
    classes: tuple[tuple[str, str], ...] = ()

    def locate(self, volume: Volume) -> tuple[list[Lesion], Counter[str]]:
        """One lesion for each nodule that enough readers marked.

        Marks of different readers closer than the sum of their radii are the same nodule, as are those that a third
        one joins. Centre and diameter are the means over its marks, the class that of their median value, the lower
        of two. A mark's centre is the mean of all pixels within its outlines; its diameter is that of the disc whose
        area is the mark's largest in one image: what the outline measures, without the extent of a single spur.
        """
        notes: Counter[str] = Counter()
        placed = [one for mark in self.marks if (one := _place(mark, volume, notes))]
        lesions = []
        for group in _same_nodule(placed):
            if len({one.mark.reader for one in group}) < self.readers:
                notes[TOO_FEW] += 1
                continue
            label = DEFAULT_CLASS
            if self.by_value:
                values = [one.mark.value for one in group if one.mark.value is not None]
                if not values:
                    notes[NO_CLASS] += 1
                    continue
                label = class_of(str(statistics.median_low(values)), dict(self.classes))
            x, y, z = np.mean([one.centre_mm for one in group], axis=0).tolist()
            lesions.append(Lesion((x, y, z), statistics.fmean(one.diameter_mm for one in group), label))
        return lesions, notes


class _Placed(NamedTuple):
    mark: Mark
    centre_mm: tuple[float, float, float]
    diameter_mm: float


def read_lidc(place: Path, sources: list[Source], config: ListConfig) -> LesionList:
    """The marks in these XML files, by series. A reader's nodule without an outline (under 3 mm) and non-nodules are ignored.

    Files that are damaged or no CT reading, and all but the first of one series, are left out as problems.
    Raises Unreadable when no nodule is left, ValueError for a characteristic that LIDC has not.
    """
    if config.class_from and config.class_from not in CHARACTERISTICS:
        raise ValueError(f"{place}: LIDC has no characteristic {config.class_from!r}; want one of {', '.join(CHARACTERISTICS)}")
    series: dict[str, tuple[Listed, ...]] = {}
    problems: list[tuple[int, str]] = []
    known: dict[str, bytes] = {}
    for source in sources:
        try:
            content = _content(source)
            uid, marks = _read(source, content, config.class_from, problems)
        except Unreadable as error:
            if source == Source(place):
                raise
            problems.append((0, error.reason))
            continue
        digest = hashlib.sha256(content).digest()
        if known.setdefault(uid, digest) != digest:
            problems.append((0, "another reading of a series that is read already"))
        elif marks:
            series[uid] = (LidcMarks(marks, config.readers, config.class_from is not None, config.classes),)
    if not series:
        raise Unreadable(place, problems[0][1] if problems else "no nodule with an outline in it")
    return LesionList(series, {}, tuple(problems))


def _content(source: Source) -> bytes:
    if source.size > _FILE_BYTES:
        raise Unreadable(source, f"an XML file of more than {_FILE_BYTES >> 20} MiB")
    return source.read()


def _read(source: Source, content: bytes, characteristic: str | None, problems: list[tuple[int, str]]) -> tuple[str, tuple[Mark, ...]]:
    """(series UID, marks with an outline); damaged marks go to `problems`."""
    root = _tree(source, content)
    if root.tag == "IdriReadMessage":
        raise Unreadable(source, "a reading of chest X-rays (IdriReadMessage), not of a CT")
    if root.tag != "LidcReadMessage":
        raise Unreadable(source, "an XML file that is no LIDC reading of a CT (LidcReadMessage)")
    uid = (root.findtext("ResponseHeader/SeriesInstanceUid") or "").strip()
    if not uid:
        raise Unreadable(source, "a LIDC reading that names no series (SeriesInstanceUid)")
    marks = []
    for reader, session in enumerate(root.iterfind("readingSession")):
        for nodule in session.iterfind("unblindedReadNodule"):
            try:
                outlines = tuple(_outlines(nodule))
            except ValueError:
                problems.append((0, DAMAGED))
                continue
            text = (nodule.findtext(f"characteristics/{characteristic}") or "").strip()
            if outlines:
                marks.append(Mark(reader, outlines, int(text) if text.isascii() and text.isdigit() else None))
    return uid, tuple(marks)


def _tree(source: Source, content: bytes) -> ET.Element:
    """The document, tags without namespace. One that declares entities is refused: they can grow without bound or name files."""
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")

    def refuse(*_):
        raise Unreadable(source, "an XML file with a DOCTYPE, which LIDC has not")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(tag.rpartition("}")[2], attributes)
    parser.EndElementHandler = lambda tag: builder.end(tag.rpartition("}")[2])
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(source, "not a whole XML file", str(error)) from None
    return builder.close()


def _outlines(nodule: ET.Element) -> Iterator[Outline]:
    """What a nodule's outlines enclose, image by image; those of an exclusion are taken off. ValueError when one is damaged."""
    sums: dict[tuple[str, float], np.ndarray] = {}  # pixels, their rows, their columns
    for roi in nodule.iterfind("roi"):
        points = np.array([(int(e.findtext("yCoord") or ""), int(e.findtext("xCoord") or "")) for e in roi.iterfind("edgeMap")])
        image = (roi.findtext("imageSOP_UID") or "").strip(), float(roi.findtext("imageZposition") or "nan")
        inclusion = (roi.findtext("inclusion") or "").strip().upper()
        if inclusion not in ("TRUE", "FALSE") or not math.isfinite(image[1]):
            raise ValueError("inclusion is neither TRUE nor FALSE, or the position is no number")
        if len(points):
            if points.min() < 0 or points.max() >= 1 << 16:
                raise ValueError("outline outside any image")
            inside = _enclosed(points)
            content = np.array([len(inside), *inside.sum(axis=0)])
            sums[image] = sums.get(image, np.zeros(3, np.int64)) + (content if inclusion == "TRUE" else -content)
    for (uid, z), (pixels, rows, columns) in sums.items():
        if pixels > 0:
            yield Outline(uid, z, int(pixels), float(rows / pixels), float(columns / pixels))


def _enclosed(points: np.ndarray) -> np.ndarray:
    """The pixels (N, 2) within a closed outline (M, 2): what 4-connected paths from outside cannot reach.

    LIDC's outlines run through the first pixels outside the nodule, so they are no part of it.
    """
    from scipy.ndimage import label

    start = points.min(axis=0) - 1
    shape = points.max(axis=0) - start + 2
    if shape.max() > _WIDEST:
        raise ValueError("outline wider than an image")
    outline = np.zeros(shape, bool)
    closed = np.concatenate([points, points[:1]]) - start
    outline[tuple(closed.T)] = True
    for n in np.flatnonzero(np.abs(np.diff(closed, axis=0)).max(axis=1) > 1):  # most outlines name every pixel
        length = int(np.abs(closed[n + 1] - closed[n]).max())
        outline[tuple(np.rint(np.linspace(closed[n], closed[n + 1], length + 1)).astype(int).T)] = True
    regions, _ = label(~outline)
    return np.argwhere(~outline & (regions != regions[0, 0])) + start


def _place(mark: Mark, volume: Volume, notes: Counter[str]) -> _Placed | None:
    """Where a mark lies in the volume; None, noted, when one of its images is not there."""
    if volume.image_uids:
        number = {uid: k for k, uid in enumerate(volume.image_uids)}
        slices = [number.get(outline.image_uid) for outline in mark.outlines]
    else:
        unit = volume.affine[:3, :3] / np.array(volume.spacing_mm)
        if unit[1, 1] < 0.99 or unit[0, 2] < 0.99:  # columns to the left, rows to the back, as in LIDC's images
            notes[TURNED] += 1
            return None
        at = [(outline.z_mm - volume.affine[2, 3]) / volume.affine[2, 0] for outline in mark.outlines]
        slices = [round(k) if -0.5 <= k <= len(volume.hu) - 0.5 else None for k in at]
    if None in slices:
        notes[ELSEWHERE] += 1
        return None
    pixels = [outline.pixels for outline in mark.outlines]
    index = np.average([(k, outline.row, outline.column) for k, outline in zip(slices, mark.outlines, strict=True)], axis=0, weights=pixels)
    area_mm2 = max(pixels) * volume.spacing_mm[1] * volume.spacing_mm[2]
    return _Placed(mark, volume.point_at(index), 2 * (area_mm2 / np.pi) ** 0.5)


def _same_nodule(placed: list[_Placed]) -> list[list[_Placed]]:
    """Marks in groups, each of them one nodule, in the order of their first marks."""
    group = list(range(len(placed)))
    for a, one in enumerate(placed):
        for b, other in enumerate(placed[:a]):
            apart = float(np.linalg.norm(np.subtract(one.centre_mm, other.centre_mm)))
            if one.mark.reader != other.mark.reader and apart < (one.diameter_mm + other.diameter_mm) / 2:
                group = [group[b] if g == group[a] else g for g in group]
    return [[placed[n] for n, g in enumerate(group) if g == number] for number in dict.fromkeys(group)]
