"""Write the state of a run as a checkpoint of the authors' code, whose main_moco.py goes on from it by --resume."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moco_dist.errors import UserError

_PREFIX = "module."
"""The prefix of all names in the file, since the authors' model lies within DistributedDataParallel."""


def of_run(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of a run in the authors' layout; `torch.save` writes it.

    Args:
        state: of the run, as `engine.checkpoint.load` reads it.

    Raises:
        UserError: its step lies within an epoch, which their files cannot tell.
    """
    config, step = state["config"], state["step"]
    if state.get("data") is None:
        rule = "was saved by an earlier revision, which kept no number of images, and so of finished epochs"
        raise UserError.of("--step", step, rule, "go on with the run, and export a later checkpoint")
    epoch_steps = state["data"]["images"] // config["optim"]["global_batch"]
    if not step or step % epoch_steps:
        rule = f"is within an epoch of {epoch_steps} steps, and the authors' checkpoints tell finished epochs alone"
        fix = f"use a checkpoint of a multiple of {epoch_steps} (checkpoint.milestone_epochs keeps them)"
        raise UserError.of("--step", step, rule, fix)
    return checkpoint(state, step // epoch_steps, config["model"]["arch"])


def remarks(state: Mapping[str, Any]) -> list[str]:
    """Return a line for each reason why main_moco.py would not go on from a checkpoint as the run does.

    `python -m moco_dist.convert` takes all of them back.

    Args:
        state: of the run, as `of_run` takes it.
    """
    model, moco, lines = state["config"]["model"], state["config"]["moco"], []
    channels, batch = state["encoder_q"]["conv1.weight"].shape[1], state["config"]["optim"]["global_batch"]
    if (model["stem"], model["width"], channels) != ("imagenet", 64, 3):
        has = f"model.stem={model['stem']}, model.width={model['width']} and {channels} channels"
        lines.append(f"main_moco.py builds torchvision's {model['arch']} and cannot load an encoder with {has}")
    if moco["queue_size"] % batch:
        lines.append(f"main_moco.py needs a queue of whole batches, and {moco['queue_size']} is no multiple of {batch}")
    if moco["symmetric"]:
        lines.append("main_moco.py has no symmetric loss")
    return lines


def checkpoint(state: Mapping[str, Any], epoch: int, arch: str) -> dict[str, Any]:
    """Return the state of an engine in the authors' layout, in float32 and contiguous.

    The state of fp16's loss scaling has no place there. `epoch` counts the finished epochs.

    Args:
        state: of an engine (`Engine.state`), with its encoders, queue [K, C], cursor and optimizer.
        epoch: number of finished epochs.
        arch: name of the architecture.
    """
    model: OrderedDict[str, Tensor] = OrderedDict()  # a dict of another kind would be pickled as code
    model[f"{_PREFIX}queue"] = _plain(state["queue"].T)  # [C, K]
    model[f"{_PREFIX}queue_ptr"] = torch.tensor([state["cursor"]])
    for encoder in ("encoder_q", "encoder_k"):
        model |= {f"{_PREFIX}{encoder}.{name}": _plain(tensor) for name, tensor in state[encoder].items()}
    return {"epoch": epoch, "arch": arch, "state_dict": model, "optimizer": _optimizer(state["optimizer"])}


def _optimizer(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of SGD over both encoders' parameters, of which the key encoder's have no momentum."""
    (group,) = own["param_groups"]
    count = len(group["params"])
    entries = {
        number: {name: _plain(value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for number, entry in own["state"].items()
    }
    settings = {**group, "fused": None, "foreach": None, "params": list(range(2 * count))}
    return {"state": entries, "param_groups": [settings]}


def _plain(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor on the CPU: floats in float32, in the usual order of memory."""
    kept = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
    return kept.clone(memory_format=torch.contiguous_format)
