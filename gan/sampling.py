"""From a run and seeds to synthetic patches: sample k depends on the model and seed k only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gan.checkpoint import load_checkpoint
from gan.conditions import Conditions
from gan.config import Origin
from gan.context import ContextGenerator, Scene, lesion_masks, scene_of
from gan.networks import Critic, Generator, device_of, place
from gan.trainer import latents, section

TILE = 32
"""Samples are always drawn this many at a time, the last tile filled up: kernels chosen by the size of
the batch would round differently, and a sample would depend on its neighbours."""


@dataclass(frozen=True)
class Model:
    """A trained generator, what it can be asked for, and what it was trained on. model_hash: SHA-256 of its checkpoint's tensors.

    guarantee: in one sentence, what differential privacy promises of it; None where it was trained without. critic: only where asked for.
    context: for a model that draws lesions into lesion-free patches, whose those were in training; None for one of whole patches."""

    generator: Generator | ContextGenerator
    conditions: Conditions
    step: int
    model_hash: str
    trained_on: dict[str, Any]
    guarantee: str | None = None
    critic: Critic | None = None
    context: Origin | None = None

    @property
    def privacy(self) -> str:
        """The guarantee, or that there is none."""
        return self.guarantee or "no guarantee: trained without differential privacy"


def load_model(
    run: Path,
    step: int | Literal["best"] | None = None,
    *,
    average: bool = True,
    critic: bool = False,
    device: str = "cpu",
    warn: Callable[[str], None] = lambda line: None,
) -> Model:
    """The generator of a run at a step (default: the newest), by default its moving average.

    critic: whether to load that, too. warn: told when the newest checkpoint is damaged and the one before is taken.

    Raises FileNotFoundError where there is none, ValueError naming a damaged or foreign checkpoint.
    """
    checkpoint = load_checkpoint(run, step, warn)
    try:
        networks = checkpoint.config["networks"]
        guarantee = str(checkpoint.privacy_spent["sentence"]) if checkpoint.privacy_spent else None
        shape = tuple(int(side) for side in checkpoint.trained_on["shape"])
        conditions = Conditions.of(checkpoint.config.get("conditions", {}))
        context = checkpoint.config.get("context") and checkpoint.config["context"]["origin"]
        kind: type[Generator | ContextGenerator] = ContextGenerator if context else Generator
        generator = kind(shape, int(networks["channels"]), int(networks["latent"]), conditions.size)
        generator.load_state_dict(section(checkpoint.tensors, "average" if average else "generator"))
        judge = Critic(shape, int(networks["channels"]), conditions.size) if critic else None
        if judge is not None:
            judge.load_state_dict(section(checkpoint.tensors, "critic"))
    except (KeyError, TypeError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ValueError(f"{run}: checkpoint of step {checkpoint.step} does not fit its own configuration ({cause})") from None
    for net in (generator, judge):
        if net is not None:
            place(net, device_of(device), len(shape)).eval().requires_grad_(False).float()
    return Model(generator, conditions, checkpoint.step, checkpoint.model_hash, dict(checkpoint.trained_on), guarantee, judge, context)


def sample(
    model: Model, seeds: Sequence[int], condition: np.ndarray | None = None, truncation: float | None = None
) -> Iterator[np.ndarray]:
    """float32 (up to TILE, 1, *shape) in [-1, 1] at a time, one patch a seed, in their order. condition: see generate."""
    for start in range(0, len(seeds), TILE):
        some = slice(start, start + TILE)
        z = truncated(latents(seeds[some], model.generator.latent), truncation)
        yield from generate(model, z, None if condition is None else condition[some])


def candidates(seeds: Sequence[int], attempt: int, size: int, truncation: float | None = None) -> Tensor:
    """float32 (N, size): the latents of each seed's attempt-th try; those of `sample` for attempt 0."""
    sources = seeds if attempt == 0 else [np.random.SeedSequence(seed, spawn_key=(attempt,)) for seed in seeds]
    return truncated(latents(sources, size), truncation)


