"""Does a lesion detector get better on unseen patients when synthetic lesions are added?

A small ResNet tells lesion from lesion-free patches. Arms differ only in what they are trained on;
they share initial weights, real draws and augmentation draws, seed by seed, so differences are
paired. Patches are int16 HU, (N, H, W) or (N, D, H, W); the network sees float32 in [-1, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.nets import ResNet
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluate.scores import Scores, choose_threshold

REAL, CLASSIC, SYNTHETIC = "real", "real+classic", "real+classic+synthetic"
ARMS = (REAL, CLASSIC, SYNTHETIC)
LEAST_PATCHES = 5  # of each kind in each set: fewer say nothing about sensitivity or specificity
NOISE = 0.02  # of the window's half-width: 14 HU for a window of 1400
SHIFT = 0.06  # of a patch's side


@dataclass(frozen=True)
class DetectorSet:
    """Patches of some patients. lesion: bool (N,), False for lesion-free; patients: N ids."""

    hu: NDArray[np.int16]
    lesion: NDArray[np.bool_]
    patients: NDArray


@dataclass(frozen=True)
class DetectorRun:
    """One arm trained from one seed: scores of the test patches, and the threshold to read them by.

    scores: log-odds of a lesion, float64 (N,). threshold_from: which patches it was fixed on.
    """

    arm: str
    seed: int
    scores: NDArray[np.float64]
    threshold: float
    threshold_from: str


def run_detector(
    train: DetectorSet,
    validation: DetectorSet | None,
    test: DetectorSet,
    synthetic_hu: NDArray[np.int16],
    window: tuple[float, float],
    *,
    seeds: int = 3,
    steps: int = 400,
    synthetic_share: float = 0.25,
    arms: tuple[str, ...] = ARMS,
    batch: int = 64,
    device: str = "cpu",
    progress: Callable[[str, int], None] = lambda arm, seed: None,
) -> list[DetectorRun]:
    """Trains every arm from every seed 0..seeds-1 and scores the test patches.

    synthetic_share: of the lesions in a batch, in the arm that has synthetic ones.
    The threshold is where balanced accuracy is best on validation patients; without any, where
    the odds are even. `progress(arm, seed)` is called before each training.

    Raises ValueError, saying what is missing, when there is nothing to detect or to test on.
    """
    check_detectable(train, test)
    if not 0 < synthetic_share <= 1:
        raise ValueError(f"the synthetic share of lesions is above 0 and at most 1, got {synthetic_share:g}")
    usable = validation is not None and _enough(validation)
    runs = []
    for seed in range(seeds):
        for arm in arms:
            progress(arm, seed)
            rng = np.random.default_rng(seed)
            share = synthetic_share if arm == SYNTHETIC else 0.0
            network = _train(train, synthetic_hu, window, rng, arm != REAL, share, steps, batch, device)
            threshold, source = 0.0, "even odds (no validation patients)"
            if usable and validation is not None:
                threshold = choose_threshold(_log_odds(network, validation.hu, window, device), validation.lesion)
                source = "validation patients"
            runs.append(DetectorRun(arm, seed, _log_odds(network, test.hu, window, device), threshold, source))
    return runs


def check_detectable(train: DetectorSet, test: DetectorSet) -> None:
    """Raises ValueError, with the counts, when a detector could not be trained or tested."""
    for name, one in (("training", train), ("held-out", test)):
        lesions, free = int(one.lesion.sum()), int((~one.lesion).sum())
        if min(lesions, free) < LEAST_PATCHES:
            raise ValueError(
                f"a detector needs {LEAST_PATCHES} lesions and {LEAST_PATCHES} lesion-free patches in the {name} set, "
                f"got {lesions} and {free}; cut more patches, with lesion-free ones, from more patients"
            )
    if len(np.unique(test.patients)) < 2:
        raise ValueError("a detector is tested on 2 held-out patients or more, got 1; hold out more patients")
    if both := set(train.patients.tolist()) & set(test.patients.tolist()):
        raise ValueError(f"{len(both)} patients are in both the training and the held-out set; split by patient")


def scores_of(runs: list[DetectorRun], test: DetectorSet) -> Scores:
    """The runs as one table of scores over arms, seeds and test patches."""
    arms = tuple(dict.fromkeys(run.arm for run in runs))
    by_arm = [[run for run in runs if run.arm == arm] for arm in arms]
    return Scores(
        arms=arms,
        log_odds=np.array([[run.scores for run in runs] for runs in by_arm]),
        thresholds=np.array([[run.threshold for run in runs] for runs in by_arm]),
        lesion=test.lesion,
        patients=np.asarray(test.patients),
    )


def _enough(one: DetectorSet) -> bool:
    return min(int(one.lesion.sum()), int((~one.lesion).sum())) >= LEAST_PATCHES


def _network(dimensions: int, seed: int, device: str) -> nn.Module:
    """An 8-layer ResNet of 8 to 64 channels; input (B, 1, *shape), output (B, 1) log-odds."""
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        network = ResNet(
            block="basic",
            layers=[1, 1, 1, 1],
            block_inplanes=[8, 16, 32, 64],
            spatial_dims=dimensions,
            n_input_channels=1,
            conv1_t_size=3,
            conv1_t_stride=2,
            no_max_pool=True,
            num_classes=1,
        )
    return network.to(device)


def _train(
    train: DetectorSet,
    synthetic_hu: NDArray[np.int16],
    window: tuple[float, float],
    rng: np.random.Generator,
    classic: bool,
    share: float,
    steps: int,
    batch: int,
    device: str,
) -> nn.Module:
    network = _network(train.hu.ndim - 1, int(rng.integers(2**31)), device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    x = _to_unit(train.hu, window, device)
    synthetic = _to_unit(synthetic_hu, window, device)
    lesions, free = np.flatnonzero(train.lesion), np.flatnonzero(~train.lesion)
    half = batch // 2
    target = torch.cat([torch.ones(half, 1), torch.zeros(half, 1)]).to(device)
    for _ in range(steps):
        # Every arm draws the same numbers in the same order, so arms stay paired.
        positive, negative = rng.choice(lesions, half), rng.choice(free, half)
        replaced = rng.integers(0, max(len(synthetic), 1), half)[: round(share * half)]
        patches = x[np.concatenate([positive, negative])]
        if len(replaced):
            patches[: len(replaced)] = synthetic[replaced]
        augmented = augment_classic(patches, rng)
        logits = network((augmented if classic else patches)[:, None])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def augment_classic(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """Flips, quarter turns, shifts of a few pixels and noise: what is usual without a generator.

    patches: (B, *shape) in [-1, 1]; each patch gets its own draw. Quarter turns only in planes
    whose sides are equal. Uncovered pixels repeat the border.
    """
    count, *shape = patches.shape
    for a in range(1, len(shape)):  # with the flips below, exchanging axes gives every quarter turn
        swap = torch.from_numpy(rng.random(count) < 0.5).to(patches.device)
        if shape[a - 1] == shape[a]:
            wide = swap.view(-1, *[1] * len(shape))
            patches = torch.where(wide, patches.transpose(a, a + 1), patches)
    index: list[Tensor] = [torch.arange(count, device=patches.device).view(-1, *[1] * len(shape))]
    for axis, n in enumerate(shape):
        most = max(1, round(SHIFT * n))
        places = np.arange(n) + rng.integers(-most, most + 1, count)[:, None]
        places = places.clip(0, n - 1)
        places = np.where(rng.random(count)[:, None] < 0.5, places[:, ::-1], places)
        view = [count, *[n if a == axis else 1 for a in range(len(shape))]]
        index.append(torch.from_numpy(places.copy()).to(patches.device).view(view))
    noise = torch.from_numpy(rng.standard_normal(patches.shape, dtype=np.float32)).to(patches.device)
    return patches[tuple(index)] + NOISE * noise


@torch.inference_mode()
def _log_odds(network: nn.Module, hu: NDArray[np.int16], window: tuple[float, float], device: str) -> NDArray[np.float64]:
    x = _to_unit(hu, window, device)
    return np.concatenate([network(some[:, None])[:, 0].double().cpu().numpy() for some in x.split(256)])


def _to_unit(hu: NDArray[np.int16], window: tuple[float, float], device: str) -> Tensor:
    low, high = window
    unit = (np.clip(hu, low, high).astype(np.float32) - low) * (2 / (high - low)) - 1
    return torch.from_numpy(unit.astype(np.float32)).to(device)
