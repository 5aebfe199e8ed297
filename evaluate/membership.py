"""Can closeness tell who was trained on? An attack on each patient, and a test of the whole set.

Distances are HU to a nearest patch (`neighbours.py`). Patients are the unit: several patches of one patient are not
independent, so intervals are over patients, and the test counts a patient's patches as fewer the more they agree.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from evaluate.intervals import Interval, Patients
from evaluate.scores import area_under_roc

Floats = NDArray[np.float64]

LEAST_FOR_TPR = 100  # held-out patches: among fewer no threshold accuses 1 % of them
CELL = 20  # held-out patches in a cell, on average
LEAST_IN_CELL = 10  # of both sets: below, a cell's z is no normal deviate


@dataclass(frozen=True)
class Membership:
    """How well closeness to the nearest synthetic patch tells training from held-out patches.

    auroc: 0.5 when it tells nothing. tpr_at_1_percent_fpr: share of training patches found while
    1 % of the held-out ones are wrongly accused; 0.01 when it tells nothing, NaN below 100 held-out.
    Intervals are 95 % over draws of patients; tpr_interval is the reason, in words, where there is none.
    """

    auroc: float
    auroc_interval: Interval
    tpr_at_1_percent_fpr: float
    training: int
    held_out: int
    tpr_interval: Interval | str


@dataclass(frozen=True)
class CellCopying:
    """A cell of the patches' space: how many patches of each set lie in it, and z as in DataCopying."""

    training: int
    held_out: int
    synthetic: int
    z: float


@dataclass(frozen=True)
class DataCopying:
    """C_T: whether synthetic patches lie nearer to the training set than held-out ones do (Meehan, Chaudhuri & Dasgupta 2020).

    z: the Mann-Whitney statistic as a normal deviate, about N(0, 1) for fresh draws of the patients' distribution.
    Negative: nearer than held-out patches, copying; positive: farther, underfitting. c_t: the mean of z over the cells,
    weighted by their held-out patches, None where no cell had patches enough. design_effect: as many held-out patches count as one.
    Smooth samples are near everything: a negative z with no copy found may be blur.
    """

    z: float
    c_t: float | None
    cells: tuple[CellCopying, ...]
    design_effect: float


def membership_inference(
    training_hu: NDArray,
    training_patients: Patients,
    held_out_hu: NDArray,
    held_out_patients: Patients,
    rng: np.random.Generator,
    draws: int = 200,
) -> Membership:
    """The attack "the nearer a synthetic patch, the likelier it was trained on" (Chen et al. 2020, GAN-Leaks).

    training_hu, held_out_hu: distance of each real patch to its nearest synthetic patch. The intervals are
    percentiles over draws, with replacement, of as many patients as each set has; the distances stay as they are.
    """
    enough = len(held_out_hu) >= LEAST_FOR_TPR
    members, others = _patches_of_each(training_patients, len(training_hu)), _patches_of_each(held_out_patients, len(held_out_hu))
    drawn = []
    for _ in range(draws):
        rows, controls = _drawn(members, rng), _drawn(others, rng)
        drawn.append((_auroc(training_hu[rows], held_out_hu[controls]), _tpr(training_hu[rows], held_out_hu[controls])))
    value = _auroc(training_hu, held_out_hu)
    lows, highs = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    return Membership(
        auroc=value,
        # a few large patients may draw an interval beside the value itself
        auroc_interval=Interval(min(value, float(lows[0])), max(value, float(highs[0]))),
        tpr_at_1_percent_fpr=_tpr(training_hu, held_out_hu) if enough else np.nan,
        training=len(training_hu),
        held_out=len(held_out_hu),
        tpr_interval=Interval(float(lows[1]), float(highs[1]))
        if enough
        else f"1 % of {len(held_out_hu)} held-out patches is less than one; it takes {LEAST_FOR_TPR}",
    )


