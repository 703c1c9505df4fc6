"""Steps on random images that are on the device already: ours, the authors' and the bare one, to be timed in turns."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.baselines import authors
from benchmarks.baselines.bare import BareStep
from benchmarks.baselines.program import Step
from moco_dist import config as configs
from moco_dist.data.views import Views
from moco_dist.engine.build import build
from moco_dist.engine.engine import Engine
from moco_dist.methods import moco
from moco_dist.networks.resnet import build_encoder
from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World

WARM_UP_STEPS = 3


def engine(config: configs.Config, device: torch.device) -> Engine:
    """Make the engine of a run on this process alone."""
    devices.prepare(config, device)
    world = World(0, 1, 0, device)
    encoder = build_encoder(config.model, config.data.channel_count, config.run.seed)
    return build(moco.MoCo(config, world, encoder), config, configs.layout(config, 1), world)


def ours(config: configs.Config, device: torch.device) -> Step:
    """Make our step."""
    own, numbers = engine(config, device), itertools.count()
    views = Views(_views(config, device, own.image_dtype))
    return lambda: own.step(views, next(numbers), config.optim.lr).values[0]


def bare(config: configs.Config, device: torch.device) -> Step:
    """Make the bare step."""
    return BareStep(config, device, config.optim.global_batch)


def of_the_authors(config: configs.Config, device: torch.device) -> Step:
    """Make the authors' step, with DDP and collectives in a process group of one."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    step = authors.trainer(authors.built(config, device), config, device)
    one, two = _views(config, device, torch.float32)
    return lambda: step(one, two)


def _views(config: configs.Config, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return both views of a batch of noise, [2, n, C, S, S]."""
    data = config.data
    shape = 2, config.optim.global_batch, data.channel_count, data.image_size, data.image_size
    return torch.randn(shape, device=device).to(dtype)


def seconds(step: Step, count: int) -> float:
    """Return how long so many steps take, until the device has done them."""
    began = time.perf_counter()
    for _ in range(count):
        loss = step()
    loss.item()
    return time.perf_counter() - began


def in_turns(steps: Mapping[str, Step], rounds: int, block: int) -> dict[str, float]:
    """Return the seconds of a step of each kind: the median over rounds, in which each takes a block of steps."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, block) / block)
    return {name: statistics.median(of_step) for name, of_step in times.items()}
