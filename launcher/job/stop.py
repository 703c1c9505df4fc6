"""Heed SLURM's signals: have the ranks save, and requeue the job where that was asked for."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time

from launcher.job import ranks
from launcher.job.start import Start
from moco_dist.run import status


class Stop:
    """Heed SLURM's signals. The handlers do nothing; a thread reads what arrived and acts beside the main thread.

    USR2, ahead of a time limit or a preemption: the ranks save, then the job asks to be requeued. TERM, from scancel,
    an outside requeue, or a preemption without USR2: the ranks save, and the task stays alive until SLURM ends it,
    since a job that ends on TERM counts as failed and is not requeued.
    """

    def __init__(self, start: Start) -> None:
        self._start = start
        self.signal: signal.Signals | None = None
        """The first signal that has arrived; None before it."""
        self.finished = threading.Event()
        """Set when what the signal asks for is done."""
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._serve, name="stop", daemon=True).start()

    def _serve(self) -> None:
        """Wait for the first signal; end this task if another node's task ends the run while this one waits for it."""
        heeded = {int(signal.SIGUSR2), int(signal.SIGTERM)}
        while self.signal is None:
            ready, _, _ = select.select([self._reader], [], [], 5.0)
            numbers = heeded & set(os.read(self._reader, 64)) if ready else set()
            if not ready and len(self._start.place.hostnames) > 1 and not ranks.processes():
                self._end_with_others()
            if numbers:
                self._stop(signal.SIGUSR2 if signal.SIGUSR2 in numbers else signal.SIGTERM)

    def _end_with_others(self) -> None:
        """End this task, whose main thread waits for a node that has ended the run for good."""
        state = self._start.ended()
        if state in ("user_error", "diverged"):
            self._start.say(f"another node has ended the run: {state}")
            os._exit(status.EXIT_CODES[state])

    def _stop(self, number: signal.Signals) -> None:
        """Have the ranks save, and after USR2 requeue the job. Further signals change nothing."""
        start, self.signal = self._start, number
        start.say(f"{number.name}: the ranks are told to save")
        with contextlib.suppress(OSError):
            start.stop_mark.touch()
        deadline = time.monotonic() + start.profile.signal_seconds - 10
        while (pids := ranks.processes()) and time.monotonic() < deadline:
            for pid in pids:  # again and again: a rank that has just started would miss a single signal
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR2)
            time.sleep(0.5)
            if start.launch.status().state != "running":
                break
        if start.place.first:
            last = start.launch.status()
            start.say(f"{last.state or 'nothing was begun'} at step {last.step}")
            if number == signal.SIGUSR2 and last.state != "done":
                start.requeue()
        self.finished.set()
