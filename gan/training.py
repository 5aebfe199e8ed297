"""One WGAN-GP step, and the loop around it.

Every random number follows from (seed, purpose, step): nothing of a generator's state needs saving, and a
resumed run equals an uninterrupted one bit for bit on the same CPU. Patches are float32 in [-1, 1].
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gan.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gan.config import NetworkConfig, TrainingConfig
from gan.losses import CriticTerms, critic_loss, generator_loss
from gan.networks import Critic, Generator, device_of, place
from gan.tracker import Tracker

GRID_SEEDS = range(64)
"""Seeds of the latents in the sample grids."""

_INIT, _DATA, _LATENT = range(3)


class Patches(Protocol):
    """Training patches: a length, and float32 (N, 1, *shape) in [-1, 1] at positions (N,)."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: np.ndarray, /) -> np.ndarray: ...


def latents(seeds: Sequence[int], size: int) -> Tensor:
    """float32 (N, size), standard normal; row n follows from seeds[n] alone."""
    rows = [np.random.default_rng(seed).standard_normal(size, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


class Trainer:
    """Generator, its average, critic and their optimisers, and the step that trains them."""

    def __init__(self, shape: Sequence[int], networks: NetworkConfig, config: TrainingConfig):
        self.config, self.step = config, 0
        self.device = device_of(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.default_rng([config.seed, _INIT]).integers(2**63)))
            generator = Generator(shape, networks.channels, networks.latent)
            critic = Critic(shape, networks.channels)
        self.generator = place(generator, self.device, len(shape))
        self.critic = place(critic, self.device, len(shape))
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.generator_optimizer, self.critic_optimizer = (
            torch.optim.Adam(net.parameters(), lr=config.learning_rate, betas=config.betas, fused=True)
            for net in (self.generator, self.critic)
        )

    def update(self, patches: Patches) -> tuple[CriticTerms, Tensor]:
        """n_critic critic steps and one generator step; the last critic's terms and the generator's loss."""
        c = self.config
        for n in range(c.n_critic):
            terms = self._critic_step(patches, np.random.default_rng([c.seed, _DATA, self.step, n]))
        rng = np.random.default_rng([c.seed, _LATENT, self.step])
        self.critic.requires_grad_(False)
        loss = generator_loss(self.critic, self.generator(self._normal(rng, c.batch)))
        self.generator_optimizer.zero_grad()
        loss.backward()
        self.generator_optimizer.step()
        self.critic.requires_grad_(True)
        self.step += 1
        self._move_average()
        return terms, loss.detach()

    def _critic_step(self, patches: Patches, rng: np.random.Generator) -> CriticTerms:
        c = self.config
        real = patches[rng.integers(len(patches), size=c.batch)]
        if c.mirror:
            flipped = rng.random(c.batch) < 0.5
            real[flipped] = real[flipped][..., ::-1]
        with torch.no_grad():
            synthetic = self.generator(self._normal(rng, c.batch))
        pairs = max(1, round(c.penalty_fraction * c.batch))
        mix = rng.random((pairs, *[1] * (real.ndim - 1)), dtype=np.float32)
        loss, terms = critic_loss(self.critic, self._to_device(real), synthetic, self._to_device(mix), c.penalty_weight)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        return terms

    def _normal(self, rng: np.random.Generator, count: int) -> Tensor:
        return self._to_device(rng.standard_normal((count, self.generator.latent), dtype=np.float32))

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    @torch.no_grad()
    def _move_average(self) -> None:
        """The average's half-life is a share of the steps so far, so short runs are not held back by their start."""
        half_life = self.config.average_share * self.step
        keep = 0.5 ** (1 / half_life) if half_life > 0 else 0.0
        for mean, now in zip(_state(self.average), _state(self.generator), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - keep)
            else:
                mean.copy_(now)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name."""
        named: dict[str, Tensor] = {}
        for name, net in (("generator", self.generator), ("average", self.average), ("critic", self.critic)):
            named |= {f"{name}.{k}": t for k, t in net.state_dict().items()}
        for name, optimizer in (("generator", self.generator_optimizer), ("critic", self.critic_optimizer)):
            for n, state in optimizer.state_dict()["state"].items():
                named |= {f"{name}_optimizer.{n}.{k}": t for k, t in state.items()}
        return named

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes over a checkpoint's state. Raises ValueError when it is of other networks."""
        try:
            for name, net in (("generator", self.generator), ("average", self.average), ("critic", self.critic)):
                net.load_state_dict(section(checkpoint.tensors, name))
            for name, optimizer in (("generator", self.generator_optimizer), ("critic", self.critic_optimizer)):
                parameters = optimizer.param_groups[0]["params"]
                state: dict[int, dict[str, Tensor]] = {}
                for key, tensor in section(checkpoint.tensors, f"{name}_optimizer").items():
                    number, _, what = key.partition(".")
                    like = parameters[int(number)]
                    if tensor.shape == like.shape:  # the fused optimiser walks memory: moments need their parameter's strides
                        tensor = torch.empty_like(like).copy_(tensor)
                    state.setdefault(int(number), {})[what] = tensor
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        except (RuntimeError, ValueError, IndexError) as error:
            cause = str(error).strip().splitlines()
            raise ValueError(
                f"checkpoint of step {checkpoint.step} does not fit these networks: {cause[min(1, len(cause) - 1)].strip()}"
            ) from None
        self.step = checkpoint.step


def section(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors whose names start with `name.`, without it."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def _state(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def train(
    patches: Patches,
    shape: Sequence[int],
    networks: NetworkConfig,
    config: TrainingConfig,
    run: Path,
    trained_on: Mapping[str, Any],
    *,
    tracker: Callable[[int], Tracker],
    on_samples: Callable[[int, np.ndarray], None],
    on_log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    should_stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda line: None,
) -> int:
    """Trains until config.steps or until should_stop(), resuming the run folder's newest checkpoint; returns the step reached.

    tracker: makes the tracker, given the step the run starts at. on_samples: gets float32 (64, 1, *shape) from the
    averaged generator. Raises ValueError when the loss is no longer finite; the last checkpoint stays.
    """
    trainer = Trainer(shape, networks, config)
    try:
        trainer.restore(load_checkpoint(run, warn=warn))
    except FileNotFoundError:
        pass
    track = tracker(trainer.step)
    diverged = "training diverged: not all numbers are finite any more; the last checkpoint is whole, start anew with a lower training.learning_rate"
    started, first, saved = time.monotonic(), trainer.step, trainer.step

    def save() -> None:
        tensors = trainer.tensors()
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
            raise ValueError(diverged)
        settings = {"training": asdict(config), "networks": asdict(networks)}
        random = {"seed": config.seed, "scheme": "numpy.random.default_rng([seed, purpose, step, ...])"}
        save_checkpoint(run, Checkpoint(trainer.step, settings, trained_on, tensors, random))

    def draw() -> None:
        with torch.no_grad():
            x = trainer.average(latents(GRID_SEEDS, networks.latent).to(trainer.device))
        on_samples(trainer.step, x.float().cpu().numpy())

    try:
        while trainer.step < config.steps and not should_stop():
            terms, loss = trainer.update(patches)
            step, last = trainer.step, trainer.step == config.steps
            keep = last or step % config.checkpoint_every == 0
            log = last or step % config.log_every == 0
            if (keep or log) and not math.isfinite(terms.loss.item() + loss.item()):
                raise ValueError(diverged)
            if log or step == first + 1:  # a sign of life at once
                per_second = (step - first) / (time.monotonic() - started)
                metrics = {
                    "critic_loss": terms.loss.item(), "generator_loss": loss.item(), "wasserstein": terms.wasserstein.item(),
                    "penalty": terms.penalty.item(), "slope_norm": terms.slope_norm.item(),
                    "images_per_second": per_second * config.n_critic * config.batch, "eta_s": (config.steps - step) / per_second,
                }  # fmt: skip
                if log:
                    track.log(step, metrics)
                on_log(step, metrics)
            if last or (config.samples_every and step % config.samples_every == 0):
                draw()
            if keep:
                save()
                saved = step
        if trainer.step > saved:
            save()
    finally:
        track.close()
    return trainer.step
