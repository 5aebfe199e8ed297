"""Starting a run from another one's weights: all of them, or those that fit other classes or another patch size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gan.checkpoint import Checkpoint
from gan.conditions import Conditions
from gan.trainer import Trainer, section


def start_from(trainer: Trainer, conditions: Conditions, checkpoint: Checkpoint) -> str:
    """Gives a new trainer the critic and the averaged generator of a checkpoint, and says how much of them fitted.

    Layers correspond by their distance from the image, so a run at 32 pixels serves one at 64. Of the layers that take conditions,
    those of the same class (or the diameter) are taken over, and a new class starts as the mean of the old ones.
    Optimisers start anew. Raises ValueError when no layer fits.
    """
    before = Conditions.of(checkpoint.config.get("conditions", {}))
    taken = total = layers = 0
    for net, name in ((trainer.generator, "average"), (trainer.average, "average"), (trainer.critic, "critic")):
        old, new = section(checkpoint.tensors, name), net.state_dict()
        if name == "average":
            old = {_counted_from_image(key, _last_layer(old)): tensor for key, tensor in old.items()}
            new = {_counted_from_image(key, _last_layer(new)): tensor for key, tensor in new.items()}
        for key, tensor in new.items():
            found = old.get(key)
            if found is not None:
                found = _fit(key, found.to(tensor), tensor, before, conditions)
            if found is not None and found.shape == tensor.shape:
                tensor.copy_(found)
                taken += tensor.numel()
                layers += tensor.ndim > 1  # a bias of one number fits anywhere
            total += tensor.numel()
    if not layers:
        raise ValueError(
            f"--init-from: not one layer of that run (patches {checkpoint.trained_on.get('shape')}) fits "
            f"{' x '.join(map(str, trainer.shape))} patches with these networks; give it the same networks.channels and dimensions"
        )
    return f"{taken / total:.0%} of the weights are those of step {checkpoint.step} of the other run"


def _last_layer(tensors: Mapping[str, Tensor]) -> int:
    return max((int(key.split(".")[1]) for key in tensors if key.startswith("layers.")), default=0)


def _counted_from_image(key: str, last: int) -> str:
    """The generator's layers end at the image, so they are counted from there; the critic's begin there."""
    part, _, rest = key.partition(".")
    number, _, what = rest.partition(".")
    return f"layers.{int(number) - last}.{what}" if part == "layers" else key


def _fit(key: str, old: Tensor, new: Tensor, before: Conditions, now: Conditions) -> Tensor | None:
    """A weight that takes conditions, its columns (the generator's) or rows (the critic's) put in their new places."""
    if key == "project.weight":
        latent = new.shape[1] - now.size
        if old.shape[0] != new.shape[0] or old.shape[1] - before.size != latent:
            return None
        return torch.cat([old[:, :latent], _conditions(old[:, latent:].t(), before, now).t()], 1)
    if key == "score.weight":
        if old.shape[1] != new.shape[1]:
            return None
        return torch.cat([old[:1], _conditions(old[1:], before, now)])
    return old


def _conditions(rows: Tensor, before: Conditions, now: Conditions) -> Tensor:
    """(K before, ...) -> (K now, ...)."""
    classes, diameter = rows[: len(before.classes)], rows[len(before.classes) :]
    mean = classes.mean(0) if len(classes) else rows.new_zeros(rows.shape[1])
    found = [classes[before.classes.index(name)] if name in before.classes else mean for name in now.classes]
    if now.diameter:
        found += list(diameter) if before.diameter else list(rows.new_zeros(now.size - len(now.classes), rows.shape[1]))
    return torch.stack(found) if found else rows.new_zeros(0, rows.shape[1])
