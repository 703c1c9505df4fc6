"""Gloo ranks for tests: processes that are started once and then run function after function.

They know the stand-in for a GPU, so that a function may run on it too.
"""

from __future__ import annotations

import os
import random
import socket
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.multiprocessing as mp

from moco_dist.ranks.collectives import World
from moco_dist.ranks.rank import Rank

_NEVER_GIVEN = (10_000, 32_768)
"""Below the ports that Linux gives by itself: one of those might be another socket's by the time that it is taken."""


class Ranks:
    """A pool of processes. Starting one costs seconds, a call to it milliseconds.

    Args:
        size: processes, the largest world.
    """

    def __init__(self, size: int) -> None:
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True, name=f"rank {rank}")
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def run(
        self,
        size: int,
        function: Callable[..., Any],
        *args: Any,
        timeout_seconds: float = 120,
        on_standin: bool = False,
    ) -> list[Any]:
        """`function(world, *args)` on a fresh world of so many ranks: what each returned, in the order of ranks.

        With `on_standin` the world's device is the stand-in for a GPU.

        Raises:
            AssertionError: some rank raised; the message is its traceback.
        """
        port = free_port()
        for rank, pipe in enumerate(self._pipes[:size]):
            pipe.send((rank, size, port, on_standin, function, args))
        outcomes = []
        for rank, pipe in enumerate(self._pipes[:size]):
            assert pipe.poll(timeout_seconds), f"rank {rank} does not answer"
            outcomes.append(pipe.recv())
        errors = [error for _, error in outcomes if error]
        assert not errors, "\n".join(errors)
        return [result for result, _ in outcomes]

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def _serve(pipe: Connection) -> None:
    from tests import standin  # before this process's first backward pass; who starts the ranks need not have it

    torch.set_num_threads(1)
    while True:
        rank, size, port, on_standin, function, args = pipe.recv()
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        device, world = standin.DEVICE if on_standin else torch.device("cpu"), None
        try:
            with standin.present() if on_standin else nullcontext():
                world = World.join(Rank.from_environment(), device, timeout_seconds=60)
                pipe.send((function(world, *args), None))
        except BaseException:
            pipe.send((None, f"rank {rank} of {size}:\n{traceback.format_exc()}"))
        finally:
            if world is not None:
                world.leave()


def free_port() -> int:
    """Return a port that nobody has, and that the system gives nobody who asks for any port."""
    while True:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port := random.SystemRandom().randrange(*_NEVER_GIVEN)))
            return port
