"""The exact engine computes the same losses, bit for bit, on any number of ranks.

One BatchNorm group is computed at a time, and gradients meet in an order that does not depend on the number of ranks.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from moco_dist.config import Config, Layout
from moco_dist.engine.engine import Engine
from moco_dist.methods.method import Method
from moco_dist.ranks.collectives import World
from moco_dist.summation import PairwiseSum


class ExactEngine(Engine):
    """The exact engine adds gradients up pairwise, over the groups of a rank and then over the ranks."""

    def __init__(self, method: Method, config: Config, plan: Layout, world: World) -> None:
        super().__init__(method, config, plan, world)
        self._sum = PairwiseSum()
        self._with_gradient: list[nn.Parameter] = []

    def _parts(self) -> int:
        return self.plan.batch_per_rank // self.plan.group_size

    def _wrapped(self, trained: nn.Module) -> nn.Module:
        return trained

    def _one_pass(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def _part_is_done(self) -> None:
        """Take the part's gradients; a parameter that the loss does not depend on has none, in any part."""
        self._with_gradient = [p for p in self.parameters if p.grad is not None]
        self._sum.add([p.grad for p in self._with_gradient if p.grad is not None])
        self.optimizer.zero_grad(set_to_none=True)

    def _gradients(self) -> list[Tensor]:
        gradients, self._sum = self._sum.total(), PairwiseSum()
        for parameter, gradient in zip(self._with_gradient, gradients, strict=True):
            parameter.grad = gradient
        return gradients
