"""Parse the command line of a verification, and check what can be checked of it without torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moco_dist import config as configs
from moco_dist.arguments import check_out, parser_of, path_of
from moco_dist.errors import UserError, shown
from moco_dist.ranks.rank import Rank
from moco_dist.run import paths, provenance
from moco_dist.run.directory import existing, load_config
from moco_dist.verify import plan as plans


@dataclass(frozen=True)
class Request:
    """A request says what is to be replayed, and how; it is valid as far as that can be told without torch."""

    recorded: configs.Config
    """The config of the run."""
    config: configs.Config
    """The config of the replay: that of the run with the overrides of the command line."""
    layout: configs.Layout
    plan: plans.Plan
    out: Path
    """The file that gets the result."""


def parse(arguments: Sequence[str], rank: Rank, description: str) -> Request:
    """Parse the command line, whose --help begins with the description, and check it against the run.

    Raises:
        UserError: a mistake in it, a run that cannot be replayed, or an override that would change its curve.
    """
    options = _parser(description).parse_intermixed_args(arguments)
    folder = existing(options.run, with_config=True)
    file = paths.RunPaths(folder).config
    named, overrides = configs.parse_arguments(options.overrides)
    if named is not None:
        raise UserError.of("argument", named, "a run directory has its config", "give overrides alone")
    tree = configs.read_tree(file)
    recorded = configs.with_decoder(load_config(file).at(folder), {"data": {}, **tree})
    decode = f"data.decode={recorded.data.decode}"  # of a run that is older than the key, not what a new one would have
    config = load_config(file, [decode, "data.download=false", *overrides]).at(folder)
    plan = plans.choose(folder, options.steps, options.from_step)
    layout = configs.layout(config, rank.size)
    configs.check_resumable(recorded.model_dump(mode="json"), _group_size(recorded, folder, layout), config, layout)
    _check_evaluation(recorded, config)
    out = options.out or Path(f"verified_{recorded.run.name}.json")
    check_out(out)
    if not os.access(out.parent, os.W_OK):
        raise UserError.of("--out", out, "cannot be written", "name a file in a folder that you may write to")
    return Request(recorded, config, layout, plan, out)


def _check_evaluation(recorded: configs.Config, config: configs.Config) -> None:
    """Refuse to evaluate otherwise than the run has, whose accuracies are compared. Raises UserError."""
    before, now = (configs.flat(each.model_dump(mode="json")) for each in (recorded, config))
    for key, value in now.items():
        if configs.effect_of(key, before[key], value) == "evaluation":
            rule = f"the run has evaluated with {shown(before[key])}, and its accuracies are compared"
            raise UserError.of(key, value, rule, "drop the override")


def _group_size(recorded: configs.Config, folder: Path, now: configs.Layout) -> int:
    """Return the images of a BatchNorm group of the run; where nothing tells, as many as the replay has."""
    starts = provenance.read(folder)
    if recorded.moco.bn_groups is None and not starts:
        return now.group_size
    ranks = 1 if recorded.moco.bn_groups else int(starts[-1].get("ranks", now.ranks))
    return configs.layout(recorded, ranks).group_size


def _number(name: str, least: int) -> Callable[[str], int]:
    """Return what reads a whole number of at least so much; it raises UserError."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and int(text) >= least):
            raise UserError.of(name, text, f"must be a whole number, {least} or more", f"use {name} {max(least, 50)}")
        return int(text)

    return read


def _parser(description: str) -> argparse.ArgumentParser:
    parser = parser_of("moco_dist.verify", description)
    parser.add_argument("run", metavar="RUN_DIR", type=path_of("RUN_DIR"), help="a run directory")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="as for the trainer")
    text = f"steps to replay; default: {plans.STEPS}, or to a later checkpoint that is near"
    parser.add_argument("--steps", type=_number("--steps", 1), metavar="N", help=text)
    text = "checkpoint to begin from, or 0 for the start of the run; default: the last one with as many steps after it"
    parser.add_argument("--from", dest="from_step", type=_number("--from", 0), metavar="STEP", help=text)
    text = "file of the result; default: verified_<run.name>.json"
    parser.add_argument("--out", type=path_of("--out"), metavar="PATH", help=text)
    return parser
