"""The Wasserstein critic loss with gradient penalty, twice: by first-order passes, and as the textbook has it.

Shapes: N pairs of patches, 1 channel, *S = (H, W) or (D, H, W), and conditions (N, K) that a pair shares.
Patches are float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gan.networks import Critic
from gan.rows import Tape


class CriticTerms(NamedTuple):
    """What a critic step saw, detached scalars: its loss, the Wasserstein estimate
    mean f(real) - mean f(synthetic), the penalty before its weight, and the mean norm of the slope."""

    loss: Tensor
    wasserstein: Tensor
    penalty: Tensor
    slope_norm: Tensor


def critic_gradients(
    critic: Critic,
    real: Tensor,
    synthetic: Tensor,
    mix: Tensor,
    penalty_weight: float,
    condition: Tensor | None = None,
    *,
    batch: int | None = None,
    pairs: int | None = None,
) -> tuple[dict[nn.Parameter, Tensor], CriticTerms]:
    """The gradient of the WGAN-GP critic loss in every parameter of the critic that wants one, exactly.

    real, synthetic: (N, 1, *S). mix: (P, 1, *ones), uniform in [0, 1], P <= N: the first P pairs are penalised.
    Gulrajani et al. 2017, Algorithm 1, with the penalty's mean over those P pairs. batch and pairs: what the means divide by, N and P by
    default; where these rows are one process's share of a batch, the whole batch's, so that gradients and terms are to be summed.

    The critic is piecewise linear. Near the interpolate x it is the affine map L_x + const, with slope
    g = L_x^T 1, and the pattern of slopes does not change with small changes of the parameters. So with
    v = 2 lambda (|g| - 1) g / |g| held constant,

        grad lambda (|g| - 1)^2 = <v, grad g> = grad L_x(v),

    one more row through the linear part of the critic; no second derivative is taken. L_x's backward pass is the one
    that gave g, so v needs a forward pass only.

    Raises ValueError when real and synthetic differ in shape.
    """
    _check(real, synthetic)
    batch, pairs = batch or len(real), pairs or len(mix)
    x = torch.lerp(synthetic[: len(mix)], real[: len(mix)], mix)
    of_x = None if condition is None else condition[: len(mix)]
    each, penalties = real.new_full((len(real),), 1 / batch), real.new_full((len(mix),), penalty_weight / pairs)
    tape, scores, norm = _both_ways(critic, real, synthetic, x, condition, of_x, each, penalties)
    wasserstein = (scores[: len(real)].sum() - scores[len(real) : tape.ordinary].sum()) / batch
    penalty = (norm - 1).square().sum() / pairs
    return tape.gradients(), CriticTerms(penalty_weight * penalty - wasserstein, wasserstein, penalty, norm.sum() / pairs)


def _both_ways(
    critic: Critic,
    real: Tensor,
    synthetic: Tensor,
    x: Tensor,
    condition: Tensor | None,
    of_x: Tensor | None,
    each: Tensor,
    penalties: Tensor,
) -> tuple[Tape, Tensor, Tensor]:
    """The rows of `critic_gradients`, recorded; all scores; and the norm of the slope at each interpolate x, (P,), of condition of_x.

    each: (N,), what a pair counts in the loss; penalties: (P,), what an interpolate's penalty does.
    """
    tape = Tape(2 * len(real))
    conditions = None if condition is None or of_x is None else torch.cat([condition, condition, of_x])
    scores = critic(torch.cat([real, synthetic, x]), conditions, tape)
    torch.autograd.grad(scores, tape.anchor, torch.cat([-each, each, torch.ones_like(penalties)]).to(scores.dtype), allow_unused=True)
    with torch.no_grad():  # the weight it passes through wants a gradient, and this is not the way to it
        g = critic.image_gradient(tape, slice(tape.ordinary, None))
    norm = g.flatten(1).norm(dim=1)
    v = (2 * penalties * (norm - 1) / norm.clamp_min(1e-12)).view(-1, *[1] * (x.ndim - 1)) * g
    tape.replay(lambda: critic(v, of_x, tape))
    return tape, scores.detach(), norm


def patient_gradients(
    critic: Critic, real: Tensor, synthetic: Tensor, mix: Tensor, there: Tensor, penalty_weight: float, condition: Tensor | None = None
) -> Iterator[dict[nn.Parameter, Tensor]]:
    """The gradient of each patient's own critic loss in every parameter that wants one, patient by patient, from the same passes.

    A patient's loss is (1/k) sum_j m_j [f(synthetic_j) - f(real_j)] + (lambda/p) sum_(j < p) m_j GP_j over their k pairs: real and
    synthetic (n, k, 1, *S), condition (n, k, K), mix (n, p, 1, *ones) in [0, 1] for the first p pairs, there (n, k) with m_j = 1, or 0
    where a patient has fewer than k. The divisors are fixed, so that one patient's rows say nothing of another's.
    """
    n, k, p = *real.shape[:2], mix.shape[1]
    x = torch.lerp(synthetic[:, :p], real[:, :p], mix).flatten(0, 1)
    given = None if condition is None else condition.flatten(0, 1)
    of_x = None if condition is None else condition[:, :p].flatten(0, 1)
    each, penalties = (there / k).flatten(), (penalty_weight / p * there[:, :p]).flatten()
    tape, _, _ = _both_ways(critic, real.flatten(0, 1), synthetic.flatten(0, 1), x, given, of_x, each, penalties)
    return tape.gradients_by_patient(n)


def critic_loss_textbook(
    critic: nn.Module, real: Tensor, synthetic: Tensor, mix: Tensor, penalty_weight: float, condition: Tensor | None = None
) -> Tensor:
    """The same loss by double backward, a scalar, for any critic: the reference of the tests and benchmarks."""
    pairs, given = len(mix), () if condition is None else (condition,)
    penalty = gradient_penalty(critic, real[:pairs], synthetic[:pairs], mix, *(c[:pairs] for c in given)).mean()
    return critic(synthetic, *given).mean() - critic(real, *given).mean() + penalty_weight * penalty


def gradient_penalty(critic: nn.Module, real: Tensor, synthetic: Tensor, mix: Tensor, *condition: Tensor) -> Tensor:
    """How far the critic's slope is from 1, for each pair: (|grad f(x)| - 1)^2, shape (N,).

    x lies on the line from synthetic (mix = 0) to real (mix = 1), both (N, 1, *S); mix is (N, 1, *ones).
    Gulrajani et al. 2017, Eq. 3. Pairs stay separate: the critic must not mix patches, so no
    batch normalisation (sec. 4). Raises ValueError when real and synthetic differ in shape.
    """
    _check(real, synthetic)
    x = torch.lerp(synthetic, real, mix).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(x, *condition).sum(), x, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square()


def generator_loss(critic: Critic, synthetic: Tensor, condition: Tensor | None = None, *, batch: int | None = None) -> Tensor:
    """Minus the mean score of synthetic patches (N, 1, *S), a scalar that leaves no gradient in the critic's parameters.

    Gulrajani et al. 2017, Algorithm 1, line 12. batch: what the mean divides by, N by default.
    """
    return -critic(synthetic, condition, Tape(len(synthetic))).sum() / (batch or len(synthetic))


def _check(real: Tensor, synthetic: Tensor) -> None:
    if real.shape != synthetic.shape:
        raise ValueError(
            f"real patches are {tuple(real.shape)}, synthetic {tuple(synthetic.shape)}; "
            "train the generator at the size in the patch folder's dataset.json"
        )
