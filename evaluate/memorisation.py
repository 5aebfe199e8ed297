"""Does the generator repeat its training patients? Nearest neighbours, with a control beside each figure.

Patches are HU, (N, H, W) or (N, D, H, W). Distance is the root mean square difference in HU within
one window, at the best of all mirrorings of the synthetic patch: 0 is a copy, and mirroring a copy
does not hide it. A real patch that was never trained on is the measure of what is suspicious.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from evaluate.intervals import Interval, Patients, halves_of_patients
from evaluate.scores import area_under_roc

Floats = NDArray[np.float64]
CHUNK = 512  # synthetic patches compared at a time
CANDIDATES = 8  # for the nearest: more than rounding could ever exchange


@dataclass(frozen=True)
class Neighbours:
    """Distances in HU from synthetic (or other) patches to real ones.

    hu: (N1, N2), root mean square difference at the best mirroring.
    """

    hu: NDArray[np.float32]

    @property
    def nearest(self) -> NDArray[np.int64]:
        """Row of the nearest real patch of each patch, (N1,)."""
        return self.hu.argmin(1)

    @property
    def nearest_hu(self) -> NDArray[np.float32]:
        """Distance to the nearest real patch, (N1,)."""
        return self.hu.min(1)


@dataclass(frozen=True)
class Share:
    """A share of patches in [0, 1], the 95 % range it has over random draws of patients."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Membership:
    """How well closeness to the nearest synthetic patch tells training from held-out patches.

    auroc: 0.5 when it tells nothing. tpr_at_1_percent_fpr: share of training patches found while
    1 % of the held-out ones are wrongly accused; 0.01 when it tells nothing, NaN below 100 held-out.
    """

    auroc: float
    auroc_interval: Interval
    tpr_at_1_percent_fpr: float
    training: int
    held_out: int


@dataclass(frozen=True)
class Memorisation:
    """The memorisation audit of N synthetic patches.

    nearest_training, nearest_held_out: row of the nearest real patch, (N,), and its distance in HU.
    closeness: distance to the nearest training patch over that patch's distance to the nearest of
    another training patient, (N,); below 1 the synthetic patch is not authentic (Alaa et al. 2022).
    authenticity: share with closeness of 1 or more; authenticity_held_out: the same share for real
    held-out patches, which copy nobody. Then the share of synthetic patches nearer to training
    than to held-out patients, and the control: nearer to one half of the held-out than to the other.
    Parts that need held-out patients are None without them.
    """

    nearest_training: NDArray[np.int64]
    nearest_training_hu: Floats
    nearest_held_out: NDArray[np.int64] | None
    nearest_held_out_hu: Floats | None
    closeness: Floats
    authenticity: float
    authenticity_held_out: float | None
    nearer_to_training: Share | None
    nearer_to_half: Share | None
    compared_patches: int | None
    membership: Membership | None

    def most_suspicious(self, count: int) -> NDArray[np.int64]:
        """Rows of the synthetic patches with the least closeness, worst first."""
        return np.argsort(self.closeness, kind="stable")[:count]


def audit_memorisation(
    synthetic: NDArray,
    training: NDArray,
    training_patients: Patients,
    held_out: NDArray | None,
    held_out_patients: Patients,
    window: tuple[float, float],
    rng: np.random.Generator,
    draws: int = 200,
) -> Memorisation:
    """Compares each synthetic patch with every training and held-out patch; see Memorisation.

    Raises ValueError if patches differ in shape or there are fewer than 2 training patches.
    """
    if len(training) < 2:
        raise ValueError(f"memorisation is judged against 2 training patches or more, got {len(training)}")
    to_training = neighbours(synthetic, training, window)
    spacing_hu = distance_to_another_patient(training, training_patients, window)
    closeness = _ratio(to_training.nearest_hu, spacing_hu[to_training.nearest])
    # With one held-out patient there are no two halves to control with.
    if held_out is None or len(np.unique(np.asarray(held_out_patients))) < 2:
        return Memorisation(
            to_training.nearest, to_training.nearest_hu.astype(np.float64), None, None,
            closeness, float((closeness >= 1).mean()), None, None, None, None, None,
        )  # fmt: skip
    to_held_out = neighbours(synthetic, held_out, window)
    real_to_training = neighbours(held_out, training, window)
    control = _ratio(real_to_training.nearest_hu, spacing_hu[real_to_training.nearest])
    attack, null, compared = _nearer_shares(to_training.hu, to_held_out.hu, training_patients, held_out_patients, rng, draws)
    return Memorisation(
        nearest_training=to_training.nearest,
        nearest_training_hu=to_training.nearest_hu.astype(np.float64),
        nearest_held_out=to_held_out.nearest,
        nearest_held_out_hu=to_held_out.nearest_hu.astype(np.float64),
        closeness=closeness,
        authenticity=float((closeness >= 1).mean()),
        authenticity_held_out=float((control >= 1).mean()),
        nearer_to_training=attack,
        nearer_to_half=null,
        compared_patches=compared,
        membership=membership_inference(to_training.hu.min(0), training_patients, to_held_out.hu.min(0), held_out_patients, rng, draws),
    )


