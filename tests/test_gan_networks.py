"""The networks' own layers equal the plain ones they stand for; shapes, strides and conditions are what they say."""

from copy import deepcopy
from itertools import product
from math import prod
from threading import Barrier, Thread

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gan.networks import (
    BatchNorm,
    Convolution,
    Critic,
    Generator,
    UpsamplingConvolution,
    channels_last,
    from_cells,
    place,
    strides,
    to_cells,
    widths,
)

CONVOLVE = {2: F.conv2d, 3: F.conv3d}
STRIDES = [*product((1, 2), repeat=2), *product((1, 2), repeat=3)]


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def sides_for(stride):
    """Even, and another one along every axis, so that none can be taken for another."""
    return [6, 8, 4][: len(stride)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("cells", [False, True])
def test_upsampling_convolution_is_nearest_upsampling_and_a_convolution(stride, cells):
    layer = UpsamplingConvolution(3, 1 if cells else 2, stride, cells).double()
    with torch.no_grad():
        layer.weight.copy_(uniform(*layer.weight.shape))
    x = uniform(2, 3, *sides_for(stride), seed=1)
    ours = from_cells(layer(x), stride) if cells else layer(x)
    larger = x
    for axis, factor in enumerate(stride, 2):
        larger = larger.repeat_interleave(factor, axis)
    theirs = CONVOLVE[len(stride)](larger, layer.weight.transpose(0, 1), padding=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = uniform(*ours.shape, seed=2)
    for a, b in zip(*(torch.autograd.grad(y, layer.weight, direction) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", STRIDES)
def test_cells_come_back_as_pixels(cell):
    x = uniform(2, 1, *sides_for(cell))
    cells = to_cells(x, cell)
    assert cells.shape == (2, prod(cell), *[(side + 2) // c for side, c in zip(sides_for(cell), cell, strict=True)])
    assert torch.equal(from_cells(cells, cell), x)
    assert cells.square().sum().item() == pytest.approx(x.square().sum().item())  # nothing but the pixels and a frame of 0
    other = uniform(*cells.shape, seed=1)
    assert (cells * other).sum().item() == pytest.approx((x * from_cells(other, cell)).sum().item())  # so from_cells carries gradients back


@pytest.mark.parametrize("cell", STRIDES)
def test_first_layer_in_cells_is_a_strided_convolution(cell):
    layer = Convolution(prod(cell), 5, cell, cells=True).double()
    with torch.no_grad():
        layer.bias.copy_(uniform(5, seed=3))
    dims = len(cell)
    kernel = layer.weight.reshape(5, *cell, *layer.weight.shape[2:])  # after, place in a cell ..., cell ...
    order = [axis for n in range(1, dims + 1) for axis in (n + dims, n)]
    weight = kernel.permute(0, *order).reshape(5, 1, *[4 if c == 2 else 3 for c in cell])
    x = uniform(2, 1, *sides_for(cell), seed=1)
    expected = F.leaky_relu(CONVOLVE[dims](x, weight, layer.bias, cell, 1), 0.2)
    torch.testing.assert_close(layer(to_cells(x, cell)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("before", [None, 3, 300])  # None: cells; 300: so many weights that few outputs go another way
def test_a_layers_backward_products_are_autograds(stride, before):
    layer = Convolution(before or prod(stride), 5, stride, before is None).double()
    x = (uniform(2, before, *sides_for(stride)) if before else to_cells(uniform(2, 1, *sides_for(stride)), stride)).requires_grad_()
    y = layer.product(x, layer.bias)
    delta = uniform(*y.shape, seed=1)
    at_x, at_weight = torch.autograd.grad(y, [x, layer.weight], delta)
    torch.testing.assert_close(layer.product_back(delta), at_x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.weight_gradient(x, delta), at_weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 8), [(2, 2)]),
        ((28, 28), [(2, 2), (2, 2)]),
        ((64, 64), [(2, 2)] * 4),
        ((48, 96), [(1, 2)] + [(2, 2)] * 3),
        ((32, 32, 32), [(2, 2, 2)] * 3),
        ((16, 64, 64), [(1, 2, 2)] * 2 + [(2, 2, 2)] * 2),
        ((16, 48, 48), [(1, 2, 2)] + [(2, 2, 2)] * 2),
        ((4, 32, 32), [(1, 2, 2)] * 3),
        ((3, 16, 16), [(1, 2, 2)] * 2),
    ],
)
def test_long_axes_are_halved_first(shape, expected):
    assert strides(shape) == expected
    left = [side // prod(axis) for side, axis in zip(shape, zip(*expected, strict=True), strict=True)]
    assert all(3 <= side <= 7 for side in left)


@pytest.mark.parametrize("shape", [(50, 50), (4, 4), (32, 33), (32,), (), (2, 32, 32), (0, 32), (32, 32, 32, 32), (7, 7)])
def test_sizes_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(ValueError, match="cannot be halved"):
        strides(shape)


def test_widths_double_up_to_eightfold():
    assert widths((128, 128), 16) == [16, 32, 64, 128, 128]


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (48, 96), (16, 16, 16), (16, 48, 48)])
@pytest.mark.parametrize("conditions", [0, 3])
def test_generator_draws_the_shape_in_range(shape, conditions):
    generator, critic = Generator(shape, 4, 8, conditions).eval(), Critic(shape, 4, conditions)
    for net in (generator, critic):
        place(net, "cpu", len(shape))
    given = torch.eye(3)[:2] if conditions else None
    x = generator(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), given)
    assert x.shape == (2, 1, *shape)
    assert x.abs().max() <= 1
    assert (x[0] != x[1]).any()
    assert critic(x, given).shape == (2,)
    assert all(p.is_contiguous(memory_format=channels_last(len(shape))) for p in critic.parameters() if p.ndim == len(shape) + 2)


@pytest.mark.parametrize("shape", [(16, 24), (8, 16, 16)])
def test_generator_is_the_plain_one(shape):
    """Doubling, convolution, normalisation, ReLU, layer by layer, with nothing about cells or transposed convolutions in it."""
    generator = Generator(shape, 4, 8).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(uniform(*parameter.shape) / 4)
    z = uniform(6, 8)
    x = (z @ generator.project.weight.t()).view(-1, *generator.start)
    for layer in generator.layers:
        if isinstance(layer, UpsamplingConvolution):
            for axis, factor in enumerate(layer.stride, 2):
                x = x.repeat_interleave(factor, axis)
            x = CONVOLVE[len(shape)](x, layer.weight.transpose(0, 1), padding=1)
        elif isinstance(layer, BatchNorm):
            over, sides = [0, *range(2, x.ndim)], [1, -1, *[1] * len(shape)]
            x = (x - x.mean(over, True)) / (x.var(over, False, keepdim=True) + 1e-5).sqrt()
            x = x * layer.weight.view(sides) + layer.bias.view(sides)
        else:
            x = x.relu()
    torch.testing.assert_close(generator(z), torch.tanh(x + generator.bias), rtol=1e-10, atol=1e-12)


def test_generator_draws_what_it_is_asked_for():
    generator = Generator((16, 16), 4, 8, 3).double().eval()
    z = uniform(1, 8).expand(3, 8)
    x = generator(z, torch.eye(3, dtype=torch.float64))
    assert len({tuple(row.flatten().tolist()) for row in x}) == 3
    torch.testing.assert_close(generator(z, torch.eye(3, dtype=torch.float64)[[0] * 3]), x[[0] * 3])


def test_critic_is_linear_in_the_condition():
    """Miyato and Koyama 2018, Eq. 3: w . h + (V h) . c."""
    critic = Critic((16, 16), 4, 3).double()
    x, a, b = uniform(2, 1, 16, 16), uniform(2, 3, seed=1), uniform(2, 3, seed=2)
    nothing = torch.zeros(2, 3, dtype=torch.float64)
    torch.testing.assert_close(critic(x, a) + critic(x, b), critic(x, a + b) + critic(x, nothing))
    assert ((critic(x, a) - critic(x, b)).abs() > 1e-6).all()


def in_shares(layer, shares):
    """What BatchNorm makes of each share, all at once: a thread stands for a process, and `sum_over` waits for the others."""
    given, barrier, outputs = [None] * len(shares), Barrier(len(shares), timeout=60), [None] * len(shares)

    def work(rank):
        def summed(tensor):
            given[rank] = tensor
            barrier.wait()
            total = sum(given[1:], given[0])
            barrier.wait()
            return total

        mine = layer if rank == 0 else deepcopy(layer)
        mine.sum_over, mine.weight, mine.bias = summed, layer.weight, layer.bias
        outputs[rank] = mine(shares[rank])

    threads = [Thread(target=work, args=(rank,)) for rank in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return torch.cat(outputs)


@pytest.mark.parametrize("sizes", [(5, 3), (7, 1), (8, 0), (2, 3, 3)])
@pytest.mark.parametrize("sides", [(4, 5), (2, 3, 4)])
def test_batch_normalisation_in_shares_is_that_of_the_whole_batch(sizes, sides):
    layer = BatchNorm(3).double()
    with torch.no_grad():
        layer.weight.copy_(uniform(3, seed=1))
        layer.bias.copy_(uniform(3, seed=2))
    plain = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(sides)](3).double()
    plain.load_state_dict(layer.state_dict())
    x = (5 * uniform(8, 3, *sides) + 3).requires_grad_()
    direction = uniform(8, 3, *sides, seed=3)
    ours, theirs = in_shares(layer, x.split(sizes)), plain(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(ours, [x, layer.weight, layer.bias], direction)
    for a, b in zip(found, torch.autograd.grad(theirs, [x, plain.weight, plain.bias], direction), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)
