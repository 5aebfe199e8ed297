"""Training with differential privacy of the patients: only the critic's gradient sees them, and only as a clipped sum with noise.

A critic step (`privacy.py` counts what it spends):

1. Each patient joins with the same chance, whatever the others do. There may be none; the step counts all the same.
2. Each gives k of their patches. The synthetic ones beside them are drawn for the same conditions by the generator in eval mode, where
   no sample depends on another: with batch statistics, one patient's condition would move all patients' gradients.
3. Every patient's gradient, penalty included, is clipped (`private_step.py`), noise is added to the sum, and it is divided by the
   number of patients expected, not by that of those who came.

The rest never touches a patient: conditions to draw for come from public shares, not from how often classes occur, and all that is
logged is made of synthetic patches and noisy gradients. What joins, the noise and the choice of patches have no seed.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gan.checkpoint import Checkpoint
from gan.conditions import Conditions
from gan.config import NetworkConfig, PrivacyConfig, TrainingConfig
from gan.context import Backgrounds, Scene
from gan.networks import BatchNorm
from gan.privacy import Ledger, PrivacyPlan, gaussian, poisson
from gan.private_step import clipped_sum
from gan.processes import Processes
from gan.trainer import MONITOR, Trainer, TrainingSet, draw, latents, seen

AT_ONCE = 1 << 25
"""Pixels of a step that pass through the critic together; more patients go in several parts."""
MOST_N_CRITIC = 200
LOOK_EVERY = 5
"""Generator updates from one look at the critic's hold to the next."""
HOLD = 0.9
"""The share of pairs of a later and an earlier synthetic patch whose later one scores higher, above which the critic has lost its hold.

Measured on luna16-patches: 0.92 falling to 0.69 in a run that learns without privacy; 0.9 to 1 where too few noisy steps let the samples drift."""
GROWTH = 1.5
_LOOKED_AT = 128


