"""Compare a checkpoint of the authors' code with a config, which must agree with all that the file holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from moco_dist.config import Config
from moco_dist.engine import schedule
from moco_dist.errors import UserError, shown
from moco_dist.networks.weights import settings_of
from moco_dist.reference.read import Contents, Unfit, sgd_group

_OTHER_SGD = {"nesterov": False, "dampening": 0, "maximize": False}
"""Settings of torch's SGD that have no key here, with the value that every run of ours uses."""
_LR_TOLERANCE = 1e-6
_MOST = 1e9
"""A setting of SGD that is no less, or not finite, is damaged."""
_UNKNOWN = {
    "moco": ("momentum", "temperature", "symmetric", "bn_groups"),
    "optim": ("global_batch", "lr", "epochs", "schedule"),
    "data": ("augmentation", "image_size"),
    "run": ("seed",),
    "device": ("precision",),
}
"""The most important ones of the keys whose values the file does not hold."""


@dataclass(frozen=True)
class Progress:
    """The progress says how far a run has come."""

    epoch: int
    """Finished epochs."""
    epoch_steps: int
    """Steps of an epoch."""
    total: int
    """Steps of the whole run."""

    @property
    def step(self) -> int:
        """Return the number of steps that are done."""
        return self.epoch * self.epoch_steps


def check_model(contents: Contents, config: Config, channels: int) -> None:
    """Refuse a config of another network or queue than the file's; the fix has all overrides that are needed.

    Args:
        contents: of the file.
        config: of the run.
        channels: of the images.

    Raises:
        UserError: names the first key that differs.
    """
    ours: dict[str, Any] = {
        "model.arch": config.model.arch,
        "model.stem": config.model.stem,
        "model.width": config.model.width,
        "model.dim": config.model.dim,
        "model.mlp": config.model.mlp,
        "moco.queue_size": config.moco.queue_size,
    }
    theirs = settings_of(contents.encoder_q)
    of_images = theirs.pop("data.channels", channels)
    if not theirs and contents.arch in (None, config.model.arch):
        rule = f"the file's encoder{f', {contents.arch},' if contents.arch else ''} is none of the ResNets known here"
        raise UserError.of("model.arch", config.model.arch, rule, "give a checkpoint of a ResNet, as torchvision has")
    if contents.arch is not None and contents.arch != theirs.get("model.arch"):
        has = f"its layers are those of {theirs['model.arch']}" if theirs else "that is none of the ResNets known here"
        rule = f"the file says that its architecture is {shown(contents.arch)}, and {has}"
        raise UserError.of("model.arch", config.model.arch, rule, "give a checkpoint of one of torchvision's ResNets")
    theirs |= _head(contents.encoder_q)
    theirs["moco.queue_size"] = len(contents.queue)
    _check_equal(ours, theirs)
    if of_images != channels:
        rule = f"the images have {channels} channels, and the file's encoder sees {of_images}"
        raise UserError.of("data.source", config.data.source, rule, f"give images of {of_images} channels")


def _check_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse settings of ours that are not the file's. Raises UserError for the first; the fix has all overrides."""
    differing = [key for key, value in theirs.items() if ours[key] != value]
    if differing:
        key, overrides = differing[0], " ".join(f"{key}={shown(theirs[key])}" for key in differing)
        raise UserError.of(key, ours[key], f"the file's run had {shown(theirs[key])}", f"add {overrides}")


