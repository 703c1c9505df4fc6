"""The convolution whose output is one pixel is torch's, computed otherwise."""

from __future__ import annotations

import itertools
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moco_dist.networks.convolution import Convolution

CASES = [(*case, layout) for case in itertools.product((1, 3, 7), (1, 2), (1, 2, 3)) for layout in ("NCHW", "NHWC")]


@pytest.mark.parametrize(("kernel", "stride", "size", "layout"), CASES)
def test_it_is_torchs(kernel: int, stride: int, size: int, layout: str) -> None:
    ours = Convolution(4, 6, kernel, stride).double()
    theirs = nn.Conv2d(4, 6, kernel, stride, kernel // 2, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    outcomes = []
    for module in (ours, theirs):
        module.to(memory_format=torch.channels_last if layout == "NHWC" else torch.contiguous_format)
        x = torch.arange(3.0 * 4 * size * (size + 1), dtype=torch.float64).sin().view(3, 4, size, size + 1)
        output = module(x.requires_grad_())
        output.cos().sum().backward()
        outcomes.append([output, x.grad, module.weight.grad])
    torch.testing.assert_close(*outcomes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("stride", "size"), [(1, 1), (2, 1), (2, 2)])
def test_one_pixel_is_a_matrix_product(stride: int, size: int) -> None:
    with mock.patch.object(F, "conv2d", side_effect=AssertionError):
        assert Convolution(4, 6, 3, stride)(torch.ones(2, 4, size, size)).shape == (2, 6, 1, 1)
