"""The critic's parameter gradient, penalty included, from rows that pass through it once each way.

A critic that is piecewise linear equals, near an input x, an affine map, whose linear part applies to any other row.
So three kinds of rows share every layer's products: real patches, synthetic ones, and the interpolates x, whose places
the linear rows v take afterwards. A layer's weight gradient is then one product of what came in,
[real | synthetic | v], with what came back, [real | synthetic | x].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SLOPE = 0.2
"""Of the critic's leaky ReLU below 0."""


class Layer(Protocol):
    """A layer that is a product with its weight, plus perhaps a bias, and the two products of its backward pass."""

    @property
    def weight(self) -> nn.Parameter: ...

    @property
    def bias(self) -> nn.Parameter | None: ...

    def product(self, x: Tensor, bias: Tensor | None, /) -> Tensor: ...

    def product_back(self, delta: Tensor, /) -> Tensor: ...

    def weight_gradient(self, x: Tensor, delta: Tensor, /) -> Tensor: ...


class Tape:
    """What a pass of rows leaves at each layer: its input, its output, and the gradient at its product.

    ordinary: how many rows are patches; those after them are interpolates, whose places linear rows will take.
    """

    def __init__(self, ordinary: int):
        self.ordinary = ordinary
        self.anchor = torch.empty(0, requires_grad=True)  # without it the first layer, whose input wants no gradient, is left out
        self.inputs: dict[Layer, Tensor] = {}
        self.outputs: dict[Layer, Tensor] = {}
        self.deltas: dict[Layer, Tensor] = {}
        self._replaying = False

    def product(self, layer: Layer, x: Tensor) -> Tensor:
        """What the layer makes of x, recorded; when replaying, of linear rows, which stay at its input and meet no bias."""
        if not self._replaying:
            self.inputs[layer] = x.detach()
            return _Product.apply(x, self.anchor, layer, self)
        place = self.inputs[layer][self.ordinary :]
        if place.data_ptr() != x.data_ptr():
            place.copy_(x)
        return layer.product(place, None)

    def leaky_relu(self, layer: Layer, y: Tensor) -> Tensor:
        """A leaky ReLU of the layer's product, in place; when replaying, the slopes that it had for the interpolates."""
        if not self._replaying:
            y = _LeakyReLU.apply(y)
            self.outputs[layer] = y.detach()
            return y
        place = self.outputs[layer][self.ordinary :]
        return _scale_by_slopes(y, place, out=place)  # often the next layer's input, so this puts the rows where they belong

    def replay(self, linear_part: Callable[[], object]) -> None:
        """Puts linear rows in the interpolates' places: `linear_part` passes them through the same layers again."""
        self._replaying = True
        with torch.no_grad():
            linear_part()
        self._replaying = False

    @torch.no_grad()  # else each gradient would hold on to its layer's rows
    def gradients(self) -> dict[nn.Parameter, Tensor]:
        """The gradient of every parameter that wants one, after the backward pass and the replay."""
        found: dict[nn.Parameter, Tensor] = {}
        for layer, x in self.inputs.items():
            delta = self.deltas[layer]
            if _wants(layer.weight):
                found[layer.weight] = layer.weight_gradient(x, delta).to(layer.weight.dtype)
            if _wants(layer.bias):
                found[layer.bias] = delta[: self.ordinary].sum([0, *range(2, delta.ndim)], dtype=layer.bias.dtype)
        return found

    @torch.no_grad()
    def gradients_by_patient(self, patients: int) -> Iterator[dict[nn.Parameter, Tensor]]:
        """As `gradients`, of one patient after the other, so that only one's are ever in memory.

        The real rows, the synthetic and the linear ones each go patient by patient, as many of one as of another.
        """

        layers = [(layer, x.movedim(1, -1), self.deltas[layer].movedim(1, -1)) for layer, x in self.inputs.items()]  # as they lie in memory
        rows = torch.arange(len(layers[0][1]), device=layers[0][1].device).tensor_split([self.ordinary // 2, self.ordinary])
        biases = {
            layer.bias: delta[: self.ordinary].flatten(1, -2).sum(1).view(2, patients, -1, delta.shape[-1]).sum([0, 2])
            for layer, _, delta in layers
            if _wants(layer.bias)
        }
        for n, own in enumerate(torch.cat([kind.view(patients, -1) for kind in rows], 1)):
            found = {
                layer.weight: layer.weight_gradient(x[own].movedim(-1, 1), delta[own].movedim(-1, 1))
                for layer, x, delta in layers
                if _wants(layer.weight)
            }
            yield found | {bias: each[n] for bias, each in biases.items()}


def _wants(parameter: nn.Parameter | None) -> TypeGuard[nn.Parameter]:
    return parameter is not None and parameter.requires_grad


class _Product(torch.autograd.Function):
    """A layer's product, whose backward pass keeps the gradient at its output instead of making the weight's."""

    @staticmethod
    def forward(ctx, x: Tensor, anchor: Tensor, layer: Layer, tape: Tape) -> Tensor:
        ctx.layer, ctx.tape = layer, tape
        return layer.product(x, layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, delta: Tensor) -> tuple[Tensor | None, None, None, None]:
        ctx.tape.deltas[ctx.layer] = delta
        return ctx.layer.product_back(delta) if ctx.needs_input_grad[0] else None, None, None, None


class _LeakyReLU(torch.autograd.Function):
    """A leaky ReLU in place. Its slope is seen from the sign of its output, so nothing else is stored."""

    @staticmethod
    def forward(ctx, y: Tensor) -> Tensor:
        F.leaky_relu_(y, SLOPE)
        ctx.mark_dirty(y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        grad = grad.contiguous(memory_format=memory_format_of(y))
        return _scale_by_slopes(grad, y, out=grad)  # the output has one reader, so its gradient is ours


def _scale_by_slopes(x: Tensor, output: Tensor, out: Tensor) -> Tensor:
    """x times the slopes of the leaky ReLU that gave `output`, written to `out`, which may be either."""
    return torch.ops.aten.leaky_relu_backward.grad_input(x, output, SLOPE, True, grad_input=out)  # type: ignore[no-any-return]


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels last where x is stored so, else contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim, torch.contiguous_format)
    return last if x.is_contiguous(memory_format=last) else torch.contiguous_format
