"""The sets an evaluation compares, as plain arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluate.report import Compared, SetSize


@dataclass(frozen=True)
class PatchSet:
    """Patches in HU, int16 (N, *shape), and for each its id, class and patient, (N,) strings."""

    hu: NDArray[np.int16]
    ids: NDArray[np.str_]
    labels: NDArray[np.str_]
    patients: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray) -> "PatchSet":
        return PatchSet(self.hu[rows], self.ids[rows], self.labels[rows], self.patients[rows])

    def thinned(self, most: int, rng: np.random.Generator) -> "PatchSet":
        """At most `most` of the patches, drawn at random."""
        return self if len(self) <= most else self.take(np.sort(rng.choice(len(self), most, replace=False)))

    @property
    def size(self) -> SetSize:
        return SetSize(len(self), len(np.unique(self.patients)))


@dataclass(frozen=True)
class Cohort:
    """The sets of an evaluation. Lesions only, but for `background`: lesion-free patches per split."""

    training: PatchSet
    validation: PatchSet
    held_out: PatchSet
    synthetic: PatchSet
    background: dict[str, PatchSet]  # keys: training, validation, held_out
    compared: Compared
