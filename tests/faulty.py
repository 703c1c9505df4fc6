"""The trainer with one fault in one rank, for the tests: started by torchrun instead of moco_dist.train.

FAULT=kind:rank:step in the environment; the fault shows in torchrun's first start alone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from moco_dist import train
from moco_dist.data.batches import Batch, Steps
from moco_dist.engine.engine import Engine


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


def install(kind: str, step: int) -> None:
    """Break this rank's step, or its data worker's item, of that number (counted from 0)."""
    if kind.startswith("worker-"):
        item = Steps.__getitem__

        def broken_item(self: Steps, index: int) -> Batch:
            if index == step:
                _break(kind)
            return item(self, index)

        Steps.__getitem__ = broken_item  # type: ignore[method-assign]
        return
    run, calls = Engine.step, iter(range(step + 1_000_000))

    def broken_step(self: Engine, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == step:
            _break(kind)
        return run(self, *args, **kwargs)

    Engine.step = broken_step  # type: ignore[method-assign]


if __name__ == "__main__":
    kind, rank, step = os.environ["FAULT"].split(":")
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if first and os.environ.get("RANK", "0") == rank:
        install(kind, int(step))
    sys.exit(train.run(sys.argv[1:]))
