"""Take recorded steps again by the trainer's own loop, and compare what comes out instead of writing it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco_dist import config as configs
from moco_dist.engine.checkpoint import Checkpoints
from moco_dist.errors import UserError
from moco_dist.run import provenance, status
from moco_dist.run.checkpoints import CheckpointIndex, Damaged, verify
from moco_dist.run.comparison import Comparison
from moco_dist.run.rows import Row
from moco_dist.tracking import Silent
from moco_dist.train import ends
from moco_dist.verify.plan import Plan

_NOT_COMPARED = {"config"}
"""Keys of a state that a replay has otherwise: its directory, and what the command line overrides."""
_HOW = {"fused", "foreach"}
"""Options in a state that say how its optimizer computes, which must not show in a number."""


@dataclass
class StateComparison:
    """This says how the state after some steps compares with that of the run's checkpoint."""

    sha256: str = ""
    """Digest of the checkpoint's file."""
    compared: int = 0
    """Tensors and numbers that both have."""
    unequal: dict[str, float | None] = field(default_factory=dict)
    """Names of those that are not equal, with the largest difference of a tensor of one shape; else None."""
    problem: str = ""
    """Why the checkpoint could not be read."""
    gone: bool = False
    """True where the run has removed the checkpoint meanwhile, as it does with old ones."""

    @property
    def equal(self) -> bool:
        """Return whether nothing differs; a checkpoint that is gone is no difference."""
        return not self.unequal and not self.problem


@dataclass
class Outcome:
    """An outcome is what a replay has shown; rank 0 has it."""

    training: Comparison = field(default_factory=Comparison)
    evaluations: Comparison = field(default_factory=Comparison)
    states: dict[int, StateComparison] = field(default_factory=dict)
    """The states of later checkpoints by step."""
    diverged: str = ""
    """Why the replay ended before its last step."""
    missing: list[int] = field(default_factory=list)
    """The steps whose rows the run has written and does not have any more, as far as that can be told."""


class Recorder(Silent):
    """A recorder takes the rows of the replay, and compares each with the recorded ones of its step."""

    def __init__(self, plan: Plan, outcome: Outcome) -> None:
        super().__init__()
        self._plan, self._outcome = plan, outcome

    def writes(self, step: int) -> bool:
        """Return whether the row of a step is compared, and so needs all its figures."""
        return step in self._plan.rows

    def log_step(self, row: Row) -> None:
        """Compare a training row."""
        for recorded in self._plan.rows.get(int(row["step"]), ()):
            self._outcome.training.push(recorded, row)

    def log_evaluation(self, row: Row) -> None:
        """Compare the row of an evaluation."""
        for recorded in self._plan.evaluations.get(int(row["step"]), ()):
            self._outcome.evaluations.push(recorded, row)


def missing(plan: Plan, written: ends.Due) -> list[int]:
    """Return the replayed steps that lack a row which the run's last start has written; it wrote them in their order.

    Its config is the recorded one. Earlier starts may have had another `track.log_every`.

    Args:
        plan: what is replayed.
        written: tells by the recorded config which rows are written.
    """
    starts = provenance.read(plan.folder)
    if not starts:  # nothing tells which steps the recorded config is of
        return []
    steps = range(max(plan.start, starts[-1]["step"]) + 1, plan.end + 1)
    is_over = status.read(plan.folder).state == "done"
    return [
        step
        for step in steps
        if (written.row(step) and step not in plan.rows)
        or (written.evaluation(step) and step not in plan.evaluations and (step < plan.last or is_over))
    ]


