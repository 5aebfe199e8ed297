"""The Wasserstein critic loss with gradient penalty, twice: by first-order passes, and as the textbook has it.

Shapes: N pairs of patches, 1 channel, *S = (H, W) or (D, H, W). Patches are float32 in [-1, 1].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gan.networks import Critic


class CriticTerms(NamedTuple):
    """What a critic step saw, detached scalars: its loss, the Wasserstein estimate
    mean f(real) - mean f(synthetic), the penalty before its weight, and the mean norm of the slope."""

    loss: Tensor
    wasserstein: Tensor
    penalty: Tensor
    slope_norm: Tensor


def critic_loss(critic: Critic, real: Tensor, synthetic: Tensor, mix: Tensor, penalty_weight: float) -> tuple[Tensor, CriticTerms]:
    """A scalar whose gradient in the critic's parameters is that of the WGAN-GP critic loss, exactly.

    real, synthetic: (N, 1, *S). mix: (P, 1, *ones), uniform in [0, 1], P <= N: the first P pairs are penalised.
    Gulrajani et al. 2017, Algorithm 1, with the penalty's mean over those P pairs.

    The critic is piecewise linear. Near the interpolate x it is the affine map L_x + const, with slope
    g = L_x^T 1, and the pattern of slopes does not change with small changes of the parameters. So with
    v = 2 lambda (|g| - 1) g / |g| held constant,

        grad lambda (|g| - 1)^2 = <v, grad g> = grad L_x(v),

    one more row through the linear part of the critic; no second derivative is taken. The scalar's value
    is not the loss (L_x(v) is not the penalty): the loss is in the terms.

    Raises ValueError when real and synthetic differ in shape.
    """
    _check(real, synthetic)
    pairs = len(mix)
    x = torch.lerp(synthetic[:pairs], real[:pairs], mix).detach().requires_grad_(True)
    scores, outputs = critic.recorded_scores(x)
    (g,) = torch.autograd.grad(scores.sum(), x)
    norm = g.flatten(1).norm(dim=1).view(mix.shape)
    v = (2 * penalty_weight / pairs) * (norm - 1) * g / norm.clamp_min(1e-12)
    rows = torch.cat([real, synthetic, v])
    scores, _ = critic.recorded_scores(rows, outputs)
    on_real, on_synthetic, on_v = scores.split([len(real), len(synthetic), pairs])
    difference = on_synthetic.mean() - on_real.mean()
    penalty = (norm - 1).square().mean()
    terms = CriticTerms((difference + penalty_weight * penalty).detach(), -difference.detach(), penalty, norm.mean())
    return difference + on_v.sum(), terms


def critic_loss_textbook(critic: nn.Module, real: Tensor, synthetic: Tensor, mix: Tensor, penalty_weight: float) -> Tensor:
    """The same loss (its value too) by double backward, for any critic: the reference of the tests and benchmarks."""
    pairs = len(mix)
    penalty = gradient_penalty(critic, real[:pairs], synthetic[:pairs], mix).mean()
    return critic(synthetic).mean() - critic(real).mean() + penalty_weight * penalty


def gradient_penalty(critic: nn.Module, real: Tensor, synthetic: Tensor, mix: Tensor) -> Tensor:
    """How far the critic's slope is from 1, for each pair: (|grad f(x)| - 1)^2, shape (N,).

    x lies on the line from synthetic (mix = 0) to real (mix = 1), both (N, 1, *S); mix is (N, 1, *ones).
    Gulrajani et al. 2017, Eq. 3. Pairs stay separate: the critic must not mix patches, so no
    batch normalisation (sec. 4). Raises ValueError when real and synthetic differ in shape.
    """
    _check(real, synthetic)
    x = torch.lerp(synthetic, real, mix).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square()


def generator_loss(critic: nn.Module, synthetic: Tensor) -> Tensor:
    """Minus the mean score of synthetic patches (N, 1, *S): a scalar. Gulrajani et al. 2017, Algorithm 1, line 12."""
    return -critic(synthetic).mean()


def _check(real: Tensor, synthetic: Tensor) -> None:
    if real.shape != synthetic.shape:
        raise ValueError(
            f"real patches are {tuple(real.shape)}, synthetic {tuple(synthetic.shape)}; "
            "train the generator at the size in the patch folder's dataset.json"
        )
