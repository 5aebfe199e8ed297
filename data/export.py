"""Synthetic patches as files people open: 16-bit PNG, NIfTI, DICOM, and a preview grid. HU are equal in all three.

HU arrays are int16 (H, W) or (D, H, W).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.dicom_writing import Subject, write_series
from data.files import whole_file
from data.nifti import write_nifti
from data.patches import PatchFolder
from data.preprocess import Window, to_unit

PNG_OFFSET = 2048
"""A 16-bit PNG's gray level is HU + PNG_OFFSET."""

FORMATS = ("png", "nifti", "dicom")

COLUMNS, CUBES = 8, 16
"""A preview has so many 2-D patches to a row, and so many 3-D ones in all."""
SIDE, GAP, HEAD = 112, 2, 20
"""Of 3-D patches in a preview, in pixels: a plane's longest edge, what parts the planes, the line of words above."""
FAINT, BRIGHT = 90, 210
"""Gray levels of lines and words."""


def write_png16(hu: np.ndarray, file: Path, unit: str = "HU") -> None:
    """One 2-D patch as 16-bit gray PNG: level = HU + PNG_OFFSET, which its comment says. unit: what the values are (see patches.py).

    Raises ValueError for 3-D or values that do not fit.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if hu.ndim != 2:
        raise ValueError(f"a patch of {hu.ndim} dimensions is no PNG; use nifti or dicom")
    if hu.min() < -PNG_OFFSET:
        raise ValueError(f"{hu.min()} {unit} lies below the {-PNG_OFFSET} {unit} that a PNG can hold here; use nifti or dicom")
    levels = (hu.astype(np.int32) + PNG_OFFSET).astype(np.uint16)
    notes = PngInfo()
    notes.add_text("Comment", f"level = {unit} + {PNG_OFFSET}")
    # Runs alone, without search: of filtered noise as small as zlib's default, in half the time.
    Image.fromarray(levels).save(file, format="PNG", compress_type=zlib.Z_RLE, pnginfo=notes)


def write_patch_nifti(hu: np.ndarray, spacing_mm: tuple[float, ...], file: Path) -> None:
    """One patch as NIfTI, a 2-D one as a single slice; its first voxel lies at the origin."""
    volume, affine = _as_volume(hu, spacing_mm)
    write_nifti(volume, affine, file)


def write_patch_dicom(hu: np.ndarray, spacing_mm: tuple[float, ...], subject: Subject, folder: Path) -> None:
    """A 2-D patch as folder.dcm, a single CT image; a 3-D one as a series in the folder, from feet to head."""
    volume, affine = _as_volume(hu, spacing_mm)
    if hu.ndim == 2:
        files = [folder.with_name(f"{folder.name}.dcm")]
    else:
        folder.mkdir()
        files = [folder / f"{k + 1:04d}.dcm" for k in range(len(volume))]
    write_series(volume, affine, subject, files, single_image=hu.ndim == 2)


def write_preview(
    hu: np.ndarray, window: Window, file: Path, spacing_mm: Sequence[float] | None = None, labels: Sequence[str] | None = None,
    *, columns: int | None = None, zoom: int = 2,
) -> None:  # fmt: skip
    """A picture of patches (N, *S) through the window, as 8-bit gray PNG with square pixels, `columns` patches to a row.

    2-D: every patch, `zoom` pixels for each of its own, by default COLUMNS to a row. 3-D: CUBES of them at even steps, two to a row, each
    as its axial, coronal and sagittal plane through the centre, and the axial maximum intensity projection of its middle half, turned
    as radiologists look at them: head up, the patient's left at the right, in sagittal planes the back at the right (the axes of a
    patch are those of Volume.axial). With `columns` given, the first CUBES in whole rows: what belongs together keeps its row.
    spacing_mm: along each axis of S; None is taken for equal. labels: each patch's class; rows are then grouped by class, in order of
    appearance, the class's name at their left. Raises ValueError when there are not as many labels as patches.
    """
    from PIL import Image

    picture = preview(hu, window, spacing_mm, labels, columns=columns, zoom=zoom)
    with whole_file(file) as out:
        Image.fromarray(picture).save(out, format="PNG")


def preview(
    hu: np.ndarray, window: Window, spacing_mm: Sequence[float] | None = None, labels: Sequence[str] | None = None,
    *, columns: int | None = None, zoom: int = 2,
) -> np.ndarray:  # fmt: skip
    """The picture of write_preview, uint8 (height, width)."""
    if labels is not None and len(labels) != len(hu):
        raise ValueError(f"{len(labels)} labels for {len(hu)} patches; want one each")
    names = list(dict.fromkeys(labels or ()))
    groups = [np.flatnonzero(np.array(labels) == name) for name in names] or [np.arange(len(hu))]
    spacing = tuple(spacing_mm or (1.0,) * (hu.ndim - 1))
    if hu.ndim == 4:
        most = max(1, CUBES // len(groups) // (columns or 2)) * (columns or 2)
        groups = [of[:most] if columns else _evenly(of, most) for of in groups]
        columns = min(columns or 2, max(map(len, groups)))
        grids = [_grid(np.stack([_planes(patch, spacing, window) for patch in hu[of]]), columns, gap=FAINT) for of in groups]
        grids.insert(0, _heads(hu.shape[1:], spacing_mm, columns))
        names = names and ["", *names]
    else:
        columns = min(columns or COLUMNS, max(map(len, groups)))
        grids = [_grid(np.stack([_gray(_square(patch, spacing), window) for patch in hu[of]]), columns, zoom) for of in groups]
    if names:
        margin = max(_width(name) for name in names) + 12
        grids = [np.hstack([_words(name, (len(grid), margin)), grid]) for name, grid in zip(names, grids, strict=True)]
        for grid in grids:
            grid[-1] = FAINT  # a line below each class
    return np.concatenate(grids)


def write_folder_preview(path: Path, count: int = 64) -> None:
    """preview.png in a patch folder: lesion patches spread evenly over it, as many of each class, its name beside them if there are several."""
    folder = PatchFolder.open(path)
    of_classes = [of for label in sorted(folder.lesion_classes) if len(of := folder.select(classes=[label]))]
    if not of_classes:
        return
    each = count if len(of_classes) == 1 else max(1, count // len(of_classes) // COLUMNS) * COLUMNS
    shown = np.concatenate([_evenly(of, each) for of in of_classes])
    labels = folder.rows.names("label", shown).tolist() if len(of_classes) > 1 else None
    write_preview(folder.hu(shown), folder.window, path / "preview.png", folder.spacing_mm, labels)


def _evenly(items: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the items, at even steps from the first to the last."""
    return items[np.linspace(0, len(items) - 1, min(most, len(items))).astype(int)]


