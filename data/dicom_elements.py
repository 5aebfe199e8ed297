"""The elements of a DICOM data set that are asked for, found by walking over the others without looking into them.

pydicom makes an object of every element it passes; a series has hundreds of files with a hundred elements each, of
which thirty matter and twenty-five are the same in every file. Values are still pydicom's to decode, once each.
Whatever is not plain to see raises Unusual, and pydicom's own reader is asked instead.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

UNDEFINED = 0xFFFFFFFF
_PIXELS = 0x7FE00008
_CHARACTER_SET, _PADDING = 0x00080005, {0x00280120, 0x00280121}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM",
          b"UI", b"UL", b"US"}  # fmt: skip
_NESTED = 16
_SINGLE = {Tag(keyword) for keyword in (
    "Modality", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "SamplesPerPixel",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
)}  # fmt: skip
_UNPACK = {order: tuple(struct.Struct(f"{order}{form}").unpack_from for form in ("HH", "H", "I")) for order in "<>"}


class Unusual(Exception):
    """Bytes that are better left to pydicom."""


class Element(NamedTuple):
    """Where an element's value lies: VR (b"" when implicit), its first byte, its length."""

    vr: bytes
    at: int
    length: int


def find_elements(
    content: bytes, at: int, end: int, *, implicit: bool, order: str, wanted: Collection[int]
) -> tuple[dict[int, Element], int]:
    """The wanted elements from `at` on, by tag, and where the walk stopped: at the pixels, at another group than 2, or at `end`.

    order: "<" or ">" (PS3.5, 7.1). Raises Unusual when the elements are not one unbroken ascending row (7.1) up to there.
    """
    meta = content[at : at + 2] == b"\x02\x00" and order == "<"
    found: dict[int, Element] = {}
    last = 0
    while at < end and not (meta and content[at : at + 2] != b"\x02\x00"):
        tag, vr, value, length = _head(content, at, end, implicit, order)
        if tag >= _PIXELS:
            break
        if tag <= last:
            raise Unusual
        stop = value + length if length != UNDEFINED else _after_sequence(content, value, end, implicit, order, 0)
        if stop > end:
            raise Unusual
        if tag in wanted:
            found[tag] = Element(vr, value, stop - value if length != UNDEFINED else UNDEFINED)
        at, last = stop, tag
    return found, at


def walk_to_end(content: bytes, at: int, end: int, *, implicit: bool, order: str) -> None:
    """Raises Unusual unless one unbroken row of elements goes from `at` to `end`."""
    while at < end:
        _, _, value, length = _head(content, at, end, implicit, order)
        at = value + length if length != UNDEFINED else _after_sequence(content, value, end, implicit, order, 0)
    if at != end:
        raise Unusual("an element is longer or shorter than it says")


def _head(content: bytes, at: int, end: int, implicit: bool, order: str) -> tuple[int, bytes, int, int]:
    """Tag, VR, where the value begins, and its length."""
    if at + 12 > end and at + 8 != end:
        raise Unusual
    pair, short, long = _UNPACK[order]
    group, element = pair(content, at)
    tag = group << 16 | element
    if implicit or group == 0xFFFE:
        return tag, b"", at + 8, long(content, at + 4)[0]
    vr = content[at + 4 : at + 6]
    if vr in _SHORT:
        return tag, vr, at + 8, short(content, at + 6)[0]
    if vr not in _LONG:
        raise Unusual
    return tag, vr, at + 12, long(content, at + 8)[0]


def _after_sequence(content: bytes, at: int, end: int, implicit: bool, order: str, depth: int) -> int:
    """Where a sequence of undefined length ends (PS3.5, 7.5.2)."""
    while at < end and depth < _NESTED:
        tag, _, at, length = _head(content, at, end, implicit, order)
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM:
            raise Unusual
        at = at + length if length != UNDEFINED else _after_item(content, at, end, implicit, order, depth + 1)
    raise Unusual


def _after_item(content: bytes, at: int, end: int, implicit: bool, order: str, depth: int) -> int:
    while at < end:
        tag, _, at, length = _head(content, at, end, implicit, order)
        if tag == _ITEM_END:
            return at
        at = at + length if length != UNDEFINED else _after_sequence(content, at, end, implicit, order, depth)
    raise Unusual


def check_single(element: DataElement) -> None:
    """ValueError when an attribute that has one value by the standard has several."""
    if element.tag in _SINGLE and element.VM > 1:
        raise ValueError(f"{element.keyword} has {element.VM} values")


class Decoder:
    """Turns found elements into a pydicom Dataset; what is byte for byte as in the file before is not decoded again."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[bytes, bytes]] = {}
        self._decoded = Dataset()

    def decode(self, content: bytes, found: dict[int, Element], *, implicit: bool, order: str) -> Dataset:
        """A data set with the found elements, values decoded as pydicom does. Raises what pydicom raises and check_single do."""
        raw = {tag: (e.vr, content[e.at : e.at + e.length]) for tag, e in found.items() if e.length != UNDEFINED}
        if len(raw) < len(found):
            raise Unusual  # a wanted sequence of undefined length
        again = raw.get(_CHARACTER_SET) == self._before.get(_CHARACTER_SET)
        elements: dict[BaseTag, RawDataElement | DataElement] = {}
        for tag, (vr, value) in raw.items():
            base = BaseTag(tag)
            if again and tag not in _PADDING and self._before.get(tag) == (vr, value):  # padding depends on PixelRepresentation
                elements[base] = self._decoded[base]
            else:
                elements[base] = RawDataElement(base, vr.decode() or None, len(value), value, 0, implicit, order == "<")
        header = Dataset(elements)
        text = elements.get(BaseTag(_CHARACTER_SET))
        text = convert_raw_data_element(text) if isinstance(text, RawDataElement) else text
        header.set_original_encoding(implicit, order == "<", convert_encodings(text.value if text else ""))
        for base, element in elements.items():
            if isinstance(element, RawDataElement):  # decoded now, so that damage shows here
                check_single(header[base])
                for item in header[base].value if header[base].VR == "SQ" else ():
                    list(item.iterall())
        self._before, self._decoded = raw, header
        return header
