"""Ask SLURM about the jobs of many runs, in as few questions as it takes."""

import functools
import time
from collections.abc import Callable, Collection

from launcher import slurm, slurm_jobs


class Answers:
    """Collect SLURM's answers about jobs, all within a time limit; once it has not answered, it is not asked again."""

    def __init__(self, timeout_seconds: float | None = None) -> None:
        seconds = slurm.patience_seconds() if timeout_seconds is None else timeout_seconds
        self._deadline = time.monotonic() + seconds
        self._own: dict[str, slurm_jobs.Job] | None = None
        self.error = ""
        """Why SLURM did not answer; empty while it does."""

    def own_jobs(self, cluster: str | None = None) -> Collection[slurm_jobs.Job]:
        """Return this user's jobs in the queue; none, and no error, where there is no SLURM."""
        question = functools.partial(slurm_jobs.queue, cluster=cluster)
        self._own = self._ask(question, ()) if slurm.installed("squeue") else {}
        return self._own.values()

    def queued(self, ids: Collection[str]) -> dict[str, slurm_jobs.Job]:
        """Return those of the named jobs that the queue has."""
        if self._own is not None and not self.error:
            own = {job: self._own[job] for job in ids if job in self._own}
            elsewhere = [job for job in ids if "@" in job]
            return own | (self._ask(slurm_jobs.queue, elsewhere) if elsewhere else {})
        return self._ask(slurm_jobs.queue, ids) if ids else {}

    def accounted(self, ids: Collection[str]) -> dict[str, slurm_jobs.Job]:
        """Return those of the named jobs that the accounting has."""
        return self._ask(slurm_jobs.accounting, ids) if slurm.installed("sacct") else {}

    def _ask(
        self, question: Callable[[Collection[str], float], dict[str, slurm_jobs.Job]], ids: Collection[str]
    ) -> dict[str, slurm_jobs.Job]:
        if self.error:
            return {}
        try:
            return question(ids, max(0.1, round(self._deadline - time.monotonic(), 1)))
        except slurm.Unavailable as error:
            self.error = str(error)
            return {}
