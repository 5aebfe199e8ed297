"""DICOM CT series: files in, one volume of HU out, or an error naming the file and the cause.

Slices are ordered and spaced by their position along the normal of the image plane
(DICOM PS3.3, C.7.6.2.1.1), never by file name, InstanceNumber or SliceThickness.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage

from data.volume import AIR_HU, Volume, spacing_of

PADDING_HU = -1500
"""Nothing a scanner measures lies below this: what does is padding, declared or not."""

POSITION_TOLERANCE_MM = 0.101
"""How far a slice may lie from its place, or 2 % of the step: positions are often rounded to a tenth of a millimetre.
A missing slice moves its neighbours by half a step at least."""

_HEADER = [
    "Modality", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID",
    "PatientID", "ImageType", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "BurnedInAnnotation",
]  # fmt: skip


_SINGLE = {
    "Modality", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "SamplesPerPixel",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "RescaleType",
    "PixelPaddingValue", "PixelPaddingRangeLimit",
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """The CT slices of one series, found but not yet read."""

    uid: str
    patient_id: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Skipped:
    """A file that is not a CT slice, and why."""

    file: Path
    reason: str


def find_series(files: Iterable[Path]) -> tuple[list[Series], list[Skipped]]:
    """Groups CT slices by SeriesInstanceUID; says of every other file why it is none.

    Only headers are read. Files that are not DICOM, other modalities, localizers, derived maps
    and colour screens are skipped; what claims to be a CT slice is kept, to be judged by read_series.
    """
    slices: dict[str, list[Path]] = {}
    patients: dict[str, str] = {}
    studies: dict[str, str] = {}
    skipped = []
    for file in files:
        if file.name.upper() == "DICOMDIR":
            continue
        try:
            header = _read(file, pixels=False)
            reason = _not_a_ct_slice(header)
        except (ValueError, OSError) as error:
            skipped.append(Skipped(file, str(error).removeprefix(f"{file}: ")))
            continue
        if reason:
            skipped.append(Skipped(file, reason))
            continue
        uid = str(header.SeriesInstanceUID)
        slices.setdefault(uid, []).append(file)
        named = str(header.get("PatientID") or "")
        if named and patients.setdefault(uid, named) != named:
            raise ValueError(f"{file}: another PatientID than other slices of its series; two patients in one series?")
        studies.setdefault(uid, str(header.get("StudyInstanceUID") or uid))
    return [Series(uid, patients.get(uid, studies[uid]), tuple(sorted(slices[uid]))) for uid in sorted(slices)], skipped


def read_series(series: Series) -> Volume:
    """The volume of a series: each slice rescaled to HU by its own slope and intercept.

    Values declared as padding, or below PADDING_HU, become AIR_HU. Raises ValueError naming the
    file and the attribute when a slice is missing, doubled, tilted, of another size, orientation
    or frame of reference, has no position or no rescale, or cannot be decoded.
    """
    slices = [(file, _read(file, pixels=True)) for file in series.files]
    first_file, first = slices[0]
    normal, affine_in_plane = _plane(first_file, first)
    placed: dict[float, tuple[Path, FileDataset]] = {}
    positions = []
    for file, header in slices:
        for keyword in ("Rows", "Columns", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID"):
            if not _equal(header.get(keyword), first.get(keyword)):
                values = "" if keyword.endswith("UID") else f" ({header.get(keyword)} and {first.get(keyword)})"
                raise ValueError(f"{file}: {keyword} differs from that of {first_file.name}{values}")
        position = _numbers(file, header, "ImagePositionPatient", 3)
        along = round(float(position @ normal), 3)
        if along in placed:
            other_file, other = placed[along]
            if header.get("SOPInstanceUID") and header.get("SOPInstanceUID") == other.get("SOPInstanceUID"):
                continue
            raise ValueError(f"{file}: lies at the same ImagePositionPatient as {other_file.name}; two scans in one series?")
        placed[along] = (file, header)
        positions.append(position)
    if len(placed) < 2:
        raise ValueError(f"{first_file}: a single slice has no slice spacing; a volume needs two or more")
    ordered = np.array(positions)[np.argsort(np.array(positions) @ normal)]
    slices = [placed[along] for along in sorted(placed)]
    step = _even_step(ordered, normal, [file for file, _ in slices])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1:3], affine[:3, 3] = step, affine_in_plane, ordered[0]
    hu = np.stack([_hu(file, header) for file, header in slices])
    return Volume(hu, spacing_of(affine), affine, series.uid)


def _read(file: Path, *, pixels: bool) -> FileDataset:
    """The header, with pixel data if wanted. pydicom's warnings are left out: we check what we use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags: list = [*_HEADER, *(["PixelData"] if pixels else [])]
            header = pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=tags)
            for element in header:  # values are decoded when first read: now, so that damage shows here
                if element.keyword in _SINGLE and element.VM > 1:
                    raise ValueError(f"{element.keyword} has {element.VM} values")
            return header
    except InvalidDicomError:
        raise ValueError(f"{file}: not a DICOM file") from None
    except OSError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise ValueError(f"{file}: damaged DICOM header ({type(error).__name__}: {error})") from None


