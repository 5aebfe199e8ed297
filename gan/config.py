"""The settings of a run. Importing this file loads nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

Origin = Literal["cohort", "public", "phantom", "unknown"]
"""Whose patches lesions are drawn into; context.ORIGINS has it in words."""


@dataclass(frozen=True)
class NetworkConfig:
    """The size of generator and critic, and what they are told of a patch.

    Args:
        channels: Feature maps of the critic's first layer; doubled with each halving of the patch, up to eightfold.
        latent: Numbers a sample is drawn from.
        condition: What a sample can be asked for. auto takes the class where there are several, else nothing.
    """

    channels: int = 32
    latent: int = 128
    condition: Literal["auto", "none", "class", "diameter", "class+diameter"] = "auto"

    def __post_init__(self) -> None:
        """Raises ValueError when a network would be empty."""
        if self.channels < 1 or self.latent < 1:
            raise ValueError(f"want networks.channels and networks.latent of 1 or more, got {self.channels} and {self.latent}")


@dataclass(frozen=True)
class TrainingConfig:
    """How a run trains. The defaults are those that came nearest to held-out patients soonest (benchmarks/LOG.md).

    Args:
        steps: Generator updates in the whole run.
        batch: Patches a critic step, over all processes together.
        n_critic: Critic steps for each generator update.
        penalty_weight: Lambda, the weight of the gradient penalty. null: 10 up to 32 x 32, then more, as the root of the number of pixels.
        penalty_fraction: Share of the pairs that the penalty is taken on; its expectation stays the same.
        learning_rate: Of both Adam optimisers. null: 1e-3, and less for patches of more than 32,768 pixels, as the root of their number.
        betas: Of both Adam optimisers.
        average_share: Half-life of the generator's moving average, as a share of the steps so far.
        mirror: Show each training patch flipped left to right half of the time.
        augment: For few patches: the critic sees all of them changed, the more the more it overfits, measured on validation patients.
            0 for never; else the overfitting to aim at, such as 0.5.
        balance: 0 draws each class as often as it occurs, 1 every class equally often, values between in between.
        frozen_layers: Of the critic, counted from the image; they keep the weights of --init-from.
        feature_weight: Of the feature-matching loss, where --encoder gives an encoder.
        seed: All randomness of the run follows from it.
        log_every: Steps from one line of metrics to the next.
        samples_every: Steps from one sample grid to the next; 0 for one at the end.
        checkpoint_every: Steps from one checkpoint, and one look at validation patients, to the next; one is always made at the end.
        not_finite: What to do when a step's gradient has NaN or Inf in it: stop, or skip the step and go on.
        device: Where to compute; auto takes a GPU where there is one.
        devices: Processes on this machine, a GPU each if there are GPUs. torchrun's own number goes before it.
        nodes: Machines.
        precision: 32 bits; bf16-mixed for hardware that has it; 64 to compare runs.
    """

    steps: int = 5000
    batch: int = 32
    n_critic: int = 1
    penalty_weight: float | None = None
    penalty_fraction: float = 0.25
    learning_rate: float | None = None
    betas: tuple[float, float] = (0.0, 0.9)
    average_share: float = 0.05
    mirror: bool = True
    augment: float = 0.0
    balance: float = 0.0
    frozen_layers: int = 0
    feature_weight: float = 1.0
    seed: int = 0
    log_every: int = 50
    samples_every: int = 500
    checkpoint_every: int = 500
    not_finite: Literal["stop", "skip"] = "stop"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32", "bf16-mixed", "64"] = "32"

    def __post_init__(self) -> None:
        """Raises ValueError naming the first setting that makes no sense."""
        positive = ("steps", "batch", "n_critic", "log_every", "checkpoint_every", "devices", "nodes")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}, want more than 0")
        if not 0 < self.penalty_fraction <= 1 or (self.penalty_weight or 0) < 0:
            raise ValueError("want training.penalty_fraction above 0 up to 1, and training.penalty_weight from 0")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"training.learning_rate is {self.learning_rate}, want more than 0")
        if not (0 <= self.betas[0] < 1 and 0 <= self.betas[1] < 1):
            raise ValueError(f"training.betas is {self.betas}, want both from 0 to below 1")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"training.balance is {self.balance}, want 0 (as often as a class occurs) to 1 (every class equally often)")
        for name in ("average_share", "samples_every", "seed", "frozen_layers", "feature_weight", "augment"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}, want 0 or more")

    def settled(self, shape: Sequence[int]) -> TrainingConfig:
        """The same, with numbers where the patches' size was to decide.

        A critic gains W1 of slope 1 and pays lambda (slope - 1)^2, so its slope settles at 1 + W1 / (2 lambda), and the distance W1 of
        real and synthetic patches grows with the root of their pixels; a lambda that grows as fast holds the slope where it is at 32 x 32.
        """
        pixels = prod(shape)
        weight = 10 * max(1.0, (pixels / 2**10) ** 0.5) if self.penalty_weight is None else self.penalty_weight
        rate = 1e-3 * min(1.0, (2**15 / pixels) ** 0.5) if self.learning_rate is None else self.learning_rate
        return replace(self, penalty_weight=float(f"{weight:.3g}"), learning_rate=float(f"{rate:.3g}"))


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy of every training patient with all their patches: on when epsilon or noise_multiplier is given.

    Args:
        epsilon: The budget, such as 8; the noise follows from it. 0 for none.
        delta: The chance that the guarantee leaves out; far below 1 / number of patients.
        noise_multiplier: For experts: the noise itself, sigma, instead of epsilon.
        clip_norm: The longest gradient of a patient.
        patients: Training patients expected in a critic step; 0 for an eighth of them, 16 to 128.
        patches: Of each patient in a step.
        critic_steps: In the whole run, which ends with them. With privacy, log_every, samples_every and checkpoint_every count these.
        n_critic: Critic steps for each generator update, in place of training.n_critic.
        adaptive: Let it grow as the critic loses its hold, judged on synthetic patches. No help with few patients (benchmarks/LOG.md).
        dry_run: Only say what the budget would mean for these patients.
    """

    epsilon: float = 0.0
    delta: float = 1e-5
    noise_multiplier: float = 0.0
    clip_norm: float = 1.0
    patients: int = 0
    patches: int = 2
    critic_steps: int = 2000
    n_critic: int = 10
    adaptive: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for what no plan can be made of; privacy.plan_for checks the rest."""
        if self.n_critic < 1:
            raise ValueError(f"privacy.n_critic is {self.n_critic}, want 1 or more")

    @property
    def on(self) -> bool:
        """Whether the run is to be private. A negative value counts too, to be refused by name."""
        return self.epsilon != 0 or self.noise_multiplier != 0


@dataclass(frozen=True)
class ContextConfig:
    """Draw lesions into lesion-free patches instead of whole patches: more pictures of other anatomy where lesions are few.

    Args:
        on: Train such a model. It is asked for a diameter, and for a class where there are several.
        backgrounds: Patch folder whose lesion-free patches are drawn into. null: that of --data, its training patients.
        origin: Whose those patches are: cohort (the patients trained on), public, phantom or unknown.
    """

    on: bool = False
    backgrounds: str | None = None
    origin: Origin = "cohort"


PRESETS = {
    "paper": {
        "n_critic": 5, "penalty_weight": 10.0, "penalty_fraction": 1.0, "learning_rate": 1e-4, "betas": (0.0, 0.9),
        "batch": 64, "average_share": 0.0, "mirror": False,
    },
}  # fmt: skip
"""Named training settings. paper: Gulrajani et al. 2017, Algorithm 1 and its defaults."""