def truncated(z: Tensor, limit: float | None) -> Tensor:
    """Standard normal numbers, squeezed by their quantiles into a normal distribution cut off at +-limit; as they are without one.

    The truncation trick of Brock et al. 2019 (sec. 3.1), but each latent moves smoothly with the limit instead of being drawn again.
    """
    if limit is None:
        return z
    inside = torch.special.ndtr(torch.tensor([-limit, limit], dtype=torch.float64))
    return torch.special.ndtri(torch.lerp(inside[0], inside[1], torch.special.ndtr(z.double()))).clamp(-limit, limit).to(z.dtype)


def critic_scores(model: Model, patches: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
    """float64 (N,): what the critic thinks of patches (N, 1, *S) in [-1, 1], higher for more real. Of a model loaded with its critic."""
    assert model.critic is not None
    device, found = next(model.generator.parameters()).device, []
    for start in range(0, len(patches), TILE):
        x = torch.from_numpy(patches[start : start + TILE])
        given = None if condition is None else _filled(torch.from_numpy(condition[start : start + TILE])).to(device)
        with torch.no_grad():
            found.append(model.critic(_filled(x).to(device), given)[: len(x)].flatten().double().cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)


def generate(model: Model, z: Tensor, condition: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """float32 (up to TILE, 1, *shape) in [-1, 1] at a time, one patch a latent; z: float32 (N, latent).

    condition: float32 (N, K), as model.conditions encodes them, for a model that takes any.
    Raises ValueError when it takes conditions and none are given, or the other way round, and for a model that needs something to draw into.
    """
    generator = of_whole_patches(model)
    if (condition is None) != (model.conditions.size == 0):
        raise ValueError(
            "this model draws what it is asked for: give it condition=model.conditions.encode(labels, diameters_mm)"
            if condition is None
            else "this model takes no conditions"
        )
    device = next(model.generator.parameters()).device
    for start in range(0, len(z), TILE):
        rows = z[start : start + TILE]
        given = None
        if condition is not None:
            given = _filled(torch.from_numpy(condition[start : start + TILE])).to(device)
        with torch.no_grad():
            yield generator(_filled(rows).to(device), given)[: len(rows)].float().cpu().numpy()


def of_whole_patches(model: Model) -> Generator:
    """Its generator. Raises ValueError for one that needs something to draw into."""
    if isinstance(model.generator, ContextGenerator):
        raise ValueError(
            "this model draws lesions into lesion-free anatomy: sample.py --backgrounds or --into, or gan.sampling.implant, draw from it"
        )
    return model.generator


def implant(
    model: Model, backgrounds: np.ndarray, diameters_mm: np.ndarray, z: Tensor, condition: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A lesion in each lesion-free patch, as `composites` draws it, and its mask, bool (up to TILE, *shape)."""
    for patches, scene in composites(model, backgrounds, diameters_mm, z, condition):
        yield patches, lesion_masks(patches, scene)


def composites(
    model: Model, backgrounds: np.ndarray, diameters_mm: np.ndarray, z: Tensor, condition: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Scene]]:
    """A lesion in each lesion-free patch: float32 (up to TILE, 1, *shape) in [-1, 1] at a time, and the scene that it was drawn into.

    backgrounds: float32 (N, 1, *shape) in [-1, 1]; diameters_mm: (N,); z: float32 (N, latent); condition: as for generate. Outside the
    lesion's support (see context.py) a patch is its background, bit for bit. Raises ValueError for a model of whole patches.
    """
    if not isinstance(model.generator, ContextGenerator):
        raise ValueError("this model draws whole patches; train one that draws lesions into anatomy: python train.py --context.on true")
    device = next(model.generator.parameters()).device
    spacing = model.trained_on.get("spacing_mm") or [1.0] * (backgrounds.ndim - 2)
    for start in range(0, len(z), TILE):
        some = slice(start, start + TILE)
        scene = scene_of(backgrounds[some], spacing, diameters_mm[some])
        given = None if condition is None else _filled(torch.from_numpy(condition[some])).to(device)
        with torch.no_grad():
            filled = Scene(*(_filled(each).to(device) for each in scene))
            patches = model.generator(_filled(z[some]).to(device), given, filled)[: len(scene.background)].float().cpu().numpy()
        yield patches, scene


def _filled(rows: Tensor) -> Tensor:
    """With zeros up to TILE rows."""
    return torch.cat([rows, rows.new_zeros(TILE - len(rows), *rows.shape[1:])])
