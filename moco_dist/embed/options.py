"""Parse and check the options of commands that compute features of a folder, and load their config. No torch."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moco_dist import config as configs
from moco_dist import packages
from moco_dist.arguments import check_out, path_of
from moco_dist.config import Config
from moco_dist.data.tree import SUFFIXES
from moco_dist.encoders import choices
from moco_dist.encoders.choices import Layer, Which
from moco_dist.errors import UserError
from moco_dist.run import directory, paths

MATRIX, PARQUET = ".npy", ".parquet"
"""The names of files of features end with one of these."""
BATCH = 256
"""The number of images that are computed together, unless the caller chooses another."""
_MOST_BATCH = 65536
_WORKERS = "data.workers"
_OF_THE_PROCESS = ("device.", _WORKERS)
"""Overrides of keys that begin so say how features are computed, and nothing about the images."""


@dataclass(frozen=True)
class Options:
    """The options name an encoder and a folder, and say how features are computed."""

    path: Path
    """The run directory, or the weights."""
    folder: Path
    config: Path | None = None
    """A config that tells the images of weights from elsewhere."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Overrides by key, as `configs.read_overrides` reads them."""
    step: int | None = None
    encoder: Which = "query"
    features: Layer = "backbone"
    normalise: bool = False
    batch: int = BATCH

    @property
    def run_dir(self) -> Path | None:
        """Return the run directory; None where the path is one of weights."""
        return paths.run_dir_of(self.path)

    def values_of_encoder(self) -> dict[str, Any]:
        """Return the overrides that the loading of the encoder takes."""
        if self.run_dir:
            return dict(self.overrides)
        if self.config is not None:
            return {"data.root": configs.literal(str(self.folder)), **self.overrides}  # the one folder that is read
        return {key: value for key, value in self.overrides.items() if not key.startswith(_OF_THE_PROCESS)}

    def as_command(self, out: Path) -> str:
        """Return the command that writes the backbone's features with these options to a file."""
        path, folder, file = map(configs.literal, (self.path, self.folder, out))
        words = ["python", "-m", "moco_dist.embed", path, folder, "--out", file]
        words += ["--encoder", self.encoder] * (self.encoder != "query")
        words += ["--step", str(self.step)] * (self.step is not None)
        words += [configs.literal(self.config)] * (self.config is not None)
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.overrides.items()}
        return shlex.join([*words, *(f"{key}={text}" for key, text in texts.items())])

    def workers(self, config: Config) -> int | Literal["auto"]:
        """Return the number of decoding processes: `data.workers` of a run that was trained on files, else auto.

        Args:
            config: that `load_config` has returned.
        """
        of_files = (self.run_dir or self.config) and config.data.source == "imagefolder"
        return config.data.workers if _WORKERS in self.overrides or of_files else "auto"

    def load_config(self) -> Config:
        """Return the config of the run, or of the process where there are weights alone.

        Raises:
            UserError: what is asked for does not fit the path, or there is a mistake in the config.
        """
        if not os.path.lexists(self.path):
            rule = "no such file or folder"
            raise UserError.of("RUN_DIR|WEIGHTS", self.path, rule, "give a run directory or weights")
        if not 1 <= self.batch <= _MOST_BATCH:
            raise UserError.of("--batch", self.batch, f"must be from 1 to {_MOST_BATCH}", f"drop it for {BATCH}")
        if self.run_dir:
            if self.config is not None:
                rule = "a run directory has its config"
                raise UserError.of("argument", self.config, rule, "give overrides alone")
            return directory.load_config(paths.RunPaths(self.run_dir).config, values=self.overrides)
        usual = Options(self.path, self.folder)
        for name, option in (("step", "--step"), ("encoder", "--encoder"), ("features", "--features")):
            if (value := getattr(self, name)) != getattr(usual, name):
                rule = "is in the checkpoints of runs alone"
                raise UserError.of(option, value, rule, "give a run directory, or drop it")
        if self.config is not None:
            return configs.load(self.config, values=self.values_of_encoder())
        of_process = {key: value for key, value in self.overrides.items() if key.startswith(_OF_THE_PROCESS)}
        return configs.load(None, values=of_process)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that computes features of a folder."""
    name = "RUN_DIR|WEIGHTS"
    text = "a run directory; or weights of this or of another program, in a file or a folder"
    parser.add_argument("path", metavar=name, type=path_of(name), help=text)
    parser.add_argument("folder", metavar="FOLDER", type=path_of("FOLDER"), help="of images or shards, in any tree")
    text = "a config that tells the images of weights; overrides, as for the trainer"
    parser.add_argument("config", nargs="*", metavar="CONFIG.yaml|section.key=value", help=text)
    choices.add_arguments(parser)
    text = f"images computed together ({BATCH}); fewer take less memory"
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N", help=text)
    parser.add_argument("--workers", metavar="N|auto", help="processes that decode, as data.workers")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="as device.type")


def of_arguments(parsed: argparse.Namespace, **others: Any) -> Options:
    """Return the options of a parsed command line. Raises UserError."""
    file, overrides = configs.parse_arguments(parsed.config)
    if parsed.workers is not None:
        overrides = [*overrides, f"{_WORKERS}={parsed.workers}"]
    if parsed.device is not None:
        overrides = [*overrides, f"device.type={parsed.device}"]
    common = {name: getattr(parsed, name) for name in ("path", "folder", "step", "encoder", "batch")}
    return Options(**common, config=file, overrides=configs.read_overrides(overrides), **others)


def check_result(out: Path, folder: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that cannot take a result, or that would itself be an image of the folder.

    Args:
        out: what will be written.
        folder: of the images.
        suffixes: those that a name may end with.

    Raises:
        UserError: names the file.
    """
    if out.suffix not in suffixes:
        rule = f"must end with {' or '.join(suffixes)}"
        fitting = configs.literal(out.parent / f"{out.stem}{suffixes[0]}")
        raise UserError.of("--out", out, rule, f"write --out {shlex.quote(fitting)}")
    check_out(out)
    if not out.parent.is_dir():
        raise UserError.of(
            "--out", out, "its folder does not exist", f"make it: mkdir -p {shlex.quote(str(out.parent))}"
        )
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UserError.of("--out", out, "its folder cannot be written to", "choose another place by --out")
    inside = Path(os.path.realpath(out.parent)).is_relative_to(os.path.realpath(folder))
    if inside and out.suffix.lower() in SUFFIXES:
        rule = f"lies in {folder}, where it would be taken for an image of it"
        raise UserError.of("--out", out, rule, "choose a place outside by --out")


def check_out_of_features(out: Path, folder: Path) -> None:
    """Refuse a file that features cannot be written to. Raises UserError."""
    check_result(out, folder, (MATRIX, PARQUET))
    if out.suffix == MATRIX:
        check_out(names_beside(out))
    check_parquet(out, "--out")


def names_beside(matrix: Path) -> Path:
    """Return the path of the names that belong to a matrix of features."""
    return matrix.with_suffix(".files.json")


def check_parquet(out: Path, key: str) -> None:
    """Refuse a Parquet file where pyarrow is missing, which reads and writes them. Raises UserError."""
    if out.suffix == PARQUET:
        packages.need(key, out, "pyarrow", otherwise="use a file of .npy")
