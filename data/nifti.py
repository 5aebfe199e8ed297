"""NIfTI volumes in and out. NIfTI's world is RAS; ours is LPS (see volume.py)."""

from __future__ import annotations

import gzip
import logging
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from data.acquisition import Acquisition
from data.sources import DEFLATE_RATIO, Source, Unreadable, memory_bytes
from data.volume import AIR_HU, PADDING_HU, Volume, checked_spacing

_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}
_GZIP = 31  # of zlib: with the header and checksum of gzip
_NO_EXTENSION = bytes(4)
_LEAST_CONTRAST_HU = 50
"""A CT spans more than this from its darkest to its brightest voxel; values scaled to [-1, 1] do not."""


def read_nifti(source: Source) -> Volume:
    """One HU volume. Raises Unreadable naming the file and what is wrong with it.

    Refused: four dimensions, NaN, no affine, sheared affine, more voxels than the file or the memory can hold,
    values without air or contrast (already windowed).
    """
    values, affine = read_nifti_values(source)
    return Volume(as_hu(source, values), checked_spacing(source, affine), affine, stem(source), acquisition=Acquisition("NIfTI"))


def read_nifti_values(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The values (K, J, I) as the file scales them, and the index-to-LPS affine (4, 4); of a scan or of a mask."""
    with source.local() as path, _quiet():
        try:
            image = nib.load(path)
            if not isinstance(image, nib.Nifti1Pair):
                raise ValueError(f"{type(image).__name__}, not NIfTI")
        except FileNotFoundError:
            raise
        except Exception as error:  # nibabel raises many kinds on damaged files
            raise Unreadable(source, "not a whole NIfTI file", str(error)) from None
        packed = path.name.lower().endswith(".gz")
        size = _check_header(source, image, path.stat().st_size if packed else None)
        try:
            if packed:  # nibabel stops before the checksum at the end
                content = _gunzipped(path, size)
                image = type(image).from_bytes(content)  # type: ignore[attr-defined]
            there = len(content) if packed else path.stat().st_size
            if there != size:
                raise ValueError(f"{there} bytes, its header asks for {size} (dim, datatype, vox_offset)")
            values = np.asarray(image.dataobj)
            scale = _MM[image.header.get_xyzt_units()[0]]
            sform, sform_code = image.get_sform(coded=True)
            qform, qform_code = image.get_qform(coded=True)
        except Exception as error:
            raise Unreadable(source, "not a whole NIfTI file", str(error)) from None
    if not sform_code and not qform_code:
        raise Unreadable(source, "neither sform nor qform is set, so its orientation is unknown (sform_code, qform_code)")
    corners = np.array([[0, 0, 0, 1], [*values.shape[:3], 1]], dtype=float) if values.ndim >= 3 else np.zeros((2, 4))
    if sform_code and qform_code and not np.abs(corners @ (sform - qform).T).max() * scale <= 1:
        raise Unreadable(source, "sform and qform place its corners more than 1 mm apart; one of them is wrong")
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise Unreadable(source, "has not three dimensions", f"shape {values.shape}")
    to_lps = _RAS @ np.diag([scale, scale, scale, 1.0]) @ image.affine
    return values.T, to_lps[:, [2, 1, 0, 3]]  # our index order is k, j, i


def _check_header(source: Source, image: nib.Nifti1Pair, packed_bytes: int | None) -> int:
    """The bytes that the whole file has, unpacked, by its header; Unreadable when that contradicts itself or is too much."""
    voxel_bytes = image.header.get_data_dtype().itemsize
    stored = cast(ArrayProxy, image.dataobj)
    check_size(source, image.shape, voxel_bytes, packed_bytes)
    if (stored.slope, stored.inter) != (1, 0):
        check_size(source, image.shape, max(voxel_bytes, 8), None)  # scaled to float64
    if isinstance(image, nib.Nifti1Image) and stored.offset < image.header.sizeof_hdr + 4:
        raise Unreadable(source, "vox_offset lies inside the header")
    return stored.offset + math.prod(image.shape) * voxel_bytes


def _gunzipped(path: Path, most: int) -> bytes:
    """All of a gzip file, its checksum checked; ValueError when it holds more than `most` bytes."""
    with gzip.open(path) as file:
        content = file.read(most)
        if file.read(1):
            raise ValueError("it holds more than its header asks for (dim, datatype)")
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Without nibabel's remarks on a header: what is used of it is checked here, in our own words."""
    logger = logging.getLogger("nibabel.global")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def write_nifti(hu: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Writes HU (K, J, I), or a mask's values, as they are, with the index-to-LPS affine; packed where the name ends in .gz.

    The same input gives the same bytes.
    """
    values = np.ascontiguousarray(hu, dtype=hu.dtype.newbyteorder("<"))
    pack = zlib.compressobj(1, wbits=_GZIP) if path.suffix == ".gz" else None  # a stream without a name or time
    with open(path, "wb") as file:
        for part in (_header_of(values.shape, values.dtype, np.asarray(affine, dtype=float).tobytes()), values.data):
            file.write(pack.compress(part) if pack else part)
        file.write(pack.flush() if pack else b"")


@lru_cache(maxsize=64)  # making it takes longer than writing a patch, and a folder's patches share it
def _header_of(shape: tuple[int, ...], dtype: np.dtype, affine: bytes) -> bytes:
    """What a file of values (K, J, I) holds before them."""
    to_ras = _RAS @ np.frombuffer(affine).reshape(4, 4)[:, [2, 1, 0, 3]]
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    header.set_xyzt_units("mm")
    header.set_qform(to_ras, code="scanner")
    header.set_sform(to_ras, code="scanner")
    header.set_data_offset(header.sizeof_hdr + len(_NO_EXTENSION))
    return header.binaryblock + _NO_EXTENSION


def check_size(source: Source, shape: Sequence[int], voxel_bytes: int, packed_bytes: int | None) -> None:
    """Unreadable when a header asks for more than can be there: in memory, or unpacked from so many bytes."""
    size = math.prod(int(n) for n in shape) * voxel_bytes
    if min(shape, default=0) < 1:
        raise Unreadable(source, "its dimensions hold no voxel", f"{tuple(shape)}")
    if packed_bytes is not None and size > DEFLATE_RATIO * packed_bytes:
        raise Unreadable(source, "its dimensions ask for more voxels than the file can hold", f"{size} bytes out of {packed_bytes}")
    if 3 * size > memory_bytes():  # as stored, scaled, and as HU
        raise Unreadable(source, "its dimensions ask for more than this machine's memory", f"{tuple(shape)}, {size / 2**30:.1f} GiB")


def as_hu(source: Source, values: np.ndarray) -> np.ndarray:
    """int16 of the same shape; padding as AIR_HU. Unreadable where values cannot be the HU of a CT with air in it."""
    if values.dtype.kind not in "iuf":
        raise Unreadable(source, "its values are not real numbers", str(values.dtype))
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():  # both are NaN when one voxel is
        raise Unreadable(source, "holds NaN or infinite values")
    if low < -32768 or high > 32767:
        raise Unreadable(source, "its values are no HU", f"{low:g} to {high:g}")
    if low >= 0 or high - low < _LEAST_CONTRAST_HU:
        raise Unreadable(source, "its values are no HU: none below 0, or hardly any contrast; already windowed?", f"{low:g} to {high:g}")
    hu = values if values.dtype == np.int16 else np.rint(values).astype(np.int16)
    return np.where(hu < PADDING_HU, np.int16(AIR_HU), hu) if low < PADDING_HU else hu


def stem(source: Source | Path) -> str:
    """The file's name without its suffixes: how a lesion list names a NIfTI or MetaImage volume."""
    name = source.name
    for suffix in (".gz", ".nii", ".mha", ".mhd"):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name
