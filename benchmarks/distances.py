"""How fast distances between sets of features are: lesiongan beside pytorch-fid, torch-fidelity, prdc and POT, on the same features.

  python benchmarks/distances.py                            # 2,000 and 10,000 samples of 2,048 features: about 10 minutes, 6 GB
  python benchmarks/distances.py --quick --json d.json      # 2,000 samples, one round: under a minute

Features are two sets with the mean and the decaying spectrum that networks give: variances fall as k^-1.3 along axes that the sets do
not share. The forms take turns in one process; before any time is shown, their values are compared, and where one is
off by more than 1e-6 of the peer's, nothing is shown.

  Fréchet      from features: lesiongan's frechet_distance; pytorch-fid's and torch-fidelity's are np.cov and what follows
               from statistics: what follows means and covariances, as when one set's were kept; scipy.linalg.sqrtm in pytorch-fid,
               eigenvalues of the product of both covariances in torch-fidelity, of a symmetric matrix here
  kernel       of all pairs: lesiongan's kernel_distance, torch-fidelity's KID with one subset of all samples
  neighbours   precision, recall, density and coverage, k = 5, and the package prdc
  sliced       Wasserstein, 256 directions, and POT

and evaluate.statistics over a stream of a million vectors: the peak of its memory beside that for a hundredth of them, each in a process of
its own. Seconds are CPU time on one thread, medians of three rounds (of one for pairs of 10,000); OMP_NUM_THREADS=2 gives wall time on two.
Ratios are lesiongan's time over the peer's, the greatest over the sizes: 0.1 is ten times as fast. A peer that is not installed is left out.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy loads

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from datetime import date
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import scipy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.step import Clock, processor, resident
from data.command import run_command
from evaluate.distances import frechet_distance, kernel_distance, precision_recall_density_coverage, sliced_wasserstein
from evaluate.statistics import frechet_distance_of, statistics_of

DIMENSIONS = 2048
SIZES, QUICK_SIZES = (2_000, 10_000), (2_000,)
STREAMED, QUICK_STREAMED = 1_000_000, 20_000
BATCH = 1_000
ROUNDS, QUICK_ROUNDS = 3, 1
LONG = 5_000
"""Samples beyond which distances of all pairs take one round."""
TOLERANCE = 1e-6
DIRECTIONS = 256
NEIGHBOURS = 5
OURS = "lesiongan"
KEYS = {
    "Fréchet, from features": "frechet", "Fréchet, from statistics": "frechet_of_statistics", "kernel": "kernel", "neighbours": "neighbours",
    "sliced": "sliced",
}  # fmt: skip

Form = Callable[[], float | tuple[float, ...]]


def peer(name: str) -> ModuleType:
    """A peer's module for its arithmetic alone: torchvision, which its package loads, does not load beside every torch.

    Raises ImportError if the package is not installed.
    """
    package = name.split(".")[0]
    spec = find_spec(package)
    if spec is None:
        raise ImportError(f"{package} is not installed", name=package)
    shell, progress = ModuleType(package), ModuleType("tqdm")
    shell.__path__ = list(spec.submodule_search_locations or [])
    progress.__dict__["tqdm"] = lambda steps, **_: steps
    left_out = ("torchvision", "torchvision.transforms", "torch_fidelity.utils", "pytorch_fid.inception")
    stand_ins: dict[str, Any] = {package: shell, "tqdm": progress, **{other: MagicMock() for other in left_out}}
    before = {other: sys.modules.get(other) for other in stand_ins}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(name)
    finally:
        sys.modules.pop(name, None)  # it holds stand-ins
        for other, module in before.items():
            if module is None:
                del sys.modules[other]
            else:
                sys.modules[other] = module


def features(samples: int, dimensions: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two sets (samples, dimensions), float64: about 0.4 off zero, variances that fall as k^-1.3, axes partly shared."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, dimensions + 1) ** -0.65
    axes = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0]
    turned = np.linalg.qr(axes + 0.1 / np.sqrt(dimensions) * rng.standard_normal((dimensions, dimensions)))[0]
    x = 0.4 + rng.standard_normal((samples, dimensions)) * spread @ axes.T
    y = 0.4 + 0.02 * rng.standard_normal(dimensions) + 1.1 * rng.standard_normal((samples, dimensions)) * spread @ turned.T
    return x, y


Moments = tuple[np.ndarray, np.ndarray]


def moments(x: np.ndarray) -> Moments:
    """Mean and covariance as pytorch-fid and torch-fidelity both compute them."""
    return np.mean(x, axis=0), np.cov(x, rowvar=False)


def pytorch_fid(first: Moments, second: Moments) -> float:
    """The arithmetic of calculate_frechet_distance in pytorch_fid/fid_score.py, without its check of the square root."""
    (mean_1, covariance_1), (mean_2, covariance_2) = first, second
    shift = mean_1 - mean_2
    root = scipy.linalg.sqrtm(covariance_1.dot(covariance_2))
    return float(shift.dot(shift) + np.trace(covariance_1) + np.trace(covariance_2) - 2 * np.trace(root.real))


def torch_fidelity(first: Moments, second: Moments) -> Form:
    metric = peer("torch_fidelity.metric_fid")
    one, other = ({"mu": mean, "sigma": covariance} for mean, covariance in (first, second))
    return lambda: metric.fid_statistics_to_metric(one, other, verbose=False)[metric.KEY_METRIC_FID]


def torch_fidelity_kernel(x: np.ndarray, y: np.ndarray) -> Form:
    """KID of one subset that holds all samples, as many in both sets, so that no draw decides."""
    metric = peer("torch_fidelity.metric_kid")
    one, other = torch.from_numpy(x), torch.from_numpy(y)
    options = {"kid_subsets": 1, "kid_subset_size": len(x), "rng_seed": 0, "verbose": False}
    return lambda: metric.kid_features_to_metric(one, other, **options)[metric.KEY_METRIC_KID_MEAN]


def prdc(x: np.ndarray, y: np.ndarray) -> Form:
    from prdc import compute_prdc

    def compute() -> tuple[float, ...]:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            found = compute_prdc(x, y, nearest_k=NEIGHBOURS)
        return tuple(float(found[name]) for name in ("precision", "recall", "density", "coverage"))

    return compute


def our_neighbours(x: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
    found = precision_recall_density_coverage(x, y, NEIGHBOURS)
    return found.precision, found.recall, found.density, found.coverage


def pot(x: np.ndarray, y: np.ndarray) -> Form:
    import ot

    directions = np.random.default_rng(0).standard_normal((DIRECTIONS, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return lambda: float(ot.sliced_wasserstein_distance(x, y, projections=directions.T, p=2))


def with_peer(ours: Form, name: str, theirs: Callable[..., Form], *sets: Any) -> dict[str, Form]:
    try:
        return {OURS: ours, name: theirs(*sets)}
    except ImportError as error:
        print(f"{name}: left out ({error})", file=sys.stderr)
        return {OURS: ours}


def measure(samples: int, dimensions: int, rounds: int, clock: Clock) -> dict[str, dict[str, float]]:
    """distance -> form -> median seconds. Raises ValueError when values differ."""
    x, y = features(samples, dimensions)
    kept = tuple(statistics_of(x_or_y[n : n + BATCH] for n in range(0, samples, BATCH)) for x_or_y in (x, y))
    theirs = moments(x), moments(y)
    frechet = with_peer(lambda: frechet_distance(x, y), "torch-fidelity", torch_fidelity, *theirs)
    frechet |= {"pytorch-fid": lambda: pytorch_fid(*theirs), "from statistics": lambda: frechet_distance_of(*kept)}
    seconds = in_turns(f"Fréchet, {samples}", frechet, rounds, clock)
    covariances = statistics.median(clock.seconds(lambda: (moments(x), moments(y))) for _ in range(rounds))
    from_features, from_statistics = seconds.pop(OURS), seconds.pop("from statistics")
    found = {
        "Fréchet, from features": {OURS: from_features, **{name: covariances + rest for name, rest in seconds.items()}},
        "Fréchet, from statistics": {OURS: from_statistics, **seconds},
    }
    of_pairs = {
        "kernel": with_peer(lambda: kernel_distance(x, y), "torch-fidelity", torch_fidelity_kernel, x, y),
        "neighbours": with_peer(lambda: our_neighbours(x, y), "prdc", prdc, x, y),
        "sliced": with_peer(lambda: sliced_wasserstein(x, y, np.random.default_rng(0), DIRECTIONS), "POT", pot, x, y),
    }
    for distance, forms in of_pairs.items():
        found[distance] = in_turns(f"{distance}, {samples}", forms, 1 if samples > LONG else rounds, clock)
    return found


def in_turns(what: str, forms: Mapping[str, Form], rounds: int, clock: Clock) -> dict[str, float]:
    """form -> median seconds. Raises ValueError when a form's value is not that of the first, lesiongan's."""
    values, times = dict[str, Any](), {name: list[float]() for name in forms}

    def keep(name: str, form: Form) -> None:
        values[name] = form()

    for _ in range(rounds):
        for name, form in forms.items():
            times[name].append(clock.seconds(partial(keep, name, form)))
            if not np.allclose(values[OURS], values[name], rtol=TOLERANCE, atol=0):
                raise ValueError(f"{what}: {OURS} gives {values[OURS]}, {name} {values[name]}, so times say nothing")
    return {name: statistics.median(some) for name, some in times.items()}


def stream(vectors: int, dimensions: int) -> tuple[float | None, float]:
    """MiB by which the process grew at most, and CPU seconds, to be called in a process of its own."""
    rng = np.random.default_rng(0)
    spread = np.arange(1, dimensions + 1, dtype=np.float32) ** -0.65

    def batches(count: int) -> Iterator[np.ndarray]:
        for _ in range(count):
            yield rng.standard_normal((BATCH, dimensions), np.float32) * spread

    next(batches(1)).T @ np.ones(BATCH, np.float32)  # loads the code that is needed
    before, started = resident("VmRSS"), time.process_time()
    found = statistics_of(batches(vectors // BATCH))
    seconds, peak = time.process_time() - started, resident("VmHWM")
    assert found.count == vectors // BATCH * BATCH
    return None if before is None or peak is None else peak - before, seconds


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "python benchmarks/distances.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2,000 samples, one round, a stream of 20,000")
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS, help="of the features; default %(default)s, as Inception's")
    parser.add_argument("--json", type=Path, help="file to write ratios, seconds and conditions to")
    options = parser.parse_args(arguments)
    clock = Clock(torch.device("cpu"))
    print(
        f"{clock.name}, {torch.get_num_threads()} threads, {options.dimensions} features, values equal to {TOLERANCE:.0e}", file=sys.stderr
    )
    ratios, found, streamed = dict[str, float](), dict[str, Any](), dict[str, Any]()
    for samples in QUICK_SIZES if options.quick else SIZES:
        found[str(samples)] = measure(samples, options.dimensions, QUICK_ROUNDS if options.quick else ROUNDS, clock)
        print(f"\n{f'{samples:,} samples, seconds':<28}{OURS:>11}{'peer':>28}{'ratio':>8}")
        for distance, seconds in found[str(samples)].items():
            for name, theirs in seconds.items():
                if name != OURS:
                    ratio = seconds[OURS] / theirs
                    print(f"{distance:<28}{seconds[OURS]:>11.3f}{name:>17}{theirs:>11.3f}{ratio:>8.3f}")
                    key = f"{KEYS[distance]}_over_{name.replace('-', '_').lower()}"
                    ratios[key] = max(ratios.get(key, 0.0), round(ratio, 3))
    most = QUICK_STREAMED if options.quick else STREAMED
    print(f"\n{'streamed vectors':<28}{'MiB':>11}{'CPU seconds':>13}")
    for vectors in (most // 100 // BATCH * BATCH or BATCH, most):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            mebibytes, seconds = pool.submit(stream, vectors, options.dimensions).result()
        streamed[str(vectors)] = {"MiB": mebibytes, "cpu_seconds": seconds}
        print(f"{vectors:<28,}{'unknown' if mebibytes is None else f'{mebibytes:.0f}':>11}{seconds:>13.1f}")
    print()
    for name, ratio in ratios.items():
        print(f"{name:<48}{ratio:>8.3f}")
    if options.json:
        conditions = {
            "date": str(date.today()), "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__,
            "processor": processor(torch.device("cpu")), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "clock": clock.name,
            "dimensions": options.dimensions, "tolerance": TOLERANCE, "seconds": found, "stream": streamed,
        }  # fmt: skip
        options.json.write_text(json.dumps({"ratios": ratios, "conditions": conditions}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
