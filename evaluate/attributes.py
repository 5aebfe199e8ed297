"""Lesion attributes of a patch, and tests between their distributions in real and synthetic sets.

Patches are HU, (N, H, W) or (N, D, H, W), clipped to one window before anything is measured: a
generator cannot leave its window, so real patches must not be credited with values outside it.
spacing_mm is along each axis of a patch. The same code measures real and synthetic patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from evaluate.intervals import Patients

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ATTRIBUTES = {
    "diameter_mm": "diameter (mm)",
    "mean_hu": "mean density (HU)",
    "sd_hu": "spread of density (HU)",
    "roundness": "roundness (1 is a disc or ball)",
    "sharpness_hu_per_mm": "edge sharpness (HU/mm)",
    "texture_hu": "fine texture (HU)",
}
CENTRE_RADIUS_MM = 2.5
REACH = 1.5  # a lesion reaches no further from the centre than this many times its half-thickness there
LEAST_CONTRAST = 0.05  # of the window: below this no lesion stands out from its surroundings


def central_component(hu: NDArray, spacing_mm: Sequence[float], window: tuple[float, float]) -> Mask:
    """The lesion of each patch, bool of the shape of hu; all False where nothing stands out.

    Above the middle between the bright centre (90th percentile within 2.5 mm) and the surroundings
    (20th percentile), opened by one voxel to cut off vessels, connected to the centre, no further
    from it than 1.5 times the lesion's half-thickness there (plus 2.5 mm), and inside the largest
    disc or ball the patch holds. A rule of thumb, not a radiologist's outline: compare sets with
    it, not single lesions.
    """
    _check(hu, spacing_mm)
    clipped = np.clip(hu, *window)
    distance_mm = distance_to_centre_mm(hu.shape[1:], spacing_mm)
    ball = distance_mm <= max(CENTRE_RADIUS_MM, np.partition(distance_mm, 3, axis=None)[3])
    inside = distance_mm <= min(n * mm / 2 for n, mm in zip(hu.shape[1:], spacing_mm, strict=True))
    bright = np.quantile(clipped[:, ball], 0.9, axis=1)
    dark = np.quantile(clipped[:, inside], 0.2, axis=1)
    stands_out = bright - dark >= LEAST_CONTRAST * (window[1] - window[0])
    above = (clipped >= _per_patch((bright + dark) / 2, hu)) & inside & _per_patch(stands_out, hu)

    within_patch = _neighbours_within_a_patch(hu.ndim)
    opened = ndimage.binary_opening(above, within_patch)
    # A lesion of a voxel or two does not survive opening; it is kept as it is.
    keeps_centre = (opened & ball).reshape(len(hu), -1).any(1)
    mask = np.where(_per_patch(keeps_centre, hu), opened, above)

    labels, _count = ndimage.label(mask, within_patch)
    flat = labels.reshape(len(hu), -1)
    nearest = np.where(mask, distance_mm, np.inf).reshape(len(hu), -1).argmin(1)
    centre_label = flat[np.arange(len(hu)), nearest]
    lesion = (labels == _per_patch(centre_label, hu)) & mask
    # What hangs on by a neck (vessel, chest wall) lies further out than the lesion is thick.
    depth_mm = ndimage.distance_transform_edt(lesion, sampling=(1e6, *spacing_mm))
    thickness_mm = np.where(ball, depth_mm, 0).reshape(len(hu), -1).max(1)
    return lesion & (distance_mm <= _per_patch(REACH * thickness_mm + CENTRE_RADIUS_MM, hu))


def lesion_attributes(hu: NDArray, spacing_mm: Sequence[float], window: tuple[float, float]) -> dict[str, Floats]:
    """Each of ATTRIBUTES for each patch, float64 (N,); NaN where no lesion stands out.

    diameter: of the disc or ball of the component's size. roundness: its size over its moment of
    inertia, relative to a disc's or ball's, in (0, 1] (Žunić et al. 2010, Eq. 5). sharpness: mean
    gradient over the border voxels. texture: standard deviation of HU less its 3-voxel mean, inside.
    """
    mask = central_component(hu, spacing_mm, window)
    clipped = np.clip(hu, *window).astype(np.float64)
    within_patch = _neighbours_within_a_patch(hu.ndim)
    border = ndimage.binary_dilation(mask, within_patch) & ~ndimage.binary_erosion(mask, within_patch)
    local_mean = ndimage.uniform_filter(clipped, (1, *[3] * (hu.ndim - 1)))
    # Inside, so that the edge is not taken for texture; small lesions have no inside.
    inside = ndimage.binary_erosion(mask, np.ones((1, *[3] * (hu.ndim - 1)), bool))
    inside = np.where(_per_patch(inside.reshape(len(hu), -1).any(1), hu), inside, mask)
    size = mask.reshape(len(hu), -1).sum(1) * float(np.prod(spacing_mm))
    mean = mean_within(clipped, mask)
    return {
        "diameter_mm": np.where(size > 0, _diameter_of(size, hu.ndim - 1), np.nan),
        "mean_hu": mean,
        "sd_hu": np.sqrt(mean_within(np.square(clipped - _per_patch(mean, hu)), mask)),
        "roundness": _roundness(mask, spacing_mm),
        "sharpness_hu_per_mm": mean_within(gradient_magnitude(clipped, spacing_mm), border),
        "texture_hu": np.sqrt(mean_within(np.square(clipped - local_mean), inside)),
    }


@dataclass(frozen=True)
class AttributeTest:
    """One attribute in two sets.

    ks: largest gap between the cumulative distributions, 0 to 1; wasserstein: mean shift in the
    attribute's own unit; p_value: of the KS test; p_holm: corrected for the number of attributes.
    real_measured, synthetic_measured: patches in which a lesion stands out at all.
    """

    name: str
    title: str
    real_median: float
    synthetic_median: float
    real_measured: int
    synthetic_measured: int
    ks: float
    wasserstein: float
    p_value: float
    p_holm: float


def compare_attributes(
    real: dict[str, Floats],
    synthetic: dict[str, Floats],
    patients: Patients,
    rng: np.random.Generator,
    draws: int = 21,
) -> list[AttributeTest]:
    """Two-sample Kolmogorov-Smirnov test and Wasserstein-1 distance for each attribute of both sets.

    The KS statistic uses every patch. Its p-value takes one random real patch per patient, since
    patches of a patient are not independent, and is the median over `draws` such choices (Hoffman
    et al. 2001, within-cluster resampling). Holm's correction (1979) runs over the attributes.
    An attribute measured in fewer than 2 patches of a set is left out.
    """
    measured = []
    for name in real:
        r, s = np.isfinite(real[name]), np.isfinite(synthetic[name])
        if min(r.sum(), s.sum()) >= 2:
            some = None if patients is None else np.asarray(patients)[r]
            measured.append((name, real[name][r], synthetic[name][s], some))
    p_values = [_ks_p_value(r, s, some, rng, draws) for _, r, s, some in measured]
    return [
        AttributeTest(
            name=name,
            title=ATTRIBUTES.get(name, name),
            real_median=float(np.median(r)),
            synthetic_median=float(np.median(s)),
            real_measured=len(r),
            synthetic_measured=len(s),
            ks=float(stats.ks_2samp(r, s, method="asymp").statistic),
            wasserstein=float(stats.wasserstein_distance(r, s)),
            p_value=p,
            p_holm=corrected,
        )
        for (name, r, s, _), p, corrected in zip(measured, p_values, holm(p_values), strict=True)
    ]


@dataclass(frozen=True)
class ClassTest:
    """How often each lesion class occurs, (class, real patches, synthetic patches), and whether the shares differ.

    chi_square: over every patch; p_value: of one patch per patient, p_holm: corrected together with
    the attributes. Both are None where `reason` says why there is no test.
    """

    counts: tuple[tuple[str, int, int], ...]
    chi_square: float | None
    degrees: int
    p_value: float | None
    p_holm: float | None
    reason: str = ""


def compare_classes(
    real: NDArray[np.str_],
    synthetic: NDArray[np.str_],
    patients: Patients,
    rng: np.random.Generator,
    draws: int = 21,
) -> ClassTest:
    """Pearson's chi-square test that real and synthetic patches, by their labels, have the classes equally often.

    As in `compare_attributes`, the p-value takes one random real patch per patient and is the median
    over `draws` such choices. There is none where an expected count is below 1, or more than a fifth
    of them are below 5 (Cochran 1954), or where the sets share no class: then the generator was not
    told them. A difference need not be a fault: whoever draws samples by class chooses their shares.
    """
    classes = np.unique(np.concatenate([real, synthetic]))
    table = _class_table(real, synthetic, classes)
    counts = tuple(zip(classes.tolist(), *table.tolist(), strict=True))
    reason = "no class is in both sets" if not table.min(0).any() else "there is one class" if len(classes) == 1 else ""
    if reason:
        return ClassTest(counts, None, len(classes) - 1, None, None, reason)
    p_values = []
    for _ in range(draws):
        found = stats.chi2_contingency(_class_table(real[_one_per_patient(len(real), patients, rng)], synthetic, classes), correction=False)
        expected = found.expected_freq
        if expected.min() >= 1 and (expected < 5).mean() <= 0.2:
            p_values.append(found.pvalue)
    chi_square = float(stats.chi2_contingency(table, correction=False).statistic)
    if len(p_values) < draws:
        return ClassTest(counts, chi_square, len(classes) - 1, None, None, "too few patients or patches of a class for a chi-square test")
    p = float(np.median(p_values))
    return ClassTest(counts, chi_square, len(classes) - 1, p, p)


def corrected_together(attributes: Sequence[AttributeTest], classes: ClassTest) -> tuple[tuple[AttributeTest, ...], ClassTest]:
    """The same tests, with Holm's correction over all of them."""
    if classes.p_value is None:
        return tuple(attributes), classes
    corrected = holm([*(one.p_value for one in attributes), classes.p_value])
    attributes = tuple(replace(one, p_holm=p) for one, p in zip(attributes, corrected[:-1], strict=True))
    return attributes, replace(classes, p_holm=corrected[-1])


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down method, in the order given."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, stepped)
    return corrected.tolist()