def _not_a_ct_slice(header: FileDataset) -> str | None:
    image_type = header.get("ImageType") or []
    kind = [str(value).upper() for value in ([image_type] if isinstance(image_type, str) else image_type)]
    if header.get("Modality") != "CT":
        return f"Modality is {header.get('Modality') or 'absent'}, not CT"
    if "LOCALIZER" in kind:
        return "a localizer (ImageType)"
    if "PERFUSION" in kind:
        return "a perfusion map (ImageType)"
    if str(header.get("BurnedInAnnotation") or "").upper() == "YES":
        return "text is burned into the picture (BurnedInAnnotation)"
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return "a colour screen (SamplesPerPixel)"
    if header.get("SOPClassUID") != CTImageStorage:
        name = getattr(header.get("SOPClassUID"), "name", "no SOPClassUID")
        return f"{name}, not single-slice CT Image Storage"
    if "SeriesInstanceUID" not in header or "Rows" not in header:
        return "no SeriesInstanceUID or no image in it"
    return None


def _numbers(file: Path, header: FileDataset, keyword: str, count: int) -> np.ndarray:
    """A numeric attribute as float64 (count,); ValueError when absent, short or not finite."""
    try:
        value = header.get(keyword)
        numbers = np.array([] if value is None else np.atleast_1d(value), dtype=np.float64)
    except (ValueError, TypeError):
        raise ValueError(f"{file}: {keyword} is not a number") from None
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{file}: {keyword} is {'absent' if numbers.size == 0 else numbers.tolist()}")
    return numbers


def _equal(a: object, b: object) -> bool:
    """Equal, or both lists of numbers equal to 1e-4: orientation cosines come rounded."""
    if a is None or b is None:
        return a is b
    try:
        return bool(np.allclose(np.array(a, dtype=float), np.array(b, dtype=float), rtol=0, atol=1e-4))
    except (ValueError, TypeError):
        return a == b


def _plane(file: Path, header: FileDataset) -> tuple[np.ndarray, np.ndarray]:
    """The unit normal (3,) and the in-plane steps in mm (3, 2): down a row, along a column."""
    cosines = _numbers(file, header, "ImageOrientationPatient", 6)
    along_row, down_column = cosines[:3], cosines[3:]
    lengths = np.array([np.linalg.norm(along_row), np.linalg.norm(down_column)])
    if np.abs(lengths - 1).max() > 1e-2 or abs(along_row @ down_column) > 1e-2:
        raise ValueError(f"{file}: ImageOrientationPatient is not two perpendicular unit vectors")
    row_mm, column_mm = _numbers(file, header, "PixelSpacing", 2)  # between rows, then between columns
    if row_mm <= 0 or column_mm <= 0:
        raise ValueError(f"{file}: PixelSpacing is {row_mm:g}, {column_mm:g}")
    normal = np.cross(along_row, down_column)
    return normal / np.linalg.norm(normal), np.stack([down_column * row_mm, along_row * column_mm], axis=1)


