"""An attack on training: canary patients whom a coin puts in or leaves out, and what one who watches sees of each.

A canary is a patient with all their patches. Scores are float64 (m,), one a canary and higher for "in"; none is made with the coins, so
that what they tell of them was told by the training. The attacker watches every critic step, as differential privacy allows: they
know the weights, and what all others than the canaries contribute. Patches are float32 (N, 1, *S) in [-1, 1].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from gan.checkpoint import Checkpoint
from gan.conditions import Conditions
from gan.config import NetworkConfig, PrivacyConfig, TrainingConfig
from gan.losses import patient_gradients
from gan.privacy import PrivacyPlan, poisson
from gan.private_trainer import PrivateTrainer
from gan.trainer import Patches, Trainer, TrainingSet
from gan.training import in_memory

BYSTANDERS = 32
"""Training patches whose gradients are taken for what all patients' have in common."""
RIDGE = 1.0
"""The regression's penalty, over the mean square of what is left of a canary's gradient: a step holds noise, and patients in part."""
LOOKED_AT = 4
"""Patches of a patient that a white-box look takes gradients of, at most."""
SAMPLES = 1000
"""Synthetic patches of a black-box attack, fewer of large ones."""


@dataclass(frozen=True)
class Canaries:
    """m patients, to be put in or left out. patients: int (n,), 0 to m - 1 and ascending, whose each patch is.

    copies: how often a patch is put in; a crafted patient has the same patch several times, so that all of them push alike.
    """

    patches: np.ndarray
    patients: np.ndarray
    condition: np.ndarray | None = None
    copies: int = 1

    def __len__(self) -> int:
        return int(self.patients[-1]) + 1

    def of_each(self) -> list[np.ndarray]:
        """Positions of each patient's patches."""
        return np.split(np.arange(len(self.patients)), np.flatnonzero(np.diff(self.patients)) + 1)


@dataclass(frozen=True)
class Moment:
    """What the attacker has after so many critic steps, of which the accountant says epsilon (infinite without privacy).

    gradient_scores: from all steps so far; critic_scores: from the critic as it is. synthetic: float32 (N, 1, *S), of the averaged generator.
    """

    critic_steps: int
    epsilon: float
    gradient_scores: np.ndarray
    critic_scores: np.ndarray
    synthetic: np.ndarray


