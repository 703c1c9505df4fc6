"""Show how runs stand: state, step, speed, loss, kNN, time left.

With --json a list of objects, one a run, of these keys; what is not known is null:

  run                      what to call it on the command line
  run_dir                  its directory
  job, executor            SLURM's job id and "slurm", or the process id of the controller and "local"
  state, reason            pending, running, requeued, done, stopped, cancelled, user_error, diverged, crashed,
                           "time limit", lost, unknown (neither SLURM nor the run directory tells) or unreadable; and
                           why
  confirmed                whether SLURM has confirmed the state, where it had to; else the table shows a ? behind it,
                           and the state is what the run directory says
  live, ended              whether it waits or runs; whether it is over; both false where nobody could tell
  step, total_steps        the last step that is known of, and how many there will be
  saved_step               the step in status.json
  epoch                    counted from 0
  images_per_second, loss  of the last training rows
  knn_top1                 of the last evaluation, 0 to 1
  starts, restarts         of all the jobs of the run; restarts is one less
  seconds_left             for the steps that remain, at this speed; null unless it runs
  allocation_seconds_left  until the job's time limit, by SLURM
  slurm_state, slurm_reason  SLURM's own words for the job
  nodes                    where it runs, or has run last
  sweep                    folder of the sweep that it is a member of
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher import slurm
from launcher.options import path_of
from launcher.views import find, runs
from launcher.views.table import as_table, show

_ANSWER_SECONDS = 1.0
"""How long SLURM may take, so that the whole command answers within two seconds, unless the user is more patient."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    text = "runs, folders of them, or ids of jobs and arrays; without any, those in runs/ and those of your live jobs"
    parser.add_argument("places", type=path_of("RUN"), nargs="*", metavar="RUN", help=text)
    text = "show it again every so many seconds (5), until Ctrl-C"
    parser.add_argument("--watch", nargs="?", const="5", metavar="SECONDS", help=text)
    parser.add_argument("--json", action="store_true", help="a list of objects, with the keys above")


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    places, every = [Path(place) for place in options.places], options.watch
    if every is not None and not re.fullmatch(r"\d+(\.\d+)?", every):  # `--watch runs/a`: what follows is a place
        places, every = [Path(path_of("RUN")(every)), *places], "5"
    places = [
        folder
        for place in places
        for folder in ([place] if os.path.lexists(place) else [run.run_dir for run in find.runs([str(place)])])
    ]
    if every is None:
        _once(places, options.json, slurm.patience_seconds(_ANSWER_SECONDS))
        return 0
    try:
        _again_and_again(places, options.json, max(0.2, float(every)))
    except KeyboardInterrupt:
        return 0
    return 0


def _once(places: Sequence[Path], as_json: bool, answer_seconds: float) -> None:
    """Print all runs."""
    shown, slurm_error = runs.survey(places, answer_seconds)
    if shown or as_json:
        show(shown, as_json=as_json)
    else:
        print(f"no runs in {', '.join(map(str, places)) or 'runs/, and none of your jobs in the queue is one'}")
    if slurm_error:
        print(f"launcher: {slurm_error}; this is what the run directories know", file=sys.stderr, flush=True)


def _again_and_again(places: Sequence[Path], as_json: bool, seconds: float) -> None:
    """Show all runs until Ctrl-C; on a terminal in place."""
    answer_seconds = slurm.patience_seconds(max(_ANSWER_SECONDS, seconds))
    if as_json or not sys.stdout.isatty():
        while True:
            _once(places, as_json, answer_seconds)
            time.sleep(seconds)
    from rich.console import Console  # it takes a while to import
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            shown, slurm_error = runs.survey(places, answer_seconds)
            live.update(as_table(shown, f"{time.strftime('%H:%M:%S')} {slurm_error}"), refresh=True)
            time.sleep(seconds)
