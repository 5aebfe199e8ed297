"""Does a lesion detector get better on unseen patients when synthetic lesions are added?

A ResNet tells lesion from lesion-free patches. Arms differ only in what they are trained on; they
share initial weights, real draws and augmentation draws, seed by seed, so differences are paired.
Patches are int16 HU, (N, H, W) or (N, D, H, W); the network sees float32 in [-1, 1].

There is no arm with real lesions repeated to the count of real and synthetic ones: half of every batch
are lesions, drawn with replacement, so repeating all of them changes no chance of any batch. That arm
is `real+classic`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import monai
import numpy as np
import torch
from monai.networks.nets import ResNet, resnet10, resnet18, resnet50
from numpy.typing import NDArray
from torch import nn

from evaluate.classic import augment_classic, augment_policy, augment_turns
from evaluate.detector_store import Arrays, DetectorStore, content_hash
from evaluate.scores import Scores, choose_threshold
from evaluate.tensors import channels_last, thinned_before, to_unit

VERSION = 1
"""Of what a training computes; raised when it changes, so that kept trainings of before are not taken for it."""
LEAST_PATCHES = 5  # of each kind in each set: fewer say nothing about sensitivity or specificity
SECONDS_BETWEEN_WORDS = 30
RESNETS = {"resnet10": resnet10, "resnet18": resnet18, "resnet50": resnet50}


@dataclass(frozen=True)
class Arm:
    """What a detector is trained on: share of a batch's lesions that are synthetic, in [0, 1], and the augmentation of all patches.

    "turns" are flips and quarter turns alone. Lesion-free patches are always real.
    """

    name: str
    augmentation: Literal["none", "turns", "classic", "policy"]
    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"the synthetic share of lesions is above 0 and at most 1, got {self.share:g}")


REAL, CLASSIC, POLICY = Arm("real", "none"), Arm("real+classic", "classic"), Arm("real+policy", "policy")
SYNTHETIC, SYNTHETIC_ONLY = Arm("real+classic+synthetic", "classic", 0.25), Arm("synthetic", "classic", 1.0)
ARMS = (REAL, CLASSIC, SYNTHETIC, SYNTHETIC_ONLY)


@dataclass(frozen=True)
class DetectorSet:
    """Patches of some patients. lesion: bool (N,), False for lesion-free; patients: N ids; labels: N class names, to balance by."""

    hu: NDArray[np.int16]
    lesion: NDArray[np.bool_]
    patients: NDArray
    labels: NDArray | None = None


@dataclass(frozen=True)
class DetectorRun:
    """One arm trained from one seed: scores of the test patches, and the threshold to read them by.

    scores: log-odds of a lesion, float64 (N,). validation_scores: of the validation patches, None without
    any. threshold_from: which patches it was fixed on.
    """

    arm: str
    seed: int
    scores: NDArray[np.float64]
    validation_scores: NDArray[np.float64] | None
    threshold: float
    threshold_from: str


@dataclass(frozen=True)
class Training:
    """The training that runs: `number` of `total`, of which `kept` were done before; seconds_left for all, None while unknown."""

    arm: str
    seed: int
    number: int
    total: int
    kept: int
    seconds_left: float | None


@dataclass(frozen=True)
class Recipe:
    """How every arm is trained. balance: which lesions a batch draws: each lesion equally often, or each class."""

    steps: int
    batch: int
    network: str
    balance: Literal["natural", "classes"]
    device: str


def run_detector(
    train: DetectorSet,
    validation: DetectorSet | None,
    test: DetectorSet,
    synthetic_hu: NDArray[np.int16],
    window: tuple[float, float],
    *,
    synthetic_labels: NDArray | None = None,
    arms: Sequence[Arm] = ARMS,
    seeds: int = 3,
    steps: int = 400,
    batch: int = 64,
    network: str = "small",
    balance: Literal["natural", "classes"] = "natural",
    specificity: float | None = None,
    device: str = "cpu",
    keep: Path | None = None,
    progress: Callable[[Training], None] = lambda training: None,
) -> list[DetectorRun]:
    """Trains every arm from every seed 0..seeds-1 and scores the validation and test patches.

    network: "small" (8 layers of 8 to 64 channels) or one of RESNETS, from scratch. The threshold is
    where balanced accuracy is best on validation patients, or where it calls the share `specificity` of
    their lesion-free patches free; without any, where the odds are even. What is trained is kept in the
    folder `keep`, and what is found there is not trained again. `progress` is told when a training begins,
    and every half minute.

    Raises ValueError, saying what is missing, when there is nothing to detect or to test on.
    """
    usable = validation if validation is not None and _enough(validation) else None
    check_detectable(train, usable, test)
    if any(arm.share for arm in arms) and len(synthetic_hu) < LEAST_PATCHES:
        raise ValueError(f"a detector needs {LEAST_PATCHES} synthetic lesions, got {len(synthetic_hu)}; draw more")
    recipe = Recipe(steps, batch, network, balance, device)
    synthetic = DetectorSet(synthetic_hu, np.ones(len(synthetic_hu), bool), np.arange(len(synthetic_hu)), synthetic_labels)
    everything = [(seed, arm) for seed in range(seeds) for arm in arms]  # seed by seed: what is kept stays paired
    store = DetectorStore(keep) if keep is not None else None
    keys = _keys(everything, recipe, train, usable, test, synthetic, window) if store else {}
    found = {one: old for one in everything if store and (old := store.load(keys[one])) and _fits(old, usable, test)}
    kept, steps_done, steps_left = len(found), 0, steps * (len(everything) - len(found))
    started = told = time.monotonic()

    for number, (seed, arm) in enumerate(everything, 1):
        if (seed, arm) in found:
            continue

        def tell(step: int, seed: int = seed, arm: Arm = arm, number: int = number) -> None:
            nonlocal told, steps_done, steps_left
            now = time.monotonic()
            if step == 0 or now - told > SECONDS_BETWEEN_WORDS:
                left = (now - started) / steps_done * steps_left if steps_done else None
                progress(Training(arm.name, seed, number, len(everything), kept, left))
                told = now
            steps_done, steps_left = steps_done + 1, steps_left - 1

        trained = train_detector(train, synthetic, window, arm, seed, recipe, tell)
        scores = {"test": log_odds_of(trained, test.hu, window, device)}
        if usable is not None:
            scores["validation"] = log_odds_of(trained, usable.hu, window, device)
        found[seed, arm] = scores
        if store:
            store.save(keys[seed, arm], scores)
    return [_run(arm.name, seed, found[seed, arm], usable, specificity) for seed, arm in everything]


def ensembles(runs: list[DetectorRun], validation: DetectorSet | None, specificity: float | None = None) -> list[DetectorRun]:
    """Each arm's seeds as one detector, by their mean log-odds; its threshold comes from validation patients as theirs do."""
    found = []
    for arm in dict.fromkeys(run.arm for run in runs):
        mine = [run for run in runs if run.arm == arm]
        scores = {"test": np.mean([run.scores for run in mine], 0)}
        of_validation = [run.validation_scores for run in mine if run.validation_scores is not None]
        if of_validation:
            scores["validation"] = np.mean(of_validation, 0)
        found.append(_run(f"ensemble of {arm}", 0, scores, validation if of_validation else None, specificity))
    return found