def _head(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the head, as far as its layers tell them."""
    last = encoder.get("fc.2.weight", encoder.get("fc.weight"))
    return {"model.dim": len(last), "model.mlp": "fc.2.weight" in encoder} if last is not None and last.ndim else {}


def check_sgd(contents: Contents, config: Config) -> None:
    """Refuse a config of another SGD than the file's, as a run that goes on refuses it. Raises UserError, Unfit."""
    if contents.optimizer is None:
        return
    group, optim = sgd_group(contents.optimizer), config.optim
    for name in ("momentum", "weight_decay", "lr"):
        if type(group.get(name)) not in (int, float) or not abs(group[name]) < _MOST:
            raise Unfit(
                f"the {name} of its optimizer is no number", "give the checkpoint as the authors' code saved it"
            )
    theirs = {"optim.sgd_momentum": group["momentum"], "optim.weight_decay": group["weight_decay"]}
    ours = {"optim.sgd_momentum": optim.sgd_momentum, "optim.weight_decay": optim.weight_decay}
    _check_equal(ours, theirs)
    for name, value in _OTHER_SGD.items():
        if type(used := group.get(name, value)) not in (bool, int, float) or used != value:
            rule = f"its run used {name}={shown(used)} of SGD, which the trainer does not have"
            raise Unfit(rule, "begin a run with its encoder by run.init_from=CHECKPOINT")


def progress(contents: Contents, config: Config, epoch: int | None, images: int) -> Progress:
    """Compute where the run stands, from the finished epochs and the images of the config.

    Args:
        contents: of the file.
        config: of the run.
        epoch: what the command line says of a file that does not tell it.
        images: of the training set.

    Raises:
        UserError: the number of epochs is missing or told twice, or the run has no step left.
    """
    if epoch is not None and contents.epoch not in (None, epoch):
        raise UserError.of("--epoch", epoch, f"the file says that {contents.epoch} are finished", "drop it")
    epochs = contents.epoch or epoch
    if epochs is None:
        raise UserError.of("--epoch", None, "the file does not tell how many epochs are finished", "add --epoch N")
    epoch_steps = images // config.optim.global_batch
    now = Progress(epochs, epoch_steps, schedule.total_steps(config.optim, epoch_steps))
    if now.step >= now.total:
        key = "optim.epochs" if config.optim.steps is None else "optim.steps"
        done, one = (epochs, 1) if config.optim.steps is None else (now.step, epoch_steps)
        rule = f"{done} are done already, {epochs} epochs of {epoch_steps} steps"
        fix = f"use {key}={done + one} or more, or train anew from its encoder by run.init_from=CHECKPOINT"
        raise UserError.of(key, config.optim.epochs if config.optim.steps is None else config.optim.steps, rule, fix)
    return now


def check_cursor(contents: Contents, config: Config) -> None:
    """Refuse a batch of which no number fills the queue up to the file's cursor. Raises UserError."""
    keys = config.optim.global_batch * (1 + config.moco.symmetric)
    if contents.cursor % gcd(keys, len(contents.queue)):
        rule = f"the queue's cursor in the file is {contents.cursor}, which batches of {keys} keys do not reach"
        fix = "use the optim.global_batch, over all GPUs, and the moco.symmetric of the file's run"
        raise UserError.of("optim.global_batch", config.optim.global_batch, rule, fix)


def doubts(contents: Contents, config: Config, now: Progress) -> Iterator[str]:
    """Yield a line for each figure of the file that the config does not explain, which is allowed and seldom meant."""
    keys, size = config.optim.global_batch * (1 + config.moco.symmetric), len(contents.queue)
    if contents.cursor != now.step * keys % size:
        yield (
            f"the queue's cursor is {contents.cursor}, and {now.step} steps of {keys} keys would have left it at "
            f"{now.step * keys % size}: its run had another optim.global_batch, moco.symmetric or number of images"
        )
    if contents.optimizer is None:
        yield "the file has no optimizer: SGD's momentum begins at 0"
        return
    lr, last = sgd_group(contents.optimizer)["lr"], now.step - now.epoch_steps
    # main_moco.py has the rate of the epoch's first step, and the CIFAR-10 demo, which counts from 1, of the next one's
    rates = [schedule.learning_rate(config.optim, step, now.epoch_steps) for step in range(last, now.step + 1)]
    if not min(rates) * (1 - _LR_TOLERANCE) <= lr <= max(rates) * (1 + _LR_TOLERANCE):
        yield (
            f"the learning rate was {lr:.6g} in the last epoch of the file, and by the config it was {rates[0]:.6g} to "
            f"{rates[-1]:.6g}: look at optim.lr, optim.epochs, optim.schedule, optim.milestones and optim.warmup_epochs"
        )


def unknown(config: Config) -> str:
    """Write down the settings that the file does not hold, so that the config alone decides them."""
    tree = config.model_dump(mode="json")
    values = [f"{section}.{name}={shown(tree[section][name])}" for section, names in _UNKNOWN.items() for name in names]
    return f"not in the file, so as the config says: {', '.join(values)}"
