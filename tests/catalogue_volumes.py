"""The catalogue's single files: NIfTI and MetaImage."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from catalogue_damage import GIB, bomb
from catalogue_scans import AXIAL, HU, Case, Truth, affine_of, padded

from data.volume import AIR_HU

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
STORED = HU.T
"""(I, J, K), as NIfTI holds it."""


# ---------------------------------------------------------------- NIfTI


def nifti(values=STORED, affine=AXIAL, header: Callable[[nib.Nifti1Header], object] = lambda h: None, finish: Callable[[bytes], bytes] = lambda b: b,
          pack: Callable[[bytes], bytes] | None = lambda b: gzip.compress(b, mtime=0), truth=HU, kind=nib.Nifti1Header, **about):  # fmt: skip
    """A NIfTI file of these values, (I, J, K), as they are; header, finish: change the header, or the bytes before they are packed."""

    def make(folder: Path) -> Truth:
        head = kind()
        head.set_data_dtype(values.dtype)
        head.set_data_shape(values.shape)
        matrix = RAS @ affine[:, [2, 1, 0, 3]]
        head.set_sform(matrix, 1)
        head.set_qform(matrix, 1, strip_shears=True)
        head.set_xyzt_units("mm")
        head["magic"] = head.single_magic
        head["vox_offset"] = head.single_vox_offset
        header(head)
        content = finish(head.binaryblock.ljust(head.single_vox_offset, b"\0") + values.tobytes(order="F"))
        file = folder / f"{folder.name}.nii{'' if pack is None else '.gz'}"
        file.write_bytes(content if pack is None else pack(content))
        return Truth(truth, affine, **about)

    return make


def fields(**values: object) -> Callable[[nib.Nifti1Header], None]:
    """Sets a header's fields, whatever they make of it."""

    def header(head: nib.Nifti1Header) -> None:
        for field, value in values.items():
            head[field] = value

    return header


def with_value(value: float) -> np.ndarray:
    values = STORED.astype(np.float32)
    values[3, 4, 2] = value
    return values


def windowed(low: float, high: float, dtype=np.float32) -> np.ndarray:
    """HU from -1000 to 400 as a network or a picture has them."""
    unit = (np.clip(STORED.astype(float), -1000, 400) + 1000) / 1400
    return (low + unit * (high - low)).astype(dtype)


def in_metres(head: nib.Nifti1Header) -> None:
    matrix = np.diag([1e-3, 1e-3, 1e-3, 1.0]) @ RAS @ AXIAL[:, [2, 1, 0, 3]]
    head.set_sform(matrix, 1)
    head.set_qform(matrix, 1)
    head.set_xyzt_units("meter")


def moved_sform(head: nib.Nifti1Header) -> None:
    matrix = RAS @ AXIAL[:, [2, 1, 0, 3]]
    head.set_sform(matrix + np.outer([-40, 25, 60, 0], [0, 0, 0, 1]), 1)


def mirrored_sform(head: nib.Nifti1Header) -> None:
    matrix = RAS @ AXIAL[:, [2, 1, 0, 3]]
    head.set_sform(np.diag([-1, 1, 1, 1]) @ matrix, 1)


