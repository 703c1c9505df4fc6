"""Take a training step of any method: in parts, on any number of ranks, in any precision.

The exact and the overlapped engine (`build`) are the two ways to take it; what they share stands here.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from moco_dist.config import Config, Layout
from moco_dist.data.views import Views
from moco_dist.methods.method import Keys, Method, Terms
from moco_dist.networks import batchnorm
from moco_dist.ranks import collectives, devices
from moco_dist.summation import PairwiseSum

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@dataclass(frozen=True)
class Figures:
    """Figures are the numbers that a step tells, by name; most of them are still on the device."""

    names: tuple[str, ...]
    values: Tensor
    """[len(names)] means over the global batch, or sums over the ranks; the first is the loss."""
    used: Mapping[str, float]
    """The learning rate by its name, `lr`: the one figure that the host knows."""

    def to_host(self) -> Figures:
        """Start to copy the values to the host; they are right when the device has come so far."""
        return replace(self, values=self.values.to("cpu", non_blocking=True))

    def numbers(self) -> dict[str, float]:
        """Return every figure under its name. Where the values are on a device, the host waits for it."""
        return {**dict(zip(self.names, self.values.tolist(), strict=True)), **self.used}


class Engine(ABC):
    """An engine takes the steps of a method, and keeps what a step changes: the method, the optimizer, the scaler.

    Args:
        method: on this rank's device.
        config: of the run.
        plan: how the global batch lies on the ranks.
        world: the ranks.
    """

    def __init__(self, method: Method, config: Config, plan: Layout, world: collectives.World) -> None:
        self.method, self.config, self.plan, self.world = method, config, plan, world
        self.image_dtype = DTYPES[config.device.precision]
        self.parts = self._parts()
        self.query = self._wrapped(method.trained)
        self.parameters = [p for p in method.trained.parameters() if p.requires_grad]
        optim = config.optim
        fused = {"fused": True} if not devices.runs_ahead(world.device) and self.image_dtype != torch.float16 else {}
        self.optimizer = torch.optim.SGD(
            self.parameters, optim.lr, optim.sgd_momentum, weight_decay=optim.weight_decay, **fused
        )
        self.optimizer.register_step_post_hook(lambda *_: self._descended())
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.device.precision == "fp16")
        self.skipped = False
        """Tells whether the last step left the weights alone, since its fp16 gradients overflowed."""
        self.remarks: list[str] = []
        """How the networks are computed, in words for people."""

    @abstractmethod
    def _parts(self) -> int:
        """Return in how many parts, each of whole BatchNorm groups, a rank's share is computed."""

    def _wrapped(self, trained: nn.Module) -> nn.Module:
        """Return the trained module as the forward pass calls it."""
        return trained

    def _one_pass(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of a forward and a backward pass, of a part in one direction; `last`: the final one."""
        return nullcontext()

    def _part_is_done(self) -> None:
        """Take note that all directions of a part have added their gradients."""
        return

    def _gradients(self) -> list[Tensor]:
        """Leave this rank's gradients in the parameters; return those that are not yet means over the ranks."""
        return []

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context within which the encoders compute in the precision of the config."""
        return devices.autocast(self.world.device, self.image_dtype)

    def step(self, views: Views, step: int, lr: float, sums: Mapping[str, float] | None = None) -> Figures:
        """Take one training step.

        Args:
            views: of this rank's images.
            step: counted from 0.
            lr: learning rate.
            sums: numbers of this rank to add up over the ranks, on the collective that the step makes anyway.

        Returns:
            The loss, the method's terms and figures, as means over the global batch; the sums; the learning rate.
        """
        method, groups = self.method, len(views) // self.plan.group_size
        if not self.skipped:
            method.before_step_()
        self.optimizer.zero_grad(set_to_none=True)
        devices.begin_step(self.config)
        encode_keys = method.keys(views, step, self.parts)
        names, means, of_queries, keys = self._passes(method.queries(views), encode_keys)
        sums = sums or {}
        own_sums = torch.tensor([*sums.values()], dtype=means.dtype).to(means.device, non_blocking=True)
        values = torch.cat([means, own_sums])
        of_keys = [of_direction.statistics for of_direction in keys]
        self.world.mean_([values, *self._gradients(), *itertools.chain(*of_queries, *of_keys)])
        self._descend(lr)
        method.after_step_(keys, groups)
        for statistics in of_queries:
            batchnorm.fold_statistics_(method.trained, statistics, groups)
        values[len(means) :] *= self.world.size
        figures = Figures((*names, *sums), values, {"lr": lr})
        distinct = {*figures.names, *figures.used}
        assert len(distinct) == len(figures.names) + 1, f"two figures of one name: {figures.names}"
        return figures

    def _passes(
        self, queries: list[Tensor], encode_keys: Callable[[], list[Keys]]
    ) -> tuple[list[str], Tensor, list[list[Tensor]], list[Keys]]:
        """Go forward and backward through all parts and directions.

        Returns:
            Names and values of the figures; BatchNorm's statistics of each direction, added up over the parts; and
            the keys of each direction, which are encoded after the first queries.
        """
        results, statistics = PairwiseSum(), [PairwiseSum() for _ in queries]
        names: list[str] = []
        keys: list[Keys] = []
        rows = len(queries[0]) // self.parts
        for part in range(self.parts):
            result: Tensor | None = None
            begin = self.world.rank * len(queries[0]) + part * rows
            for direction, images in enumerate(queries):
                with self._one_pass(last=(part, direction) == (self.parts - 1, len(queries) - 1)):
                    with self.autocast():
                        outputs = self.query(images[part * rows : (part + 1) * rows])  # [n / parts, C]
                        statistics[direction].add(batchnorm.take_group_sums_(self.method.trained))
                        keys = keys or encode_keys()
                    terms = self.method.loss(outputs, keys[direction], slice(begin, begin + rows))
                    loss = functools.reduce(torch.add, terms.loss.values()) / self.parts
                    self.scaler.scale(loss).backward()
                names, values = self._figures(terms, loss.detach(), len(queries))
                result = values if result is None else result + values
            assert result is not None
            results.add([result])
            self._part_is_done()
        return names, results.total()[0], [of_direction.total() for of_direction in statistics], keys

    def _figures(self, terms: Terms, loss: Tensor, directions: int) -> tuple[list[str], Tensor]:
        """Name what one pass adds to the figures: its share of the loss, and of the means over the directions."""
        names, values = ["loss"], [loss]
        if len(terms.loss) > 1:
            names += terms.loss
            values += [term.detach() / self.parts for term in terms.loss.values()]
        names += terms.figures
        values += [figure / (self.parts * directions) for figure in terms.figures.values()]
        return names, torch.stack(values)

    def _descend(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.skipped = True  # until the optimizer has taken its step
        if self.scaler.is_enabled():
            with devices.may_wait(self.world.device):  # whether the gradients overflowed decides what the host does
                self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    def _descended(self) -> None:
        self.skipped = False

    def state(self) -> dict[str, Any]:
        """Return all that a later start needs beside the config and the step."""
        return {
            **self.method.state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "group_size": self.plan.group_size,
        }

    def restore_(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.method.restore_(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]
