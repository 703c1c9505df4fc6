"""Ends this process when it hangs, or when the torchrun that started it is gone.

Ranks that wait for a rank that hangs would wait for ever, and a killed torchrun leaves its ranks behind. A thread looks
at a clock that the training loop winds: `beat`, once a step.
"""

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from moco_dist.errors import tell

_GRACE_SECONDS = 5.0
_TEARDOWN_SECONDS = 45.0
"""Torchrun and the other ranks take this long to end, with the 30 s that it gives a rank that heeds no SIGTERM.

The job is over by the timeout, not only told of it; a timeout under 90 s leaves half of itself.
"""


class Hang(Exception):
    """A rank makes no progress."""


class _Progress:
    last_beat = time.monotonic()
    waiting_for = ""
    batch_awaited = False
    untimed = False
    over = threading.Event()


def beat() -> None:
    """Wind the clock: this process makes progress."""
    _Progress.last_beat = time.monotonic()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Within it, this process waits for other ranks: a hang is not its own fault."""
    _Progress.waiting_for = what
    try:
        yield
    finally:
        _Progress.waiting_for = ""


@contextmanager
def awaiting_batch() -> Iterator[None]:
    """Within it, this process waits for the data loader, or reads the images itself: what hangs is the reading."""
    _Progress.batch_awaited = True
    try:
        yield
    finally:
        _Progress.batch_awaited = False


@contextmanager
def untimed() -> Iterator[None]:
    """Within it, this process may take any time: it reads a large folder, say. Others that wait for it may not."""
    _Progress.untimed = True
    try:
        yield
    finally:
        beat()
        _Progress.untimed = False


def start(rank: int, timeout_seconds: float, last_words: Callable[[Hang], None]) -> None:
    """Watch this process from a thread, to its very end: what hangs may be the ending. Or until `stop`.

    A rank that hangs by itself is ended after the timeout with its stack on stderr; one that waits for others a little
    later, so that the first to fail, which torchrun names as the cause, is the one at fault.

    Args:
        rank: of this process.
        timeout_seconds: by which a job without a beat is over.
        last_words: called before the process is ended.
    """
    stop()
    beat()
    agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    _Progress.over = over = threading.Event()
    arguments = (over, rank, timeout_seconds, agent, last_words)
    threading.Thread(target=_watch, args=arguments, name="watchdog", daemon=True).start()


def stop() -> None:
    """Watch no longer: for a process that called the work as a function, and goes on."""
    _Progress.over.set()


def _watch(
    over: threading.Event, rank: int, timeout_seconds: float, agent: int | None, last_words: Callable[[Hang], None]
) -> None:
    patience = max(timeout_seconds / 2, timeout_seconds - _TEARDOWN_SECONDS)
    while not over.wait(0.5):
        if agent is not None and os.getppid() != agent:
            tell(f"rank {rank}: torchrun is gone, so this rank ends")
            _end()
        waiting_for = _Progress.waiting_for
        still = time.monotonic() - _Progress.last_beat
        if not _Progress.untimed and still > patience + (_GRACE_SECONDS if waiting_for else 0.0):
            itself = "waits for a batch of the data loader" if _Progress.batch_awaited else "hangs by itself"
            where = f"waits for other ranks in {waiting_for}" if waiting_for else itself
            hang = Hang(f"rank {rank} {where}: no step for {still:.0f} s (run.hang_timeout_seconds)")
            main = sys._current_frames()[threading.main_thread().ident or 0]
            hang.add_note("".join(["at\n", *traceback.format_stack(main)]))
            try:
                tell(str(hang))
                with suppress(OSError, AttributeError, RuntimeError):  # a notebook's stderr need not be a file
                    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                last_words(hang)
            finally:
                _end()


def _end() -> None:
    """End this process at once, and its data workers, which may hang for ever."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(1)
