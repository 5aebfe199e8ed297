"""The settings of a run. Importing this file loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NetworkConfig:
    """The size of generator and critic.

    Args:
        channels: Feature maps of the critic's first layer; doubled with each halving of the patch, up to eightfold.
        latent: Numbers a sample is drawn from.
    """

    channels: int = 32
    latent: int = 128

    def __post_init__(self) -> None:
        """Raises ValueError when a network would be empty."""
        if self.channels < 1 or self.latent < 1:
            raise ValueError(f"want networks.channels and networks.latent of 1 or more, got {self.channels} and {self.latent}")


@dataclass(frozen=True)
class TrainingConfig:
    """How a run trains. n_critic, penalty_weight and betas are those of Gulrajani et al. 2017, Algorithm 1.

    Args:
        steps: Generator updates in the whole run.
        batch: Patches a critic step.
        n_critic: Critic steps for each generator update.
        penalty_weight: Lambda, the weight of the gradient penalty.
        penalty_fraction: Share of the pairs that the penalty is taken on; its expectation stays the same.
        learning_rate: Of both Adam optimisers.
        betas: Of both Adam optimisers.
        average_share: Half-life of the generator's moving average, as a share of the steps so far.
        mirror: Show each training patch flipped left to right half of the time.
        seed: All randomness of the run follows from it.
        log_every: Steps from one line of metrics to the next.
        samples_every: Steps from one sample grid to the next; 0 for one at the end.
        checkpoint_every: Steps from one checkpoint to the next; one is always written at the end.
        device: Where to compute; auto takes a GPU where there is one.
    """

    steps: int = 5000
    batch: int = 64
    n_critic: int = 5
    penalty_weight: float = 10.0
    penalty_fraction: float = 1.0
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.9)
    average_share: float = 0.1
    mirror: bool = True
    seed: int = 0
    log_every: int = 50
    samples_every: int = 500
    checkpoint_every: int = 500
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        """Raises ValueError naming the first setting that makes no sense."""
        positive = ("steps", "batch", "n_critic", "learning_rate", "log_every", "checkpoint_every")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}, want more than 0")
        if not 0 < self.penalty_fraction <= 1 or self.penalty_weight < 0:
            raise ValueError("want training.penalty_fraction above 0 up to 1, and training.penalty_weight from 0")
        if not (0 <= self.betas[0] < 1 and 0 <= self.betas[1] < 1):
            raise ValueError(f"training.betas is {self.betas}, want both from 0 to below 1")
        if self.average_share < 0 or self.samples_every < 0 or self.seed < 0:
            raise ValueError("want training.average_share, samples_every and seed from 0")
