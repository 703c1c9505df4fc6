"""Parse the command line of a conversion, and check what can be checked of it without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moco_dist import config as configs
from moco_dist.arguments import Parser, parser_of, path_of
from moco_dist.errors import UserError, some_names
from moco_dist.run.directory import load_config
from moco_dist.run.paths import RunPaths

COMMAND = "moco_dist.convert"


@dataclass(frozen=True)
class Request:
    """A request names the checkpoint, the new run and its config, all checked as far as possible without torch."""

    checkpoint: Path
    run_dir: Path
    config: configs.Config
    layout: configs.Layout
    """The division of the batch for one rank; the BatchNorm groups are the same on any number of them."""
    epoch: int | None
    """Number of finished epochs, for a file that does not tell it."""


def parse(arguments: Sequence[str], description: str) -> Request:
    """Parse the command line, whose --help begins with the description. Raises UserError."""
    options = _parser(description).parse_intermixed_args(arguments)
    named, overrides = configs.parse_arguments(options.overrides)
    if named is not None:
        raise UserError.of("argument", named, "CHECKPOINT, RUN_DIR and CONFIG came first", "drop it")
    config = load_config(options.config, overrides)
    if config.run.dir is not None and any(override.startswith("run.dir=") for override in overrides):
        raise UserError.of("run.dir", config.run.dir, f"the run will lie in {options.run_dir}", "drop it")
    if config.run.init_from is not None:
        rule = "the weights are those of CHECKPOINT"
        raise UserError.of("run.init_from", config.run.init_from, rule, "add run.init_from=null")
    if config.run.resume == "never":
        raise UserError.of("run.resume", "never", "the run is to go on from what is converted", "add run.resume=auto")
    if config.moco.bn_groups is None:
        rule = "must be set: the file does not tell on how many GPUs its run normalised, and so in how many groups"
        raise UserError.of("moco.bn_groups", None, rule, "add moco.bn_groups=N, its number of GPUs, 8 in the papers")
    if options.checkpoint.is_dir():
        raise UserError.of("CHECKPOINT", options.checkpoint, "is a folder", "name the .pth.tar of the authors' code")
    _check_free(options.run_dir)
    config = config.at(options.run_dir)
    return Request(options.checkpoint, options.run_dir, config, configs.layout(config, 1), options.epoch)


def _check_free(run_dir: Path) -> None:
    """Refuse a place that holds something. Raises UserError."""
    fix = "name a new directory"
    if not (run_dir.exists() or run_dir.is_symlink()):
        return
    if not run_dir.is_dir() or run_dir.is_symlink():
        raise UserError.of("RUN_DIR", run_dir, "is no directory", fix)
    try:
        names = sorted(path.name for path in run_dir.iterdir())
    except OSError as error:
        raise UserError.of("RUN_DIR", run_dir, f"cannot be read: {error.strerror}", fix) from None
    if RunPaths.holds_run(names):
        raise UserError.of("RUN_DIR", run_dir, "holds a run", fix)
    if names:
        raise UserError.of("RUN_DIR", run_dir, f"is not empty, it holds {some_names(names)}", fix)


def _epochs(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10**9):
        raise UserError.of("--epoch", text, "must be the number of finished epochs, 1 or more", "use --epoch 200")
    return int(text)


def _parser(description: str) -> Parser:
    parser = parser_of(COMMAND, description)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=path_of("CHECKPOINT"), help="the authors' .pth.tar")
    parser.add_argument("run_dir", metavar="RUN_DIR", type=path_of("RUN_DIR"), help="a new directory for the run")
    parser.add_argument("config", metavar="CONFIG", type=path_of("CONFIG"), help="a config, as for the trainer")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="as for the trainer")
    text = "finished epochs, for a file that does not tell them"
    parser.add_argument("--epoch", type=_epochs, metavar="N", help=text)
    return parser
