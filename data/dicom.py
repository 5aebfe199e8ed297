"""DICOM CT series: files in, one volume of HU out, or an error naming the file and the cause.

Slices are ordered and spaced by their position along the normal of the image plane
(DICOM PS3.3, C.7.6.2.1.1), never by file name, InstanceNumber or SliceThickness.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from data.acquisition import acquisition_of
from data.dicom_file import SUFFIXES, DicomFile, Directory, NotDicom, read_files
from data.dicom_slices import Slice, contradiction, other_kind, slices_of
from data.sources import Source, Unreadable, memory_bytes
from data.volume import Volume, checked_spacing

POSITION_TOLERANCE_MM = 0.101
"""How far a slice may lie from its place, or 2 % of the step: positions are often rounded to a tenth of a millimetre.
Among thin slices that would hide a missing one, which makes a step twice as long as another: see MOST_UNEVEN."""

MOST_UNEVEN = 1.7
"""How many times its shortest step the longest step of a series may be: 0.25 mm rounded to tenths gives 0.2 and 0.3."""

_ODD = (TypeError, ValueError, AttributeError, IndexError, KeyError, OverflowError, struct.error)
_ODD_REASON = "damaged DICOM header"
"""A header may have any type of value at any place; whatever trips over one is damage, not a defect of ours."""


@dataclass(frozen=True)
class Series:
    """The CT slices of one series, found but not yet read.

    spoiled: why it cannot be trusted, though each of its files may be whole. nameless: it has no PatientID, so
    patient_id is its StudyInstanceUID, or its file's name where it is no DICOM.
    """

    uid: str
    patient_id: str
    files: tuple[Source, ...]
    spoiled: Unreadable | None = None
    nameless: bool = False


@dataclass(frozen=True)
class Skipped:
    """A file that is not a CT slice, and why; the reason holds no identifier."""

    file: Source
    reason: str


class Found(NamedTuple):
    """What a file turned out to be: a slice of a series, or something else (reason).

    damage: one line on a file that may have been a slice; of one whose content tells nothing, its name decides (by_name).
    """

    file: Source
    uid: str = ""
    patient_id: str = ""
    study_uid: str = ""
    reason: str = ""
    damage: str = ""
    by_name: bool = False


def _look_at(file: Source, read: Callable[[], DicomFile]) -> Found | None:
    if file.name.upper() == "DICOMDIR":
        return None
    if file.name.startswith("._"):
        return Found(file, reason="what macOS keeps beside a file")
    if file.name.lower().endswith(".zip"):
        return Found(file, reason="an archive inside an archive")
    try:
        found = read()
        reason = contradiction(found)
        if reason is None and (reason := other_kind(found)):
            return Found(file, reason=reason)
    except Directory:
        return None
    except NotDicom as error:
        return Found(file, reason=error.reason, damage=str(error), by_name=True)
    except Unreadable as error:
        return Found(file, reason=error.reason, damage=str(error))
    except OSError as error:
        return Found(file, reason="cannot be opened", damage=f"{file}: {error.strerror}", by_name=True)
    except _ODD as error:
        return Found(file, reason=_ODD_REASON, damage=f"{file}: {_ODD_REASON}: {error}")
    header = found.header
    uid = str(header.get("SeriesInstanceUID") or "")
    if not reason and (not uid or found.pixels_length is None):
        reason = f"{'PixelData' if uid else 'SeriesInstanceUID'} is absent"
    if reason:
        return Found(file, uid, reason=reason, damage=f"{file}: {reason}")
    return Found(file, uid, str(header.get("PatientID") or "").strip(), str(header.get("StudyInstanceUID") or uid))


def look_at_all(files: Iterable[Source]) -> list[Found | None]:
    """What each file is, by its header; None for a DICOMDIR, which is an index of others."""
    return [_look_at(file, read) for file, read in read_files(files, pixels=False)]


def find_series(files: Iterable[Found | None]) -> tuple[list[Series], list[Skipped]]:
    """Groups CT slices by SeriesInstanceUID; says of every other file why it is none. files: as look_at_all found them.

    Only headers are read. Files that are not DICOM, other modalities, localizers, derived maps and colour screens are
    skipped; what claims to be a CT slice is kept, to be judged by read_series. A damaged file is skipped too, and spoils
    the series it names and those with slices in its folder: it may have been one of their slices.
    """
    slices: dict[str, list[Found]] = {}
    skipped = []
    suspects = _Suspects()
    for found in files:
        if found is None:
            continue
        if found.reason:
            skipped.append(Skipped(found.file, found.reason))
            suspects.add(found)
        else:
            slices.setdefault(found.uid, []).append(found)
    series = []
    for uid, group in sorted(slices.items()):
        patients = sorted({g.patient_id for g in group if g.patient_id})
        one = Series(
            uid, patients[0] if patients else min(g.study_uid for g in group), tuple(sorted(g.file for g in group)), nameless=not patients
        )
        bad = suspects.beside(one)
        if len(patients) > 1:
            one = replace(one, spoiled=Unreadable(one.files[0], "two PatientIDs in one series"))
        elif bad:
            told = bad.damage.removeprefix(f"{bad.file}: {bad.reason}").removeprefix(": ")
            one = replace(one, spoiled=Unreadable(bad.file, f"a damaged file beside the slices; remove or restore it: {bad.reason}", told))
        series.append(one)
    return series, skipped


class _Suspects:
    """Files that may have been slices, found again by the series that they may have belonged to."""

    def __init__(self) -> None:
        self._by_uid: dict[str, Found] = {}
        self._by_place: dict[tuple[str, str], Found] = {}  # by folder, or its parent, and the name's shape

    def add(self, found: Found) -> None:
        if not found.damage:
            return
        shape = _shape(found.file) if found.by_name and not found.file.name.lower().endswith(SUFFIXES) else ""
        self._by_uid.setdefault(found.uid, found)
        for place in (found.file.folder, f"{_parent(found.file.folder)}/*"):
            self._by_place.setdefault((place, shape), found)

    def beside(self, series: Series) -> Found | None:
        """A damaged file of this series, of no known kind in one of its folders, or in a sibling of them where it has several."""
        folders = {file.folder for file in series.files}
        places = folders | ({f"{_parent(folder)}/*" for folder in folders} if len(folders) > 1 else set())
        shapes = {"", *(_shape(file) for file in series.files)}
        here = (self._by_place.get((place, shape)) for place in sorted(places) for shape in sorted(shapes))
        return self._by_uid.get(series.uid) or next((found for found in here if found), None)


def _shape(file: Source) -> str:
    """A name with its numbers left out: the slices of one folder mostly share it."""
    return re.sub(r"\d+", "#", file.name)


def _parent(folder: str) -> str:
    return folder.rpartition("/")[0]


def read_series(series: Series) -> Volume:
    """The volume of a series: each slice rescaled to HU by its own slope and intercept.

    Values declared as padding, or below PADDING_HU, become AIR_HU. Raises Unreadable naming the
    file and the attribute when a slice is missing, doubled, tilted, of another size, orientation,
    kernel or frame of reference, has no position or no rescale, or cannot be decoded.
    """
    if series.spoiled:
        raise series.spoiled
    slices: list[Slice] = []
    for source, read in read_files(series.files, pixels=True):
        try:
            slices += slices_of(read())
        except Unreadable:
            raise
        except _ODD as error:
            raise Unreadable(source, _ODD_REASON, str(error)) from None
    first = slices[0]
    for one in slices[1:]:
        _check_alike(one, first)
    normal, in_plane = _plane(first)
    slices, notes = _one_a_place(slices, normal)
    if len(slices) < 2:
        raise Unreadable(first.file.source, "a single slice has no slice spacing; a volume needs two or more (ImagePositionPatient)")
    _check_not_interleaved(slices)
    step = _even_step(slices, normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1:3], affine[:3, 3] = step, in_plane, slices[0].position
    voxels = len(slices) * first.file.whole("Rows") * first.file.whole("Columns")
    if 6 * voxels > memory_bytes():  # in HU, as stored, and one copy
        raise Unreadable(first.file.source, "its slices together (Rows, Columns) are more than this machine's memory", f"{voxels} voxels")
    plane = slices[0].hu()  # as large as its pixels are, whatever Rows and Columns say
    hu = np.empty((len(slices), *plane.shape), np.int16)
    for k, one in enumerate(slices):
        hu[k] = one.hu() if k else plane
    uids = tuple(one.image_uid for one in slices)
    return Volume(hu, checked_spacing(first.file.source, affine), affine, series.uid, uids, acquisition_of(first.file.header), notes)


def _check_alike(one: Slice, first: Slice) -> None:
    """Unreadable naming the attribute in which two slices of one series differ."""
    mine, its = one.file.header, first.file.header
    same = {name: mine.get(name) == its.get(name) for name in ("Rows", "Columns", "FrameOfReferenceUID", "ConvolutionKernel")}
    # orientation cosines come rounded
    same["ImageOrientationPatient"] = bool(np.abs(one.cosines - first.cosines).max() <= 1e-4)
    same["PixelSpacing"] = bool(np.abs(one.spacing_mm - first.spacing_mm).max() <= 1e-4)
    for name, alike in same.items():
        if not alike:
            raise Unreadable(one.file.source, f"{name} differs from that of another slice of its series", first.file.source.name)


def _plane(first: Slice) -> tuple[np.ndarray, np.ndarray]:
    """The unit normal (3,) and the in-plane steps in mm (3, 2): down a row, along a column."""
    source = first.file.source
    along_row, down_column = first.cosines[:3], first.cosines[3:]
    lengths = np.array([np.linalg.norm(along_row), np.linalg.norm(down_column)])
    if np.abs(lengths - 1).max() > 1e-2 or abs(along_row @ down_column) > 1e-2:
        raise Unreadable(source, "ImageOrientationPatient is not two perpendicular unit vectors")
    row_mm, column_mm = first.spacing_mm  # between rows, then between columns
    if row_mm <= 0 or column_mm <= 0:
        raise Unreadable(source, "PixelSpacing is not above 0", f"{row_mm:g}, {column_mm:g}")
    normal = np.cross(along_row, down_column)
    return normal / np.linalg.norm(normal), np.stack([down_column * row_mm, along_row * column_mm], axis=1)


def _one_a_place(slices: Sequence[Slice], normal: np.ndarray) -> tuple[list[Slice], tuple[str, ...]]:
    """The slices by their place along the normal, an image stored twice taken once, and a note on each of those."""
    along = np.array([one.position @ normal for one in slices])
    kept: list[tuple[float, Slice]] = []
    notes = []
    for n in np.lexsort((np.arange(len(along)), np.round(along, 3))):
        one = slices[n]
        if kept and abs(along[n] - kept[-1][0]) < 5e-4:
            other = kept[-1][1]
            if not one.image_uid or one.image_uid != other.image_uid:
                reason = "lies at the same ImagePositionPatient as another slice; two scans in one series?"
                raise Unreadable(one.file.source, reason, str(other.file.source))
            if not np.array_equal(one.position, other.position) or not np.array_equal(one.hu(), other.hu()):
                raise Unreadable(one.file.source, "has the SOPInstanceUID of another slice, but other pixels", str(other.file.source))
            notes.append("slice stored twice (SOPInstanceUID), taken once")
            continue
        kept.append((along[n], one))
    return [one for _, one in kept], tuple(notes)


def _check_not_interleaved(slices: Sequence[Slice]) -> None:
    """Unreadable when acquisitions take turns: each must be one stretch, as in step-and-shoot scans."""
    seen: list[object] = []
    for one in slices:
        number = one.file.header.get("AcquisitionNumber")
        if number not in (None, "") and (not seen or number != seen[-1]):
            if number in seen:
                raise Unreadable(one.file.source, "AcquisitionNumber alternates from slice to slice; two scans in one series?")
            seen.append(number)


def _even_step(slices: Sequence[Slice], normal: np.ndarray) -> np.ndarray:
    """The step in mm (3,) from slice to slice; Unreadable naming the file at a gap or a tilt."""
    positions = np.array([one.position for one in slices])
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    sideways = step - (step @ normal) * normal
    if np.linalg.norm(sideways) > 0.01 * np.linalg.norm(step):
        degrees = np.degrees(np.arctan2(np.linalg.norm(sideways), step @ normal))
        reason = "slices shift sideways (gantry tilt, ImagePositionPatient); resample the series first"
        raise Unreadable(slices[0].file.source, reason, f"{degrees:.1f} degrees")
    stray = np.abs(positions - positions[0] - np.arange(len(positions))[:, None] * step).max(axis=1)
    step_mm = float(np.linalg.norm(step))
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if stray.max() > max(POSITION_TOLERANCE_MM, 0.02 * step_mm) or steps.max() > MOST_UNEVEN * steps.min():
        worst = int(np.argmax(np.abs(steps - np.median(steps))))
        reason = "slices are not evenly spaced (ImagePositionPatient); a slice is missing, or two scans are mixed"
        values = f"{steps[worst]:.3f} mm from the slice before it, the others lie {np.median(steps):.3f} mm apart"
        raise Unreadable(slices[worst + 1].file.source, reason, values)
    return step
