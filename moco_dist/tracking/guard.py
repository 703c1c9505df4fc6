"""A sink is kept at arm's length: it may fail, hang or die, and training goes on.

Every call into a sink is made by one thread of ours, fed by a queue, so that training waits for it at the start and at
the end alone, and there no longer than the sink's time limits.
"""

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moco_dist.errors import masked
from moco_dist.run.paths import METRICS
from moco_dist.run.rows import Row

_BACKLOG = 100_000  # rows that wait at most for a sink that hangs; they stay in metrics.jsonl


class Sink(Protocol):
    """A sink shows the rows of a run somewhere else than in metrics.jsonl. All its methods may raise anything.

    One thread makes all calls but `kill`. A row that is told twice, by a start that was killed and by the next one, is
    to be shown once.
    """

    @property
    def name(self) -> str:
        """The name that messages have for it."""

    @property
    def start_seconds(self) -> float:
        """The time after which training does not wait any more for its start."""

    @property
    def finish_seconds(self) -> float:
        """The time after which training does not wait any more for its end."""

    def start(self) -> None:
        """Begin, or go on where an earlier start ended."""

    def catch_up(self) -> None:
        """Show the rows of earlier starts that it lacks."""

    def send(self, row: Row) -> None:
        """Show a row of metrics.jsonl."""

    def send_image(self, key: str, pixels: NDArray[np.uint8], caption: str) -> None:
        """Show an image, [H, W] or [H, W, 3]."""

    def send_alert(self, title: str, text: str) -> None:
        """Tell the user of what needs attention."""

    def send_encoder(self, file: Path, data: Mapping[str, Any]) -> None:
        """Show where the final encoder lies, and by what images it was trained: their number and digest."""

    def end(self, exit_code: int, preempted: bool) -> None:
        """Show what is left, and that the run has ended, or will go on where it was told to stop."""

    def tear_down(self) -> None:
        """Free what it holds after a failure."""

    def kill(self) -> None:
        """Kill what its thread waits for. Another thread calls it."""


class Guard:
    """The guard calls a sink from a thread of its own.

    Nothing raises into training; what goes wrong is told once.

    Args:
        sink: not started yet.
        warn: takes a line about a failure.
    """

    def __init__(self, sink: Sink, warn: Callable[[str], None]) -> None:
        self._sink, self._warn = sink, warn
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=sink.name, daemon=True)
        self._thread.start()

    def wait_for_start(self) -> None:
        """Wait until the sink has started, or until its time for that is over."""
        if not self._started.wait(self._sink.start_seconds):  # the sink itself gives up before
            self._warn(f"{self._sink.name} is slow to start; training goes on, its rows follow when it has")

    def log(self, row: Row) -> None:
        """Show a row of metrics.jsonl, unless the sink has it from before."""
        self._enqueue(lambda: self._sink.send(row))

    def image(self, key: str, array: NDArray[np.uint8], caption: str) -> None:
        """Show an image, [H, W, C], C of 1 or 3."""
        pixels = array.squeeze(-1) if array.shape[-1] == 1 else array
        self._enqueue(lambda: self._sink.send_image(key, pixels, caption))

    def alert(self, title: str, text: str) -> None:
        """Tell the user, by mail or chat where the sink can, of what needs attention."""
        self._enqueue(lambda: self._sink.send_alert(title, text))

    def encoder(self, file: Path, data: Mapping[str, Any]) -> None:
        """Show where the final encoder lies, and by what images it was trained: their number and digest."""
        self._enqueue(lambda: self._sink.send_encoder(file, data))

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        """Show what is left and end; at most the sink's `finish_seconds` and five more.

        Args:
            exit_code: of the training; not 0 shows the run as failed, or as preempted.
            preempted: whether the job was told to stop and will go on.
        """
        self._enqueue(lambda: self._sink.end(exit_code, preempted))
        self._calls.put(None)
        self._thread.join(1 if self._lost.is_set() else self._sink.finish_seconds)
        if self._thread.is_alive():
            self._lose("it does not end")
            self._sink.kill()
            self._thread.join(5)

    def _enqueue(self, call: Callable[[], None]) -> None:
        if self._lost.is_set():
            return
        self._calls.put(call)
        if self._calls.qsize() > _BACKLOG:
            self._lose("it hangs")

    def _lose(self, cause: str) -> None:
        """Give the sink up, once."""
        if not self._lost.is_set():
            self._lost.set()
            self._warn(f"{self._sink.name} is lost ({cause}); training goes on, {METRICS} has every row")

    def _serve(self) -> None:
        """Make the calls in their order, in the thread, until the last one."""
        self._guarded(self._sink.start)
        self._started.set()
        call: Callable[[], None] | None = self._sink.catch_up
        while call is not None:
            if not self._lost.is_set():
                self._guarded(call)
            call = self._calls.get()

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # anything: wandb even exits where its process has died
            self._lose(reason(error))
            self._sink.tear_down()


def finish_all(guards: Sequence[Guard], exit_code: int, preempted: bool) -> None:
    """End several sinks at once, so that the slowest of them alone is waited for."""
    threads = [threading.Thread(target=guard.finish, args=(exit_code, preempted), daemon=True) for guard in guards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def reason(error: BaseException) -> str:
    """Return the text of an error on one line, without W&B's key."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return masked(text.replace(key, "***") if key else text)[:200]
