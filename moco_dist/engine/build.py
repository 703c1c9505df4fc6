"""There are two engines, an exact and a fast one; make the one that a config asks for."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from moco_dist.config import Config, Layout, speed
from moco_dist.engine import compiling
from moco_dist.engine.engine import Engine
from moco_dist.methods.method import Method
from moco_dist.networks import batchnorm
from moco_dist.ranks import collectives, devices
from moco_dist.summation import PairwiseSum


class ExactEngine(Engine):
    """The exact engine computes the same losses, bit for bit, on any number of ranks.

    One BatchNorm group is computed at a time, and gradients are added up pairwise, over the groups of a rank and then
    over the ranks, in an order that does not depend on the number of ranks.
    """

    def __init__(self, method: Method, config: Config, plan: Layout, world: collectives.World) -> None:
        super().__init__(method, config, plan, world)
        self._sum = PairwiseSum()
        self._with_gradient: list[nn.Parameter] = []

    def _parts(self) -> int:
        return self.plan.batch_per_rank // self.plan.group_size

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


class OverlappedEngine(Engine):
    """The overlapped engine is fast: it computes a part's groups at once.

    DDP averages gradients while the last backward pass is still under way.
    """

    def _parts(self) -> int:
        return self.plan.parts

    def _wrapped(self, trained: nn.Module) -> nn.Module:
        return self.world.data_parallel(trained)

    def _one_pass(self, *, last: bool) -> AbstractContextManager[None]:
        return collectives.gradients(self.query, synchronise=last)


def build(method: Method, config: Config, plan: Layout, world: collectives.World) -> Engine:
    """Move a method to this rank's device, make the engine that the config asks for, and compile what pays.

    All ranks call it together.
    """
    batchnorm.set_group_size(method, plan.group_size)
    on_cpu = not devices.runs_ahead(world.device)
    how = speed.chosen(config, on_cpu=on_cpu)
    method.to(world.device, torch.float64 if config.device.precision == "fp64" else torch.float32)
    if how.channels_last:
        method.to(memory_format=torch.channels_last)
    exact = config.device.is_exact(on_cpu=on_cpu)
    engine = (ExactEngine if exact else OverlappedEngine)(method, config, plan, world)
    engine.remarks += ["channels_last"] * how.channels_last
    engine.remarks.append(compiling.compile_(engine, how.compile) if how.compile else compiling.NOT_COMPILED)
    return engine
