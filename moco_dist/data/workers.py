"""Data workers: how many there are, how they start beside threads and devices, and what they share."""

from __future__ import annotations

import functools
import io
import math
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from moco_dist.interruption import STOPPING
from moco_dist.ranks import devices

T = TypeVar("T")

_IMAGES_PER_SECOND = 4000
"""Images a second that a fast device takes: on one H100, compiled steps of a ResNet-50 at 224 pixels took 3842."""
_FEW = 0.1
"""Work that would keep fewer workers than this busy is done by the training process itself."""
_LARGE_BYTES = 1 << 16
"""An array of so many bytes is shared with the workers, not sent to each."""


class Choice(NamedTuple):
    """A choice is a number of workers and the reason for it."""

    workers: int
    reason: str


def choose(batches: Dataset[Any], step: int, images: int) -> Choice:
    """Choose the number of workers of a rank by its cores and by the time that this process takes for a batch.

    Args:
        batches: yields a batch for a step.
        step: the step whose batch is made, and thrown away.
        images: of a batch.
    """
    began = time.perf_counter()
    batches[step]
    seconds = (time.perf_counter() - began) / images
    needed = seconds * _IMAGES_PER_SECOND
    workers = 0 if needed < _FEW or not may_start() else min(math.ceil(needed), devices.cores() - 1)
    cores = f"{devices.cores()} core{'s' * (devices.cores() > 1)} a rank"
    return Choice(workers, f"{workers} of each rank, for {cores} and {1000 * seconds:.2g} ms an image")


def count(workers: int | Literal["auto"]) -> int:
    """Return how many workers `data.workers` means where no batch was measured."""
    if workers == "auto":
        return min(8, devices.cores() - 1) if may_start() else 0
    return workers


def may_start() -> bool:
    """Return whether this process may start others, which those of a `multiprocessing.Pool` may not."""
    return not multiprocessing.current_process().daemon


def context(device: torch.device) -> BaseContext:
    """Return how workers start beside a device.

    Beside one that runs ahead, they are forked from a server that has none of this process's threads, and neither its
    device nor its collectives. The server outlives signals that are meant for the trainer, and ends with it.
    """
    if not devices.runs_ahead(device):
        return multiprocessing.get_context("fork")
    of_server = multiprocessing.get_context("forkserver")
    of_server.set_forkserver_preload(["moco_dist.data.stream"])  # imported once for all workers
    multiprocessing.resource_tracker.ensure_running()  # ahead of the server, which would start it: it unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # what is blocked here stays blocked in the server
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return of_server


@contextmanager
def without_script() -> Iterator[None]:
    """Keep processes that are started within, and not forked, from running the script that runs here.

    Python has them import it, and a script that trains without asking whether it is the main one would train in each.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def prepare(worker: int) -> None:
    """Prepare a process that was started as a worker: it must neither outlive nor outrun the trainer.

    torchrun, SLURM and terminals signal the whole process group. A worker that died of that would turn a stop into a
    crash; so the first SIGTERM is passed over, and the trainer's own, when it ends, is heeded.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=_end_with_trainer, name="end with the trainer", daemon=True).start()


def _end_with_trainer() -> None:
    """Wait for the end of the trainer, then end this worker. A server of workers lives as long as one of them does."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


class Shared(Dataset[T]):
    """A dataset whose large arrays lie in memory that all workers share: a million names are not sent to each."""

    def __init__(self, dataset: Dataset[T]) -> None:
        self._arrays = list[Tensor]()
        file = io.BytesIO()
        _Pickler(file, protocol=5, buffer_callback=self._stays_in_band).dump(dataset)
        self._pickled = file.getvalue()

    def __getitem__(self, step: int) -> T:
        return self._dataset[step]

    @functools.cached_property
    def _dataset(self) -> Dataset[T]:
        """Make the dataset, in the worker, where its first batch is asked for."""
        dataset: Dataset[T] = ForkingPickler.loads(self._pickled, buffers=[array.numpy() for array in self._arrays])
        return dataset

    def _stays_in_band(self, buffer: pickle.PickleBuffer) -> bool:
        """Put a large buffer into shared memory; return whether it is too small for that."""
        content = buffer.raw()
        if content.nbytes < _LARGE_BYTES:
            return True
        self._arrays.append(torch.empty(content.nbytes, dtype=torch.uint8).share_memory_())
        self._arrays[-1].numpy()[:] = np.frombuffer(content, np.uint8)
        return False


class _Pickler(pickle.Pickler):
    """Pickles tensors as arrays, whose bytes need not be part of the pickle."""

    def reducer_override(self, value: object) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        # In the order in which it lies in memory: releases of NumPy before 2.3 would copy another one into the pickle.
        order = sorted(range(value.dim()), key=value.stride().__getitem__, reverse=True)
        return _tensor, (value.permute(order).numpy(), np.argsort(order).tolist())


def _tensor(array: NDArray[Any], order: list[int]) -> Tensor:
    """Make a tensor of an array, whose axes are put into an order."""
    return torch.from_numpy(array).permute(order)
