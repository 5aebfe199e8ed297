"""The first-order critic loss has the textbook's gradient, whole or in shares; the penalty has the value mathematics gives it."""

import pytest
import torch

from gan.losses import critic_gradients, critic_loss_textbook, generator_loss, gradient_penalty
from gan.networks import Critic, place
from gan.rows import Tape

WEIGHT = 10.0


def critic_with_biases(shape, dtype=torch.float64, conditions=0, layout="channels last"):
    torch.manual_seed(0)
    critic = Critic(shape, 4, conditions).to(dtype)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return place(critic, "cpu", len(shape)) if layout == "channels last" else critic


def pairs(shape, dtype=torch.float64, count=6, penalised=6, conditions=0):
    torch.manual_seed(1)
    real, synthetic = (torch.rand(count, 1, *shape, dtype=dtype) * 2 - 1 for _ in range(2))
    condition = torch.rand(count, conditions, dtype=dtype) if conditions else None
    return real, synthetic, torch.rand(penalised, 1, *[1] * len(shape), dtype=dtype), condition


def assert_equal_gradients(ours, theirs, tolerance):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(32, 32), (16, 24), (16, 16, 16), (16, 48, 48)])
@pytest.mark.parametrize("penalised", [3, 1])
@pytest.mark.parametrize("conditions", [0, 3])
@pytest.mark.parametrize("layout", ["plain", "channels last"])
def test_gradient_equals_double_backward(shape, dtype, tolerance, penalised, conditions, layout):
    critic = critic_with_biases(shape, dtype, conditions, layout)
    real, synthetic, mix, condition = pairs(shape, dtype, 3, penalised, conditions)
    found, terms = critic_gradients(critic, real, synthetic, mix, WEIGHT, condition)
    textbook = critic_loss_textbook(critic, real, synthetic, mix, WEIGHT, condition)
    parameters = list(critic.parameters())
    assert_equal_gradients([found[p] for p in parameters], torch.autograd.grad(textbook, parameters), tolerance)
    assert all(found[p].dtype == dtype and p.grad is None for p in parameters)

    close = tolerance * 1e2
    given = [] if condition is None else [condition]
    x = torch.lerp(synthetic[:penalised], real[:penalised], mix).requires_grad_()
    (slope,) = torch.autograd.grad(critic(x, *(c[:penalised] for c in given)).sum(), x)
    norm = slope.flatten(1).norm(dim=1)
    assert terms.loss.item() == pytest.approx(textbook.item(), rel=close)
    assert terms.penalty.item() == pytest.approx((norm - 1).square().mean().item(), rel=close)
    assert terms.slope_norm.item() == pytest.approx(norm.mean().item(), rel=close)
    assert terms.wasserstein.item() == pytest.approx((critic(real, *given) - critic(synthetic, *given)).mean().item(), rel=close, abs=close)
    assert not any(term.requires_grad for term in terms)


@pytest.mark.parametrize("conditions", [0, 3])
@pytest.mark.parametrize(("first", "penalised"), [(4, 6), (4, 3), (0, 3), (6, 6), (1, 1)])
def test_shares_of_a_batch_sum_to_the_whole(first, penalised, conditions):
    shape = (16, 16)
    critic = critic_with_biases(shape, conditions=conditions)
    real, synthetic, mix, condition = pairs(shape, penalised=penalised, conditions=conditions)
    whole, terms = critic_gradients(critic, real, synthetic, mix, WEIGHT, condition)
    parts = []
    for part in (slice(0, first), slice(first, None)):
        given = None if condition is None else condition[part]
        parts.append(critic_gradients(critic, real[part], synthetic[part], mix[part], WEIGHT, given, batch=6, pairs=penalised))
    assert_equal_gradients([parts[0][0][p] + parts[1][0][p] for p in whole], list(whole.values()), 1e-12)
    torch.testing.assert_close(torch.stack(parts[0][1]) + torch.stack(parts[1][1]), torch.stack(terms), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [1, 2])
