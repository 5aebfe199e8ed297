"""What a patch looks like around the edge of a support: gradient, rim and noise inside, on and outside it.

A composite is background outside a disc or ball around the patch's middle, the support, and drawn inside. Its edge is looked at in
three zones: within a voxel of the support's radius ("edge"), nearer to the middle ("inside"), further out ("outside"). Real
lesions are measured around the same places, and `seams.py` compares them.

Patches are HU, (N, H, W) or (N, D, H, W), clipped to a window, with the lesion in the middle and a spacing along each axis. Noise is
what second differences along every axis in turn, -1 2 -1, leave (Immerkær 1996, Eq. 1), scaled so that white noise has its own
variance: nothing is left of a slope, or of an outline along an axis. The median of its squares is taken, so that a vessel in a zone
counts for little. It is the finest texture alone: most of what a 3 x 3 mean takes away from a lung nodule is the nodule's shape. The
outermost voxels, which have neighbours on one side only, belong to no zone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from evaluate.attributes import distance_to_centre_mm, mean_within, slopes
from evaluate.halvings import LEAST_PATIENTS
from evaluate.intervals import Patients
from evaluate.spectra import BATCH, ROUNDING

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MEASURES = {
    "gradient_inside": "gradient inside (HU/mm)",
    "gradient_edge": "gradient on the edge (HU/mm)",
    "gradient_outside": "gradient outside (HU/mm)",
    "radial_inside": "rise outwards, inside (HU/mm)",
    "radial_edge": "rise outwards, on the edge (HU/mm)",
    "radial_outside": "rise outwards, outside (HU/mm)",
    "noise_inside": "noise power inside (HU²)",
    "noise_edge": "noise power on the edge (HU²)",
    "noise_outside": "noise power outside (HU²)",
    "rim_hu": "the edge over what is beside it (HU)",
    "noise_step": "noise power inside over outside (log2)",
}
SUPPORT = 1.5  # radius of the support over the lesion's, unless told
LEAST_VOXELS = 8  # of a zone in a patch: a median of fewer says nothing
RIM_VOXELS = 2  # how wide the shells beside the edge are
SECOND_DIFFERENCE = np.array([-1.0, 2.0, -1.0]) / np.sqrt(6)
MEDIAN_OF_SQUARE = 0.4549364  # of a standard normal number
PROFILE_EDGES = np.linspace(0, 2, 17)  # in units of the support's radius


@dataclass(frozen=True)
class Profile:
    """Means over patients by distance from the middle, and what holds 95 % of such means: (3, bins) each, NaN where fewer than 8 are measured.

    Rows: HU, gradient (HU/mm), noise (HU). edges: of the bins, (bins + 1,), in units of the support's radius.
    """

    edges: Floats
    mean: Floats
    low: Floats
    high: Floats


def edge_measures(
    hu: NDArray, radius_mm: Floats, spacing_mm: Sequence[float], window: tuple[float, float], support: float | Floats = SUPPORT
) -> dict[str, Floats]:
    """Each of MEASURES for each patch, float64 (N,); NaN where a zone has fewer than 8 voxels.

    radius_mm: of the lesion, (N,); support: what it is multiplied by to give the support's radius, one number or (N,).
    Gradients are central differences; "rise outwards" is their part along the line from the middle, below 0 where HU falls. The rim is
    the mean HU on the edge over the mean of the shells of two voxels on both sides of it.

    Raises ValueError if shapes do not fit or an axis has fewer than 5 voxels.
    """
    edge_mm = _edge_mm(hu, radius_mm, spacing_mm, support)
    found: dict[str, list[Floats]] = {name: [] for name in MEASURES}
    for rows, maps in _maps(hu, spacing_mm, window):
        away = (maps.distance_mm - edge_mm[rows, None]) * maps.voxels_per_mm
        zones = {"inside": away < -1, "edge": np.abs(away) <= 1, "outside": away > 1}
        some: dict[str, Floats] = {}
        for zone, mask in zones.items():
            for name, values in (("gradient", maps.gradient), ("radial", maps.radial)):
                some[f"{name}_{zone}"] = _mean(values, mask)
            some[f"noise_{zone}"] = _noise(maps.square, mask)
        beside = [zones["inside"] & (away >= -1 - RIM_VOXELS), zones["outside"] & (away <= 1 + RIM_VOXELS)]
        some["rim_hu"] = _mean(maps.hu, zones["edge"]) - np.mean([_mean(maps.hu, mask) for mask in beside], axis=0)
        some["noise_step"] = np.log2((some["noise_inside"] + ROUNDING) / (some["noise_outside"] + ROUNDING))
        for name, values in some.items():
            found[name].append(values)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def noise_kept(
    hu: NDArray,
    background: NDArray,
    radius_mm: Floats,
    spacing_mm: Sequence[float],
    window: tuple[float, float],
    support: float | Floats = SUPPORT,
) -> Floats:
    """Noise power inside the support over that of the same voxels of the untouched background, (N,); see `edge_measures`.

    1 where the noise was kept. Noise that was smoothed by weights k has the sum of squares of k * h over that of h, where h is the second difference
    along every axis. A lesion's own texture adds to it.
    """
    if hu.shape != background.shape:
        raise ValueError(f"composites are {hu.shape}, backgrounds {background.shape}; give the background of each composite")
    after, before = (edge_measures(one, radius_mm, spacing_mm, window, support)["noise_inside"] for one in (hu, background))
    return (after + ROUNDING) / (before + ROUNDING)


def radial_profile(
    hu: NDArray,
    radius_mm: Floats,
    spacing_mm: Sequence[float],
    window: tuple[float, float],
    patients: Patients,
    support: float | Floats = SUPPORT,
) -> Profile:
    """HU, gradient and noise by distance from the middle, up to twice the support's radius; arguments as in `edge_measures`."""
    edge_mm = _edge_mm(hu, radius_mm, spacing_mm, support)
    found = np.full((len(hu), 3, len(PROFILE_EDGES) - 1), np.nan)
    for rows, maps in _maps(hu, spacing_mm, window):
        bins = np.digitize(maps.distance_mm / edge_mm[rows, None], PROFILE_EDGES) - 1
        for n in range(found.shape[2]):
            mask = bins == n
            found[rows, :, n] = np.stack([_mean(maps.hu, mask), _mean(maps.gradient, mask), np.sqrt(_noise(maps.square, mask))], axis=1)
    index = np.arange(len(hu)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    by_patient = [_nan_mean(found[index == one])[0] for one in range(int(index.max()) + 1)]
    mean, error, count = _nan_mean(np.stack(by_patient))
    mean, error = (np.where(count >= LEAST_PATIENTS, one, np.nan) for one in (mean, error))
    return Profile(PROFILE_EDGES, mean, mean - 1.96 * error, mean + 1.96 * error)


@dataclass(frozen=True)
class _Maps:
    """Of a batch of B patches, voxel by voxel, (B, V): HU, |grad|, its part outwards, squared noise. Of every patch, (V,): the distance
    from the middle, and how many voxels a millimetre is in the direction away from it."""

    hu: Floats
    gradient: Floats
    radial: Floats
    square: Floats
    distance_mm: Floats
    voxels_per_mm: Floats


def _maps(hu: NDArray, spacing_mm: Sequence[float], window: tuple[float, float]) -> Iterator[tuple[slice, _Maps]]:
    shape, dimensions = hu.shape[1:], hu.ndim - 1
    inner = (slice(None), *[slice(1, -1)] * dimensions)

    def flat(values: Floats) -> Floats:
        return values[inner].reshape(len(values), -1)

    offsets = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)), indexing="ij")
    distance = distance_to_centre_mm(shape, spacing_mm)
    safe = np.where(distance > 0, distance, 1)  # the middle voxel itself has no direction
    distances = [flat(one[None])[0] for one in (distance, distance_to_centre_mm(shape, [1] * dimensions) / safe)]
    for start in range(0, len(hu), BATCH):
        clipped = np.clip(hu[start : start + BATCH], *window).astype(np.float64)
        along = slopes(clipped, spacing_mm)
        noise = clipped
        for axis in range(1, hu.ndim):
            noise = ndimage.convolve1d(noise, SECOND_DIFFERENCE, axis=axis)
        yield (
            slice(start, start + len(clipped)),
            _Maps(
                flat(clipped),
                flat(np.linalg.norm(along, axis=0)),
                flat(np.sum([slope * offset / safe for slope, offset in zip(along, offsets, strict=True)], axis=0)),
                flat(np.square(noise)),
                *distances,
            ),
        )


