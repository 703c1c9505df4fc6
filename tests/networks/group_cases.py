"""Batches cut into BatchNorm groups, and what all groups at once are compared with: torch's BatchNorm of each.

`TRITON_INTERPRET=1 python -m tests.networks.group_cases` runs the cases on Triton's kernels, in its interpreter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moco_dist.networks import batchnorm
from moco_dist.networks.batchnorm import normalise

EPS = 1e-3


class Case(NamedTuple):
    """A batch, and how it lies in memory."""

    shape: tuple[int, int, int, int]
    groups: int
    channels_last: bool = False
    dtype: torch.dtype = torch.float64
    pooled: bool = False
    """The gradient is that of a mean over pixels: a number of each image and channel, expanded."""


SHAPES = (
    ((8, 5, 3, 3), 2),  # neither channels nor pixels are a multiple of anything
    ((4, 3, 7, 5), 4),  # groups of one image
    ((6, 4, 1, 1), 2),  # one pixel
    ((4, 1, 5, 5), 2),  # one channel
    ((10, 2, 9, 7), 2),  # several tiles, the last one not full
)
CASES = [Case(*shape, channels_last=c, pooled=c) for shape in SHAPES for c in (False, True)]
CASES += [Case((4, 70, 1, 3), 2, channels_last=True)]  # more channels than a tile has
CASES += [
    Case((6, 6, 5, 7), 2, channels_last, dtype)
    for channels_last in (False, True)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]


class Numbers(NamedTuple):
    """The results of a BatchNorm."""

    output: Tensor
    sums: Tensor
    of_x: Tensor
    of_weight: Tensor
    of_bias: Tensor


def operands(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch whose groups and channels differ, the weight, the bias, and a gradient of the output."""
    generator = torch.Generator().manual_seed(1)
    images, channels = case.shape[:2]
    x, dy = torch.randn(2, *case.shape, generator=generator, dtype=torch.float64)
    x = x * torch.rand(images, channels, 1, 1, generator=generator, dtype=torch.float64) + 3 * torch.randn(
        channels, 1, 1, generator=generator, dtype=torch.float64
    )
    if case.pooled:
        dy = dy[:, :, :1, :1].expand(case.shape)
    if case.channels_last:
        x = x.to(memory_format=torch.channels_last)
    weight, bias = torch.rand(2, channels, generator=generator, dtype=torch.float64) + 0.5
    parameters = torch.promote_types(case.dtype, torch.float32)
    return x.to(case.dtype), weight.to(parameters), bias.to(parameters), dy.to(case.dtype)


def one_after_the_other(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """The oracle: torch's BatchNorm of each group."""
    outputs, statistics = [], []
    for group in x.chunk(groups):
        mean, variance = torch.zeros(2, x.shape[1], dtype=weight.dtype)
        outputs.append(F.batch_norm(group, mean, variance, weight, bias, True, 1.0, eps))
        statistics.append(torch.stack([mean, variance]))
    return torch.cat(outputs), torch.stack(statistics).sum(0)


def computed(how: Any, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, groups: int) -> Numbers:
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    output, sums = how(x, weight, bias, groups, EPS)
    output.mul_(2)  # in place, as the ReLUs of a ResNet
    output.backward(dy)
    assert x.grad is not None and weight.grad is not None and bias.grad is not None and not sums.requires_grad
    return Numbers(output.detach(), sums, x.grad, weight.grad, bias.grad)


def check(case: Case, device: str = "cpu") -> None:
    """Compare with the oracle: equal in float64, and else as near to the truth as the oracle in the same precision."""
    tensors = operands(case)
    ours = Numbers(*(t.cpu() for t in computed(normalise, *(t.to(device) for t in tensors), case.groups)))
    theirs = computed(one_after_the_other, *tensors, case.groups)
    truth = computed(one_after_the_other, *(t.double() for t in tensors), case.groups)
    for name, number, other, true in zip(Numbers._fields, ours, theirs, truth, strict=True):
        assert number.dtype == other.dtype and number.shape == other.shape, name
        allowed = 1e-12 if case.dtype == torch.float64 else 1.5 * (other.double() - true).abs().max() + 1e-6
        error = (number.double() - true).abs().max()
        assert error <= allowed * max(1, true.abs().max()), f"{case}, {name}: {error} > {allowed}"
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format
    assert ours.output.is_contiguous(memory_format=memory_format)


def check_the_kernels() -> None:
    """Run the cases on the kernels, and none of them in plain torch."""
    from moco_dist.networks import batchnorm_kernels

    batchnorm._suits_kernels = lambda x, groups: True
    batchnorm._kernels = lambda: batchnorm_kernels
    del batchnorm.forward, batchnorm.backward
    batchnorm_kernels.TILE, batchnorm_kernels.PROGRAMS = 256, 8  # small batches have several tiles and pieces too
    for case in CASES:
        check(case)
    print("checked", len(CASES))


if __name__ == "__main__":
    check_the_kernels()
