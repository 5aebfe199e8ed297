"""Patches as a network sees them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_unit(hu: NDArray, window: tuple[float, float], device: str) -> Tensor:
    """HU of any shape to float32 in [-1, 1]: the window's ends, what lies outside is clipped."""
    low, high = window
    return torch.from_numpy((np.clip(hu, low, high).astype(np.float32) - low) * np.float32(2 / (high - low)) - 1).to(device)


def channels_last(dimensions: int) -> torch.memory_format:
    """How convolutions over 2 or 3 axes run fastest on a CPU."""
    return torch.channels_last if dimensions == 2 else torch.channels_last_3d
