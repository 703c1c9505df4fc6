"""Show how runs stand: state, step, what is saved, speed, loss, kNN, since when, time left. The newest come first.

A run is `starting` from the begin of a start until its first step. The column `time` says how long a run has waited or
run, and of an ended one how long its last start has run. With --hours, the GPU hours of each run and their sum.

With --json a list of objects, one a run, of these keys; what is not known is null:

  run                      what to call it on the command line
  run_dir                  its directory
  job, executor            SLURM's job id and "slurm", or the process id of the controller and "local"
  state, reason            pending, running, requeued, done, stopped, cancelled, user_error, diverged, crashed,
                           "time limit", lost, unknown (neither SLURM nor the run directory tells) or unreadable; and
                           why
  confirmed                whether SLURM has confirmed the state, where it had to; else the table shows a ? behind it,
                           and the state is what the run directory says
  starting, waits_for      whether it runs, but its last start has not come to its first step; and what it waits for
  live, ended              whether it waits or runs; whether it is over; both false where nobody could tell
  step, total_steps        the last step that is known of, and how many there will be
  saved_step               the step of the last checkpoint; 0 for none
  checkpoint_failures      checkpoints of its last start that were not saved
  epoch                    counted from 0
  images_per_second, loss  of the last training rows
  knn_top1                 of the last evaluation, 0 to 1
  starts, restarts         of all the jobs of the run; restarts is one less
  submitted                when it was sent last
  since                    when it was sent (pending), its last start began (running), or the last sign of life was seen
  seconds                  how long it has waited or run; of an ended run, how long its last start has run
  seconds_left             for the steps that remain, at this speed; null unless it runs
  allocation_seconds_left  until the job's time limit, by SLURM
  slurm_state, slurm_reason  SLURM's own words for the job
  nodes                    where it runs, or has run last
  sweep                    folder of the sweep that it is a member of

With --hours --json an object: gpu_hours, and runs, a list of objects with run, run_dir, state, hours, gpu_hours and
starts: job, begin, end, gpus, and by whom that is told: SLURM, or the run directory.
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
from launcher.views import choose, find, hours, layout, survey
from launcher.views.choose import Choice
from launcher.views.table import as_table, show
from moco_dist.errors import UserError

_ANSWER_SECONDS = 1.0
"""SLURM may take this long, so that the command answers within two seconds, unless the user is more patient."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    text = "runs, folders of them, or ids of jobs and arrays; without any, those in runs/ and those of your live jobs"
    parser.add_argument("places", type=path_of("RUN"), nargs="*", metavar="RUN", help=text)
    text = "show it again every so many seconds (5), until Ctrl-C"
    parser.add_argument("--watch", nargs="?", const="5", metavar="SECONDS", help=text)
    choose.add_options(parser)
    text = "GPU hours of each run and their sum; with --since, those since then"
    parser.add_argument("--hours", action="store_true", help=text)
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
    choice = choose.of_options(options)
    if every is None:
        _once(places, choice, options, slurm.patience_seconds(_ANSWER_SECONDS))
        return 0
    if options.hours:
        raise UserError("--watch: the GPU hours of --hours are shown once; leave out one of the two")
    try:
        _again_and_again(places, choice, options, max(0.2, float(every)))
    except KeyboardInterrupt:
        return 0
    return 0


def _once(places: Sequence[Path], choice: Choice, options: argparse.Namespace, answer_seconds: float) -> None:
    """Print the runs that are chosen."""
    seen, slurm_error = survey.survey(places, answer_seconds)
    runs = choose.chosen(seen, choice)
    if options.hours and (runs or options.json):
        slurm_error = hours.show(runs, choice.since, slurm.patience_seconds(), as_json=options.json) or slurm_error
    elif runs or options.json:
        show(runs, as_json=options.json)
    elif seen:
        print(f"none of the {len(seen)} runs is like that")
    else:
        where = ", ".join(map(str, places)) or "runs/, and none of your jobs in the queue is one"
        print(f"no runs that were submitted in {where}")
    if slurm_error:
        print(f"launcher: {slurm_error}; this is what the run directories know", file=sys.stderr, flush=True)


def _again_and_again(places: Sequence[Path], choice: Choice, options: argparse.Namespace, seconds: float) -> None:
    """Show the runs until Ctrl-C; on a terminal in place."""
    answer_seconds = slurm.patience_seconds(max(_ANSWER_SECONDS, seconds))
    if options.json or not sys.stdout.isatty():
        while True:
            _once(places, choice, options, answer_seconds)
            time.sleep(seconds)
    from rich.console import Console  # it takes a while to import
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            seen, slurm_error = survey.survey(places, answer_seconds)
            caption = f"{time.strftime('%H:%M:%S')} {slurm_error}"
            live.update(as_table(choose.chosen(seen, choice), caption, layout.width()), refresh=True)
            time.sleep(seconds)
