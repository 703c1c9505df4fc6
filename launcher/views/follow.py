"""Follow runs to their ends, for --wait."""

import sys
import time
from collections import Counter
from collections.abc import Sequence

from launcher import slurm_jobs
from launcher.record import Launch
from launcher.views import runs
from launcher.views.ends import Ends
from moco_dist.run import status

_LOOK_SECONDS = 1.0
_PRINT_SECONDS = 30.0
_WORST = (0, status.EXIT_CODES["stopped"], status.EXIT_CODES["user_error"], 1)
"""Exit statuses, the worst one last."""


def follow(launches: Sequence[Launch]) -> int:
    """Print how runs go, until all have ended for good.

    Returns:
        The worst of theirs: 0 done, 75 stopped with its state saved, 2 a mistake of the user's, 1 anything else.
    """
    followed = {launch: _Followed() for launch in launches}
    printed_at = time.monotonic()
    try:
        while open_ones := [launch for launch, one in followed.items() if one.exit_status is None]:
            open_runs = runs.look(open_ones)
            for run in open_runs:
                followed[run.launch].look(run, alone=len(launches) == 1)
            if len(launches) > 1 and time.monotonic() - printed_at > _PRINT_SECONDS:
                _print_summary(open_runs, len(launches))
                printed_at = time.monotonic()
            if any(one.exit_status is None for one in followed.values()):
                time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        [place, *_] = [launch.run_dir if len(launches) == 1 else launch.run_dir.parent for launch in launches]
        print(f"what was sent goes on; look again with: python -m launcher status {place}", file=sys.stderr)
        return 130
    return max((one.exit_status or 0 for one in followed.values()), key=_WORST.index, default=0)


class _Followed:
    """This run is followed, and has been printed as it stood last."""

    def __init__(self) -> None:
        self.exit_status: int | None = None
        """The exit status once the run has ended for good; None before that."""
        self._news, self._printed_at = "", 0.0
        self._ends = Ends()

    def look(self, run: runs.Run, *, alone: bool) -> None:
        """Print a run that stands otherwise than before, or that is followed alone for a while; note its end."""
        now = time.monotonic()
        why = run.why if run.shown_state != "running" else ""
        news = f"{run.shown_state} {max(run.evidence.starts, 1)} {why}"
        if news != self._news or (alone and run.live and now - self._printed_at > _PRINT_SECONDS):
            print(_line(run), file=sys.stderr, flush=True)
            self._news, self._printed_at = news, now
        if run.state == "unreadable":
            self.exit_status = 1
        elif self._ends.is_sure(run):
            self.exit_status = _exit_status(run)
        elif run.waits and run.reason == slurm_jobs.NEVER:
            print(f"{run.name} can never start: what it waits for has failed", file=sys.stderr)
            self.exit_status = 1


def _print_summary(open_ones: Sequence[runs.Run], count: int) -> None:
    """Print how many of several runs stand how."""
    states = Counter(run.shown_state for run in open_ones)
    ended = count - len(open_ones)
    parts = [f"{number} {state}" for state, number in states.most_common()] + [f"{ended} ended"] * bool(ended)
    print(f"{time.strftime('%H:%M:%S')} of {count} runs: {', '.join(parts)}", file=sys.stderr, flush=True)


def _line(run: runs.Run) -> str:
    """Write in a line how a run stands."""
    figures = run.figures
    speed = figures.images_per_second if run.state == "running" else None
    parts = [f"step {run.step}" + (f"/{figures.total_steps}" if figures.total_steps else "")]
    parts += [f"loss {figures.loss:.4g}"] if figures.loss is not None else []
    parts += [f"kNN {100 * figures.knn_top1:.2f} %"] if figures.knn_top1 is not None else []
    parts += [f"{speed:.3g} images/s"] if speed else []
    parts += [f"restarts {run.evidence.starts - 1}"] if run.evidence.starts > 1 else []
    why = f": {run.why}" if run.why else ""
    return f"{time.strftime('%H:%M:%S')} {run.name} {run.shown_state}, {', '.join(parts)}{why}"


def _exit_status(run: runs.Run) -> int:
    """Return the exit status of a run that has ended; 1 for one that died, whose status still says `running`.

    A status that is older than the job says nothing about it.
    """
    state = "done" if run.state == "done" else run.trainer_state
    return status.EXIT_CODES[state] if state in ("done", "user_error", "stopped") else 1  # type: ignore[index]
