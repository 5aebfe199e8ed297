"""MetaImage volumes (.mha, .mhd + raw), the format of LUNA16, read by SimpleITK behind our own checks."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from data.nifti import as_hu, checked_spacing, stem
from data.volume import Volume

_HEADER_BYTES = 65536


def read_metaimage(path: Path) -> Volume:
    """One HU volume. Raises ValueError naming the file when its header or pixels are not whole.

    The header may not point to a pixel file outside its own folder.
    """
    import SimpleITK as sitk

    data_file = _data_file(path)
    if data_file != "LOCAL" and (Path(data_file).name != data_file or not (path.parent / data_file).is_file()):
        raise ValueError(f"{path}: ElementDataFile {data_file!r} is not a file in the same folder")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        image = sitk.ReadImage(str(path), imageIO="MetaImageIO")
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path}: not a whole MetaImage file ({cause.strip()})") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{path}: {image.GetDimension()} dimensions, want three and one value a voxel")
    axes = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes[:, ::-1], image.GetOrigin()
    return Volume(as_hu(path, sitk.GetArrayFromImage(image)), checked_spacing(path, affine), affine, stem(path))


def _data_file(path: Path) -> str:
    """The header's ElementDataFile, its last line; also checks that uncompressed local pixels are all there."""
    with open(path, "rb") as file:
        head = file.read(_HEADER_BYTES)
    fields: dict[str, str] = {}
    end = 0
    for line in head.split(b"\n"):
        end += len(line) + 1
        # The library behind us takes more for a separator than "=": a line it could read otherwise is refused.
        pair = re.fullmatch(r"([^=:\s]+) *= *([^\r\n]*?)\s*", line.decode("latin-1"))
        if pair is None:
            raise ValueError(f"{path}: a line of its header is not `key = value`")
        fields[pair[1]] = pair[2]
        if pair[1] == "ElementDataFile":
            break
    else:
        raise ValueError(f"{path}: no ElementDataFile in its header, so not MetaImage")
    sizes = {"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_FLOAT": 4, "MET_DOUBLE": 8}
    name = fields["ElementDataFile"]
    if fields.get("CompressedData", "False").lower() != "true" and fields.get("ElementType") in sizes:
        pixels = path.stat().st_size - end if name == "LOCAL" else _size(path.parent / name)
        size = fields.get("DimSize", "")
        if not re.fullmatch(r"\d+( +\d+)*", size):
            raise ValueError(f"{path}: DimSize is {size!r}")
        wanted = math.prod(map(int, size.split())) * sizes[fields["ElementType"]]
        if pixels < wanted:
            raise ValueError(f"{path}: DimSize asks for {wanted} bytes of pixels, there are {pixels}")
    return name


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
