"""What two halves of the real patients differ by, for checks of whole sets: the floor that a difference is read against."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluate.intervals import Patients, halves_of_patients
from evaluate.spectra import Floats

LEAST_PATIENTS = 8  # fewer have fewer than 35 halvings: too few for a floor


@dataclass(frozen=True)
class Halvings:
    """Two halves of the real patients, many times over, as weights (halvings, N) whose products with per-patch values are means."""

    first: Floats
    second: Floats
    patients: int

    @classmethod
    def draw(cls, patients: Patients, real: int, synthetic: int, rng: np.random.Generator, draws: int = 100) -> "Halvings":
        """The second half is thinned to the number of synthetic patches where these are fewer.

        Raises ValueError if there are fewer than 8 patients or 8 synthetic patches.
        """
        count = real if patients is None else len(np.unique(np.asarray(patients)))
        if min(count, synthetic) < LEAST_PATIENTS:
            raise ValueError(
                f"{count} real patients and {synthetic} synthetic patches: artefacts are looked for with {LEAST_PATIENTS} or more of each"
            )
        weights = np.zeros((2, draws, real))
        for n in range(draws):
            a, b = halves_of_patients(patients, real, rng)
            b = rng.choice(b, min(len(b), synthetic), replace=False)
            weights[0, n, a], weights[1, n, b] = 1 / len(a), 1 / len(b)
        return cls(weights[0], weights[1], count)

    def floor(self, per_patch: Floats, difference: Callable[[Floats, Floats], Floats] = np.subtract) -> Floats:
        """How far, in each of B numbers, synthetic may be from real before it is further than any two halves are, (B,).

        per_patch: (N, S); difference: of means (K, S) and (K, S), row by row, (K, B). Each number's
        spread times the largest excursion, in units of spread, of any number in any halving.
        """
        found = difference(self.first @ per_patch, self.second @ per_patch)
        spread = np.sqrt(np.square(found).mean(0))
        excursion = np.divide(np.abs(found), spread, out=np.zeros_like(found), where=spread > 0)
        return spread * excursion.max()


def excess_of(difference: Floats, floor: Floats) -> Floats:
    """|difference| in floors; 0 where neither set shows anything."""
    return np.abs(difference) / np.maximum(floor, 1e-12)
