"""The loader has batches made ahead of time, in processes of its own."""

import gc
import math
import multiprocessing
import multiprocessing.util
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from moco_dist.data import workers as of_workers
from moco_dist.errors import UserError
from moco_dist.ranks import devices, watchdog

T = TypeVar("T")

_LOOK_SECONDS = 1.0
"""A rank that waits for its workers' batch checks this often whether it shall stop."""
_STOP_SECONDS = 5.0
"""A rank that shall stop still waits this long for a batch: with it, all ranks stop together after a step."""
_SOCKET_PATH_BYTES = 107
"""The longest path that a socket may have on Linux."""
_SHORT_PLACE = "/tmp"


class Withheld(Exception):
    """A batch has not come, and it is waited for no longer since a stop was requested."""


class _Stop:
    requested: Callable[[], bool] = staticmethod(lambda: False)


@contextmanager
def heeding(stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Within it, a wait for a batch ends with Withheld a while after a stop was requested."""
    before, _Stop.requested = _Stop.requested, staticmethod(stop_requested)
    try:
        yield
    finally:
        _Stop.requested = before


@dataclass(frozen=True)
class Loader(Iterable[T]):
    """A loader yields batches that workers make ahead of time; the watchdog knows when a batch is awaited.

    Iterating raises Withheld where a stop is requested and workers give no batch. Without workers, this process makes
    the batch itself, and is not interrupted.
    """

    _loader: DataLoader[T]
    _waited_seconds: list[float] = field(default_factory=list, init=False, repr=False)
    """The waits for batches since the last `take_waited_seconds`."""

    def __iter__(self) -> Iterator[T]:
        with ExitStack() as beginning:
            if self._loader.num_workers:
                beginning.enter_context(_garbage_stays_here())
                beginning.enter_context(of_workers.without_script())
            batches = iter(self._loader)  # the workers begin
        for _ in range(len(self._loader)):
            began = time.monotonic()
            with watchdog.awaiting_batch():
                batch = self._next(batches)
            self._waited_seconds.append(time.monotonic() - began)
            yield batch

    def take_waited_seconds(self) -> float:
        """Return how long batches were waited for since this was last asked."""
        seconds = sum(self._waited_seconds)
        self._waited_seconds.clear()
        return seconds

    def _next(self, batches: Iterator[T]) -> T:
        give_up_at = math.inf
        while True:
            try:
                return next(batches)
            except RuntimeError as error:  # after _LOOK_SECONDS; it can be asked again
                if not str(error).startswith("DataLoader timed out"):
                    raise
            if _Stop.requested():
                give_up_at = min(give_up_at, time.monotonic() + _STOP_SECONDS)
            if time.monotonic() > give_up_at:
                raise Withheld("a batch of the data loader does not come")


def make_loader(batches: Dataset[T], steps: range, workers: int | Literal["auto"], device: torch.device) -> Loader[T]:
    """Load whole batches in the order of their steps.

    Args:
        batches: yields a batch for a step.
        steps: the steps to load.
        workers: processes that make batches ahead of time; with 0, this process makes each when it is asked for; auto:
            by the cores of the rank.
        device: where the batches go; for one that runs ahead, they lie in pinned memory.

    Raises:
        UserError: the workers' sockets have no place, or this process may start none.
    """
    count = min(of_workers.count(workers), len(steps))
    context = None
    if count:
        if not of_workers.may_start():
            rule = "this process is one of a multiprocessing.Pool, or another daemon, which may start no others"
            raise UserError.of("data.workers", workers, rule, "set data.workers=0, or use a ProcessPoolExecutor")
        _place_sockets()
        context = of_workers.context(device)
    loader = DataLoader(
        of_workers.Shared(batches) if context and context.get_start_method() != "fork" else batches,
        batch_size=None,
        sampler=steps,
        num_workers=count,
        multiprocessing_context=context,
        pin_memory=devices.runs_ahead(device),
        worker_init_fn=of_workers.prepare,
        timeout=_LOOK_SECONDS if count else 0,
    )
    return Loader(loader)


@contextmanager
def _garbage_stays_here() -> Iterator[None]:
    """Keep processes that are forked within from collecting what this one has made.

    Some of it has threads, which a fork leaves behind: a worker that collected the decoder of a damaged AVIF waited for
    them for ever.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _place_sockets() -> None:
    """Make the folder of the workers' sockets, private to the user, where their paths are short enough.

    A worker hands over its batch by a socket in a folder below TMPDIR. Where that has too long a path, the worker's
    thread fails, and the batch never comes.

    Raises:
        UserError: there is no such place.
    """
    longest = _SOCKET_PATH_BYTES - len("/pymp-12345678/listener-12345678")
    place = tempfile.gettempdir()
    try:
        tempfile.tempdir = place if len(os.fsencode(place)) <= longest else _SHORT_PLACE
        folder = multiprocessing.util.get_temp_dir()  # made once, and kept by the workers
    except OSError as error:
        rule = f"too long for the sockets of data workers, and {_SHORT_PLACE} cannot be written: {error.strerror}"
        raise UserError.of("TMPDIR", place, rule, f"set it to a folder of at most {longest} bytes") from None
    finally:
        tempfile.tempdir = place
    if len(os.fsencode(folder)) + len("/listener-12345678") > _SOCKET_PATH_BYTES:
        rule = "too long for the sockets of data workers"
        raise UserError.of("TMPDIR", place, rule, f"set it to a folder of at most {longest} bytes")


@contextmanager
def no_workers_left() -> Iterator[None]:
    """Kill workers that a failure within left behind: Python would wait for them, and they pass over its SIGTERM."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        if set(multiprocessing.active_children()) - before:
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
