"""Patches as a network sees them."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def to_unit(hu: NDArray, window: tuple[float, float], device: str) -> Tensor:
    """HU of any shape to float32 in [-1, 1]: the window's ends, what lies outside is clipped."""
    low, high = window
    return torch.from_numpy((np.clip(hu, low, high).astype(np.float32) - low) * np.float32(2 / (high - low)) - 1).to(device)


def channels_last(dimensions: int) -> torch.memory_format:
    """How convolutions over 2 or 3 axes run fastest on a CPU."""
    return torch.channels_last if dimensions == 2 else torch.channels_last_3d


def thinned_before(network: nn.Module) -> None:
    """Has 1 x 1 convolutions of fewer than 16 channels with a stride leave pixels out first and go over the rest without one.

    Weights and values stay the same. But oneDNN writes past its memory when it computes the weights' gradient of such a convolution with
    channels last (its issue 6035; torch 2.13 has oneDNN 3.12): with AVX-512 a segmentation fault from 56 x 56 pixels on.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) != layer.stride and layer.in_channels < 16:
            layer.register_forward_pre_hook(partial(_thinned, layer.stride))
            layer.stride = (1, 1)


def _thinned(stride: tuple[int, ...], layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (nn.functional.avg_pool2d(inputs[0], 1, stride),)  # faster than a slice
