"""Normalise groups of the global batch, each by its own statistics.

A group is a run of `group_size` neighbours of the batch. Its statistics are its own, whichever rank holds it, so the
number of ranks does not change what is computed: one GPU that holds eight groups stands in for eight GPUs.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moco_dist.ranks import devices


class GroupBatchNorm2d(nn.BatchNorm2d):
    """This BatchNorm cuts its batch into groups and normalises each by itself.

    In training, the statistics of the groups are gathered until `fold_statistics_` takes their mean into the running
    ones: once for a whole batch, however many parts it was computed in. Parameters and buffers are those of
    `nn.BatchNorm2d`.
    """

    group_size: int | None = None
    """Images of one group; None: the batch is one group."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.register_buffer("group_sums", torch.zeros(2, num_features), persistent=False)
        self.group_sums: Tensor  # [2, C] means and unbiased variances, added up over the groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C, H, W]; in training N is a multiple of the group size."""
        if not self.training:
            return super().forward(x)
        groups = -(-len(x) // (self.group_size or len(x)))
        assert len(x) % groups == 0, f"{len(x)} images are not whole groups of {self.group_size}"
        if groups > 1 and x.device.type != "cpu":  # where torch's kernel, group by group, is the fastest
            output, sums = normalise(x, self.weight, self.bias, groups, self.eps)
            self.group_sums.add_(sums)
            return output
        outputs = []
        for group in x.chunk(groups):
            # With momentum 1 the kernel leaves this group's own statistics in the buffers that it is given.
            mean, variance = torch.zeros_like(self.group_sums).unbind()
            outputs.append(F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps))
            self.group_sums.add_(torch.stack([mean, variance]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def make_plain_(module: nn.Module) -> None:
    """Replace the group BatchNorms of a module by torch's own, for users who train it without the engine.

    In training, torch's own keeps running statistics by itself; where no group is set, it computes the same otherwise.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GroupBatchNorm2d):
                plain = nn.BatchNorm2d(child.num_features, eps=child.eps, momentum=child.momentum)
                plain.load_state_dict(child.state_dict())
                setattr(parent, name, plain.to(child.weight))


def normalise(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Normalise all groups of a batch at once, and keep no more for the backward pass than one BatchNorm does.

    Args:
        x: [N, C, H, W], contiguous or channels_last, as the output will be; N is a multiple of the groups.
        weight: [C], as the bias, in float32 also where x is in half precision.
        bias: see weight.
        groups: their number.
        eps: added to the variances.

    Returns:
        The normalised batch, and the sums [2, C] over the groups of their means and unbiased variances.

    Raises:
        ValueError: a group has a single value in each channel, which has no variance.
    """
    if x[0, 0].numel() * len(x) == groups:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    output, sums = _Normalise.apply(x, weight, bias, groups, eps)
    return output, sums


class _Normalise(torch.autograd.Function):
    """The normalisation with a gradient, of which x and each group's mean and 1 / standard deviation are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
        one_pass = _kernels().forward if _suits_kernels(x, groups) else forward
        output, kept, sums = one_pass(x, groups, weight, bias, eps)
        ctx.save_for_backward(x, weight, kept)
        ctx.mark_non_differentiable(sums)
        return output, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept = ctx.saved_tensors
        one_pass = _kernels().backward if _suits_kernels(x, kept.shape[1]) else backward
        dx, sums = one_pass(dy, x, kept, weight)
        return dx, *sums.to(weight.dtype).unbind(), None, None


def forward(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the groups in plain torch, which a compiler turns into few kernels.

    Returns:
        The output, what `backward` needs [2, groups, C]: means and 1 / standard deviations, and the sums [2, C] over
        the groups of their means and unbiased variances. All but the output is float32, of a float64 batch float64.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide.unflatten(0, (groups, -1)), _WITHIN, correction=0)  # [groups, C]
    kept = torch.stack([mean, (variance + eps).rsqrt()])
    output = (wide - _each(mean, x)).mul_(_each(kept[1] * weight, x)).add_(bias[:, None, None])
    rows = x[0, 0].numel() * len(x) // groups
    sums = torch.stack([mean, variance * (rows / (rows - 1))]).sum(1)
    return output.to(x.dtype), kept, sums


def backward(dy: Tensor, x: Tensor, kept: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of x, and those of weight and bias [2, C], of what `forward` computed."""
    mean, deviation = kept  # [groups, C]; the second is 1 / standard deviation
    dy, centred = dy.to(mean.dtype), x - _each(mean, x)
    of_bias, of_slope = (t.unflatten(0, (len(mean), -1)).sum(_WITHIN) for t in (dy, dy * centred))  # [groups, C]
    sums = torch.stack([of_slope * deviation, of_bias])
    slope, shift = sums / (x[0, 0].numel() * len(x) // len(mean))
    dx = centred.mul_(_each(-slope * deviation, x)).add_(dy).sub_(_each(shift, x)).mul_(_each(deviation * weight, x))
    return dx.to(x.dtype), sums.sum(1)


_WITHIN = (1, 3, 4)
"""The dimensions of [groups, n, C, H, W] within a group and channel."""


def _each(numbers: Tensor, x: Tensor) -> Tensor:
    """Lay numbers [groups, C] out as [N, C, 1, 1], so that they meet the images of their group."""
    groups, channels = numbers.shape
    return numbers[:, None].expand(groups, len(x) // groups, channels).reshape(len(x), channels, 1, 1)


def _suits_kernels(x: Tensor, groups: int) -> bool:
    """Return whether Triton's kernels compute this batch; a compiler is given plain torch, and makes its own."""
    return x.is_cuda and not torch.compiler.is_compiling() and x.numel() // groups < 1 << 31 and bool(_kernels())


@functools.cache
def _kernels() -> Any:
    """Return the module of Triton's kernels, or None where they do not work, which a warning tells."""

    def try_out(kernels: Any) -> None:
        numbers = torch.ones(2, 1, 2, 2, device="cuda")
        kernels.forward(numbers, 2, numbers[0, 0, 0], numbers[0, 0, 0], 1.0)

    return devices.kernels("moco_dist.networks.batchnorm_kernels", try_out, "BatchNorm groups")


def norms(module: nn.Module) -> list[GroupBatchNorm2d]:
    """Return the group BatchNorms of a module."""
    return [m for m in module.modules() if isinstance(m, GroupBatchNorm2d)]


def set_group_size(module: nn.Module, group_size: int) -> None:
    """Cut the batches of every BatchNorm of the module into groups of so many images."""
    for norm in norms(module):
        norm.group_size = group_size


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the running means and variances of all BatchNorms of the module."""
    return [t for n in norms(module) for t in (n.running_mean, n.running_var) if t is not None]


def take_group_sums_(module: nn.Module) -> list[Tensor]:
    """Return the sums [2, C] of each BatchNorm's group statistics since the last call, and set them to zero."""
    sums = [n.group_sums for n in norms(module)]
    taken = [s.clone() for s in sums]
    if sums:
        torch._foreach_zero_(sums)
    return taken


@torch.no_grad()
def fold_statistics_(module: nn.Module, group_sums: Sequence[Tensor], groups: int) -> None:
    """Take the mean of so many groups' statistics into the running ones, in place.

    `running <- (1 - momentum) running + momentum mean(groups)`, as the reference does for one batch.
    """
    layers = norms(module)
    if not layers:
        return
    means = torch._foreach_div([row for s in group_sums for row in s.unbind()], float(groups))
    torch._foreach_lerp_(running_statistics(module), list(means), layers[0].momentum or 0.0)
    for n in layers:
        assert n.num_batches_tracked is not None
        n.num_batches_tracked.add_(1)