def check_detectable(train: DetectorSet, validation: DetectorSet | None, test: DetectorSet) -> None:
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
    sets = {"training": train, "held-out": test, **({"validation": validation} if validation else {})}
    for a, b in (("training", "held-out"), ("training", "validation"), ("validation", "held-out")):
        if b in sets and a in sets and (both := set(sets[a].patients.tolist()) & set(sets[b].patients.tolist())):
            raise ValueError(f"{len(both)} patients are in both the {a} and the {b} set; split by patient")


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


def detector_network(name: str, dimensions: int, seed: int, device: str) -> nn.Module:
    """A ResNet from scratch; input (B, 1, *shape), output (B, 1) log-odds."""
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        if name == "small":
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
        else:
            network = RESNETS[name](pretrained=False, spatial_dims=dimensions, n_input_channels=1, num_classes=1)
    thinned_before(network)
    layout = channels_last(dimensions)  # 1.2 to 1.9 times as fast on a CPU
    return network.to(device).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def train_detector(
    train: DetectorSet,
    synthetic: DetectorSet,
    window: tuple[float, float],
    arm: Arm,
    seed: int,
    recipe: Recipe,
    tell: Callable[[int], None],
) -> nn.Module:
    """The network after recipe.steps batches, half of each lesions, in eval mode; tell(step) comes before each step.

    All draws come from seed. synthetic may be empty where the arm has no share of it.
    """
    # A generator each: what one arm has no use for changes no other arm's draws, and arms stay paired.
    weights, real, drawn, classic, policy = np.random.default_rng(seed).spawn(5)
    network = detector_network(recipe.network, train.hu.ndim - 1, int(weights.integers(2**31)), recipe.device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=recipe.steps)
    x, generated = (to_unit(one.hu, window, recipe.device) for one in (train, synthetic))
    lesions, free = np.flatnonzero(train.lesion), np.flatnonzero(~train.lesion)
    chances, synthetic_chances = (_chances(one, recipe.balance) for one in (train, synthetic))
    half = recipe.batch // 2
    replaced = round(arm.share * half)
    target = torch.cat([torch.ones(half, 1), torch.zeros(half, 1)]).to(recipe.device)
    for step in range(recipe.steps):
        tell(step)
        patches = x[np.concatenate([real.choice(lesions, half, p=chances), real.choice(free, half)])]
        if replaced:
            patches[:replaced] = generated[drawn.choice(len(generated), half, p=synthetic_chances)[:replaced]]
        if arm.augmentation == "turns":
            patches = augment_turns(patches, classic)
        elif arm.augmentation != "none":
            patches = augment_classic(patches, classic)
        if arm.augmentation == "policy":
            patches = augment_policy(patches, policy)
        loss = nn.functional.binary_cross_entropy_with_logits(network(patches[:, None]), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def log_odds_of(network: nn.Module, hu: NDArray[np.int16], window: tuple[float, float], device: str) -> NDArray[np.float64]:
    """What a network of `train_detector` says of each patch: log-odds of a lesion, (N,)."""
    x = to_unit(hu, window, device)
    return np.concatenate([network(some[:, None])[:, 0].double().cpu().numpy() for some in x.split(256)])


def _enough(one: DetectorSet) -> bool:
    return min(int(one.lesion.sum()), int((~one.lesion).sum())) >= LEAST_PATCHES


def _fits(kept: Arrays, validation: DetectorSet | None, test: DetectorSet) -> bool:
    wanted = {"test": len(test.hu), **({"validation": len(validation.hu)} if validation else {})}
    return {name: len(scores) for name, scores in kept.items()} == wanted


def _run(arm: str, seed: int, scores: Arrays, validation: DetectorSet | None, specificity: float | None) -> DetectorRun:
    if validation is None:
        return DetectorRun(arm, seed, scores["test"], None, 0.0, "even odds (no validation patients)")
    threshold = choose_threshold(scores["validation"], validation.lesion, specificity)
    return DetectorRun(arm, seed, scores["test"], scores["validation"], threshold, "validation patients")


def _keys(
    everything: list[tuple[int, Arm]],
    recipe: Recipe,
    train: DetectorSet,
    validation: DetectorSet | None,
    test: DetectorSet,
    synthetic: DetectorSet,
    window: tuple[float, float],
) -> dict[tuple[int, Arm], dict[str, Any]]:
    """All that each training's scores depend on. Arms without synthetic lesions do not depend on these."""

    def content(one: DetectorSet, balanced: bool = False) -> list[str]:
        labels = [content_hash(np.asarray(one.labels, str))] if balanced and one.labels is not None else []
        return [content_hash(one.hu), content_hash(one.lesion), *labels]

    balanced = recipe.balance == "classes"
    shared = {
        "version": VERSION,
        "torch": torch.__version__,
        "monai": monai.__version__,
        "recipe": asdict(recipe),
        "window": [float(edge) for edge in window],
        "train": content(train, balanced),
        "validation": content_hash(validation.hu) if validation is not None else None,
        "test": content_hash(test.hu),
    }
    drawn = content(synthetic, balanced)
    return {
        (seed, arm): {
            **shared,
            "seed": seed,
            "augmentation": arm.augmentation,
            "share": arm.share,
            "synthetic": drawn if arm.share else None,
        }
        for seed, arm in everything
    }


def _chances(one: DetectorSet, balance: str) -> NDArray[np.float64] | None:
    """How likely each lesion is to be drawn, summing to 1; None when all are equally."""
    if balance == "natural" or one.labels is None or not one.lesion.any():
        return None
    _, index, counts = np.unique(one.labels[one.lesion], return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[index])
