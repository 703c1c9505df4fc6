"""Read a command line: a mistake in it is one line, and paths are expanded as in a config."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from moco_dist import config as configs
from moco_dist.errors import UserError
from moco_dist.run import status


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
    print(f"{command}: {mistake}", file=sys.stderr, flush=True)
    return status.EXIT_CODES["user_error"]


def path_of(name: str) -> Callable[[str], Path]:
    """Return what reads the path that is the argument of that name; it raises UserError."""
    return lambda text: Path(configs.expanded(name, text))
