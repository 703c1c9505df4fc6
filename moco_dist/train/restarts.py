"""Starts of torchrun's own: a run that has ended for good is not begun again."""

import contextlib
import os
from pathlib import Path

from moco_dist import files
from moco_dist.errors import OwnMistake, UserError, tell
from moco_dist.ranks.rank import Rank
from moco_dist.run import status
from moco_dist.run.directory import RunDirectory


def ended_already(run_dir: Path | None) -> int:
    """Return the exit status of a run that torchrun starts again by itself though that would not help, else 0.

    The note is this torchrun's own, and there before the run directory is known; status.json may tell of an earlier
    one, and is asked where there is no place for notes.
    """
    if note := _note():
        return int(note.read_text()) if note.exists() else 0
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    state = status.read(run_dir).state if run_dir else None
    return status.EXIT_CODES[state] if again and state in status.FINAL else 0


def end_for_good(rank: Rank, code: int, *, alone: bool = False) -> int:
    """Write the note that this run has ended for good, which `ended_already` reads. Returns the exit status.

    Args:
        rank: this process.
        code: the exit status.
        alone: whether the other ranks end otherwise; else the first of a node writes for all.
    """
    if (alone or rank.local_rank == 0) and (note := _note()):
        with contextlib.suppress(OSError):
            files.write_text(note, str(code))
    return code


def refuse(rank: Rank, run_dir: RunDirectory | None, error: UserError, *, met: bool = False) -> int:
    """Tell a mistake of the user's in one line, and note it in the run directory.

    Args:
        rank: this process.
        run_dir: the run directory, where the config names one.
        error: the mistake.
        met: whether the ranks have met; before, the mistake may be one node's.

    Returns:
        The exit status.
    """
    speaks, alone = rank.speaks(met=met), False
    code = status.EXIT_CODES["user_error"]
    if not speaks:
        end_for_good(rank, code)
        rank.let_rank_0_end_first()
        alone = isinstance(error, OwnMistake) and (not met or (run_dir is not None and run_dir.is_running))
    if speaks or alone:
        if run_dir:
            run_dir.refused(str(error))
        tell(f"moco_dist.train: {error}")
    return end_for_good(rank, code, alone=alone)


def _note() -> Path | None:
    """Return the path of the note, in the folder that torchrun makes for itself on a node and keeps over restarts."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # FOLDER/attempt_<n>/<local rank>/error.json
    return Path(error_file).parents[2] / "moco_dist_exit_status" if error_file else None
