"""The course of a run is what its rules look at: the config, means over windows of rows, and the evaluations so far."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moco_dist.config import Config
from moco_dist.health.finding import rounded

Row = Mapping[str, Any]

FIGURES = (
    "loss",
    "lr",
    "top1",
    "loss_at_chance",
    "positive_similarity",
    "hardest_similarity",
    "entropy",
    "queue_age_steps",
    "q_std",
    "q_rank",
    "encoder_distance",
)
"""Figures of which the rules take the mean over a window; all others are passed over."""
SPEED_FIGURES = ("data_wait", "slowest_lag")
"""Figures of the rules about speed, which are averaged over a time of their own."""

NUMBERS = (float, int)
"""Types of a figure; a truth value is none."""
_TYPES = frozenset(NUMBERS)
LARGEST = 1e100
"""Numbers of this size or beyond are no figures: they would overflow in a sum or a product."""

ROWS, FEW_ROWS, STEPS = 20, 5, 200
"""A window closes after so many rows; after a few, where they span so many steps."""
SECONDS = 60.0
"""A window of the rules about speed closes after so long: the start of data workers takes seconds, a step may too."""


def numbers_of(row: Row) -> Row:
    """Return the row without what is no number: text, nested values, NaN, infinity, and what would overflow."""
    values = row.values()
    are_numbers = _TYPES.issuperset(map(type, values)) and -LARGEST < min(values) <= max(values) < LARGEST
    if are_numbers and math.isfinite(sum(values)):  # min and max may pass over a NaN
        return row
    return {name: value for name, value in row.items() if type(value) in NUMBERS and abs(value) < LARGEST}


@dataclass
class Facts:
    """The facts are what the rules know of a run beside its rows; None stands for what they do not know."""

    config: Config
    images: int | None = None
    """Training images."""
    workers: int | None = None
    """Data workers of a rank."""
    cores: int | None = None
    """CPU cores of a rank."""
    bn_groups: int | None = None
    """BatchNorm groups of the global batch: those of the config where unset; None where the ranks decide them."""

    def __post_init__(self) -> None:
        self.bn_groups = self.bn_groups or self.config.moco.bn_groups

    @property
    def directions(self) -> int:
        """Return the number of losses that add up: 2 for the symmetric method."""
        return 2 if self.config.moco.symmetric else 1

    @property
    def queue_steps(self) -> int:
        """Return the steps after which every key of the queue was encoded by the run."""
        return math.ceil(self.config.moco.queue_size / (self.config.optim.global_batch * self.directions))

    @property
    def total_steps(self) -> int | None:
        """Return the length of the run."""
        optim = self.config.optim
        return optim.steps or (optim.epochs * (self.images // optim.global_batch) if self.images else None)

    @property
    def paper_lr(self) -> float:
        """Return 0.03 for a batch of 256, scaled linearly (He et al. 2020, section 4; Goyal et al. 2017)."""
        return 0.03 * self.config.optim.global_batch / 256

    @property
    def lower_lr(self) -> float:
        """Return the paper's learning rate where the config's is far above it, else a third of it."""
        lr = self.config.optim.lr
        return rounded(self.paper_lr if lr > 4 * self.paper_lr else lr / 3)


@dataclass
class Window:
    """A window is a number of neighbouring training rows, with the means of their figures."""

    first: Row = field(default_factory=dict)
    last: Row = field(default_factory=dict)
    rows: int = 0
    steps_taken: int = 0
    """Steps since the row before the first, to the last."""
    seconds: float = 0.0
    """Time that these steps took."""
    slowest: Counter[int] = field(default_factory=Counter)
    """Rows by the rank that was the slowest."""
    _sums: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def push(self, row: Row, steps: int, seconds: float, figures: tuple[str, ...] = FIGURES) -> None:
        """Add a row, the last of so many steps that took so long; a figure that is no number is left out."""
        if not self.rows:
            self.first = row
        self.last = row
        self.rows += 1
        self.steps_taken += steps
        self.seconds += seconds
        if "slowest_rank" in row:
            self.slowest[row["slowest_rank"]] += 1
        sums, counts = self._sums, self._counts
        for name in figures:
            value: Any = row.get(name)
            if type(value) in NUMBERS:
                if name in sums:
                    sums[name] += value
                    counts[name] += 1
                else:
                    sums[name], counts[name] = value, 1

    def mean(self, name: str) -> float:
        """Return the mean of a figure; NaN where no row has it, so that no comparison holds."""
        return self._sums[name] / self._counts[name] if name in self._counts else math.nan

    def has(self, *names: str) -> bool:
        """Return whether every figure is in some row."""
        return all(name in self._counts for name in names)

    @property
    def first_step(self) -> int:
        """Return the step of the first row."""
        return int(self.first["step"])

    @property
    def last_step(self) -> int:
        """Return the step of the last row."""
        return int(self.last["step"])

    @property
    def steps(self) -> str:
        """Name the steps of the window for people."""
        return f"steps {self.first_step} to {self.last_step}"

    @property
    def is_full(self) -> bool:
        """Return whether there are enough rows to judge by."""
        return self.rows >= ROWS or (self.rows >= FEW_ROWS and self.last_step - self.first_step >= STEPS)


@dataclass
class Course:
    """The course keeps what a run's rows have told so far, in a fixed amount of memory."""

    facts: Facts
    last: Row = field(default_factory=dict)
    """The last row of training or of an evaluation."""
    row: Row = field(default_factory=dict)
    """The last training row."""
    rows: int = 0
    """Training rows so far."""
    first_window: Window = field(default_factory=Window)
    window: Window = field(default_factory=Window)
    """The last window of rows that is full."""
    minute: Window = field(default_factory=Window)
    """The last window that lasted long enough to judge speed by."""
    evaluation: Row = field(default_factory=dict)
    """The last evaluation."""
    first_evaluation: Row = field(default_factory=dict)
    best_evaluation: Row = field(default_factory=dict)
    """The evaluation with the highest accuracy of kNN."""
    best_share: float = math.inf
    """The least loss of a settled window before the last one, as a share of the loss at chance."""

    def remember_window(self) -> None:
        """Keep of the window that has been judged what later ones are compared with."""
        if not self.first_window.rows:
            self.first_window = self.window
        if self.is_settled and self.window.has("loss_at_chance"):
            self.best_share = min(self.best_share, self.chance_share())

    def remember_evaluation(self, row: Row) -> None:
        """Take an evaluation, and keep the first and the best one."""
        self.evaluation = self.last = row
        self.first_evaluation = self.first_evaluation or row
        if not self.best_evaluation or row["knn_top1"] > self.best_evaluation["knn_top1"]:
            self.best_evaluation = row

    @property
    def step(self) -> int:
        """Return the step of the last row, 0 ahead of the first."""
        return int(self.last.get("step", 0))

    @property
    def is_settled(self) -> bool:
        """Return whether the window lies behind the normal phases of a beginning.

        The queue is filled with real keys, the first epoch and the warm-up of the learning rate are over.
        """
        config, first = self.facts.config, self.window.first
        epochs = max(1.0, config.optim.warmup_epochs)
        return int(first.get("epoch", 0)) >= epochs and self.window.first_step > 2 * self.facts.queue_steps

    @property
    def lr_share(self) -> float:
        """Return the learning rate in the window as a share of the config's: small at the end of a run."""
        return self.window.mean("lr") / self.facts.config.optim.lr

    def chance_share(self) -> float:
        """Return the loss in the window as a share of what an encoder gets that sees nothing."""
        chance = self.window.mean("loss_at_chance")
        return self.window.mean("loss") / chance if chance > 0 else math.nan
