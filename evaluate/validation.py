"""A cheap look at samples while a model is trained: how far they are from validation patients, in features without weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluate.distances import frechet_distance, kernel_distance, standardise
from evaluate.features import radiomics
from evaluate.intervals import halves_of_patients

LEAST = 20
"""Validation patches below which no distance is worth its name; of a class too."""


class ValidationDistances:
    """Distances from samples to validation patients: Fréchet and kernel distance of radiomic features.

    training and held_out: int16 HU (N, *S), of which `training` gives the features' scale. labels and patients: (N,), of held_out.
    Raises ValueError when there are fewer than LEAST patches in either.
    """

    measure = "frechet_radiomics"
    """The distance that decides which step is best."""

    def __init__(
        self, training: NDArray, held_out: NDArray, labels: Sequence[str], patients: Sequence[str],
        spacing_mm: Sequence[float] | None, window: tuple[float, float], rng: np.random.Generator,
    ):  # fmt: skip
        if min(len(training), len(held_out)) < LEAST:
            raise ValueError(f"{len(training)} training and {len(held_out)} validation patches, want {LEAST} of each")
        self._extractor = radiomics(spacing_mm or (1.0,) * (held_out.ndim - 1), window)
        self._scale = self._extractor.compute(training)
        (self._real,) = standardise(self._scale, self._extractor.compute(held_out))
        self._labels = np.asarray(labels)
        here, there = halves_of_patients(patients, len(held_out), rng)
        self.floor = (
            {f"validation/floor/{self.measure}": frechet_distance(self._real[here], self._real[there])}
            if min(len(here), len(there)) > 1
            else {}
        )

    def __call__(self, hu: NDArray, labels: Sequence[str]) -> dict[str, float]:
        """Metrics of samples, int16 HU (N, *S), and the class each was drawn for: "validation/MEASURE", "validation/MEASURE/CLASS"."""
        (synthetic,) = standardise(self._scale, self._extractor.compute(hu))
        found = {
            f"validation/{self.measure}": frechet_distance(self._real, synthetic),
            "validation/kernel_radiomics": kernel_distance(self._real, synthetic),
        }
        drawn = np.asarray(labels)
        classes = sorted(set(self._labels.tolist()))
        for name in classes if len(classes) > 1 else ():
            here, there = self._real[self._labels == name], synthetic[drawn == name]
            if min(len(here), len(there)) >= LEAST:
                found[f"validation/{self.measure}/{name}"] = frechet_distance(here, there)
        return found | self.floor
