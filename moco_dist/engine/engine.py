"""Take a training step of any method: in parts, on any number of ranks, in any precision.

The exact and the overlapped engine (`build`) are the two ways to take it; what they share stands here.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moco_dist.config import Config, Layout
from moco_dist.data.views import Views
from moco_dist.engine.figures import Figures, moments
from moco_dist.engine.fingerprint import PIECES, fingerprint
from moco_dist.methods.method import Keys, Method, Terms
from moco_dist.networks import batchnorm
from moco_dist.ranks import collectives, devices
from moco_dist.summation import PairwiseSum, norm

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@dataclass(frozen=True)
class Details:
    """Details are what a step tells beside its loss where its row is written."""

    of_rank: Mapping[str, float] = field(default_factory=dict)
    """Numbers of this rank, to be told of each rank; the names are the same on all ranks."""
    compare_ranks: bool = False
    """True where the ranks compare fingerprints of all parameters and buffers, which are to be equal on all of them."""


class _Passes(NamedTuple):
    """The forward and backward passes of a step have left this on this rank."""

    names: list[str]
    means: Tensor
    """[len(names)]; the first is the loss."""
    moments: list[Tensor]
    """[(1+C) C] of the queries, or nothing."""
    statistics: list[list[Tensor]]
    """BatchNorm's statistics of each direction, added up over the parts."""
    keys: list[Keys]
    """The keys of each direction."""


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
        self.skipped_steps = 0
        """The number of the run's steps that have left the weights alone."""
        self.remarks: list[str] = []
        """Sentences for people on how the networks are computed."""

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

    def step(
        self,
        views: Views,
        step: int,
        lr: float,
        sums: Mapping[str, float] | None = None,
        details: Details | None = None,
    ) -> Figures:
        """Take one training step.

        Args:
            views: of this rank's images.
            step: counted from 0.
            lr: learning rate.
            sums: numbers of this rank to add up over the ranks, on the collective that the step makes anyway.
            details: what to tell of the step beside what costs nothing, on all ranks or on none. It changes no weight.

        Returns:
            The loss, the method's terms and figures, as means over the global batch; the sums; the learning rate; and
            the details.
        """
        method, groups = self.method, len(views) // self.plan.group_size
        if not self.skipped:
            method.before_step_()
        self.optimizer.zero_grad(set_to_none=True)
        devices.begin_step(self.config)
        encode_keys = method.keys(views, step, self.parts)
        passes = self._passes(method.queries(views), encode_keys, detailed=details is not None)
        means, keys, sums = passes.means, passes.keys, sums or {}
        own_sums = torch.tensor([*sums.values()], dtype=means.dtype).to(means.device, non_blocking=True)
        of_rank = [self._one_hot(details).to(means.dtype)] if details else []
        values = torch.cat([means, own_sums, *of_rank, *passes.moments])
        of_keys = [of_direction.statistics for of_direction in keys]
        self.world.mean_([values, *self._gradients(), *itertools.chain(*passes.statistics, *of_keys)])
        values[len(means) : len(means) + len(sums) + sum(map(len, of_rank))] *= self.world.size
        of_state = self._figures_of_state() if details else {}
        self._descend(lr)
        method.after_step_(keys, groups)
        for statistics in passes.statistics:
            batchnorm.fold_statistics_(method.trained, statistics, groups)
        figures = Figures((*passes.names, *sums), values, {"lr": lr})
        return self._detailed(figures, details, passes, of_state, step) if details else figures.checked()

    def _one_hot(self, details: Details) -> Tensor:
        """Return [names of a rank * size] with this rank's numbers, and zeros where those of the others come."""
        numbers = torch.tensor([*details.of_rank.values()], dtype=torch.float64)
        numbers = numbers.to(self.world.device, non_blocking=True)
        if details.compare_ranks:
            numbers = torch.cat(
                [numbers, fingerprint(itertools.chain(self.method.parameters(), self.method.buffers()))]
            )
        places = numbers.new_zeros(len(numbers), self.world.size)  # [names, size]
        places[:, self.world.rank] = numbers
        return places.flatten()

    def _figures_of_state(self) -> dict[str, Tensor]:
        """Compute what follows from gradients and parameters, which are equal on all ranks: scalars by name."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        scale = self.scaler.scale(torch.ones((), device=self.world.device))
        return {"gradient_norm": norm(gradients) / scale, **self.method.figures_of_state()}

    def _detailed(
        self, figures: Figures, details: Details, passes: _Passes, of_state: dict[str, Tensor], step: int
    ) -> Figures:
        """Add to the figures what is equal on all ranks: of the state, of the keys, and what the host knows."""
        all_keys = torch.cat([of_direction.keys for of_direction in passes.keys])  # [directions * size * n, C]
        of_host = self.method.figures_on_host(step, len(passes.keys[0].keys))
        if self.scaler.is_enabled():
            of_host["skipped_steps"] = self.skipped_steps
        if self.skipped:  # its gradients are no numbers
            del of_state["gradient_norm"]
        count, values = len(figures.names), figures.values
        scalars = [scalar.view(1).to(values.dtype) for scalar in of_state.values()]
        of_keys = moments(all_keys).flatten().to(values.dtype)  # [(1+C) C]
        return Figures(
            (*figures.names, *of_state),
            torch.cat([values[:count], *scalars, values[count:], of_keys]),
            {**figures.used, **of_host},
            (*details.of_rank, *(PIECES if details.compare_ranks else ())),
            self.world.size,
            dict.fromkeys(["q", "k"] if passes.moments else ["k"], all_keys.shape[1]),
        ).checked()

    def _passes(self, queries: list[Tensor], encode_keys: Callable[[], list[Keys]], *, detailed: bool) -> _Passes:
        """Go forward and backward through all parts and directions; the keys are encoded after the first queries."""
        results, statistics = PairwiseSum(), [PairwiseSum() for _ in queries]
        names: list[str] = []
        keys: list[Keys] = []
        rows = len(queries[0]) // self.parts
        for part in range(self.parts):
            result: list[Tensor] = []
            begin = self.world.rank * len(queries[0]) + part * rows
            for direction, images in enumerate(queries):
                with self._one_pass(last=(part, direction) == (self.parts - 1, len(queries) - 1)):
                    with self.autocast():
                        outputs = self.query(images[part * rows : (part + 1) * rows])  # [n / parts, C]
                        statistics[direction].add(batchnorm.take_group_sums_(self.method.trained))
                        keys = keys or encode_keys()
                    terms = self.method.loss(outputs, keys[direction], slice(begin, begin + rows))
                    if not detailed:  # the backward pass keeps nothing that only details need
                        terms = Terms(terms.loss, terms.figures)
                    loss = functools.reduce(torch.add, terms.loss.values()) / self.parts
                    self.scaler.scale(loss).backward()
                names, values = self._figures(terms, loss.detach(), len(queries))
                result = [a + b for a, b in zip(result, values, strict=True)] if result else values
            results.add(result)
            self._part_is_done()
        means, *of_queries = results.total()
        return _Passes(names, means, of_queries, [of_direction.total() for of_direction in statistics], keys)

    @torch.no_grad()
    def _figures(self, terms: Terms, loss: Tensor, directions: int) -> tuple[list[str], list[Tensor]]:
        """Name what one pass adds to the figures: its share of the loss, and of the means over the directions.

        Returns:
            Names, and their values; then, where features are to be shown, its share of their moments, [(1+C) C].
        """
        names, values = ["loss"], [loss]
        if len(terms.loss) > 1:
            names += terms.loss
            values += [term.detach() / self.parts for term in terms.loss.values()]
        passes, means = self.parts * directions, {**terms.figures, **terms.details()}
        names += means
        values += [mean / passes for mean in means.values()]
        features = [] if terms.features is None else [moments(terms.features).flatten() / passes]
        return names, [torch.stack(values), *features]

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
        self.skipped_steps += self.skipped

    def _descended(self) -> None:
        self.skipped = False

    def state(self) -> dict[str, Any]:
        """Return all that a later start needs beside the config and the step."""
        return {
            **self.method.state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
            "skipped_steps": self.skipped_steps,
            "group_size": self.plan.group_size,
        }

    def restore_(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.method.restore_(state)
        # How the optimizer computes is this start's own: the state may come from another device.
        own = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": own})
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor):  # the fused kernel goes through both in the order of their memory
                    kept[name] = torch.empty_like(parameter).copy_(value)
        self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]
        self.skipped_steps = state.get("skipped_steps", 0)  # which earlier revisions did not count
