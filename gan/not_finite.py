"""Where a network's numbers stopped being finite, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class NotFinite(ValueError):
    """A step's gradient has NaN or Inf in it."""


def weight_not_finite(net: nn.Module, name: str) -> str | None:
    """The first of a network's parameters that is not finite, by name."""
    return next((f"{name}.{where}" for where, p in net.named_parameters() if not torch.isfinite(p).all()), None)


@torch.no_grad()
def first_not_finite(net: nn.Module, name: str, *inputs: object) -> str | None:
    """The first parameter of a network that is not finite, or else the first layer whose output is not, by name."""
    found: list[str] = []

    def look(where: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _inputs: object, output: Tensor) -> None:
            if not torch.isfinite(output).all():
                found.append(f"layer {name}.{where}" if where else f"the {name}")

        return hook

    hooks = [layer.register_forward_hook(look(where)) for where, layer in net.named_modules()]
    net(*inputs)
    for handle in hooks:
        handle.remove()
    return weight_not_finite(net, name) or (found[0] if found else None)
