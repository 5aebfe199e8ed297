"""Means and covariances of features that need not be in memory together, and pytorch-fid's files of them.

Features come in batches (n, D) of any sizes. What is kept of them is a count, a mean (D,) and a covariance
(D, D), float64: 34 MB for the 2048 features of Inception, of a thousand patches as of a million.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluate.distances import frechet_distance_of_moments
from evaluate.files import write_whole

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D), with N - 1, of `count` feature vectors.

    count is None where a file does not tell it. Of a single vector the covariance is 0.
    """

    count: int | None
    mean: Array
    covariance: Array


def statistics_of(batches: Iterable[ArrayLike]) -> Statistics:
    """Of all vectors in the batches, each (n, D), whatever way they are split; no batch is kept.

    Chan, Golub & LeVeque 1983: squares are taken of deviations from the batch's own mean, and the
    distance of the means is made up for, so a mean far from 0 costs few digits.

    Raises ValueError if there is no vector, D changes, or a value is not finite.
    """
    count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    for batch in batches:
        x = np.asarray(batch, np.float64)
        if not count and x.ndim == 2:
            mean, scatter = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
        if x.ndim != 2 or x.shape[1] != len(mean):
            raise ValueError(f"features come in batches (n, D) of one D; after {count} vectors of {len(mean)} came {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError("features hold NaN or infinity; look for patches with impossible HU values")
        if not len(x):
            continue
        centre = x.mean(0)
        total, away = count + len(x), centre - mean
        rows = np.vstack([x - centre, away * np.sqrt(count / total * len(x))])  # the last row makes up for the means
        scatter += rows.T @ rows
        mean += away * (len(x) / total)
        count = total
    if not count:
        raise ValueError("no features to take statistics of; the set is empty")
    return Statistics(count, mean, scatter / max(1, count - 1))


def merged(first: Statistics, second: Statistics) -> Statistics:
    """Of the vectors of both, as when processes shared the work. Chan, Golub & LeVeque 1983.

    Raises ValueError if D differs or one does not tell its count.
    """
    _same_features(first, second)
    if first.count is None or second.count is None:
        raise ValueError("statistics without a count, as in pytorch-fid's own files, cannot be merged; take them of the features again")
    total, away = first.count + second.count, second.mean - first.mean
    scatter = (first.count - 1) * first.covariance + (second.count - 1) * second.covariance
    scatter += np.outer(away, away) * (first.count / total * second.count)
    return Statistics(total, first.mean + away * (second.count / total), scatter / (total - 1))


def frechet_distance_of(first: Statistics, second: Statistics) -> float:
    """The squared Fréchet distance that `evaluate.distances.frechet_distance` finds for the vectors themselves; 0 or more.

    Raises ValueError if D differs or one is of fewer than 2 vectors.
    """
    _same_features(first, second)
    if 1 in (first.count, second.count):
        raise ValueError(f"a distance needs 2 samples or more in each set, got {first.count} and {second.count}")
    return frechet_distance_of_moments(first.mean, first.covariance, second.mean, second.covariance)


def _same_features(first: Statistics, second: Statistics) -> None:
    if len(first.mean) != len(second.mean):
        raise ValueError(
            f"statistics of {len(first.mean)} features have nothing in common with those of {len(second.mean)}; use one extractor"
        )


def write_statistics(path: str | Path, statistics: Statistics) -> None:
    """The .npz that pytorch-fid reads (`mu`, `sigma`), and the count beside them where it is known; atomically.

    pytorch-fid goes by the name's ending, .npz. Raises OSError if the file cannot be written.
    """
    arrays: dict[str, Any] = {"mu": statistics.mean, "sigma": statistics.covariance}
    if statistics.count is not None:
        arrays["count"] = np.int64(statistics.count)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_whole(Path(path), content.getvalue())


def read_statistics(path: str | Path) -> Statistics:
    """Of a file that `write_statistics`, pytorch-fid or a tool alike wrote; nothing in it is executed.

    Raises ValueError if the file is no such file, OSError if it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                mean, covariance = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
                count = int(arrays["count"]) if "count" in arrays else None
        except Exception as error:  # zip, zlib and NumPy raise many kinds on what is no .npz
            raise ValueError(f"{path}: not a statistics file in pytorch-fid's form ({' '.join(str(error).split())[:120]})") from None
    if mean.ndim != 1 or not mean.size or covariance.shape != (mean.size, mean.size):
        raise ValueError(f"{path}: mu is {mean.shape} and sigma {covariance.shape}; want (D,) and (D, D)")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path}: mu or sigma holds NaN or infinity; compute the statistics again")
    spread = np.sqrt(covariance.diagonal().clip(min=0))
    if np.abs(covariance - covariance.T).max() > 1e-5 * spread.max() ** 2 or (covariance.diagonal() < 0).any():
        raise ValueError(f"{path}: sigma is no covariance, which is symmetric with variances of 0 or more; compute the statistics again")
    if count is not None and count < 1:
        raise ValueError(f"{path}: counts {count} vectors; compute the statistics again")
    return Statistics(count, mean, covariance)
