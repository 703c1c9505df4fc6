"""The launcher: python -m launcher COMMAND [...]; COMMAND --help tells more."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from launcher import slurm
from moco_dist.errors import UserError

# Modules by the names of their commands; only the one that is asked for is imported.
_COMMANDS = {
    "submit": "commands.submit",
    "status": "views.table",
    "logs": "commands.logs",
    "cancel": "commands.cancel",
    "requeue": "commands.requeue",
    "sweep": "commands.sweep",
    "preflight": "commands.preflight",
}


class _Parser(argparse.ArgumentParser):
    """Options by their whole names, anywhere on the line; a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.rpartition(' ')[2]}: {message}; see {self.prog} --help")


def main(arguments: Sequence[str]) -> int:
    """Run a command. Returns its exit status; 2 for a mistake of the user's, 1 where SLURM failed."""
    try:
        return _run(arguments)
    except UserError as error:
        return _say(str(error), 2)
    except PermissionError as error:  # a folder above a file that was named is closed to this user
        return _say(f"{error.filename}: {error.strerror}", 2)
    except (slurm.Unavailable, slurm.Refused) as error:
        return _say(str(error), 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its exit
        return 1


def _run(arguments: Sequence[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        for command, file in _COMMANDS.items():
            print(f"  {command:10} {_first_line(file)}")
        return 0
    if name not in _COMMANDS:
        raise UserError(f"{name}: no such command; there are {', '.join(_COMMANDS)}")
    module = importlib.import_module(f"launcher.{_COMMANDS[name]}")
    parser = _Parser(
        prog=f"python -m launcher {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.arguments(parser)
    options = parser.parse_intermixed_args(rest)
    return int(module.run(options))


def _first_line(file: str) -> str:
    return (importlib.import_module(f"launcher.{file}").__doc__ or "").splitlines()[0]


def _say(line: str, code: int) -> int:
    print(f"launcher: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
