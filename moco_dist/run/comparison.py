"""Compare the rows of two runs, or of a run and its replay, step by step and bit for bit.

All figures count but those of the speed and of the nodes (`figures.FIGURES`), which no run repeats.
"""

import bisect
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moco_dist.run.figures import is_measured
from moco_dist.run.rows import Row, is_evaluation, is_training

_NOT_COMPARED = ("step", "epoch", "checkpoint_failures")
"""Figures that say where a row stands, and the one that counts the failures of a disk."""


def counts(name: str) -> bool:
    """Return whether a figure must be equal in two runs that are alike."""
    return name not in _NOT_COMPARED and not is_measured(name)


def equal_bits(one: object, other: object) -> bool:
    """Return whether two values of rows are equal; floats bit for bit, so that 0.0 is not -0.0."""
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return one == other


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it: None for NaN and infinity."""
    return value if math.isfinite(value) else None


@dataclass
class Drift:
    """A drift says how one figure differs between two runs."""

    first_step: int
    first: tuple[float, float]
    """The two values there."""
    largest: float = 0.0
    largest_step: int = 0
    last: float = 0.0
    """Difference at the last step that was compared."""

    def as_json(self) -> dict[str, Any]:
        """Return where and how far the figure differs, as results tell it."""
        largest = {"largest": finite(self.largest), "largest_step": self.largest_step}
        return {"first_step": self.first_step, "values": [finite(value) for value in self.first], **largest}


@dataclass
class Comparison:
    """A comparison takes the rows of common steps in their order, and keeps where and how far they part."""

    steps: list[int] = field(default_factory=list)
    """The steps whose rows were compared."""
    drifts: dict[str, Drift] = field(default_factory=dict)
    """The figures that differ, by name."""
    figures: set[str] = field(default_factory=set)
    """The figures that were compared."""
    one_sided: set[str] = field(default_factory=set)
    """Figures that count and stand in one of the two rows alone: they are told, and are no difference."""

    def push(self, one: Row, other: Row) -> None:
        """Compare two rows of one step. What only one of them has is no difference."""
        counted = [{name for name in row if counts(name)} for row in (one, other)]
        self.one_sided |= counted[0] ^ counted[1]
        for name in sorted(counted[0] & counted[1]):
            self.figures.add(name)
            self._compare(int(one["step"]), name, one[name], other[name])
        self.steps.append(int(one["step"]))

    def _compare(self, step: int, name: str, one: object, other: object) -> None:
        drift = self.drifts.get(name)
        if equal_bits(one, other):
            if drift is not None:
                drift.last = 0.0
            return
        values = (_number(one), _number(other))
        drift = self.drifts.setdefault(name, Drift(step, values))
        drift.last = abs(values[0] - values[1])
        if drift.last >= drift.largest or math.isnan(drift.last):  # one of them is no number: that counts most
            drift.largest, drift.largest_step = drift.last, step

    @property
    def first(self) -> str | None:
        """Return the loss where it differs, else the figure that differs first; None where nothing differs."""
        return min(self.drifts, key=lambda name: (name != "loss", self.drifts[name].first_step, name), default=None)

    @property
    def equal_before(self) -> int:
        """Return how many rows came before the step at which the runs part; all of them where they do not."""
        return len(self.steps) if self.first_step is None else bisect.bisect_left(self.steps, self.first_step)

    @property
    def first_step(self) -> int | None:
        """Return the step at which the rows part; None where nothing differs."""
        return self.drifts[self.first].first_step if self.first else None


def training_rows(rows: Iterable[Row]) -> dict[int, Row]:
    """Return the training rows by step."""
    return {int(row["step"]): row for row in rows if is_training(row)}


def evaluation_rows(rows: Iterable[Row]) -> dict[int, Row]:
    """Return the rows of evaluations by step."""
    return {int(row["step"]): row for row in rows if is_evaluation(row)}


def compare(one: Mapping[int, Row], other: Mapping[int, Row]) -> Comparison:
    """Compare the rows of the steps that both have."""
    comparison = Comparison()
    for step in sorted(one.keys() & other.keys()):
        comparison.push(one[step], other[step])
    return comparison


def _number(value: object) -> float:
    """Return a number as a float; NaN for what is none, infinity for a whole number beyond all floats."""
    if not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value > 0 or -1)