def test_frozen_layers_have_no_gradient_and_the_others_the_same(frozen):
    critic, (real, synthetic, mix, _) = critic_with_biases((32, 32)), pairs((32, 32))
    whole, _ = critic_gradients(critic, real, synthetic, mix, WEIGHT)
    critic.layers[:frozen].requires_grad_(False)
    found, _ = critic_gradients(critic, real, synthetic, mix, WEIGHT)
    assert set(found) == {*critic.layers[frozen:].parameters(), *critic.score.parameters()}
    assert_equal_gradients(list(found.values()), [whole[p] for p in found], 1e-12)


def test_penalty_on_a_part_of_the_pairs_has_the_same_expectation():
    critic = critic_with_biases((16, 16))
    real, synthetic, mix, _ = pairs((16, 16), count=8, penalised=8)
    whole, terms = critic_gradients(critic, real, synthetic, mix, WEIGHT)
    parts = []
    for start in range(0, 8, 2):
        turn = [(n + start) % 8 for n in range(8)]
        parts.append(critic_gradients(critic, real[turn], synthetic[turn], mix[turn][:2], WEIGHT))
    assert_equal_gradients([sum(found[p] for found, _ in parts) / 4 for p in whole], list(whole.values()), 1e-10)
    assert torch.stack([some.loss for _, some in parts]).mean().item() == pytest.approx(terms.loss.item(), rel=1e-10)


def test_penalty_of_a_linear_critic_is_known():
    weight = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def linear(x):
        return (x * weight).sum((1, 2, 3)) + 7

    real, synthetic, mix, _ = pairs((8, 8))
    expected = (weight.norm() - 1) ** 2
    torch.testing.assert_close(gradient_penalty(linear, real, synthetic, mix), expected.expand(6))


def test_penalty_without_weight_leaves_the_plain_gradient():
    critic, (real, synthetic, mix, _) = critic_with_biases((16, 16)), pairs((16, 16))
    found, terms = critic_gradients(critic, real, synthetic, mix, 0.0)
    plain = torch.autograd.grad(critic(synthetic).mean() - critic(real).mean(), list(found))
    assert_equal_gradients(list(found.values()), plain, 1e-12)
    assert terms.penalty > 0


def test_pairs_of_different_shape_are_refused():
    critic = critic_with_biases((16, 16), torch.float32)
    for loss in (critic_gradients, critic_loss_textbook):
        with pytest.raises(ValueError, match="real patches are"):
            loss(critic, torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 1, 1), WEIGHT)


@pytest.mark.parametrize("shape", [(16, 24), (16, 16, 16)])
@pytest.mark.parametrize("conditions", [0, 3])
def test_generator_loss_has_the_gradient_of_minus_the_mean_score(shape, conditions):
    critic = critic_with_biases(shape, conditions=conditions)
    x, _, _, condition = pairs(shape, conditions=conditions)
    x.requires_grad_()
    theirs = -critic(x, condition).mean()
    (expected,) = torch.autograd.grad(theirs, x)
    ours = generator_loss(critic, x, condition)
    ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(x.grad, expected, rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in critic.parameters())
    part, rest = (generator_loss(critic, x[some], condition[some] if conditions else None, batch=6) for some in (slice(2), slice(2, None)))
    torch.testing.assert_close(part + rest, theirs, rtol=1e-12, atol=0)
    assert generator_loss(critic, x[:0], None if condition is None else condition[:0], batch=6).item() == 0


def test_critic_scores_each_patch_by_itself():
    critic = critic_with_biases((16, 16))
    x, other, _, _ = pairs((16, 16))
    mixed = torch.cat([x[:3], other[3:]])
    torch.testing.assert_close(critic(mixed)[:3], critic(x)[:3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("conditions", [0, 3])
def test_linear_rows_are_the_critics_derivative(conditions):
    critic = critic_with_biases((16, 16), conditions=conditions)
    x, direction, _, condition = pairs((16, 16), conditions=conditions)
    tape, derivative = Tape(0), []
    critic(x, condition, tape)
    tape.replay(lambda: derivative.append(critic(direction, condition, tape)))
    step = 1e-7
    with torch.no_grad():
        numeric = (critic(x + step * direction, condition) - critic(x - step * direction, condition)) / (2 * step)
    torch.testing.assert_close(derivative[0], numeric, rtol=1e-5, atol=1e-6)
