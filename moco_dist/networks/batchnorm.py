"""Normalise groups of the global batch, each by its own statistics.

A group is a run of `group_size` neighbours of the batch. Its statistics are its own, whichever rank holds it, so the
number of ranks does not change what is computed: one GPU that holds eight groups stands in for eight GPUs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        groups = torch.split(x, self.group_size or len(x))
        assert len(x) % len(groups) == 0, f"{len(x)} images are not whole groups of {self.group_size}"
        outputs = []
        for group in groups:
            # With momentum 1 the kernel leaves this group's own statistics in the buffers that it is given.
            mean, variance = torch.zeros_like(self.group_sums).unbind()
            outputs.append(F.batch_norm(group, mean, variance, self.weight, self.bias, True, 1.0, self.eps))
            self.group_sums.add_(torch.stack([mean, variance]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


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
