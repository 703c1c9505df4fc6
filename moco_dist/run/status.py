"""`status.json` says how a run stands: to launchers, to scripts and to later starts of the same run."""

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from moco_dist.errors import masked
from moco_dist.files import read_text, write_text
from moco_dist.run.paths import RunPaths

State = Literal["running", "done", "stopped", "user_error", "diverged", "crashed"]

EXIT_CODES: dict[State, int] = {"done": 0, "user_error": 2, "stopped": 75, "diverged": 1, "crashed": 1}
"""The exit status of a process that ends a run in this state."""

FINAL: frozenset[State] = frozenset({"stopped", "user_error", "diverged"})
"""States of a run that a restart of torchrun's own would not help."""


@dataclass(frozen=True)
class Status:
    """The state of a run; `state` is None where nothing is written, or nothing that can be read."""

    state: State | None = None
    step: int = 0
    """Steps that are saved, or done at the end."""
    reason: str = ""
    """Why the run ended, in one line; empty while it runs and when it is done."""
    total_steps: int | None = None
    """Length of the run; None until the trainer knows it."""
    epoch_steps: int | None = None
    """Steps of an epoch; None until the trainer knows them."""


def write(run_dir: Path, state: State, step: int, reason: str = "", **lengths: int | None) -> None:
    """Replace the run's status; a full or read-only disk leaves the old one.

    Args:
        run_dir: run directory.
        state: of the run.
        step: steps that are saved, or done at the end.
        reason: why the run ended.
        lengths: `total_steps` and `epoch_steps`; what is not given stays as the old status has it.
    """
    status = replace(read(run_dir), state=state, step=step, reason=masked(reason), **lengths)
    with contextlib.suppress(OSError):
        write_text(RunPaths(run_dir).status, json.dumps(asdict(status)) + "\n")


def read(run_dir: Path) -> Status:
    """Read the status of a run; it is empty where there is none to read."""
    try:
        content = json.loads(read_text(RunPaths(run_dir).status))
        if content["state"] not in get_args(State):
            return Status()
        lengths = (_length(content.get(name)) for name in ("total_steps", "epoch_steps"))
        return Status(content["state"], _length(content["step"]) or 0, str(content["reason"]), *lengths)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return Status()


def _length(value: Any) -> int | None:
    """Return a number of steps, or None for what is none: a status of an earlier revision, or a damaged one."""
    return value if type(value) is int and 0 < value < 2**53 else None
