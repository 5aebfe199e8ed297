"""The image planes of a CT file: one in a CT Image, many in an Enhanced CT Image; and their values in HU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from data.dicom_file import DicomFile, numbers
from data.sources import Unreadable
from data.volume import AIR_HU, PADDING_HU

_ENHANCED = {EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
CT_CLASSES = {str(CTImageStorage), *map(str, _ENHANCED)}

_MODALITIES = {
    "AR", "AU", "BDUS", "BI", "BMD", "CR", "CT", "CTPROTOCOL", "DG", "DOC", "DX", "ECG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO",
    "IOL", "IVOCT", "IVUS", "KER", "KO", "LEN", "LS", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPT", "OPV", "OT", "PLAN", "PR",
    "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT", "SC", "SEG", "SM", "SMR", "SR", "SRF",
    "STAIN", "TG", "US", "VA", "XA", "XC",
}  # fmt: skip
"""Defined terms of Modality (PS3.3, C.7.3.1.1.1), of the common objects."""

_NOT_HU = {
    "PERFUSION", "MAT_SPECIFIC", "MAT_FRACTIONAL", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "STD_DEVIATION", "SUBTRACTION", "DIVISION",
    "MULTIPLICATION", "MTT", "QUANTITY",
}  # fmt: skip
"""Values of ImageType for derived maps whose numbers are no HU (PS3.3, C.8.15.2 and C.8.16.1)."""


@dataclass(frozen=True)
class Slice:
    """One image plane of a file.

    position: LPS mm of its first pixel's centre. cosines: along a row, then down a column (PS3.3, C.7.6.2.1.1).
    spacing_mm: between rows, then between columns.
    """

    file: DicomFile
    frame: int
    position: np.ndarray
    cosines: np.ndarray
    spacing_mm: np.ndarray
    slope: float
    intercept: float
    image_uid: str

    def hu(self) -> np.ndarray:
        """int16 (J, I): the stored values in HU (PS3.3, C.11.1.1.2); padding becomes AIR_HU."""
        stored = self._meant(self.file.stored(self.frame))
        empty = self._padding(stored)
        ends = np.array([stored.min(), stored.max()], np.int64) * self.slope + self.intercept
        if self.slope == 1 and self.intercept == round(self.intercept) and abs(self.intercept) < 32768 and np.abs(ends).max() < 32768:
            hu = stored.astype(np.int16) + np.int16(self.intercept)  # the common case, at half the time
        else:
            values = stored * self.slope + self.intercept
            if empty is not None:
                values[empty] = AIR_HU
            if not values.max() < 32767.5:
                raise Unreadable(self.file.source, "RescaleSlope and RescaleIntercept give values beyond HU", f"{values.max():g}")
            hu = np.rint(np.maximum(values, -32768)).astype(np.int16)
        if ends.min() < PADDING_HU:
            hu[hu < PADDING_HU] = AIR_HU
        if empty is not None:
            hu[empty] = AIR_HU
        return hu

    def _meant(self, stored: np.ndarray) -> np.ndarray:
        """The BitsStored lowest bits, sign-extended where signed: bits above may hold overlays (PS3.5, 8.1.1)."""
        file = self.file
        bits, signed = file.whole("BitsStored"), file.whole("PixelRepresentation")
        width = stored.dtype.itemsize * 8
        if not 1 <= bits <= width or signed not in (0, 1):
            raise Unreadable(file.source, "BitsStored or PixelRepresentation makes no sense", f"{bits}, {signed}")
        high = file.whole("HighBit", bits - 1)
        if high != bits - 1:
            raise Unreadable(file.source, "HighBit is not one less than BitsStored (PS3.5, 8.1.1)", f"{high} and {bits}")
        return _low_bits(stored.astype(f"=u{width // 8}", copy=False), bits, bool(signed))

    def _padding(self, stored: np.ndarray) -> np.ndarray | None:
        """bool (J, I): where the value is PixelPaddingValue, up to PixelPaddingRangeLimit (PS3.3, C.7.5.1.1.2)."""
        header = self.file.header
        if header.get("PixelPaddingValue") is None:
            return None
        ends = [_as_stored(self.file, header[keyword].value) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")
                if header.get(keyword) is not None]  # fmt: skip
        return stored == ends[0] if len(ends) == 1 else (stored >= min(ends)) & (stored <= max(ends))


def _low_bits(values: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """The `bits` lowest bits of unsigned values, sign-extended where signed; same width."""
    width = values.dtype.itemsize * 8
    if not signed:
        return values & ((1 << bits) - 1) if bits < width else values
    kind = values.dtype.str.replace("u", "i")
    return (values << (width - bits)).astype(values.dtype).view(kind) >> (width - bits) if bits < width else values.view(kind)


def _as_stored(file: DicomFile, value: object) -> int:
    """A padding value as the pixels have it: some writers declare it unsigned beside signed pixels, or wider than BitsStored, or as bytes."""
    if isinstance(value, bytes):
        value = int.from_bytes(value[:2], "little")
    try:
        number = int(value) % 65536  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise Unreadable(file.source, "PixelPaddingValue or PixelPaddingRangeLimit is no number") from None
    return int(_low_bits(np.array([number], np.uint16), min(file.whole("BitsStored"), 16), file.whole("PixelRepresentation") == 1)[0])


def contradiction(file: DicomFile) -> str | None:
    """What a header says of its kind that cannot be: then it may be a damaged slice. None when it agrees with itself."""
    header = file.header
    named = str(header.get("SOPClassUID") or "")
    if not header.get("Modality"):
        return "Modality is absent"
    if CT_CLASSES & {named, file.kind} and str(header.Modality) not in _MODALITIES:
        return "Modality is no defined term in an image of a CT class"
    if file.kind in CT_CLASSES and named != file.kind and not _registered(named):
        return "SOPClassUID is unknown, MediaStorageSOPClassUID is that of CT"
    if header.Modality == "CT" and "SamplesPerPixel" in header and file.whole("SamplesPerPixel") not in (1, 3):
        return "SamplesPerPixel is neither 1 nor 3"
    return None


def other_kind(file: DicomFile) -> str | None:
    """Why a file is no CT slice to be read; None when it claims to be one. The reason holds no free text of the file."""
    header = file.header
    kind = _image_type(header)
    if header.Modality != "CT":
        return f"Modality is {header.Modality if header.Modality in _MODALITIES else 'unknown'}, not CT"
    if "LOCALIZER" in kind:
        return "a localizer (ImageType)"
    if not_hu := _NOT_HU.intersection(kind):
        return f"a derived map, not HU (ImageType {sorted(not_hu)[0]})"
    if str(header.get("BurnedInAnnotation") or "").upper() == "YES":
        return "text is burned into the picture (BurnedInAnnotation)"
    if file.whole("SamplesPerPixel", 1) != 1:
        return "a colour screen (SamplesPerPixel)"
    if header.get("SOPClassUID") not in CT_CLASSES:
        uid = str(header.get("SOPClassUID") or "")
        known = UID(uid).name if _registered(uid) else "unknown" if uid else "absent"
        return f"SOPClassUID is {known}, not CT Image Storage"
    if header.SOPClassUID in _ENHANCED and any(_NOT_HU.intersection(_image_type(f)) for f in _all_of(header, "CTImageFrameTypeSequence")):
        return "a derived map, not HU (FrameType)"
    if header.SOPClassUID in _ENHANCED and any(
        f.get("RescaleType", "HU") not in ("HU", "HU_MOD") for f in _all_of(header, "PixelValueTransformationSequence")
    ):
        return "a derived map, not HU (RescaleType)"
    return None


def _registered(uid: str) -> bool:
    return UID(uid, IGNORE).name != uid


def slices_of(file: DicomFile) -> Iterator[Slice]:
    """Each image plane of a CT file, with numbers checked. Raises Unreadable naming the attribute that is wrong."""
    if file.header.SOPClassUID in _ENHANCED:
        yield from _enhanced(file)
        return
    header, source = file.header, file.source
    if file.whole("NumberOfFrames", 1) != 1:
        raise Unreadable(source, "NumberOfFrames is not 1 in a single CT image")
    yield Slice(file, 0, numbers(source, header, "ImagePositionPatient", 3), numbers(source, header, "ImageOrientationPatient", 6),
                numbers(source, header, "PixelSpacing", 2), *_rescale(file, header), str(header.get("SOPInstanceUID") or ""))  # fmt: skip


def _enhanced(file: DicomFile) -> Iterator[Slice]:
    """Frames of an Enhanced CT Image, by their functional groups (PS3.3, C.7.6.16)."""
    header, source = file.header, file.source
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(per_frame) != file.whole("NumberOfFrames", 0) or not per_frame:
        raise Unreadable(source, "PerFrameFunctionalGroupsSequence has not NumberOfFrames items")
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for n, own in enumerate(per_frame):
        position, orientation, measures, values = (
            _group(source, own, shared, name) for name in (
                "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence"
            )
        )  # fmt: skip
        yield Slice(file, n, numbers(source, position, "ImagePositionPatient", 3), numbers(source, orientation, "ImageOrientationPatient", 6),
                    numbers(source, measures, "PixelSpacing", 2), *_rescale(file, values), f"{header.get('SOPInstanceUID')} {n}")  # fmt: skip


def _group(source: object, own: Dataset, shared: Dataset, name: str) -> Dataset:
    items = own.get(name) or shared.get(name)
    if not items:
        raise Unreadable(source, f"{name} is absent")
    return items[0]


def _rescale(file: DicomFile, holder: Dataset) -> tuple[float, float]:
    """Slope and intercept to HU."""
    if holder.get("ModalityLUTSequence"):
        raise Unreadable(file.source, "ModalityLUTSequence in place of RescaleSlope is not supported")
    slope, intercept = (float(numbers(file.source, holder, f"Rescale{what}", 1)[0]) for what in ("Slope", "Intercept"))
    if slope == 0:
        raise Unreadable(file.source, "RescaleSlope is 0")
    if holder.get("RescaleType") not in (None, "", "HU"):
        raise Unreadable(file.source, "RescaleType is not HU", str(holder.RescaleType))
    return slope, intercept


def _all_of(header: Dataset, name: str) -> Iterator[Dataset]:
    for groups in [*(header.get("SharedFunctionalGroupsSequence") or []), *(header.get("PerFrameFunctionalGroupsSequence") or [])]:
        yield from groups.get(name) or ()


def _image_type(holder: Dataset) -> set[str]:
    values = holder.get("ImageType") or holder.get("FrameType") or []
    return {str(value).strip().upper() for value in np.atleast_1d(np.array(values, dtype=object))}
