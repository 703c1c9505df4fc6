"""Parse the options of the export, and check of them what needs no weights, and so no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from moco_dist import packages
from moco_dist.arguments import check_out, parser_of, path_of
from moco_dist.config import Config
from moco_dist.config.schema import ModelSection
from moco_dist.encoders import choices
from moco_dist.encoders.choices import Which
from moco_dist.errors import UserError, printable
from moco_dist.export import manifest
from moco_dist.run import directory
from moco_dist.run.paths import RunPaths

Format = Literal["safetensors", "torchvision", "timm", "detectron2", "onnx", "torchscript", "reference", "package"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SUFFIXES: dict[Format, str] = {
    "safetensors": ".safetensors",
    "torchvision": ".pth",
    "timm": ".safetensors",
    "detectron2": ".pkl",
    "onnx": ".onnx",
    "torchscript": ".pt",
    "reference": ".pth.tar",
    "package": "",
}
_TOLD_BY_SUFFIX = ("timm", "detectron2")
"""Formats whose programs recognise a file by the ending of its name."""
_WITH_HEAD = ("onnx", "torchscript")
_THEIR_NETWORKS = ("torchvision", "timm", "detectron2")
"""Formats whose programs build the network by its name."""


@dataclass(frozen=True)
class Options:
    """The options are what the command line asks for; each field has its meaning in the help text of `_parser`."""

    run_dir: Path
    to: Format
    encoder: Which
    head: bool
    step: int | None
    out: Path
    config: Config
    """The config of the run."""

    def make_place(self) -> None:
        """Make the folder of exports in the run directory, private to its user, if it is wanted. Raises OSError."""
        if self.out.parent == RunPaths(self.run_dir).export:
            self.out.parent.mkdir(exist_ok=True, mode=0o700)


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = parser_of("moco_dist.export", description)
    parser.add_argument("run_dir", type=path_of("RUN_DIR"), metavar="RUN_DIR", help="the directory of a run")
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format")
    choices.add_arguments(parser)
    parser.add_argument("--head", action="store_true", help=f"with MoCo's head, in {' and '.join(_WITH_HEAD)}")
    text = "a new file, or folder for a package (RUN_DIR/export/FORMAT, where an older export is replaced)"
    parser.add_argument("--out", type=path_of("--out"), metavar="PATH", help=text)
    return parser


def parse(arguments: Sequence[str], description: str | None = None) -> Options:
    """Parse the command line, and check what needs no weights. Raises UserError."""
    typed = _parser(description).parse_args(arguments)
    run_dir = directory.existing(typed.run_dir, with_config=True)
    paths = RunPaths(run_dir)
    _check_parts(typed)
    config = directory.load_config(paths.config)
    if typed.to in _THEIR_NETWORKS:
        _check_network(typed.to, config.model, config.data.channel_count)
    if typed.to == "onnx":
        packages.need("--to", "onnx", "onnx", "onnxruntime", otherwise="use --to torchscript")
    out = typed.out or paths.export / f"{typed.to}{_SUFFIXES[typed.to]}"
    _check_place(out, typed.to, ours=typed.out is None)
    return Options(run_dir, typed.to, typed.encoder, typed.head, typed.step, out, config)


def _check_parts(typed: argparse.Namespace) -> None:
    """Refuse a part of the run that the format cannot hold, or holds anyway. Raises UserError."""
    if typed.to == "reference":
        for name, value, plain in (("--encoder", typed.encoder, "query"), ("--head", typed.head, False)):
            if value != plain:
                rule = "the authors' checkpoint holds both encoders with their heads"
                raise UserError.of(name, value, rule, "drop it")
    elif typed.head and typed.to not in _WITH_HEAD:
        rule = f"--to {typed.to} holds the encoder without its head"
        raise UserError.of("--head", True, rule, f"use --to {' or '.join(_WITH_HEAD)}, or drop it")


def differences(model: ModelSection, channels: int) -> list[str]:
    """Return the settings by which a network differs from torchvision's ResNet of the same name."""
    others = [f"model.stem={model.stem}"] if model.stem != "imagenet" else []
    others += [f"model.width={model.width}"] if model.width != 64 else []
    return others + ([f"{channels} channel{'s' * (channels > 1)}"] if channels != 3 else [])


def _check_network(to: Format, model: ModelSection, channels: int) -> None:
    """Refuse a network that the format's program does not build by its name. Raises UserError."""
    if others := differences(model, channels):
        rule = f"its {model.arch} has a 7x7 stem, 64 channels in its first stage and 3 in an image, "
        rule += f"and this encoder has {', '.join(others)}"
        fix = "--to package says how torchvision loads it; onnx and torchscript hold it whole"
        raise UserError.of("--to", to, rule, fix)


def _check_place(out: Path, to: Format, *, ours: bool) -> None:
    """Refuse to replace a file that is no export of the same format.

    Args:
        out: where the export goes.
        to: its format.
        ours: whether that is the place that exports have in the run directory.

    Raises:
        UserError: names the place.
    """
    if to == "package":
        manifest.check_replaceable(out)
        return
    check_out(out)
    if to in _TOLD_BY_SUFFIX and out.suffix != _SUFFIXES[to]:
        rule = f"must end in {_SUFFIXES[to]}, by which {to} tells the format"
        raise UserError.of("--out", out, rule, f"use --out {printable(str(out))}{_SUFFIXES[to]}")
    if not ours and out.exists():
        raise UserError.of("--out", out, "is there already", "name a new file by --out, or remove it")
