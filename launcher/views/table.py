"""Show how runs stand: state, step, speed, loss, kNN, time left.

With --json a list of objects, one a run, of these keys; what is not known is null:

  run                      what to call it on the command line
  run_dir                  its directory
  job, executor            SLURM's job id and "slurm", or the process id of the controller and "local"
  state, reason            pending, running, requeued, done, stopped, cancelled, user_error, diverged, crashed,
                           "time limit", lost, unknown (SLURM does not answer) or unreadable; and why
  live, ended              whether it waits or runs; whether it is over; both false where nobody could tell
  step, total_steps        the last step known of, and how many there will be
  saved_step               the step in status.json
  epoch                    counted from 0
  images_per_second, loss  of the last training rows
  knn_top1                 of the last evaluation, 0 to 1
  starts, restarts         of all the jobs of the run; restarts is one less
  seconds_left             for the steps that remain, at this speed; null unless it runs
  allocation_seconds_left  until the job's time limit, by SLURM
  slurm_state, slurm_reason, nodes   SLURM's own words for the job
  sweep                    folder of the sweep that it is a member of
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher.views import runs
from launcher.views.runs import Run

_ANSWER_SECONDS = 1.0
"""What SLURM may take, so that the whole command answers within two seconds."""
_STYLES = {
    "running": "green",
    "done": "bold green",
    "pending": "cyan",
    "requeued": "cyan",
    "stopped": "yellow",
    "cancelled": "yellow",
    "unknown": "dim",
}
_COLUMNS = ("run", "job", "state", "step", "epoch", "images/s", "loss", "kNN", "restarts", "time left", "reason")
_NUMBERS = _COLUMNS[3:-1]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "places",
        nargs="*",
        metavar="RUN",
        help="runs, or folders of them; without any, those in runs/ and those of your live jobs",
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        const="5",
        metavar="SECONDS",
        help="show it again every so many seconds (5), until Ctrl-C",
    )
    parser.add_argument("--json", action="store_true", help="a list of objects, with the keys above")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    places, every = [Path(place) for place in options.places], options.watch
    if every is not None and not re.fullmatch(r"\d+(\.\d+)?", every):  # `--watch runs/a`: what follows is a place
        places, every = [Path(every), *places], "5"
    places = [place if os.path.lexists(place) else runs.find(str(place)).run_dir for place in places]
    if every is None:
        _once(places, options.json, _ANSWER_SECONDS)
        return 0
    try:
        _again_and_again(places, options.json, max(0.2, float(every)))
    except KeyboardInterrupt:
        return 0
    return 0


def _once(places: Sequence[Path], as_json: bool, answer_seconds: float) -> None:
    """Print all runs."""
    found, silence = runs.survey(places, answer_seconds)
    if as_json:
        print(json.dumps([row(run) for run in found], indent=1, allow_nan=False), flush=True)
    elif found:
        print_table(table(found))
    else:
        print(f"no runs in {', '.join(map(str, places)) or 'runs/, and none of your jobs in the queue is one'}")
    if silence:
        print(f"launcher: {silence}; this is what the run directories know", file=sys.stderr, flush=True)


def _again_and_again(places: Sequence[Path], as_json: bool, seconds: float) -> None:
    """Show all runs until Ctrl-C; on a terminal in place."""
    answer_seconds = max(_ANSWER_SECONDS, seconds)
    if as_json or not sys.stdout.isatty():
        while True:
            _once(places, as_json, answer_seconds)
            time.sleep(seconds)
    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            found, silence = runs.survey(places, answer_seconds)
            shown = table(found)
            shown.caption = _plain(f"{time.strftime('%H:%M:%S')} {silence}")
            live.update(shown, refresh=True)
            time.sleep(seconds)


def row(run: Run) -> dict[str, Any]:
    """A run as plain data; the keys are told at the top."""
    sent, job, known = run.submission, run.job, run.figures
    return {
        "run": run.name,
        "run_dir": str(run.launch.run_dir),
        "job": sent.job if sent else None,
        "executor": sent.executor if sent else None,
        "state": run.state,
        "reason": run.reason,
        "live": run.live,
        "ended": run.ended,
        "step": run.step,
        "total_steps": known.total_steps,
        "saved_step": run.saved_step,
        "epoch": known.epoch,
        "images_per_second": known.images_per_second,
        "loss": known.loss,
        "knn_top1": known.knn_top1,
        "starts": run.starts,
        "restarts": max(0, run.starts - 1),
        "seconds_left": known.seconds_left if run.state == "running" else None,
        "allocation_seconds_left": _seconds(job.time_left) if job and run.state == "running" else None,
        "slurm_state": job.state if job else None,
        "slurm_reason": job.reason if job else None,
        "nodes": job.nodes if job else None,
        "sweep": sent.sweep if sent else None,
    }


def table(found: Sequence[Run]) -> Table:
    """The runs for people. A column that nobody fills is left out."""
    rows = [_cells(run) for run in found]
    filled = [name for name in _COLUMNS if name in ("run", "state") or any(cells[name] for cells in rows)]
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in filled:
        shown.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=name in _COLUMNS[1:-1])
    for cells in rows:
        style = _STYLES.get(cells["state"], "red")
        shown.add_row(*(_plain(cells[name], style if name == "state" else "") for name in filled))
    return shown


def _cells(run: Run) -> dict[str, str]:
    known = run.figures
    of = f"/{known.total_steps}" if known.total_steps else "/-"
    cells = {
        "run": run.name,
        "job": run.submission.job if run.submission else "",
        "state": run.state,
        "step": f"{run.step}{of}" if run.step else "",
        "epoch": "" if known.epoch is None else str(known.epoch),
        "images/s": _figure(known.images_per_second, ".0f" if (known.images_per_second or 0) >= 100 else ".3g"),
        "loss": _figure(known.loss, ".4g"),
        "kNN": _figure(None if known.knn_top1 is None else 100 * known.knn_top1, ".2f", " %"),
        "restarts": str(run.starts - 1) if run.starts > 1 else "",
        "time left": "",
        "reason": run.reason,
    }
    if run.state == "running" and known.seconds_left is not None:
        cells["time left"] = _duration(known.seconds_left)
    return cells


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _duration(seconds: float) -> str:
    """A time that a person can read: 42s, 12m, 3h05m, 2d04h."""
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)}s"
    if minutes < 60:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def _seconds(text: str) -> int | None:
    """A time of SLURM's, [D-][[H:]M:]S; None for UNLIMITED and its like."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return None
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds + 86400 * int(days or 0)


def print_table(shown: Table) -> None:
    """To a terminal as wide as it is; else plain, a line a run however long."""
    if sys.stdout.isatty():
        Console().print(shown)
        return
    wide = Console(width=10_000, no_color=True, force_terminal=False, legacy_windows=False)
    with wide.capture() as text:
        wide.print(shown)
    print("\n".join(line.rstrip() for line in text.get().splitlines()), flush=True)


def _plain(text: str, style: str = "") -> Text:
    """Text without control characters: names and reasons are data."""
    return Text("".join(c if c.isprintable() else "?" for c in text), style=style)
