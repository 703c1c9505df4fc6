"""The options of the evaluation's command line, their checks, and the config that they lead to. It needs no torch."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from moco_dist import config as configs
from moco_dist.arguments import parser_of, path_of
from moco_dist.config.from_python import check_choice
from moco_dist.encoders.choices import Layer
from moco_dist.errors import UserError, written
from moco_dist.run import directory, paths

_MOST = 1_000_000
"""Epochs and draws; more would never end."""
_CHOICES = {"solver": ("auto", "lbfgs", "sgd"), "features": ("backbone", "head"), "split": ("test", "validation")}


@dataclass(frozen=True)
class Options:
    """The options of the command line; the help text of `_parser` explains each field."""

    path: Path
    config: list[str]
    knn: bool
    linear: bool
    solver: Literal["auto", "lbfgs", "sgd"]
    features: Layer
    labels: int | Literal["all"] | None
    label_fraction: float | None
    draws: int | None
    finetune: bool
    supervised: bool
    semi: bool
    split: Literal["test", "validation"]
    out: Path | None
    wandb: bool = False
    epochs: int | None = None


def _parser(description: str) -> argparse.ArgumentParser:
    p = parser_of("moco_dist.evaluate", description)
    name = "RUN_DIR|WEIGHTS"
    text = "a run directory; or weights of this or of another program, in a file or a folder"
    p.add_argument("path", metavar=name, type=path_of(name), help=text)
    text = "a config, which weights need; overrides, as for the trainer"
    p.add_argument("config", nargs="*", metavar="CONFIG.yaml|section.key=value", help=text)
    p.add_argument("--knn", action="store_true", help="weighted kNN with eval.knn_k and eval.knn_temperature")
    p.add_argument("--linear", action="store_true", help="linear probe on the features of all labelled images")
    p.add_argument(
        "--solver", choices=_CHOICES["solver"], default="auto", help="how --linear is computed (auto: by memory)"
    )
    p.add_argument(
        "--features", choices=_CHOICES["features"], default="backbone", help="what --knn and --linear take (backbone)"
    )
    few = p.add_mutually_exclusive_group()
    text = "few labels: N images, equally many of each class; all: trains on all, with --finetune or --supervised"
    few.add_argument("--labels", type=_labels, metavar="N|all", help=text)
    text = "the same, as a part of the labelled images; 1 is --labels all"
    few.add_argument("--label-fraction", type=float, metavar="F", help=text)
    p.add_argument("--draws", type=int, metavar="D", help="draws of the few labels (1)")
    p.add_argument("--finetune", action="store_true", help="fine-tune the encoder on these labels")
    p.add_argument("--supervised", action="store_true", help="the baselines: from scratch on the same labels")
    p.add_argument("--epochs", type=int, metavar="E", help="of each training on --labels all; else its recipe's")
    p.add_argument("--no-semi", dest="semi", action="store_false", help="without the semi-supervised method")
    p.add_argument(
        "--split",
        choices=_CHOICES["split"],
        default="test",
        help="the images to judge by; validation: for tuning (test)",
    )
    p.add_argument(
        "--out", type=path_of("--out"), metavar="DIR", help="where results go; RUN_DIR, or beside the weights"
    )
    text = "add the results to the run at W&B, as its track.wandb says, when its training is done"
    p.add_argument("--wandb", action="store_true", help=text)
    return p


def _labels(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text  # which is checked with all else


def parse(arguments: Sequence[str], description: str = "") -> Options:
    """Parse the command line, whose --help begins with the description. Raises UserError."""
    return checked(Options(**vars(_parser(description).parse_intermixed_args(arguments))))


def checked(options: Options) -> Options:
    """Return the options as they are used, if they fit together. Raises UserError."""
    for name, choices in _CHOICES.items():
        check_choice(f"--{name}", getattr(options, name), choices)
    if options.labels is not None and options.label_fraction is not None:
        raise UserError.of("--labels", options.labels, "not allowed with --label-fraction", "drop one of them")
    options = replace(options, path=paths.run_of(options.path) or options.path)
    fraction = options.label_fraction
    if fraction is not None and not (type(fraction) in (int, float) and 0 < fraction <= 1):
        raise UserError.of("--label-fraction", fraction, "must be above 0 and at most 1", "0.01 is one percent")
    if fraction == 1:
        options = replace(options, labels="all", label_fraction=None)
    _check_labels(options)
    _check_probe(options)
    return options


def _check_labels(options: Options) -> None:
    """Refuse options about labels that do not fit together. Raises UserError."""
    if not (options.labels is None or options.labels == "all" or isinstance(options.labels, int)):
        raise UserError.of("--labels", options.labels, "must be a number of images, or all", "use --labels 100")
    for name, fix in (("draws", "drop it for one draw"), ("epochs", "drop it for the recipe's")):
        if (count := getattr(options, name)) is not None and not 1 <= count <= _MOST:
            raise UserError.of(f"--{name}", count, f"must be 1 or more, and at most {_MOST}", fix)
    if options.labels is None and options.label_fraction is None:
        if options.draws:
            raise UserError.of("--draws", options.draws, "is about few labels", "add --labels N or --label-fraction F")
        for name in ("finetune", "supervised"):
            if getattr(options, name):
                fix = "add --labels N, --labels all or --label-fraction F"
                raise UserError.of(f"--{name}", True, "learns from labels", fix)
    if options.labels != "all":
        if options.epochs is not None:
            fix = "add --labels all, or drop it"
            raise UserError.of("--epochs", options.epochs, "is about training on all labels", fix)
        return
    if (options.draws or 1) > 1:
        rule = "there is nothing to draw where all images are labelled"
        raise UserError.of("--draws", options.draws, rule, "drop it, or use --labels N")
    if not (options.finetune or options.supervised):
        fix = "add --finetune or --supervised, or use --linear for a probe on all labels"
        raise UserError.of("--labels", "all", "says what networks are trained on, and none is asked for", fix)


def _check_probe(options: Options) -> None:
    """Refuse options about kNN and the linear probe where neither is computed. Raises UserError."""
    by_default = not (options.knn or options.linear) and options.labels is None and options.label_fraction is None
    if options.solver != "auto" and not (options.linear or by_default):
        raise UserError.of("--solver", options.solver, "is about the linear probe on all labels", "add --linear")
    if options.features != "backbone" and not (options.knn or options.linear or by_default):
        rule = "is about kNN and the linear probe on all labels"
        raise UserError.of("--features", options.features, rule, "add --knn or --linear")


def load_config(options: Options) -> configs.Config:
    """Load the config of the run directory, or for a file of weights the one that the command line names.

    Raises:
        UserError: no such path, no config, or a mistake in it.
    """
    file, overrides = configs.parse_arguments(options.config)

    def load(values: Mapping[str, Any]) -> configs.Config:
        return directory.load_config(file, values=values)

    return config_of(options, file, configs.read_overrides(overrides), load)


def config_of(
    options: Options,
    named: object,
    values: Mapping[str, Any],
    load: Callable[[Mapping[str, Any]], configs.Config],
) -> configs.Config:
    """Return the config of the run or the weights that are evaluated.

    Args:
        options: name what is evaluated, and by which images it is judged.
        named: the config that is named for weights, in any form; None for none.
        values: overrides by key.
        load: makes the config for weights with overrides.

    Raises:
        UserError: no such path, no config, or a mistake in it.
    """
    path = options.path
    try:
        exists = path.exists()
    except OSError as error:
        rule = f"cannot be looked at: {error.strerror}"
        raise UserError.of("RUN_DIR|WEIGHTS", path, rule, "ask for access, or copy it") from None
    if not exists:
        raise UserError.of("RUN_DIR|WEIGHTS", path, "no such file or folder", "give a run directory or weights")
    if (own := paths.RunPaths(path).config).is_file():
        if named is not None:
            raise UserError.of("argument", named, "a run directory has its config", "give overrides alone")
    elif path.is_dir() and named is None:
        rule = f"holds no {own.name}"
        raise UserError.of("RUN_DIR", path, rule, "give the directory of a run, or weights and a CONFIG")
    elif named is None:  # the default's images would be a guess
        rule = "weights do not say which images they are judged by"
        raise UserError.of("WEIGHTS", path, rule, "add a CONFIG, such as cifar10 data.root=FOLDER")
    if "eval.knn_split" in values:
        rule = "is what the trainer watches"
        raise UserError.of("eval.knn_split", values["eval.knn_split"], rule, "use --split test or validation")
    # Labelled images are wanted, whether or not the run evaluated itself; downloads, when they are asked for here.
    values = {"data.download": False, **values, "eval.knn_split": options.split, "eval.knn_every": 1}
    return directory.load_config(own, values=values) if own.is_file() else load(values)


def overrides_that_count(path: Path, config: configs.Config) -> list[str]:
    """Return in what the config of an evaluation differs from that of the run, as overrides for the command line.

    Left out is what changes no figure, or is an option of its own. A folder of images is named FOLDER: it is another
    one on each machine.

    Args:
        path: what is evaluated; weights have no config of their own, and so no overrides.
        config: of the evaluation.

    Raises:
        UserError: the run's config cannot be read.
    """
    own_file = paths.RunPaths(path).config
    if not own_file.is_file():
        return []
    split = config.eval.knn_split
    own, used = (_that_count(of, split) for of in (directory.load_config(own_file), config))
    changed = {key: value for key, value in used.items() if value != own[key]}
    if "data.root" in changed:
        changed["data.root"] = "FOLDER"
    return [f"{key}={written(value)}" for key, value in changed.items()]


def _that_count(config: configs.Config, split: str) -> dict[str, Any]:
    """Return the values by key on which the figures of an evaluation on a split depend."""
    values = configs.flat(config.model_dump(mode="json"))
    counts = ["eval.knn_k", "eval.knn_temperature", "run.seed", "device.precision"]
    counts += ["eval.validation_fraction"] if split == "validation" else []
    free = ("data.workers", "data.download", "data.cache")
    return {key: v for key, v in values.items() if (key.startswith("data.") and key not in free) or key in counts}
