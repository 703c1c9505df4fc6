"""Follow a job to its end, over all its starts: what `submit --wait` does."""

from __future__ import annotations

import sys
import time

from launcher.record import Launch
from launcher.views import runs
from launcher.views.runs import Run
from moco_dist.run import status

_LOOK_SECONDS = 1.0
_TELL_SECONDS = 30.0
_SURE_SECONDS = 8.0
"""For how long an end must stand: a job whose node died is ended for SLURM before it is requeued."""


def follow(launch: Launch) -> int:
    """Print how the run goes, until it has ended for good.

    Returns:
        0 done, 2 a mistake of the user's, 75 stopped with its state saved, 1 anything else: by status.json.
    """
    told, told_at, ended_at = "", 0.0, None
    try:
        while True:
            run = runs.look([launch])[0]
            now = time.monotonic()
            news = f"{run.state} {max(run.starts, 1)} {run.reason if run.state != 'running' else ''}"
            if news != told or (run.live and now - told_at > _TELL_SECONDS):
                print(line(run), file=sys.stderr, flush=True)
                told, told_at = news, now
            ended_at = (ended_at or now) if run.ended else None
            if run.state == "unreadable":
                return 1
            if ended_at and (run.state in ("done", "user_error", "diverged") or now - ended_at > _SURE_SECONDS):
                return exit_status(launch)
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        print(f"the job goes on; look again with: python -m launcher status {launch.run_dir}", file=sys.stderr)
        return 130


def line(run: Run) -> str:
    """A run in a line."""
    known = run.figures
    parts = [f"step {run.step}" + (f"/{known.total_steps}" if known.total_steps else "")]
    parts += [f"loss {known.loss:.4g}"] if known.loss is not None else []
    parts += [f"kNN {100 * known.knn_top1:.2f} %"] if known.knn_top1 is not None else []
    parts += [f"{known.images_per_second:.3g} images/s"] if known.images_per_second and run.state == "running" else []
    parts += [f"restarts {run.starts - 1}"] if run.starts > 1 else []
    why = f": {run.reason}" if run.reason and run.reason != "None" else ""
    return f"{time.strftime('%H:%M:%S')} {run.name} {run.state}, {', '.join(parts)}{why}"


def exit_status(launch: Launch) -> int:
    """What status.json says, as an exit status; a run that only died says that it runs."""
    state, _, _ = status.read(launch.run_dir)
    return status.EXIT_CODES[state] if state in ("done", "user_error", "stopped") else 1
