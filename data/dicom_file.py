"""One DICOM file: its header and the values stored in it, or Unreadable naming the file and the cause.

Nothing here trusts a size that a header states: a deflated data set grows to a bound only, and pixels
are decoded only when there are as many as Rows, Columns and NumberOfFrames ask for.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from data.acquisition import PERSONAL
from data.dicom_codecs import Encapsulated
from data.dicom_elements import UNDEFINED, Decoder, Unusual, check_single, find_elements, walk_to_end
from data.parallel import read_ahead
from data.sources import Source, Unreadable

HEADER = [
    "SpecificCharacterSet", "Modality", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID",
    *PERSONAL, "ImageType", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "BurnedInAnnotation", "AcquisitionNumber", "ConvolutionKernel", "Manufacturer", "ManufacturerModelName",
    "SliceThickness", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip

_WANTED = frozenset(int(Tag(keyword)) for keyword in HEADER)
_META = (0x00020002, 0x00020010)
NATIVE = {ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian}

_HEAD_BYTES = 1 << 16
_GROUP_LENGTH = b"DICM\x02\x00\x00\x00UL\x04\x00"
SUFFIXES = (".dcm", ".dicom", ".ima")
_INFLATED_BYTES, _INFLATED_RATIO = 64 << 20, 20
_WIDEST = 4096  # Rows and Columns that a compressed CT image may have
_PIXEL_DATA = {"<": b"\xe0\x7f\x10\x00", ">": b"\x7f\xe0\x00\x10"}
_BARE = re.compile(rb"[\x02\x08]\x00.\x00([A-Z]{2}|..\x00\x00)", re.DOTALL)
_PLAIN_META = b"\0" * 128 + b"DICM" + struct.pack("<HH2sH20s", 2, 0x10, b"UI", 20, b"1.2.840.10008.1.2.1\0")


class NotDicom(Unreadable):
    """A file of some other kind, or none at all: zero bytes, a pipe."""


class Directory(Unreadable):
    """A DICOMDIR: an index, without images of its own."""


@dataclass
class DicomFile:
    """A header, and where the pixels begin in the content, if the whole of it was read.

    content: the data set from its first byte, inflated. pixels_at: where PixelData's value begins; pixels_length: its
    bytes, UNDEFINED when it is encapsulated, None when there is no PixelData. kind: MediaStorageSOPClassUID.
    """

    source: Source
    header: Dataset
    syntax: UID
    content: bytes
    pixels_at: int
    pixels_length: int | None
    kind: str = ""

    def stored(self, frame: int = 0) -> np.ndarray:
        """(Rows, Columns): the integers stored in one frame, as they lie there (PS3.5, 8.1.1)."""
        source = self.source
        rows, columns, bits = (self.whole(keyword) for keyword in ("Rows", "Columns", "BitsAllocated"))
        if bits not in (8, 16):
            raise Unreadable(source, "BitsAllocated is not 8 or 16", str(bits))
        if self.whole("SamplesPerPixel") != 1:
            raise Unreadable(source, "SamplesPerPixel is not 1")
        if self.header.get("PhotometricInterpretation") not in (None, "", "MONOCHROME1", "MONOCHROME2"):
            raise Unreadable(source, "PhotometricInterpretation is not MONOCHROME1 or MONOCHROME2")
        if self.pixels_length is None:
            raise Unreadable(source, "PixelData is absent")
        if self.syntax in NATIVE and self.pixels_length != UNDEFINED:
            frames = self.whole("NumberOfFrames", 1)
            size = rows * columns * bits // 8
            if self.pixels_length - size * frames not in ((0, 1) if size * frames % 2 else (0,)) or rows * columns == 0:
                asked = f"{size * frames} bytes for {frames} x {rows} x {columns}, there are {self.pixels_length}"
                raise Unreadable(source, "PixelData does not have the size that Rows, Columns and NumberOfFrames ask for", asked)
            if self.pixels_at + self.pixels_length > len(self.content):
                raise Unreadable(source, "PixelData is cut off", f"{len(self.content) - self.pixels_at} of {self.pixels_length} bytes")
            if not frame:
                self._check_end()
            order = ">" if self.syntax == ExplicitVRBigEndian else "<"
            dtype = np.dtype(f"{order}u{bits // 8}")
            return np.frombuffer(self.content, dtype, rows * columns, self.pixels_at + frame * size).reshape(rows, columns)
        return self._decoded(frame, rows, columns)

    def _decoded(self, frame: int, rows: int, columns: int) -> np.ndarray:
        source = self.source
        if not self.syntax.is_transfer_syntax or self.syntax.is_private or self.syntax in NATIVE:
            raise Unreadable(source, "TransferSyntaxUID is absent, unknown or not that of its PixelData", str(self.syntax))
        if max(rows, columns) > _WIDEST:
            raise Unreadable(source, f"Rows or Columns above {_WIDEST}", f"{rows} x {columns}")
        try:
            pixels = self._encapsulated.decoded(frame, rows, columns)
        except Exception as error:  # every codec has its own kinds
            raise Unreadable(source, "PixelData cannot be decoded", f"{self.syntax.name}: {str(error)[:200]}") from None
        if pixels.shape != (rows, columns):
            raise Unreadable(source, "PixelData is not Rows x Columns", f"{pixels.shape}")
        return pixels

    @cached_property
    def _encapsulated(self) -> Encapsulated:
        return Encapsulated(self.content, self.syntax, self.whole("NumberOfFrames", 1))

    def _check_end(self) -> None:
        """Unreadable when what follows the pixels is neither nothing nor elements: bytes were lost or came in between."""
        at, end = self.pixels_at + (self.pixels_length or 0), len(self.content)
        implicit, little = self.header.original_encoding
        if at < end and any(self.content[at:end]):
            try:
                walk_to_end(self.content, at, end, implicit=bool(implicit), order="<" if little else ">")
            except Unusual:
                raise Unreadable(self.source, "what follows its PixelData are no elements; bytes were lost or inserted") from None

    def whole(self, keyword: str, default: int | None = None) -> int:
        """A whole number of the header, or the default where it is absent or empty; Unreadable when it is none."""
        value = self.header.get(keyword)
        if value in (None, "") and default is not None:
            return default
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError):
            raise Unreadable(self.source, f"{keyword} is absent or no number") from None


def read_dicom(source: Source, *, pixels: bool) -> DicomFile:
    """A file's header, and its pixels if wanted. pydicom's warnings are left out: what is used is checked.

    Raises NotDicom, Directory, or Unreadable when the file is damaged.
    """
    return _opened(source, _content(source, pixels), Decoder())


def read_files(sources: Iterable[Source], *, pixels: bool) -> Iterator[tuple[Source, Callable[[], DicomFile]]]:
    """Each file with a call that gives what read_dicom does, or raises it. Threads read ahead, a series' headers are decoded once."""
    decoder = Decoder()
    for source, content in read_ahead(partial(_content, pixels=pixels), sources):
        yield source, lambda source=source, content=content: _opened(source, content(), decoder)  # type: ignore[misc]


