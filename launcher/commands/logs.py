"""Print a run's logs, and follow them over requeues."""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.record import Launch
from launcher.views import runs
from launcher.views.runs import Run
from moco_dist.errors import UserError

_POLL_SECONDS = 0.5
_LOOK_SECONDS = 3.0
_FINAL = (*runs.FOR_GOOD, "cancelled", "time limit")
_SURE_SECONDS = 8.0  # for how long another end must stand: a job whose node died ends for SLURM before it is requeued
_ANSWER_SECONDS = 2.0  # logs wait while SLURM is asked
_BLOCK = 2**16
_LONGEST_LINE = 2**20
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])")
"""Escape sequences of terminals: CSI; OSC and other strings; the short ones."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("run_dir", metavar="RUN", help="a run directory, the name of one in runs/, or a job's id")
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
    logs = Logs(runs.find(options.run_dir), None if options.all else options.rank or 0, _number_of(options.lines))
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
    """The logs that were asked for, each as far as it is printed.

    Args:
        launch: of the run.
        rank: the rank whose log it is; None: all, and the launcher's.
        lines: how many to begin with; None: all of them.
    """

    def __init__(self, launch: Launch, rank: int | None, lines: int | None) -> None:
        self.launch, self._rank, self.lines = launch, rank, lines
        self.files: dict[Path, Tail] = {}

    def show(self) -> None:
        """Print what is new, in files that are new as well."""
        for path, prefix in self._there():
            if path not in self.files:
                self.files[path] = Tail(path, prefix, self.lines)
        for tail in self.files.values():
            _print(tail.new())

    def rest(self) -> None:
        """Print the last lines, those without an end too."""
        self.show()
        for tail in self.files.values():
            _print(tail.rest())

    def ranks(self) -> list[int]:
        """The ranks that have a log."""
        names = (path.stem[5:] for path in self.launch.logs.glob("rank_*.log"))
        return sorted(int(name) for name in names if name.isdecimal())

    def close(self) -> None:
        """Close the files."""
        for tail in self.files.values():
            tail.close()

    def _there(self) -> Iterator[tuple[Path, str]]:
        """The files that are there, with what goes before their lines."""
        if self._rank is not None:
            path = self.launch.log(self._rank)
            yield from [(path, "")] if path.is_file() else []
            return
        if (own := self.launch.logs / "launcher.log").is_file():
            yield own, "[launcher] "
        for rank in self.ranks():
            yield self.launch.log(rank), f"[rank {rank}] "


class Tail:
    """One growing file, read line by line from its last lines on.

    Args:
        path: of the file.
        prefix: what goes before each line.
        lines: how many to begin with; None: all of them.
    """

    def __init__(self, path: Path, prefix: str = "", lines: int | None = None) -> None:
        self._file, self._prefix, self._unfinished = path.open("rb"), prefix, b""
        if lines is not None:
            self._file.seek(_start_of_last(self._file, lines))

    def new(self) -> Iterator[str]:
        """Whole lines that have come since."""
        while block := self._file.read(_BLOCK):
            *whole, self._unfinished = (self._unfinished + block).split(b"\n")
            yield from (self._prefix + readable(line) for line in whole)
            if len(self._unfinished) > _LONGEST_LINE:
                yield from self.rest()

    def rest(self) -> Iterator[str]:
        """The last line, though it has no end."""
        if self._unfinished:
            yield self._prefix + readable(self._unfinished)
        self._unfinished = b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def readable(line: bytes) -> str:
    """A line as text that can do a terminal no harm: the last state of a progress bar, no escape sequences."""
    text = line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]
    if text.isprintable():
        return text
    text = _ESCAPE.sub("", text)
    return "".join(c if c.isprintable() or c == "\t" else " " if c.isspace() else "" for c in text)


def _start_of_last(file: io.BufferedReader, lines: int) -> int:
    """Where the last so many lines begin; a last line without an end counts."""
    end = at = file.seek(0, io.SEEK_END)
    wanted = lines + 1  # the newline ahead of the first line wanted
    while at > 0:
        start = max(0, at - _BLOCK)
        file.seek(start)
        block = file.read(at - start)
        if at == end and not block.endswith(b"\n"):
            wanted -= 1
        if block.count(b"\n") >= wanted:
            place = len(block)
            for _ in range(wanted):
                place = block.rfind(b"\n", 0, place)
            return min(start + place + 1, end)
        wanted -= block.count(b"\n")
        at = start
    return 0


def _follow(logs: Logs) -> None:
    """Print what comes until the run has ended; say how it stands when that changes."""
    looked, ended, told = -math.inf, math.inf, ""
    while True:
        now = time.monotonic()
        if now - looked > _LOOK_SECONDS:
            [found] = runs.look([logs.launch], _ANSWER_SECONDS)
            looked = time.monotonic()
            ended = min(ended, now) if found.ended else math.inf
            if found.state == "unreadable":
                break
            if found.ended and (found.state in _FINAL or now - ended > _SURE_SECONDS):
                break
            if found.live and found.state != told:
                _note(found)
                told = found.state
        time.sleep(_POLL_SECONDS)
        logs.show()
    logs.rest()
    if not logs.ranks():
        _print_batch_output(found, logs)
    _note(found)


def _explain(logs: Logs) -> None:
    """Say why there is no log."""
    [found] = runs.look([logs.launch])
    if found.ended:
        _print_batch_output(found, logs)
    _note(found)


def _check_rank(logs: Logs, rank: int | None) -> None:
    """Refuse a rank that the run does not have. Raises UserError."""
    if rank is None or rank in (there := logs.ranks()):
        return
    sent = logs.launch.submission()
    ranks = max([sent.ranks if sent else 1, *(r + 1 for r in there)])
    if not 0 <= rank < ranks:
        raise UserError.of("--rank", rank, f"the run has {ranks} ranks", f"use 0 to {ranks - 1}, or --all")


def _print_batch_output(found: Run, logs: Logs) -> None:
    """What the batch script and its tasks have said, of a job that came to its end before its ranks began."""
    job = found.submission.job if found.submission else ""
    for kind in ("err", "out"):
        said = [f for f in sorted(logs.launch.submitit.glob(f"{job}_*log.{kind}")) if f.is_file() and f.stat().st_size]
        for path in said:
            print(f"launcher: no rank has written yet; the end of {path}:", file=sys.stderr, flush=True)
            tail = Tail(path, lines=logs.lines)
            _print(tail.new())
            _print(tail.rest())
            tail.close()
        if said:
            return


def _note(found: Run) -> None:
    """How the run stands, beside the logs."""
    reason = f": {found.reason}" if found.reason else ""
    line = readable(f"launcher: {found.name} is {found.state}{reason}".encode())
    print(line, file=sys.stderr, flush=True)


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _number_of(text: str) -> int | None:
    """The value of --lines. Raises UserError."""
    if text == "all":
        return None
    if not text.isdecimal():
        raise UserError.of("--lines", text, "must be a number of lines, or all", "use --lines 50")
    return int(text)
