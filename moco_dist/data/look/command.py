"""Look at a folder of images: what it holds, what is wrong with it, and which config to begin with.

python -m moco_dist.data look FOLDER [--all] [--gpus N] [--write my.yaml]

All names are listed. Of the files, --sample are read, spread evenly, or all of them; no GPU is needed, and all cores
are used.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from moco_dist import config as configs
from moco_dist import files
from moco_dist.data.look import proposal, report
from moco_dist.data.look.survey import survey
from moco_dist.errors import UserError

_HEADING = "Proposed by `python -m moco_dist.data look`. These are numbers to begin with, not the best ones."


class _Parser(argparse.ArgumentParser):
    """A parser that raises a mistake as one line, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m moco_dist.data --help")


def _path(name: str) -> Callable[[str], Path]:
    """Return what reads the path that is the argument of that name; it raises UserError."""
    return lambda text: Path(configs.expanded(name, text))


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    p = _Parser("python -m moco_dist.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("look", choices=["look"], help="the one command there is")
    p.add_argument("folder", type=_path("FOLDER"), metavar="FOLDER", help="a folder of images, as data.root names it")
    p.add_argument("--all", action="store_true", help="read every file, not a sample")
    p.add_argument("--sample", type=_positive, default=10_000, metavar="N", help="files to read at most (10000)")
    p.add_argument("--gpus", type=_positive, default=1, metavar="N", help="GPUs, or ranks, that will train (1)")
    p.add_argument("--write", type=_path("--write"), metavar="my.yaml", help="save the proposed config; a new file")
    return p


def run(arguments: Sequence[str]) -> int:
    """Look at a folder as the command line asks. Returns the exit status."""
    try:
        options = _parser().parse_args(arguments)
        if options.write:
            _check_new(options.write)
        survey_of_folder = survey(options.folder, None if options.all else options.sample)
        console = Console(highlight=False)
        try:
            settings = proposal.propose(survey_of_folder, options.gpus)
            if options.write:  # ahead of the tables, of which `| head` reads a part
                _write(options.write, proposal.as_yaml(settings, _HEADING))
        finally:
            console.print(report.facts(survey_of_folder))
        console.print(report.settings_table(settings))
    except UserError as error:
        print(f"moco_dist.data: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    file = options.write or "my.yaml"
    print(f"to train: torchrun --nproc_per_node={options.gpus} -m moco_dist.train {file}")
    if not options.write:
        print("to save this config: the same command with --write my.yaml")
    return 0


def _check_new(path: Path) -> None:
    """Refuse a file that is there already, or in a folder that cannot be written to, before the images are read."""
    if os.path.lexists(path):
        raise UserError.of("--write", path, "is there already", "choose another name, or remove it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        rule = f"cannot be written: {path.parent} is no folder that you may write to"
        raise UserError.of("--write", path, rule, "choose another place")


def _write(path: Path, text: str) -> None:
    try:
        files.write_text(path, text)
    except OSError as error:
        raise UserError.of("--write", path, f"cannot be written: {error.strerror}", "choose another place") from None
