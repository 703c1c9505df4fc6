"""Count what a rank sends, receives and holds in one training step, by wrapping the collectives that it calls.

torchrun --nproc_per_node=R -m benchmarks.communication.count RESULT.json [--queue K] [--batch N ...]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from benchmarks.communication import formula
from benchmarks.communication.authors import AuthorsMoCo, plain_encoder
from benchmarks.communication.formula import Message
from moco_dist import config as configs
from moco_dist import files
from moco_dist.config import Config
from moco_dist.data.views import Views
from moco_dist.engine.build import build
from moco_dist.methods import shuffle
from moco_dist.methods.moco import MoCo
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks import collectives
from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank
from moco_dist.train.books import SAVE, STOP, UNREADABLE

_DESCRIPTORS = Path("/proc/self/fd")
_WARM_UP_STEPS = 2
"""DDP arranges its buckets anew after the first step."""


class Case(NamedTuple):
    """One way to train for a step."""

    scheme: str
    symmetric: bool = False
    global_batch: int = 256
    queue_size: int = 65536
    groups: int = 8
    """BatchNorm groups."""

    def config(self) -> Config:
        """Return a config of small images and a small network."""
        return configs.parse(
            {
                "data": {"source": "synthetic", "image_size": 8, "channels": 3},
                "model": {"stem": "small", "width": 8, "dim": 128},
                "moco": {
                    "queue_size": self.queue_size,
                    "shuffle": "all_gather" if self.scheme == "authors" else self.scheme,
                    "symmetric": self.symmetric,
                    "bn_groups": self.groups,
                },
                "optim": {"global_batch": self.global_batch},
                "device": {"engine": "overlapped"},
            }
        )


class Counter:
    """The messages of this rank, written down by wrappers around what calls torch.distributed."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._purpose = "gradients"

    def record(
        self, collective: formula.Collective, tensors: Sequence[Tensor], kept: int = 0, purpose: str = ""
    ) -> None:
        """Write a message down; `tensors` are the results."""
        size = sum(t.numel() * t.element_size() for t in tensors)
        self.messages.append(Message(purpose or self._purpose, collective, size, kept))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count within this context."""
        with (
            mock.patch.object(collectives, "_all_gather", self._counted(collectives._all_gather, self._all_gather)),
            mock.patch.object(dist, "all_gather", self._counted(dist.all_gather, self._all_gather)),
            mock.patch.object(dist, "all_to_all_single", self._counted(dist.all_to_all_single, self._all_to_all)),
            mock.patch.object(dist, "all_reduce", self._counted(dist.all_reduce, self._all_reduce)),
            mock.patch.object(dist, "broadcast", self._counted(dist.broadcast, self._broadcast)),
            mock.patch.object(dist, "_broadcast_coalesced", self._counted(dist._broadcast_coalesced, self._buffers)),
            mock.patch.object(shuffle, "start_shuffle", self._for("images", shuffle.start_shuffle)),
            mock.patch.object(shuffle, "gathered_keys", self._for("keys", shuffle.gathered_keys)),
            mock.patch.object(World, "mean_", self._for("statistics", World.mean_)),
            mock.patch.object(AuthorsMoCo, "shuffled", self._for("images", AuthorsMoCo.shuffled)),
            mock.patch.object(AuthorsMoCo, "restored", self._for("keys", AuthorsMoCo.restored)),
            mock.patch.object(AuthorsMoCo, "enqueue_", self._for("keys", AuthorsMoCo.enqueue_)),
        ):
            yield

    def _counted(self, function: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            note(*args)
            return function(*args, **kwargs)

        return call

    def _for(self, purpose: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before, self._purpose = self._purpose, purpose
            try:
                return function(*args, **kwargs)
            finally:
                self._purpose = before

        return call

    def _all_gather(self, out: Tensor | list[Tensor], own: Tensor) -> None:
        self.record("all_gather", [out] if isinstance(out, Tensor) else out, own.numel() * own.element_size())

    def _all_to_all(self, out: Tensor, own: Tensor, received: list[int], sent: list[int]) -> None:
        rank = dist.get_rank()
        assert received[rank] == sent[rank]
        self.record("all_to_all", [out], received[rank] * out.element_size())

    def _all_reduce(self, tensor: Tensor) -> None:
        self.record("all_reduce", [tensor])

    def _broadcast(self, tensor: Tensor) -> None:
        self.record("broadcast", [tensor], purpose="permutation")

    def _buffers(self, group: object, tensors: Sequence[Tensor], limit: int, source: int) -> None:
        assert source == 0
        for _, of_type in itertools.groupby(sorted(tensors, key=lambda t: str(t.dtype)), key=lambda t: t.dtype):
            self.record("broadcast", list(of_type), purpose="buffers")


def count(world: World, case: Case, *, of_step: bool = True) -> dict[str, Any]:
    """Take steps, and return what this rank has moved and held in one of them.

    Args:
        world: the ranks.
        case: how to train.
        of_step: whether to look at the memory of a whole step, which takes time.

    Returns:
        `counted` and `formula`, the traffic by purpose; `wire`, bytes of TCP that came in; `peak`, the most bytes of
        tensors that the step held beside what it began with; `shuffle_peak`, the same of the shuffle of the images.
    """
    if not dist.is_initialized():  # World of one has no group, but the authors' code needs one
        dist.init_process_group("gloo")
    config, rank, ranks = case.config(), world.rank, world.size
    torch.manual_seed(rank)
    size = case.global_batch // ranks, config.data.channel_count, config.data.image_size, config.data.image_size
    views = torch.rand(size), torch.rand(size)
    take_step, shuffled = (_of_the_authors if case.scheme == "authors" else _of_ours)(config, world, views)
    for step in range(_WARM_UP_STEPS):
        take_step(step)
    counter = Counter()
    world.barrier()
    before = received_by_tcp()
    world.barrier()  # no rank begins the step before all have looked, nor goes on after it
    with counter.counting():
        take_step(_WARM_UP_STEPS)
    wire = received_by_tcp() - before
    world.barrier()
    own = _own_images(config, rank, ranks, 1 + case.symmetric)
    expected = formula.messages(case.scheme, formula.Shapes.of(config), case.global_batch, ranks, case.symmetric, own)
    return {
        "counted": formula.add_up(counter.messages, rank, ranks),
        "formula": formula.add_up(expected, rank, ranks),
        "wire": wire,
        "peak": peak(lambda: take_step(_WARM_UP_STEPS + 1)) if of_step else None,
        "shuffle_peak": min(peak(shuffled) for _ in range(3)),  # gloo's threads may let go of a tensor late
    }


Steps = tuple[Callable[[int], object], Callable[[], object]]
"""A function that takes the step of a number, and one that shuffles the images of one direction."""


def _of_ours(config: Config, world: World, views: tuple[Tensor, Tensor]) -> Steps:
    """Make steps whose second views travel as the trainer's do: as uint8 crops, or as images where both are queries."""
    method = MoCo(config, world, build_encoder(config.model, config.data.channel_count, config.run.seed))
    engine = build(method, config, configs.layout(config, world.size), world)
    if isinstance(engine.query, nn.parallel.DistributedDataParallel):
        engine.query.register_comm_hook(None, allreduce_hook)  # as DDP does, but by a function that is wrapped
    order = method.order(0, 0, config.optim.global_batch)
    images = Views.of(*views)
    if method.own_places:
        images = Views(images.crops.mul(255).byte(), torch.empty(3, 0), lambda crops, _: crops / 255)
    sums = dict.fromkeys((STOP, SAVE, UNREADABLE), 0.0)
    return (
        lambda step: engine.step(images, step, config.optim.lr, sums),
        lambda: shuffle.start_shuffle(images.crops[1], order, world, config.moco.shuffle)(),
    )