def neighbours(patches: NDArray, real: NDArray, window: tuple[float, float]) -> Neighbours:
    """Distance in HU of every patch to every real patch, at the best mirroring of the patch.

    Matrix products find the distances; the least of each row is then computed again by
    subtraction, so that a copy is at exactly 0. Raises ValueError if the shapes differ.
    """
    if patches.shape[1:] != real.shape[1:]:
        raise ValueError(f"patches of shape {patches.shape[1:]} have no distance to ones of {real.shape[1:]}")
    reference = _flat(real, window)
    squared = np.empty((len(patches), len(real)), np.float32)
    real_norm = np.square(reference).sum(1)
    for start in range(0, len(patches), CHUNK):
        best: NDArray | None = None
        for mirrored in _mirrorings(patches[start : start + CHUNK]):
            flat = _flat(mirrored, window)
            found = np.square(flat).sum(1)[:, None] + real_norm[None, :] - 2 * (flat @ reference.T)
            best = found if best is None else np.minimum(best, found)
        squared[start : start + CHUNK] = best
    nearest = squared.argmin(1)
    exact = [np.square(_flat(m, window) - reference[nearest]).sum(1) for m in _mirrorings(patches)]
    squared[np.arange(len(patches)), nearest] = np.min(exact, axis=0)
    return Neighbours(np.sqrt(np.maximum(squared, 0) / reference.shape[1]))