def _edge_mm(hu: NDArray, radius_mm: Floats, spacing_mm: Sequence[float], support: float | Floats) -> Floats:
    """The support's radius in each patch, (N,)."""
    if hu.ndim not in (3, 4) or len(spacing_mm) != hu.ndim - 1 or not len(hu) or min(hu.shape[1:]) < 5 or np.shape(radius_mm) != (len(hu),):
        raise ValueError(
            "patches are (N, H, W) or (N, D, H, W), 5 voxels or more along each axis, with a spacing per axis and a radius per patch, got "
            f"{hu.shape}, {len(spacing_mm)} spacings and radii of shape {np.shape(radius_mm)}"
        )
    return np.broadcast_to(np.asarray(radius_mm, np.float64) * support, len(hu))


def _mean(values: Floats, mask: Mask) -> Floats:
    return np.where(mask.sum(1) >= LEAST_VOXELS, mean_within(values, mask), np.nan)


def _noise(square: Floats, mask: Mask) -> Floats:
    """The variance of normal numbers whose squares have the median that `square` has within each patch's mask, (B,)."""
    count = mask.sum(1)
    ranked = np.sort(np.where(mask, square, np.inf), axis=1)
    rows = np.arange(len(square))
    middle = [ranked[rows, place.clip(0)] for place in ((count - 1) // 2, (count // 2).clip(max=square.shape[1] - 1))]
    return np.where(count >= LEAST_VOXELS, np.mean(middle, axis=0) / MEDIAN_OF_SQUARE, np.nan)


def _nan_mean(values: Floats) -> tuple[Floats, Floats, NDArray[np.int_]]:
    """Over the first axis, of what is finite: mean, its standard error, and the count; NaN where nothing is."""
    there = np.isfinite(values)
    count = there.sum(0)
    some = np.maximum(count, 1)
    mean = np.where(there, values, 0).sum(0) / some
    error = np.sqrt(np.where(there, np.square(values - mean), 0).sum(0) / np.maximum(count - 1, 1) / some)
    return np.where(count > 0, mean, np.nan), error, count
