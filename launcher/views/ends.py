"""Tell when runs have surely ended: SLURM ends a job whose node died, some seconds before it requeues it."""

import time
from collections.abc import Collection

from launcher.record import Launch
from launcher.views.evidence import FOR_GOOD
from launcher.views.runs import Run

_SURE_SECONDS = 8.0
"""An end that is not for good must last this long before it is believed."""


class Ends:
    """These are the ends of some runs, since when they were seen."""

    def __init__(self) -> None:
        self._since: dict[Launch, float] = {}

    def is_sure(self, run: Run, sure_states: Collection[str] = FOR_GOOD) -> bool:
        """Return whether a run has surely ended; it is called each time that the run is looked at.

        Args:
            run: the run as it stands now.
            sure_states: ends that need not last.
        """
        if not run.ended:
            self._since.pop(run.launch, None)
            return False
        now = time.monotonic()
        return run.state in sure_states or now - self._since.setdefault(run.launch, now) > _SURE_SECONDS
