"""The first-order critic loss has the textbook's gradient; the penalty has the value mathematics gives it."""

import pytest
import torch

from gan.losses import critic_loss, critic_loss_textbook, generator_loss, gradient_penalty
from gan.networks import Critic, Generator, halvings, widths


def critic_with_biases(shape, dtype, seed=0) -> Critic:
    torch.manual_seed(seed)
    critic = Critic(shape, 6).to(dtype)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return critic


def pairs(shape, dtype, count=6, penalised=6):
    torch.manual_seed(1)
    real, synthetic = (torch.rand(count, 1, *shape, dtype=dtype) * 2 - 1 for _ in range(2))
    return real, synthetic, torch.rand(penalised, 1, *[1] * len(shape), dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(32, 32), (16, 24), (16, 16, 16)])
@pytest.mark.parametrize("penalised", [6, 2])
@pytest.mark.parametrize("layout", ["plain", "channels last"])
def test_gradient_equals_double_backward(shape, dtype, tolerance, penalised, layout):
    critic = critic_with_biases(shape, dtype)
    if layout == "channels last":
        critic = critic.to(memory_format=torch.channels_last if len(shape) == 2 else torch.channels_last_3d)
    real, synthetic, mix = pairs(shape, dtype, penalised=penalised)
    loss, terms = critic_loss(critic, real, synthetic, mix, penalty_weight=10.0)
    ours = torch.autograd.grad(loss, list(critic.parameters()))
    textbook = critic_loss_textbook(critic, real, synthetic, mix, penalty_weight=10.0)
    theirs = torch.autograd.grad(textbook, list(critic.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()
    assert terms.loss.item() == pytest.approx(textbook.item(), rel=1e-5)
    penalty = gradient_penalty(critic, real[:penalised], synthetic[:penalised], mix).mean()
    assert terms.penalty.item() == pytest.approx(penalty.item(), rel=1e-4)
    assert terms.wasserstein.item() == pytest.approx((critic(real).mean() - critic(synthetic).mean()).item(), rel=1e-4, abs=1e-6)


def test_penalty_on_a_part_of_the_pairs_has_the_same_expectation():
    critic = critic_with_biases((16, 16), torch.float64)
    real, synthetic, mix = pairs((16, 16), torch.float64, count=8, penalised=8)
    whole = critic_loss_textbook(critic, real, synthetic, mix, 10.0)
    parts = []
    for start in range(0, 8, 2):
        turn = [(n + start) % 8 for n in range(8)]
        loss, terms = critic_loss(critic, real[turn], synthetic[turn], mix[turn][:2], 10.0)
        assert loss.requires_grad
        parts.append(terms.loss)
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-10)


def test_penalty_of_a_linear_critic_is_known():
    weight = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def linear(x):
        return (x * weight).sum((1, 2, 3)) + 7

    real, synthetic, mix = pairs((8, 8), torch.float64)
    expected = (weight.norm() - 1) ** 2
    torch.testing.assert_close(gradient_penalty(linear, real, synthetic, mix), expected.expand(6))


def test_pairs_of_different_shape_are_refused():
    critic = critic_with_biases((16, 16), torch.float32)
    with pytest.raises(ValueError, match="real patches are"):
        critic_loss(critic, torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 1, 1), 10.0)


def test_generator_loss_is_minus_the_mean_score():
    critic = critic_with_biases((16, 16), torch.float64)
    x, _, _ = pairs((16, 16), torch.float64)
    assert generator_loss(critic, x).item() == pytest.approx(-critic(x).mean().item())


def test_critic_scores_each_patch_by_itself():
    critic = critic_with_biases((16, 16), torch.float64)
    x, other, _ = pairs((16, 16), torch.float64)
    mixed = torch.cat([x[:3], other[3:]])
    torch.testing.assert_close(critic(mixed)[:3], critic(x)[:3], rtol=1e-12, atol=0)


def test_linear_rows_are_the_critics_derivative():
    critic = critic_with_biases((16, 16), torch.float64)
    x, direction, _ = pairs((16, 16), torch.float64)
    _, outputs = critic.recorded_scores(x)
    derivative, _ = critic.recorded_scores(direction, outputs)
    step = 1e-7
    numeric = (critic(x + step * direction) - critic(x - step * direction)) / (2 * step)
    torch.testing.assert_close(derivative, numeric, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (48, 96), (128, 128), (32, 32, 32), (16, 48, 48)])
def test_generator_draws_the_shape_in_range(shape):
    generator = Generator(shape, channels=4, latent=8).eval()
    x = generator(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))
    assert x.shape == (2, 1, *shape)
    assert x.abs().max() <= 1
    assert (x[0] != x[1]).any()
    assert Critic(shape, 4)(x).shape == (2,)


def test_sizes_that_cannot_be_halved_are_refused():
    for shape in [(50, 50), (4, 4), (32, 33), (32,)]:
        with pytest.raises(ValueError, match="cannot be halved"):
            halvings(shape)
    assert widths((128, 128), 16) == [16, 32, 64, 128, 128]
