"""The ranks of a run speak to each other through this file alone, which calls torch.distributed."""

from __future__ import annotations

import gc
import inspect
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group: it keeps the one of its import, with its threads
from torch import Tensor, nn

from moco_dist.config import Config
from moco_dist.errors import OwnMistake, UserError
from moco_dist.ranks import devices, meeting, shared_memory, watchdog
from moco_dist.ranks.rank import Rank
from moco_dist.ranks.shared_memory import SharedMemory
from moco_dist.ranks.transfers import PeerLost, Transfer, Waits, as_bytes, line_of, others
from moco_dist.summation import pairwise_sum

S = TypeVar("S")
T = TypeVar("T")

_WATCHDOG_FIRST_SECONDS = 60.0
"""A collective waits for so much longer than the watchdog, which knows more about a hang and tells it."""
_SHARED_FROM_BYTES = 2**20
"""Less than this goes through sockets as fast."""

_stores: dict[tuple[str | None, ...], Any] = {}
"""The store of this process's first start at each address, where no agent has one; later starts use it too."""
_untyped: Any = dist  # for the names that torch does not export to type checkers

# Two names that later releases of torch have changed.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_OPTIONS_OF_DDP = inspect.signature(nn.parallel.DistributedDataParallel).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS_OF_DDP else "broadcast_buffers"


