"""Lesions drawn as masks: NIfTI and MetaImage volumes whose voxels are 0 outside lesions.

A lesion is a connected component, its centre the mean of its voxel centres, its diameter that of the
ball of equal volume; of a component in a single axial slice, whose depth is not known, that of the disc
of equal area.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.lesion_list import DEFAULT_CLASS, LesionList, ListConfig, Listed, class_of
from data.metaimage import read_metaimage_values
from data.nifti import read_nifti_values, stem
from data.sources import METAIMAGE, Source, Unreadable
from data.volume import Lesion, Volume, spacing_of

SMALLEST_MM = 3.0
"""Components of a smaller diameter are left out: LUNA16's limit, below which an outline is mostly chance."""

MOST_COMPONENTS = 1000
GRID_TOLERANCE = 0.1
"""How far, in voxels, a mask's corner may lie from its scan's: headers round positions and spacings."""

TOO_SMALL = f"component of a mask under {SMALLEST_MM:g} mm across, left out"
EMPTY = "mask without a lesion in it"
_MASK_NAMES = ("_mask", "-mask", "_seg", "-seg", "_label")


@dataclass(frozen=True)
class MaskFile:
    """A mask of one scan. version: changes when the file does. label: the class of all of it, or None: by voxel value.

    By value, through `classes`; a value that is not named there is its own name. Without `classes`, a mask of
    no other value than 1, or than 255, holds lesions of class "lesion".
    """

    source: Source
    version: str
    label: str | None
    classes: tuple[tuple[str, str], ...] = ()

    def locate(self, volume: Volume) -> tuple[list[Lesion], Counter[str]]:
        """The components, each in one value's voxels, neighbours over faces, edges or corners.

        Raises Unreadable unless the mask holds whole numbers from 0 on the scan's own grid, perhaps stored
        in another orientation, and no more than MOST_COMPONENTS components.
        """
        read = read_metaimage_values if self.source.name.lower().endswith(METAIMAGE) else read_nifti_values
        values, affine = read(self.source)
        if not same_grid(values.shape, affine, volume):
            detail = f"shape {values.shape}, the scan's {volume.hu.shape}"
            raise Unreadable(self.source, "the mask does not lie on its scan's grid (shape, spacing, origin); resample it", detail)
        found = components(self.source, _whole(self.source, values), affine)
        binary = not self.classes and {value for value, _, _ in found} in ({1}, {255})

        def named(value: int) -> str:
            return self.label or (DEFAULT_CLASS if binary else class_of(str(value), dict(self.classes)))

        return as_lesions([(named(value), centre, mm) for value, centre, mm in found])


def read_masks(place: Path, sources: list[Source], config: ListConfig) -> LesionList:
    """The masks of scans that have the same stem, or that without _mask, -mask, _seg, -seg or _label.

    Where both `name` and `name_mask` are there, the first is the scan. They are read when their scan is.
    Raises Unreadable when two masks have one name, ValueError when classes are asked from a column.
    """
    if config.class_from:
        raise ValueError(f"{place}: masks have no {config.class_from!r} to read classes from; name their values as classes")
    stems = {stem(source).lower() for source in sources}
    masks: dict[str, Source] = {}
    for source in sources:
        name = stem(source)
        if any(name.lower() + ending in stems for ending in _MASK_NAMES):
            continue
        ending = next((ending for ending in _MASK_NAMES if name.lower().endswith(ending)), "")
        name = name[: len(name) - len(ending)]
        if name in masks:
            raise Unreadable(source, "another mask has the same name, so the two cannot be told apart; rename one", masks[name].name)
        masks[name] = source
    listed: dict[str, tuple[Listed, ...]] = {
        name: (MaskFile(source, source.version(), None, config.classes),) for name, source in masks.items()
    }
    return LesionList(listed)


def same_grid(shape: tuple[int, ...], affine: np.ndarray, volume: Volume) -> bool:
    """Whether voxels (K, J, I) with this index-to-LPS affine lie where the volume's do, axes perhaps swapped or reversed."""
    to_scan = np.linalg.inv(volume.affine) @ affine
    turn = np.rint(to_scan[:3, :3])
    if not np.array_equal(np.abs(turn).sum(axis=0), np.ones(3)) or not np.array_equal(np.abs(turn).sum(axis=1), np.ones(3)):
        return False
    last = np.array(shape) - 1.0
    corners = np.stack(np.meshgrid(*((0.0, end) for end in last), indexing="ij"), axis=-1).reshape(-1, 3)
    wanted = corners @ turn.T - np.minimum(turn @ last, 0)  # a reversed axis begins at its other end
    off = np.abs(corners @ to_scan[:3, :3].T + to_scan[:3, 3] - wanted).max()
    return np.array_equal(np.abs(turn) @ np.array(shape), volume.hu.shape) and bool(off <= GRID_TOLERANCE)


def components(source: object, values: np.ndarray, affine: np.ndarray) -> list[tuple[int, tuple[float, float, float], float]]:
    """(value, centre in LPS mm, diameter in mm) of each component of equal values above 0 in (K, J, I), 26-connected.

    affine: from index k, j, i to LPS mm. Raises Unreadable naming the source when there are too many to be lesions.
    """
    from scipy.ndimage import find_objects
    from skimage.measure import label

    along = [np.flatnonzero(values.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(along[0]):
        return []
    start = np.array([places[0] for places in along])
    box = values[tuple(slice(places[0], places[-1] + 1) for places in along)]  # a scan is far larger than its lesions
    regions, count = label(box, connectivity=3, return_num=True)
    if count > MOST_COMPONENTS:
        raise Unreadable(source, f"the mask has more than {MOST_COMPONENTS} components: noise, not lesions", str(count))
    spacing = np.array(spacing_of(affine))
    to_head = int(np.argmax(np.abs(affine[2, :3]) / spacing))
    found = []
    for number, place in enumerate(find_objects(regions), 1):
        part = regions[place] == number
        sums = [part.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
        voxels = int(sums[0].sum())
        index = start + [s.start + np.arange(len(n)) @ n / voxels for s, n in zip(place, sums, strict=True)]
        volume_mm3 = voxels * float(np.prod(spacing))
        if part.shape[to_head] == 1:
            diameter = 2 * (volume_mm3 / spacing[to_head] / np.pi) ** 0.5
        else:
            diameter = (6 * volume_mm3 / np.pi) ** (1 / 3)
        x, y, z = (affine @ [*index, 1.0])[:3].tolist()
        found.append((int(box[place][part][0]), (x, y, z), float(diameter)))
    return found


def as_lesions(found: list[tuple[str, tuple[float, float, float], float]]) -> tuple[list[Lesion], Counter[str]]:
    """Lesions out of (class, centre, diameter), without the smallest, which are counted."""
    lesions = [Lesion(centre, mm, label) for label, centre, mm in found if mm >= SMALLEST_MM]
    return lesions, Counter({what: n for what, n in ((TOO_SMALL, len(found) - len(lesions)), (EMPTY, int(not found))) if n})


def _whole(source: Source, values: np.ndarray) -> np.ndarray:
    """The same as integers; Unreadable when that would change them or they are no mask's."""
    if values.dtype.kind not in "buif":
        raise Unreadable(source, "the mask's values are not real numbers", str(values.dtype))
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 65535):
        raise Unreadable(source, "the mask's values are not from 0 to 65535; is it a scan?", f"{low:g} to {high:g}")
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise Unreadable(source, "the mask's values are not whole numbers; a probability map must be thresholded first")
    return values if values.dtype == np.uint8 else values.astype(np.uint16)
