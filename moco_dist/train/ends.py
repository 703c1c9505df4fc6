"""A run may end before its last step: on request, or because its loss is no number any more."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

from moco_dist.run import status


class Ended(Exception):
    """The run ends before its last step, on all ranks at once."""

    state: status.State

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


class Stopped(Ended):
    """The run was asked to stop, and its state is saved."""

    state = "stopped"


class StoppedAlone(Stopped):
    """The run was asked to stop while this rank waited for a batch in vain; it may not meet the other ranks any more.

    They may wait for it in the midst of a step, and end when it is gone.
    """


class Diverged(Ended):
    """The loss is no number any more."""

    state = "diverged"


class StopRequest:
    """A stop is requested by a signal or by `run.max_minutes`. The signal handler does no more than set a flag.

    The handlers stay until the process ends: torchrun ends all ranks when one is done, and a rank that still saves
    must not be torn down.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self._signalled = False
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def raised(self) -> bool:
        """Return whether this rank was asked to stop."""
        return self._signalled or time.monotonic() > self._deadline
