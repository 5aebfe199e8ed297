"""MetaImage volumes (.mha, .mhd with .raw or .zraw), the format of LUNA16.

Read here and not by a library, since those take a pixel file from anywhere, and zeros for compressed pixels that are cut off.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import numpy as np

from data.acquisition import Acquisition
from data.nifti import as_hu, check_size, stem
from data.sources import Source, Unreadable
from data.volume import Volume, checked_spacing

_HEADER_BYTES = 65536
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_SAME = {"Position": "Offset", "Origin": "Offset", "Rotation": "TransformMatrix", "Orientation": "TransformMatrix",
         "ElementByteOrderMSB": "BinaryDataByteOrderMSB"}  # fmt: skip


def read_metaimage(source: Source) -> Volume:
    """One HU volume. Raises Unreadable naming the file when its header or pixels are not whole.

    The header may not point to a pixel file outside its own folder.
    """
    values, affine = read_metaimage_values(source)
    return Volume(as_hu(source, values), checked_spacing(source, affine), affine, stem(source), acquisition=Acquisition("MetaImage"))


def read_metaimage_values(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The values (K, J, I) and the index-to-LPS affine (4, 4); of a scan or of a mask."""
    with source.local() as path:
        fields, end = _header(source, path)
        shape = _numbers(source, fields, "DimSize", 3).astype(int)[::-1]
        dtype = np.dtype(_TYPES.get(fields.get("ElementType", ""), "V1")).newbyteorder(
            ">" if _true(fields, "BinaryDataByteOrderMSB") else "<"
        )
        channels, header_size = fields.get("ElementNumberOfChannels", "1"), fields.get("HeaderSize", "0")
        if dtype.kind == "V" or channels != "1" or header_size not in ("0", "-1") or fields.get("BinaryData", "True").lower() != "true":
            raise Unreadable(source, "ElementType, ElementNumberOfChannels, HeaderSize or BinaryData is not supported")
        data, start = _pixel_file(source, path, fields["ElementDataFile"], end)
        wanted, there = math.prod(map(int, shape)) * dtype.itemsize, data.stat().st_size - start
        packed = _true(fields, "CompressedData")
        check_size(source, shape.tolist(), dtype.itemsize, there if packed else None)
        if not packed and (there < wanted if header_size == "-1" else there != wanted):
            raise Unreadable(source, "there are not as many pixels as DimSize and ElementType ask for",
                             f"{wanted} bytes of pixels, there are {there}")  # fmt: skip
        if header_size == "-1":
            start = data.stat().st_size - wanted
        with open(data, "rb") as file:
            file.seek(start)
            content = _unpacked(source, file.read(), wanted) if packed else file.read(wanted)
    spacing = "ElementSize" if "ElementSize" in fields and "ElementSpacing" not in fields else "ElementSpacing"
    # each row of TransformMatrix is the direction of one axis, i first
    matrix = _numbers(source, fields, "TransformMatrix", 9, "1 0 0 0 1 0 0 0 1").reshape(3, 3).T
    affine = np.eye(4)
    affine[:3, :3] = (matrix * _numbers(source, fields, spacing, 3))[:, ::-1]
    affine[:3, 3] = _numbers(source, fields, "Offset", 3, "0 0 0")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False), affine


def _header(source: Source, path: Path) -> tuple[dict[str, str], int]:
    """The header's fields, by one name each, and where it ends: ElementDataFile is its last line."""
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
    fields: dict[str, str] = {}
    end = 0
    for line in head.split(b"\n"):
        end += len(line) + 1
        pair = re.fullmatch(r"([^=:\s]+) *= *([^\r\n]*?)\s*", line.decode("latin-1"))
        if pair is None:
            raise Unreadable(source, "a line of its header is not `key = value`")
        name = _SAME.get(pair[1], pair[1])
        if name in fields:
            raise Unreadable(source, "a field of its header is there twice", name)
        fields[name] = pair[2]
        if name == "ElementDataFile":
            return fields, end
    raise Unreadable(source, "no ElementDataFile in its header, so not MetaImage")


def _pixel_file(source: Source, path: Path, name: str, end: int) -> tuple[Path, int]:
    """The file that holds the pixels, and where in it they begin."""
    if name == "LOCAL":
        return path, end
    if Path(name).name != name or not (path.parent / name).is_file():
        raise Unreadable(source, "ElementDataFile is not a file in the same folder", name)
    return path.parent / name, 0


def _unpacked(source: Source, content: bytes, wanted: int) -> bytes:
    """Exactly so many bytes out of a zlib stream whose checksum holds."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        plain = inflater.decompress(content, wanted + 1)
    except zlib.error as error:
        raise Unreadable(source, "its compressed pixels are damaged", str(error)) from None
    if len(plain) != wanted or not inflater.eof:
        raise Unreadable(source, "its compressed pixels are cut off, or not as many as DimSize asks for", f"want {wanted} bytes")
    return plain


def _numbers(source: Source, fields: dict[str, str], name: str, count: int, default: str = "") -> np.ndarray:
    try:
        found = np.array(fields.get(name, default).split(), dtype=np.float64)
    except ValueError:
        found = np.zeros(0)
    if (
        found.shape != (count,)
        or not np.isfinite(found).all()
        or (name == "DimSize" and not np.all((found >= 1) & (found < 1e9) & (found % 1 == 0)))
    ):
        raise Unreadable(source, f"{name} is not {count} numbers that make sense", fields.get(name, "absent"))
    return found


def _true(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "False").lower() in ("true", "1", "t")
