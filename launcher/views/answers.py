"""Ask SLURM about several jobs within one time limit; once it has not answered, it is not asked again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from shutil import which

from launcher import slurm

_Question = Callable[[Collection[str], float], dict[str, slurm.Job]]


class Answers:
    """Collect SLURM's answers, all of them within a time limit."""

    def __init__(self, timeout_seconds: float) -> None:
        self._deadline = time.monotonic() + timeout_seconds
        self._own: dict[str, slurm.Job] | None = None
        self.error = ""
        """Why SLURM did not answer; empty while it does."""

    def own_jobs(self) -> Collection[slurm.Job]:
        """Return this user's jobs in the queue; none, and no error, where there is no SLURM."""
        self._own = {}
        if which("squeue"):
            try:
                self._own = slurm.queue(timeout_seconds=self._seconds_left())
            except slurm.Unavailable as error:
                self.error = str(error)
        return self._own.values()

    def queued(self, ids: Collection[str]) -> dict[str, slurm.Job]:
        """Return those of the named jobs that the queue has."""
        if self._own is not None and not self.error:
            return {job: self._own[job] for job in ids if job in self._own}
        return self._ask(slurm.queue, ids)

    def accounted(self, ids: Collection[str]) -> dict[str, slurm.Job]:
        """Return those of the named jobs that the accounting has."""
        return self._ask(slurm.accounting, ids) if which("sacct") else {}

    def _ask(self, question: _Question, ids: Collection[str]) -> dict[str, slurm.Job]:
        if not ids or self.error:
            return {}
        try:
            return question(ids, self._seconds_left())
        except slurm.Unavailable as error:
            self.error = str(error)
            return {}

    def _seconds_left(self) -> float:
        return max(0.1, round(self._deadline - time.monotonic(), 1))
