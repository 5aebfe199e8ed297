"""One WGAN-GP step, on this process's share of the batch. Patches are float32 in [-1, 1].

Every random number follows from (seed, purpose, step): nothing of a generator's state needs saving, and a
resumed run equals an uninterrupted one bit for bit on the same CPU.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gan.augment import LOOK_EVERY, Changes, Overfitting
from gan.checkpoint import Checkpoint
from gan.config import NetworkConfig, TrainingConfig
from gan.context import Backgrounds, ContextGenerator, Patches, Scene
from gan.losses import CriticTerms, critic_gradients, generator_loss
from gan.networks import BatchNorm, Critic, Generator, place
from gan.not_finite import NotFinite, first_not_finite, weight_not_finite
from gan.processes import Processes, shares

if TYPE_CHECKING:
    from gan.encoder import Encoder

_INIT, _DATA, _LATENT, _STATISTICS = range(4)
MONITOR = 100

SETTLED_ON = 1 << 20
"""Pixels drawn to measure the averaged generator's batch statistics."""

MOST_SKIPPED = 100
"""Steps in a row that are skipped because their gradient is not finite; then nothing is left to hope for."""


@dataclass(frozen=True)
class TrainingSet:
    """Patches, and what is known of each. condition: float32 (N, K), see conditions.py. weights: float64 (N,), sum 1, the chance of
    being drawn; None for equal ones. patients: (N,), whose each is. describe: names a patch for an error message. diameters_mm: (N,), all
    known, where lesions are drawn into lesion-free patches (see context.py)."""

    patches: Patches
    condition: np.ndarray | None = None
    weights: np.ndarray | None = None
    patients: np.ndarray | None = None
    describe: Callable[[int], str] = "patch {}".format
    diameters_mm: np.ndarray | None = None

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """int64 (count,): positions, drawn independently."""
        return rng.choice(len(self.patches), size=count, p=self.weights)


