"""Processes that work for a command end with it: by Ctrl-C, where one of them dies, and where the command is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from moco_dist.interruption import ENDING


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of so many processes; where the block raises, what they still do is not waited for."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, initializer=_begin) as pool:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            pool.submit(os.getpid)  # the processes begin, and inherit what is held back
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield pool
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            raise


def _begin() -> None:
    """Leave Ctrl-C to the command, end by the signal with which a pool ends its processes, and with the command.

    A worker inherits the command's handlers, by which SIGTERM would end no more than a piece of its work.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # else it would wait for work for ever, where the command was killed
