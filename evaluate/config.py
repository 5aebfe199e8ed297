"""What `python -m evaluate` can be told. Imports nothing heavy, so --help is quick."""

from dataclasses import dataclass, field
from typing import Literal

ARMS = ("real", "real+classic", "real+policy", "real+classic+synthetic", "synthetic", "ensemble")
DEFAULT_ARMS = ("real", "real+classic", "real+classic+synthetic", "synthetic")


@dataclass(frozen=True)
class DetectorConfig:
    """The downstream detector: a ResNet trained once per arm and seed, tested on held-out patients.

    Args:
        run: train the detector; it is most of the time an evaluation takes.
        arms: what it is trained on: default (all but policy and ensemble), all, or names separated by commas out of real, real+classic, real+policy
            (classic and TrivialAugment), real+classic+synthetic, synthetic (no real lesion), ensemble (the seeds' mean, with and without synthetic).
        steps: training steps of each arm and seed; 400 take about 7 s at 32 x 32 on one core.
        seeds: how often each arm is trained; 3 give a first idea, 5 or more a result to report, 1 no idea of what chance does.
        synthetic_share: share of the lesions in a batch that are synthetic, above 0, at most 1; several separated by commas are all
            trained, and validation patients choose the one that counts.
        network: small (8 layers), or MONAI's ResNet-10, -18 or -50, from scratch; 20 times as long on a CPU and more.
        balance: natural draws each real lesion equally often, classes each lesion class equally often, among real and among synthetic ones.
        threshold: where to call a lesion, fixed on validation patients: balanced (best balanced accuracy), or specificity:0.9 and the like.
        rare: CLASS:N keeps that class's lesions of N training patients, drawn at random, and leaves out those of the others.
        keep: folder where trainings that are done stay, so that other seeds, arms or samples need not repeat them; without it they are kept beside
            --out until the report is there.
    """

    run: bool = True
    arms: str = "default"
    steps: int = 400
    seeds: int = 3
    synthetic_share: float | list[float] | str = 0.25
    network: Literal["small", "resnet10", "resnet18", "resnet50"] = "small"
    balance: Literal["natural", "classes"] = "natural"
    threshold: str = "balanced"
    rare: str | None = None
    keep: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 10 or self.seeds < 1:
            raise ValueError(f"a detector needs 10 steps and 1 seed or more, got {self.steps} and {self.seeds}")
        # Each raises ValueError when it cannot be read.
        _ = self.arm_names, self.shares, self.specificity, self.rare_class

    @property
    def arm_names(self) -> tuple[str, ...]:
        """The arms asked for, in the order of ARMS."""
        named = {"default": set(DEFAULT_ARMS), "all": set(ARMS)}.get(self.arms, set(self.arms.split(",")))
        if unknown := sorted(named - set(ARMS)):
            raise ValueError(f"detector.arms names {unknown[0]!r}; want default, all, or some of {','.join(ARMS)}")
        if "real+classic" not in named or ("ensemble" in named and "real+classic+synthetic" not in named):
            raise ValueError(
                f"detector.arms is {self.arms!r}, but real+classic is what the others are compared with, and an ensemble needs "
                "real+classic+synthetic too; add them"
            )
        return tuple(name for name in ARMS if name in named)

    @property
    def shares(self) -> tuple[float, ...]:
        """The synthetic shares to train, each once, as they were given."""
        given = self.synthetic_share
        try:
            shares = [float(one) for one in (given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given])]
        except ValueError:
            raise ValueError(f"detector.synthetic_share is {given!r}; want a number such as 0.25, or several: 0.1,0.25,0.5") from None
        if not shares or not all(0 < share <= 1 for share in shares):
            raise ValueError(f"detector.synthetic_share is above 0 and at most 1, got {given}")
        return tuple(dict.fromkeys(shares))

    @property
    def specificity(self) -> float | None:
        """The specificity that fixes thresholds; None where balanced accuracy does."""
        if self.threshold == "balanced":
            return None
        kind, _, value = self.threshold.partition(":")
        try:
            found = float(value) if kind == "specificity" else -1.0
        except ValueError:
            found = -1.0
        if not 0 < found < 1:
            raise ValueError(f"detector.threshold is {self.threshold!r}; want balanced, or specificity:0.9 with a number between 0 and 1")
        return found

    @property
    def rare_class(self) -> tuple[str, int] | None:
        """The class to make rare, and how many of its training patients stay."""
        if self.rare is None:
            return None
        label, _, count = self.rare.rpartition(":")
        if not label or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"detector.rare is {self.rare!r}; want a class and a number of patients: nodule:100")
        return label, int(count)


@dataclass(frozen=True)
class EvaluateConfig:
    """How to evaluate.

    Args:
        inception_weights: file with torch-fidelity's Inception weights; without it the torch hub cache is looked at. Nothing is downloaded.
        encoder: file of `python -m evaluate encoder` with features learned from the training patients.
        torchscript: TorchScript files whose output is a feature vector. Such a file is a program, so only from a source you trust.
        cache_root: folder that keeps features by content, so that the next report need not compute them again.
        detector: the downstream detector.
        samples: most patches of a set that enter the comparisons; more are thinned at random.
        draws: resamplings behind each 95 % interval.
        suspects: pairs shown in the panel of possible copies.
        show_real: put real patches into the report's pictures; they are patient data.
        seed: of every random choice; the same seed on the same machine repeats the report.
        device: cpu, or cuda for the detector and the Inception network.
    """

    inception_weights: str | None = None
    encoder: str | None = None
    torchscript: list[str] = field(default_factory=list)
    cache_root: str | None = None
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    samples: int = 2000
    draws: int = 100
    suspects: int = 8
    show_real: bool = True
    seed: int = 0
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        if self.samples < 10 or self.draws < 10 or self.suspects < 0 or self.seed < 0:
            raise ValueError("samples and draws are 10 or more, suspects and seed 0 or more")
