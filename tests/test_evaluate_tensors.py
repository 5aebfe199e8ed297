"""Strided 1 x 1 convolutions: thinned before, a network computes the same, and learns from patches of any size."""

import copy

import numpy as np
import pytest
import torch
from monai.networks.nets import ResNet

from evaluate.detector import detector_network
from evaluate.simclr import train_encoder
from evaluate.tensors import thinned_before


@pytest.mark.parametrize("side", [16, 21])
def test_a_thinned_network_has_the_same_values_and_gradients(side):
    torch.manual_seed(0)
    before = ResNet("basic", [1, 1, 1, 1], [4, 8, 16, 32], 2, 1, 3, 1, True, num_classes=1).double()
    thinned = copy.deepcopy(before)
    thinned_before(thinned)
    strides = [[layer.stride for layer in one.modules() if getattr(layer, "kernel_size", None) == (1, 1)] for one in (before, thinned)]
    assert strides == [[(2, 2)] * 3, [(1, 1), (1, 1), (2, 2)]]
    assert before.state_dict().keys() == thinned.state_dict().keys()
    x = torch.randn(4, 1, side, side, dtype=torch.float64)
    values = [one(x) for one in (before, thinned)]
    torch.testing.assert_close(*values)
    for value in values:
        value.square().sum().backward()
    for one, other in zip(before.parameters(), thinned.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_large_patches_end_no_process():
    """Without thinning, a segmentation fault on a CPU with AVX-512."""
    hu = np.random.default_rng(0).integers(-1000, 400, (8, 64, 64)).astype(np.int16)
    encoder = train_encoder(hu, [*"aabbccdd"], None, (-1000, 400), np.random.default_rng(0), steps=5, batch=8)
    assert all(p.isfinite().all() for p in encoder.parameters())
    detector = detector_network("small", 2, 0, "cpu")
    for _ in range(3):
        detector(torch.randn(8, 1, 128, 128)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