def _even_step(positions: np.ndarray, normal: np.ndarray, files: list[Path]) -> np.ndarray:
    """The step in mm (3,) from slice to slice; ValueError naming the file at a gap or a tilt."""
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    sideways = step - (step @ normal) * normal
    if np.linalg.norm(sideways) > 0.01 * np.linalg.norm(step):
        degrees = np.degrees(np.arctan2(np.linalg.norm(sideways), step @ normal))
        raise ValueError(f"{files[0]}: slices shift sideways by {degrees:.1f} degrees (gantry tilt); resample the series first")
    stray = np.abs(positions - positions[0] - np.arange(len(positions))[:, None] * step).max(axis=1)
    if stray.max() > max(POSITION_TOLERANCE_MM, 0.02 * np.linalg.norm(step)):
        steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
        worst = int(np.argmax(np.abs(steps - np.median(steps))))
        raise ValueError(
            f"{files[worst + 1]}: {steps[worst]:.3f} mm from the slice before it, the others lie {np.median(steps):.3f} mm apart "
            "(ImagePositionPatient); a slice is missing, or two scans are mixed"
        )
    return step


def _hu(file: Path, header: FileDataset) -> np.ndarray:
    """int16 (J, I): a slice's stored values in HU (PS3.3, C.11.1.1.2)."""
    if header.get("ModalityLUTSequence"):
        raise ValueError(f"{file}: ModalityLUTSequence in place of RescaleSlope is not supported")
    slope, intercept = (float(_numbers(file, header, f"Rescale{what}", 1)[0]) for what in ("Slope", "Intercept"))
    if slope == 0:
        raise ValueError(f"{file}: RescaleSlope is 0")
    if header.get("RescaleType") not in (None, "", "HU"):
        raise ValueError(f"{file}: RescaleType is {header.RescaleType}, not HU")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = header.pixel_array
    except Exception as error:  # every codec has its own kinds
        raise ValueError(f"{file}: PixelData cannot be decoded ({' '.join(str(error).split())[:200]})") from None
    if stored.shape != (header.Rows, header.Columns):
        raise ValueError(f"{file}: PixelData has shape {stored.shape}, not one slice of {header.Rows} x {header.Columns}")
    if int(header.BitsAllocated) > 16:
        raise ValueError(f"{file}: BitsAllocated is {header.BitsAllocated}, want 8 or 16")
    if int(header.get("HighBit", header.BitsStored - 1)) != int(header.BitsStored) - 1:
        raise ValueError(f"{file}: HighBit is {header.HighBit}, not one less than BitsStored {header.BitsStored} (PS3.5, 8.1.1)")
    stored = _stored_bits(stored.astype(np.int32), header)
    hu = stored * slope + intercept
    hu[_padding(stored, header) | (hu < PADDING_HU)] = AIR_HU
    return np.rint(np.clip(hu, -32768, 32767)).astype(np.int16)


def _stored_bits(pixels: np.ndarray, header: FileDataset) -> np.ndarray:
    """The BitsStored lowest bits, sign-extended where signed: bits above may hold overlays (PS3.5, 8.1.1)."""
    bits = int(header.BitsStored)
    values = pixels & ((1 << bits) - 1)
    return np.where(values >= 1 << (bits - 1), values - (1 << bits), values) if header.PixelRepresentation else values


def _padding(stored: np.ndarray, header: FileDataset) -> np.ndarray:
    """bool (J, I): where the value is PixelPaddingValue, up to PixelPaddingRangeLimit (PS3.3, C.7.5.1.1.2)."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = header.get("PixelPaddingRangeLimit")
    ends = sorted([int(value), int(value if limit is None else limit)])
    return (stored >= ends[0]) & (stored <= ends[1])
