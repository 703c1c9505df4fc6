"""Measure how fast the ranks compute, and how fast they exchange numbers: a slow GPU or network shows before a run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from moco_dist.ranks import devices
from moco_dist.ranks.collectives import World

_REPEATS = 3


@dataclass(frozen=True)
class Speed:
    """The speed of the ranks of a world, and its slowest rank."""

    gib_per_second: float
    """Numbers that are averaged over all ranks in a second, as gradients are; 0 for a world of one."""
    slowest: int
    """The rank that takes longest for a product of matrices."""
    slower: float
    """The slowest rank takes this many times as long as the median rank."""


def measure(world: World) -> Speed:
    """Measure the speed of all ranks, within a second; each of them calls it."""
    on_cpu = world.device.type == "cpu"
    numbers = torch.ones(2**20 if on_cpu else 2**23, device=world.device)  # 4 or 32 MiB
    side = 256 if on_cpu else 2048
    matrix = torch.ones(side, side, device=world.device)
    own = _seconds(world, lambda: torch.mm(matrix, matrix))
    exchange = _seconds(world, lambda: world.mean_([numbers]))
    of_ranks = world.gather_objects(own)
    slowest = max(range(world.size), key=of_ranks.__getitem__)
    gib = numbers.numel() * numbers.element_size() / 2**30
    return Speed(gib / exchange if world.size > 1 else 0.0, slowest, of_ranks[slowest] / median(of_ranks))


def _seconds(world: World, work: Callable[[], object]) -> float:
    """Return the shortest of a few times that the work takes, after it was done once."""
    times = []
    for _ in range(1 + _REPEATS):
        began = time.monotonic()
        work()
        if devices.runs_ahead(world.device):
            devices.of(world.device).synchronize(world.device)
        times.append(time.monotonic() - began)
    return max(min(times[1:]), 1e-9)
