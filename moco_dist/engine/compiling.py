"""Compile the networks of an engine ahead of the first step, and go on without where no compiler works."""

import os
import time
from typing import Literal

import torch

from moco_dist.engine.engine import Engine
from moco_dist.errors import reason
from moco_dist.networks import batchnorm, compiled
from moco_dist.ranks import devices, watchdog

NOT_COMPILED = "not compiled"


def compile_(engine: Engine, mode: Literal["reduce-overhead", True]) -> str:
    """Compile the networks of an engine on all ranks, so that the first step finds them ready.

    The first rank of each node goes first, and the others find most of its work in the cache. Where a rank has no
    compiler that works, all ranks go on without, and rank 0 tells why in one line.

    Returns:
        What came of it, in words for people.
    """
    world, began = engine.world, time.monotonic()
    place = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torch's folder in /tmp")
    world.tell(
        "moco_dist.train: compiling the networks, which may take a minute at the first start, and less at the next "
        f"ones ({place} keeps the code); device.compile=false goes without"
    )
    with watchdog.untimed():  # a compiler that takes its time is no hang
        own = world.first_then_others(lambda: _fault(engine, mode))
    faults = [fault for fault in world.gather_objects(own) if fault]
    if not faults:
        return f"compiled in {time.monotonic() - began:.0f} s"
    compiled.undo_(engine.method)
    world.warn(f"moco_dist.train: warning: the networks cannot be compiled, so steps may take longer ({faults[0]})")
    return NOT_COMPILED


def _fault(engine: Engine, mode: Literal["reduce-overhead", True]) -> str:
    """Compile the networks of this rank. Return why that fails, in one line, or an empty text."""
    try:
        compiled.compile_(engine.method, mode)
        _pass_zeros(engine)
    except torch.OutOfMemoryError:  # a step would not fit either
        raise
    except Exception as error:  # no compiler, a broken one, no disk: each fails in its own way
        return reason(error)
    finally:
        batchnorm.take_group_sums_(engine.method)
    return ""


def _pass_zeros(engine: Engine) -> None:
    """Go forward and backward through the networks as the steps will, which compiles them, and change no weight.

    The gradients go to no parameter, so that DDP, which waits for them there, takes no note.
    """
    size, rows = engine.config.data.image_size, engine.plan.batch_per_rank // engine.parts
    shape = rows, engine.config.data.channel_count, size, size
    images = torch.zeros(shape, dtype=engine.image_dtype, device=engine.world.device)
    devices.begin_step(engine.config)
    for network in engine.method.children():
        if not any(compiled.parts(network)):
            continue
        weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
        with torch.set_grad_enabled(bool(weights)), engine.autocast():
            outputs = network(images)
        if weights:
            torch.autograd.grad(outputs.float().sum(), weights, allow_unused=True)
