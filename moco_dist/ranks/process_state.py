"""Restore the state of this process after a call from Python, since a notebook goes on in it."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from moco_dist.errors import UserError
from moco_dist.ranks import devices, watchdog
from moco_dist.ranks.torch_modes import plain_modes

_one_call = threading.Lock()


@contextmanager
def preserved(call: str) -> Iterator[None]:
    """Restore at the end all that `World.start` and a run change in this process; until then torch's modes are off.

    The state consists of the watchdog, the number of torch's threads, its deterministic algorithms, cuDNN's search for
    the fastest kernels, the CUDA device, torch's random state on the CPU, how glibc keeps freed memory, the
    environment, and the hook that prints an error that nobody catches.

    Args:
        call: name of the function that computes in the block.

    Raises:
        UserError: another call computes in this process, in another thread.
    """
    if not _one_call.acquire(blocking=False):
        rule = "another call trains or evaluates in this process, and what it switches is the process's"
        raise UserError(f"{call}: {rule}; wait for its end, or use another process")
    try:
        with ExitStack() as put_back:
            put_back.callback(_put_back_environment, dict(os.environ))
            put_back.callback(devices.release_freed_memory)
            put_back.callback(gc.collect)  # ahead of it: what the call leaves is held by circles
            put_back.callback(torch.set_num_threads, torch.get_num_threads())
            put_back.callback(_put_back_determinism, torch.get_deterministic_debug_mode())
            put_back.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            put_back.callback(setattr, sys, "excepthook", sys.excepthook)  # torch's groups put their rank's name ahead
            put_back.callback(torch.set_rng_state, torch.get_rng_state())
            if torch.cuda.is_initialized():
                put_back.callback(partial(torch.cuda.set_device, torch.cuda.current_device()))
            put_back.callback(watchdog.stop)
            put_back.enter_context(plain_modes())
            yield
    finally:
        _one_call.release()


def _put_back_environment(before: dict[str, str]) -> None:
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _put_back_determinism(before: int) -> None:
    if torch.get_deterministic_debug_mode() != before:  # else it would import torch's compiler in vain
        torch.use_deterministic_algorithms(before > 0, warn_only=before == 1)
