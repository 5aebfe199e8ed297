"""Generator and critic, DCGAN-shaped (Radford et al. 2016), in 2-D and 3-D, with or without conditions.

Shapes: N patches, 1 channel, *S = (H, W) or (D, H, W). Patches are float32 in [-1, 1]. Conditions are (N, K), see conditions.py.

The two layers that touch the image see it as cells of 2 x 2 (x 2) pixels, a channel each: the same convolution of
4 x 4 (x 4) pixels and stride 2, several times as fast, since one channel leaves the matrix units idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.rows import SLOPE, Tape

Net = TypeVar("Net", bound=nn.Module)

_CONVOLVE = {2: F.conv2d, 3: F.conv3d}
_CONVOLVE_TRANSPOSED = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def strides(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """How each layer shrinks a patch until its sides have 3 to 7 pixels: 2 or 1 for every axis, first layer first.

    Longer axes are halved first, so a patch with thick slices, such as 16 x 64 x 64, is seen at one scale in all directions.

    Raises ValueError when a side cannot be halved so, or the patch is too small.
    """
    sides, found = list(shape), []
    while max(sides, default=0) >= 8:
        found.append(tuple(2 if side >= 8 and 2 * side > max(sides) else 1 for side in sides))
        if any(side % stride for side, stride in zip(sides, found[-1], strict=True)):
            break
        sides = [side // stride for side, stride in zip(sides, found[-1], strict=True)]
    if len(shape) not in (2, 3) or not found or min(sides) < 3 or max(sides) >= 8:
        raise ValueError(
            f"patches of {' x '.join(map(str, shape))} cannot be halved down to 4 pixels; "
            "make them at 32, 48, 64, 96 or 128 pixels (--size)"
        )
    return found


def widths(shape: Sequence[int], channels: int) -> list[int]:
    """Feature maps after each layer: channels, doubled each time, up to eightfold."""
    return [channels * min(2**n, 8) for n in range(len(strides(shape)))]


def to_cells(x: Tensor, cell: Sequence[int]) -> Tensor:
    """(N, 1, *S), framed by one pixel of 0 -> (N, prod(cell), *C): cells of pixels, C = (S + 2) / cell, S + 2 where a cell is 1."""
    x = F.pad(x[:, 0], [1, 1] * len(cell))
    corners = product(*map(range, cell))
    pixels = [x[(slice(None), *[slice(start, None, step) for start, step in zip(at, cell, strict=True)])] for at in corners]
    return torch.stack(pixels, -1).movedim(-1, 1)  # channels last in memory


def from_cells(cells: Tensor, cell: Sequence[int]) -> Tensor:
    """The reverse, without the frame: (N, prod(cell), *C) -> (N, 1, *S). Also what carries a gradient back."""
    dims, count = len(cell), cells.shape[2:]
    split = cells.reshape(len(cells), *cell, *count)
    order = [axis for n in range(1, dims + 1) for axis in (n + dims, n)]
    x = split.permute(0, *order).reshape(len(cells), 1, *[n * c for n, c in zip(count, cell, strict=True)])
    return x[(slice(None), slice(None), *[slice(1, -1)] * dims)]


class Convolution(nn.Module):
    """A strided convolution for the critic, as rows.Layer wants it: (N, before, ...) -> (N, after, ...).

    Its kernel is 4 pixels where the stride is 2, else 3, with one pixel of padding. cells: what comes in are the cells that the
    stride would step over, their frame is the padding, and the 4 pixels are 2 of them.
    """

    def __init__(self, before: int, after: int, stride: Sequence[int], cells: bool = False):
        super().__init__()
        kernel = [4 // s if cells and s == 2 else s + 2 for s in stride]
        self.stride = tuple([1] * len(kernel) if cells else stride)
        self.padding = tuple([0 if cells else 1] * len(kernel))
        self.weight = nn.Parameter(torch.empty(after, before, *kernel))
        self.bias = nn.Parameter(torch.zeros(after))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """The convolution, its bias, and a leaky ReLU. Without a tape, differentiable twice."""
        if tape is not None:
            return tape.leaky_relu(self, tape.product(self, x))
        return F.leaky_relu(self.product(x, self.bias), SLOPE)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(N, before, ...) -> (N, after, ...)."""
        return _CONVOLVE[x.ndim - 2](x, self.weight, bias, self.stride, self.padding)

    def product_back(self, delta: Tensor) -> Tensor:
        """The gradient at the input of `product`, from that at its output."""
        return _CONVOLVE_TRANSPOSED[delta.ndim - 2](delta, self.weight, stride=self.stride, padding=self.padding)

    def weight_gradient(self, x: Tensor, delta: Tensor) -> Tensor:
        """The weight's gradient, from inputs and the gradients at the outputs."""
        if 8 * delta.numel() // delta.shape[1] <= self.weight[0].numel():
            return self._weight_gradient_of_few(x, delta)
        dims = x.ndim - 2
        return torch.ops.aten.convolution_backward(
            delta, x, self.weight.to(x.dtype), None, self.stride, self.padding, [1] * dims, False, [0] * dims, 1, [False, True, False]
        )[1]  # type: ignore[no-any-return]

    def _weight_gradient_of_few(self, x: Tensor, delta: Tensor) -> Tensor:
        """The same as one product of matrices: faster where a patient's outputs are few beside the weights (see benchmarks/privacy.py)."""
        axes = range(1, x.ndim - 1)
        windows = F.pad(x.movedim(1, -1), [0, 0, *[p for p in reversed(self.padding) for _ in range(2)]])
        for axis, kernel, stride in zip(axes, self.weight.shape[2:], self.stride, strict=True):
            windows = windows.unfold(axis, kernel, stride)
        columns = windows.movedim(x.ndim - 1, -1).reshape(-1, self.weight[0].numel())  # outputs, kernel x ... x before
        found = delta.movedim(1, -1).flatten(0, -2).t() @ columns
        return found.view(-1, *self.weight.shape[2:], self.weight.shape[1]).movedim(-1, 1)


