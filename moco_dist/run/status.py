"""`status.json`: what became of a run, for launchers and scripts."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Literal

from moco_dist.files import write_text

State = Literal["running", "done", "stopped", "user_error", "diverged", "crashed"]

EXIT_CODES: dict[State, int] = {"done": 0, "user_error": 2, "stopped": 75, "diverged": 1, "crashed": 1}


def write(run_dir: Path, state: State, step: int, reason: str = "") -> None:
    """Replace the run's status; a full or read-only disk leaves the old one."""
    with contextlib.suppress(OSError):
        write_text(run_dir / "status.json", json.dumps({"state": state, "step": step, "reason": reason}) + "\n")


def read(run_dir: Path) -> tuple[State | None, int, str]:
    """State, step and reason of a run; no state where there is none to read."""
    try:
        status = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
        return status["state"], int(status["step"]), str(status["reason"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None, 0, ""
