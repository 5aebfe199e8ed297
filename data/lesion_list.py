"""What a lesion list is, whatever it was read from: which lesions lie where, by series, and what their classes are called."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, Protocol

from data.patches import check_label
from data.sources import Source
from data.volume import Lesion, Volume

LUNA16_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
DEFAULT_CLASS = "lesion"
BACKGROUND = "background"
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