def colour(folder: Path) -> None:
    values = np.zeros(STORED.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nifti(values)(folder)


def one_bit_off(content: bytes) -> bytes:
    """Packed so that nothing but the checksum tells of the damage."""
    packed = bytearray(gzip.compress(content, 0, mtime=0))
    packed[len(packed) // 2 | 1] ^= 1
    return bytes(packed)


def gzip_bomb(content: bytes) -> bytes:
    """Packed with 3 GiB of zeros behind it."""
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + bomb(3 * GIB, content) + bytes(8)


def zlib_bomb(content: bytes) -> bytes:
    return b"\x78\x9c" + bomb(3 * GIB, content) + bytes(4)


WIDE = np.where(HU > 1450, 30000, np.where(padded()[1], -3024, HU)).astype(np.int16)
"""HU that lie further apart than int16 can say."""
SHEARED = affine_of((0, 0.9, 2.5))
TOO_MANY: dict[str, dict[str, Any]] = {
    "a slice": {"dim": [3, 24, 20, 5, 1, 1, 1, 1]}, "four columns": {"dim": [3, 20, 20, 6, 1, 1, 1, 1]}, "half its bytes": {"datatype": 256, "bitpix": 8},
}  # fmt: skip
"""Header fields that leave over what the file holds."""
SCALED = np.rint(0.5 * np.rint((HU.astype(float) + 100) / 0.5) - 100).astype(np.int16)


def case(name: str, outcome: str, make, *words: str, suffix=".nii.gz", bounded=False) -> Case:
    return Case(name, outcome, make, words, "{name}" + suffix, "nifti" if "nii" in suffix else "metaimage", bounded)


NIFTI = [
    case("NIfTI", "=", nifti()),
    case("NIfTI, not compressed", "=", nifti(pack=None), suffix=".nii"),
    case("NIfTI-2", "=", nifti(kind=nib.Nifti2Header)),
    case("NIfTI, big-endian", "=", nifti(STORED.astype(">i2"), kind=lambda: nib.Nifti1Header(endianness=">"))),
    *(case(f"NIfTI of {t}", "=", nifti(STORED.astype(t))) for t in ("float32", "float64", "int32")),
    case("NIfTI of uint16 with an intercept", "=", nifti((STORED.astype(int) + 1024).astype(np.uint16), header=fields(scl_slope=1, scl_inter=-1024))),
    case("NIfTI, scl_slope 0: not scaled", "=", nifti(header=fields(scl_slope=0, scl_inter=77))),
    case("NIfTI, scl_slope not a number: not scaled", "=", nifti(header=fields(scl_slope=np.nan, scl_inter=np.nan))),
    case("NIfTI, scaled", "=", nifti(np.rint((STORED.astype(float) + 100) / 0.5).astype(np.int16), header=fields(scl_slope=0.5, scl_inter=-100), truth=SCALED)),
    case("NIfTI, four dimensions of which one is 1", "=", nifti(STORED[..., None])),
    case("NIfTI in metres", "=", nifti(header=in_metres)),
    case("NIfTI, qform alone", "=", nifti(header=fields(sform_code=0))),
    case("NIfTI, sform alone", "=", nifti(header=fields(qform_code=0))),
    case("NIfTI, unit not said", "=", nifti(header=fields(xyzt_units=0))),
    case("NIfTI, axes flipped and turned", "=", nifti(affine=affine_of((0, -2.5, 0), (0, 0, -0.7), (-0.8, 0, 0)))),
    case("NIfTI, oblique", "=", nifti(affine=affine_of((0, 0, 2.5), (-0.42, 0.56, 0), (0.64, 0.48, 0)))),
    case("NIfTI, values far below air", "=", nifti(np.where(padded()[1].T, -3024, STORED).astype(np.int16), truth=padded()[0], padding=padded()[1])),
    case("NIfTI, padding and metal", "=", nifti(WIDE.T, truth=np.maximum(WIDE, AIR_HU), padding=WIDE < AIR_HU)),
    case("NIfTI, true four dimensions", "E", nifti(np.stack([STORED, STORED], -1)), "(?i)dimension|shape"),
    case("NIfTI, two dimensions", "E", nifti(STORED[..., 0], truth=HU), "(?i)dimension|shape"),
    case("NIfTI, NaN", "E", nifti(with_value(np.nan)), "NaN|finite"),
    case("NIfTI, infinite", "E", nifti(with_value(np.inf)), "(?i)infinite|finite"),
    case("NIfTI, values beyond HU", "E", nifti(with_value(1e6)), "HU"),
    case("NIfTI, sform and qform in other places", "E", nifti(header=moved_sform), "sform", "qform"),
    case("NIfTI, sform and qform mirrored", "E", nifti(header=mirrored_sform), "sform", "qform"),
    case("NIfTI, neither sform nor qform", "E", nifti(header=fields(sform_code=0, qform_code=0)), "sform", "qform"),
    case("NIfTI, singular affine", "E", nifti(header=fields(qform_code=0, srow_x=[0, 0, 0, 0])), "(?i)singular|affine|sform"),
    case("NIfTI, affine not a number", "E", nifti(header=fields(qform_code=0, srow_x=[np.nan, 0, 0, 0])), "(?i)finite|affine|sform"),
    case("NIfTI, sheared affine", "=E", nifti(affine=SHEARED, header=fields(qform_code=0)), "(?i)shear"),
    case("NIfTI, windowed to 0 to 255", "E", nifti(windowed(0, 255, np.uint8)), "(?i)window"),
    case("NIfTI, windowed to 0 to 1", "E", nifti(windowed(0, 1)), "(?i)window"),
    case("NIfTI, windowed to -1 to 1", "E", nifti(windowed(-1, 1)), "(?i)window|HU"),
    case("NIfTI, one value everywhere", "E", nifti(np.zeros_like(STORED)), "(?i)window|HU|value"),
    case("NIfTI, gzip cut off", "E", nifti(pack=lambda b: gzip.compress(b, mtime=0)[:-2000])),
    case("NIfTI, gzip cut off in its header", "E", nifti(pack=lambda b: gzip.compress(b, mtime=0)[:60])),
    case("NIfTI, one bit of its gzip off", "E", nifti(pack=one_bit_off)),
    case("NIfTI, pixels cut off", "E", nifti(finish=lambda b: b[:-500], pack=None), suffix=".nii"),
    *(case(f"NIfTI, {what} too many", "E", nifti(header=fields(**wrong)), "asks for") for what, wrong in TOO_MANY.items()),
    *(case(f"NIfTI, not compressed, {what} too many", "E", nifti(header=fields(**wrong), pack=None), "asks for", suffix=".nii") for what, wrong in TOO_MANY.items()),
    case("NIfTI whose voxels begin in its header", "E", nifti(header=fields(vox_offset=0)), "vox_offset"),
    case("NIfTI, not compressed, whose voxels begin in its header", "E", nifti(header=fields(vox_offset=0), pack=None), "vox_offset", suffix=".nii"),
    case("NIfTI, no slices", "E", nifti(header=fields(dim=[3, 24, 20, 0, 1, 1, 1, 1]))),
    case("NIfTI, negative dimension", "E", nifti(header=fields(dim=[3, 24, -20, 6, 1, 1, 1, 1]))),
    case("NIfTI of colours", "E", colour),
    case("NIfTI, empty file", "E", nifti(pack=lambda b: b"")),
    case("NIfTI that is text", "E", nifti(pack=None, finish=lambda b: b"hello\n" * 99), suffix=".nii"),
    case("NIfTI, dimensions beyond memory", "E", nifti(header=fields(dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])), bounded=True),
    case("NIfTI, dimensions beyond the file", "E", nifti(header=fields(dim=[3, 900, 900, 1500, 1, 1, 1, 1])), bounded=True),
    case("NIfTI, a gzip bomb behind its pixels", "=E", nifti(pack=gzip_bomb), bounded=True),
]  # fmt: skip


# ---------------------------------------------------------------- MetaImage


def metaimage(suffix: str, data: bytes = HU.tobytes(), affine=AXIAL, truth=HU, raw: Callable[[bytes], bytes | None] = lambda b: b,
              inside: str = "", padding: np.ndarray | None = None, **header: object):  # fmt: skip
    """A MetaImage whose header's lines are set, None to leave one out; its pixels are local (.mha) or in a file of their own.

    raw: changes the pixels' bytes, None to write none. inside: a folder for the header.
    """

    def make(folder: Path) -> Truth:
        steps = np.linalg.norm(affine[:3, :3], axis=0)
        (folder / inside).mkdir(exist_ok=True)
        stored = raw(data)
        lines = {
            "ObjectType": "Image", "NDims": 3, "BinaryData": "True", "BinaryDataByteOrderMSB": "False", "CompressedData": "False",
            "TransformMatrix": " ".join(f"{c:.12g}" for a in (2, 1, 0) for c in affine[:3, a] / steps[a]),
            "Offset": " ".join(f"{mm:.12g}" for mm in affine[:3, 3]), "CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI",
            "ElementSpacing": " ".join(f"{steps[a]:.12g}" for a in (2, 1, 0)), "DimSize": "24 20 6", "ElementType": "MET_SHORT",
            "CompressedDataSize": len(stored) if stored and header.get("CompressedData") else None,
            **header,
        }  # fmt: skip
        name = lines.pop("ElementDataFile", "LOCAL" if suffix == ".mha" else f"{folder.name}.raw")
        text = "".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None)
        content = f"{text}ElementDataFile = {name}\n".encode()
        if name == "LOCAL":
            content += stored or b""
        elif stored is not None:
            (folder / inside / str(name)).write_bytes(stored)
        (folder / inside / f"{folder.name}{suffix}").write_bytes(content)
        return Truth(truth, affine, padding)

    return make