def data_copying(
    synthetic_hu: NDArray,
    synthetic_nearest: NDArray,
    held_out_hu: NDArray,
    held_out_nearest: NDArray,
    held_out_patients: Patients,
    training_hu: NDArray,
) -> DataCopying:
    """C_T over cells and z over all, from each patch's distance to its nearest training patch (N,) and that one's row (N,).

    training_hu: distances between training patches, (T, T). The cells are groups of training patches that lie together
    (Ward's clustering of these distances); any other patch is in the cell of its nearest training patch.
    """
    ids = np.arange(len(held_out_hu)) if held_out_patients is None else np.asarray(held_out_patients)
    groups = max(1, min(len(held_out_hu) // CELL, len(training_hu)))
    square = np.maximum(training_hu, training_hu.T).astype(np.float64)
    np.fill_diagonal(square, 0)
    cell_of = fcluster(linkage(squareform(square, checks=False), "ward"), groups, "maxclust")
    cells = []
    for cell in range(1, int(cell_of.max()) + 1):
        real, drawn = cell_of[held_out_nearest] == cell, cell_of[synthetic_nearest] == cell
        if min(real.sum(), drawn.sum()) >= LEAST_IN_CELL:
            z = copying_z(synthetic_hu[drawn], held_out_hu[real], ids[real])
            cells.append(CellCopying(int((cell_of == cell).sum()), int(real.sum()), int(drawn.sum()), z))
    return DataCopying(
        z=copying_z(synthetic_hu, held_out_hu, ids),
        c_t=float(np.average([one.z for one in cells], weights=[one.held_out for one in cells])) if cells else None,
        cells=tuple(cells),
        design_effect=design_effect(held_out_hu, ids),
    )


def copying_z(synthetic_hu: NDArray, held_out_hu: NDArray, held_out_patients: Patients) -> float:
    """Z of the count of pairs whose synthetic patch is the farther one, ties counting half; negative where synthetic ones are nearer.

    Meehan et al. 2020, sec. 3.1: (U - mn/2) / sqrt(mn(m + n + 1) / 12), where each held-out patch has a patient of its
    own. Otherwise the part of the variance that comes from the held-out patches is design_effect times as large.
    """
    m, n = len(synthetic_hu), len(held_out_hu)
    truth = np.r_[np.ones(m, bool), np.zeros(n, bool)]
    share = area_under_roc(np.r_[synthetic_hu, held_out_hu].astype(np.float64), truth)  # U / mn
    effect = design_effect(held_out_hu, held_out_patients)
    return float((share - 0.5) / np.sqrt((1 / m + effect / n + 1 / (m * n)) / 12))


def design_effect(values: NDArray, patients: Patients) -> float:
    """How many times the variance of a mean rank grows because patches of one patient resemble each other; 1 or more.

    From the ranks of the values (N,): the variance of sums over patients to that of single values (Kish 1965;
    of ranks: Rosner, Glynn & Lee 2003). N where all are of one patient.
    """
    ids = np.arange(len(values)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    count, people = len(values), int(ids.max()) + 1
    if people == 1:
        return float(count)
    off = rankdata(values) - (count + 1) / 2
    alone = np.square(off).sum() * count / (count - 1)
    together = np.square(np.bincount(ids, off)).sum() * people / (people - 1)
    return max(1.0, float(together / alone)) if alone else 1.0


def _auroc(members: NDArray, others: NDArray) -> float:
    truth = np.r_[np.ones(len(members), bool), np.zeros(len(others), bool)]
    return area_under_roc(-np.r_[members, others].astype(np.float64), truth)


def _tpr(members: NDArray, others: NDArray) -> float:
    return float((members < np.quantile(others, 0.01, method="lower")).mean())


def _patches_of_each(patients: Patients, count: int) -> list[NDArray]:
    """Rows of each patient; each row alone where there is but one patient, whose patches are all there is to draw from."""
    ids = np.arange(count) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    if ids.max() == 0:
        ids = np.arange(count)
    return [np.flatnonzero(ids == one) for one in range(int(ids.max()) + 1)]


def _drawn(rows: list[NDArray], rng: np.random.Generator) -> NDArray:
    return np.concatenate([rows[one] for one in rng.integers(0, len(rows), len(rows))])
