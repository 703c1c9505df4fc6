"""Read a command line: a mistake in it is one line, and paths are expanded as in a config."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from moco_dist import config as configs
from moco_dist.errors import OwnMistake, UserError, print_masked, printable, tell
from moco_dist.interruption import interruptible
from moco_dist.ranks.rank import Rank
from moco_dist.run import status
from moco_dist.run.paths import RunPaths

_OF_STDOUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Error numbers of a write to standard output; other errors that name no file come from elsewhere, such as a fork."""
_CLOSED_PIPE = 141
"""Exit status of a process whose reader has gone, as a shell counts it; 1 would say that two runs differ."""


class Parser(argparse.ArgumentParser):
    """A parser that raises a mistake as one line, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parser_of(command: str, description: str | None) -> Parser:
    """Return the parser of a command, whose --help keeps the description's lines, and whose options are not cut short.

    Args:
        command: as it is typed behind `python -m`.
        description: what it does.
    """
    layout = argparse.RawDescriptionHelpFormatter
    return Parser(f"python -m {command}", description=description, formatter_class=layout, allow_abbrev=False)


def refused(command: str, mistake: UserError) -> int:
    """Print a user's mistake behind the name of the command, and return the exit status for it."""
    tell(f"{command}: {mistake}")
    return status.EXIT_CODES["user_error"]


def refused_once(command: str, mistake: UserError, rank: Rank, *, met: bool = False) -> int:
    """Print a user's mistake as `refused` does, once for all ranks, and return the exit status for it.

    Args:
        command: its name.
        mistake: what was wrong.
        rank: this process.
        met: whether the ranks have met; before, the mistake may be one node's.
    """
    if rank.speaks(met=met):
        return refused(command, mistake)
    rank.let_rank_0_end_first()
    if isinstance(mistake, OwnMistake):  # else rank 0 would have told it, and all ranks would be over
        return refused(command, mistake)
    return status.EXIT_CODES["user_error"]


def path_of(name: str) -> Callable[[str], Path]:
    """Return what reads the path that is the argument of that name; it raises UserError."""
    return lambda text: Path(configs.expanded(name, text))


def run_command(run: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command with the arguments of this process, and exit with its status.

    Whatever a name holds can be printed; a closed folder is a mistake like others; `| head` and Ctrl-C end it quietly,
    and SIGTERM in order, by that signal.
    """
    sys.excepthook = print_masked
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not fit the terminal's encoding
    try:
        with interruptible():
            exit_status = run(sys.argv[1:])
        if sys.stdout is not None:  # None: it was closed from the start
            sys.stdout.flush()
    except PermissionError as error:
        print(f"{printable(str(error.filename))}: {error.strerror}; use what you may read", file=sys.stderr)
        exit_status = 2
    except KeyboardInterrupt:
        exit_status = 130
    except OSError as error:
        if error.filename is not None or error.errno not in _OF_STDOUT:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its exit
        exit_status = _CLOSED_PIPE
        if error.errno != errno.EPIPE:
            print(f"standard output: {error.strerror}; send it elsewhere", file=sys.stderr)
            exit_status = 2
    sys.exit(exit_status)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn an error of writing within the block into the user's mistake about --out. Raises UserError."""
    try:
        yield
    except OSError as error:
        rule = f"cannot be written: {error.strerror or error}"
        raise UserError.of("--out", out, rule, "choose another place by --out") from None


def check_out(file: Path) -> None:
    """Refuse a file for a result that would take the place of a run's own file, of a device or of a folder.

    Raises:
        UserError: names the file.
    """
    fix = "name a new file by --out"
    try:
        if os.path.lexists(file) and not file.is_file():
            raise UserError.of("--out", file, "is a folder" if file.is_dir() else "is not a regular file", fix)
        if file.is_symlink():  # such as /dev/stdout: the link itself would be replaced
            raise UserError.of("--out", file, "is a symbolic link", fix)
        if RunPaths.is_own(Path(os.path.realpath(file.parent), file.name)):
            raise UserError.of("--out", file, "is a place that the run itself needs", fix)
    except OSError as error:
        raise UserError.of("--out", file, f"cannot be written: {error.strerror}", fix) from None