def latents(seeds: Sequence[int] | Sequence[np.random.SeedSequence], size: int) -> Tensor:
    """float32 (N, size), standard normal; row n follows from seeds[n] alone."""
    rows = [np.random.default_rng(seed).standard_normal(size, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def draw(net: Generator | ContextGenerator, z: Tensor, condition: Tensor | None, scene: Scene | None) -> Tensor:
    """(N, 1, *S) in [-1, 1]: what a generator makes of latents, whole patches or lesions in a scene."""
    return net(z, condition) if scene is None else net(z, condition, scene)  # type: ignore[no-any-return]


def seen(patches: Tensor, scene: Scene | None) -> Tensor:
    """Patches as the critic gets to see them: of a scene, little more than the lesion."""
    return patches if scene is None else patches * scene.view


class Trainer:
    """Generator, its average, critic and their optimisers, and the step that trains them.

    conditions: K, how many numbers describe a patch. processes: those of the run; by default as the configuration says.
    backgrounds: for a generator that draws lesions into lesion-free patches; the training set then has diameters.
    """

    def __init__(
        self, shape: Sequence[int], networks: NetworkConfig, config: TrainingConfig, conditions: int = 0,
        processes: Processes | None = None, encoder: Encoder | None = None, backgrounds: Backgrounds | None = None,
    ):  # fmt: skip
        config = config.settled(shape)
        self.penalty_weight = config.penalty_weight or 0.0
        self.shape, self.config, self.step, self.skipped, self._skipped_in_a_row = tuple(shape), config, 0, 0, 0
        self.processes = processes or Processes(config)
        self.device, self.dtype = self.processes.device, self.processes.dtype
        self.encoder, self.backgrounds = encoder and encoder.to(self.device, self.dtype), backgrounds
        self._mirrored = 1 if backgrounds is None else len(shape)  # axes, from the last: left to right, or every way, as backgrounds are
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([config.seed, _INIT]).integers(2**63)))
            generator: Generator | ContextGenerator = (ContextGenerator if backgrounds else Generator)(
                shape, networks.channels, networks.latent, conditions
            )
            critic = Critic(shape, networks.channels, conditions)
        self.generator = place(generator.to(self.dtype), self.device, len(shape))
        self.critic = place(critic.to(self.dtype), self.device, len(shape))
        if config.frozen_layers >= len(self.critic.layers):
            raise ValueError(f"training.frozen_layers is {config.frozen_layers}, and the critic has {len(self.critic.layers)} layers")
        self.critic.layers[: config.frozen_layers].requires_grad_(False)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        for layer in self.generator.modules():
            if isinstance(layer, BatchNorm):
                layer.sum_over = self.processes.differentiable_sum()
        self.generator_optimizer, self.critic_optimizer = (
            torch.optim.Adam(
                [p for p in net.parameters() if p.requires_grad], lr=config.learning_rate or 0.0, betas=config.betas, fused=True
            )
            for net in (self.generator, self.critic)
        )
        self.overfitting = Overfitting(config.augment) if config.augment else None
        self.observe: Callable[[dict[nn.Parameter, Tensor]], None] | None = None
        """Given the critic's gradient before each of its steps: what an attacker who watches the training sees."""
        self.shown = 0
        """Training patches shown to the critic, by this object."""
        self._owner: np.ndarray | None = None
        self._last: tuple[Tensor, Tensor | None]

    @property
    def tick(self) -> int:
        """What log_every, samples_every and checkpoint_every count."""
        return self.step

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        return self.step / self.config.steps

    @property
    def privacy_spent(self) -> dict[str, Any] | None:
        """What a checkpoint has to say of privacy; None where there is none."""
        return None

    timing_is_public = True
    """Whether lasting metrics may say how long steps took."""

    def about_to_show(self) -> None:
        """Called before anything of this step leaves the process: a line, a picture, a checkpoint."""

    def update(self, data: TrainingSet, held_out: TrainingSet | None = None) -> dict[str, Tensor | float]:
        """n_critic critic steps and one generator step; what they saw, by the names of metrics.jsonl.

        Of the last critic step: its loss, the penalty before its weight, the mean norm of the slope, and `variety`, the mean squared
        distance of two synthetic patches of the batch, as a share of that of two real ones. held_out: what config.augment goes by.
        Raises NotFinite when a gradient is not finite and is not to be skipped.
        """
        c = self.config
        self._share(data)
        for n in range(c.n_critic):
            terms, critic_norm, real, synthetic = self._critic_step(data, np.random.default_rng([c.seed, _DATA, self.step, n]))
        loss, generator_norm = self._generator_step(data, real)
        self.step += 1
        self.shown += c.n_critic * c.batch
        self._move_average()
        if self.overfitting and held_out is not None and self.step % LOOK_EVERY == 0:
            self._measure_overfitting(self.overfitting, data, held_out)
        return {
            "critic_loss": terms.loss, "generator_loss": loss, "penalty": terms.penalty, "slope_norm": terms.slope_norm,
            "critic_gradient_norm": critic_norm, "generator_gradient_norm": generator_norm, "variety": _spread(synthetic) / _spread(real),
            **({"augment_probability": self.overfitting.probability} if self.overfitting else {}),
        }  # fmt: skip

    def look(self, data: TrainingSet, held_out: TrainingSet | None) -> dict[str, float]:
        """The critic's Wasserstein estimate on training patches and on held-out ones: where they part, it learns patients by heart."""
        rngs = (np.random.default_rng([self.config.seed, MONITOR, n]) for n in range(2))
        sets = {"wasserstein": data, "wasserstein_held_out": held_out}
        found = {name: self.wasserstein(one, rng) for (name, one), rng in zip(sets.items(), rngs, strict=True) if one is not None}
        return found | ({"skipped_steps": float(self.skipped)} if self.skipped else {})

    def _share(self, data: TrainingSet) -> None:
        """Which process shows which patches: decided once."""
        if self.processes.count > 1 and self._owner is None:
            patients = np.arange(len(data.patches)) if data.patients is None else data.patients
            self._owner = shares(patients, self.processes.count)

    def _critic_step(self, data: TrainingSet, rng: np.random.Generator) -> tuple[CriticTerms, float, Tensor, Tensor]:
        c = self.config
        drawn = data.draw(rng, c.batch)
        flips = [(rng.random(c.batch) < 0.5) & c.mirror for _ in range(self._mirrored)]
        pairs = max(1, round(c.penalty_fraction * c.batch))
        z = rng.standard_normal((c.batch, self.generator.latent), dtype=np.float32)
        mix = rng.random((pairs, *[1] * (1 + len(self.shape))), dtype=np.float32)
        mine = np.ones(c.batch, bool) if self._owner is None else self._owner[drawn] == self.processes.rank
        positions, mix, condition = drawn[mine], mix[mine[:pairs]], self._condition(data, drawn[mine])
        like = data.patches[drawn] if self.backgrounds else None
        real = self._to_device(data.patches[positions] if like is None else like[mine])
        for axis, flipped in enumerate(flips, 1):
            real = torch.where(self._to_device(flipped[mine]).view(-1, *[1] * (real.ndim - 1)) > 0, real.flip(-axis), real)
        scene = self.scene(rng, self._diameters(data, drawn), mine, like)
        with self.processes.autocast():
            with torch.no_grad():
                synthetic = draw(self.generator, self._to_device(z[mine]), condition, scene).to(self.dtype)
            real, synthetic = seen(real, scene), seen(synthetic, scene)
            found, terms = critic_gradients(
                self.critic, self._changed(real, rng, mine), self._changed(synthetic, rng, mine), self._to_device(mix), self.penalty_weight,
                condition, batch=c.batch, pairs=pairs,
            )  # fmt: skip
        *gradients, summed = self.processes.sum([*found.values(), torch.stack(terms)])
        norm = _norm(gradients)
        if self._usable(norm, lambda: self._culprit(data, positions, real, synthetic, condition)):
            self._critic_step_with(list(found), gradients)
        self._last = synthetic, condition
        return CriticTerms(*summed), norm, real, synthetic

    def _critic_step_with(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
        if self.observe is not None:
            self.observe(dict(zip(parameters, gradients, strict=True)))
        _step_with(self.critic_optimizer, parameters, gradients)

    def _generator_step(self, data: TrainingSet, real: Tensor | None) -> tuple[Tensor, float]:
        """real: for an encoder to compare with."""
        c, mine = self.config, slice(self.processes.rank, None, self.processes.count)
        rng = np.random.default_rng([c.seed, _LATENT, self.step])
        z = rng.standard_normal((c.batch, self.generator.latent), dtype=np.float32)
        condition, scene = self._to_draw(data, rng, c.batch, mine)
        with self.processes.autocast():
            synthetic = seen(draw(self.generator, self._to_device(z[mine]), condition, scene), scene)
            loss = generator_loss(self.critic, self._changed(synthetic, rng, mine), condition, batch=c.batch)
            if self.encoder is not None and real is not None:
                from gan.encoder import feature_matching_loss

                loss = loss + c.feature_weight / self.processes.count * feature_matching_loss(self.encoder, real, synthetic)
        parameters = list(self.generator.parameters())
        *gradients, total = self.processes.sum([*torch.autograd.grad(loss, parameters), loss.detach()])
        norm = _norm(gradients)
        inputs = [self._to_device(z[mine]), condition, *([] if scene is None else [scene])]
        if self._usable(norm, lambda: first_not_finite(self.generator, "generator", *inputs) or "the loss"):
            _step_with(self.generator_optimizer, parameters, gradients)
        return total, norm

    def wasserstein(self, data: TrainingSet, rng: np.random.Generator) -> float:
        """Mean score of up to 256 of these patches, less that of the last synthetic ones: the critic's Wasserstein estimate on them."""
        with torch.no_grad():
            return self._mean_score(data, rng, 256) - self.critic(*self._last).mean().item()

    @torch.no_grad()
    def _mean_score(self, data: TrainingSet, rng: np.random.Generator, most: int) -> float:
        positions = rng.choice(len(data.patches), size=min(most, len(data.patches)), replace=False)
        real = self._to_device(data.patches[positions])
        if self.backgrounds is not None:
            real = real * self._to_device(self.backgrounds.view(self._diameters(data, positions)))
        return self.critic(real, self._condition(data, positions)).mean().item()

    def _changed(self, x: Tensor, rng: np.random.Generator, mine: np.ndarray | slice) -> Tensor:
        """This process's share of a batch as the critic gets to see it."""
        if not self.overfitting or not self.overfitting.probability:
            return x
        return Changes.draw(rng, self.config.batch, self.shape, self.overfitting.probability).of(mine).made(x)

    @torch.no_grad()
    def _measure_overfitting(self, overfitting: Overfitting, data: TrainingSet, held_out: TrainingSet) -> None:
        """The processes share their last synthetic patches, so all move alike."""
        scores = self.critic(*self._last)
        total, count = self.processes.sum([scores.sum()[None], scores.new_full((1,), len(scores))])
        rngs = (np.random.default_rng([self.config.seed, MONITOR, 5, self.step, n]) for n in range(2))
        overfitting.look(
            *(self._mean_score(one, rng, 64) - (total / count).item() for one, rng in zip((data, held_out), rngs, strict=True))
        )

    def _usable(self, norm: float, culprit: Callable[[], str]) -> bool:
        """Whether a gradient can be taken. Raises NotFinite where it cannot and the configuration says to stop."""
        if math.isfinite(norm):
            self._skipped_in_a_row = 0
            return True
        self._skipped_in_a_row += 1
        self.about_to_show()
        if self.config.not_finite == "stop" or self._skipped_in_a_row >= MOST_SKIPPED:
            raise NotFinite(
                f"training diverged: the gradient of step {self.step + 1} is not finite, first seen in {culprit()}; the last checkpoint is "
                "whole. Start anew with a lower training.learning_rate, or skip such steps (--training.not_finite skip)"
            )
        self.skipped += 1
        return False

    def _culprit(self, data: TrainingSet, positions: np.ndarray, real: Tensor, synthetic: Tensor, condition: Tensor | None) -> str:
        bad = ~torch.isfinite(real.flatten(1)).all(1).cpu().numpy()
        if bad.any():
            return data.describe(int(positions[bad][0]))
        if not torch.isfinite(synthetic).all():
            return weight_not_finite(self.generator, "generator") or "the generator's output"
        return (
            first_not_finite(
                self.critic, "critic", torch.cat([real, synthetic]), *[torch.cat([c, c]) for c in [condition] if c is not None]
            )
            or "the penalty"
        )

    def _to_draw(
        self, data: TrainingSet, rng: np.random.Generator, count: int, mine: slice = slice(None)
    ) -> tuple[Tensor | None, Scene | None]:
        """What to draw samples for, (count, K), and into, as the training set is; of which only `mine` are wanted."""
        if data.condition is None and self.backgrounds is None:
            return None, None
        positions = data.draw(rng, count)
        like = data.patches[positions] if self.backgrounds else None
        return self._condition(data, positions[mine]), self.scene(rng, self._diameters(data, positions), mine, like)

    def _diameters(self, data: TrainingSet, positions: np.ndarray) -> np.ndarray:
        return np.full(len(positions), np.nan) if data.diameters_mm is None else data.diameters_mm[positions]

    def scene(
        self, rng: np.random.Generator, diameters_mm: np.ndarray, mine: np.ndarray | slice = slice(None),
        like: np.ndarray | Tensor | None = None,
    ) -> Scene | None:  # fmt: skip
        """What lesions of these diameters are drawn into; None for a generator of whole patches. like: see Backgrounds.draw."""
        if self.backgrounds is None:
            return None
        return Scene(*(self._to_device(each[mine]) for each in self.backgrounds.scene(rng, diameters_mm, like)))

    def _condition(self, data: TrainingSet, positions: np.ndarray) -> Tensor | None:
        return None if data.condition is None else self._to_device(data.condition[positions])

    def _to_device(self, values: np.ndarray | Tensor) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values) if isinstance(values, np.ndarray) else values).to(
            self.device, self.dtype, non_blocking=True
        )

    @torch.no_grad()
    def _move_average(self) -> None:
        """The average's half-life is a share of the steps so far, so short runs are not held back by their start."""
        half_life = self.config.average_share * self.step
        keep = 0.5 ** (1 / half_life) if half_life > 0 else 0.0
        torch._foreach_lerp_(list(self.average.parameters()), list(self.generator.parameters()), 1 - keep)

    @torch.no_grad()
    def settle(self, data: TrainingSet) -> None:
        """Measures the averaged generator's batch statistics on SETTLED_ON pixels of its own.

        Those of the training generator do not fit: averaged weights give smaller activations, and samples would lose contrast
        (Izmailov et al. 2018, sec. 3.2, say the same of averaged classifiers).
        """
        c, layers = self.config, [layer for layer in self.average.modules() if isinstance(layer, BatchNorm)]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean of all batches
        self.average.train()
        for n in range(max(2, min(16, SETTLED_ON // (c.batch * math.prod(self.shape))))):
            rng = np.random.default_rng([c.seed, _STATISTICS, n])
            condition, scene = self._to_draw(data, rng, c.batch)
            draw(self.average, self._to_device(rng.standard_normal((c.batch, self.average.latent), dtype=np.float32)), condition, scene)
        self.average.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name."""
        named: dict[str, Tensor] = {}
        for name, net in self._networks():
            named |= {f"{name}.{k}": t for k, t in net.state_dict().items()}
        for name, optimizer in self._optimizers():
            for n, state in optimizer.state_dict()["state"].items():
                named |= {f"{name}_optimizer.{n}.{k}": t for k, t in state.items()}
        return named | ({"augment.state": self.overfitting.state} if self.overfitting else {})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over a checkpoint's state. Raises ValueError when it is of other networks."""
        try:
            for name, net in self._networks():
                net.load_state_dict(section(checkpoint.tensors, name))
            for name, optimizer in self._optimizers():
                parameters = optimizer.param_groups[0]["params"]
                state: dict[int, dict[str, Tensor]] = {}
                for key, tensor in section(checkpoint.tensors, f"{name}_optimizer").items():
                    number, _, what = key.partition(".")
                    like = parameters[int(number)]
                    if tensor.shape == like.shape:  # the fused optimiser walks memory: moments need their parameter's strides
                        tensor = torch.empty_like(like).copy_(tensor)
                    state.setdefault(int(number), {})[what] = tensor
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            if self.overfitting:
                self.overfitting.state = checkpoint.tensors["augment.state"]
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            cause = str(error).strip().splitlines()
            raise ValueError(
                f"checkpoint of step {checkpoint.step} does not fit these networks: {cause[min(1, len(cause) - 1)].strip()}"
            ) from None
        self.step = checkpoint.step

    def _networks(self) -> Iterable[tuple[str, nn.Module]]:
        return ("generator", self.generator), ("average", self.average), ("critic", self.critic)

    def _optimizers(self) -> Iterable[tuple[str, torch.optim.Optimizer]]:
        return ("generator", self.generator_optimizer), ("critic", self.critic_optimizer)


def section(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names start with `name.`, without it."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def _step_with(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """An optimiser's step with these gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient.stride() != parameter.stride():  # the fused optimiser walks memory, see restore()
            gradient = torch.empty_like(parameter).copy_(gradient)
        parameter.grad = gradient
    optimizer.step()


def _norm(gradients: Sequence[Tensor]) -> float:
    """The Euclidean norm of all of them together."""
    return torch.stack(torch._foreach_norm(list(gradients))).norm().item()


def _spread(x: Tensor) -> Tensor:
    """Half the mean squared distance of two different patches of these (N, ...); NaN of fewer than two."""
    return x.flatten(1).sub(x.flatten(1).mean(0)).square().sum() / (len(x) - 1 if len(x) > 1 else torch.nan)
