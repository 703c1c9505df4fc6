"""Print a run's logs, and follow them over requeues."""

from __future__ import annotations

import argparse
import io
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.options import path_of
from launcher.record import Launch
from launcher.views import runs
from launcher.views.find import find_run
from launcher.views.runs import Run
from launcher.views.tail import Tail, readable
from launcher.views.verdict import FOR_GOOD
from moco_dist.errors import UserError

_POLL_SECONDS = 0.5
_LOOK_SECONDS = 3.0
_FINAL = (*FOR_GOOD, "cancelled", "time limit")
_SURE_SECONDS = 8.0  # how long another end must last: a job whose node died ends for SLURM before it is requeued
_ANSWER_SECONDS = 2.0  # logs wait while SLURM is asked


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    parser.add_argument(
        "run_dir", type=path_of("RUN"), metavar="RUN", help="a run directory, the name of one in runs/, or a job's id"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on, over requeues, until the run has ended")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, metavar="R", help="the log of this rank; unset, rank 0's")
    which.add_argument("--all", action="store_true", help="every rank's log and the launcher's, with their names")
    parser.add_argument(
        "-n",
        "--lines",
        default="50",
        metavar="N",
        help="begin with the last N lines of each log (50), or with all of them: --lines all",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    logs = Logs(find_run(options.run_dir), None if options.all else options.rank or 0, _number_of(options.lines))
    _check_rank(logs, options.rank)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the log's characters may not be the terminal's
    try:
        if options.follow:
            logs.show()
            _follow(logs)
        else:
            logs.rest()
            if not logs.ranks():
                _explain(logs)
    except KeyboardInterrupt:
        return 0
    finally:
        logs.close()
    return 0


class Logs:
    """The logs of a run that are to be printed, each as far as it has been.

    Args:
        launch: the run's record.
        rank: the rank whose log is printed; None: all ranks' and the launcher's.
        lines: how many lines of each to begin with; None: all of them.
    """

    def __init__(self, launch: Launch, rank: int | None, lines: int | None) -> None:
        self.launch, self._rank, self.lines = launch, rank, lines
        self.files: dict[Path, Tail] = {}

    def show(self) -> None:
        """Print what is new, in files that are new as well."""
        for path, prefix in self._existing():
            if path not in self.files:
                self.files[path] = Tail(path, prefix, self.lines)
        for tail in self.files.values():
            _print(tail.new())

    def rest(self) -> None:
        """Print what is new, and last lines without an end."""
        self.show()
        for tail in self.files.values():
            _print(tail.rest())

    def ranks(self) -> list[int]:
        """List the ranks that have a log."""
        names = (path.stem[5:] for path in self.launch.logs.glob("rank_*.log"))
        return sorted(int(name) for name in names if name.isdecimal())

    def close(self) -> None:
        """Close the files."""
        for tail in self.files.values():
            tail.close()

    def _existing(self) -> Iterator[tuple[Path, str]]:
        """List the files that there are, with the text that goes before their lines."""
        if self._rank is not None:
            path = self.launch.log(self._rank)
            yield from [(path, "")] if path.is_file() else []
            return
        if (own := self.launch.logs / "launcher.log").is_file():
            yield own, "[launcher] "
        for rank in self.ranks():
            yield self.launch.log(rank), f"[rank {rank}] "


def _follow(logs: Logs) -> None:
    """Print what comes until the run has ended; say how it stands when that changes."""
    looked, ended, last_state = -math.inf, math.inf, ""
    while True:
        now = time.monotonic()
        if now - looked > _LOOK_SECONDS:
            [run] = runs.look([logs.launch], _ANSWER_SECONDS)
            looked = time.monotonic()
            ended = min(ended, now) if run.ended else math.inf
            if run.state == "unreadable":
                break
            if run.ended and (run.state in _FINAL or now - ended > _SURE_SECONDS):
                break
            if run.live and run.state != last_state:
                _print_state(run)
                last_state = run.state
        time.sleep(_POLL_SECONDS)
        logs.show()
    logs.rest()
    if not logs.ranks():
        _print_batch_output(run, logs)
    _print_state(run)


def _explain(logs: Logs) -> None:
    """Say why there is no log."""
    [run] = runs.look([logs.launch])
    if run.ended:
        _print_batch_output(run, logs)
    _print_state(run)


def _check_rank(logs: Logs, rank: int | None) -> None:
    """Refuse a rank that the run does not have. Raises UserError."""
    if rank is None or rank in (with_log := logs.ranks()):
        return
    submission = logs.launch.submission()
    ranks = max([submission.ranks if submission else 1, *(r + 1 for r in with_log)])
    if not 0 <= rank < ranks:
        raise UserError.of("--rank", rank, f"the run has {ranks} ranks", f"use 0 to {ranks - 1}, or --all")


def _print_batch_output(run: Run, logs: Logs) -> None:
    """Print what the batch script and its tasks have said, for a job that ended before its ranks began."""
    job = run.submission.job if run.submission else ""
    for kind in ("err", "out"):
        files = [f for f in sorted(logs.launch.submitit.glob(f"{job}_*log.{kind}")) if f.is_file() and f.stat().st_size]
        for path in files:
            print(f"launcher: no rank has written yet; the end of {path}:", file=sys.stderr, flush=True)
            tail = Tail(path, lines=logs.lines)
            _print(tail.new())
            _print(tail.rest())
            tail.close()
        if files:
            return


def _print_state(run: Run) -> None:
    """Print how the run stands, beside the logs."""
    reason = f": {run.reason}" if run.reason else ""
    line = readable(f"launcher: {run.name} is {run.state}{reason}".encode())
    print(line, file=sys.stderr, flush=True)


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _number_of(text: str) -> int | None:
    """Read the value of --lines; None for all. Raises UserError."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise UserError.of("--lines", text, "must be a number of lines, or all", "use --lines 50")
    return int(text)
