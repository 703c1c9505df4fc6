"""Figures on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from moco_dist.ranks import devices


class Readout:
    """Figures of past steps on the host. On a GPU they are read one step later, so that it never runs out of work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: list[tuple[int, Tensor, list[str], torch.Event | None]] = []

    def push(self, step: int, figures: Tensor, unreadable: list[str]) -> None:
        ready = devices.of(self._device).Event() if devices.runs_ahead(self._device) else None
        self._waiting.append((step, figures.to("cpu", non_blocking=True), unreadable, ready))
        if ready:
            ready.record()

    def pop(self, *, everything: bool) -> Iterator[tuple[int, list[float], list[str]]]:
        """Step, figures and names of replaced images: of what is due to be read, or of everything."""
        while len(self._waiting) > (1 if devices.runs_ahead(self._device) and not everything else 0):
            step, figures, unreadable, ready = self._waiting.pop(0)
            if ready:
                ready.synchronize()
            yield step, figures.tolist(), unreadable
