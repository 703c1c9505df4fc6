"""Measure how long this rank computes in a step rather than waits for other ranks: the slowest one holds up all."""

import time
from typing import Any

from moco_dist.ranks import devices, transfers
from moco_dist.ranks.collectives import World


class BusyTime:
    """The time of a step less the waits for other ranks.

    On the CPU it is taken from every step, by the host's clock. On a device it is taken from one step now and then, by
    events in the device's own work, and read when they have passed, so that the host never waits. There the wait for
    gradients within DDP's backward pass cannot be told from computing: a slow rank shows by its forward passes.
    """

    def __init__(self, world: World) -> None:
        self._module: Any = devices.of(world.device) if devices.runs_ahead(world.device) else None
        self._events: list[Any] = []  # of the step that is measured: its begin, and its end
        self._waits: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._steps = 0
        self._began: float | None = None
        self._waited = 0.0

    def begin_step(self) -> None:
        """Take note that a step begins, and that the one before it, if any, is over."""
        if self._module is None:
            self._by_the_clock()
        elif not self._events:
            transfers.time_on_device(True)
            self._mark()
        elif len(self._events) == 1:
            self._waits = transfers.time_on_device(False)
            self._mark()
        elif self._events[1].query():
            milliseconds = self._events[0].elapsed_time(self._events[1])
            milliseconds -= sum(before.elapsed_time(after) for before, after in self._waits)
            self._seconds, self._steps = milliseconds / 1000, 1
            self._events.clear()

    def pause(self) -> None:
        """Take note that what follows is no step, an evaluation for example."""
        self._began = None
        if len(self._events) == 1:
            transfers.time_on_device(False)
            self._events.clear()

    def take_seconds(self) -> float:
        """Return the mean over the steps since the last call; on a device, of the last one measured; 0 for none."""
        seconds = self._seconds / max(1, self._steps)
        if self._module is None:
            self._seconds, self._steps = 0.0, 0
        return seconds

    def _by_the_clock(self) -> None:
        now, waited = time.monotonic(), transfers.waited_seconds()
        if self._began is not None:
            self._seconds += now - self._began - (waited - self._waited)
            self._steps += 1
        self._began, self._waited = now, waited

    def _mark(self) -> None:
        event = self._module.Event(enable_timing=True)
        event.record()
        self._events.append(event)
