"""Does the generator repeat its training patients? Copies, distances and an attack, with a control beside each figure.

Patches are HU, (N, H, W) or (N, D, H, W). `neighbours.py` has the distance, `copies.py` finds copies one by one,
`membership.py` judges the set. A real patch that was never trained on is the measure of what is suspicious.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluate.copies import Copy, control_of, exact_repeats, search_copies
from evaluate.intervals import Interval, Patients, halves_of_patients
from evaluate.membership import DataCopying, Membership, data_copying, membership_inference
from evaluate.neighbours import closeness, closeness_to, distance_to_another_patient, nearest_of_another_patient, neighbours
from evaluate.registration import Searched

Floats = NDArray[np.float64]

TURNED_DOWN = 0.001  # chance: of so few samples that copy nobody is lost


@dataclass(frozen=True)
class Share:
    """A share of patches in [0, 1], the 95 % range it has over random draws of patients."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Memorisation:
    """The memorisation audit of N synthetic patches.

    duplicates: held-out patches that training patients have too; to be read first, for they void every other figure here.
    copies: synthetic patches (Copy.row) that repeat a training patch (Copy.real), see copies.search_copies;
    control_patients: how many real patients say what chance brings. repeats: groups of equal synthetic patches.
    nearest_training, nearest_held_out: row of the nearest real patch, (N,), and its distance in HU.
    closeness: distance to the nearest training patch over that patch's distance to the nearest of
    another training patient, (N,); below 1 the synthetic patch is not authentic (Alaa et al. 2022).
    authenticity: share with closeness of 1 or more; authenticity_held_out: the same share for real
    held-out patches, which copy nobody. Then the share of synthetic patches nearer to training
    than to held-out patients, and the control: nearer to one half of the held-out than to the other.
    control_nearest, control_closeness: the same as nearest_training and closeness, of the M held-out patches, (M,).
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
    duplicates: tuple[Copy, ...]
    copies: tuple[Copy, ...]
    control_patients: int
    repeats: tuple[tuple[int, ...], ...]
    data_copying: DataCopying | None
    control_nearest: NDArray[np.int64] | None
    control_closeness: Floats | None

    def most_suspicious(self, count: int) -> NDArray[np.int64]:
        """Rows of the synthetic patches to look at: copies, nearest first, then those with the least closeness."""
        found = [one.row for one in self.copies]
        others = np.argsort(self.closeness, kind="stable")
        return np.concatenate([np.array(found, np.int64), others[~np.isin(others, found)]])[:count]

    def least_close_control(self, count: int) -> NDArray[np.int64]:
        """Rows of the held-out patches with the least closeness, least first: how near patches come that copy nobody."""
        return np.argsort(self.control_closeness, kind="stable")[:count] if self.control_closeness is not None else np.zeros(0, np.int64)


def audit_memorisation(
    synthetic: NDArray,
    training: NDArray,
    training_patients: Patients,
    held_out: NDArray | None,
    held_out_patients: Patients,
    window: tuple[float, float],
    rng: np.random.Generator,
    draws: int = 200,
    spacing_mm: Sequence[float] | None = None,
) -> Memorisation:
    """Compares each synthetic patch with every training and held-out patch; see Memorisation.

    spacing_mm: of the patches, where it is known: a copy may be turned where its spacing is the same along both axes.
    Raises ValueError if patches differ in shape or there are fewer than 2 training patches.
    """
    if len(training) < 2:
        raise ValueError(f"memorisation is judged against 2 training patches or more, got {len(training)}")
    to_training = neighbours(synthetic, training, window)
    between_training = neighbours(training, training, window).hu
    spacing_hu = nearest_of_another_patient(between_training, training_patients)
    close = closeness(to_training.nearest_hu, spacing_hu[to_training.nearest])
    searched = search_copies(synthetic, training, training_patients, held_out, held_out_patients, window, spacing_mm)
    found = Memorisation(
        nearest_training=to_training.nearest,
        nearest_training_hu=to_training.nearest_hu.astype(np.float64),
        nearest_held_out=None,
        nearest_held_out_hu=None,
        closeness=close,
        authenticity=float((close >= 1).mean()),
        authenticity_held_out=None,
        nearer_to_training=None,
        nearer_to_half=None,
        compared_patches=None,
        membership=None,
        duplicates=searched.duplicates,
        copies=searched.copies,
        control_patients=len(searched.control.misfits),
        repeats=exact_repeats(synthetic),
        data_copying=None,
        control_nearest=None,
        control_closeness=None,
    )
    # With one held-out patient there are no two halves to control with.
    if held_out is None or len(np.unique(np.asarray(held_out_patients))) < 2:
        return found
    to_held_out = neighbours(synthetic, held_out, window)
    real = neighbours(held_out, training, window)
    control = closeness(real.nearest_hu, spacing_hu[real.nearest])
    attack, null, compared = _nearer_shares(to_training.hu, to_held_out.hu, training_patients, held_out_patients, rng, draws)
    return replace(
        found,
        nearest_held_out=to_held_out.nearest,
        nearest_held_out_hu=to_held_out.nearest_hu.astype(np.float64),
        authenticity_held_out=float((control >= 1).mean()),
        nearer_to_training=attack,
        nearer_to_half=null,
        compared_patches=compared,
        membership=membership_inference(to_training.hu.min(0), training_patients, to_held_out.hu.min(0), held_out_patients, rng, draws),
        data_copying=data_copying(
            to_training.nearest_hu, to_training.nearest, real.nearest_hu, real.nearest, held_out_patients, between_training
        ),
        control_nearest=real.nearest,
        control_closeness=control,
    )


def near_copy_test(
    training: NDArray, patients: Patients, held_out: NDArray, window: tuple[float, float], spacing_mm: Sequence[float] | None = None
) -> Callable[[NDArray], tuple[Floats, NDArray[np.bool_]]]:
    """A test of patches: their closeness to the training patches (N,), and whether each copies none of them (N,).

    It must be no nearer than 99 % of held-out patches are (where none is held out: than half of what the training patch is from another
    patient's), and not show what a training patch shows when moved, turned or noisy, as nobody does by chance once in a thousand times.
    """
    spacing_hu = distance_to_another_patient(training, patients, window)
    least = float(np.quantile(closeness_to(held_out, training, spacing_hu, window), 0.01)) if len(held_out) else 0.5
    searched = Searched(training, window, spacing_mm)
    control = control_of(searched, training, patients, searched.nearest(held_out) if len(held_out) else None, None)

    def test(patches: NDArray) -> tuple[Floats, NDArray[np.bool_]]:
        found = closeness_to(patches, training, spacing_hu, window)
        return found, (found >= least) & (control.chance(searched.nearest(patches).misfit) > TURNED_DOWN)

    return test


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