def _of_the_authors(config: Config, world: World, views: tuple[Tensor, Tensor]) -> Steps:
    model = AuthorsMoCo(config, plain_encoder(config))
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel.register_comm_hook(None, allreduce_hook)
    optim = config.optim
    optimizer = torch.optim.SGD(model.parameters(), optim.lr, optim.sgd_momentum, weight_decay=optim.weight_decay)

    def take_step(step: int) -> None:
        logits = parallel(*views)
        optimizer.zero_grad()
        F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)).backward()
        optimizer.step()

    return take_step, lambda: model.shuffled(views[1])


def _own_images(config: Config, rank: int, ranks: int, directions: int) -> list[float]:
    """Return how many of this rank's images the shuffle leaves on it in the counted step, by direction."""
    batch = config.optim.global_batch
    share = batch // ranks
    orders = (shuffle.permutation(config.run.seed, _WARM_UP_STEPS, d, batch) for d in range(directions))
    return [int(np.sum(order[rank * share :][:share] // share == rank)) for order in orders]


def peak(action: Callable[[], object]) -> int:
    """Return the most bytes of tensors that an action holds at once, beside what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    events, waiting = [], list(profile.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    return max(itertools.accumulate((int(size) for _, size in sorted(events)), initial=0))


def received_by_tcp() -> int:
    """Return the bytes that have come in on this process's TCP connections, as Linux counts them; elsewhere 0."""
    total = 0
    for entry in _DESCRIPTORS.iterdir() if _DESCRIPTORS.is_dir() else ():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
                    total += struct.unpack_from("Q", info, 128)[0]  # tcpi_bytes_received
        except OSError:  # closed since it was listed
            continue
    return total


def main(arguments: Sequence[str]) -> int:
    """Count all schemes on this rank's world; rank 0 writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, metavar="RESULT.json")
    parser.add_argument("--queue", type=int, default=65536, metavar="K", help="keys of the queue")
    parser.add_argument("--batch", type=int, nargs="+", default=[256], metavar="N", help="global batches")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    world = World.join(Rank.from_environment(), torch.device("cpu"), 600)
    rows = []
    for batch, scheme in itertools.product(options.batch, formula.SCHEMES):
        for symmetric in (False,) if scheme == "authors" else (False, True):
            case = Case(scheme, symmetric, batch, options.queue)
            rows.append({"ranks": world.size, **case._asdict(), "of_ranks": world.gather_objects(count(world, case))})
    if world.rank == 0:
        files.write_text(options.result, json.dumps(rows) + "\n")
    world.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
