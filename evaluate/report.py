"""The report of an evaluation, as frozen records, and its JSON.

A distance that does not say what it was measured with, on how many patches, and what real patients
differ by, cannot be constructed. Records hold pseudonyms only: no paths, no patient data.
"""

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np

from evaluate.attributes import AttributeTest
from evaluate.features import INCEPTION
from evaluate.intervals import Extrapolation, Floor, Interval
from evaluate.memorisation import Membership, Share
from evaluate.scores import Difference, MetricSummary

FORMAT = {"format": "lesiongan evaluation", "version": 1}

Metric = Literal["frechet", "kernel", "sliced_wasserstein", "precision", "recall", "density", "coverage"]
Reference = Literal["held-out", "training"]

TITLES: dict[str, str] = {
    "frechet": "Fréchet distance",
    "kernel": "Kernel distance",
    "sliced_wasserstein": "Sliced Wasserstein distance",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
}


@dataclass(frozen=True)
class Measure:
    """What features a distance was measured with. weights_sha256 is None only where there are no weights."""

    extractor: str
    weights_sha256: str | None
    window: tuple[float, float]
    resize: str
    dimensions: int
    standardised: bool

    def __post_init__(self) -> None:
        if not self.extractor or not self.resize or self.dimensions < 1:
            raise ValueError("a distance must name its feature extractor, its resize and how many features it has")
        if self.extractor == INCEPTION and not self.weights_sha256:
            raise ValueError("Inception features without the SHA-256 of their weights cannot be compared with anyone's")
        if not self.window[0] < self.window[1]:
            raise ValueError(f"a window runs from low to high HU, got {self.window}")


@dataclass(frozen=True)
class Distance:
    """One number between a real and a synthetic set, with all that is needed to read it.

    interval, floor: or the reason, in words, why there is none. label: the class compared, None
    for all lesions together. extrapolated: to infinite N, for Fréchet distances.
    """

    metric: Metric
    measure: Measure
    reference: Reference
    real_samples: int
    real_patients: int
    synthetic_samples: int
    value: float
    interval: Interval | str
    floor: Floor | str
    extrapolated: Extrapolation | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if min(self.real_samples, self.synthetic_samples) < 2 or self.real_patients < 1:
            raise ValueError(
                f"a distance needs both sample counts, 2 or more, and its patients; got {self.real_samples} real, "
                f"{self.synthetic_samples} synthetic, {self.real_patients} patients"
            )
        if not math.isfinite(self.value):
            raise ValueError(f"a distance is a finite number, got {self.value}")
        for name, kind in (("floor", Floor), ("interval", Interval)):
            given = getattr(self, name)
            if not isinstance(given, kind) and not (isinstance(given, str) and given):
                raise ValueError(f"a distance carries its {name}, or the reason why there is none; got {given!r}")

    @property
    def title(self) -> str:
        """Its name: only Inception features make a FID or KID."""
        if self.measure.extractor == INCEPTION and self.metric in ("frechet", "kernel"):
            return "Fréchet inception distance (FID)" if self.metric == "frechet" else "Kernel inception distance (KID)"
        return f"{TITLES[self.metric]} ({self.measure.extractor})"


@dataclass(frozen=True)
class SetSize:
    """Lesion patches of a set and the patients they come from."""

    patches: int
    patients: int


@dataclass(frozen=True)
class Compared:
    """The sets that were compared. Hashes are those of the patch folders' contents."""

    training: SetSize
    held_out: SetSize | None
    held_out_from: str
    synthetic: SetSize
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    window: tuple[float, float]
    unit: str
    real_sha256: str
    synthetic_sha256: str
    seed: int

    @property
    def reference(self) -> Reference:
        """What quality is judged against: held-out patients wherever there are any."""
        return "held-out" if self.held_out else "training"


@dataclass(frozen=True)
class ClassRow:
    """A lesion class in both sets. distances is empty where `reason` says why."""

    label: str
    real: SetSize
    synthetic_patches: int
    distances: tuple[Distance, ...]
    reason: str = ""


@dataclass(frozen=True)
class Suspect:
    """A synthetic patch and its nearest real ones, by id; distances in HU, 0 for a copy."""

    synthetic: str
    training: str
    training_hu: float
    held_out: str | None
    held_out_hu: float | None
    closeness: float


@dataclass(frozen=True)
class MemorisationResult:
    """The figures of `memorisation.Memorisation`, which explains them, and the pairs to look at."""

    authenticity: float
    authenticity_held_out: float | None
    exact_copies: int
    nearer_to_training: Share | None
    nearer_to_half: Share | None
    compared_patches: int | None
    membership: Membership | None
    suspects: tuple[Suspect, ...]


@dataclass(frozen=True)
class DetectorResult:
    """Detector arms on held-out patients. differences are to `baseline`; sensitivity is per class."""

    arms: dict[str, dict[str, MetricSummary]]
    baseline: str
    differences: dict[str, dict[str, Difference]]
    sensitivity_by_class: dict[str, dict[str, float]]
    seeds: int
    steps: int
    synthetic_share: float
    threshold_from: str
    test_patients: int
    test_lesions: int
    test_lesion_free: int


@dataclass(frozen=True)
class Report:
    """Everything an evaluation found. `detector` and `memorisation` are results, or why there is none."""

    compared: Compared
    distances: tuple[Distance, ...]
    classes: tuple[ClassRow, ...]
    attributes: tuple[AttributeTest, ...]
    memorisation: MemorisationResult | str
    detector: DetectorResult | str
    kernel_over_subsets: tuple[float, float] | None  # mean and standard deviation, Inception only
    notes: tuple[str, ...]


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON types; NaN becomes null. Conventional keys stand at the top, for Inception only."""
    return {**FORMAT, **conventional_keys(report), **_plain(report)}


def conventional_keys(report: Report) -> dict[str, float]:
    """torch-fidelity's keys and those of prdc, when Inception features were used; else nothing."""
    found = {d.metric: d.value for d in report.distances if d.measure.extractor == INCEPTION and d.reference == report.compared.reference}
    if not found:
        return {}
    keys = {"frechet_inception_distance": found["frechet"]}
    if report.kernel_over_subsets:
        mean, sd = report.kernel_over_subsets
        keys |= {"kernel_inception_distance_mean": mean, "kernel_inception_distance_std": sd}
    return keys | {name: found[name] for name in ("precision", "recall", "density", "coverage") if name in found}


def _plain(value: Any) -> Any:
    if isinstance(value, Distance):
        own = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"title": value.title, **own}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
