"""Copies of training patches one by one: moved, mirrored, turned, noisy, or with another contrast; and what chance would do.

Patches are HU, (N, H, W) or (N, D, H, W), seen through one window, and laid over each other as `registration.py` does.
How near a copy is, is told by its misfit: the share of detail (root mean square, 0 to 1) that the best-laid real
patch does not explain. What misfit is suspicious, real patients tell, whom nobody copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from evaluate.intervals import Patients
from evaluate.neighbours import within_window
from evaluate.registration import Floats, Matches, Searched, Turn, Window, overlap

FALSE_ALARMS = 0.05  # expected share among the suspected copies
TAIL = 0.25  # share of the control patients whose misfits tell how fast the chance falls
SPOILT = 0.1  # share of these that may be duplicates
LEAST_CONTROL = 20  # patients: a tail of fewer than 5 tells nothing
LIKELY_EXACT = 0.001  # misfit: more than rounding; looking at each patch would take time


@dataclass(frozen=True)
class Copy:
    """A patch that shows what a real one shows, nearer than chance brings it.

    row, real: rows of the two sets. turn, shift: how to lay it over, see Matches. Where they overlap it is gain * real + offset_hu
    but for difference_hu (root mean square); exact: equal there voxel for voxel. chance: that a patch nobody
    copied is as near. control_share: share of the control patients who are as near.
    """

    row: int
    real: int
    turn: Turn
    shift: tuple[int, ...]
    misfit: float
    gain: float
    offset_hu: float
    difference_hu: float
    exact: bool
    chance: float
    control_share: float

    @property
    def how(self) -> str:
        """What was done to the real patch, in words."""
        exchanged = list(self.turn.axes) != sorted(self.turn.axes)
        turned = "turned" if exchanged else "mirrored" if self.turn.mirrored else ""
        moved = f"moved by {' and '.join(str(abs(n)) for n in self.shift)} voxels" if any(self.shift) else ""
        contrast = f" at {self.gain:.2f} of its contrast" if abs(self.gain - 1) > 0.1 else ""
        changed = "" if self.exact else f"{self.difference_hu:.0f} HU apart{contrast}"
        return ", ".join(word for word in (turned, moved, changed) if word) or "voxel for voxel"


@dataclass(frozen=True)
class Control:
    """The least misfit of each of N real patients to patches of other patients, ascending (N,): nobody copied these.

    exponent, at: below the misfit `at` the chance falls as misfit ** exponent, as distances to a nearest neighbour do.
    """

    misfits: Floats
    at: float
    exponent: float

    def share(self, misfit: Floats) -> Floats:
        """Share of the control patients who are at least as near, (N,)."""
        return np.searchsorted(self.misfits, misfit, side="right") / max(len(self.misfits), 1)

    def chance(self, misfit: Floats) -> Floats:
        """At most the chance that a patch nobody copied is as near, (N,).

        Among N patients a rank alone shows no chance below 1 / (N + 1), so below `at` it is continued: an
        extrapolation. It errs to the careful side, for a patient counts once, with the nearest of their patches, and the
        exponent is the lower end of its 95 % interval; with few patients almost nothing then falls below 1 / (N + 1).
        """
        ranked = (1 + np.searchsorted(self.misfits, misfit, side="right")) / (len(self.misfits) + 1)
        if not self.exponent:
            return ranked
        tail = (1 + np.searchsorted(self.misfits, self.at, side="right")) / (len(self.misfits) + 1)
        return np.where(misfit < self.at, tail * (np.minimum(misfit, self.at) / self.at) ** self.exponent, ranked)


@dataclass(frozen=True)
class CopySearch:
    """What a search of synthetic and held-out patches among the training patches found, nearest first.

    duplicates: held-out patches that training patients have too; with any, no figure of held-out patients can be
    trusted. Then copies among the synthetic patches, and the control. held_out: the best-laid training patch of each held-out one.
    """

    duplicates: tuple[Copy, ...]
    copies: tuple[Copy, ...]
    control: Control
    synthetic: Matches
    held_out: Matches | None


def search_copies(
    synthetic: NDArray,
    training: NDArray,
    training_patients: Patients,
    held_out: NDArray | None,
    held_out_patients: Patients,
    window: Window,
    spacing_mm: Sequence[float] | None = None,
) -> CopySearch:
    """Searches each synthetic and held-out patch among the training patches; see CopySearch.

    The control is every real patient, held-out or training, searched in the same way among training patches of other patients.
    Of the copies reported at most FALSE_ALARMS are expected to be chance (Benjamini & Hochberg 1995).
    """
    searched = Searched(training, window, spacing_mm)
    real = None if held_out is None or not len(held_out) else searched.nearest(held_out)
    control = control_of(searched, training, training_patients, real, held_out_patients)
    found = searched.nearest(synthetic)
    return CopySearch(
        duplicates=() if held_out is None or real is None else suspected(searched, held_out, real, control),
        copies=suspected(searched, synthetic, found, control),
        control=control,
        synthetic=found,
        held_out=real,
    )


def duplicates_between(
    held_out: NDArray, training: NDArray, training_patients: Patients, window: Window, spacing_mm: Sequence[float] | None = None
) -> tuple[Copy, ...]:
    """Held-out patches (Copy.row) that training patients have too (Copy.real), nearest first.

    The same lesion under two patients, exact or moved, turned, noisy. The control is training patients against each other.
    """
    searched = Searched(training, window, spacing_mm)
    return suspected(searched, held_out, searched.nearest(held_out), control_of(searched, training, training_patients, None, None))


def exact_repeats(patches: NDArray) -> tuple[tuple[int, ...], ...]:
    """Rows of patches that are equal voxel for voxel, group by group: a generator that draws the same again has collapsed."""
    found: dict[bytes, list[int]] = {}
    for row, patch in enumerate(patches):
        found.setdefault(patch.tobytes(), []).append(row)
    return tuple(tuple(rows) for rows in found.values() if len(rows) > 1)


def control_of(
    searched: Searched, training: NDArray, training_patients: Patients, held_out: Matches | None, held_out_patients: Patients
) -> Control:
    """Of each training patient the least misfit to another's patches, and of each held-out patient the least of all."""
    ids = np.arange(len(training)) if training_patients is None else np.asarray(training_patients)
    least = _least_of_each(ids, searched.nearest(training, ids, ids))
    if held_out is not None:
        others = np.arange(len(held_out.real)) if held_out_patients is None else np.asarray(held_out_patients)
        least = np.concatenate([least, _least_of_each(others, held_out)])
    return fitted_control(least)