def slopes(values: Floats, spacing_mm: Sequence[float]) -> list[Floats]:
    """The gradient of each patch per mm, by central differences: along each axis an array of the shape of values."""
    return [np.gradient(values, mm, axis=axis) for axis, mm in zip(range(1, values.ndim), spacing_mm, strict=True)]


def gradient_magnitude(values: Floats, spacing_mm: Sequence[float]) -> Floats:
    """|grad| of each patch per mm, by central differences; the shape of values."""
    return np.sqrt(reduce(np.add, map(np.square, slopes(values, spacing_mm))))


def distance_to_centre_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> Floats:
    """How far each voxel of a patch lies from its middle, in mm; an array of that shape."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    return np.sqrt(reduce(np.add, map(np.square, np.meshgrid(*axes, indexing="ij"))))


def mean_within(values: NDArray, mask: Mask) -> Floats:
    """Mean over each patch's mask, (N,); NaN where the mask is empty."""
    inside = mask.reshape(len(mask), -1)
    total = np.einsum("nv,nv->n", values.reshape(len(mask), -1), inside, dtype=np.float64)
    count = inside.sum(1)
    return np.divide(total, count, out=np.full(len(mask), np.nan), where=count > 0)


def _ks_p_value(real: Floats, synthetic: Floats, patients: Patients, rng: np.random.Generator, draws: int) -> float:
    if patients is None:
        return float(stats.ks_2samp(real, synthetic, method="asymp").pvalue)
    values = []
    for _ in range(draws):
        values.append(stats.ks_2samp(real[_one_per_patient(len(real), patients, rng)], synthetic, method="asymp").pvalue)
    return float(np.median(values))


