"""Make the engine that a config asks for, on this rank's device."""

from __future__ import annotations

import torch

from moco_dist.config import Config, Layout
from moco_dist.engine.engine import Engine
from moco_dist.engine.exact import ExactEngine
from moco_dist.engine.overlapped import OverlappedEngine
from moco_dist.methods.method import Method
from moco_dist.networks import batchnorm
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World


def build(method: Method, config: Config, plan: Layout, world: World) -> Engine:
    """Move a method to this rank's device, and make the engine that the config asks for."""
    batchnorm.set_group_size(method, plan.group_size)
    method.to(world.device, torch.float64 if config.device.precision == "fp64" else torch.float32)
    if config.device.channels_last:
        method.to(memory_format=torch.channels_last)
    if config.device.compile:
        for network in method.children():
            network.compile()
    exact = config.device.is_exact(on_cpu=not devices.runs_ahead(world.device))
    engine = ExactEngine if exact else OverlappedEngine
    return engine(method, config, plan, world)