def fitted_control(misfits: Floats) -> Control:
    """A Control of these misfits, one a patient, with its exponent fitted to the nearest quarter of them.

    log(at / misfit) is exponential there (Hill 1975); its rate by maximum likelihood, the largest tenth only known to be large
    (type II censoring), since a duplicate among real patients must not hide copies. With fewer than LEAST_CONTROL patients: none, 0.
    """
    misfits = np.sort(misfits)
    count = int(np.ceil(len(misfits) * TAIL))
    if len(misfits) < LEAST_CONTROL or not misfits[count - 1]:
        return Control(misfits, 0.0, 0.0)
    at = float(misfits[count - 1])
    depths = np.sort(np.log(at / np.maximum(misfits[: count - 1], 1e-9)))
    known = len(depths) - int(np.ceil(len(depths) * SPOILT))
    total = depths[:known].sum() + (len(depths) - known) * depths[known - 1]
    return Control(misfits, at, float(chi2.ppf(0.05, 2 * known) / (2 * total)) if total else 0.0)


def suspected(searched: Searched, patches: NDArray, matches: Matches, control: Control) -> tuple[Copy, ...]:
    """The matches that chance does not explain, nearest first: by Benjamini & Hochberg, and all that are exact."""
    chance = np.where(matches.real >= 0, control.chance(matches.misfit), 1.0)
    ranked = np.sort(chance)
    passing = np.flatnonzero(ranked <= FALSE_ALARMS * np.arange(1, len(ranked) + 1) / max(len(ranked), 1))
    bar = ranked[passing[-1]] if len(passing) else 0.0
    rows = np.flatnonzero((matches.real >= 0) & ((chance <= bar) | (matches.misfit < LIKELY_EXACT)))
    copies = [_copy(searched, patches, matches, int(row), control) for row in rows]
    return tuple(sorted((one for one in copies if one.exact or one.chance <= bar), key=lambda one: (one.misfit, one.row)))


def _copy(searched: Searched, patches: NDArray, matches: Matches, row: int, control: Control) -> Copy:
    """All that is to be said of one match, as a Copy."""
    real, turn = int(matches.real[row]), searched.turns[matches.turn[row]]
    shift = tuple(int(n) for n in matches.shift[row])
    here, there = overlap(searched.shape, shift)
    a = turn.of(within_window(patches[[row]], searched.window))[0][here].astype(np.float64).ravel()
    b = searched.hu[real][there].astype(np.float64).ravel()
    exact = bool((a == b).all())
    gain, offset, difference = (1.0, 0.0, 0.0) if exact else _contrast(a, b)
    offset += (1 - gain) * sum(searched.window) / 2  # a and b are HU from the window's middle
    misfit = matches.misfit[[row]]
    return Copy(
        row, real, turn, shift, float(misfit[0]), gain, offset, difference, exact,
        float(control.chance(misfit)[0]), float(control.share(misfit)[0]),
    )  # fmt: skip


def _contrast(a: Floats, b: Floats) -> tuple[float, float, float]:
    """gain, offset of the straight line from b to a, and the root mean square difference that it leaves."""
    spread = b.var()
    gain = float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else 0.0
    offset = float(a.mean() - gain * b.mean())
    return gain, offset, float(np.sqrt(np.square(a - gain * b - offset).mean()))


def _least_of_each(ids: NDArray, matches: Matches) -> Floats:
    known = matches.real >= 0
    _, number = np.unique(ids[known], return_inverse=True)
    least = np.ones(int(number.max()) + 1 if len(number) else 0)
    np.minimum.at(least, number, matches.misfit[known])
    return least