@dataclass(frozen=True)
class World(Rank):
    """A world is this process among the ranks that it has met. A world of one needs no process group."""

    device: torch.device
    _memory: list[SharedMemory | None] = field(default_factory=list, repr=False, compare=False)
    """Memory that the ranks of one machine share, once they have asked for it; None where they cannot."""
    waits: Waits = field(default_factory=Waits, repr=False, compare=False)

    @classmethod
    def start(
        cls,
        config: Config,
        rank: Rank,
        timeout_seconds: float,
        last_words: Callable[[watchdog.Hang], None] = lambda hang: None,
    ) -> World:
        """Start a process that computes: pick this rank's device, watch over the process, and meet the other ranks.

        Args:
            config: of the run.
            rank: this process.
            timeout_seconds: a rank that makes no progress for so long ends the job.
            last_words: called before the watchdog ends this process.

        Raises:
            UserError: the device that the config asks for is not here, or not on another node.
            OSError: torchrun is gone.
        """
        device = devices.pick(config, rank.local_rank)
        devices.prepare(config, device)
        watchdog.start(rank.rank, timeout_seconds, last_words)
        with watchdog.waiting("their start"):
            return cls.join(rank, device, timeout_seconds + _WATCHDOG_FIRST_SECONDS)

    @classmethod
    def join(cls, rank: Rank, device: torch.device, timeout_seconds: float) -> World:
        """Meet the other ranks: by NCCL on CUDA, by gloo on the CPU.

        Raises:
            UserError: this process is in a process group already, or another rank has another kind of device.
            OSError: torchrun is gone.
        """
        if dist.is_initialized():
            rule = "this process has met other ranks already, and moco_dist meets them by itself"
            raise UserError(f"torch.distributed: {rule}; call destroy_process_group first, or init_process_group later")
        world = cls(rank.rank, rank.size, rank.local_rank, device, quiet=rank.quiet)
        if devices.runs_ahead(device):
            devices.of(device).set_device(device)
        if world.size > 1:
            world._meet(timeout_seconds)
        return world

    def _meet(self, timeout_seconds: float) -> None:
        agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if agents:  # torch would wait for it to come back
            address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            socket.create_connection(address, timeout=30).close()
        timeout, place = timedelta(seconds=timeout_seconds), tuple(map(os.environ.get, ("MASTER_ADDR", "MASTER_PORT")))
        met_before = place in _stores
        store = _stores.get(place) or next(_untyped.rendezvous("env://", self.rank, self.size, timeout=timeout))[0]
        store.set_timeout(timeout)
        if agents or met_before:
            name = meeting.name_of_start(self, store, timeout_seconds)
            store = _untyped.PrefixStore(name, store)
        else:
            _stores[place] = store
        meeting.check_device(self, store, self.device.type)
        backend = _untyped.Backend.default_device_backend_map[self.device.type]
        own = self.device if backend == "nccl" else None
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.size, timeout=timeout, device_id=own
        )

    def leave(self, *, alone: bool = False) -> None:
        """Part from the other ranks, if joined.

        Args:
            alone: whether this rank ends without the others, as where it has failed. NCCL would then wait for what they
                do not send any more (pytorch/torchtitan#1342), so that the end of the process parts from them.
        """
        if dist.is_initialized() and not (alone and devices.runs_ahead(self.device)):
            gc.collect()  # DDP holds the group, whose threads would abort a process that ends; it is held by circles
            dist.destroy_process_group()

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Concatenate every rank's [n, ...] in the order of ranks: [size * n, ...]. n is equal on all ranks."""
        return self.start_all_gather(tensor).wait()

    def start_all_gather(self, tensor: Tensor) -> Transfer:
        """Start what `all_gather` does, and go on."""
        if self.size == 1:
            return Transfer("", tensor)
        tensor = tensor.contiguous()
        out = tensor.new_empty(self.size * len(tensor), *tensor.shape[1:])
        with others("all_gather", self.waits):
            work = _all_gather(as_bytes(out), as_bytes(tensor), async_op=True)
        return Transfer("all_gather", out, tensor, work, self.waits)

    def all_to_all(self, tensor: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send the first `sent[0]` rows to rank 0, the next `sent[1]` to rank 1 ...; rows of rank 0 come first."""
        return self.start_all_to_all(tensor, sent, received).wait()

    def start_all_to_all(self, tensor: Tensor, sent: Sequence[int], received: Sequence[int]) -> Transfer:
        """Start what `all_to_all` does, and go on."""
        if self.size == 1:
            return Transfer("", tensor)
        tensor = tensor.contiguous()
        out = tensor.new_empty(sum(received), *tensor.shape[1:])
        row = as_bytes(tensor).numel() // len(tensor)
        with others("all_to_all", self.waits):
            sizes = [n * row for n in received], [n * row for n in sent]
            work = dist.all_to_all_single(as_bytes(out), as_bytes(tensor), *sizes, async_op=True)
        return Transfer("all_to_all", out, tensor, work, self.waits)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks. All of one dtype.

        Each rank adds up a share of the numbers of all ranks, pairwise; then the shares are gathered. That moves the
        bytes of a ring's all_reduce, but the order of additions is the same for every number wherever it lies in the
        buffer, and the same as if fewer ranks had added up more of the terms themselves.
        """
        if self.size == 1 or not tensors:
            return
        lines = [line_of(t) for t in tensors]
        lengths = [len(line) for line in lines]
        length = sum(lengths) + -sum(lengths) % self.size
        if (memory := self._memory_for((self.size + 1) * length * lines[0].itemsize)) is not None:
            means = self._means_in(memory.rows(self.size + 1, length, lines[0].dtype), lines, lengths)
        else:
            flat = torch.cat([*lines, lines[0].new_zeros(length - sum(lengths))])
            shares = [length // self.size] * self.size
            terms = self.all_to_all(flat, shares, shares).view(self.size, -1)
            means = self.all_gather(pairwise_sum(terms).div_(self.size))
        torch._foreach_copy_(lines, list(means[: sum(lengths)].split(lengths)))

    def _means_in(self, rows: Tensor, lines: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        """Average in shared memory [size + 1, n]: a row for each rank, and one for the means, which is returned."""
        *of_ranks, means = rows.unbind()
        torch._foreach_copy_(list(of_ranks[self.rank][: sum(lengths)].split(lengths)), list(lines))
        self._meet_all("mean_")  # all rows are there
        share = len(means) // self.size
        own = slice(self.rank * share, (self.rank + 1) * share)
        torch.div(pairwise_sum(rows[:-1, own]), self.size, out=means[own])
        self._meet_all("mean_")  # all shares are there, and nobody reads the rows any more
        return means

    def _memory_for(self, size: int) -> SharedMemory | None:
        """Return memory of at least so many bytes that all ranks share; None for little, on devices and on nodes."""
        if self.device.type != "cpu" or size < _SHARED_FROM_BYTES:
            return None
        if not self._memory or (self._memory[0] is not None and self._memory[0].size < size):
            self._memory[:] = [self._share_memory(size)]
        return self._memory[0]

    def _share_memory(self, size: int) -> SharedMemory | None:
        """Share so many bytes among all ranks; None where they are on several machines, or where memory is short."""
        name = self.from_first(lambda: shared_memory.make(size))
        memory = None if name is None else SharedMemory.named(name, size)
        together = all(self.gather_objects(memory is not None))
        if name is not None:
            shared_memory.forget(name)
        return memory if together else None

    def _meet_all(self, what: str) -> None:
        """Wait for all ranks, on the training path."""
        with others(what, self.waits):
            dist.barrier()

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather_objects(None)

    def gather_objects(self, item: T) -> list[T]:
        """Gather every rank's item, in the order of ranks. It is for small things off the training path."""
        if self.size == 1:
            return [item]
        items: list[T] = [item] * self.size
        with others("gather_objects", self.waits), devices.may_wait(self.device):
            dist.all_gather_object(items, item)
        return items

    def agreed(self, action: Callable[[], T]) -> T:
        """Run an action that needs no other rank, and return its result on this one.

        A mistake of the user's that one rank finds is raised on all of them.
        """
        outcome: list[T] = []
        mistake = None
        try:
            outcome.append(action())
        except UserError as error:
            mistake = error
        for other in self.gather_objects(mistake):
            if other is not None:
                raise other
        return outcome[0]

    @contextmanager
    def own_mistakes(self) -> Iterator[None]:
        """Mark a mistake that this rank meets as its own, which it has to tell by itself if rank 0 does not."""
        try:
            yield
        except UserError as mistake:
            raise OwnMistake(str(mistake)) from mistake

    def share_out(self, tasks: Sequence[S], work: Callable[[S], T]) -> list[T]:
        """Share out tasks that need no other rank, and return all their results, in their order, on all ranks.

        A mistake of the user's that one rank finds is raised on all of them.
        """
        mine = self.agreed(lambda: [work(task) for task in tasks[self.rank :: self.size]])
        of_rank = self.gather_objects(mine)
        return [of_rank[number % self.size][number // self.size] for number in range(len(tasks))]

    def from_first(self, action: Callable[[], T]) -> T:
        """Run an action on rank 0 alone, and return its result, or raise its error, on all ranks."""
        outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.rank == 0:
            try:
                outcome = [(action(), None)]
            except Exception as raised:
                outcome = [(None, raised)]
        if self.size > 1:
            with others("from_first", self.waits), devices.may_wait(self.device):
                dist.broadcast_object_list(outcome, src=0)
        result, error = outcome[0]
        if error is not None:
            raise error from (PeerLost("it failed on rank 0") if self.rank else None)
        return cast(T, result)

    def first_then_others(self, action: Callable[[], T]) -> T:
        """Run an action, such as a download, on each node's first rank, then on its others. Mistakes as in `agreed`."""
        result = self.agreed(lambda: action() if self.local_rank == 0 else None)
        return self.agreed(lambda: action() if result is None else result)

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """Average the module's gradients over the ranks in each backward pass."""
        if self.size == 1:
            return module
        # Buffers are not broadcast: running statistics are averaged over the ranks, not taken from rank 0.
        no_broadcast: dict[str, Any] = {_SYNC_BUFFERS: False}
        return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True, **no_broadcast)


def gradients(module: nn.Module, *, synchronise: bool) -> AbstractContextManager[None]:
    """Return the context in which a backward pass averages gradients over ranks, or only adds to this rank's own."""
    if not isinstance(module, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return others("the mean of the gradients") if synchronise else cast(Any, module.no_sync())
