"""Look at a folder of images: what it holds, what is wrong with it, and which config to begin with.

All names are listed. Of the files, --sample are read, spread evenly, or all of them; no GPU is needed, and all cores
are used.
"""

import argparse
import os
import shlex
from pathlib import Path

from rich.console import Console

from moco_dist import files
from moco_dist.data.look import proposal, report
from moco_dist.data.look.survey import survey
from moco_dist.errors import UserError, printable

_HEADING = "Proposed by `python -m moco_dist.data look`. These are numbers to begin with, not the best ones."


def run(options: argparse.Namespace) -> None:
    """Look at a folder as the command line asks. Raises UserError."""
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
    file = shlex.quote(printable(str(options.write or "my.yaml")))
    print(f"to train: torchrun --nproc_per_node={options.gpus} -m moco_dist.train {file}")
    if not options.write:
        print("to save this config: the same command with --write my.yaml")


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