class ReplayDue(ends.Due):
    """A replay evaluates where the run has, and has its state compared where the run keeps a checkpoint."""

    def __init__(self, plan: Plan, config: configs.Config, epoch_steps: int, total: int) -> None:
        super().__init__(config, epoch_steps, total, evaluates=False)
        self._plan = plan

    def evaluation(self, done: int) -> bool:
        """Return whether the run has evaluated after so many steps."""
        return done in self._plan.evaluations

    def is_last(self, done: int) -> bool:
        """Return whether the evaluation was the last one of the start that made it, after which the run may go on."""
        start = provenance.of_step(provenance.read(self._plan.folder), done) or {}
        return bool(done == start.get("total_steps", self._total))

    def row(self, done: int) -> bool:
        """Return whether the run has a row of the step that makes so many, whose figures are computed then."""
        return done in self._plan.rows

    def milestone(self, done: int) -> bool:
        """Return False: a replay keeps nothing."""
        return False

    def save(self, done: int) -> bool:
        """Return whether the state is compared after so many steps, or the replay ends there."""
        return done in self._plan.later or done == self._plan.end

    def save_by_the_clock(self) -> bool:
        """Return False: a replay keeps nothing."""
        return False


class ReplayedCheckpoints(Checkpoints):
    """A replay begins from a state that was read before, and compares states where the run saved them.

    Args:
        plan: what is replayed.
        folder: one of the replay's own.
        state: that the replay begins from; empty at step 0.
        outcome: gets what the comparisons show.
        compares: whether this rank does.
    """

    def __init__(self, plan: Plan, folder: Path, state: dict[str, Any], outcome: Outcome, *, compares: bool) -> None:
        super().__init__(folder, keep=2, writes=False)
        self.index = _OneCheckpoint(folder, plan.start)
        self._plan, self._state, self._outcome, self._compares = plan, state, outcome, compares

    def load(self, step: int) -> dict[str, Any]:
        """Return the state that the replay begins from."""
        assert step == self._plan.start
        return self._state

    def save(self, step: int, state: dict[str, Any], before: Callable[[], object] = lambda: None) -> None:
        """Compare the state with that of the run's checkpoint, where it keeps one of this step."""
        if self._compares and step in self._plan.later:
            self._outcome.states[step] = compare_with(self._plan.checkpoints.path(step), state)


@dataclass(frozen=True)
class _OneCheckpoint(CheckpointIndex):
    """The index of a replay knows the checkpoint that it begins from, whose file is the run's."""

    start: int

    def steps(self) -> list[int]:
        return [self.start] if self.start else []

    def latest(self) -> int | None:
        return self.start or None


def read_start(plan: Plan) -> tuple[dict[str, Any], str]:
    """Read the state that the replay begins from, and the digest of its file; ({}, "") at step 0. Raises UserError."""
    if not plan.start:
        return {}, ""
    path = plan.checkpoints.path(plan.start)
    try:
        return _read(path)
    except FileNotFoundError:
        rule, fix = "the run has removed the checkpoint meanwhile", "run the command again"
    except (Damaged, OSError) as error:
        rule, fix = f"{path.name} cannot be read: {error}", "begin from another checkpoint, or from 0"
    raise UserError.of("--from", plan.start, rule, fix)


def compare_with(path: Path, state: Mapping[str, Any]) -> StateComparison:
    """Compare a state with that in a checkpoint of the run."""
    comparison = StateComparison()
    try:
        recorded, comparison.sha256 = _read(path)
    except FileNotFoundError:
        comparison.gone = True
        return comparison
    except (Damaged, OSError) as error:
        comparison.problem = str(error)
        return comparison
    for name in recorded.keys() & state.keys() - _NOT_COMPARED:
        _compare_(comparison, name, recorded[name], state[name])
    return comparison


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Read a checkpoint without changing it. Raises Damaged, OSError."""
    archive = verify(path)
    state: dict[str, Any] = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    return state, hashlib.sha256(archive).hexdigest()


def _compare_(comparison: StateComparison, name: str, one: Any, other: Any) -> None:
    """Compare two parts of states, and all that they hold."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in (one.keys() | other.keys()) - _HOW:
            _compare_(comparison, f"{name}.{key}", one.get(key), other.get(key))
        return
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, (ours, theirs) in enumerate(zip(one, other, strict=True)):
            _compare_(comparison, f"{name}.{number}", ours, theirs)
        return
    comparison.compared += 1
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        other = other.detach().cpu()
        if one.dtype != other.dtype or one.shape != other.shape:
            comparison.unequal[name] = None
        elif not torch.equal(one, other):
            comparison.unequal[name] = float((one.double() - other.double()).abs().max())
    elif one != other:
        comparison.unequal[name] = None
