"""Add up in an order that depends on how many terms there are, and on nothing else.

A float sum depends on its order. Added up pairwise, the gradients of 2^n BatchNorm groups meet in the same tree whether
one rank holds them all or each rank one: the same bits on any number of ranks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class PairwiseSum:
    """A pairwise sum adds up lists of tensors as a binary counter carries, and keeps no more than log2 of them."""

    def __init__(self) -> None:
        self._levels: list[list[Tensor] | None] = []  # level i: the sum of 2^i lists, or nothing

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add a list; its tensors may be overwritten from now on."""
        carry = list(tensors)
        for level, waiting in enumerate(self._levels):
            if waiting is None:
                self._levels[level] = carry
                return
            if carry:
                torch._foreach_add_(waiting, carry)
            carry, self._levels[level] = waiting, None
        self._levels.append(carry)

    def total(self) -> list[Tensor]:
        """Return the sum of all lists; nothing may be added after it."""
        left = [level for level in self._levels if level is not None]
        total = left[0]
        for level in left[1:]:
            if total:
                torch._foreach_add_(level, total)
            total = level
        return total


def pairwise_sum(rows: Tensor) -> Tensor:
    """Add up the rows of [n, ...], overwriting them."""
    total = PairwiseSum()
    for row in rows.unbind():
        total.add([row])
    return total.total()[0]


@torch.no_grad()
def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the L2 norm of all numbers of some tensors: a scalar."""
    norms: tuple[Tensor, ...] = torch._foreach_norm(list(tensors))
    return torch.stack(norms).square().sum().sqrt()