def outside(absolute: bool):
    """A header that names a file of its pixels' size above its folder."""

    def make(folder: Path) -> None:
        (folder / "secret.raw").write_bytes(HU.tobytes())
        name = str(folder / "secret.raw") if absolute else "../secret.raw"
        metaimage(".mhd", inside="in", raw=lambda b: None, ElementDataFile=name)(folder)

    return make


WHOLE = len(zlib.compress(HU.tobytes()))
FOUR: dict[str, Any] = {
    "NDims": 4, "DimSize": "24 20 6 2", "Offset": "0 0 0 0", "ElementSpacing": "0.8 0.7 2.5 1", "TransformMatrix": None, "CenterOfRotation": None,
}  # fmt: skip
PACKED: dict[str, Any] = {"raw": zlib.compress, "CompressedData": "True"}
METAIMAGE = [
    case("MetaImage", "=", metaimage(".mha"), suffix=".mha"),
    case("MetaImage with raw", "=", metaimage(".mhd"), suffix=".mhd"),
    case("MetaImage, compressed", "=", metaimage(".mha", **PACKED), suffix=".mha"),
    case("MetaImage with zraw", "=", metaimage(".mhd", ElementDataFile="pixels.zraw", **PACKED), suffix=".mhd"),
    case("MetaImage, compressed, its size not said", "=E", metaimage(".mha", CompressedDataSize=None, **PACKED), suffix=".mha"),
    case("MetaImage, flipped TransformMatrix", "=", metaimage(".mha", affine=affine_of(down=(0, -0.7, 0), right=(-0.8, 0, 0))), suffix=".mha"),
    case("MetaImage, head to feet", "=", metaimage(".mhd", affine=affine_of((0, 0, -2.5))), suffix=".mhd"),
    case("MetaImage, oblique", "=", metaimage(".mha", affine=affine_of((0, 0, 2.5), (-0.42, 0.56, 0), (0.64, 0.48, 0))), suffix=".mha"),
    case("MetaImage of floats", "=", metaimage(".mha", HU.astype("<f4").tobytes(), ElementType="MET_FLOAT"), suffix=".mha"),
    case("MetaImage, values far below air", "=", metaimage(".mhd", np.where(padded()[1], -3024, HU).astype("<i2").tobytes(), truth=padded()[0], padding=padded()[1]), suffix=".mhd"),
    case("MetaImage, big-endian", "=", metaimage(".mha", HU.astype(">i2").tobytes(), BinaryDataByteOrderMSB="True"), suffix=".mha"),
    case("MetaImage, an AnatomicalOrientation that lies", "=", metaimage(".mha", AnatomicalOrientation="LPS"), suffix=".mha"),
    case("MetaImage, raw missing", "E", metaimage(".mhd", raw=lambda b: None), "ElementDataFile|raw", suffix=".mhd"),
    case("MetaImage, raw short", "E", metaimage(".mhd", raw=lambda b: b[:-100]), suffix=".mhd"),
    case("MetaImage, raw of a slice more", "E", metaimage(".mhd", DimSize="24 20 5"), "DimSize", suffix=".mhd"),
    case("MetaImage, raw of four columns more", "E", metaimage(".mhd", DimSize="20 20 6"), "DimSize", suffix=".mhd"),
    case("MetaImage, raw of twice the bytes", "E", metaimage(".mhd", ElementType="MET_CHAR"), "ElementType", suffix=".mhd"),
    case("MetaImage, local pixels of a slice more", "E", metaimage(".mha", DimSize="24 20 5"), "DimSize", suffix=".mha"),
    case("MetaImage, local pixels short", "E", metaimage(".mha", raw=lambda b: b[:-100]), suffix=".mha"),
    case("MetaImage, compressed pixels cut off", "E", metaimage(".mha", raw=lambda b: zlib.compress(b)[:-900], CompressedData="True", CompressedDataSize=WHOLE), suffix=".mha"),
    case("MetaImage, compressed pixels short", "E", metaimage(".mha", raw=lambda b: zlib.compress(b[:-100]), CompressedData="True"), suffix=".mha"),
    case("MetaImage, compressed pixels that are none", "E", metaimage(".mha", CompressedData="True"), suffix=".mha"),
    Case("MetaImage, pixels above its folder", "E", outside(False), ("ElementDataFile",), "in/{name}.mhd", "metaimage"),
    Case("MetaImage, pixels at an absolute path", "E", outside(True), ("ElementDataFile",), "in/{name}.mhd", "metaimage"),
    case("MetaImage, pixels in /etc/passwd", "E", metaimage(".mhd", raw=lambda b: None, ElementDataFile="/etc/passwd", DimSize="4 4 4"), "ElementDataFile", suffix=".mhd"),
    case("MetaImage, a list of files", "E", metaimage(".mhd", raw=lambda b: None, ElementDataFile="LIST"), "ElementDataFile", suffix=".mhd"),
    case("MetaImage, no ElementDataFile", "E", lambda folder: (folder / f"{folder.name}.mha").write_text("NDims = 3\n"), suffix=".mha"),
    case("MetaImage, NaN", "E", metaimage(".mha", np.where(HU[0, 0, 0] == HU, np.nan, HU).astype("<f4").tobytes(), ElementType="MET_FLOAT"), "NaN|finite", suffix=".mha"),
    case("MetaImage, windowed to 0 to 255", "E", metaimage(".mha", windowed(0, 255, np.uint8).T.tobytes(), ElementType="MET_UCHAR"), "(?i)window", suffix=".mha"),
    case("MetaImage, spacing 0", "E", metaimage(".mha", ElementSpacing="0 0.7 2.5"), suffix=".mha"),
    case("MetaImage, no spacing", "E", metaimage(".mha", ElementSpacing=None), "ElementSpacing|spacing", suffix=".mha"),
    case("MetaImage, singular TransformMatrix", "E", metaimage(".mha", TransformMatrix="1 0 0 1 0 0 0 0 1"), suffix=".mha"),
    case("MetaImage, four dimensions", "E", metaimage(".mha", HU.tobytes() * 2, **FOUR), suffix=".mha"),
    case("MetaImage, three values a voxel", "E", metaimage(".mha", HU.tobytes() * 3, ElementNumberOfChannels=3), suffix=".mha"),
    case("MetaImage, empty file", "E", lambda folder: (folder / f"{folder.name}.mha").touch(), suffix=".mha"),
    case("MetaImage, absurd DimSize", "E", metaimage(".mha", DimSize="90000 90000 90000"), "DimSize|dimensions", suffix=".mha", bounded=True),
    case("MetaImage, absurd DimSize, compressed", "E", metaimage(".mha", DimSize="1024 1024 1536", **PACKED), suffix=".mha", bounded=True),
    case("MetaImage, a bomb behind its compressed pixels", "=E", metaimage(".mha", raw=zlib_bomb, CompressedData="True"), suffix=".mha", bounded=True),
    case("MetaImage, compressed pixels beyond memory", "E", metaimage(".mha", DimSize="90000 90000 90000", **PACKED), suffix=".mha", bounded=True),
]  # fmt: skip

CASES = [*NIFTI, *METAIMAGE]