class PrivateTrainer(Trainer):
    """A trainer whose critic sees patients through `plan` only. ledger: of the first process; None where nothing is to be resumed."""

    def __init__(
        self, shape: Sequence[int], networks: NetworkConfig, config: TrainingConfig, privacy: PrivacyConfig, plan: PrivacyPlan,
        conditions: Conditions, processes: Processes | None = None, backgrounds: Backgrounds | None = None,
    ):  # fmt: skip
        super().__init__(shape, networks, config, conditions.size, processes, backgrounds=backgrounds)
        self.privacy, self.plan, self.conditions = privacy, plan, conditions
        self.critic_steps, self.n_critic = 0, float(privacy.n_critic)
        self.ledger: Ledger | None = None
        self._private = np.random.default_rng(secrets.randbits(256))
        self._patients: list[np.ndarray] | None = None
        self._before: Tensor | None = None
        for layer in self.generator.modules():
            if isinstance(layer, BatchNorm):
                layer.momentum = 1.0  # the last update's own statistics, for the critic sees samples in eval mode
        self._warm_up()

    @property
    def tick(self) -> int:
        return self.critic_steps

    @property
    def progress(self) -> float:
        return max(self.critic_steps / self.plan.critic_steps, super().progress)

    @property
    def privacy_spent(self) -> dict[str, Any]:
        steps = self.critic_steps
        return {
            "critic_steps": steps, "epsilon": self.plan.epsilon(steps), "sentence": self.plan.sentence(steps), "plan": asdict(self.plan),
            "n_critic": self.n_critic,
        }  # fmt: skip

    timing_is_public = False  # it follows how many patients joined

    def about_to_show(self) -> None:
        if self.ledger is not None:
            self.ledger.spend(self.critic_steps)

    def spend_before(self, ledger: Ledger | None) -> None:
        """Counts on from what the first process's ledger says was spent."""
        self.ledger = ledger
        spent = torch.tensor([float(ledger.spent if ledger else 0)], dtype=torch.float64, device=self.device)
        self.critic_steps = max(self.critic_steps, int(self.processes.sum([spent])[0].item()))

    def update(self, data: TrainingSet, held_out: TrainingSet | None = None) -> dict[str, Tensor | float]:
        """Up to n_critic critic steps, as the budget allows, and one generator step; what may be told of them."""
        self._share(data)
        norm = math.nan
        for _ in range(min(round(self.n_critic), self.plan.critic_steps - self.critic_steps)):
            norm = self._private_critic_step(data)
        loss, generator_norm = self._generator_step(data, None)
        self.step += 1
        self._move_average()
        if self.privacy.adaptive and self.step % LOOK_EVERY == 0:
            self._adapt()
        return {"generator_loss": loss, "critic_gradient_norm": norm, "generator_gradient_norm": generator_norm, "n_critic": self.n_critic}

    def look(self, data: TrainingSet, held_out: TrainingSet | None) -> dict[str, float]:
        """What is spent: nothing else may be told."""
        return {"critic_steps": float(self.critic_steps), "epsilon": self.plan.epsilon(self.critic_steps)}

    def _private_critic_step(self, data: TrainingSet) -> float:
        """One step of the mechanism; the norm of its noisy gradient."""
        patients, plan = self._of_patients(data), self.plan
        joined = poisson(len(patients), plan.sample_rate)
        wanted = [p for p in self.critic.parameters() if p.requires_grad]
        sums = [torch.zeros_like(p, dtype=torch.float64) for p in wanted]
        self.generator.eval()
        part = max(1, AT_ONCE // (2 * plan.patches * np.prod(self.shape).item()))
        for start in range(0, len(joined), part):
            found = self._clipped_sum(data, [patients[n] for n in joined[start : start + part]])
            torch._foreach_add_(sums, [found[p] for p in wanted])
        self.generator.train()
        if self.processes.first:  # one noise for all processes
            noise = gaussian(sum(p.numel() for p in wanted)).mul_(plan.noise_multiplier * plan.clip_norm)
            for total, some in zip(sums, noise.split([p.numel() for p in wanted]), strict=True):
                total.add_(some.view(total.shape).to(total.device))
        # rounded once, and with all of the noise in it: see privacy.gaussian
        sums = [(total / plan.expected).float().to(self.dtype) for total in self.processes.sum(sums)]
        self._critic_step_with(wanted, sums)
        self.critic_steps += 1
        self.shown += plan.expected * plan.patches
        return torch.stack(torch._foreach_norm(sums)).norm().item()

    def _clipped_sum(self, data: TrainingSet, patients: Sequence[np.ndarray]) -> dict[torch.nn.Parameter, Tensor]:
        """Of these patients, each given by the positions of their patches."""
        n, k, rng = len(patients), self.plan.patches, self._private
        pairs = max(1, round(self.config.penalty_fraction * k))
        chosen = [rng.permutation(positions)[:k] for positions in patients]
        positions = np.stack([np.resize(some, k) for some in chosen])
        there = np.arange(k) < np.array([len(some) for some in chosen])[:, None]
        real = self._to_device(data.patches[positions.ravel()])
        for axis in range(1, 1 + self._mirrored * self.config.mirror):
            flipped = self._to_device(rng.random(n * k) < 0.5).view(-1, *[1] * (real.ndim - 1)) > 0
            real = torch.where(flipped, real.flip(-axis), real)
        condition = self._condition(data, positions.ravel())
        z = self._to_device(rng.standard_normal((n * k, self.generator.latent), dtype=np.float32))
        scene = self.scene(rng, self._diameters(data, positions.ravel()), like=real)
        with torch.no_grad():
            synthetic = seen(draw(self.generator, z, condition, scene), scene)
        real = seen(real, scene)
        mix = self._to_device(rng.random((n, pairs, *[1] * (1 + len(self.shape))), dtype=np.float32))
        return clipped_sum(
            self.critic, real.unflatten(0, (n, k)), synthetic.unflatten(0, (n, k)), mix, self._to_device(there), self.penalty_weight,
            self.plan.clip_norm, None if condition is None else condition.unflatten(0, (n, k)),
        )  # fmt: skip

    def _of_patients(self, data: TrainingSet) -> list[np.ndarray]:
        """Positions of the patches of each patient that is this process's."""
        if self._patients is None:
            assert data.patients is not None
            mine = np.arange(len(data.patches)) if self._owner is None else np.flatnonzero(self._owner == self.processes.rank)
            _, codes = np.unique(np.asarray(data.patients)[mine], return_inverse=True)
            self._patients = [mine[codes == code] for code in range(codes.max() + 1)]
        return self._patients

    def _to_draw(
        self, data: TrainingSet, rng: np.random.Generator, count: int, mine: slice = slice(None)
    ) -> tuple[Tensor | None, Scene | None]:
        """Every class equally often, and diameters evenly on a log scale: nothing of the training set."""
        condition, diameters_mm = self.conditions.evenly(count, rng)
        return None if condition is None else self._to_device(condition[mine]), self.scene(rng, diameters_mm, mine)

    @torch.no_grad()
    def _warm_up(self) -> None:
        """Gives the generator the batch statistics of its first weights."""
        rng = np.random.default_rng([self.config.seed, MONITOR, 3])
        z = self._to_device(rng.standard_normal((self.config.batch, self.generator.latent), dtype=np.float32))
        draw(self.generator, z, *self._to_draw(TrainingSet(()), rng, self.config.batch))

    @torch.no_grad()
    def _adapt(self) -> None:
        """More critic steps for an update when the critic loses its hold, judged on synthetic patches only.

        Bie, Kamath & Zhang 2022 (sec. 4) let their discriminator's accuracy on synthetic patches decide. A Wasserstein critic has no
        threshold, but what the generator draws now is as synthetic as what it drew LOOK_EVERY updates ago: a critic that takes nearly all of
        the later ones for more real is only being followed.
        """
        rng = np.random.default_rng([self.config.seed, MONITOR, 4])
        condition, scene = self._to_draw(TrainingSet(()), rng, _LOOKED_AT)
        self.generator.eval()
        now = seen(draw(self.generator, self._to_device(latents(range(_LOOKED_AT), self.generator.latent)), condition, scene), scene)
        self.generator.train()
        if self._before is not None:
            later, earlier = self.critic(now, condition), self.critic(self._before, condition)
            lost = (later[:, None] > earlier).double().mean() > HOLD
            (all_lost,) = self.processes.sum([lost[None].double() * self.processes.first])  # as the first one finds: all must go on alike
            if all_lost.item() > 0:
                self.n_critic = min(self.n_critic * GROWTH, float(MOST_N_CRITIC))
        self._before = now

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | ({} if self._before is None else {"adaptive.before": self._before})

    def restore(self, checkpoint: Checkpoint) -> None:
        super().restore(checkpoint)
        spent = checkpoint.privacy_spent
        if spent is None:
            raise ValueError(f"checkpoint of step {checkpoint.step} is of a run without privacy")
        self.critic_steps, self.n_critic = max(self.critic_steps, int(spent["critic_steps"])), float(spent["n_critic"])
        before = checkpoint.tensors.get("adaptive.before")
        self._before = None if before is None else before.to(self.device, self.dtype)
