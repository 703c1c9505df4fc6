"""Starts of torchrun's own: a run that has ended for good is not begun again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from moco_dist import files
from moco_dist.errors import UserError
from moco_dist.ranks.rank import Rank
from moco_dist.run import status
from moco_dist.run.directory import RunDirectory


def ended_already(run_dir: Path | None) -> int:
    """Exit status of a run that torchrun starts again by itself though that would not help, else 0.

    The note is this torchrun's own, and there before the run directory is known; status.json may tell of an earlier
    one, and is asked where there is no place for notes.
    """
    if note := _note():
        return int(note.read_text()) if note.exists() else 0
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    state = status.read(run_dir).state if run_dir else None
    return status.EXIT_CODES[state] if again and state in status.FINAL else 0


def end_for_good(rank: Rank, code: int) -> int:
    """Leave a note for `ended_already`, once told: whoever reads it ends without a word. Returns the exit status."""
    if rank.local_rank == 0 and (note := _note()):
        with contextlib.suppress(OSError):
            files.write_text(note, str(code))
    return code


def refuse(rank: Rank, run_dir: RunDirectory | None, error: UserError) -> int:
    """Tell a mistake of the user's in one line, and note it in the run directory. Returns the exit status."""
    if run_dir:
        run_dir.refused(str(error))
    rank.tell(f"moco_dist.train: {error}")
    code = end_for_good(rank, status.EXIT_CODES["user_error"])
    rank.let_rank_0_end_first()
    return code


def _note() -> Path | None:
    """A file in the folder that torchrun makes for itself on this node, and keeps over its restarts."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/attempt_<n>/<local rank>/error.json
    return Path(error_file).parents[2] / "moco_dist_exit_status" if error_file else None
