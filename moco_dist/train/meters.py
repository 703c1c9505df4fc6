"""Measure what a rank takes for its steps, and tell by node what all ranks measured: time, memory, use of the GPU."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from statistics import fmean, median

from moco_dist.ranks import devices, host_memory
from moco_dist.ranks.busy import BusyTime
from moco_dist.ranks.collectives import World

_UNKNOWN = -1.0
"""The value that a rank tells where it cannot measure a figure; all ranks tell the same names."""
_GIB = 2**30


class Meters:
    """The meters measure the time and the memory that one rank needs for its steps. All ranks make theirs together."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._nodes = node_numbers(world.gather_objects(world.local_rank))
        self._busy = BusyTime(world)
        self._began: float | None = None
        self._seconds, self._steps = 0.0, 0
        self._gpu_use_is_known = devices.runs_ahead(world.device)
        self._waited = 0.0

    def begin_step(self, waited: float) -> None:
        """Take note that a step begins, whose batch was waited for so many seconds; the one before it is over."""
        now = time.monotonic()
        if self._began is not None:
            self._seconds += now - self._began
            self._waited += waited
            self._steps += 1
        self._began = now
        if self._world.size > 1:
            self._busy.begin_step()

    def pause(self) -> None:
        """Take note that what follows is no step: an evaluation, or a checkpoint."""
        self._began = None
        self._busy.pause()

    def take(self) -> dict[str, float]:
        """Return what this rank measured since this was last called; it never waits for the device."""
        steps, seconds, waited = self._steps, self._seconds, self._waited
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        on_gpu = devices.runs_ahead(self._world.device)
        return {
            "step_seconds": seconds / steps if steps else _UNKNOWN,
            "busy_seconds": self._busy.take_seconds() or _UNKNOWN,
            "waited_share": min(1.0, waited / seconds) if seconds else _UNKNOWN,
            "memory_gib": host_memory.in_use() / _GIB if self._world.local_rank == 0 else _UNKNOWN,
            "gpu_memory": devices.peak_memory(self._world.device) / _GIB if on_gpu else _UNKNOWN,
            "gpu_use": self._gpu_use(),
        }

    def figures(self, of_ranks: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Make figures of what all ranks have taken, by name and rank."""
        figures = dict(of_all(of_ranks))
        for number in range(self._nodes[-1] + 1):
            of_node = {
                name: [value for value, node in zip(values, self._nodes, strict=True) if node == number]
                for name, values in of_ranks.items()
            }
            figures |= {f"node/{number}/{name}": value for name, value in of_one_node(of_node).items()}
        return {name: round(value, 4) for name, value in figures.items()}

    def _gpu_use(self) -> float:
        """Ask the driver how much of the time this rank's GPU was at work lately, 0 to 1."""
        use = devices.use(self._world.device) if self._gpu_use_is_known else None
        self._gpu_use_is_known = use is not None
        return _UNKNOWN if use is None else use


def node_numbers(local_ranks: Sequence[int]) -> list[int]:
    """Return the number of each rank's node: one begins at each rank that is its node's first."""
    return [max(0, begun - 1) for begun in accumulate(int(local_rank == 0) for local_rank in local_ranks)]


def of_all(of_ranks: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Make the figures that are told of all ranks at once."""
    figures: dict[str, float] = {}
    memory, busy = max(of_ranks["gpu_memory"]), of_ranks["busy_seconds"]
    if memory >= 0:
        figures["gpu_memory_gib"] = memory
    if len(busy) > 1 and min(busy) > 0:
        slowest = max(range(len(busy)), key=busy.__getitem__)
        figures |= {"slowest_rank": slowest, "slowest_lag": busy[slowest] - median(busy)}
    return figures


def of_one_node(of_ranks: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Make the figures of a node from what its ranks have measured; what none of them could is left out."""
    measured = {name: [value for value in values if value >= 0] for name, values in of_ranks.items()}
    ways: tuple[tuple[str, str, Callable[[Sequence[float]], float]], ...] = (
        ("step_seconds", "step_seconds", fmean),
        ("data_wait", "waited_share", fmean),
        ("memory_gib", "memory_gib", max),
        ("gpu_memory_gib", "gpu_memory", max),
        ("gpu_use", "gpu_use", fmean),
    )
    return {name: combine(values) for name, of_rank, combine in ways if (values := measured[of_rank])}
