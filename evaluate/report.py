"""The report of an evaluation, as frozen records.

A distance that does not say what it was measured with, on how many patches, and what real patients
differ by, cannot be constructed. Records hold pseudonyms only: no paths, no patient data.
"""

import math
from dataclasses import dataclass
from typing import Literal

from evaluate.artefacts import Artefacts
from evaluate.attributes import AttributeTest, ClassTest
from evaluate.features import INCEPTION
from evaluate.intervals import Extrapolation, Floor, Interval
from evaluate.membership import DataCopying, Membership
from evaluate.memorisation import Share
from evaluate.scores import Difference, MetricSummary

Metric = Literal["frechet", "kernel", "sliced_wasserstein", "energy", "gaussian_mmd", "precision", "recall", "density", "coverage"]
Reference = Literal["held-out", "training"]

TITLES: dict[str, str] = {
    "frechet": "Fréchet distance",
    "kernel": "Kernel distance",
    "sliced_wasserstein": "Sliced Wasserstein distance",
    "energy": "Energy distance",
    "gaussian_mmd": "Squared MMD, Gaussian kernel",
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
class ConfusedClass:
    """A class whose synthetic patches are nearer to real patches of another: Fréchet distances to its own and to that one."""

    label: str
    nearest: str
    own: float
    other: float


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
class Control:
    """A held-out patch and its nearest training patch, by id: how near patches come that copy nobody."""

    held_out: str
    training: str
    closeness: float


@dataclass(frozen=True)
class Copied:
    """A patch that shows what another shows, by their ids. how: in words, what was done to it. misfit: see `copies.py`; 0 for the same."""

    patch: str
    real: str
    exact: bool
    misfit: float
    chance: float
    how: str


@dataclass(frozen=True)
class MemorisationResult:
    """The figures of `memorisation.Memorisation`, which explains them, and the pairs to look at.

    duplicates: held-out patches among the training ones; copies: synthetic patches among the training ones; held_out_copies:
    synthetic patches among the held-out ones, which a generator cannot know; all nearest first. repeats: synthetic patches that
    are equal to an earlier one. controls: the suspects' counterpart among held-out patches.
    """

    duplicates: tuple[Copied, ...]
    copies: tuple[Copied, ...]
    held_out_copies: tuple[Copied, ...]
    repeats: int
    control_patients: int
    authenticity: float
    authenticity_held_out: float | None
    nearer_to_training: Share | None
    nearer_to_half: Share | None
    compared_patches: int | None
    membership: Membership | None
    data_copying: DataCopying | None
    suspects: tuple[Suspect, ...]
    controls: tuple[Control, ...]


@dataclass(frozen=True)
class DetectorClass:
    """A lesion class among the test patients. arm -> sensitivity, and arm -> its difference to the arm it is compared with."""

    patients: int
    lesions: int
    sensitivity: dict[str, float]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class DetectorResult:
    """Detector arms on held-out patients.

    compared_with: arm -> the arm that `differences` are to. shares: arm -> share of the lesions in a batch that are synthetic.
    headline: the arm that answers whether synthetic lesions help, None without such an arm; headline_chosen_by: how, in words.
    classes: fewest test patients first. notes: sentences that a reader needs.
    """

    arms: dict[str, dict[str, MetricSummary]]
    compared_with: dict[str, str]
    differences: dict[str, dict[str, Difference]]
    classes: dict[str, DetectorClass]
    shares: dict[str, float]
    headline: str | None
    headline_chosen_by: str
    validation_auroc: dict[str, float]
    network: str
    seeds: int
    steps: int
    balance: str
    threshold: str
    threshold_from: str
    test_patients: int
    test_lesions: int
    test_lesion_free: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything an evaluation found. artefacts, memorisation, detector: results, or why there is none.

    privacy: what was promised of the samples, in the words of who drew them, "" where nothing is known; guaranteed: whether it is a guarantee.
    kernel_over_subsets: mean and standard deviation of KID, Inception only.
    """

    compared: Compared
    distances: tuple[Distance, ...]
    classes: tuple[ClassRow, ...]
    confused: tuple[ConfusedClass, ...]
    attributes: tuple[AttributeTest, ...]
    class_shares: ClassTest
    artefacts: Artefacts | str
    memorisation: MemorisationResult | str
    detector: DetectorResult | str
    privacy: str
    guaranteed: bool
    kernel_over_subsets: tuple[float, float] | None
    notes: tuple[str, ...]
