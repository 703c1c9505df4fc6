"""The trainer with one fault in one rank, for the tests: started by torchrun instead of moco_dist.train.

FAULT=kind:rank:step in the environment; the fault shows in torchrun's first start alone. `slow` and `slow-batch` last
from that step on. MINUTE=seconds shortens the minute over which the run's health judges speed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch

from moco_dist import train
from moco_dist.data.stream import Batch, BatchStream
from moco_dist.engine.engine import Engine
from moco_dist.health import monitor


def _break(kind: str) -> None:
    match kind.removeprefix("worker-"):
        case "sleep":
            time.sleep(1e6)
        case "memory":
            raise MemoryError("a MemoryError of the test's")
        case "exception":
            raise RuntimeError("an exception of the test's")
        case "killed":  # as the kernel does when memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            raise AssertionError(kind)


SLOW_SECONDS = 2.5
"""Time that a slow rank takes for a step beyond its own, or for a batch."""


def _install_slowness(kind: str, first: int) -> None:
    """Slow this rank down, or its batches, from a step on."""
    owner: Any = BatchStream if kind == "slow-batch" else Engine
    name = "__getitem__" if kind == "slow-batch" else "step"
    whole, calls = getattr(owner, name), iter(range(1_000_000))

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) >= first:
            time.sleep(SLOW_SECONDS)
        return whole(self, *args, **kwargs)

    setattr(owner, name, slow)


def _install_parting(step: int) -> None:
    """Let the parameters of this rank part from the others' ahead of a step, as a bit that flips in memory does."""
    run, calls = Engine.step, iter(range(1_000_000))

    def parting_step(self: Engine, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == step:
            with torch.no_grad():
                next(iter(self.method.trained.parameters())).view(-1)[0] += 1e-3
        return run(self, *args, **kwargs)

    Engine.step = parting_step  # type: ignore[method-assign]


def install(kind: str, step: int) -> None:
    """Break this rank's step, or its data worker's item, of that number (counted from 0)."""
    if kind in ("slow", "slow-batch"):
        _install_slowness(kind, step)
        return
    if kind == "part":
        _install_parting(step)
        return
    if kind.startswith("worker-"):
        item = BatchStream.__getitem__

        def broken_item(self: BatchStream, index: int) -> Batch:
            if index == step:
                _break(kind)
            return item(self, index)

        BatchStream.__getitem__ = broken_item  # type: ignore[method-assign]
        return
    run, calls = Engine.step, iter(range(step + 1_000_000))

    def broken_step(self: Engine, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == step:
            _break(kind)
        return run(self, *args, **kwargs)

    Engine.step = broken_step  # type: ignore[method-assign]


if __name__ == "__main__":
    kind, rank, step = os.environ["FAULT"].split(":")
    monitor.SECONDS = float(os.environ.get("MINUTE", monitor.SECONDS))
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first and os.environ.get("RANK", "0") == rank:
        install(kind, int(step))
    sys.exit(train.run(sys.argv[1:]))
