"""Print a run's logs, and follow them over requeues."""

import argparse
import contextlib
import io
import math
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from launcher import slurm
from launcher.options import add_run
from launcher.record import Launch, Submission
from launcher.views import evidence, find, runs, troubles
from launcher.views.ends import Ends
from moco_dist import files
from moco_dist.errors import UserError

_POLL_SECONDS = 0.5
_LOOK_SECONDS = 3.0
_SURE_ENDS = (*evidence.FOR_GOOD, "cancelled", "time limit")
_ANSWER_SECONDS = 2.0  # logs wait while SLURM is asked
_BLOCK = 2**16
_LONGEST_LINE = 2**20
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(\x07|\x1b\\)?|[ -/]*[0-~])")
"""Escape sequences of terminals: CSI; OSC and other strings; the short ones."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's options."""
    add_run(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on, over requeues, until the run has ended")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, metavar="R", help="the log of this rank; unset, rank 0's")
    which.add_argument("--all", action="store_true", help="every log: ranks, launcher, evaluation")
    text = "begin with the last N lines of each log (50), or with all of them: --lines all"
    parser.add_argument("-n", "--lines", default="50", metavar="N", help=text)


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit status."""
    logs = Logs(find.run(options.run_dir), None if options.all else options.rank or 0, _number_of(options.lines))
    _check_rank(logs, options.rank)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the log's characters may not be the terminal's
    with contextlib.closing(logs), contextlib.suppress(KeyboardInterrupt):
        logs.show(to_end=not options.follow)
        if options.follow:
            _conclude(logs, _follow(logs))
        elif not logs.ranks():
            _conclude(logs, *runs.look([logs.launch]))
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

    def show(self, *, to_end: bool = False) -> None:
        """Print what is new, in files that are new as well; to the end also last lines without one."""
        for path, prefix in self._existing():
            if path not in self.files:
                self.files[path] = Tail(path, prefix, self.lines)
        for tail in self.files.values():
            _print(tail.new(to_end=to_end))

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
            yield from [(path, "")] if (path := self.launch.log(self._rank)).is_file() else []
            return
        if (own := self.launch.logs / "launcher.log").is_file():
            yield own, "[launcher] "
        for rank in self.ranks():
            if self.launch.log(rank).is_file():
                yield self.launch.log(rank), f"[rank {rank}] "
        if self.launch.evaluation_log.is_file():
            yield self.launch.evaluation_log, "[evaluate] "


def _follow(logs: Logs) -> runs.Run:
    """Print what comes until the run has ended; say how it stands when that changes. Returns how it has ended."""
    looked, ends, last_state = -math.inf, Ends(), ""
    while True:
        now = time.monotonic()
        if now - looked > _LOOK_SECONDS:
            [run] = runs.look([logs.launch], slurm.patience_seconds(_ANSWER_SECONDS))
            looked = time.monotonic()
            if run.state == "unreadable" or ends.is_sure(run, _SURE_ENDS):
                break
            if run.live and run.shown_state != last_state:
                _print_state(run)
                last_state = run.shown_state
        time.sleep(_POLL_SECONDS)
        logs.show()
    logs.show(to_end=True)
    return run


def _conclude(logs: Logs, run: runs.Run) -> None:
    """Say how the run stands; of one that has ended without a log, print what its batch script has said."""
    if run.ended and run.submission and not logs.ranks():
        _print_batch_output(run.submission, logs)
    _print_state(run)


def _check_rank(logs: Logs, rank: int | None) -> None:
    """Refuse a rank that the run does not have. Raises UserError."""
    if rank is None or rank in (with_log := logs.ranks()):
        return
    submission = logs.launch.submission()
    ranks = max([submission.ranks if submission else 1, *(r + 1 for r in with_log)])
    if not 0 <= rank < ranks:
        raise UserError.of("--rank", rank, f"the run has {ranks} ranks", f"use 0 to {ranks - 1}, or --all")


def _print_batch_output(submission: Submission, logs: Logs) -> None:
    """Print what the batch script and its tasks have said, for a job that ended before its ranks began."""
    written = [file for file in troubles.outputs(logs.launch, submission) if file.stat().st_size]
    for path in [file for file in written if file.suffix == ".err"] or written:
        print(f"launcher: no rank has written yet; the end of {path}:", file=sys.stderr, flush=True)
        with contextlib.closing(Tail(path, lines=logs.lines)) as tail:
            _print(tail.new(to_end=True))


def _print_state(run: runs.Run) -> None:
    """Print how the run stands, beside the logs."""
    reason = f": {run.why}" if run.why else ""
    line = readable(f"launcher: {run.name} is {run.shown_state}{reason}".encode())
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


class Tail:
    """One growing file, read line by line from its last lines on.

    Args:
        path: path of the file.
        prefix: text that goes before each line.
        lines: how many of its lines to begin with; None: all of them.
    """

    def __init__(self, path: Path, prefix: str = "", lines: int | None = None) -> None:
        self._file, self._prefix, self._unfinished = files.open_bytes(path), prefix, b""
        if lines is not None:
            self._file.seek(_start_of_last(self._file, lines))

    def new(self, *, to_end: bool = False) -> Iterator[str]:
        """Read the whole lines that have come since the last call; to the end also a last one without an end."""
        while part := self._file.readline(_LONGEST_LINE):
            self._unfinished += part
            if part.endswith(b"\n") or len(self._unfinished) >= _LONGEST_LINE:
                yield self._line()
        if to_end and self._unfinished:
            yield self._line()

    def _line(self) -> str:
        line, self._unfinished = self._unfinished.removesuffix(b"\n"), b""
        return self._prefix + readable(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def readable(line: bytes) -> str:
    """Return a line as harmless text: the last state of a progress bar, without escape sequences."""
    text = line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]
    if text.isprintable():
        return text
    text = _ESCAPE.sub("", text)
    return "".join(c if c.isprintable() or c == "\t" else " " if c.isspace() else "" for c in text)


def _start_of_last(file: BinaryIO, lines: int) -> int:
    """Return where the last so many lines begin; a last line without an end counts."""
    end, length = file.seek(0, io.SEEK_END), _BLOCK
    while True:
        start = file.seek(max(0, end - length))
        parts = file.read(end - start).removesuffix(b"\n").rsplit(b"\n", lines)  # what is ahead of them, and the lines
        if len(parts) > lines:
            return min(start + len(parts[0]) + 1, end)
        if start == 0:
            return 0
        length *= 2
