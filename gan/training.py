"""The loop around a training step: resuming, metrics, sample grids, looks at validation patients, checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gan.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gan.conditions import Conditions
from gan.config import NetworkConfig
from gan.tracker import Tracker
from gan.trainer import MONITOR, Trainer, TrainingSet, draw, latents

GRID = {2: 64, 3: 16}
"""Samples in a grid; their seeds are 0, 1, 2 ..."""
GRID_DIAMETERS_MM = (5.0, 10.0, 20.0)
TIMING = ("images_per_second", "eta_s")
IN_MEMORY = 1 << 30
"""Bytes of windowed patches up to which they are held on the device; more are read from the disk's map."""


class Validation(NamedTuple):
    """How far samples are from validation patients: the distance that decides which step is best, its name, and all metrics."""

    distance: float
    measure: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Hooks:
    """What the loop tells whoever started it.

    tracker: makes the tracker, given the step the run starts at. samples: gets a step, float32 (N, 1, *shape) from the averaged
    generator, and their classes if it knows any. log: a step and its metrics. validate: gets float32 (N, 1, *shape), one for each
    of the positions in the held-out set (N,) whose conditions they were drawn for. saved: a checkpoint was written.
    """

    tracker: Callable[[int], Tracker]
    samples: Callable[[int, np.ndarray, list[str] | None], None]
    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
    validate: Callable[[np.ndarray, np.ndarray], Validation] | None = None
    saved: Callable[[int], None] = lambda step: None
    should_stop: Callable[[], bool] = lambda: False
    warn: Callable[[str], None] = lambda line: None


def train(
    trainer: Trainer, data: TrainingSet, held_out: TrainingSet | None, conditions: Conditions, networks: NetworkConfig, run: Path,
    trained_on: Mapping[str, Any], hooks: Hooks,
) -> int:  # fmt: skip
    """Trains until config.steps or until should_stop(), resuming the run folder's newest checkpoint; returns the step reached.

    held_out: patches of validation patients, whom training never touches. Files are written by the first process only.

    Raises not_finite.NotFinite when a gradient is not finite, OSError when a file cannot be written; the last checkpoint stays.
    """
    held_out = held_out if held_out is not None and len(held_out.patches) else None
    return _Loop(trainer, in_memory(data, trainer), held_out, conditions, networks, run, trained_on, hooks).run()