def distance_to_another_patient(real: NDArray, patients: Patients, window: tuple[float, float]) -> Floats:
    """Distance in HU from each real patch to the nearest one of another patient, (N,).

    Of another patient, since two patches of one lesion resemble each other more than any
    synthetic patch should resemble either. Where all are of one patient: to the nearest other patch.
    """
    between = neighbours(real, real, window).hu
    ids = np.arange(len(real)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    same = ids[:, None] == ids[None, :]
    if same.all():
        same = np.eye(len(real), dtype=bool)
    return np.where(same, np.inf, between).min(1).astype(np.float64)


def closeness_to(patches: NDArray, training: NDArray, spacing_hu: Floats, window: tuple[float, float]) -> Floats:
    """Of each patch to the training patches, (N,): the distance to the nearest over that one's spacing_hu (see Memorisation.closeness).

    spacing_hu: of each training patch to the nearest of another patient, as distance_to_another_patient has it.
    """
    found = neighbours(patches, training, window).hu
    # Products of other sizes round differently. Which of several that are nearly as near is the nearest is decided by subtraction.
    few = np.argpartition(found, min(CANDIDATES, found.shape[1]) - 1, axis=1)[:, :CANDIDATES]
    few.sort(axis=1)
    reference = _flat(training, window)
    exact = np.full(few.shape, np.inf, np.float32)
    for mirrored in _mirrorings(patches):
        flat = _flat(mirrored, window)
        for n, column in enumerate(few.T):
            exact[:, n] = np.minimum(exact[:, n], np.square(flat - reference[column]).mean(1))
    nearest = exact.argmin(1)
    rows = np.arange(len(patches))
    return _ratio(np.sqrt(exact[rows, nearest]), spacing_hu[few[rows, nearest]])


def near_copy_test(
    training: NDArray, patients: Patients, held_out: NDArray, window: tuple[float, float]
) -> Callable[[NDArray], tuple[Floats, NDArray[np.bool_]]]:
    """A test of patches: their closeness to the training patches (N,), and whether each is no nearer than 99 % of held-out patches are.

    Where no patch is held out: no nearer than half as near as the training patch's nearest of another patient.
    """
    spacing_hu = distance_to_another_patient(training, patients, window)
    least = float(np.quantile(closeness_to(held_out, training, spacing_hu, window), 0.01)) if len(held_out) else 0.5

    def test(patches: NDArray) -> tuple[Floats, NDArray[np.bool_]]:
        found = closeness_to(patches, training, spacing_hu, window)
        return found, found >= least

    return test


def membership_inference(
    training_hu: NDArray,
    training_patients: Patients,
    held_out_hu: NDArray,
    held_out_patients: Patients,
    rng: np.random.Generator,
    draws: int = 200,
) -> Membership:
    """The attack "the nearer a synthetic patch, the likelier it was trained on" (Chen et al. 2020, GAN-Leaks).

    training_hu, held_out_hu: distance of each real patch to its nearest synthetic patch.
    The interval is over draws of half of the patients of each set.
    """

    def auroc(members: NDArray, others: NDArray) -> float:
        truth = np.r_[np.ones(len(members), bool), np.zeros(len(others), bool)]
        return area_under_roc(-np.r_[members, others].astype(np.float64), truth)

    value = auroc(training_hu, held_out_hu)
    ids = training_patients
    if ids is not None and len(np.unique(np.asarray(ids))) < 2:
        ids = None  # one training patient: its patches are all there is to draw from
    values = np.array(
        [
            auroc(
                training_hu[halves_of_patients(ids, len(training_hu), rng)[0]],
                held_out_hu[halves_of_patients(held_out_patients, len(held_out_hu), rng)[0]],
            )
            for _ in range(draws)
        ]
    )
    low, high = value + np.quantile(values - np.median(values), [0.025, 0.975])
    return Membership(
        auroc=value,
        auroc_interval=Interval(max(0.0, float(low)), min(1.0, float(high))),
        # among fewer than 100 others, no threshold accuses 1 % of them
        tpr_at_1_percent_fpr=float((training_hu < np.quantile(held_out_hu, 0.01, method="lower")).mean())
        if len(held_out_hu) >= 100
        else np.nan,
        training=len(training_hu),
        held_out=len(held_out_hu),
    )


def _nearer_shares(
    to_training: NDArray,
    to_held_out: NDArray,
    training_patients: Patients,
    held_out_patients: Patients,
    rng: np.random.Generator,
    draws: int,
) -> tuple[Share, Share, int]:
    """Share nearer to training than to a held-out half, and nearer to one half than to the other.

    All three sets have one size in each draw: of two sets the larger has the nearer neighbours.
    Held-out halves have no patient in common; the training set is thinned patient by patient.
    """
    attack, null, sizes = [], [], []
    for _ in range(draws):
        a, b = halves_of_patients(held_out_patients, to_held_out.shape[1], rng)
        size = min(len(a), len(b), to_training.shape[1])
        a, b = rng.choice(a, size, replace=False), rng.choice(b, size, replace=False)
        trained = _patients_first(training_patients, to_training.shape[1], rng)[:size]
        half_b = to_held_out[:, b].min(1)
        attack.append(_share_below(to_training[:, trained].min(1), half_b))
        null.append(_share_below(to_held_out[:, a].min(1), half_b))
        sizes.append(size)
    return _as_share(attack), _as_share(null), int(np.median(sizes))


def _patients_first(patients: Patients, count: int, rng: np.random.Generator) -> NDArray:
    """All rows, patient after patient, patients in random order."""
    if patients is None:
        return rng.permutation(count)
    ids = np.unique(np.asarray(patients), return_inverse=True)[1]
    return np.argsort(rng.permutation(int(ids.max()) + 1)[ids], kind="stable")


def _share_below(x: NDArray, y: NDArray) -> float:
    return float((x < y).mean() + (x == y).mean() / 2)


def _as_share(values: list[float]) -> Share:
    low, high = np.quantile(values, [0.025, 0.975])
    return Share(float(np.mean(values)), Interval(float(low), float(high)))


def _ratio(to_training_hu: NDArray, spacing_hu: Floats) -> Floats:
    """to_training over spacing; 0 for an exact copy even where training patches repeat each other."""
    safe = np.where(spacing_hu > 0, spacing_hu, 1)
    return np.where(to_training_hu > 0, np.where(spacing_hu > 0, to_training_hu / safe, np.inf), 0.0)


def _mirrorings(patches: NDArray) -> Iterator[NDArray]:
    axes = range(1, patches.ndim)
    for flips in product([False, True], repeat=len(axes)):
        yield np.flip(patches, tuple(axis for axis, flip in zip(axes, flips, strict=True) if flip))


def _flat(hu: NDArray, window: tuple[float, float]) -> NDArray[np.float32]:
    """(N, voxels) HU within the window, from its middle: float32 keeps most digits around 0."""
    middle = (window[0] + window[1]) / 2
    return (np.clip(hu, *window) - np.float32(middle)).reshape(len(hu), -1).astype(np.float32)
