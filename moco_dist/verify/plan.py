"""Choose which recorded steps of a run are replayed, and from which checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moco_dist.errors import UserError
from moco_dist.run.checkpoints import CheckpointIndex
from moco_dist.run.paths import RunPaths
from moco_dist.run.rows import Row, is_evaluation, is_training, read_rows

STEPS = 50
"""The number of steps that are replayed where the command line gives none."""
_TO_CHECKPOINT = 4 * STEPS
"""Within so many, the replay goes on to a later checkpoint, whose state says more than any loss."""


@dataclass(frozen=True)
class Plan:
    """A plan says which steps are replayed, and what is compared."""

    folder: Path
    """The run directory, which is only read."""
    start: int
    """Steps done before the replay: those of its checkpoint, or 0."""
    end: int
    """The last step that is replayed."""
    last: int
    """The last step that has a row of training."""
    rows: Mapping[int, Sequence[Row]]
    """The recorded rows of training by step; a run writes one for a step."""
    evaluations: Mapping[int, Sequence[Row]]
    """The recorded rows of evaluations by step."""
    later: Sequence[int]
    """The steps of later checkpoints whose states are compared."""

    @property
    def steps(self) -> str:
        """Return the steps in words."""
        first = self.start + 1
        return f"step {first}" if first == self.end else f"steps {first} to {self.end}"

    @property
    def checkpoints(self) -> CheckpointIndex:
        """Return the index of the run's checkpoints; `latest` of it is not called, since that may rename a file."""
        return CheckpointIndex(RunPaths(self.folder).checkpoints)


def choose(folder: Path, steps: int | None, from_step: int | None) -> Plan:
    """Choose what is replayed.

    Args:
        folder: run directory.
        steps: how many steps; None: as many as make sense.
        from_step: step of a checkpoint, or 0; None: the last one that has so many recorded steps after it.

    Raises:
        UserError: there is no row, or no checkpoint from before the rows.
    """
    run = RunPaths(folder)
    try:
        rows = list(read_rows(run.metrics))
    except OSError as error:
        rule = f"{run.metrics.name}: {error.strerror or error}"
        raise UserError.of("RUN_DIR", folder, rule, "give the directory of a run that has begun") from None
    recorded = sorted({int(row["step"]) for row in rows if is_training(row)})
    if not recorded:
        raise UserError.of("RUN_DIR", folder, "holds no row of a training step yet", "wait for its first one")
    kept = CheckpointIndex(run.checkpoints).steps()
    # Where another program took the first steps, the run does not begin from its config.
    begun = [] if run.converted.exists() else [0]
    places = [step for step in (*begun, *kept) if step < recorded[-1]]
    if not places:
        rule = "keeps no checkpoint that has a row of training after it"
        raise UserError.of("RUN_DIR", folder, rule, "go on with it, and verify what comes")
    start = _start(places, recorded[-1], steps or STEPS) if from_step is None else from_step
    _check_start(start, places, kept, recorded[-1])
    following = [step for step in kept if start < step <= recorded[-1]]
    if steps is None:
        steps = max((step - start for step in following if step - start <= _TO_CHECKPOINT), default=STEPS)
    first_row = next(step for step in recorded if step > start)
    end = min(max(start + steps, first_row), recorded[-1])
    within = [row for row in rows if start < row["step"] <= end]
    return Plan(
        folder,
        start,
        end,
        recorded[-1],
        _by_step([row for row in within if is_training(row)]),
        _by_step([row for row in within if is_evaluation(row)]),
        [step for step in following if step <= end],
    )


def _start(places: Sequence[int], last: int, steps: int) -> int:
    """Return the last checkpoint with so many recorded steps after it, else the first; of a short run, its start."""
    chosen = [step for step in places if step or last <= steps]
    return max((step for step in chosen if last - step >= steps), default=min(chosen, default=0))


def _check_start(start: int, places: Sequence[int], kept: Sequence[int], last: int) -> None:
    """Refuse a start without a checkpoint, or without recorded steps after it. Raises UserError."""
    choices = ", ".join(map(str, places))
    if start not in (*places, *kept):
        raise UserError.of("--from", start, "the run keeps no checkpoint of this step", f"use one of {choices}")
    if start >= last:
        raise UserError.of("--from", start, f"the last recorded step is {last}", f"use one of {choices}")


def _by_step(rows: Sequence[Row]) -> dict[int, list[Row]]:
    steps: dict[int, list[Row]] = {}
    for row in rows:
        steps.setdefault(int(row["step"]), []).append(row)
    return steps
