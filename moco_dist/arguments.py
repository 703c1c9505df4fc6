"""Read a command line: a mistake in it is one line, and paths are expanded as in a config."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from moco_dist import config as configs
from moco_dist.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that raises a mistake as one line, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def path_of(name: str) -> Callable[[str], Path]:
    """Return what reads the path that is the argument of that name; it raises UserError."""
    return lambda text: Path(configs.expanded(name, text))
