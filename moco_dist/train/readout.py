"""Bring figures from the device to the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from moco_dist.data.decode import Unreadable
from moco_dist.engine.engine import Figures
from moco_dist.ranks import devices


class Reading(NamedTuple):
    """A reading is what the host learns of a step."""

    step: int
    """Counted from 1."""
    figures: dict[str, float]
    unreadable: list[Unreadable]
    """This rank's images that were replaced."""


class Readout:
    """The readout brings figures to the host. On a GPU it reads them a step later, so that work never runs out."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: list[tuple[int, Figures, list[Unreadable], torch.Event | None]] = []

    def push(self, step: int, figures: Figures, unreadable: list[Unreadable]) -> None:
        """Start to copy the figures of a step to the host."""
        ready = devices.of(self._device).Event() if devices.runs_ahead(self._device) else None
        self._waiting.append((step, figures.to_host(), unreadable, ready))
        if ready:
            ready.record()

    def pop(self, *, everything: bool) -> Iterator[Reading]:
        """Yield what is due to be read, or everything."""
        while len(self._waiting) > (1 if devices.runs_ahead(self._device) and not everything else 0):
            step, figures, unreadable, ready = self._waiting.pop(0)
            if ready:
                ready.synchronize()
            yield Reading(step, figures.numbers(), unreadable)
