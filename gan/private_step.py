"""The critic's gradient with every patient's part held to the same norm: what differential privacy of a patient rests on.

Two ways to the same sum: `clipped_sum` by the rows of losses.py, and `clipped_sum_by_autograd`, plain torch.func, as its reference.
Both take n patients with k pairs each, as losses.patient_gradients describes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gan.losses import patient_gradients
from gan.networks import Critic

MARGIN = 1e-4
"""What a norm stays below its bound by, relative to it: kernels chosen by the size of the batch round differently, so one patient more
moves the last digits of all the others' gradients."""
SLICE = 8
"""Patients at a time in the reference, which holds a gradient for each of them."""


def clipped_sum(
    critic: Critic, real: Tensor, synthetic: Tensor, mix: Tensor, there: Tensor, penalty_weight: float, clip_norm: float,
    condition: Tensor | None = None,
) -> dict[nn.Parameter, Tensor]:  # fmt: skip
    """The sum over patients of their critic gradients, each scaled down to a norm of at most clip_norm over all parameters together.

    Abadi et al. 2016, Algorithm 1, with a patient for an example. A patient whose gradient is not finite counts as 0, so
    the bound holds for any input. No patient: zeros. The sums, and the norms, are in float64: in 32 bits, the norm of two million numbers
    can come out a thousandth too small.
    """
    wanted = [p for p in critic.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in wanted), dtype=torch.float64, device=real.device)
    one = torch.empty_like(total)
    gradient = _views(one, wanted)
    if len(real):
        for found in patient_gradients(critic, real, synthetic, mix, there, penalty_weight, condition):
            torch._foreach_copy_(gradient, [found[p] for p in wanted])
            if scale := _scale(one.norm().item(), clip_norm):
                total.add_(one, alpha=scale)
    return dict(zip(wanted, _views(total, wanted), strict=True))


def _views(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The parts of a vector, one after the other, that have the shape of each parameter and its order in memory."""
    parts = flat.split([p.numel() for p in parameters])
    return [part.as_strided(p.shape, p.stride(), part.storage_offset()) for part, p in zip(parts, parameters, strict=True)]


def _scale(norm: float, clip_norm: float) -> float:
    """What a gradient of this norm is multiplied by; 0 for one that is not finite."""
    return min(1.0, clip_norm * (1 - MARGIN) / max(norm, 1e-30)) if math.isfinite(norm) else 0.0


def clipped_sum_by_autograd(
    critic: Critic, real: Tensor, synthetic: Tensor, mix: Tensor, there: Tensor, penalty_weight: float, clip_norm: float,
    condition: Tensor | None = None,
) -> dict[nn.Parameter, Tensor]:  # fmt: skip
    """The same by torch.func, for any critic: the gradient of each patient's loss, penalty by double backward, SLICE patients at a time."""
    frozen = {name: p for name, p in critic.named_parameters() if not p.requires_grad}
    wanted = {name: p for name, p in critic.named_parameters() if p.requires_grad}
    k, p = real.shape[1], mix.shape[1]

    def loss(parameters: dict[str, Tensor], real: Tensor, synthetic: Tensor, mix: Tensor, there: Tensor, *condition: Tensor) -> Tensor:
        def scores(x: Tensor, *condition: Tensor) -> Tensor:
            found: Tensor = functional_call(critic, {**frozen, **parameters}, (x, *condition))
            return found

        x = torch.lerp(synthetic[:p], real[:p], mix)
        slope = grad(lambda x: scores(x, *(c[:p] for c in condition)).sum())(x)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square()
        difference = scores(synthetic, *condition) - scores(real, *condition)
        return (there * difference).sum() / k + penalty_weight / p * (there[:p] * penalty).sum()

    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in wanted.items()}
    given: Sequence[Tensor] = (real, synthetic, mix, there, *([] if condition is None else [condition]))
    for start in range(0, len(real), SLICE):
        rows = [tensor[start : start + SLICE] for tensor in given]
        found = vmap(grad(loss), in_dims=(None, *[0] * len(rows)))({name: p.detach() for name, p in wanted.items()}, *rows)
        norms = torch.stack([g.double().flatten(1).norm(dim=1) for g in found.values()]).norm(dim=0).tolist()
        for n, norm in enumerate(norms):
            if scale := _scale(norm, clip_norm):
                for name, g in found.items():
                    sums[name].add_(g[n], alpha=scale)
    return {wanted[name]: total for name, total in sums.items()}
