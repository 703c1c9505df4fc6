"""The launcher: python -m launcher COMMAND [...]; COMMAND --help tells more."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from launcher import slurm
from launcher.commands import (
    cancel,
    evaluate,
    logs,
    preflight,
    requeue,
    shell,
    stacks,
    status,
    submit,
    sweep,
    top,
    workspace,
)
from moco_dist.errors import UserError, masked

_MODULES = (submit, status, logs, cancel, requeue, evaluate, sweep, preflight, top, stacks, shell, workspace)
_COMMANDS = {module.__name__.rpartition(".")[2]: module for module in _MODULES}


class _CommandParser(argparse.ArgumentParser):
    """Read options by their whole names, anywhere on the line; a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.rpartition(' ')[2]}: {message}; see {self.prog} --help")


def main(arguments: Sequence[str]) -> int:
    """Run a command. Returns its exit status; 2 for a mistake of the user's, 1 where SLURM failed."""
    try:
        _refuse_lost_folder()
        return _run(arguments)
    except UserError as error:
        return _print_error(str(error), 2)
    except PermissionError as error:  # a folder above a file that was named is closed to this user
        return _print_error(f"{error.filename}: {error.strerror}", 2)
    except (slurm.Unavailable, slurm.Refused) as error:
        return _print_error(str(error), 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its exit
        return 1


def _refuse_lost_folder() -> None:
    """Refuse to work in a folder that is gone, as a shell may in a checkout that was cloned anew. Raises UserError."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the folder that this shell is in was removed; cd to another one, or to the new one") from None


def _run(arguments: Sequence[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        for command, module in _COMMANDS.items():
            print(f"  {command:10} {(module.__doc__ or '').splitlines()[0]}")
        return 0
    if name not in _COMMANDS:
        raise UserError(f"{name}: no such command; there are {', '.join(_COMMANDS)}")
    module = _COMMANDS[name]
    parser = _CommandParser(
        prog=f"python -m launcher {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.arguments(parser)
    text = f"how long to wait for SLURM's answers; also by the variable {slurm.PATIENCE}"
    parser.add_argument("--patience", metavar="SECONDS", help=text)
    end = rest.index("--") if module is evaluate and "--" in rest else len(rest)
    options = parser.parse_intermixed_args(rest[:end])
    options.behind = rest[end + 1 :]  # what another command line reads
    if options.patience is not None:
        os.environ[slurm.PATIENCE] = options.patience
    slurm.patience_seconds()  # a mistake in it is told at once
    exit_status: int = module.run(options)
    return exit_status


def _print_error(line: str, code: int) -> int:
    print(masked(f"launcher: {line}"), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