class Score(nn.Module):
    """The last layer, as rows.Layer wants it: features -> 1 + K numbers, one for every patch, and one for each condition."""

    bias: nn.Parameter | None = None  # the loss sees differences of scores: a bias would cancel

    def __init__(self, features: int, conditions: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1 + conditions, features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(N, features) -> (N, 1 + K)."""
        return F.linear(x, self.weight)

    def product_back(self, delta: Tensor) -> Tensor:
        """The gradient at the input of `product`, from that at its output."""
        return delta @ self.weight.to(delta.dtype)

    def weight_gradient(self, x: Tensor, delta: Tensor) -> Tensor:
        """The weight's gradient, from inputs and the gradients at the outputs."""
        return delta.t() @ x


class Critic(nn.Module):
    """Patch to score: strided convolutions with leaky ReLU, then a linear layer. Piecewise linear, no normalisation.

    A condition c (K numbers) joins as a projection (Miyato and Koyama 2018, Eq. 3): the score is w . h + (V h) . c for
    features h, still linear in h, so that the penalty's gradient stays one of first order (see rows.py).
    """

    def __init__(self, shape: Sequence[int], channels: int, conditions: int = 0):
        super().__init__()
        steps, maps = strides(shape), widths(shape, channels)
        self.cell = steps[0]
        self.layers = nn.ModuleList(
            [Convolution(prod(self.cell), maps[0], self.cell, cells=True)]
            + [Convolution(before, after, stride) for (before, after), stride in zip(pairwise(maps), steps[1:], strict=True)]
        )
        sides = [side // prod(axis) for side, axis in zip(shape, zip(*steps, strict=True), strict=True)]
        self.score = Score(maps[-1] * prod(sides), conditions)

    def forward(self, x: Tensor, condition: Tensor | None = None, tape: Tape | None = None) -> Tensor:
        """(N, 1, *S) in [-1, 1] and (N, K) -> scores (N,), higher for what looks real. With a tape, recorded on it."""
        x = to_cells(x, self.cell)
        for layer in self.layers:
            x = layer(x, tape)
        x = x.flatten(1)
        scores = self.score.product(x) if tape is None else tape.product(self.score, x)
        return scores[:, 0] if condition is None else scores[:, 0] + (scores[:, 1:] * condition).sum(1)

    def image_gradient(self, tape: Tape, rows: slice) -> Tensor:
        """The gradient at these rows' images, (N, 1, *S), from what a backward pass left on the tape."""
        first = self.layers[0]
        assert isinstance(first, Convolution)
        return from_cells(first.product_back(tape.deltas[first][rows]), self.cell)


class UpsamplingConvolution(nn.Module):
    """Pixels doubled along the axes of stride 2, then a convolution of 3 pixels, one of padding: (N, before, ...) -> (N, after, ...).

    Computed as the one transposed convolution that it equals: a quarter of the arithmetic in 2-D, an eighth in 3-D. That has kernels
    of 4 pixels, but not the freedom that lets a transposed convolution draw checkerboards (Odena et al. 2016).
    cells: what comes out are cells of one channel's pixels (see from_cells), and `after` is 1.
    """

    def __init__(self, before: int, after: int, stride: Sequence[int], cells: bool = False):
        super().__init__()
        self.stride, self.cells = tuple(stride), cells
        self.weight = nn.Parameter(torch.empty(before, after, *[3] * len(stride)))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        weight, dims = self.kernel(), len(self.stride)
        if not self.cells:
            return _CONVOLVE_TRANSPOSED[dims](x, weight, stride=self.stride, padding=[1] * dims)
        sides = [n for s, side in zip(self.stride, weight.shape[2:], strict=True) for n in (side // s, s)]
        weight = weight.reshape(len(weight), *sides).permute(0, *range(2, 2 * dims + 1, 2), *range(1, 2 * dims, 2))
        return _CONVOLVE_TRANSPOSED[dims](x, weight.flatten(1, dims))

    def kernel(self) -> Tensor:
        """The transposed convolution's weight: 4 pixels along an axis of stride 2, 3 of stride 1."""
        weight: Tensor = self.weight
        for axis, stride in enumerate(self.stride, 2):
            w0, w1, w2 = weight.unbind(axis)
            weight = torch.stack([w2, w1 + w2, w0 + w1, w0] if stride == 2 else [w2, w1, w0], axis)
        return weight


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation in any number of dimensions; with `sum_over`, over the batches of all processes together.

    sum_over: sums a tensor over the processes, differentiably (processes.Processes.differentiable_sum).
    """

    sum_over: Callable[[Tensor], Tensor] | None = None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """(N, maps, ...) -> the same shape."""
        if self.sum_over is None or not self.training:
            return super().forward(x)
        over, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        count = self.sum_over(x.new_full((1,), x.numel() / x.shape[1]))
        mean = self.sum_over(x.sum(over)) / count
        x = x - mean.view(shape)
        variance = self.sum_over(x.square().sum(over)) / count
        with torch.no_grad():
            for running, now in ((self.running_mean, mean), (self.running_var, variance * count / (count - 1))):
                running.lerp_(now.to(running.dtype), self.momentum or 0.0)
            self.num_batches_tracked.add_(1)
        return x * ((variance + self.eps).rsqrt() * self.weight).view(shape) + self.bias.view(shape)


class Generator(nn.Module):
    """Latent and condition to patch: a linear layer, then convolutions, each after doubling the sides it has to.

    Batch normalisation is allowed here; samples are drawn in eval mode, so they do not depend on the batch.
    """

    def __init__(self, shape: Sequence[int], channels: int, latent: int, conditions: int = 0):
        super().__init__()
        steps, maps = strides(shape)[::-1], widths(shape, channels)[::-1]
        self.latent, self.conditions, self.cell = latent, conditions, steps[-1]
        sides = [side // prod(axis) for side, axis in zip(shape, zip(*steps, strict=True), strict=True)]
        self.start = (maps[0], *sides)
        self.project = nn.Linear(latent + conditions, prod(self.start), bias=False)
        nn.init.normal_(self.project.weight, std=0.02)
        layers: list[nn.Module] = [BatchNorm(maps[0]), nn.ReLU()]
        for (before, after), stride in zip(pairwise(maps), steps[:-1], strict=True):
            layers += [UpsamplingConvolution(before, after, stride), BatchNorm(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, UpsamplingConvolution(maps[-1], 1, self.cell, cells=True))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """(N, latent), standard normal, and (N, K) -> (N, 1, *S) in [-1, 1]."""
        z = z if condition is None else torch.cat([z, condition], 1)
        x = self.project(z).view(-1, *self.start).contiguous(memory_format=channels_last(len(self.cell)))
        return torch.tanh(from_cells(self.layers(x), self.cell) + self.bias)


def channels_last(dims: int) -> torch.memory_format:
    """How images of this many dimensions lie in memory for the fastest convolutions."""
    return torch.channels_last if dims == 2 else torch.channels_last_3d


def place(net: Net, device: torch.device | str, dims: int) -> Net:
    """The net on a device, its weights stored channels last."""
    return net.to(device=device, memory_format=channels_last(dims))  # type: ignore[call-overload]


def device_of(wanted: str) -> torch.device:
    """cpu, cuda, or for "auto" whichever there is. Raises ValueError when a GPU is wanted and none is visible."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but no GPU is visible; use cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