def _gray(hu: np.ndarray, window: Window) -> np.ndarray:
    return np.rint((to_unit(hu, window) + 1) * 127.5).astype(np.uint8)


def _square(plane: np.ndarray, spacing: Sequence[float], pixel_mm: float | None = None) -> np.ndarray:
    """A plane (H, W) with square pixels, by default as wide as its finer spacing; linearly interpolated unless it has them already."""
    from PIL import Image

    pixel_mm = pixel_mm or min(spacing)
    height, width = (max(1, round(n * mm / pixel_mm)) for n, mm in zip(plane.shape, spacing, strict=True))
    if (height, width) == plane.shape:
        return plane
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))


def _planes(hu: np.ndarray, spacing: Sequence[float], window: Window) -> np.ndarray:
    """The four pictures of a patch (D, H, W) side by side, in one scale, lower ones centred: uint8 (SIDE or less, width)."""
    up, (middle, row, column) = hu[::-1], (n // 2 for n in hu.shape)
    pixel_mm = max(n * mm for n, mm in zip(hu.shape, spacing, strict=True)) / SIDE
    k, j, i = spacing
    planes = [(hu[middle], (j, i)), (up[:, row], (k, i)), (up[:, :, column], (k, j)), (hu[_middle_half(len(hu))].max(axis=0), (j, i))]
    squares = [_gray(_square(plane, of, pixel_mm), window) for plane, of in planes]
    height = max(map(len, squares))
    return np.hstack([
        np.pad(one, [((height - len(one)) // 2, (height - len(one) + 1) // 2), (0, gap)])
        for one, gap in zip(squares, (GAP, GAP, GAP, 0), strict=True)
    ])  # fmt: skip


def _middle_half(count: int) -> slice:
    return slice(count // 4, count - count // 4)


def _heads(shape: Sequence[int], spacing_mm: Sequence[float] | None, columns: int) -> np.ndarray:
    """The line above rows of _planes: what each picture is, and where that is known how wide it is, or how thick the slab that it projects."""
    deep, high, wide = (n * mm for n, mm in zip(shape, spacing_mm or (1.0,) * 3, strict=True))
    half = _middle_half(shape[0])
    thick = deep * (half.stop - half.start) / shape[0]
    heads = [("axial", wide, wide, GAP), ("coronal", wide, wide, GAP), ("sagittal", high, high, GAP), ("MIP", thick, wide, 1)]
    cells = []
    for name, mm, width, gap in heads:
        room = round(width * SIDE / max(deep, high, wide)) + gap
        words = f"{name}, {mm:.0f} mm{' thick' * (name == 'MIP')}"
        cells.append(_words(words if spacing_mm and _width(words) < room else name, (HEAD, room)))
    return np.tile(np.hstack(cells), columns)


def _grid(tiles: np.ndarray, columns: int, zoom: int = 1, gap: int = 0) -> np.ndarray:
    """uint8 tiles (N, h, w) row by row, a line of gray `gap` below and to the right of each."""
    blank = -len(tiles) % columns
    tiles = np.pad(tiles, [(0, blank), (0, 0), (0, 0)])
    tiles = np.pad(tiles, [(0, 0), (0, 1), (0, 1)], constant_values=gap)
    rows, (height, width) = len(tiles) // columns, tiles.shape[1:]
    grid = tiles.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    return grid.repeat(zoom, 0).repeat(zoom, 1)


def _words(text: str, shape: tuple[int, int]) -> np.ndarray:
    """uint8 of this shape: light words in the middle of black."""
    from PIL import Image, ImageDraw

    picture = Image.new("L", shape[::-1])
    ImageDraw.Draw(picture).text((shape[1] / 2, shape[0] / 2), text, BRIGHT, _font(), anchor="mm")
    return np.array(picture)


def _width(text: str) -> int:
    return round(_font().getlength(text))


def _font():
    from PIL import ImageFont

    return ImageFont.load_default(12)


def _as_volume(hu: np.ndarray, spacing_mm: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(K, J, I) and its index-to-LPS affine; a 2-D patch is one slice, given 1 mm."""
    k, j, i = (1.0, *spacing_mm) if hu.ndim == 2 else spacing_mm
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = k, j, i, 1.0
    return (hu[None] if hu.ndim == 2 else hu), affine
