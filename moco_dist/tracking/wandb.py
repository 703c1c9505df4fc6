"""Weights & Biases is kept at arm's length: it may fail, hang or die, and training goes on.

Every call into W&B is made by one thread of ours, fed by a queue, so that training waits for W&B at the start and at
the end alone, and there no longer than the time limits.
"""

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moco_dist.run.paths import METRICS
from moco_dist.run.rows import Row
from moco_dist.tracking.wandb_run import WandbRun, core_processes, reason, teardown

_BACKLOG = 100_000  # rows that wait at most for a W&B that hangs; they stay in metrics.jsonl


class WandbSink:
    """The sink sends rows and images to a run at W&B, from a thread of its own.

    Nothing raises into training; what goes wrong is told once to the run's `warn`.

    Args:
        run: not started yet; where `track.wandb` is disabled, nothing is sent.
    """

    def __init__(self, run: WandbRun) -> None:
        self._run = run
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._started = threading.Event()
        self._lost = threading.Event()
        self._thread: threading.Thread | None = None
        if run.config.track.wandb == "disabled":
            self._lost.set()
            return
        self._thread = threading.Thread(target=self._serve, name="wandb", daemon=True)
        self._thread.start()
        if not self._started.wait(run.probe_timeout + run.init_timeout + 30):  # W&B itself gives up before
            run.warn("W&B is slow to start; training goes on, its rows follow when it has")

    def log(self, row: Row) -> None:
        """Send a row of metrics.jsonl, unless W&B has it from before."""
        self._enqueue(lambda: self._run.send(row))

    def image(self, key: str, array: NDArray[np.uint8], caption: str) -> None:
        """Send an image, [H, W, C], C of 1 or 3."""
        pixels = array.squeeze(-1) if array.shape[-1] == 1 else array
        self._enqueue(lambda: self._run.send_image(key, pixels, caption))

    def alert(self, title: str, text: str) -> None:
        """Send an alert, which W&B passes on to the user by mail or chat."""
        self._enqueue(lambda: self._run.send_alert(title, text))

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        """Send what is left and end the run; at most the run's `finish_timeout` and ten seconds.

        Args:
            exit_code: of the training; not 0 shows the run as failed, or as preempted.
            preempted: whether the job was told to stop and will go on.
        """
        if self._thread is None:
            return
        self._enqueue(lambda: self._run.end(exit_code, preempted))
        self._calls.put(None)
        self._thread.join(1 if self._lost.is_set() else self._run.finish_timeout + 5)
        if self._thread.is_alive():  # wandb's own exit handler would wait for its process for ever
            self._lose("it does not end")
            for process in core_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            self._thread.join(5)

    def _enqueue(self, call: Callable[[], None]) -> None:
        if self._lost.is_set():
            return
        self._calls.put(call)
        if self._calls.qsize() > _BACKLOG:
            self._lose("it hangs")

    def _lose(self, cause: str) -> None:
        """Give W&B up, once."""
        if not self._lost.is_set():
            self._lost.set()
            self._run.warn(f"W&B is lost ({cause}); training goes on, {METRICS} has every row")

    def _serve(self) -> None:
        """Make the calls in their order, in the thread, until the last one."""
        self._guarded(self._run.start)
        self._started.set()
        while (call := self._calls.get()) is not None:
            if not self._lost.is_set():
                self._guarded(call)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # anything: wandb even exits where its process has died
            self._lose(reason(error))
            teardown()
