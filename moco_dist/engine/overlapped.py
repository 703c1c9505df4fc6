"""The overlapped engine is fast: DDP averages gradients while the backward pass is still under way."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor, nn

from moco_dist.engine.engine import Engine
from moco_dist.ranks import collectives


class OverlappedEngine(Engine):
    """The overlapped engine computes a part's groups at once; DDP averages gradients during the last backward pass."""

    def _parts(self) -> int:
        return self.plan.parts

    def _wrapped(self, trained: nn.Module) -> nn.Module:
        return self.world.data_parallel(trained)

    def _one_pass(self, *, last: bool) -> AbstractContextManager[None]:
        return collectives.gradients(self.query, synchronise=last)

    def _part_is_done(self) -> None:
        return

    def _gradients(self) -> list[Tensor]:
        return []
