"""Follow a job to its end, over all its starts, and exit as it did: `submit --wait`."""

from __future__ import annotations

import sys
import time

from launcher.record import Launch
from launcher.views import runs
from launcher.views.runs import Run
from launcher.views.verdict import FOR_GOOD
from moco_dist.run import status

_LOOK_SECONDS = 1.0
_PRINT_SECONDS = 30.0
_SURE_SECONDS = 8.0
"""How long an end must last: a job whose node died is ended for SLURM before it is requeued."""


def follow(launch: Launch) -> int:
    """Print how the run goes, until it has ended for good.

    Returns:
        0 done, 2 a mistake of the user's, 75 stopped with its state saved, 1 anything else: by status.json.
    """
    printed, printed_at, ended_at = "", 0.0, None
    try:
        while True:
            [run] = runs.look([launch])
            now = time.monotonic()
            news = f"{run.state} {max(run.starts, 1)} {run.reason if run.state != 'running' else ''}"
            if news != printed or (run.live and now - printed_at > _PRINT_SECONDS):
                print(line(run), file=sys.stderr, flush=True)
                printed, printed_at = news, now
            ended_at = (ended_at or now) if run.ended else None
            if run.state == "unreadable":
                return 1
            if ended_at and (run.state in FOR_GOOD or now - ended_at > _SURE_SECONDS):
                return exit_status(launch)
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        print(f"the job goes on; look again with: python -m launcher status {launch.run_dir}", file=sys.stderr)
        return 130


def line(run: Run) -> str:
    """Write in a line how a run stands."""
    figures = run.figures
    speed = figures.images_per_second if run.state == "running" else None
    parts = [f"step {run.step}" + (f"/{figures.total_steps}" if figures.total_steps else "")]
    parts += [f"loss {figures.loss:.4g}"] if figures.loss is not None else []
    parts += [f"kNN {100 * figures.knn_top1:.2f} %"] if figures.knn_top1 is not None else []
    parts += [f"{speed:.3g} images/s"] if speed else []
    parts += [f"restarts {run.starts - 1}"] if run.starts > 1 else []
    why = f": {run.reason}" if run.reason and run.reason != "None" else ""
    return f"{time.strftime('%H:%M:%S')} {run.name} {run.state}, {', '.join(parts)}{why}"


def exit_status(launch: Launch) -> int:
    """Return the exit status that status.json stands for; 1 for a run that died, whose status still says `running`."""
    state = launch.status().state
    return status.EXIT_CODES[state] if state in ("done", "user_error", "stopped") else 1