def _content(source: Source, pixels: bool) -> tuple[bytes, bool]:
    """A file's bytes, or where pixels are not wanted its first ones, and whether that is all of it."""
    try:
        size = source.size
    except Unreadable as error:
        raise NotDicom(source, error.reason) from None
    if size == 0:
        raise NotDicom(source, "zero bytes")
    if pixels or source.member:
        return source.read(), True
    with open(source.path, "rb") as file:
        content = file.read(_HEAD_BYTES)
    return content, len(content) == size


def _opened(source: Source, read: tuple[bytes, bool], decoder: Decoder) -> DicomFile:
    content, whole = read
    if DeflatedExplicitVRLittleEndian.encode() in _meta(content):
        return _parse(source, _inflate(source, source.read()), True, decoder)
    try:
        return _parse(source, content, whole, decoder)
    except _HeadTooShort:
        return _parse(source, source.read(), True, decoder)


def _meta(content: bytes) -> bytes:
    """The file meta group, or where it would be."""
    length = struct.unpack("<I", content[140:144])[0] if content[128:140] == _GROUP_LENGTH else 1024
    return content[: 144 + min(length, _HEAD_BYTES)]


class _HeadTooShort(Exception):
    """What was read of the file ends before its header does."""


def _parse(source: Source, content: bytes, complete: bool, decoder: Decoder) -> DicomFile:
    if content[128:132] != b"DICM" and not _BARE.match(content):
        named = source.name.lower().endswith(SUFFIXES)
        raise NotDicom(source, "not a DICOM file, though named as one" if named else "not a DICOM file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind, syntax, header, stop = _header(content, decoder)
    except Exception as error:  # pydicom raises many kinds on damaged files
        if not complete:
            raise _HeadTooShort from None
        raise Unreadable(source, "damaged DICOM header", f"{type(error).__name__}: {error}") from None
    if kind == MediaStorageDirectoryStorage:
        raise Directory(source, "a DICOMDIR")
    implicit, little = header.original_encoding
    at, length = _pixel_data(content, stop, bool(implicit), "<" if little else ">")
    if length is None and not complete:
        raise _HeadTooShort
    if not syntax:  # pydicom told implicit from explicit by the first element
        syntax = ExplicitVRBigEndian if not little else ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return DicomFile(source, header, UID(str(syntax), pydicom.config.IGNORE), content, at, length, str(kind or ""))


def _header(content: bytes, decoder: Decoder) -> tuple[object, object, Dataset, int]:
    """MediaStorageSOPClassUID, TransferSyntaxUID, the header, and where it ends."""
    try:
        if content[128:132] != b"DICM":
            raise Unusual
        meta, at = find_elements(content, 132, len(content), implicit=False, order="<", wanted=_META)
        kind, syntax = (content[e.at : e.at + e.length].rstrip(b"\0 ").decode() for e in (meta[tag] for tag in _META))
        if syntax not in NATIVE and not UID(syntax, pydicom.config.IGNORE).is_encapsulated:
            raise Unusual
        implicit, order = syntax == ImplicitVRLittleEndian, ">" if syntax == ExplicitVRBigEndian else "<"
        found, stop = find_elements(content, at, len(content), implicit=implicit, order=order, wanted=_WANTED)
        return kind, syntax, decoder.decode(content, found, implicit=implicit, order=order), stop
    except (Unusual, KeyError, ValueError):
        stream = BytesIO(content)
        header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=HEADER, force=True)
        for element in header:  # values are decoded when first read: now, so that damage shows here
            check_single(element)
        list(header.iterall())
        return header.file_meta.get("MediaStorageSOPClassUID"), header.file_meta.get("TransferSyntaxUID"), header, stream.tell()


