"""Patches that change from picture to picture: side by side as strips, and one after the other as an animation that loops.

HU arrays are int16; *S is (H, W) or (D, H, W).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.export import preview, write_preview
from data.files import whole_file
from data.preprocess import Window

FORMATS: dict[str, dict[str, Any]] = {
    ".gif": {"format": "GIF", "palette": bytes(level for level in range(256) for _ in "RGB")},
    ".png": {"format": "PNG"},
}
"""Both keep every gray level. GIF moves in every viewer and slide; PNG moves in browsers, and is a fraction of its size. The palette is
given because Pillow's own, made anew for small frames, moves levels where a frame lacks one of the 256 (Pillow 13.0)."""

COLUMNS, SIDE = 4, 96
"""Of 2-D patches: so many to a row of an animation, each at least so many pixels wide in any picture."""


def write_animation(
    frames: Iterable[np.ndarray], window: Window, file: Path, spacing_mm: Sequence[float] | None = None, *, frame_ms: int = 80
) -> None:
    """Frames of patches (N, *S), all alike in shape, as an 8-bit gray animation that starts over at its end: .gif or .png (animated).

    The same place in every frame is one that moves, such as a walk: an array (frames, walks, *S), or an iterator of such frames, of
    which only the pictures stay in memory. Patches look as in export.write_preview, 3-D ones in the same planes, at most
    export.CUBES of them. spacing_mm: along each axis of S. frame_ms: how long a frame stays, in whole hundredths of a second, as GIF has it.
    Raises ValueError for another kind of file, no frame, or a time that is not one.
    """
    from PIL import Image

    if file.suffix not in FORMATS:
        raise ValueError(f"{file}: an animation is a {' or '.join(FORMATS)} file")
    if frame_ms < 20 or frame_ms % 10:
        raise ValueError(f"a frame of {frame_ms} ms: want 20 or more, in steps of 10; browsers slow down what is faster")
    pictures = [
        Image.fromarray(preview(hu, window, spacing_mm, columns=COLUMNS if hu.ndim == 3 else None, zoom=_zoom(hu.shape[1:])))
        for hu in frames
    ]
    if not pictures:
        raise ValueError(f"{file}: no frames to show")
    with whole_file(file) as out:
        pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=frame_ms, loop=0, **FORMATS[file.suffix])


def write_strips(
    hu: np.ndarray, window: Window, file: Path, spacing_mm: Sequence[float] | None = None, names: Sequence[str] | None = None
) -> None:
    """Strips of patches (strips, steps, *S) as 8-bit gray PNG, one strip to a row; of 3-D patches the axial plane through the centre.

    spacing_mm: along each axis of S. names: of each strip, at its left; strips of the same name stand together.
    Raises ValueError when there are not as many names as strips.
    """
    if names is not None and len(names) != len(hu):
        raise ValueError(f"{len(names)} names for {len(hu)} strips; want one each")
    if hu.ndim == 5:
        hu, spacing_mm = hu[:, :, hu.shape[2] // 2], spacing_mm and spacing_mm[1:]
    steps, shape = hu.shape[1], hu.shape[2:]
    labels = None if names is None else [name for name in names for _ in range(steps)]
    write_preview(hu.reshape(-1, *shape), window, file, spacing_mm, labels, columns=steps, zoom=_zoom(shape))


def _zoom(shape: Sequence[int]) -> int:
    return max(1, -(-SIDE // max(shape)))
