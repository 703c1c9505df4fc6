"""Notes tell of normal phases of a run that may look wrong. They are shown, but never printed, alerted or counted."""

import math

from moco_dist.health.course import Course, Facts, Row
from moco_dist.health.finding import Finding


class Notes:
    """The notes follow the training rows through the phases of a beginning; a row takes a fixed time.

    Args:
        facts: what is known of the run beside its rows.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._filling = _Phase()
        self._first_epoch = _Phase()
        self._warm_up = _Phase()

    def push(self, row: Row) -> None:
        """Take a training row."""
        step, epoch = int(row["step"]), int(row.get("epoch", 0))
        if "queue_filled" in row and step <= self._facts.queue_steps + 1:
            self._filling.push(row)
        if epoch == 0 and self._facts.config.run.init_from is None:  # else features differ from the first step on
            self._first_epoch.push(row)
        if epoch < self._facts.config.optim.warmup_epochs:
            self._warm_up.push(row)

    def findings(self, course: Course) -> list[Finding]:
        """Return the notes on the rows so far."""
        config, notes = self._facts.config, []
        if phase := self._filling.steps:
            moves = self._filling.moves("top1")
            evidence = (
                f"the queue of {config.moco.queue_size} keys begins with random ones, which are easily told from the "
                f"positive, and is filled by step {self._facts.queue_steps}: the accuracy is high at first and "
                f"falls{moves}, and the loss rises, until all keys are real ones"
            )
            notes.append(_note("queue_filling", phase, evidence, course))
        if phase := self._first_epoch.steps:
            evidence = (
                "in the first epoch, features of all images are still alike: the loss is near that of chance"
                f"{self._first_epoch.moves('loss')}, and an accuracy of a few per cent is normal"
            )
            notes.append(_note("first_epoch", phase, evidence, course))
        if phase := self._warm_up.steps:
            evidence = (
                f"the learning rate rises to {config.optim.lr:g} by epoch {config.optim.warmup_epochs:g}"
                f"{self._warm_up.moves('lr')}; until then, the loss hardly moves"
            )
            notes.append(_note("warm_up", phase, evidence, course))
        return notes


class _Phase:
    """A phase keeps its first and its last training row."""

    def __init__(self) -> None:
        self._first: Row = {}
        self._last: Row = {}

    def push(self, row: Row) -> None:
        self._first = self._first or row
        self._last = row

    @property
    def steps(self) -> tuple[int, int] | None:
        return (int(self._first["step"]), int(self._last["step"])) if self._first else None

    def moves(self, name: str) -> str:
        """Tell in brackets how a figure has gone in the phase; empty where its rows do not have it, or are one."""
        if self._first is self._last:
            return ""
        first, last = (row.get(name) for row in (self._first, self._last))
        if not all(isinstance(value, float | int) and math.isfinite(value) for value in (first, last)):
            return ""
        return f" ({name} {first:.4g} at step {self._first['step']}, {last:.4g} at step {self._last['step']})"


def _note(name: str, steps: tuple[int, int], evidence: str, course: Course) -> Finding:
    is_over = int(course.row["step"]) > steps[1]
    return Finding(name, None, None, *steps, evidence, kind="note", ended=is_over)
