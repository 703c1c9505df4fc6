"""The loader has batches made ahead of time, in processes of its own."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from moco_dist.ranks import devices

T = TypeVar("T")


def make_loader(batches: Dataset[T], steps: range, workers: int, device: torch.device) -> DataLoader[T]:
    """Load whole batches in the order of their steps.

    Args:
        batches: yields a batch for a step.
        steps: the steps to load.
        workers: processes that make batches ahead of time; with 0, this process makes each when it is asked for.
        device: where the batches go; for one that runs ahead, they lie in pinned memory.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=min(workers, len(steps)),
        pin_memory=devices.runs_ahead(device),
        worker_init_fn=_heed_signals,
    )


def _heed_signals(worker: int) -> None:
    """Set the signals of a forked worker: it inherits the trainer's handlers, and must not outlive or outrun it.

    torchrun signals the whole process group. A worker that died of that would turn a stop into a crash; so the first
    SIGTERM is passed over, and the trainer's own, when it ends, is heeded.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def no_workers_left() -> Iterator[None]:
    """Kill workers that a failure within left behind: Python would wait for them, and they pass over its SIGTERM."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        gc.collect()  # a loader that nobody holds ends its workers itself
        with _deaf_to(signal.SIGCHLD):  # torch's handler raises where a worker is killed
            for worker in set(multiprocessing.active_children()) - before:
                worker.kill()
                worker.join()


@contextmanager
def _deaf_to(number: signal.Signals) -> Iterator[None]:
    """Let a signal pass unnoticed within."""
    if threading.current_thread() is not threading.main_thread():  # which alone has handlers
        yield
        return
    handler = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, handler)
