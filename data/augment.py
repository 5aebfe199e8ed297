"""Changed copies of patches: other poses of the same lesion, other scanners' intensities.

Patches are int16 HU, (H, W) or (D, H, W) with axes z, y, x; spacing_mm is along those axes. Where a
folder's spacing is unknown, a pixel counts as 1 mm.

Sample-level changes move the whole patch: flip, quarter turn, and rotation, zoom and crop in one linear
resampling. They invent no HU: no value leaves the patch's own range. Beyond the border the patch is
reflected. A 3-D patch turns about the axial axis only: slices are less sharp along z than in the plane, and
a tilt would turn that to where no scanner has it.

Feature-level changes are what another scanner or protocol would have made of the same anatomy: a softer or
sharper reconstruction kernel, noise, and the calibration of the HU scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CT_RANGE_HU = (-1024, 3071)
"""What 12 bits hold. Feature-level changes end there, unless the patch itself reaches further."""

SHARPEN_MM = 1.0
"""Standard deviation of the blur that sharpening takes away."""

NOISE_GRAIN_MM = 0.5
"""Standard deviation of the blur that gives noise its grain, as a reconstruction kernel does; chosen by eye."""


@dataclass(frozen=True)
class AugmentConfig:
    """How far a changed copy may go from its source. Every draw is uniform, the zoom's on a logarithmic scale.

    flip: along each axis, half of the time. turn: by quarters of a circle, half circles where the patch is not square.
    rotate_deg: up to this angle either way on top. zoom: lowest and highest magnification. Both are small by default:
    what they bring in from beyond the border is a reflection, and a rib that folds back there is no anatomy.
    crop: up to this share of the side is left out, anywhere, and the rest resized back.
    noise_hu: standard deviation of added noise, up to this. blur_mm: standard deviation of a softer kernel, up to this;
    sharpen: weight of the detail that a sharper kernel adds, up to this. A copy gets one of the two.
    hu_shift: added, up to this either way. hu_scale: HU (0 is water) are stretched by up to this share either way.

    The defaults keep a chest CT a chest CT. Accreditation by the American College of Radiology lets water lie
    within 7 HU of 0 and air from -1005 to -970; tube voltage, patient size and kernel move lung more than that, so
    20 HU and 2 % (20 HU on air). A standard-dose chest CT has noise of some 10 to 30 HU already; 25 HU on
    top stands for a lower dose. Blur and sharpening stay below the width of a 5 mm nodule.
    """

    flip: bool = True
    turn: bool = True
    rotate_deg: float = 5.0
    zoom: tuple[float, float] = (0.95, 1.05)
    crop: float = 0.1
    noise_hu: float = 25.0
    blur_mm: float = 0.5
    sharpen: float = 0.5
    hu_shift: float = 20.0
    hu_scale: float = 0.02

    def __post_init__(self) -> None:
        """Raises ValueError for a range that makes no sense."""
        limits = {"rotate_deg": 180, "crop": 0.5, "noise_hu": 1000, "blur_mm": 10, "sharpen": 5, "hu_shift": 1000, "hu_scale": 0.5}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"want {name} from 0 to {most}, got {getattr(self, name):g}")
        low, high = self.zoom
        if not 0.5 <= low <= high <= 2:
            raise ValueError(f"want zoom low,high with 0.5 <= low <= high <= 2, got {low:g},{high:g}")

    @property
    def changes_intensity(self) -> bool:
        """Whether there are feature-level changes, which need HU."""
        return any((self.noise_hu, self.blur_mm, self.sharpen, self.hu_shift, self.hu_scale))


@dataclass(frozen=True)
class Change:
    """What one copy was given, in the order of `apply`; Change() changes nothing.

    flip: the array axes that were reversed. rotate_deg: counter-clockwise as the patch is shown, x to the
    right and y down. zoom: magnification. crop: the share of the side left out; crop_position: where the rest lay along
    each axis, from -1 (low end) to 1 (high end). The others are as in AugmentConfig, noise_seed is the noise's.
    """

    flip: tuple[int, ...] = ()
    rotate_deg: float = 0.0
    zoom: float = 1.0
    crop: float = 0.0
    crop_position: tuple[float, ...] = ()
    blur_mm: float = 0.0
    sharpen: float = 0.0
    noise_hu: float = 0.0
    noise_seed: int = 0
    hu_scale: float = 1.0
    hu_shift: float = 0.0

    @property
    def magnification(self) -> float:
        """How much larger the lesion has become: zoom, and the crop resized back."""
        return self.zoom / (1 - self.crop)


def draw(rng: np.random.Generator, config: AugmentConfig, shape: Sequence[int], spacing_mm: Sequence[float] | None = None) -> Change:
    """One Change for a patch of this shape, within the config's ranges; rounded, so that a table holds it exactly."""

    def between(low: float, high: float, digits: int = 4) -> float:
        return round(float(rng.uniform(low, high)), digits)

    step = _turn_step(shape, spacing_mm)
    crop = between(0, config.crop)
    softer = bool(config.blur_mm) and (not config.sharpen or rng.random() < 0.5)
    return Change(
        flip=tuple(axis for axis in range(len(shape)) if config.flip and rng.random() < 0.5),
        rotate_deg=(step * int(rng.integers(360 // step)) if config.turn else 0) + between(-config.rotate_deg, config.rotate_deg, 2),
        zoom=round(float(np.exp(rng.uniform(*np.log(config.zoom)))), 4),
        crop=crop,
        crop_position=tuple(between(-1, 1) for _ in shape) if crop else (),
        blur_mm=between(0, config.blur_mm) if softer else 0.0,
        sharpen=0.0 if softer else between(0, config.sharpen),
        noise_hu=between(0, config.noise_hu),
        noise_seed=int(rng.integers(2**32)) if config.noise_hu else 0,
        hu_scale=between(1 - config.hu_scale, 1 + config.hu_scale),
        hu_shift=between(-config.hu_shift, config.hu_shift),
    )


def apply(hu: np.ndarray, change: Change, spacing_mm: Sequence[float] | None = None) -> np.ndarray:
    """The changed patch, int16 of the same shape. The same patch and Change give the same bytes.

    Raises ValueError when hu is no int16 patch of two or three dimensions, or the Change is one for the other kind.
    """
    if hu.dtype != np.int16 or hu.ndim not in (2, 3):
        raise ValueError(f"want an int16 patch (H, W) or (D, H, W), got {hu.dtype}{hu.shape}")
    if any(axis not in range(hu.ndim) for axis in change.flip) or (change.crop and len(change.crop_position) != hu.ndim):
        raise ValueError(f"a patch of {hu.ndim} dimensions cannot have the flip {change.flip} or the crop {change.crop_position}")
    spacing = np.ones(hu.ndim) if spacing_mm is None else np.array(spacing_mm, dtype=float)
    x = _moved(hu, change, spacing)
    if change.blur_mm:
        x = _blurred(x, change.blur_mm / spacing)
    if change.sharpen:
        x = x + change.sharpen * (x - _blurred(x, SHARPEN_MM / spacing))
    if change.noise_hu:
        noise = _blurred(np.random.default_rng(change.noise_seed).standard_normal(x.shape), NOISE_GRAIN_MM / spacing)
        x = x + noise * (change.noise_hu / noise.std())
    x = x * change.hu_scale + change.hu_shift
    low, high = min(CT_RANGE_HU[0], int(hu.min())), max(CT_RANGE_HU[1], int(hu.max()))
    return np.rint(np.clip(x, low, high)).astype(np.int16)


def _moved(hu: np.ndarray, change: Change, spacing: np.ndarray) -> np.ndarray:
    """The sample-level part, float64. Flips and turns are permutations; only what is left over is interpolated."""
    import torch
    from monai.transforms import Affine, Flip, Rotate90

    step = _turn_step(hu.shape, spacing)
    turns = round(change.rotate_deg / step)
    rest = change.rotate_deg - turns * step
    x: Any = torch.from_numpy(hu.astype(np.float64))[None]
    if change.flip:
        x = Flip(change.flip)(x)
    if turns:
        x = Rotate90(turns * step // 90, spatial_axes=(hu.ndim - 2, hu.ndim - 1))(x)
    if rest or change.zoom != 1 or change.crop:
        # double precision, so that neither the number of threads nor the kind of processor shows after rounding
        where = _output_to_input(hu.shape, spacing, rest, change)
        x = Affine(affine=where, mode="bilinear", padding_mode="reflection", dtype=np.float64, image_only=True)(x)
    return np.rint(np.asarray(x[0], dtype=np.float64))


def _output_to_input(shape: Sequence[int], spacing: np.ndarray, degrees: float, change: Change) -> np.ndarray:
    """Homogeneous matrix from an output voxel to where it is read, both counted from the patch's centre."""
    turn = np.eye(len(shape))
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn[-2:, -2:] = [[cos, sin], [-sin, cos]]
    where = np.eye(len(shape) + 1)
    where[:-1, :-1] = turn * spacing / spacing[:, None] / change.magnification  # turned in mm, not in voxels
    if change.crop:
        where[:-1, -1] = np.array(change.crop_position) * change.crop / 2 * shape
    return where


def _turn_step(shape: Sequence[int], spacing_mm: Sequence[float] | np.ndarray | None) -> int:
    """The smallest turn in degrees that takes the pixel grid onto itself."""
    square = shape[-2] == shape[-1] and (spacing_mm is None or spacing_mm[-2] == spacing_mm[-1])
    return 90 if square else 180


def _blurred(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """x under a Gaussian of these pixels along each axis, cut at 4 sigma; reflected at the border, so that the mean stays."""
    import torch
    from monai.networks.layers import gaussian_1d, separable_filtering

    kernels = [gaussian_1d(torch.tensor(s, dtype=torch.float64), truncated=4.0, approx="sampled", normalize=True) for s in sigma]
    margins = [len(kernel) // 2 for kernel in kernels]
    padded = torch.from_numpy(np.pad(x, [(m, m) for m in margins], mode="symmetric"))
    inside = tuple(slice(m, m + side) for m, side in zip(margins, x.shape, strict=True))
    return separable_filtering(padded[None, None], kernels)[0, 0].numpy()[inside]
