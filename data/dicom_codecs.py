"""Compressed pixels: the frames of an encapsulated PixelData (PS3.5, A.4), checked before a decoder sees them."""

from __future__ import annotations

import struct
import warnings
from io import BytesIO

import numpy as np
import pydicom
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from data.dicom_elements import walk_to_end

_DECODERS = {RLELossless: "pydicom", JPEGLSLossless: "pyjpegls", JPEGLSNearLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg",
             JPEG2000: "pylibjpeg", HTJ2KLossless: "pylibjpeg", HTJ2KLosslessRPCL: "pylibjpeg", HTJ2K: "pylibjpeg"}  # fmt: skip
"""One decoder a syntax, chosen because it raises where others abort the process; none is tried after another."""


class Encapsulated:
    """The compressed frames of one file, taken apart once. Raises whatever pydicom does, and ValueError."""

    def __init__(self, content: bytes, syntax: UID, count: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._image = pydicom.dcmread(BytesIO(content), force=True)
        self._image.file_meta.TransferSyntaxUID = syntax
        pixels = self._image.PixelData
        walk_to_end(pixels, 0, len(pixels), implicit=True, order="<")  # pydicom takes a shorter fragment as it is
        self._frames = list(generate_frames(pixels, number_of_frames=count))
        if len(self._frames) != count:
            raise ValueError(f"{len(self._frames)} frames, NumberOfFrames is {count}")
        self._image.NumberOfFrames = 1

    def decoded(self, frame: int, rows: int, columns: int) -> np.ndarray:
        """The integers of one frame, which must state that it has so many rows and columns."""
        syntax = self._image.file_meta.TransferSyntaxUID
        if syntax != RLELossless:
            check_stream(self._frames[frame], rows, columns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "The decoded RLE segment")  # holds more than its image: bytes were lost or changed
            self._image.PixelData = encapsulate([self._frames[frame]])
            return pixel_array(self._image, decoding_plugin=_DECODERS.get(syntax, "gdcm"))


def check_stream(stream: bytes, rows: int, columns: int) -> None:
    """ValueError unless a JPEG, JPEG-LS or JPEG 2000 stream states this shape and is whole up to its first scan.

    ISO 10918-1, B.2.2 (SOF) and B.2.3; ISO 15444-1, A.5.1 (SIZ). A decoder is not asked about anything else: some abort.
    """
    if stream[:4] == b"\xff\x4f\xff\x51":
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        stated, components = (bottom - top, right - left), struct.unpack(">H", stream[40:42])[0]
    elif stream[:2] == b"\xff\xd8":
        stated, components = _jpeg_shape(stream)
    else:
        raise ValueError("not a JPEG stream")
    if stated != (rows, columns) or components != 1:
        raise ValueError(f"its image is {stated} with {components} components, Rows x Columns are {rows} x {columns}")


def _jpeg_shape(stream: bytes) -> tuple[tuple[int, int], int]:
    """(rows, columns) and components of a JPEG or JPEG-LS stream whose segments are known ones up to its scan."""
    at, found = 2, None
    while at + 4 <= len(stream):
        mark, marker, length = struct.unpack(">BBH", stream[at : at + 4])
        body = stream[at + 4 : at + 2 + length]
        if mark != 0xFF or length < 2 or len(body) != length - 2:
            raise ValueError("its JPEG segments are damaged")
        if marker == 0xDA and found:
            return found
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            precision, rows, columns, components = struct.unpack(">BHHB", body[:6])
            if not 2 <= precision <= 16 or len(body) != 6 + 3 * components:
                raise ValueError("its JPEG frame header is damaged")
            found = (rows, columns), components
        elif marker == 0xC4:
            _check_huffman(body)
        elif not (marker in (0xDB, 0xDD, 0xF8, 0xFE) or 0xE0 <= marker <= 0xEF):
            raise ValueError(f"unknown JPEG segment {marker:02X}")
        at += 2 + length
    raise ValueError("its JPEG stream has no scan")


def _check_huffman(body: bytes) -> None:
    """ValueError unless the tables have as many codes as they say (ISO 10918-1, B.2.4.2)."""
    while body:
        codes = sum(body[1:17])
        if len(body) < 17 + codes or body[0] & 0xEC or sum(n << (15 - i) for i, n in enumerate(body[1:17])) > 1 << 16:
            raise ValueError("its Huffman tables are damaged")
        body = body[17 + codes :]
