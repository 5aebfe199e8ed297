"""Paths through the latents: from one seed's sample to the next, around a loop of them, and one sample at growing diameters.

Each path is (z, condition), as `sampling.generate` takes them: z float32 (N, latent), condition float32 (N, K) or None for a model
that takes none. A path that changes smoothly in what it draws is a sign that the generator has learned more than single patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from gan.conditions import KNOTS_MM, Conditions
from gan.orders import natural_diameters
from gan.sampling import Model, truncated
from gan.trainer import latents

PARALLEL = 1e-6
"""Directions that differ by less, or are opposite but for that, span no plane that float32 could tell."""


def strips(
    model: Model, seeds: Sequence[int], steps: int, condition: np.ndarray | None = None, truncation: float | None = None
) -> tuple[Tensor, np.ndarray | None]:
    """One strip from each seed to the next, `steps` patches each, both ends among them: N = (len(seeds) - 1) * steps, strip by strip.

    condition: float32 (len(seeds), K), of each seed. truncation: as in sampling.sample. The ends are the seeds' own samples, bit for bit.
    Raises ValueError for fewer than 2 seeds or steps, or not as many conditions as seeds.
    """
    if len(seeds) < 2 or steps < 2:
        raise ValueError(f"strips lead from seed to seed: want 2 seeds or more and 2 steps or more, got {len(seeds)} and {steps}")
    ends = [(n, n + 1) for n in range(len(seeds) - 1)]
    return _along(model, seeds, ends, np.linspace(0, 1, steps), condition, truncation)


def walk(
    model: Model, seeds: Sequence[int], frames_between: int, condition: np.ndarray | None = None, truncation: float | None = None
) -> tuple[Tensor, np.ndarray | None]:
    """A closed loop: from each seed to the next and from the last to the first, N = len(seeds) * (frames_between + 1).

    Each seed's own sample is one frame, so the frame after the last is the first, and an animation runs on without a jump. With 2 seeds
    the way back is the way there. condition, truncation: as in strips. Raises ValueError for fewer than 2 seeds, a seed that follows
    itself, which would make the animation stop, or not as many conditions as seeds.
    """
    if len(seeds) < 2 or frames_between < 0 or any(a == b for a, b in zip(seeds, [*seeds[1:], seeds[0]], strict=True)):
        raise ValueError(f"a walk goes around 2 seeds or more, neighbours different, with 0 frames or more between; got {list(seeds)}")
    ends = [(n, (n + 1) % len(seeds)) for n in range(len(seeds))]
    return _along(model, seeds, ends, np.arange(frames_between + 1) / (frames_between + 1), condition, truncation)


def growth(
    model: Model, seeds: Sequence[int], steps: int, label: str = "", between_mm: tuple[float, float] | None = None,
    truncation: float | None = None,
) -> tuple[Tensor, np.ndarray]:  # fmt: skip
    """Each seed's sample at `steps` diameters, evenly spaced on a log scale, the smallest first: N = len(seeds) * steps, seed by seed.

    label: the class, for a model that is asked for one. between_mm: by default from the first to the last decile of the diameters
    trained on, or 5 to 20 mm where these are not known. Nothing else changes, so what moves besides the lesion's size is what the
    model takes to go with it. Raises ValueError for a model that cannot be asked for a diameter, or one outside its knots.
    """
    if not model.conditions.diameter:
        raise ValueError("this model cannot be asked for a diameter; train one with --networks.condition diameter, or class+diameter")
    tenths = np.clip(natural_diameters(model.trained_on), KNOTS_MM[0], KNOTS_MM[-1])
    low, high = between_mm or (float(tenths[0]), float(tenths[-1]))
    if not KNOTS_MM[0] <= low < high <= KNOTS_MM[-1] or steps < 2 or not len(seeds):
        raise ValueError(
            f"want 1 seed or more, 2 steps or more and diameters from small to large within {KNOTS_MM[0]:g} to {KNOTS_MM[-1]:g} mm; "
            f"got {len(seeds)}, {steps} and {low:g} to {high:g} mm"
        )
    condition = model.conditions.encode([label] * steps, np.geomspace(low, high, steps))
    z = truncated(latents(seeds, model.generator.latent), truncation)
    return z.repeat_interleave(steps, 0), np.tile(condition, (len(seeds), 1))


def slerp(start: Tensor, end: Tensor, t: np.ndarray) -> Tensor:
    """float32 (T, latent): the points at t, from 0 at the start to 1 at the end, both (latent,), and equal to them there.

    Directions move along the great circle at constant speed (White 2016, sec. 2.1), so that latents stay as long as normal ones are;
    lengths go linearly from one to the other, where White's formula leaves them when the ends differ in length and the angle is wide.
    Opposite ends have no great circle of their own: the one towards a coordinate axis is taken.
    """
    a, b, times = start.double(), end.double(), torch.from_numpy(t)[:, None]
    smallest = torch.finfo(a.dtype).tiny
    u, v = (x / x.norm().clamp_min(smallest) for x in (a, b))
    across = v - (u @ v) * u
    angle = torch.atan2(across.norm(), u @ v)
    if across.norm() < PARALLEL:
        axis = torch.zeros_like(u)
        axis[u.abs().argmin()] = 1
        across = axis - (u @ axis) * u
    w = across / across.norm().clamp_min(smallest)
    points = torch.lerp(a.norm(), b.norm(), times) * (torch.cos(times * angle) * u + torch.sin(times * angle) * w)
    return torch.where(times == 0, a, torch.where(times == 1, b, points)).float()


def _along(
    model: Model, seeds: Sequence[int], ends: Iterable[tuple[int, int]], t: np.ndarray, condition: np.ndarray | None,
    truncation: float | None,
) -> tuple[Tensor, np.ndarray | None]:  # fmt: skip
    """The points at t between each two seeds, given by their places."""
    if condition is not None and condition.shape != (len(seeds), model.conditions.size):
        raise ValueError(f"conditions are {condition.shape}, want {(len(seeds), model.conditions.size)}: a row for each seed")
    ends, z = list(ends), truncated(latents(seeds, model.generator.latent), truncation)
    path = torch.cat([slerp(z[a], z[b], t) for a, b in ends])
    if condition is None:
        return path, None
    return path, np.concatenate([_mixed(model.conditions, condition[a], condition[b], t) for a, b in ends])


def _mixed(conditions: Conditions, start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    """float32 (T, K): conditions between two, linear in classes and log diameter, and equal to them at 0 and 1.

    Halfway from 3 to 48 mm lies 12 mm, not half of each: that the model has never been asked for.
    """
    times = t[:, None]
    mixed, shares = (1 - times) * start + times * end, slice(len(conditions.classes), None)
    if conditions.diameter and start[shares].any() and end[shares].any():
        diameters_mm = np.exp(mixed[:, shares] @ np.log(KNOTS_MM))
        mixed[:, shares] = Conditions(diameter=True).encode([""] * len(t), diameters_mm)
    return np.where(times == 0, start, np.where(times == 1, end, mixed)).astype(np.float32)
