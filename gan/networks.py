"""Generator and critic, DCGAN-shaped (Radford et al. 2016), in 2-D and 3-D.

Shapes: N patches, 1 channel, (H, W) or (D, H, W). Patches are float32 in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SLOPE = 0.2
"""Of the critic's leaky ReLU below 0."""

Net = TypeVar("Net", bound=nn.Module)

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def halvings(shape: Sequence[int]) -> int:
    """How often a patch is halved, until its shortest side has 3 to 7 pixels.

    Raises ValueError when that leaves a fraction of a pixel, or the patch is too small.
    """
    count = 0
    while min(shape) >> count >= 8:
        count += 1
    if len(shape) not in (2, 3) or count == 0 or any(side % (1 << count) for side in shape):
        raise ValueError(
            f"patches of {' x '.join(map(str, shape))} cannot be halved down to 4 pixels; "
            "make them at 32, 48, 64, 96 or 128 pixels (--size)"
        )
    return count


def widths(shape: Sequence[int], channels: int) -> list[int]:
    """Feature maps after each halving: channels, doubled each time, up to eightfold."""
    return [channels * min(2**n, 8) for n in range(halvings(shape))]


class Generator(nn.Module):
    """Latent to patch: a linear layer, then transposed convolutions, each doubling the side.

    Batch normalisation is allowed here; samples are drawn in eval mode, so they do not depend on the batch.
    """

    def __init__(self, shape: Sequence[int], channels: int, latent: int):
        super().__init__()
        dims, maps = len(shape), widths(shape, channels)[::-1]
        self.latent = latent
        self.start = (maps[0], *(side >> len(maps) for side in shape))
        self.project = nn.Linear(latent, torch.Size(self.start).numel(), bias=False)
        layers: list[nn.Module] = [_BATCH_NORM[dims](maps[0]), nn.ReLU()]
        for before, after in pairwise(maps):
            layers += [_TRANSPOSED[dims](before, after, 4, 2, 1, bias=False), _BATCH_NORM[dims](after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, _TRANSPOSED[dims](maps[-1], 1, 4, 2, 1), nn.Tanh())
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, z: Tensor) -> Tensor:
        """(N, latent), standard normal -> (N, 1, *shape) in [-1, 1]."""
        return self.layers(self.project(z).view(-1, *self.start))


class _BiasAndSlope(torch.autograd.Function):
    """Bias and leaky ReLU for ordinary rows, another pass's slopes for the linear rows behind them; in place.

    A leaky ReLU's slope is seen from the sign of its output, so outputs serve as the record of slopes.
    """

    @staticmethod
    def forward(ctx, y: Tensor, bias: Tensor, recorded: Tensor | None) -> Tensor:
        ordinary = len(y) if recorded is None else len(y) - len(recorded)
        F.leaky_relu_(y[:ordinary].add_(bias.view(1, -1, *[1] * (y.ndim - 2))), SLOPE)
        if recorded is not None:
            _scale_by_slopes(y[ordinary:], recorded)
        ctx.mark_dirty(y)
        ctx.save_for_backward(y, recorded)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        y, recorded = ctx.saved_tensors
        ordinary = len(y) if recorded is None else len(y) - len(recorded)
        grad = grad.contiguous(memory_format=memory_format_of(y))
        _scale_by_slopes(grad[:ordinary], y[:ordinary])  # the layer's output has one reader, so its gradient is ours
        if recorded is not None:
            _scale_by_slopes(grad[ordinary:], recorded)
        over = [0, *range(2, grad.ndim)]
        return grad, grad[:ordinary].sum(over) if ctx.needs_input_grad[1] else None, None


def _scale_by_slopes(x: Tensor, output: Tensor) -> None:
    """x times the slopes of the leaky ReLU that gave `output`, in place."""
    torch.ops.aten.leaky_relu_backward.grad_input(x, output, SLOPE, True, grad_input=x)


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels last where x is stored so, else contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)
    return last if x.is_contiguous(memory_format=last) else torch.contiguous_format


def device_of(wanted: str) -> torch.device:
    """cpu, cuda, or for "auto" whichever there is. Raises ValueError when a GPU is wanted and none is visible."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but no GPU is visible; use cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def place(net: Net, device: torch.device | str, dims: int) -> Net:
    """The net on a device, its weights stored channels last, where convolutions are fastest."""
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    return net.to(device=device, memory_format=layout)  # type: ignore[call-overload]


class CriticLayer(nn.Module):
    """A convolution, its bias, and a leaky ReLU, for rows of two kinds.

    Ordinary rows take all three. Linear rows take the convolution without the bias, then the slopes
    that other inputs had: together, the layer's Jacobian at those inputs.
    """

    bias: nn.Parameter

    def __init__(self, convolution: nn.Module, maps: int):
        super().__init__()
        self.convolution = convolution
        self.bias = nn.Parameter(torch.zeros(maps))

    def forward(self, x: Tensor) -> Tensor:
        """(N, maps, ...), for ordinary rows; differentiable twice."""
        y = self.convolution(x)
        return F.leaky_relu(y + self.bias.view(1, -1, *[1] * (y.ndim - 2)), SLOPE)

    def with_slopes_of(self, recorded: Tensor | None, x: Tensor) -> Tensor:
        """The same, but the last len(recorded) rows of x are linear ones. Differentiable once."""
        return _BiasAndSlope.apply(self.convolution(x), self.bias, recorded)


class Critic(nn.Module):
    """Patch to score: strided convolutions with leaky ReLU, then a linear layer. Piecewise linear, no normalisation.

    So near x it equals an affine map, whose linear part `forward` can also apply to other rows.
    """

    def __init__(self, shape: Sequence[int], channels: int):
        super().__init__()
        dims, maps = len(shape), widths(shape, channels)
        self.layers = nn.ModuleList(
            CriticLayer(_CONV[dims](before, after, 4, 2, 1, bias=False), after) for before, after in pairwise([1, *maps])
        )
        last = torch.Size((maps[-1], *(side >> len(maps) for side in shape))).numel()
        self.score = nn.Linear(last, 1, bias=False)  # the loss sees differences of scores: a bias would cancel

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, *shape) in [-1, 1] -> scores (N,), higher for what looks real."""
        for layer in self.layers:
            x = layer(x)
        return self.score(x.flatten(1)).squeeze(1)

    def recorded_scores(self, x: Tensor, recorded: Sequence[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Scores (N,), differentiable once, and each layer's output. With the outputs of an earlier call on R rows,
        the last R rows of x go through the critic's linear part at those rows: their slopes, no bias."""
        outputs = []
        for n, layer in enumerate(self.layers):
            assert isinstance(layer, CriticLayer)
            x = layer.with_slopes_of(None if recorded is None else recorded[n], x)
            outputs.append(x.detach())
        return self.score(x.flatten(1)).squeeze(1), outputs