def crafted_pictures(count: int, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """float32 (count, 1, *shape) in [-1, 1]: blots of black and white, no two alike.

    Each is its own mirror image, as training may flip it. Blots are wide enough for a generator to draw and for the critic's layers
    to see, and have no likeness to CT, so that no other patient stands for a canary.
    """
    noise = rng.standard_normal((count, *shape))
    noise = gaussian_filter(noise, [0, *(max(0.7, side / 16) for side in shape)], mode="wrap")
    noise += noise[..., ::-1]
    noise /= noise.std(axis=tuple(range(1, noise.ndim)), keepdims=True)
    return np.tanh(2 * noise)[:, None].astype(np.float32)


def crafted(count: int, copies: int, shape: Sequence[int], conditions: Conditions, rng: np.random.Generator) -> Canaries:
    """So many patients with a crafted picture each, drawn for any class and diameter."""
    condition, _ = conditions.evenly(count, rng)
    return Canaries(crafted_pictures(count, shape, rng), np.arange(count), condition, copies)


def with_canaries(data: TrainingSet, canaries: Canaries, included: np.ndarray) -> TrainingSet:
    """The training set, and behind it the canaries that are in (bool (m,)). Patients are numbered anew."""
    mine = np.repeat(np.flatnonzero(included[canaries.patients]), canaries.copies)
    _, patients = np.unique(np.arange(len(data.patches)) if data.patients is None else data.patients, return_inverse=True)
    joined = None if data.condition is None or canaries.condition is None else np.concatenate([data.condition, canaries.condition[mine]])
    weights = data.weights
    if weights is not None:  # a canary's patch is drawn as often as others are on average
        weights = np.concatenate([weights, np.full(len(mine), weights.mean())])
        weights /= math.fsum(weights)
    numbers = np.concatenate([patients, patients.max() + 1 + canaries.patients[mine]])
    return TrainingSet(_Joined(data.patches, canaries.patches[mine]), joined, weights, numbers)


class _Joined:
    """Patches, and others behind them."""

    def __init__(self, first: Patches, behind: np.ndarray):
        self.first, self.behind = first, behind

    def __len__(self) -> int:
        return len(self.first) + len(self.behind)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        found = np.empty((len(positions), *self.behind.shape[1:]), np.float32)
        there = positions < len(self.first)
        found[there] = self.first[positions[there]]
        found[~there] = self.behind[positions[~there] - len(self.first)]
        return found


class WatchedTrainer(PrivateTrainer):
    """A private trainer that keeps apart what patients other than the canaries contributed to a critic step, for its attacker to know.

    The sum that leaves it is the same: two clipped sums are added. first_canary: the position of the first canary's patch.
    """

    first_canary = 0

    def _private_critic_step(self, data: TrainingSet) -> float:
        self.others: Mapping[nn.Parameter, Tensor] = {}
        return super()._private_critic_step(data)

    def _clipped_sum(self, data: TrainingSet, patients: Sequence[np.ndarray]) -> dict[nn.Parameter, Tensor]:
        canaries = [positions for positions in patients if positions[0] >= self.first_canary]
        others = [positions for positions in patients if positions[0] < self.first_canary]
        of_canaries = super()._clipped_sum(data, canaries) if canaries else {}
        of_others = super()._clipped_sum(data, others) if others else {}
        self.others = _sum(self.others, of_others)
        return _sum(of_canaries, of_others)


def _sum(x: Mapping[nn.Parameter, Tensor], y: Mapping[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
    return {p: x[p] + y[p] for p in x} if x and y else dict(x or y)


def coins(count: int, seed: int | None = None) -> np.ndarray:
    """bool (count,): a fair coin for each, that nobody can foresee; with a seed, for tests, that follow from it."""
    found = np.zeros(count, bool)
    found[poisson(count, 0.5) if seed is None else poisson(count, 0.5, np.random.default_rng([seed, 1]).bytes)] = True
    return found


def untrained_copy(run: Path, checkpoint: Checkpoint, critic_steps: int, seed: int, device: str) -> Trainer:
    """A trainer with the networks and settings of a run, before its first step, that will do so many critic steps.

    A private one has secrets of its own, the run's sample rate and noise, and a plan for just these steps. The sample rate is not lowered
    for the canaries who join in addition: the accountant goes by it, by the noise and by the steps, and not by how many
    patients there are. Raises ValueError for a checkpoint or a config.yaml that does not describe its run, OSError without the latter.
    """
    try:
        settings, spent = checkpoint.config, checkpoint.privacy_spent
        networks = NetworkConfig(**settings["networks"])
        training = TrainingConfig(**{**settings["training"], "betas": tuple(settings["training"]["betas"]), "seed": seed})
        training = replace(training, device=device, devices=1, nodes=1)  # type: ignore[arg-type]
        conditions, shape = Conditions.of(settings.get("conditions", {})), tuple(checkpoint.trained_on["shape"])
        if spent is None:
            steps = math.ceil(critic_steps / training.n_critic)
            return Trainer(shape, networks, replace(training, steps=steps), conditions.size)
        plan = replace(PrivacyPlan(**spent["plan"]), critic_steps=critic_steps)
        privacy = PrivacyConfig(**yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["privacy"])
    except (yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{run}: its newest checkpoint and config.yaml do not describe it ({type(error).__name__}: {error})") from None
    return WatchedTrainer(shape, networks, training, privacy, plan, conditions)


def critic_steps_of(checkpoint: Checkpoint) -> int:
    """How many critic steps a run had done."""
    spent: Any = checkpoint.privacy_spent
    return int(spent["critic_steps"]) if spent else checkpoint.step * int(checkpoint.config["training"]["n_critic"])


def look_every(trainer: Trainer, canaries: Canaries) -> int:
    """From how many critic steps to the next a white-box look costs about as much as the training itself."""
    config = trainer.config
    pairs = trainer.plan.expected * trainer.plan.patches if isinstance(trainer, PrivateTrainer) else config.batch
    return max(1, round((len(canaries) + BYSTANDERS) * _rows(canaries) / pairs))


def _rows(canaries: Canaries) -> int:
    return min(LOOKED_AT, max(map(len, canaries.of_each())))


def attacked(
    trainer: Trainer, data: TrainingSet, canaries: Canaries, included: np.ndarray, every: int, moments: int, rng: np.random.Generator,
    held_out: TrainingSet | None = None, tell: Callable[[float, float], None] = lambda progress, seconds: None,
) -> Iterator[Moment]:  # fmt: skip
    """Trains to the end with the canaries that are in, and yields what the attacker has at so many moments, evenly spread.

    included: bool (m,), which no score is made with. every: critic steps from one look at gradients to the next. rng: the
    attacker's. held_out: what config.augment goes by. tell: is told of progress, 0 to 1, and the seconds since the start.
    """
    together = in_memory(with_canaries(data, canaries, included), trainer)
    attacker = _Attacker(trainer, data, canaries, every, rng)
    if isinstance(trainer, WatchedTrainer):
        trainer.first_canary = len(data.patches)
    trainer.observe, started, shown = attacker, time.monotonic(), 0
    while trainer.progress < 1:
        trainer.update(together, held_out)
        tell(trainer.progress, time.monotonic() - started)
        if int(trainer.progress * moments) > shown:
            shown = int(trainer.progress * moments)
            trainer.settle(together)
            spent = trainer.privacy_spent
            steps, epsilon = (spent["critic_steps"], spent["epsilon"]) if spent else (trainer.step * trainer.config.n_critic, math.inf)
            yield Moment(steps, epsilon, attacker.scores.copy(), attacker.critic_scores(), attacker.synthetic(together))
    trainer.observe = None


class _Attacker:
    """Sums up, over critic steps, how far each canary's own gradient shows in the one that the critic was given."""

    def __init__(self, trainer: Trainer, data: TrainingSet, canaries: Canaries, every: int, rng: np.random.Generator):
        self.trainer, self.data, self.canaries, self.every, self.rng = trainer, data, canaries, every, rng
        self.scores, self.steps = np.zeros(len(canaries)), 0

    def __call__(self, observed: Mapping[nn.Parameter, Tensor]) -> None:
        """A critic step is about to be taken with this gradient: how much of each canary is in it, by ridge regression.

        Gradients of all patients have much in common, and how far a canary's lies along that tells nothing of the canary: what the
        canaries' gradients share, and all that some bystanders' span, is taken out of them first.
        """
        self.steps += 1
        if self.steps % self.every:
            return
        trainer = self.trainer
        if isinstance(trainer, WatchedTrainer):
            expected, others = trainer.plan.expected, trainer.others
            observed = {p: expected * g - (others[p].to(g) if others else 0) for p, g in observed.items()}
        step = torch.cat([g.flatten() for g in observed.values()])
        own = self._gradients(list(observed))
        canaries, bystanders = own[: len(self.canaries)], own[len(self.canaries) :]
        common, _ = torch.linalg.qr(torch.cat([canaries.mean(0, keepdim=True), bystanders]).T)
        step = step - common @ (common.T @ step)  # out of one side of an inner product is out of both
        along = canaries @ common
        overlap, shown = (canaries @ canaries.T - along @ along.T).double(), (canaries @ (step / step.norm().clamp_min(1e-30))).double()
        left = overlap.diagonal().mean().clamp_min(1e-30)  # a step counts by how much of a canary's gradient is its own
        self.scores += torch.linalg.solve(overlap / left + RIDGE * torch.eye(len(overlap)).to(overlap), shown).cpu().numpy()

    def _gradients(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """(m + bystanders, P): critic gradients of the canaries and of some training patches, of length 1.

        All of them are paired with the same synthetic patches and mixed with them alike, so that they differ by their patients only.
        """
        trainer, rng, k = self.trainer, self.rng, _rows(self.canaries)
        some = rng.choice(len(self.data.patches), min(BYSTANDERS, len(self.data.patches)), replace=False)
        of_canaries = np.stack([np.resize(positions[:k], k) for positions in self.canaries.of_each()])
        n, pairs = len(of_canaries) + len(some), max(1, round(trainer.config.penalty_fraction * k))
        theirs = np.repeat(some, k)
        real = torch.cat([self._tensor(self.canaries.patches[of_canaries.ravel()]), self._tensor(self.data.patches[theirs])])
        condition = None
        if self.data.condition is not None and self.canaries.condition is not None:
            condition = self._tensor(np.concatenate([self.canaries.condition[of_canaries.ravel()], self.data.condition[theirs]]))
        z = self._tensor(np.tile(rng.standard_normal((k, trainer.generator.latent), dtype=np.float32), (n, 1)))
        mix = self._tensor(rng.random((1, pairs, *[1] * (1 + len(trainer.shape))), dtype=np.float32))
        was_training = trainer.generator.training
        trainer.generator.eval()
        with torch.no_grad():
            synthetic = trainer.generator(z, condition)
        trainer.generator.train(was_training)
        gradients = patient_gradients(
            trainer.critic, real.unflatten(0, (n, k)), synthetic.unflatten(0, (n, k)), mix.expand(n, *mix.shape[1:]), real.new_ones(n, k),
            trainer.penalty_weight, None if condition is None else condition.unflatten(0, (n, k)),
        )  # fmt: skip
        found = torch.stack([torch.cat([one[p].flatten() for p in parameters]) for one in gradients])
        return found.div_(found.norm(dim=1, keepdim=True).clamp_min(1e-30))

    @torch.no_grad()
    def critic_scores(self) -> np.ndarray:
        """float64 (m,): the critic's mean score of each canary's patches, less that of synthetic ones drawn for the same."""
        trainer, scores = self.trainer, []
        z = self._tensor(self.rng.standard_normal((8, trainer.average.latent), dtype=np.float32))
        for n in range(len(self.canaries.patches)):
            one = None if self.canaries.condition is None else self._tensor(self.canaries.condition[n : n + 1])
            eight = None if one is None else one.expand(8, -1)
            synthetic = trainer.critic(trainer.average(z, eight), eight).mean()
            scores.append((trainer.critic(self._tensor(self.canaries.patches[n : n + 1]), one) - synthetic).item())
        return np.array([np.mean([scores[n] for n in positions]) for positions in self.canaries.of_each()])

    @torch.no_grad()
    def synthetic(self, data: TrainingSet) -> np.ndarray:
        """float32 (N, 1, *S): what anybody can draw."""
        trainer, found = self.trainer, []
        count = min(SAMPLES, max(100, (1 << 22) // math.prod(trainer.shape)))
        for start in range(0, count, 100):
            z = self._tensor(self.rng.standard_normal((min(100, count - start), trainer.average.latent), dtype=np.float32))
            found.append(trainer.average(z, trainer._to_draw(data, self.rng, len(z))[0]).float().cpu().numpy())
        return np.concatenate(found)

    def _tensor(self, values: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(values).to(self.trainer.device, self.trainer.dtype)