def _one_per_patient(count: int, patients: Patients, rng: np.random.Generator) -> NDArray[np.intp]:
    """Rows of one random patch of each patient; all rows when each stands alone."""
    order = rng.permutation(count)
    return order if patients is None else order[np.unique(np.asarray(patients)[order], return_index=True)[1]]


def _class_table(real: NDArray[np.str_], synthetic: NDArray[np.str_], classes: NDArray[np.str_]) -> NDArray[np.int_]:
    """Patches of each class, (2, classes): real, synthetic."""
    return (np.stack([(labels[:, None] == classes).sum(0) for labels in (real, synthetic)])).astype(int)


def _diameter_of(size: Floats, dimensions: int) -> Floats:
    return 2 * np.sqrt(size / np.pi) if dimensions == 2 else 2 * np.cbrt(3 * size / (4 * np.pi))


def _roundness(mask: Mask, spacing_mm: Sequence[float]) -> Floats:
    """Mean squared distance to the centroid that a ball of this size has, over the component's own."""
    dimensions = mask.ndim - 1
    grid = np.meshgrid(*(np.arange(n) * mm for n, mm in zip(mask.shape[1:], spacing_mm, strict=True)), indexing="ij")
    own = np.zeros(len(mask))
    for axis, mm in zip(grid, spacing_mm, strict=True):
        where = np.broadcast_to(axis, mask.shape)
        own += mean_within(np.square(where), mask) - np.square(mean_within(where, mask)) + mm**2 / 12
    size = mask.reshape(len(mask), -1).sum(1) * float(np.prod(spacing_mm))
    ball = np.square(_diameter_of(size, dimensions) / 2) * dimensions / (dimensions + 2)
    return np.minimum(ball / own, 1)


def _neighbours_within_a_patch(dimensions: int) -> Mask:
    """Voxels that share a face, in a stack of patches: never across the patch axis 0."""
    structure = np.zeros((3,) * dimensions, bool)
    structure[1] = ndimage.generate_binary_structure(dimensions - 1, 1)
    return structure


def _per_patch(values: NDArray, hu: NDArray) -> NDArray:
    return values.reshape(-1, *[1] * (hu.ndim - 1))


def _check(hu: NDArray, spacing_mm: Sequence[float]) -> None:
    if hu.ndim not in (3, 4) or len(spacing_mm) != hu.ndim - 1:
        raise ValueError(
            f"patches are (N, H, W) or (N, D, H, W) with a spacing per axis, got shape {hu.shape} and {len(spacing_mm)} spacings"
        )
