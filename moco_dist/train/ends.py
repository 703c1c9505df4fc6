"""Decide when a run evaluates, saves and ends, which it may before its last step."""

import math
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from moco_dist.config import Config
from moco_dist.errors import UserError
from moco_dist.interruption import STOPPING
from moco_dist.run import status
from moco_dist.run.rows import row_is_due


def check_length(config: Config, done: int, total: int) -> None:
    """Refuse a length that a run has passed: it would end at once, and call its weights those of an earlier step.

    Args:
        config: to go on with.
        done: steps of the run.
        total: its length by the config.

    Raises:
        UserError: names the key.
    """
    if done > total:
        key, value = ("epochs", config.optim.epochs) if config.optim.steps is None else ("steps", config.optim.steps)
        rule = f"ends at step {total}, and the run in {config.run_dir} has taken {done}"
        raise UserError.of(f"optim.{key}", value, rule, "raise it, or begin another with run.name=NAME")


class Ended(Exception):
    """The run ends before its last step, on all ranks at once.

    Args:
        step: steps done, or the step at which the run diverged, counted from 1.
        reason: why, in one line.
    """

    state: status.State

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step
        self.run_dir: Path | None = None
        """The run directory, where a caller in this process gets the exception."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, str(self)), {"run_dir": self.run_dir}


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

    The handlers stay until the process ends, or until `put_back`: torchrun ends all ranks when one is done, and a rank
    that still saves must not be torn down. In another thread than the main one, which alone may have handlers, no
    signal is heeded.

    Args:
        max_minutes: of this start; None for no limit.
        began: when this start has begun, by the monotonic clock; None: now.
    """

    def __init__(self, max_minutes: float | None, began: float | None = None) -> None:
        self._signal: int | None = None
        began = time.monotonic() if began is None else began
        self._deadline = began + 60 * max_minutes if max_minutes else math.inf
        self._handlers: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
                    self._handlers[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def put_back(self) -> int | None:
        """Restore the earlier handlers of the signals. Returns the last signal that came meanwhile, if any."""
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: Python did not install it
        return self._signal

    def raised(self) -> bool:
        """Return whether this rank was asked to stop."""
        return self._signal is not None or time.monotonic() > self._deadline


class Due:
    """This class decides by the step what follows it, and by the clock whether to save, on which the ranks must agree.

    Args:
        config: of the run.
        epoch_steps: steps of an epoch.
        total: steps of the run.
        evaluates: whether there are images to evaluate on.
    """

    def __init__(self, config: Config, epoch_steps: int, total: int, *, evaluates: bool) -> None:
        self._checkpoint, self._total, self._log_every = config.checkpoint, total, config.track.log_every
        self._compare_every = config.track.compare_ranks_every
        self._knn_steps = config.eval.knn_every * epoch_steps if evaluates else 0
        self._epoch_steps = epoch_steps
        self._milestone_steps = (config.checkpoint.milestone_epochs or 0) * epoch_steps
        self._kept_before: frozenset[int] = frozenset()
        self.saved_at = time.monotonic()

    def evaluation(self, done: int) -> bool:
        """Return whether to evaluate after so many steps."""
        return bool(self._knn_steps) and done > 0 and (done % self._knn_steps == 0 or done == self._total)

    def is_last(self, done: int) -> bool:
        """Return whether the evaluation after so many steps is the last one, which takes all images."""
        return done == self._total

    def row(self, done: int) -> bool:
        """Return whether the row of the step that makes so many is written."""
        return row_is_due(done, self._log_every, self._total)

    def comparison(self, done: int) -> bool:
        """Return whether the row of the step that makes so many is the first one since ranks are due to be compared."""
        every = self._compare_every
        return every > 0 and done // every > max(0, done - self._log_every) // every

    def keep_earlier(self, steps: Sequence[int], before: Mapping[str, Any]) -> None:
        """Keep for good what earlier starts have kept for good, also where this one has another `milestone_epochs`.

        These are the milestones of the start before; and of the starts before that one, what ends an epoch and is not
        among the last ones, which would be gone otherwise. One at an epoch's end that a kill kept from being removed
        looks the same, and stays too: better a file too many than one too few.

        Args:
            steps: steps of the checkpoints that are there, in order.
            before: section `checkpoint` of the config of the start that has saved the last one.
        """
        milestone_steps = (before.get("milestone_epochs") or 0) * self._epoch_steps
        milestones = {step for step in steps if milestone_steps and step % milestone_steps == 0}
        others = [step for step in steps if step not in milestones]
        older = {step for step in others[: -before.get("keep", self._checkpoint.keep)] if step % self._epoch_steps == 0}
        self._kept_before = frozenset(milestones | older)

    def milestone(self, done: int) -> bool:
        """Return whether the checkpoint of so many steps is kept for good."""
        return done in self._kept_before or (bool(self._milestone_steps) and done % self._milestone_steps == 0)

    def save(self, done: int) -> bool:
        """Return whether to save after so many steps."""
        every = self._checkpoint.every_steps
        return done == self._total or self.milestone(done) or bool(every and done % every == 0)

    def save_by_the_clock(self) -> bool:
        """Return whether the last save is too long ago by this rank's clock; the ranks must agree, as clocks differ."""
        minutes = self._checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self.saved_at > 60 * minutes