@dataclass
class _Loop:
    trainer: Trainer
    data: TrainingSet
    held_out: TrainingSet | None
    conditions: Conditions
    networks: NetworkConfig
    folder: Path
    trained_on: Mapping[str, Any]
    hooks: Hooks
    best: Mapping[str, Any] | None = None

    def run(self) -> int:
        trainer, config, first_process = self.trainer, self.trainer.config, self.trainer.processes.first
        seen = ""
        try:
            checkpoint = load_checkpoint(self.folder, warn=self.hooks.warn if first_process else lambda line: None)
            trainer.restore(checkpoint)
            self.best, seen = checkpoint.best, checkpoint.model_hash
        except FileNotFoundError:
            pass
        seen = hashlib.sha256(json.dumps([seen, self.trained_on], sort_keys=True).encode()).hexdigest()
        if not trainer.processes.agree(int(seen[:12], 16)):  # or they would sum gradients of other weights, and nobody would notice
            raise ValueError(
                f"{self.folder}: not all processes see the same checkpoint in it, or the same patches; their machines must share both"
            )
        track = self.hooks.tracker(trainer.step) if first_process else None
        first = saved = trainer.step
        counted, since = (trainer.shown, trainer.progress), time.monotonic()
        try:
            while trainer.progress < 1 and not self._asked_to_stop():
                before = trainer.tick
                update = trainer.update(self.data, self.held_out)
                step, last = trainer.step, trainer.progress >= 1
                if track is None:
                    continue
                keep, log, show = (
                    last or bool(every and trainer.tick // every > before // every)
                    for every in (config.checkpoint_every, config.log_every, config.samples_every)
                )
                log = log or keep
                metrics = {}
                if log or keep or show or step == first + 1:
                    trainer.about_to_show()
                if log or step == first + 1:  # a sign of life at once
                    metrics = self._metrics(update, counted, time.monotonic() - since)
                if keep or show:
                    trainer.settle(self.data)
                if keep:
                    metrics |= self._validate()
                if log:
                    track.log(step, {name: value for name, value in metrics.items() if trainer.timing_is_public or name not in TIMING})
                if metrics:
                    self.hooks.log(step, metrics)
                if show:
                    self._show()
                if keep:
                    self._save()
                    saved = step
                if metrics:
                    counted, since = (trainer.shown, trainer.progress), time.monotonic()  # so looks at samples do not count as training
            if track is not None and trainer.step > saved:
                trainer.about_to_show()
                trainer.settle(self.data)
                self._save()
        finally:
            if track is not None:
                track.close()
        return trainer.step

    def _asked_to_stop(self) -> bool:
        """Whether any process was asked to."""
        asked = torch.tensor([float(self.hooks.should_stop())], device=self.trainer.device)
        return self.trainer.processes.sum([asked])[0].item() > 0

    def _metrics(self, update: Mapping[str, Tensor | float], before: tuple[int, float], seconds: float) -> dict[str, float]:
        """before: patches shown and progress, so many seconds ago."""
        trainer = self.trainer
        metrics = {
            **{name: float(value) for name, value in update.items()}, **trainer.look(self.data, self.held_out),
            "images_per_second": (trainer.shown - before[0]) / seconds,
            "eta_s": (1 - trainer.progress) / (trainer.progress - before[1]) * seconds,
        }  # fmt: skip
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def _validate(self) -> dict[str, float]:
        """Distances of the averaged generator's samples to validation patients; remembers the best step."""
        if self.hooks.validate is None or self.held_out is None:
            return {}
        count = max(64, min(512, (1 << 22) // math.prod(self.trainer.shape)))
        rng = np.random.default_rng([self.trainer.config.seed, MONITOR, 2])
        positions = self.held_out.draw(rng, count)
        condition = None if self.held_out.condition is None else self.held_out.condition[positions]
        diameters = None if self.held_out.diameters_mm is None else self.held_out.diameters_mm[positions]
        found = self.hooks.validate(self._draw(range(count), condition, diameters), positions)
        if self.best is None or found.distance < self.best["distance"]:
            self.best = {"step": self.trainer.step, "distance": found.distance, "measure": found.measure}
        return dict(found.metrics)

    def _show(self) -> None:
        count, classes = GRID[len(self.trainer.shape)], self.conditions.classes
        if not self.conditions.size and self.trainer.backgrounds is None:
            return self.hooks.samples(self.trainer.step, self._draw(range(count), None), None)
        each = max(1, count // 8 // max(len(classes), 1)) * 8 if count >= 8 else count
        labels = [label for label in classes or ("",) for _ in range(each)]
        diameters = np.resize(GRID_DIAMETERS_MM, len(labels))
        asked = self.conditions.encode(labels, diameters) if self.conditions.size else None
        x = self._draw([n % each for n in range(len(labels))], asked, diameters if self.trainer.backgrounds else None)
        return self.hooks.samples(self.trainer.step, x, labels if classes else None)

    @torch.no_grad()
    def _draw(self, seeds: Sequence[int], condition: np.ndarray | None, diameters_mm: np.ndarray | None = None) -> np.ndarray:
        trainer, parts = self.trainer, []
        rng = np.random.default_rng([trainer.config.seed, MONITOR, 6])  # into the same lesion-free patches at every step
        for start in range(0, len(seeds), 64):
            part = slice(start, start + 64)
            z = latents(seeds[part], trainer.average.latent).to(trainer.device, trainer.dtype)
            given = None if condition is None else torch.from_numpy(condition[part]).to(z)
            scene = None if diameters_mm is None else trainer.scene(rng, diameters_mm[part])
            parts.append(draw(trainer.average, z, given, scene).float().cpu().numpy())
        return np.concatenate(parts)

    def _save(self) -> None:
        tensors = self.trainer.tensors()
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
            self.trainer.about_to_show()
            raise ValueError("training diverged: not all weights are finite any more; the last checkpoint is whole")
        settings = {"training": asdict(self.trainer.config), "networks": asdict(self.networks), "conditions": asdict(self.conditions)}
        if self.trainer.backgrounds is not None:
            settings["context"] = {"origin": self.trainer.backgrounds.origin}
        spent = self.trainer.privacy_spent
        scheme = "numpy.random.default_rng([seed, purpose, step, ...])"
        secret = "; patients, their patches and noise: the system's randomness" if spent else ""
        random = {"seed": self.trainer.config.seed, "scheme": f"{scheme}{secret}"}
        save_checkpoint(self.folder, Checkpoint(self.trainer.step, settings, self.trained_on, tensors, random, spent, self.best))
        self.hooks.saved(self.trainer.step)


def in_memory(data: TrainingSet, trainer: Trainer) -> TrainingSet:
    """The same patches, held on the device as float32 where they take up to IN_MEMORY bytes."""
    patches, size = data.patches, math.prod(trainer.shape) * 4
    if len(patches) * size > IN_MEMORY:
        return data
    at_once = max(1, (1 << 26) // size)
    parts = [patches[np.arange(start, min(start + at_once, len(patches)))] for start in range(0, len(patches), at_once)]
    held = torch.cat([torch.as_tensor(part) for part in parts]).to(trainer.device)
    return replace(data, patches=_OnDevice(held))


class _OnDevice:
    def __init__(self, held: torch.Tensor):
        self.held = held

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, positions: np.ndarray) -> torch.Tensor:
        return self.held[torch.from_numpy(positions).to(self.held.device)]