def _pixel_data(content: bytes, at: int, implicit: bool, order: str) -> tuple[int, int | None]:
    """Where the value of the PixelData element at `at` begins, and its length (PS3.5, 7.1.2 and 7.1.3)."""
    if content[at : at + 4] != _PIXEL_DATA[order]:
        return at, None
    start = at + (4 if implicit else 8)
    field = content[start : start + 4]
    return start + 4, struct.unpack(f"{order}I", field)[0] if len(field) == 4 else None


def _inflate(source: Source, content: bytes) -> bytes:
    """A deflated data set (PS3.5, A.5) as a plain one, to a bound: a bomb is refused, not inflated."""
    if content[128:140] != _GROUP_LENGTH:
        raise Unreadable(source, "deflated, without FileMetaInformationGroupLength")
    start = 144 + struct.unpack("<I", content[140:144])[0]
    most = max(_INFLATED_BYTES, _INFLATED_RATIO * len(content))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(content[start:], most)
    except zlib.error as error:
        raise Unreadable(source, "its deflated data set is damaged", str(error)) from None
    if inflater.unconsumed_tail:
        raise Unreadable(source, "its deflated data set inflates to more than an image can be", f"over {most >> 20} MiB")
    if not inflater.eof:
        raise Unreadable(source, "its deflated data set is cut off")
    return _PLAIN_META + plain


def numbers(source: Source, holder: Dataset, keyword: str, count: int) -> np.ndarray:
    """A numeric attribute as float64 (count,); Unreadable when absent, short or not finite."""
    try:
        value = holder.get(keyword)
        found = np.array([] if value is None else np.atleast_1d(value), dtype=np.float64)
    except (ValueError, TypeError):
        raise Unreadable(source, f"{keyword} is not a number") from None
    if found.size == 0:
        raise Unreadable(source, f"{keyword} is absent")
    if found.shape != (count,) or not np.isfinite(found).all():
        raise Unreadable(source, f"{keyword} is not {count} finite numbers", str(found.tolist()))
    return found
